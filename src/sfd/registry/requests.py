"""What both ways of asking a registered model, MLflow's pyfunc and `sfd serve`, make of a request."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sfd.names import SAMPLERS
from sfd.params import SampleParams, check_sampling_schedule

if TYPE_CHECKING:
    from sfd.generation.model import DiffusionModel

MODELS_OWN_TAU = -1.0
"""Of the registered model's parameter ``tau``: the schedule that it was registered with."""

NAMED_CLASSES = 50
"""Classes that an error lists."""


def class_index(classes: Sequence[str], wanted: str | int) -> int:
    """The index of a class that is given by its name or its index. Raises ``ValueError``, which names the known ones."""
    if isinstance(wanted, int):
        if not 0 <= wanted < len(classes):
            raise ValueError(f"class index {wanted} is not in 0..{len(classes) - 1}")
        return wanted
    if wanted not in classes:
        more = f" and {len(classes) - NAMED_CLASSES} more" if len(classes) > NAMED_CLASSES else ""
        raise ValueError(
            f"{wanted[:100]!r} is no class of this model; its classes are {', '.join(classes[:NAMED_CLASSES])}{more}"
        )
    return classes.index(wanted)


def apply_request(registered: SampleParams, model: "DiffusionModel", given: Mapping[str, float]) -> SampleParams:
    """The settings of a registered version with a request's values in their place, checked by the rules of params.yaml.

    Args:
        given: any of ``num_steps``, ``scale_texture``, ``scale_semantic`` and ``tau``.

    Raises:
        ValueError: a value breaks its rule, or the model cannot do what is asked.
    """
    tree = registered.model_dump()
    if "num_steps" in given:
        if SAMPLERS[registered.sampler].adaptive:
            raise ValueError(
                f"the number of steps cannot be chosen: this model samples with {registered.sampler}, which chooses them"
            )
        tree["num_steps"] = given["num_steps"]
    scales = {key: given[key] for key in ("scale_texture", "scale_semantic") if key in given}
    tree["guidance"] |= scales
    if tree["guidance"]["kind"] == "none" and any(scale != 1.0 for scale in scales.values()):
        if not model.network.config.use_null_class:
            raise ValueError("guidance cannot be chosen: this model has no null class to be guided away from")
        tree["guidance"]["kind"] = "cfg"
    if "tau" in given:
        if model.schedule_params.tau_range is None:
            raise ValueError("tau cannot be chosen: this model is trained for one schedule alone; leave tau out")
        tree["schedule"] = {"kind": "offset", "tau": given["tau"]}
    sample = SampleParams.model_validate(tree)
    check_sampling_schedule(model.schedule_params, sample.schedule)
    return sample
