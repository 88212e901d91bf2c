"""Settings of a request, as pyfunc and the server share them."""

import pytest
from served import RANGE, SAMPLE, untrained_model

from sfd.generation.settings import Settings
from sfd.registry.requests import apply_request

REGISTERED = Settings.model_validate(SAMPLE)
UNGUIDED = Settings.model_validate(SAMPLE | {"guidance": {}})
FIXED = untrained_model(["a", "b"], {"tau": 0.3})
FREE = untrained_model(["a", "b"], RANGE)
OFFSET = Settings.model_validate(SAMPLE | {"schedule": {"kind": "offset", "tau": 0.2}})


def test_without_values_the_registered_settings_stay_and_given_ones_take_their_place() -> None:
    assert apply_request(REGISTERED, FIXED, {}) == REGISTERED
    changed = apply_request(REGISTERED, FIXED, {"num_steps": 7, "scale_semantic": 2.0})
    assert changed.num_steps == 7 and changed.sampler == "heun"
    assert (changed.guidance.scale_texture, changed.guidance.scale_semantic) == (1.5, 2.0)


def test_places_of_steps_stay_with_their_number_and_another_number_of_steps_is_even() -> None:
    placed = Settings.model_validate(SAMPLE | {"num_steps": 2, "times": [0.0, 0.3]})
    assert apply_request(placed, FIXED, {"num_steps": 2, "scale_semantic": 2.0}).times == (0.0, 0.3)
    assert (apply_request(placed, FIXED, {"num_steps": 5}).times, placed.times) == (None, (0.0, 0.3))


def test_guidance_of_an_unguided_version_is_classifier_free_and_a_scale_of_one_leaves_it_unguided() -> None:
    assert apply_request(UNGUIDED, FIXED, {"scale_texture": 2.0}).guidance.kind == "cfg"
    assert apply_request(UNGUIDED, FIXED, {"scale_texture": 1.0, "scale_semantic": 1.0}) == UNGUIDED


def test_guidance_is_refused_without_a_null_class() -> None:
    model = untrained_model(["a", "b"], {"tau": 0.3}, use_null_class=False)
    with pytest.raises(ValueError, match="no null class"):
        apply_request(UNGUIDED, model, {"scale_texture": 2.0})
    assert apply_request(UNGUIDED, model, {"scale_texture": 1.0}) == UNGUIDED


@pytest.mark.parametrize(
    "given", [{"num_steps": 0}, {"num_steps": 2.5}, {"scale_texture": 0.5}, {"scale_semantic": 21.0}]
)
def test_values_outside_the_limits_of_params_are_refused(given: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(given))):
        apply_request(REGISTERED, FIXED, given)


def test_tau_is_chosen_within_the_range_of_training() -> None:
    chosen = apply_request(OFFSET, FREE, {"tau": 0.5}).schedule
    assert chosen is not None and (chosen.kind, chosen.tau) == ("offset", 0.5)
    assert apply_request(OFFSET, FREE, {}) == OFFSET
    with pytest.raises(ValueError, match=r"covers 0 to 0\.5"):
        apply_request(OFFSET, FREE, {"tau": 0.6})


def test_tau_is_refused_for_a_model_of_one_schedule() -> None:
    with pytest.raises(ValueError, match="trained for one schedule alone"):
        apply_request(REGISTERED, FIXED, {"tau": 0.3})


def test_steps_are_refused_for_dopri5_which_chooses_its_own() -> None:
    adaptive = Settings.model_validate(SAMPLE | {"sampler": "dopri5"})
    with pytest.raises(ValueError, match="dopri5"):
        apply_request(adaptive, FIXED, {"num_steps": 3})
    assert apply_request(adaptive, FIXED, {}) == adaptive
