"""The grid of a sweep as the command line gives it."""

from typing import Any

import pytest
from changed_params import DIGITS, changed

from sfd.errors import UserError
from sfd.params import parse_params
from sfd.tuning.grid import make_grid

TEXTURE, SEMANTIC = "sample.guidance.scale_texture", "sample.guidance.scale_semantic"
PARAMS = parse_params(DIGITS)


def values(*texts: str, changes: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    return [setting.values for setting in make_grid(parse_params(changed(changes or {})), texts).settings]


def test_all_combinations_are_there_in_the_order_of_the_command_line() -> None:
    assert values(f"{TEXTURE}=1.0,1.5", "sample.num_steps=5,7") == [
        {TEXTURE: 1.0, "sample.num_steps": 5},
        {TEXTURE: 1.0, "sample.num_steps": 7},
        {TEXTURE: 1.5, "sample.num_steps": 5},
        {TEXTURE: 1.5, "sample.num_steps": 7},
    ]


def test_keys_that_are_joined_have_the_value_in_common() -> None:
    assert values(f"{TEXTURE}+{SEMANTIC}=1.0,1.5") == [{TEXTURE: 1.0, SEMANTIC: 1.0}, {TEXTURE: 1.5, SEMANTIC: 1.5}]
    grid = make_grid(PARAMS, [f"{TEXTURE}+{SEMANTIC}=1.0,1.5"])
    assert grid.axes[0].name == "scale_texture + scale_semantic" and grid.axes[0].labels == ["1.0", "1.5"]


def test_every_setting_has_the_parameters_with_its_values() -> None:
    found = make_grid(PARAMS, ["sample.sampler=ab2,heun", "sample.timestep_shift=0.0,0.5"]).settings
    assert [(each.params.sample.sampler, each.params.sample.timestep_shift) for each in found] == [
        ("ab2", 0.0),
        ("ab2", 0.5),
        ("heun", 0.0),
        ("heun", 0.5),
    ]
    assert {each.params.seed for each in found} == {PARAMS.seed}


def test_settings_that_the_rules_forbid_are_left_out_with_their_reason() -> None:
    grid = make_grid(PARAMS, ["sample.guidance.start_texture=0.0,0.5", "sample.guidance.end_texture=0.3,1.0"])
    assert [setting.place for setting in grid.settings] == [(0, 0), (0, 1), (1, 1)]
    assert len(grid.left_out) == 1 and "end_texture 0.3 is below start_texture 0.5" in grid.left_out[0]


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ([TEXTURE], "is no axis of a grid: write KEY=VALUE"),
        ([f"{TEXTURE}="], "is no axis of a grid"),
        (["=1.0"], "is no axis of a grid"),
        ([f"{TEXTURE}+=1.0"], "is no axis of a grid"),
        ([f"{TEXTURE}=1.0,]"], "is not valid YAML"),
        ([f"{TEXTURE}=1.0,1.0"], "names a value twice"),
        ([f"{TEXTURE}=1.0", f"{TEXTURE}=2.0"], "stands twice"),
        (["sample.guidance.scale_txture=1.0"], "nearest valid key: `sample.guidance.scale_texture`"),
        ([f"{TEXTURE}=1.0,0.5"], "greater than or equal to 1"),
        (["sample.sampler=heun,rk4"], "'euler', 'heun', 'ab2' or 'dopri5'"),
        (["diffusion.training.num_steps=100,200"], "a sweep trains nothing"),
        (["evaluate.neighbours=3,5"], "a sweep trains nothing"),
        (["sample.num_images=10,20"], "with --images"),
        (["sample.class_mix=balanced,natural"], "what samples are compared with"),
        (["sample.step=800"], "sfd evaluate-steps"),
        (["sample.ema_decay=0.99"], "sfd evaluate-steps"),
        (["sample.schedule.tau=0.1,0.2"], "trained with that one alone"),
    ],
)
def test_a_grid_that_cannot_be_is_refused_in_one_line(texts: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        make_grid(PARAMS, texts)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_guidance_is_not_swept_where_nothing_guides() -> None:
    unguided = {"sample.guidance": {"kind": "none"}}
    with pytest.raises(UserError, match="kind is `none`"):
        values(f"{TEXTURE}=1.5,2.0", changes=unguided)
    assert len(values("sample.num_steps=5,7", changes=unguided)) == 2
