"""``config.json`` of a diffusion model: the record of its backbone, condition and schedule.

The record has names of its own, so that a file stays readable when an option of ``params.yaml`` is renamed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfd.data.networks import Networks
from sfd.errors import UserError
from sfd.models.backbone import BackboneConfig, config_from_dict
from sfd.models.conditions import ClassCondition, read_condition
from sfd.params import ScheduleParams, TauRange

FORMAT = 1
"""Files without a format number are older. They describe a LightningDiT with class labels, whose names are under the key ``classes``."""


def write_model_config(config: BackboneConfig, schedule: ScheduleParams, networks: Networks) -> dict[str, Any]:
    """The content of ``config.json``.

    ``networks``: what the latents of its training came from, which :func:`sfd.data.networks.read_networks` reads. Files of format 1 may lack them.
    """
    return {
        "format": FORMAT,
        "backbone": config.kind,
        "model": config.to_dict(),
        "condition": {"kind": config.condition.kind, **config.condition.to_config()},
        "schedule": write_schedule(schedule),
        "networks": dict(networks),
    }


def read_model_config(content: dict[str, Any]) -> tuple[BackboneConfig, ScheduleParams]:
    """Inverse of :func:`write_model_config`, but for the networks; also reads files without a format number.

    Raises:
        KeyError, TypeError, ValueError, UserError: the content is not such a record.
    """
    record = content if "format" in content else _upgrade(content)
    condition = dict(record["condition"])
    config = config_from_dict(
        record["backbone"], dict(record["model"]), read_condition(condition.pop("kind"), condition)
    )
    return config, read_schedule(record["schedule"])


def check_format(file: Path, content: Mapping[str, Any], known: int) -> None:
    """Raises :class:`UserError` if the format number is not ``known``. Files without a number are older, and pass."""
    if content.get("format", known) != known:
        raise UserError(
            f"{file} has format {content['format']!r}, but this version of sfd reads format {known}; install the version that wrote the file"
        )


def _upgrade(content: dict[str, Any]) -> dict[str, Any]:
    """Converts a record without a format number to format 1."""
    model, names = dict(content["model"]), list(content["classes"])
    num_classes, has_null = model.pop("num_classes"), model.pop("use_null_class", True)
    if num_classes != len(names):
        raise ValueError(f"num_classes is {num_classes}, but {len(names)} classes are named")
    condition = {"kind": ClassCondition.kind, "names": names, "has_null": has_null}
    return {"backbone": "lightningdit", "model": model, "condition": condition, "schedule": content["schedule"]}


def write_schedule(schedule: ScheduleParams) -> dict[str, Any]:
    """The record of a schedule."""
    tau = schedule.tau
    return {
        "kind": schedule.kind,
        "tau": {"low": tau.low, "high": tau.high} if isinstance(tau, TauRange) else tau,
        "gamma": schedule.gamma,
        "knots": list(schedule.knots),
    }


def read_schedule(record: Mapping[str, Any]) -> ScheduleParams:
    """Inverse of :func:`write_schedule`. Records from before a key existed get the value that was then fixed."""
    tau = record.get("tau", 0.3)
    return ScheduleParams(
        kind=record["kind"],
        tau=TauRange(low=tau["low"], high=tau["high"]) if isinstance(tau, Mapping) else tau,
        gamma=record.get("gamma", 2.0),
        knots=tuple(record.get("knots", (0.0, 0.75, 0.0, 0.0, 0.25))),
        learnt=None,
    )
