"""What both ways of asking a registered model, MLflow's pyfunc and `sfd serve`, make of a request."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sfd.names import SAMPLERS
from sfd.params import check_sampling_schedule

if TYPE_CHECKING:
    from sfd.generation.model import DiffusionModel
    from sfd.generation.settings import Settings

MODELS_OWN_TAU = -1.0
"""Of the registered model's parameter ``tau``: the schedule that it was registered with."""


def apply_request(registered: "Settings", model: "DiffusionModel", given: Mapping[str, float]) -> "Settings":
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
        if not model.condition.has_null:
            raise ValueError("guidance cannot be chosen: this model has no null class to be guided away from")
        tree["guidance"]["kind"] = "cfg"
    if "tau" in given:
        if model.schedule_params.tau_range is None:
            raise ValueError("tau cannot be chosen: this model is trained for one schedule alone; leave tau out")
        tree["schedule"] = {"kind": "offset", "tau": given["tau"]}
    sample = type(registered).model_validate(tree)
    check_sampling_schedule(model.schedule_params, sample.schedule)
    return sample
