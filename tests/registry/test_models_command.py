"""`sfd models` on a small project that really ran: promotion, refusal, rollback, interruption, lineage, and the model behind HTTP."""

import base64
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient
from PIL import Image
from support import Project, finished_project, free_port, wait_until

from sfd.data.latents import ChannelStatistics
from sfd.errors import UserError
from sfd.generation.settings import Settings
from sfd.registry import lineage, promotion
from sfd.registry import register as registering
from sfd.registry.lock import promotion_lock
from sfd.registry.register import _check_data
from sfd.registry.smoke import Smoke
from sfd.registry.versions import Registration
from sfd.workspace import Workspace

HERE = Workspace(Path())

pytestmark = pytest.mark.long

STAGES = "scan prepare encoder texture_vae judge features semantic latents schedule diffusion sample reference evaluate register".split()
NAME = "sfd-digits"
GOOD = {"metric.fd_digits_judge": "0.25", "metric.se_fd_digits_judge": "0.03", "metric.class_accuracy": "0.5"}
WORSE = {"metric.fd_digits_judge": "0.5", "metric.se_fd_digits_judge": "0.04", "metric.class_accuracy": "0.5"}
BETTER = {"metric.fd_digits_judge": "0.001", "metric.class_accuracy": "0.75"}


class Registry:
    """The project's model registry, with versions that differ from the first in nothing but tags."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.uri = f"sqlite:///{project.folder}/mlruns/mlflow.db"
        self.client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    def first(self) -> Any:
        return self.client.get_model_version(NAME, "1")

    def add(self, run_id: str | None = None, **tags: str) -> str:
        """Another version of the first one's artifact; its number."""
        first = self.first()
        kept = {key: value for key, value in first.tags.items() if not key.startswith("promotion.")}
        made = self.client.create_model_version(NAME, first.source, run_id or first.run_id, kept | tags)
        return str(made.version)

    def aliases(self) -> dict[str, str]:
        return {alias: str(held) for alias, held in self.client.get_registered_model(NAME).aliases.items()}

    def set_aliases(self, **aliases: str) -> None:
        """These and no others."""
        for alias in self.aliases():
            self.client.delete_registered_model_alias(NAME, alias)
        for alias, version in aliases.items():
            self.client.set_registered_model_alias(NAME, alias, version)

    def forget_promotions(self) -> None:
        for version in self.client.search_model_versions(f"name = '{NAME}'"):
            for key in version.tags:
                if key.startswith("promotion."):
                    self.client.delete_model_version_tag(NAME, version.version, key)

    def models(self) -> list[str]:
        return [model.name for model in self.client.search_registered_models()]

    def runs(self, stage: str) -> list[Any]:
        experiment = self.client.get_experiment_by_name("sfd")
        return self.client.search_runs([experiment.experiment_id], f"tags.`sfd.stage` = '{stage}'")

    def state(self) -> tuple[Any, ...]:
        """All that a promotion may change."""
        versions = self.client.search_model_versions(f"name = '{NAME}'")
        return self.aliases(), self.models(), [dict(v.tags) for v in versions], len(self.runs("promote"))

    def artifacts(self) -> Path:
        """The registered artifact on disk."""
        (found,) = (self.project.folder / "mlruns" / "artifacts" / "models").glob("m-*/artifacts/MLmodel")
        return found.parent


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """Two classes, all stages run."""
    yield finished_project(tmp_path_factory).copy_to(tmp_path_factory.mktemp("registry") / "project")


