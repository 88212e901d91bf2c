"""``sfd init --images`` and ``sfd plan``: from a folder to parameters, and back into a file with comments."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import draw_images, small_params
from typer.testing import CliRunner

from sfd import cli
from sfd.errors import UserError
from sfd.params import Params, load_params, parse_params
from sfd.planning import plan, timing
from sfd.planning.machine import Machine, read_machine
from sfd.planning.timing import Timings, time_networks
from sfd.workspace import Workspace

MACHINE = Machine(2, 24, 100, packages=("tf_efficientnet_lite0", "tf_efficientnet_lite1"))
TIMES = Timings(6.0, 0.002, {"tiny": 0.1, "XS": 0.3}, {"tiny": 0.05, "XS": 0.1}, 0.05, 0.05, 0.02, feature_dim=1280)


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of known speed."""
    monkeypatch.setattr(plan, "read_machine", lambda _folder: MACHINE)
    monkeypatch.setattr(plan, "time_networks", lambda _params, _sizes, read: replace(TIMES, read=read))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes of 80 images, and what lies beside them."""
    root = tmp_path / "Bilder ü"
    draw_images(root / "quer", 80, 1, vertical=False)
    draw_images(root / "hoch ü", 80, 2, vertical=True)
    (root / "Thumbs.db").touch()
    return root


def invoke(*arguments: str | Path) -> str:
    run = CliRunner().invoke(cli.app, [*map(str, arguments)])
    if isinstance(run.exception, UserError):
        raise run.exception
    assert run.exit_code == 0, run.output
    return run.stdout


def test_init_with_images_plans_a_project_under_its_name_and_keeps_the_plan(tmp_path: Path, images: Path) -> None:
    shown = invoke("init", tmp_path / "emo", "--images", images, "--hours", "1", "--name", "Meine Bilder")
    for line in (
        "160 images in 2 classes",
        "chosen for 1 h",
        "tokenizer: principal components",
        "diffusion",
        "to expect",
    ):
        assert line in shown
    assert "is now project Meine Bilder" in shown
    params = load_params(tmp_path / "emo" / "params.yaml")
    assert (params.data.root, params.data.source, params.data.image_size) == (str(images), "folder", 32)
    assert (params.register_.name, params.tracking.experiment, params.first_judge.name) == (
        "Meine Bilder",
        "Meine Bilder",
        "Meine_Bilder_judge",
    )
    text = (tmp_path / "emo" / "params.yaml").read_text()
    assert text.startswith(
        "# Project Meine Bilder, planned by `sfd init` for 1 hours on 2 CPU cores: plan.md says why."
    )
    assert "digits" not in text and "photos" not in text
    assert "chosen for 1 h" in (tmp_path / "emo" / "plan.md").read_text()
    kept = json.loads((tmp_path / "emo" / "plan.json").read_text())
    assert kept["hours"] == 1 and 1000 < sum(cost["seconds"] for cost in kept["costs"].values()) <= 3600


def test_images_within_the_project_are_named_relative_to_it_so_that_it_can_be_moved(images: Path) -> None:
    invoke("init", images.parent, "--images", images, "--hours", "1")
    assert load_params(images.parent / "params.yaml").data.root == "Bilder ü"


def test_images_without_classes_give_an_unconditional_project(tmp_path: Path) -> None:
    draw_images(tmp_path / "flat", 160, 1, vertical=False)
    invoke("init", tmp_path / "emo", "--images", tmp_path / "flat", "--hours", "1")
    params = load_params(tmp_path / "emo" / "params.yaml")
    assert (params.diffusion.model.condition, params.sample.guidance.kind) == ("none", "none")
    assert "class_accuracy" not in params.register_.gates


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--hours", "0.01"], "in 0.01 hours nothing useful comes out"),
        (["--images", "nowhere"], "nowhere does not exist"),
    ],
)
def test_what_is_refused_leaves_no_folder(tmp_path: Path, images: Path, arguments: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        invoke("init", tmp_path / "emo", "--images", images, *arguments)
    assert not (tmp_path / "emo").exists()


def test_what_names_cannot_tell_about_the_images_can_be_said_to_init(tmp_path: Path) -> None:
    draw_images(tmp_path / "pictures" / "2019", 80, 1, vertical=False)
    draw_images(tmp_path / "pictures" / "2020", 80, 2, vertical=True)
    (tmp_path / "pictures" / "broken.png").write_text("text")
    told = ("--set", "data.layout=flat", "--set", "data.max_rejected_fraction=0.1")
    shown = invoke("init", tmp_path / "emo", "--images", tmp_path / "pictures", "--hours", "1", *told)
    data = load_params(tmp_path / "emo" / "params.yaml").data
    assert (data.layout, data.max_rejected_fraction) == ("flat", 0.1)
    assert "160 in subfolders (`2019`, `2020`), which are no classes" in shown


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("data.layout", "must be data.KEY=VALUE, where KEY is one of layout, labels"),
        ("layout=flat", "must be data.KEY=VALUE"),
        ("data.image_size=32", "params.yaml has all other options"),
        ("data.layout=heap", "section `data`: `layout` is 'heap'"),
        ("data.max_rejected_fraction=2", "section `data`: `max_rejected_fraction` is 2"),
    ],
)
def test_what_is_no_option_that_reads_images_is_refused(tmp_path: Path, images: Path, setting: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        invoke("init", tmp_path / "emo", "--images", images, "--set", setting)


def test_a_refusal_before_there_is_a_project_says_how_to_give_the_option_that_it_names(
    tmp_path: Path, images: Path
) -> None:
    folder = next(path for path in sorted(images.iterdir()) if path.is_dir())
    (folder / "broken.png").write_text("text")
    (folder / "broken too.png").write_text("text")
    with pytest.raises(UserError, match="sfd init ... --set data.max_rejected_fraction=VALUE"):
        invoke("init", tmp_path / "emo", "--images", images)


def test_a_disk_that_is_too_small_is_refused(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "read_machine", lambda _folder: replace(MACHINE, disk_gb=0.01))
    with pytest.raises(UserError, match="the plan takes 0.* GB, but the disk has 0.01 GB left: free some"):
        invoke("init", tmp_path / "emo", "--images", images, "--hours", "1")


def test_tokens_of_captions_are_not_stored_where_the_disk_cannot_hold_them(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in images.rglob("*.png"):
        file.with_suffix(".txt").write_text(f"a {file.parent.name} stripe")

    def planned(disk_gb: float) -> plan.Planned:
        monkeypatch.setattr(plan, "read_machine", lambda _folder: replace(MACHINE, disk_gb=disk_gb))
        return plan.plan_new(images, [], "words", 1.0, tmp_path, lambda _line: None, "auto")

    enough = planned(100.0)
    words = next(cost.gb for cost in enough.plan.costs if cost.stage == "text")
    assert enough.params["text"]["store_tokens"] and words > 0
    little = planned(enough.plan.gb - words / 2)
    assert not little.params["text"]["store_tokens"] and little.plan.gb == pytest.approx(enough.plan.gb - words)
    assert "tokens: not stored, for they would take" in little.text()
    with pytest.raises(UserError, match="GB left: free some"):
        planned((enough.plan.gb - words) / 2)


def test_what_is_in_the_way_is_said_before_an_image_is_read(tmp_path: Path) -> None:
    (tmp_path / "emo").mkdir()
    (tmp_path / "emo" / "plan.md").write_text("mine")
    with pytest.raises(UserError, match="has plan.md already"):
        invoke("init", tmp_path / "emo", "--images", tmp_path / "nowhere")


@pytest.fixture
def project(images: Path) -> Path:
    """A project of the digits whose images were replaced by hand, with a comment of the user's."""
    folder = images.parent / "project"
    invoke("init", folder, "--name", "mine")
    file = folder / "params.yaml"
    text = (
        file.read_text()
        .replace("source: digits", "source: folder  # my photos")
        .replace("root: images", "root: ../Bilder ü")
    )
    file.write_text(text.replace("alias: candidate", "alias: fresh"))
    return folder


