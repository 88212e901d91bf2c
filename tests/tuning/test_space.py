"""The search space: what may be searched, and with which values."""

import itertools
from typing import Any

import pytest
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from support import REPOSITORY

from sfd.errors import UserError
from sfd.params import Params, check_study, current_value, even_times, parse_params, start_values, with_values
from sfd.tuning.space import BEND, bent_times, changed_knots, distributions, settle


def params(space: dict[str, Any], kind: str = "sampling", **sections: Any) -> Params:
    tree = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    for name, values in sections.items():
        if name == "judges":
            tree["judges"][0] |= values[0]
        else:
            tree[name] |= values
    tree["tune"] |= {"kind": kind, "space": space}
    return parse_params(tree)


DIGITS_LOSS = yaml.safe_load((REPOSITORY / "params.yaml").read_text())["diffusion"]["loss"]
SHARED = {"schedule": {"tau": {"low": 0.0, "high": 1.0}}, "sample": {"schedule": {"tau": 0.5}}}
TUNABLE = {
    "schedule.tau": {"low": 0.0, "high": 1.0},
    "schedule.kind": {"choices": ["offset", "power", "curve"]},
    "schedule.gamma": {"low": 1.0, "high": 4.0},
    "schedule.knots.1": {"low": 0.0, "high": 2.0},
    "diffusion.loss.time_mean": {"low": -1.0, "high": 1.0},
    "diffusion.loss.time_std": {"low": 0.5, "high": 2.0, "step": 0.1},
    "diffusion.loss.semantic_weight": {"low": 0.5, "high": 4.0, "log": True},
    "diffusion.loss.repa_weight": {"choices": [0.0, 0.5, 1.0]},
    "diffusion.training.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "sample.timestep_shift": {"low": 0.3, "high": 3.0},
    "sample.guidance.scale_texture": {"low": 1.0, "high": 3.0},
    "sample.guidance.start_semantic": {"low": 0.0, "high": 0.9},
    "sample.sampler": {"choices": ["euler", "heun"]},
    "sample.num_steps": {"low": 5, "high": 50, "step": 5},
}


def test_everything_that_the_paper_or_its_users_tune_can_be_searched() -> None:
    check_study(params(TUNABLE, "training"))
    check_study(params({key: space for key, space in TUNABLE.items() if key.startswith("sample.")}))
    check_study(params({"sample.schedule.tau": {"low": 0.0, "high": 1.0}}, **SHARED))
    check_study(params({"sample.schedule.kind": {"choices": ["offset", "power", "curve"]}}, **SHARED))


@pytest.mark.parametrize(
    ("key", "space", "message"),
    [
        (
            "sample.guidance.scale_txture",
            {"low": 1.0, "high": 2.0},
            "nearest valid key: `sample.guidance.scale_texture`",
        ),
        ("sample.guidance.scale_texture.x", {"low": 1.0, "high": 2.0}, "scale_texture"),
        ("smple.num_steps", {"low": 1, "high": 2}, "nearest valid key: `sample`"),
        ("sample.guidance.scale_texture", {"low": 1.0, "high": 30.0}, "less than or equal to 20"),
        ("sample.guidance.scale_texture", {"low": 0.5, "high": 3.0}, "greater than or equal to 1"),
        ("sample.num_steps", {"low": 5.5, "high": 10.5}, "valid integer"),
        ("sample.sampler", {"choices": ["heun", "rk4"]}, "'euler', 'heun', 'ab2' or 'dopri5'"),
        ("sample.num_images", {"low": 10, "high": 20}, "changes no trial's images"),
        ("sample.step", {"low": 800, "high": 1600}, "changes no trial's images"),
        ("sample.ema_decay", {"choices": [0.99, 0.998]}, "changes no trial's images"),
        ("schedule.tau", {"low": 0.0, "high": 1.0}, "cannot be searched by a study of kind `sampling`"),
        ("encoder.width", {"low": 10, "high": 20}, "cannot be searched by a study of kind `sampling`"),
        ("sample.schedule.tau", {"low": 0.0, "high": 1.0}, "trained with that one alone"),
    ],
)
def test_a_key_or_value_that_no_trial_could_have_is_refused_with_its_reason(
    key: str, space: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as error:
        check_study(params({key: space}))
    assert key in str(error.value) and message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        (
            {
                "diffusion": {"model": {"size": "tiny", "condition": "none", "class_dropout": 0.0}},
                "sample": {"guidance": {}},
            },
            "samples of known classes, but diffusion.model.condition is `none`: remove it",
        ),
        (
            {"judges": [{"kind": "inception", "source": "pretrained", "name": "inception"}]},
            "a judge that knows the classes, but judges.0.kind is `inception`: remove it",
        ),
    ],
)
def test_accuracy_is_an_objective_only_where_judge_and_model_know_the_classes(
    sections: dict[str, Any], reason: str
) -> None:
    steps = {"sample.num_steps": {"low": 5, "high": 50}}
    sections = sections | {"register": {"gates": {}}}
    accuracy, distance = ({"tune": {"objectives": [name]}} for name in ("class_accuracy", "kid"))
    check_study(params(steps, **accuracy))
    check_study(params(steps, **sections, **distance))
    with pytest.raises(UserError, match=f"tune.objectives: `class_accuracy` needs {reason}"):
        check_study(params(steps, **sections, **accuracy))


