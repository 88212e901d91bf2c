"""Stage ``schedule``: what is given passes through, what is learnt becomes a curve that everything later follows."""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pretended_cuda import pretended_cuda
from support import Project, finished_project, small_params

from sfd.data.latents import LatentBatch, LatentDataset
from sfd.diffusion.learnt import LearntCurve
from sfd.errors import UserError
from sfd.generation.model import read_model_folder
from sfd.models.conditions import ClassCondition
from sfd.models.lightningdit import LightningDiT
from sfd.models.lightningdit_config import LightningDiTConfig
from sfd.params import LossParams, Params, parse_params
from sfd.pipeline.inputs import STAGES, published_fingerprint
from sfd.pipeline.schedule import build_task, probe_training, with_schedule
from sfd.training.probe import Probe, ProbeTask
from sfd.workspace import Workspace

HERE = Workspace(Path())
LEARNT = {"kind": "learnt", "learnt": {"probe_steps": 12, "pieces": 4, "learning_rate": 0.2, "repeats": 2}}


@pytest.fixture
def project(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    copied = finished_project(tmp_path_factory).copy_to(tmp_path / "project")
    with copied.entered():
        yield copied


def change(project: Project, **sections: Any) -> None:
    """Sets keys of sections of params.yaml; a key may be dotted by `__`."""
    tree = yaml.safe_load(HERE.params_file.read_text())
    for name, values in sections.items():
        inner = tree
        for part in name.split("__"):
            inner = inner[part]
        inner |= values
    project.write_params(tree)


def learn(project: Project) -> None:
    change(project, schedule=LEARNT, diffusion__loss={"timestep_sampling": "per_part"})
    run(project)


def probe_task(project: Project, **loss: str) -> ProbeTask:
    """The first probe of a learnt schedule."""
    change(project, schedule=LEARNT, diffusion__loss={"timestep_sampling": "per_part"} | loss)
    params = HERE.load_params()
    assert params.schedule.learnt is not None
    dataset = LatentDataset(HERE.result("latents") / "shards", with_features=False)
    return build_task(params, params.schedule.learnt, dataset, 0)


def run(project: Project, name: str = "schedule") -> str:
    status, output = project.run("python", f"stages/{name}.py")
    assert status == 0, output
    return output


def record() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((HERE.result("schedule") / "schedule.json").read_text())
    return found


def bytes_of(folder: Path) -> dict[str, str]:
    """Digests of the files of a result that later stages read, or a user looks at."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(
    "given", [{"kind": "offset", "tau": 0.4}, {"kind": "power"}, {"kind": "sync"}, {"kind": "curve"}]
)
def test_a_schedule_that_is_given_passes_through_and_needs_no_latents(project: Project, given: dict[str, Any]) -> None:
    shutil.rmtree(HERE.result("latents"))
    change(project, schedule=given)
    run(project)
    assert given.items() <= record()["schedule"].items() and "learnt" not in record()
    assert (HERE.result("schedule") / "schedule.png").is_file()
    params = HERE.load_params()
    assert with_schedule(params, HERE.result("schedule")).schedule == params.schedule


@pytest.mark.long
def test_a_learnt_schedule_is_the_mean_curve_of_its_probes_and_the_model_is_trained_and_recorded_with_it(
    project: Project,
) -> None:
    learn(project)
    found = record()
    assert found["schedule"]["kind"] == "curve" and len(found["schedule"]["knots"]) == 5
    curves = found["learnt"]["curves"]
    assert len(curves) == 2 and curves[0] != curves[1], "each probe has draws of its own"
    assert found["schedule"]["knots"] == pytest.approx([sum(pair) / 2 for pair in zip(*curves, strict=True)])
    assert all(sum(curve) == pytest.approx(1.0) and max(curve) - min(curve) > 0.01 for curve in curves), (
        "they have moved"
    )
    assert found["learnt"]["spread"] > 0.0 and 0.0 < found["learnt"]["lead"] < 1.0
    for name in ("schedule.png", "learning.png", "probes/0/curves.csv", "probes/1/curves.csv"):
        assert (HERE.result("schedule") / name).is_file()

    run(project, "diffusion")
    _, schedule = read_model_folder(HERE.model())
    assert (schedule.kind, list(schedule.knots)) == ("curve", found["schedule"]["knots"])
    run(project, "sample")


@pytest.mark.long
def test_a_probe_that_is_killed_and_run_again_learns_the_same_curve_to_the_last_byte(project: Project) -> None:
    learn(project)
    whole = bytes_of(HERE.result("schedule"))
    shutil.rmtree(HERE.result("schedule"))
    change(project, runtime__diffusion={"checkpoint_every": 1})
    process = project.start("python", "stages/schedule.py", forked=True)
    second = HERE.work("schedule") / "probe-1" / "checkpoint.pt"
    while not second.is_file() and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    process.communicate()
    run(project)
    assert bytes_of(HERE.result("schedule")) == whole


def test_later_stages_refuse_the_schedule_of_another_section_and_a_missing_one(project: Project) -> None:
    run(project)
    change(project, schedule={"tau": 0.7})
    with pytest.raises(UserError, match="another section `schedule`.*run `dvc repro schedule`"):
        with_schedule(HERE.load_params(), HERE.result("schedule"))
    shutil.rmtree(HERE.result("schedule"))
    with pytest.raises(UserError, match=r"schedule.json is missing; run `dvc repro schedule`"):
        with_schedule(HERE.load_params(), HERE.result("schedule"))


def test_what_does_not_change_the_curve_changes_nothing_for_later_stages(project: Project) -> None:
    run(project)
    before = published_fingerprint(HERE, "schedule"), bytes_of(HERE.result("schedule"))
    change(project, diffusion__training={"num_steps": 9})
    run(project)
    assert (published_fingerprint(HERE, "schedule"), bytes_of(HERE.result("schedule"))) == before
    change(project, schedule={"tau": 0.7})
    run(project)
    assert published_fingerprint(HERE, "schedule") != before[0]


CHANGED = {
    "num_steps": 9,
    "batch_size": 16,
    "optimizer": "muon",
    "learning_rate": 2e-4,
    "warmup_steps": 3,
    "decay": "constant",
    "beta2": 0.5,
    "weight_decay": 0.5,
    "ema_decay": 0.5,
    "max_grad_norm": 0.5,
    "accumulation_steps": 2,
    "precision": "fp32",
    "keep_every": 2,
    "more_ema_decays": [0.25],
}


def learning(**training: Any) -> Params:
    """Parameters with a schedule that is to be learnt; ``training``: changes to that of the model."""
    tree = small_params()
    tree["schedule"] |= LEARNT
    tree["diffusion"]["loss"]["timestep_sampling"] = "per_part"
    tree["diffusion"]["training"] |= training
    return parse_params(tree)


@pytest.mark.parametrize("key", CHANGED)
def test_the_stage_watches_an_option_of_the_models_training_if_and_only_if_its_probe_has_it(key: str) -> None:
    made = []
    for params in (learning(), learning(**{key: CHANGED[key]})):
        assert params.schedule.learnt is not None
        made.append(probe_training(params, params.schedule.learnt))
    assert (made[0] != made[1]) == (f"diffusion.training.{key}" in STAGES["schedule"].params)


class Unread:
    """A data set that is not read."""

    def __len__(self) -> int:
        return 2

    def __getitems__(self, indices: list[int]) -> LatentBatch:
        raise NotImplementedError


def test_the_stage_watches_the_options_of_the_loss_that_its_probe_reads() -> None:
    read: set[str] = set()

    class Watched(LossParams):
        def __getattribute__(self, name: str) -> Any:
            if name in LossParams.model_fields:
                read.add(name)
            return super().__getattribute__(name)

    condition = ClassCondition.numbered(1)
    config = LightningDiTConfig(4, 2, 16, 1, 2, condition, semantic_channels=1, two_times=True)
    probe = Probe(LightningDiT(config), LearntCurve(4))
    data = LatentBatch(torch.zeros(2, 2, 4, 4), torch.zeros(2, dtype=torch.int64))
    loss = Watched()
    read.clear()  # of what its own rules looked at
    task = ProbeTask(probe, Unread(), loss, 0.1, 0.1, 0)
    task.losses(probe, data, task.noise(0, 2, torch.device("cpu")))
    assert {f"diffusion.loss.{name}" for name in read} | {"diffusion.loss.channel_weights"} == {
        key for key in STAGES["schedule"].params if key.startswith("diffusion.loss.")
    }


def test_the_probe_trains_as_the_model_does_over_its_own_steps(project: Project) -> None:
    change(
        project,
        schedule={"kind": "learnt", "learnt": {"probe_steps": 50}},
        diffusion__loss={"timestep_sampling": "per_part"},
        diffusion__training={"num_steps": 4000, "warmup_steps": 300, "warmup_from": 0.1, "weight_decay": 0.01},
    )
    params = HERE.load_params()
    assert params.schedule.learnt is not None
    made = probe_training(params, params.schedule.learnt)
    assert (made.num_steps, made.warmup_steps, made.warmup_from, made.decay) == (50, 5, 0.1, "cosine")
    assert (made.batch_size, made.learning_rate) == (
        params.diffusion.training.batch_size,
        params.diffusion.training.learning_rate,
    )
    assert (made.weight_decay, made.ema_decay) == (0.0, pytest.approx(0.8))


def test_the_probe_keeps_for_its_backward_pass_what_runtime_says(project: Project) -> None:
    change(project, runtime__diffusion={"activation_checkpointing": "block"})
    blocks = probe_task(project).network.backbone.blocks
    assert {block.checkpointing for block in blocks} == {"block"}


def test_weights_of_channels_are_sent_to_the_device_once_and_not_in_every_step(project: Project) -> None:
    with pretended_cuda():
        weights = probe_task(project, channel_weights="energy").channel_weights
        assert weights is not None and weights.is_cuda