def test_plan_shows_the_difference_and_writes_nothing(project: Path) -> None:
    before = (project / "params.yaml").read_text()
    shown = invoke("--project", project, "plan", "--hours", "1")
    assert "nothing was written; `sfd plan --apply` writes it" in shown
    assert "-  source: train\n+  source: pca" in shown and "160 images in 2 classes" in shown
    assert (project / "params.yaml").read_text() == before and not (project / "plan.md").exists()


def test_plan_apply_writes_it_and_keeps_comments_names_and_data(project: Path) -> None:
    invoke("--project", project, "plan", "--hours", "1", "--apply")
    params = load_params(project / "params.yaml")
    assert (params.texture_vae.source, params.data.image_size, params.encoder.source) == ("pca", 32, "package")
    assert (params.data.root, params.register_.alias, params.register_.name) == ("../Bilder ü", "fresh", "mine")
    assert (params.first_judge.name, set(params.register_.gates)) == (
        "mine_judge",
        {"class_accuracy"},
    )
    text = (project / "params.yaml").read_text()
    assert (
        "source: folder  # my photos" in text
        and "# What a version must show before" in text
        and "# How the stages run here." in text
    )
    assert (project / "plan.md").is_file()
    assert "params.yaml has these values already" in invoke("--project", project, "plan", "--hours", "1")


