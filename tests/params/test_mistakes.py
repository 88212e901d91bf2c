"""Mistakes within one option: each is named with its key, its value and the rule."""

import copy
from typing import Any

import pytest
from changed_params import DIGITS, changed, refusal

from sfd.errors import UserError
from sfd.params import parse_params


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("diffusion.training.learning_rat", "diffusion.training.learning_rate"),
        ("schedule.tua", "schedule.tau"),
        ("sedd", "seed"),
        ("encoder.training.ema", "encoder.training.ema_decay"),
        ("register_", "register"),
    ],
)
def test_a_misspelt_key_is_refused_with_the_nearest_valid_one(key: str, nearest: str) -> None:
    message = refusal({key: 0.5})
    assert f"unknown key `{key}`" in message and f"`{nearest}`" in message


@pytest.mark.parametrize(
    ("key", "home"),
    [
        ("encoder.training.log_every", "runtime.encoder.log_every"),
        ("diffusion.training.compile", "runtime.diffusion.compile"),
        ("diffusion.grid_every", "runtime.diffusion.grid_every"),
        ("sample.batch_size", "runtime.sample.batch_size"),
    ],
)
def test_an_option_that_cannot_change_a_result_is_refused_in_its_stages_section_with_its_place(
    key: str, home: str
) -> None:
    message = refusal({key: 5})
    assert f"unknown key `{key}` (value 5); nearest valid key: `{home}`" in message


@pytest.mark.parametrize("key", ["schedule", "sample.guidance", "diffusion.model.size", "judges.0.name"])
def test_a_missing_section_or_key_without_default_is_named(key: str) -> None:
    tree = copy.deepcopy(DIGITS)
    inner: Any = tree
    *sections, last = key.split(".")
    for section in sections:
        inner = inner[int(section) if isinstance(inner, list) else section]
    del inner[last]
    with pytest.raises(UserError, match=f"key `{key}` is missing"):
        parse_params(tree)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("diffusion.training.num_steps", True),
        ("diffusion.training.num_steps", 2.0),
        ("diffusion.training.num_steps", "200"),
        ("diffusion.training.num_steps", 0),
        ("diffusion.training.learning_rate", True),
        ("diffusion.training.learning_rate", "0.3"),
        ("diffusion.training.learning_rate", float("nan")),
        ("diffusion.loss.cosine_weight", float("inf")),
        ("diffusion.training.max_grad_norm", "1"),
        ("runtime.diffusion.compile", 1),
        ("runtime.diffusion.compile", "no"),
        ("diffusion.training.precision", "fp16"),
        ("runtime.diffusion.sharding", "zero"),
        ("diffusion.model.patch_size", True),
        ("diffusion.model.patch_size", 3),
        ("diffusion.model.size", "XXL"),
        ("data.root", 3),
        ("data.split", "train[:10%]"),
        ("texture_vae.channels", []),
        ("texture_vae.channels", "8, 16"),
        ("judges.0.channels", [16, 32, 64]),
        ("judges.0.name", "my judge"),
        ("schedule.tau", 1.5),
        ("schedule.tau", None),
        ("features", None),
        ("register.alias", "1st"),
        ("seed", -1),
    ],
)
def test_a_wrong_type_or_range_is_refused_with_key_value_and_rule(key: str, value: object) -> None:
    message = refusal({key: value})
    assert f"`{key}` is {value!r}, but: " in message and len(message.split("but: ")[1]) > 10


@pytest.mark.parametrize("value", [True, "8", 8.0, 0])
def test_a_wrong_entry_in_a_list_is_named_by_its_place(value: object) -> None:
    assert f"`texture_vae.channels.1` is {value!r}" in refusal({"texture_vae.channels": [8, value]})


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("schedule.tau", 1, 1.0),
        ("diffusion.training.max_grad_norm", None, None),
        ("diffusion.training.max_grad_norm", 2, 2.0),
        ("texture_vae.channels", [8, 8, 8, 8], (8, 8, 8, 8)),
        ("runtime.diffusion.compile", True, True),
    ],
)
def test_whole_numbers_for_fractions_lists_and_nulls_are_accepted(key: str, value: object, expected: object) -> None:
    found: Any = parse_params(changed({key: value}))
    for part in key.split("."):
        found = getattr(found, part)
    assert found == expected and type(found) is type(expected)


def test_parameters_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse_params(DIGITS).seed = 1  # type: ignore[misc]


def test_many_mistakes_are_named_together_and_the_rest_counted() -> None:
    message = refusal({f"data.wrong{n}": n for n in range(7)})
    assert message.count("unknown key") == 5 and message.endswith("and 2 more")


def test_a_huge_wrong_value_is_cut_short() -> None:
    assert len(refusal({"sections": {"x": "y" * 5000}})) < 250