@pytest.fixture
def registry(project: Project, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """The registry with version 1 as candidate and no champion; this process works in the project."""
    found = Registry(project)
    monkeypatch.chdir(project.folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", found.uri)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found.set_aliases(candidate="1")
    found.forget_promotions()
    return found


def test_registration_says_how_good_the_version_is_how_that_was_measured_and_on_what(registry: Registry) -> None:
    tags = registry.first().tags
    measurement = json.loads((registry.project.result("evaluate") / "measurement.json").read_text())
    summary = json.loads((registry.project.result("prepare") / "summary.json").read_text())
    assert {key: tags[f"measured.{key}"] for key in measurement} == {key: str(v) for key, v in measurement.items()}
    assert (
        measurement["judge"] == "digits_judge" and measurement["num_images"] == 12 and measurement["image_size"] == 16
    )
    assert (tags["data.digest"], tags["data.num_train"], tags["data.num_classes"]) == (summary["digest"], "60", "2")
    assert float(tags["metric.se_class_accuracy"]) > 0
    smoke = json.loads(tags["smoke"])
    assert smoke["labels"] == ["hoch ü", "quer"] * 4 and len(smoke["sha256"]) == 64 and "torch" in smoke["device"]
    kept = registry.client.download_artifacts(registry.first().run_id, "params.yaml")
    assert Path(kept).read_bytes() == (registry.project.folder / "params.yaml").read_bytes()


def test_the_first_champion_is_promoted_by_the_command_and_leaves_an_audit_entry(registry: Registry) -> None:
    runs = len(registry.runs("promote"))
    status, output = registry.project.run("sfd", "models", "promote")
    assert status == 0, output
    assert "passes: no champion yet" in output and "the same pixels as at registration" in output
    assert registry.aliases() == {"candidate": "1", "champion": "1"} and registry.models() == [NAME]
    assert len(registry.runs("promote")) == runs + 1
    run = registry.runs("promote")[0]
    audit = json.loads(Path(registry.client.download_artifacts(run.info.run_id, "audit.json")).read_text())
    assert (run.info.run_name, run.info.status) == ("promote", "FINISHED")
    assert (audit["before"], audit["after"], audit["forced"]) == (None, "1", None)
    assert [gate["metric"] for gate in audit["gates"]] == ["class_accuracy", "fd_digits_judge"]
    assert audit["mlflow.source.git.commit"] and audit["sfd.git_dirty"] == "false" and "@" in audit["who"]
    assert run.data.tags["sfd.to"] == "1" and run.data.tags["sfd.who"] == audit["who"]
    (entry,) = (json.loads(value) for key, value in registry.first().tags.items() if key.startswith("promotion."))
    assert entry["run_id"] == run.info.run_id
    with pytest.raises(UserError, match="version 1 .* is the champion already"):
        promotion.promote(HERE, None, None)


def test_a_worse_candidate_is_refused_with_a_table_that_says_why_and_nothing_changes(registry: Registry) -> None:
    registry.set_aliases(champion=registry.add(**GOOD), candidate=registry.add(**WORSE))
    before = registry.state()
    status, output = registry.project.run("sfd", "models", "promote")
    assert status == 1, output
    (row,) = (line.split() for line in output.splitlines() if line.startswith("fd_digits_judge"))
    assert row == "fd_digits_judge 0.5 0.25 0.05 < champion - error FAILS: worse by 0.25".split()
    assert "refused: gates fail: fd_digits_judge; --force REASON" in output and "Traceback" not in output
    assert registry.state() == before


def test_a_metric_from_too_few_images_passes_no_gate_and_says_so_wherever_it_is_shown(registry: Registry) -> None:
    few = registry.add(**GOOD, **{"metric.too_few_class_accuracy": "100.0"})
    registry.set_aliases(candidate=few)
    with pytest.raises(promotion.PromotionRefused, match="gates fail: class_accuracy; --force REASON"):
        promotion.promote(HERE, few, None)
    (row,) = (line for line in lineage.show_version(HERE, few).splitlines() if line.startswith("class_accuracy "))
    assert row.endswith("too few images (12, needs 100)")
    metrics = registry.project.result("evaluate") / "metrics.json"
    before = metrics.read_text()
    metrics.write_text(json.dumps(json.loads(before) | {"too_few_precision": 200.0}))
    status, output = registry.project.run("sfd", "show")
    metrics.write_text(before)
    assert status == 0 and "flagged  precision too few images (12, needs 200): no gate on them passes" in output


def test_a_forced_promotion_keeps_its_reason_and_a_rollback_returns_to_the_champion_before(
    registry: Registry, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promotion, "_pass_smoke", lambda *_: "not run here")
    worse = registry.add(**{"metric.fd_digits_judge": "0.5"})
    registry.set_aliases(champion="1")
    promotion.promote(HERE, worse, "the demo needs it")
    assert "forced (the demo needs it) in spite of: gates fail: fd_digits_judge" in capsys.readouterr().out
    assert registry.aliases() == {"champion": worse, "previous": "1"}
    run = registry.runs("promote")[0]
    audit = json.loads(Path(registry.client.download_artifacts(run.info.run_id, "audit.json")).read_text())
    assert run.data.tags["sfd.forced"] == audit["forced"] == "the demo needs it"
    assert [gate["passed"] for gate in audit["gates"]] == [True, False]
    assert "the demo needs it" in lineage.show_version(HERE, "champion")

    assert promotion.rollback(HERE) == f"models:/{NAME}@champion is version 1 again; before: version {worse}"
    assert registry.aliases() == {"champion": "1"}
    assert [run.info.run_name for run in registry.runs("rollback")] == ["rollback"]
    shown = lineage.show_version(HERE, worse)
    assert [line.split()[2:5] for line in shown.splitlines() if " rollback " in line] == [["rollback", worse, "1"]]


def test_force_without_a_reason_is_refused(registry: Registry) -> None:
    with pytest.raises(UserError, match="--force needs a reason"):
        promotion.promote(HERE, registry.add(**BETTER), " ")


def test_rollbacks_walk_back_through_the_promotions_and_never_forward(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promotion, "_pass_smoke", lambda *_: "not run here")
    second, third = registry.add(), registry.add()
    for version in ("1", second, third):
        promotion.promote(HERE, version, "a line of three")
    assert registry.aliases() == {"candidate": "1", "champion": third, "previous": second}
    assert promotion.rollback(HERE).endswith(f"is version {second} again; before: version {third}")
    assert registry.aliases() == {"candidate": "1", "champion": second, "previous": "1"}
    assert promotion.rollback(HERE).endswith(f"is version 1 again; before: version {second}")
    with pytest.raises(
        UserError, match=f"model `{NAME}` has no earlier champion to return to; the champion is version 1"
    ):
        promotion.rollback(HERE)
    assert registry.aliases() == {"candidate": "1", "champion": "1"}

    assert promotion.rollback(HERE, third).endswith(f"is version {third} again; before: version 1")
    with pytest.raises(UserError, match=f"version {third} of model .* is the champion already"):
        promotion.rollback(HERE, "champion")
    never = registry.add()
    with pytest.raises(UserError, match=f"version {never} .* was never champion.*sfd models promote {never}"):
        promotion.rollback(HERE, never)
    registry.client.delete_model_version(NAME, third)
    assert "champion" not in registry.aliases()
    assert promotion.rollback(HERE).endswith(
        "is version 1 again; before: none, because it was deleted or its alias was taken away"
    )


def test_without_a_previous_champion_there_is_nothing_to_roll_back_to(registry: Registry) -> None:
    with pytest.raises(UserError, match=f"model `{NAME}` has no earlier champion to return to; promote the version"):
        promotion.rollback(HERE)
    registry.set_aliases(champion="1", previous="1")
    with pytest.raises(UserError, match="has no earlier champion"):
        promotion.rollback(HERE)
    assert registry.models() == [NAME]


def test_a_tag_that_somebody_spoilt_is_named(registry: Registry) -> None:
    spoilt = registry.add(**{"metric.fd_digits_judge": "good"})
    with pytest.raises(UserError, match=f"tag metric.fd_digits_judge of version {spoilt} .* is 'good', not a number"):
        lineage.list_versions(HERE)
    registry.client.delete_model_version(NAME, spoilt)


@pytest.mark.parametrize("last", ["log_model", "_log_metrics", "run_smoke", "create_version"])
def test_a_registration_that_is_killed_anywhere_is_completed_by_the_next_one_as_the_same_version(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, last: str
) -> None:
    params = HERE.load_params()
    sample = Settings.of(params.sample, params.runtime.sample.batch_size)
    tags = {key: value for key, value in registry.first().tags.items() if key.startswith(("data.", "metric."))}
    registration = Registration(f"killed after {last}", last)
    like = registry.client.get_run(registry.first().run_id)
    run_id = registry.client.create_run(like.info.experiment_id).info.run_id
    monkeypatch.setattr(registering, "run_smoke", lambda *_: Smoke(("quer",), "0" * 64, "none"))
    inputs = (HERE, registration, sample, registering.model_folders(HERE, params), tags, run_id, tmp_path)
    original = getattr(registering, last)

    def killed(*arguments: Any) -> None:
        original(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(registering, last, killed)
        with pytest.raises(KeyboardInterrupt):
            registering.register(*inputs)
    assert registering.register(*inputs) == registering.register(*inputs) == "1"
    (version,) = registry.client.search_model_versions(f"name = '{registration.name}'")
    assert version.run_id == run_id and version.tags["digest"] == last and "smoke" in version.tags
    models = registry.client.search_logged_models([like.info.experiment_id], f"tags.`sfd.digest` = '{last}'")
    assert len(models) == 1
    scores = {metric.key: metric.value for metric in registry.client.get_logged_model(models[0].model_id).metrics}
    assert scores["class_accuracy"] == float(tags["metric.class_accuracy"])
    assert json.loads((tmp_path / "registration.json").read_text()) == {"name": registration.name, "digest": last}
    registry.client.delete_registered_model(registration.name)
    registry.client.delete_logged_model(models[0].model_id)
    shutil.rmtree(Path.cwd() / "mlruns" / "artifacts" / "models" / models[0].model_id)


def test_a_model_of_other_images_is_registered_only_if_asked_for(registry: Registry) -> None:
    tags = {key: value for key, value in registry.first().tags.items() if key.startswith("data.")}
    _check_data(HERE, NAME, tags)
    _check_data(HERE, "a new model", tags)
    other = tags | {"data.digest": "f" * 64, "data.num_images": "7"}
    with pytest.raises(
        UserError,
        match=r"was made from other images \(80 in 2 classes.*than these results \(7 in 2.*register.other_data",
    ):
        _check_data(HERE, NAME, other)
    registry.add(**other)
    _check_data(HERE, NAME, other)


def test_a_version_that_was_measured_otherwise_is_not_compared(registry: Registry) -> None:
    registry.set_aliases(champion="1")
    unlike = registry.add(**BETTER, **{"measured.num_images": "450", "measured.reference": "f" * 64})
    with pytest.raises(promotion.PromotionRefused) as refused:
        promotion.promote(HERE, unlike, None)
    for part in ("num_images 450 and 12", "reference ffffffffffff and", "evaluate both alike, or give --force REASON"):
        assert part in str(refused.value)
    with pytest.raises(UserError, match="num_images 12 and 450.*evaluate and register both alike"):
        lineage.compare_versions(HERE, "1", unlike)
    assert registry.aliases() == {"champion": "1"}


def test_limits_alone_need_no_likeness(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    params = yaml.safe_load(Path("params.yaml").read_text())
    del params["register"]["gates"]["fd_digits_judge"]
    other = Path("limits.yaml")
    other.write_text(yaml.safe_dump(params))
    monkeypatch.setattr(Workspace, "params_file", other)
    monkeypatch.setattr(promotion, "_pass_smoke", lambda *_: "not run here")
    registry.set_aliases(champion="1")
    unlike = registry.add(**{"measured.num_images": "450"})
    promotion.promote(HERE, unlike, "not needed, so not kept")
    assert registry.aliases()["champion"] == unlike
    assert "sfd.forced" not in registry.runs("promote")[0].data.tags


def test_an_artifact_that_was_tampered_with_is_never_promoted_not_even_by_force(registry: Registry) -> None:
    better = registry.add(**BETTER)
    before = registry.state()
    # The number of steps would not do: a network that was trained for four steps draws the same pixels with any.
    (file,) = (registry.artifacts() / "artifacts").glob("*/model/statistics.safetensors")
    original, statistics = file.read_bytes(), ChannelStatistics.load(file)
    ChannelStatistics(statistics.mean + 1.0, statistics.std).save(file)
    try:
        with pytest.raises(
            promotion.PromotionRefused, match="the smoke test fails: its pixels differ from those of its registration"
        ):
            promotion.promote(HERE, better, "I insist")
    finally:
        file.write_bytes(original)
    assert registry.state() == before


def test_a_version_without_smoke_is_refused_before_anything_else(registry: Registry) -> None:
    made = registry.client.create_model_version(NAME, registry.first().source, registry.first().run_id, {})
    with pytest.raises(UserError, match="or another program registered it; run `dvc repro`"):
        promotion.promote(HERE, str(made.version), None)


def test_of_two_promotions_the_second_is_told_of_the_first_and_a_terminated_one_lets_go(registry: Registry) -> None:
    better, best = registry.add(**BETTER), registry.add(**BETTER)
    registry.set_aliases(champion="1")
    before = registry.aliases()
    first = registry.project.start("sfd", "models", "promote", better, MLFLOW_TRACKING_URI=registry.uri)
    wait_until(lambda: f"{NAME}.promotion" in registry.models(), 120)
    os.kill(first.pid, signal.SIGSTOP)  # it cannot end before the second has looked
    status, output = registry.project.run("sfd", "models", "promote", best, MLFLOW_TRACKING_URI=registry.uri)
    assert status == 2, output
    assert f"another promotion is going on ({promotion.who()}, process {first.pid}, since 20" in output
    os.kill(first.pid, signal.SIGTERM)
    os.kill(first.pid, signal.SIGCONT)
    first.communicate()
    assert first.returncode == 128 + signal.SIGTERM
    assert registry.aliases() == before and registry.models() == [NAME]


def test_a_move_that_breaks_off_leaves_the_aliases_as_they_were(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    better = registry.add(**BETTER)
    registry.set_aliases(champion="1", candidate=better)
    monkeypatch.setattr(promotion, "_pass_smoke", lambda *_: "not run here")
    set_tag = MlflowClient.set_model_version_tag

    def interrupted(self: MlflowClient, name: str, version: str, key: str, value: str) -> None:
        if version == better:
            raise KeyboardInterrupt
        set_tag(self, name, version, key, value)

    tags = registry.first().tags
    monkeypatch.setattr(MlflowClient, "set_model_version_tag", interrupted)
    with pytest.raises(KeyboardInterrupt):
        promotion.promote(HERE, None, "not needed")
    assert registry.first().tags == tags
    assert registry.aliases() == {"champion": "1", "candidate": better} and registry.models() == [NAME]
    assert registry.runs("promote")[0].info.status == "FAILED"


def test_a_lock_in_hand_stops_a_rollback_too(registry: Registry) -> None:
    registry.set_aliases(champion="1", previous=registry.add())
    with promotion_lock(HERE, NAME), pytest.raises(UserError, match="another promotion is going on"):
        promotion.rollback(HERE)


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("command", [["list"], ["show"], ["compare", "1", "2"], ["promote"], ["rollback"]])
def test_a_store_that_is_away_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    from sfd import cli

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr(sys, "argv", ["sfd", "models", *command])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("error: MLflow at http://127.0.0.1:9 is away") and error.count("\n") == 1


def test_show_says_where_a_version_comes_from_and_its_command_gives_the_params_back(
    registry: Registry, tmp_path: Path
) -> None:
    status, output = registry.project.run("sfd", "models", "show", MLFLOW_TRACKING_URI=registry.uri)
    assert status == 0, output
    lines = output.splitlines()
    runs = {stage: registry.runs(stage)[0].info for stage in STAGES[1:]}
    assert {line.split()[0]: line.split()[1] for line in lines if line.split()[:1] and line.split()[0] in runs} == {
        stage: info.run_id for stage, info in runs.items()
    }
    assert f"{runs['sample'].artifact_uri}/grid.png" in output
    assert "80 images in 2 classes (60 train, 20 held out)" in output and "floor: heldout" in output
    assert max(map(len, (line for line in lines if "://" not in line))) <= 100
    download = next(line.strip() for line in lines if "mlflow artifacts download" in line)
    commit = next(line.split()[-1] for line in lines if "git checkout" in line)
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert commit == head.stdout.strip() and "not committed" not in output
    environment = registry.project.environment() | {"MLFLOW_TRACKING_URI": registry.uri}
    subprocess.run(download.split(), cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert (tmp_path / "params.yaml").read_bytes() == Path("params.yaml").read_bytes()


def other_run(registry: Registry, tmp_path: Path, **tags: str) -> str:
    """A run like that of the first version's registration, made with fewer steps of sampling."""
    like = registry.client.get_run(registry.first().run_id)
    run = registry.client.create_run(like.info.experiment_id, tags=like.data.tags | tags, run_name="register")
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["sample"]["num_steps"] = 2
    params["tune"]["trials"] = 99
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    registry.client.log_artifact(run.info.run_id, str(tmp_path / "params.yaml"))
    return str(run.info.run_id)


def test_uncommitted_code_and_a_parent_that_was_delivered_later_are_told(registry: Registry, tmp_path: Path) -> None:
    evaluate = registry.runs("evaluate")[0]
    late = {"sfd.parent.evaluate": f"fingerprint:{evaluate.data.tags['sfd.fingerprint']}"}
    run_id = other_run(registry, tmp_path, **late, **{"sfd.git_dirty": "true"})
    registry.set_aliases(champion="1")
    shown = lineage.show_version(HERE, registry.add(run_id))
    words = [line.split() for line in shown.splitlines()]
    assert ["evaluate", evaluate.info.run_id] in [line[:2] for line in words]
    assert ["judge", registry.runs("judge")[0].info.run_id] in [line[:2] for line in words]
    assert "these cannot be restored" in shown and "+: with changes that were not committed" in shown
    assert ["sample.num_steps", "2", "3"] in words and "tune.trials" not in shown
    nowhere = {"sfd.parent.evaluate": f"fingerprint:{'0' * 64}"}
    shown = lineage.show_version(HERE, registry.add(other_run(registry, tmp_path, **nowhere)))
    assert ["evaluate", "not", "in", "MLflow", "(fingerprint:000000000000)"] in [
        line.split() for line in shown.splitlines()
    ]


def test_compare_shows_differences_beyond_their_error_and_the_params_that_differ(
    registry: Registry, tmp_path: Path
) -> None:
    one, other = registry.add(**GOOD), registry.add(other_run(registry, tmp_path), **WORSE)
    status, output = registry.project.run("sfd", "models", "compare", one, other, MLFLOW_TRACKING_URI=registry.uri)
    assert status == 0, output
    rows = {line.split()[0]: line.split() for line in output.splitlines() if line}
    assert rows["fd_digits_judge"] == ["fd_digits_judge", "0.25", "0.5", "+0.25", "0.05", "yes"]
    assert rows["recall"][3] == "+0" and rows["recall"][-1] == "no" and rows["kid"][3:] == ["+0", "-"]
    assert rows["sample.num_steps"] == ["sample.num_steps", "3", "2"]
    assert max(map(len, output.splitlines())) <= 100
    assert "params: those of version 1 and version 1 are the same" in lineage.compare_versions(HERE, "1", "candidate")


def test_list_names_versions_aliases_and_metrics_newest_first(registry: Registry) -> None:
    newest = registry.add(**BETTER)
    registry.set_aliases(champion="1", candidate=newest)
    rows = [line.split() for line in lineage.list_versions(HERE).splitlines()]
    assert rows[0][:1] + rows[0][-3:] == ["version", "fd_digits_judge", "class_accuracy", "memorised_fraction"]
    assert rows[1][0] == newest and rows[1][1] == "candidate" and rows[1][-3:] == ["0.001", "0.75", "0"]
    assert rows[-1][:2] == ["1", "champion"]


@pytest.mark.usefixtures("registry")
def test_a_model_or_version_that_does_not_exist_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="there is no version 999 of model"):
        lineage.show_version(HERE, "999")
    with pytest.raises(UserError, match="there is no alias `best` of model"):
        promotion.promote(HERE, "best", None)
    Path("other.yaml").write_text(Path("params.yaml").read_text().replace(NAME, "other"))
    monkeypatch.setattr(Workspace, "params_file", Path("other.yaml"))
    with pytest.raises(UserError, match="there is no model `other`, which stage `register` makes"):
        lineage.show_version(HERE, None)
    assert lineage.list_versions(HERE).startswith("model `other` has no version at sqlite:")


def test_mlflow_serves_the_champion_as_the_images_of_the_sample_stage(registry: Registry) -> None:
    registry.set_aliases(champion="1")
    table = pd.read_csv(registry.project.result("sample") / "samples.csv")
    port = free_port()
    command = ["serve", "-m", f"models:/{NAME}@champion", "--env-manager", "local", "-p", str(port)]
    server = registry.project.start(
        sys.executable, "-m", "mlflow", "models", *command, MLFLOW_TRACKING_URI=registry.uri
    )
    try:
        wait_until(lambda: answers(port), 180)
        for row in (0, 1):
            inputs = {"columns": ["label", "seed"], "data": [[table["class"][row], int(table["seed"][row])]]}
            answer = ask(port, {"dataframe_split": inputs, "params": {"num_steps": 3}})
            shown = pixels(io.BytesIO(base64.b64decode(answer["predictions"][0]["png"])))
            gaps = [
                np.abs(shown - pixels(registry.project.result("sample") / "images" / file)).max()
                for file in table["file"]
            ]
            assert gaps[row] <= 1, "the seeds of the table give the images of the table"
            assert min(gap for gap, name in zip(gaps, table["class"], strict=True) if name != table["class"][row]) > 1
    finally:
        os.kill(server.pid, signal.SIGTERM)
        server.communicate()


def answers(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).close()
    except OSError:
        return False
    return True


def ask(port: int, request: dict[str, Any]) -> Any:
    headers = {"Content-Type": "application/json"}
    question = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations", json.dumps(request).encode(), headers=headers
    )
    with urllib.request.urlopen(question, timeout=120) as answer:
        return json.load(answer)


def pixels(file: Path | io.BytesIO) -> Any:
    return np.asarray(Image.open(file).convert("RGB")).astype(int)