def test_this_machine_is_read_and_a_hub_that_is_off_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found = read_machine(tmp_path / "not" / "there")
    assert found.cores >= 1 and found.memory_gb > 1 and found.disk_gb > 0 and not found.has_hub
    assert "the model hub does not answer" in str(found)


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, ["XS", "S"]), (False, [])])
def test_on_a_cpu_with_bf16_each_size_is_timed_in_both_precisions_and_larger_ones_follow(
    monkeypatch: pytest.MonkeyPatch, has_bf16: bool, expected: list[str]
) -> None:
    seconds = {"tiny": {"auto": 0.1, "bf16": 0.12}, "XS": {"auto": 0.4, "bf16": 0.32}}

    def measure(params: Params, _batch: int | None, _steps: int) -> list[SimpleNamespace]:
        model, training = params.diffusion.model, params.diffusion.training
        return [SimpleNamespace(median_seconds=seconds[model.size][training.precision])]

    monkeypatch.setattr(timing, "bf16_pays", lambda: has_bf16)
    monkeypatch.setattr(timing, "measure_train", measure)
    monkeypatch.setattr(timing, "_draw_seconds", lambda _params: 0.1)
    step, _, step_fp32 = timing._time_sizes(parse_params(small_params()), ("tiny", "XS", "S"))
    assert list(step_fp32) == expected and step["tiny"] == 0.1 and step["XS"] == (0.32 if has_bf16 else 0.4)
    assert not has_bf16 or step_fp32["S"] / step["S"] == pytest.approx(0.4 / 0.32)


@pytest.mark.long
def test_a_few_real_steps_of_each_network_are_timed() -> None:
    found = time_networks(parse_params(small_params()), ("tiny", "XS"), 0.001)
    assert all(
        seconds > 0
        for seconds in (
            found.start,
            found.encode,
            found.features,
            found.judge,
            *found.step.values(),
            *found.draw.values(),
        )
    )
    assert found.encoder_step > 0 and found.judge_step > 0 and found.tokenizer_step == 0 and found.feature_dim == 16
    assert found.step["XS"] > found.step["tiny"] and found.latent_channels == 6 and found.tokens == 16


def test_a_plan_that_has_no_project_names_the_way_to_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="or make one with `sfd init DIR`"):
        Workspace.find(tmp_path)


def test_plan_keeps_a_schedule_that_is_to_be_learnt_and_counts_its_probes(project: Path) -> None:
    file = project / "params.yaml"
    text = file.read_text().replace("kind: offset\n  tau: 0.3", "kind: learnt\n  tau: 0.3")
    text = text.replace("learnt: null", "learnt: {probe_steps: 300}")
    file.write_text(text.replace("timestep_sampling: joint", "timestep_sampling: per_part"))
    before = load_params(file)
    shown = invoke("--project", project, "plan", "--hours", "1", "--apply")
    params = load_params(file)
    assert params.schedule == before.schedule
    assert params.diffusion.loss.timestep_sampling == "per_part"
    assert f"learnt, 300 steps of {params.diffusion.model.size}" in shown
    costs = json.loads((project / "plan.json").read_text())["costs"]
    assert costs["schedule"]["seconds"] == pytest.approx(
        TIMES.start + 300 * TIMES.step[params.diffusion.model.size], abs=0.1
    )


def test_init_with_captions_plans_a_model_that_is_told_words(tmp_path: Path, images: Path) -> None:
    for file in images.rglob("*.png"):
        file.with_suffix(".txt").write_text(f"a {file.parent.name} stripe")
    shown = invoke("init", tmp_path / "words", "--images", images, "--captions", "auto", "--hours", "1")
    assert "captions: 160 of 160 images (100.0%) have some, 1 per image" in shown
    assert "condition: text: 160 of 160 images have captions" in shown and "text encoder: a small transformer" in shown
    params = load_params(tmp_path / "words" / "params.yaml")
    assert (params.data.captions, params.diffusion.model.condition) == ("auto", "text")
    assert params.text.training is not None and params.sample.guidance.kind == "cfg"
    assert "text" in json.loads((tmp_path / "words" / "plan.json").read_text())["costs"]
    assert params.text.store_tokens
    draw_images(images / "schräg", 120, 3, vertical=False)
    unequal = invoke(
        "init",
        tmp_path / "more",
        "--images",
        images,
        "--captions",
        "auto",
        "--hours",
        "1",
        "--set",
        "data.uncaptioned=class",
    )
    held_out = re.search(r"held out: (\d+) of", unequal)
    assert held_out is not None and f"compared with about {held_out[1]} held-out images" in unequal
    with pytest.raises(UserError, match="t.csv does not exist"):
        invoke("init", tmp_path / "other", "--images", images, "--captions", images / "t.csv")
    with pytest.raises(UserError, match="--captions needs --images"):
        invoke("init", tmp_path / "other", "--captions", "auto")
