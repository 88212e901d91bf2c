"""benchmarks/answer.py: which points there are, what is planned, kept and gone on with, and what the report says of finished trainings."""

import json
import math
import re
import signal
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml
from support import REPOSITORY, benchmark, environment, small_params, wait_until

from sfd.errors import UserError

SETUP: dict[str, Any] = {"minutes": None, "steps": 16, "num_images": 12, "looks": 8, "set": {}}


@pytest.fixture(scope="module")
def answer() -> ModuleType:
    return benchmark("answer")


@pytest.fixture(scope="module")
def points() -> ModuleType:
    return benchmark("answer_points")


@pytest.fixture(scope="module")
def reports() -> ModuleType:
    return benchmark("answer_report")


def content(point: str, seed: int, fds: list[float], second: float = 5.0) -> dict[str, Any]:
    looks = [
        {"step": 10 * n, "images": 1000.0 * n, "seconds": 6.0 * n, "fd": fd, "fd_b": second, "class_accuracy": 0.9}
        for n, fd in enumerate(fds, start=1)
    ]
    facts = {
        "steps": 10 * len(fds),
        "num_images": 500,
        "judges": ["fd_a", "fd_b"],
        "floors": {"fd_a": 1.5, "fd_b": 0.5},
    }
    return facts | {"point": point, "seed": seed, "looks": looks, "texture_vae": {"psnr": 30.0}}


@pytest.mark.parametrize("encoder", ["train", "package"])
@pytest.mark.parametrize("data", ["digits", "pictures"])
def test_the_rules_accept_every_point_with_every_data_set_and_encoder(
    points: ModuleType, tmp_path: Path, data: str, encoder: str
) -> None:
    folder = data if data == "digits" else str(tmp_path)
    budget = points.Budget(800, 8, 500)
    for name, point in points.POINTS.items():
        project = points.project_params(folder, encoder, point.variant, 400, {})
        params = points.point_params(project, name, budget, points.offset(0.2))
        assert params.diffusion.training.num_steps == 800 and params.tune.report_every == 100, name
        assert params.diffusion.training.decay == "constant" and params.diffusion.loss.timestep_sampling == "per_part"
        assert (params.texture_vae.alignment.weight > 0.0) == name.startswith("va-vae"), name
        assert (params.semantic.kind == "pca") == name.startswith("redi"), name
        assert (params.semantic.kind == "none") == (name in ("none", "va-vae-alone")), name
        assert len(params.judges) == 2 and not any(params.is_encoder(judge) for judge in params.judges), name
        assert params.texture_vae.is_trained == (data == "digits" or name.startswith("va-vae")), name
        # The judges of pictures have 1,280 features, more than a measurement has samples.
        assert (params.evaluate.min_images.fd is None) == (data == "pictures"), name
        tuned = points.TUNED == name
        assert params.schedule.kind != "offset" or tuned or f"tau-{params.schedule.tau:g}" in name


