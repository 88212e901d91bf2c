"""Stage ``schedule``: the curve that all later stages follow, as the parameters give it, or learnt from the latents."""

import hashlib
import json
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfd.data.latents import LatentDataset
from sfd.data.text_tokens import open_captions
from sfd.diffusion.learnt import LearntCurve
from sfd.diffusion.schedule import CurveSchedule
from sfd.diffusion.terms.velocity import energy_weights
from sfd.generation.model_config import check_format, read_schedule, write_schedule
from sfd.generation.schedules import middle_schedule
from sfd.params import DiffusionTrainingParams, LearntParams, Params, ScheduleParams
from sfd.pictures import plot_learnt_curve, plot_schedule
from sfd.pipeline.inputs import SCHEDULE, check_asked
from sfd.pipeline.stage import Stage
from sfd.pipeline.training import check_shards
from sfd.processes import barrier, inference_device, rank
from sfd.seeding import derive_seed
from sfd.text_file import replace_text
from sfd.training.backbone import build_network
from sfd.training.captions import words_of
from sfd.training.curves import write_curve
from sfd.training.loop import Callback, train
from sfd.training.probe import Probe, ProbeTask

FORMAT = 1
LOOKS = 50
"""How often the curve is noted on its way."""
WATCHED = (0.25, 0.5, 0.75)
"""Times of the semantics at which that of the texture is noted."""
GRID = torch.linspace(0.0, 1.0, 201, dtype=torch.float64)
"""Times of the semantics in pictures and comparisons."""


def make_schedule(stage: Stage) -> None:
    """Writes ``schedule.json`` and ``schedule.png``; of a learnt curve also ``learning.png`` and ``probes/``.

    All processes of a job learn together.
    """
    params = stage.params.schedule
    record: dict[str, Any] = {"format": FORMAT, "asked": params.model_dump(mode="json")}
    if params.learnt is not None:
        found = [_learn(stage, params.learnt, number) for number in range(params.learnt.repeats)]
        if rank() != 0:
            return
        params, record["learnt"] = _mean_curve(stage, found)
    if rank() == 0:
        record["schedule"] = write_schedule(params)
        text = json.dumps(record, indent=2) + "\n"
        (stage.out / SCHEDULE).write_text(text, encoding="utf-8")
        # The curve alone: a longer training of the model follows the same one, and must be able to go on.
        stage.content = [hashlib.sha256(text.encode()).hexdigest()]
        plot_schedule(middle_schedule(params).times, stage.out / "schedule.png")
        stage.log_artifacts(stage.out / SCHEDULE, stage.out / "schedule.png")


def with_schedule(params: Params, folder: Path) -> Params:
    """The parameters with the schedule that stage ``schedule`` left in ``folder``: a learnt one is a curve there.

    Raises:
        UserError: there is none, it is that of another section `schedule`, or its file has a format that this version cannot read.
    """
    file = folder / SCHEDULE
    check_asked(folder, params)
    record = json.loads(file.read_text(encoding="utf-8"))
    check_format(file, record, FORMAT)
    return params.model_copy(update={"schedule": read_schedule(record["schedule"])})


