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
MODELS_OWN_PROMPT = ""
"""Of the registered model's parameter ``negative_prompt``: the one that it was registered with, or the empty caption."""


def apply_request(registered: "Settings", model: "DiffusionModel", given: Mapping[str, float | str]) -> "Settings":
    """The settings of a registered version with a request's values in their place, checked by the rules of params.yaml.

    Args:
        given: any of ``num_steps``, ``scale_texture``, ``scale_semantic``, ``tau`` and ``negative_prompt``.

    Raises:
        ValueError: a value breaks its rule, or the model cannot do what is asked.
    """
    tree = registered.model_dump()
    if "num_steps" in given:
        if SAMPLERS[registered.sampler].adaptive:
            raise ValueError(
                f"the number of steps cannot be chosen: this model samples with {registered.sampler}, which chooses them"
            )
        if given["num_steps"] != registered.num_steps:
            tree["times"] = None  # they are of the registered number of steps; others are even
        tree["num_steps"] = given["num_steps"]
    scales = {key: given[key] for key in ("scale_texture", "scale_semantic") if key in given}
    tree["guidance"] |= scales
    if tree["guidance"]["kind"] == "none" and any(scale != 1.0 for scale in scales.values()):
        if not model.condition.has_null:
            raise ValueError("guidance cannot be chosen: this model has no null class to be guided away from")
        tree["guidance"]["kind"] = "cfg"
    if "negative_prompt" in given:
        tree["guidance"]["negative_prompt"] = _negative_prompt(model, tree["guidance"], given["negative_prompt"])
    if "tau" in given:
        if model.schedule_params.tau_range is None:
            raise ValueError("tau cannot be chosen: this model is trained for one schedule alone; leave tau out")
        tree["schedule"] = {"kind": "offset", "tau": given["tau"]}
    sample = type(registered).model_validate(tree)
    check_sampling_schedule(model.schedule_params, sample.schedule)
    return sample


def _negative_prompt(model: "DiffusionModel", guidance: Mapping[str, object], given: object) -> str:
    """What images are guided away from. Raises ``ValueError`` if it is no prompt, or nothing would read it."""
    from sfd.models.text_condition import read_prompt

    if model.condition.words is None:
        raise ValueError("`negative_prompt` is for models that are told words, and this one is not; leave it out")
    if guidance["kind"] not in ("cfg", "path_drop"):
        raise ValueError(
            f"`negative_prompt` is what guidance steers away from, but this request has none of that kind ({guidance['kind']}): ask for guidance "
            "above 1, or leave it out"
        )
    return read_prompt(given, "negative_prompt")