def test_the_budget_of_an_equal_time_is_a_multiple_of_the_looks_and_is_kept(
    answer: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Timed:
        def seconds_per_step(self, params: Any) -> float:
            assert params.schedule.kind == "sync"
            return 0.1

    made = answer.Combination(tmp_path, "digits", "train", SETUP | {"minutes": 1.0, "steps": None, "num_images": 500})
    monkeypatch.setattr(made, "trainings", lambda _variant: Timed())
    assert made.budget().steps == 600 and made.budget().values()["tune.report_every"] == 75
    monkeypatch.setattr(made, "trainings", lambda _variant: None)
    assert made.budget().steps == 600, "it is not timed again"


def test_another_setup_is_refused_and_other_points_and_seeds_are_not(answer: ModuleType, tmp_path: Path) -> None:
    answer.Combination(tmp_path, "digits", "train", SETUP).begin()
    again = answer.Combination(tmp_path, "digits", "train", SETUP)
    assert again.left(["sync", "tau-0.3"], 2) == [("sync", 0), ("tau-0.3", 0), ("sync", 1), ("tau-0.3", 1)]
    with pytest.raises(UserError, match=r"another setup \(steps: 16 there\): name another --out"):
        answer.Combination(tmp_path, "digits", "train", SETUP | {"steps": 24})


def test_what_is_finished_is_not_planned_and_hours_follow_from_the_minutes(answer: ModuleType, tmp_path: Path) -> None:
    made = answer.Combination(tmp_path, "digits", "train", SETUP | {"minutes": 30.0, "steps": None})
    chosen = ["sync", "tuned"]
    assert answer.search_cost() == pytest.approx(8 / 8 + 4 / 8 + 2 / 4)
    assert answer.plan([made], chosen, 2).endswith("3.0 hours of training are planned")
    answer.save_json(made.file("sync", 1), content("sync", 1, [2.0, 1.0]))
    assert answer.plan([made], chosen, 2).endswith("2.5 hours of training are planned")
    in_steps = answer.Combination(tmp_path / "other", "digits", "train", SETUP)
    assert "hours are known once a step was timed" in answer.plan([in_steps], chosen, 2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--points", "sync,tau"], "--points tau: there is no such point; choose among sync, tau-0.1"),
        (["--encoder", "dino"], "--encoder dino: choose train or package"),
        (["--data", "nowhere"], "--data nowhere: write `digits`, or name a folder"),
        (["--set", "diffusion"], "--set diffusion: write KEY=VALUE"),
        (["--set", "diffusion.model.size=Q", "--dry-run"], "diffusion.model.size"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_made(
    answer: ModuleType, tmp_path: Path, arguments: list[str], said: str
) -> None:
    app = typer.Typer()
    app.command()(answer.main)
    with pytest.raises(SystemExit) as ended:
        typer.main.get_command(app).main(["--out", str(tmp_path), *arguments], standalone_mode=False)
    assert said in str(ended.value.code) and {path.name for path in tmp_path.iterdir()} <= {".lock"}


def test_the_search_halves_the_candidates_and_goes_on_with_what_it_knows(
    answer: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[float, int]] = []

    def candidate(tau: float, budget: Any) -> float:
        if len(asked) == limit:
            raise KeyboardInterrupt
        asked.append((tau, budget.steps))
        return abs(tau - 0.2) + 1.0

    made = answer.Combination(tmp_path, "digits", "train", SETUP | {"steps": 80})
    monkeypatch.setattr(made, "_candidate", candidate)
    budget, limit = benchmark("answer_points").Budget(80, 8, 12), 9
    with pytest.raises(KeyboardInterrupt):
        made.search(budget)
    limit = 100
    assert made.search(budget) == {"schedule.kind": "offset", "schedule.tau": 0.2}
    assert len(asked) == 8 + 4 + 2 and len(set(asked)) == 14, "no candidate is trained twice"
    assert {tau for tau, steps in asked if steps == 20} >= {0.2, 0.1, 0.3}
    assert {tau for tau, steps in asked if steps == 40} <= {0.2, 0.1, 0.3}


def test_images_to_reach_a_distance_lie_on_the_line_between_two_looks(reports: ModuleType) -> None:
    looks = content("sync", 0, [8.0, 4.0, 1.0])["looks"]
    assert reports.images_to_reach(looks, 4.0) == 2000.0
    assert reports.images_to_reach(looks, math.sqrt(32.0)) == pytest.approx(1500.0)
    assert reports.images_to_reach(looks, 9.0) == 1000.0, "it was there at the first look"
    assert reports.images_to_reach(looks, 0.5) is None


def test_the_report_compares_within_a_seed_and_says_what_could_have_been_seen(
    reports: ModuleType, tmp_path: Path
) -> None:
    found = [content("sync", seed, [20.0, 10.0 + seed]) for seed in (0, 1, 2)]
    found += [content("tau-0.3", seed, [9.0, 8.0 + seed], 5.0 + seed) for seed in (0, 1, 2)]
    finished = [reports.Finished("digits-train", each) for each in found]
    text = reports.write_report(finished, ["sync", "tau-0.3"], tmp_path)
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| digits-train")]
    assert rows[0][1:3] == ["sync", "3"] and rows[0][6] == "-" and rows[0][3].startswith("11.000 ± ")
    assert rows[1][6] == "-2.000 ± 0.000, better" and rows[1][7] == "1.000 ± 2.484, not told apart"
    assert "(1 not)" in rows[0][8] and rows[1][8] == "1.0 ± 0.0 |"
    assert (
        "Smallest effect by the first judge: one that 80 % of such experiments find has a difference of 0.000" in text
    )
    assert "PSNR of 30.0 dB (`sync`, `tau-0.3`)" in text and "fd_a 1.500, fd_b 0.500" in text
    assert (tmp_path / "answer.png").stat().st_size > 1000 and (tmp_path / "report.md").read_text() == text


def test_a_report_of_one_seed_or_without_sync_promises_nothing(reports: ModuleType, tmp_path: Path) -> None:
    alone = [reports.Finished("digits-train", content("tau-0.3", 0, [2.0, 1.0]))]
    assert "`sync` is not finished, so there is nothing to compare with" in reports.report(alone, ["sync", "tau-0.3"])
    both = [*alone, reports.Finished("digits-train", content("sync", 0, [2.0, 1.5]))]
    text = reports.report(both, ["sync", "tau-0.3"])
    assert "-0.500, not told apart" in text and "not known, for it needs two seeds" in text
    assert reports.write_report([], ["sync"], tmp_path) == "No training is finished yet.\n"


def test_an_offset_of_other_latents_is_compared_with_one_time_of_the_same_latents(reports: ModuleType) -> None:
    found = [content("redi-sync", seed, [9.0, 7.0 + seed], 5.0) for seed in (0, 1, 2)]
    assert "pair" not in reports.report([reports.Finished("a", each) for each in found], ["redi-sync"])
    found += [content("redi-tau-0.3", seed, [9.0, 4.0 + seed], 5.0 + seed) for seed in (0, 1, 2)]
    text = reports.report([reports.Finished("a", each) for each in found], ["redi-sync", "redi-tau-0.3"])
    assert "| a | redi-tau-0.3 minus redi-sync | -3.000 ± 0.000, better | 1.000 ± 2.484, not told apart |" in text
    assert "va-vae-sync minus" not in text, "nothing of it is finished"


def test_the_page_shows_what_the_kept_trainings_say(answer: ModuleType, reports: ModuleType) -> None:
    folders = sorted((REPOSITORY / "benchmarks" / "answer-points").iterdir())
    finished = [one for folder in folders for one in answer.read_finished(folder)]
    page = (REPOSITORY / "docs" / "answer.md").read_text(encoding="utf-8")
    rows = [line for line in reports.report(finished, list(answer.POINTS)).splitlines() if line.startswith("| ")]
    assert len(rows) > 10 and [row for row in rows if row not in page] == []


def tiny() -> list[str]:
    """Arguments that make every network and training small, as in :func:`support.small_params`."""
    tree = small_params()
    keys = ["data.image_size", "encoder.input_size", "encoder.patch_size", "encoder.width", "encoder.depth"]
    keys += ["encoder.num_heads", "texture_vae.channels", "texture_vae.latent_channels", "semantic.width"]
    keys += ["semantic.depth", "semantic.num_heads", "semantic.latent_channels", "diffusion.loss.repa_width"]
    keys += ["evaluate.kid_subsets", "evaluate.kid_subset_size", "evaluate.min_images", "judges", "quality"]
    keys += [f"{name}.training" for name in ("encoder", "texture_vae", "semantic")] + ["sample.num_images"]
    arguments = []
    for key in keys:
        value: Any = tree
        for part in key.split("."):
            value = value[part]
        arguments += [
            "--set",
            f"{key}={yaml.safe_dump(value, default_flow_style=True).strip().removesuffix('...').strip()}",
        ]
    return [*arguments, "--set", "diffusion.training.batch_size=8", "--set", "diffusion.training.warmup_steps=0"]


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_a_tiny_grid_is_stopped_by_every_signal_and_goes_on_to_the_report(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["python", "-u", str(REPOSITORY / "benchmarks" / "answer.py"), "--out", str(out), "--seeds", "1"]
    command += [
        "--points",
        "sync,tuned,learnt,none,va-vae-sync",
        "--steps",
        "16",
        "--num-images",
        "12",
        *tiny(),
    ]
    folder = out / "digits-train"

    def start() -> "subprocess.Popen[str]":
        return subprocess.Popen(
            command,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def stop(number: signal.Signals, when: Path) -> int:
        process = start()
        wait_until(lambda: when.exists() or process.poll() is not None, 300)
        assert process.poll() is None, process.communicate()[0]
        process.send_signal(number)
        process.communicate()
        return process.returncode

    projects = folder / "projects" / "base" / "results"
    assert stop(signal.SIGTERM, projects / "encoder") == 143
    assert stop(signal.SIGKILL, projects / "semantic") == -9
    assert stop(signal.SIGINT, folder / "points" / "sync-seed-0.json") == 130
    first = json.loads((folder / "points" / "sync-seed-0.json").read_text())
    changed = (folder / "points" / "sync-seed-0.json").stat().st_mtime_ns
    process = start()
    second = start()  # the two share the work
    output, shared = process.communicate()[0], second.communicate()[0]
    assert (process.returncode, second.returncode) == (0, 0), output + shared
    done = [
        re.findall(r"^digits-train: (\S+), seed 0: [\d.]+ min", text, flags=re.MULTILINE) for text in (output, shared)
    ]
    assert sorted(done[0] + done[1]) == ["learnt", "none", "tuned", "va-vae-sync"], output + shared
    output = start().communicate()[0]
    assert (folder / "points" / "sync-seed-0.json").stat().st_mtime_ns == changed, "what is finished is kept"
    assert len(list((folder / "points").glob("*.json"))) == 5
    assert not list((folder / "work").glob("*"))
    assert [look["step"] for look in first["looks"]] == list(range(2, 17, 2))
    assert "| digits-train | va-vae-sync | 1 |" in output and (out / "answer.png").is_file()
    search = json.loads((folder / "search.json").read_text())
    assert [len(row) for row in search.values()] == [8, 4, 2]
    again = subprocess.run([*command, "--dry-run"], env=environment(), capture_output=True, text=True)
    assert "0.0 hours" in again.stdout, again.stdout + again.stderr