def _learn(stage: Stage, learnt: LearntParams, number: int) -> dict[str, Any]:
    """One learnt curve: its ``knots``, and ``way``: rows of the step and :data:`WATCHED`. A finished one is read."""
    done = stage.work / f"curve-{number}.json"
    if not done.is_file():
        params, folder = stage.params, stage.upstream("latents")
        dataset = LatentDataset(folder / "shards", with_features=False, text=open_captions(params, folder))
        task = build_task(params, learnt, dataset, number)
        prefix = "" if learnt.repeats == 1 else f"curve_{number}."
        work = stage.work / f"probe-{number}"
        work.mkdir(exist_ok=True)
        trained = train(
            task,
            probe_training(params, learnt),
            params.seed,
            work,
            stage.mark,
            lambda metrics, step: stage.log({prefix + name: value for name, value in metrics.items()}, step),
            params.runtime.diffusion,
            [Callback(_look, max(1, learnt.probe_steps // LOOKS), at_end=False)],
            check=partial(check_shards, stage.workspace, "latents", [dataset.reader]),
        )
        if rank() == 0:
            _leave_probe(stage, number, trained.network, trained.curve, done)
        barrier()
    found: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
    return found


def build_task(params: Params, learnt: LearntParams, dataset: LatentDataset, number: int) -> ProbeTask:
    """The probe ``number``: its initial weights and all of its draws are its own. It keeps for the backward pass what ``runtime`` says."""
    probed = probe_params(params, learnt)
    model, loss, training = probed.diffusion.model, probed.diffusion.loss, probed.diffusion.training
    backbone = build_network(probed, dataset, derive_seed(params.seed, "schedule/backbone", number))
    backbone.checkpoint_activations(params.runtime.diffusion.activation_checkpointing)
    curve = LearntCurve(learnt.pieces, learnt.learning_rate / training.learning_rate)
    weights = None
    if loss.channel_weights == "energy":
        weights = energy_weights(dataset.statistics.std, dataset.index.semantic_channels).to(inference_device())
    return ProbeTask(
        Probe(backbone, curve),
        dataset,
        loss,
        learnt.energy_weight,
        model.class_dropout,
        params.seed,
        weights,
        f"schedule/{number}",
        dataset.null_words,
        words_of(dataset),
    )


def probe_params(params: Params, learnt: LearntParams) -> Params:
    """The parameters with the probe's network and loss: its own size, and the velocity alone, which judges the curve."""
    diffusion = params.diffusion
    changes = {
        "model": diffusion.model.model_copy(update={"size": learnt.probe_size or diffusion.model.size}),
        "loss": diffusion.loss.model_copy(update={"repa_weight": 0.0}),
        "token_routing": None,
        "sparse_deep": None,
    }
    return params.model_copy(update={"diffusion": diffusion.model_copy(update=changes)})


def probe_training(params: Params, learnt: LearntParams) -> DiffusionTrainingParams:
    """The probe's training: batch, peak rate and warm-up of the model's, over its own number of steps.

    The rate falls to 0 as a cosine, and the averaged knots are those of about the last tenth of the steps.
    """
    steps, training = learnt.probe_steps, params.diffusion.training
    warmup = min(training.warmup_steps, steps // 10)
    return training.model_copy(
        update={
            "num_steps": steps,
            "optimizer": "adamw",
            "warmup_steps": warmup,
            "warmup_from": training.warmup_from if warmup else None,
            "decay": "cosine",
            "decay_start": None,
            "decay_to": 0.0,
            "weight_decay": 0.0,
            "ema_decay": max(0.0, 1.0 - 10.0 / steps),
            "keep_every": None,
            "more_ema_decays": (),
        }
    )


@torch.no_grad()
def _look(network: nn.Module, _step: int) -> dict[str, float]:
    """The averaged curve on its way."""
    assert isinstance(network, Probe)
    curve = network.curve
    t_tex = curve.texture_at(torch.tensor(WATCHED, device=curve.free.device)).tolist()
    return {f"texture_at_{at:g}": value for at, value in zip(WATCHED, t_tex, strict=True)}


def _leave_probe(stage: Stage, number: int, network: nn.Module, rows: list[dict[str, float]], done: Path) -> None:
    assert isinstance(network, Probe)
    looked = [f"texture_at_{at:g}" for at in WATCHED]
    way = [[row["step"], *(row[name] for name in looked)] for row in rows if looked[0] in row]
    losses = [{name: value for name, value in row.items() if name not in looked} for row in rows]
    folder = stage.out / "probes" / str(number)
    folder.mkdir(parents=True, exist_ok=True)
    write_curve(folder, [row for row in losses if len(row) > 1])
    with torch.no_grad():
        knots = network.curve.knots.double()
    replace_text(done, json.dumps({"knots": (knots / knots.sum()).tolist(), "way": way}))


def _mean_curve(stage: Stage, found: Sequence[dict[str, Any]]) -> tuple[ScheduleParams, dict[str, Any]]:
    """The mean of the curves, which has the mean of the knots; and what is recorded of how it was learnt. Draws and logs both."""
    columns = list(zip(*(each["knots"] for each in found), strict=True))
    knots = tuple(statistics.fmean(column) for column in columns)
    schedule = ScheduleParams.model_validate({"kind": "curve", "knots": knots})
    times = [_texture_times(CurveSchedule(tuple(each["knots"]))) for each in found]
    mean = _texture_times(CurveSchedule(knots))
    spread = float(torch.stack(times).std(dim=0).max()) if len(times) > 1 else None
    lead, duration = float((GRID - mean).max()), CurveSchedule(knots).duration
    picture = stage.out / "learning.png"
    plot_learnt_curve(GRID, times, mean, [each["way"] for each in found], WATCHED, picture)
    stage.log({"lead": lead, "duration": duration} | ({} if spread is None else {"spread": spread}))
    stage.log_artifacts(picture, *sorted((stage.out / "probes").rglob("curves.png")))
    more = "" if spread is None else f"; the curves of {len(found)} probes differ by {spread:.3f} (standard deviation)"
    print(f"schedule: the semantics lead by up to {lead:.3f} (with an offset: by tau){more}", file=sys.stderr)
    return schedule, {"curves": [each["knots"] for each in found], "spread": spread, "lead": lead}


def _texture_times(curve: CurveSchedule) -> Tensor:
    """``t_tex`` at :data:`GRID`; at its end the value just before the semantics are done."""
    inside = GRID.clamp(1e-9, 1.0 - 1e-9)
    return curve.times(curve.progress_at(inside, "semantic"))[0]