def test_an_index_into_a_list_ends_with_the_list() -> None:
    check_study(params({"schedule.knots.4": {"low": 0.0, "high": 1.0}}, "training"))
    with pytest.raises(UserError, match="0 to 4"):
        check_study(params({"schedule.knots.5": {"low": 0.0, "high": 1.0}}, "training"))


def test_a_value_that_needs_another_searched_value_beside_it_is_allowed_and_alone_it_is_not() -> None:
    patch = {"diffusion.model.patch_size": {"choices": [1, 2]}}
    with pytest.raises(UserError, match="repa_weight"):
        check_study(params(patch, "training"))
    check_study(params(patch | {"diffusion.loss.repa_weight": {"choices": [0.0, 1.0]}}, "training"))


def test_an_interval_holds_whole_numbers_only_if_its_key_does() -> None:
    made = distributions(params(TUNABLE | {"sample.guidance.scale_texture": {"low": 1, "high": 3}}, "training"))
    assert list(made) == sorted(TUNABLE)
    assert isinstance(made["sample.num_steps"], IntDistribution) and made["sample.num_steps"].step == 5
    assert isinstance(made["sample.guidance.scale_texture"], FloatDistribution)
    assert isinstance(made["sample.sampler"], CategoricalDistribution)
    assert made["diffusion.training.learning_rate"].log


def test_values_replace_keys_in_sections_lists_and_sections_that_are_null() -> None:
    base = params({"sample.num_steps": {"low": 5, "high": 10}}, **SHARED)
    made = with_values(base, {"sample.num_steps": 7, "schedule.knots.2": 0.5, "sample.schedule.tau": 0.1})
    assert (made.sample.num_steps, made.schedule.knots[2]) == (7, 0.5)
    assert made.sample.schedule is not None and made.sample.schedule.tau == 0.1
    plain = params({"sample.num_steps": {"low": 5, "high": 10}})
    filled = with_values(plain, {"sample.schedule.kind": "offset", "sample.schedule.tau": 0.3})
    assert filled.sample.schedule is not None and filled.sample.schedule.tau == 0.3
    assert current_value(plain, "sample.schedule.tau") is None
    assert current_value(plain, "schedule.knots.1") == 0.75


@pytest.mark.parametrize("number", [2, 3, 6, 50])
def test_places_of_steps_are_in_order_whatever_is_proposed_and_even_in_the_middle(number: int) -> None:
    for quarters in itertools.product((-BEND, 0.0, BEND), repeat=3):
        times = bent_times(number, quarters)
        assert len(times) == number and times[0] == 0.0
        assert all(a < b for a, b in itertools.pairwise([*times, 1.0]))
    assert bent_times(number, (0.0, 0.0, 0.0)) == even_times(number)
    early = bent_times(number, (-BEND, -BEND, 0.0))
    assert all(a < b for a, b in zip(early[1:], even_times(number)[1:], strict=True)), "short steps at the beginning"


def test_a_study_of_places_proposes_them_for_any_number_of_steps_and_begins_with_even_ones() -> None:
    study = params({"sample.times": {"low": 2, "high": 4}})
    assert set(distributions(study)) == {"sample.times.steps", *(f"sample.times.quarter_{n}" for n in (1, 2, 3))}
    begun = start_values(with_values(study, {"tune.start": ["even"]}))
    settled = [settle(values, None) for values in begun]
    assert settled == [{"sample.times": even_times(n), "sample.num_steps": n} for n in (2, 3, 4)]
    bent = settle(begun[2] | {"sample.times.quarter_1": 1.0, "sample.guidance.scale_texture": 1.5}, None)
    assert with_values(study, bent).sample.times == tuple(bent["sample.times"])
    assert bent["sample.guidance.scale_texture"] == 1.5 and len(bent) == 3


def test_a_study_around_the_learnt_curve_begins_with_it_and_changes_each_knot() -> None:
    learnt = {"kind": "learnt", "learnt": {"pieces": 3}}
    near = params(
        {"schedule.knots": {"low": -1.0, "high": 1.0}},
        "training",
        schedule=learnt,
        diffusion={"loss": DIGITS_LOSS | {"timestep_sampling": "per_part"}},
    )
    near = with_values(near, {"tune.start": ["learnt"]})
    assert set(distributions(near)) == {f"schedule.knots.change_{n}" for n in range(4)}
    (start,), curve = start_values(near), (0.1, 0.2, 0.3, 0.4)
    found = settle(start, curve)
    assert found == {"schedule.kind": "curve", "schedule.knots": list(curve), "schedule.learnt": None}
    assert with_values(near, found).schedule.knots == curve
    more = changed_knots(curve, (0.0, 0.0, 0.0, 1.0))
    assert sum(more) == pytest.approx(1.0) and more[3] > 0.4 and more[0] / more[1] == pytest.approx(0.5)
