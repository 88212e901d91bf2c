"""``sample.json`` of a registered model: the settings with which it was sampled and scored.

The record has names of its own, so that a file stays readable when an option of ``params.yaml`` is renamed.
"""

import json
from pathlib import Path
from typing import Any

from sfd.class_mix import BALANCED
from sfd.errors import UserError
from sfd.generation.model_config import check_format, read_schedule, write_schedule
from sfd.params import ComputedIn, GuidanceParams, Positive, SampleParams

FORMAT = 1
"""Files without a format number are older. They have the same keys, but the oldest lack ``schedule``. ``class_mix`` is there only if it is not
balanced, ``other_networks`` only if it is true, ``times`` only if it is not null, and ``precision`` only if it is not float32. ``prompts`` and
``negative_prompt`` are there only if they were given. Ends of guidance came later: without them, guidance goes on to the end."""


class Settings(SampleParams):
    """Section ``sample`` as a version was registered with it, the images per sampler call, and the type in which its samples were computed."""

    batch_size: Positive
    precision: ComputedIn = "fp32"

    @classmethod
    def of(cls, sample: SampleParams, batch_size: int, precision: ComputedIn = "fp32") -> "Settings":
        """The settings that a project samples with."""
        return cls.model_validate(sample.model_dump() | {"batch_size": batch_size, "precision": precision})


def write_settings(file: Path, settings: Settings) -> None:
    """Writes the record as JSON."""
    file.write_text(json.dumps(_to_record(settings)), encoding="utf-8")


def read_settings(file: Path) -> Settings:
    """Inverse of :func:`write_settings`. Raises :class:`UserError` if the file holds no such record, or its format is not known."""
    try:
        record = dict(json.loads(file.read_text(encoding="utf-8")))
        check_format(file, record, FORMAT)
        return _from_record(record)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{file} does not hold the settings of a registered model ({' '.join(str(error).split())}); register it again"
        ) from error


def _to_record(settings: Settings) -> dict[str, Any]:
    guidance = settings.guidance
    mix = {} if settings.class_mix == BALANCED else {"class_mix": settings.class_mix}
    others = {"other_networks": True} if settings.other_networks else {}
    times = {} if settings.times is None else {"times": list(settings.times)}
    precision = {} if settings.precision == "fp32" else {"precision": settings.precision}
    return {
        "format": FORMAT,
        "num_images": settings.num_images,
        **mix,
        "batch_size": settings.batch_size,
        **precision,
        **({} if settings.prompts is None else {"prompts": str(settings.prompts)}),
        "sampler": settings.sampler,
        "num_steps": settings.num_steps,
        "rule": settings.rule,
        "timestep_shift": settings.timestep_shift,
        **times,
        "schedule": None if settings.schedule is None else write_schedule(settings.schedule),
        **others,
        "guidance": {
            "kind": guidance.kind,
            "weak_model": None if guidance.weak_model is None else str(guidance.weak_model),
            **({} if guidance.negative_prompt is None else {"negative_prompt": guidance.negative_prompt}),
            "scale_texture": guidance.scale_texture,
            "scale_semantic": guidance.scale_semantic,
            "start_texture": guidance.start_texture,
            "start_semantic": guidance.start_semantic,
            "end_texture": guidance.end_texture,
            "end_semantic": guidance.end_semantic,
        },
    }


def _from_record(record: dict[str, Any]) -> Settings:
    schedule, guidance = record.get("schedule"), record["guidance"]
    return Settings(
        step=None,  # the weights are in the version
        ema_decay=None,
        num_images=record["num_images"],
        class_mix=record.get("class_mix", BALANCED),
        batch_size=record["batch_size"],
        precision=record.get("precision", "fp32"),
        prompts=record.get("prompts"),
        sampler=record["sampler"],
        num_steps=record["num_steps"],
        rule=record["rule"],
        timestep_shift=record["timestep_shift"],
        times=record.get("times"),
        schedule=None if schedule is None else read_schedule(schedule),
        other_networks=record.get("other_networks", False),
        guidance=GuidanceParams(
            kind=guidance["kind"],
            weak_model=guidance["weak_model"],
            negative_prompt=guidance.get("negative_prompt"),
            scale_texture=guidance["scale_texture"],
            scale_semantic=guidance["scale_semantic"],
            start_texture=guidance["start_texture"],
            start_semantic=guidance["start_semantic"],
            end_texture=guidance.get("end_texture", 1.0),
            end_semantic=guidance.get("end_semantic", 1.0),
        ),
    )
