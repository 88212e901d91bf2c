"""Rules of a study: what `sfd tune` would refuse from the file alone, `sfd params` refuses, too."""

import copy
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from changed_params import BOTH, ENCODER, changed
from support import environment

from sfd.errors import UserError
from sfd.params import check_study, parse_params

INCEPTION = {
    "judges.0.kind": "inception",
    "judges.0.source": "pretrained",
    "judges.0.name": "inception",
    "judges.0.training": None,
    "register.gates": {},
}
UNCONDITIONAL = {
    "diffusion.model.condition": "none",
    "diffusion.model.class_dropout": 0,
    "sample.guidance": {},
    "register.gates": {},
    "tune.space": {"sample.num_steps": {"low": 5, "high": 10}},
}
WORDS: dict[str, Any] = {
    "data.captions": "auto",
    "diffusion.model.condition": "text",
    "text.training": {"num_steps": 10, "batch_size": 8},
    "register.gates": {},
}
TRAINING = {"tune.kind": "training", "tune.space": {"schedule.tau": {"low": 0.0, "high": 1.0}}}
STEPS = "sample.num_steps"
SCALE = "sample.guidance.scale_texture"
TIMES = "sample.times"
FRONT: dict[str, Any] = {
    "tune.objectives": ["fd", "evaluations"],
    "tune.pruner": "none",
    "tune.space": {TIMES: {"low": 2, "high": 6}},
}
NEAR: dict[str, Any] = {
    "schedule.kind": "learnt",
    "schedule.learnt": {},
    "diffusion.loss.timestep_sampling": "per_part",
    "tune.kind": "training",
    "tune.start": ["learnt"],
    "tune.space": {"schedule.knots": {"low": -1.0, "high": 1.0}},
}
"""A search around the learnt curve."""
HALVING: dict[str, Any] = {
    "tune.kind": "training",
    "tune.pruner": "none",
    "tune.halving": {"base_steps": 400, "first_steps": 100},
    "tune.space": {"schedule.tau": {"low": 0.0, "high": 0.8, "step": 0.2}},
}


def space(key: str, **values: Any) -> dict[str, Any]:
    return {"tune.space": {key: values}}


@pytest.mark.parametrize(
    ("refused", "named", "accepted"),
    [
        ({"tune.objectives": ["fid"]}, ["judges.0.name is `digits_judge`", "exchange"], {"tune.objectives": ["fd"]}),
        (INCEPTION, ["judges.0.name is `inception`", "exchange"], INCEPTION | {"tune.objectives": ["fid"]}),
        (
            {"judges": BOTH["judges"][:1], "tune.objectives": ["fdr"]},
            ["`fdr` is the mean over several judges", "add another"],
            BOTH | {"tune.objectives": ["fdr"]},
        ),
        (
            BOTH | {"tune.objectives": ["fd_ear"]},
            ["`fd_ear` is the distance of no further judge", "nearest: `fd_eye`"],
            BOTH | {"tune.objectives": ["fd_eye"]},
        ),
        (
            {"tune.objectives": ["text_recall_5"]},
            ["`text_recall_5` says whether samples show their prompts", "condition is `class`", "remove it"],
            WORDS | {"tune.objectives": ["fd", "text_recall_5"], "tune.pruner": "none"},
        ),
        (
            WORDS | {"tune.objectives": ["class_accuracy"]},
            ["needs samples of known classes"],
            WORDS | {"tune.objectives": ["text_rank"]},
        ),
        (
            {"tune.objectives": ["fd_digits_judge"]},
            ["`fd_digits_judge` is the distance of no further judge", "`fd` is that of the first"],
            {"tune.objectives": ["fd"]},
        ),
        (
            BOTH | ENCODER | {"tune.objectives": ["fd_eye"]},
            ["`fd_eye` is measured by the encoder", "reporting only"],
            BOTH | ENCODER | {"tune.objectives": ["kid"]},
        ),
        (
            INCEPTION | {"tune.objectives": ["class_accuracy"]},
            ["`class_accuracy`", "judges.0.kind is `inception`", "remove it"],
            {"tune.objectives": ["class_accuracy"]},
        ),
        (
            UNCONDITIONAL | {"tune.objectives": ["class_accuracy"]},
            ["`class_accuracy`", "condition is `none`", "remove it"],
            UNCONDITIONAL | {"tune.objectives": ["fd"]},
        ),
        (
            {"tune.objectives": ["fd", "fd"], "tune.pruner": "none"},
            ["name one twice", "remove it"],
            {"tune.objectives": ["fd", "kid"], "tune.pruner": "none"},
        ),
        (
            {"tune.objectives": ["fd", "seconds_per_image"]},
            ["tune.pruner `hyperband` needs a single objective", "`none`"],
            {"tune.objectives": ["fd", "seconds_per_image"], "tune.pruner": "none"},
        ),
        (
            {"tune.num_images": 199},
            ["`fd` needs 200 images by evaluate.min_images, but tune.num_images is 199"],
            {"tune.num_images": 199, "evaluate.min_images.fd": None},
        ),
        (
            space("sample.class_mix", choices=["balanced", "natural"]),
            ["`sample.class_mix` changes what samples are compared with"],
            space(STEPS, low=5, high=10),
        ),
        (
            {"tune.objectives": ["evaluations"]},
            ["`evaluations` alone is best with the fewest steps", "add a metric of quality"],
            FRONT,
        ),
        (
            FRONT | {"tune.space": {STEPS: {"low": 2, "high": 6}}, "tune.start": ["even"]},
            ["`even` tries even steps", "tune.space has no `sample.times`"],
            FRONT | {"tune.start": ["even"]},
        ),
        (
            space(TIMES, low=1, high=6),
            ["numbers of steps are whole, from 2 to 100", "{low: 2, high: 6}"],
            space(TIMES, choices=[2, 4, 8]),
        ),
        (
            {"tune.space": {TIMES: {"low": 2, "high": 6}, STEPS: {"low": 2, "high": 6}}},
            ["`sample.times` searches the number of steps, too"],
            {"tune.space": {TIMES: {"low": 2, "high": 6}, SCALE: {"low": 1.0, "high": 2.0}}},
        ),
        (
            {"tune.space": {TIMES: {"low": 2, "high": 6}, "sample.sampler": {"choices": ["ab2", "dopri5"]}}},
            ["tune.space.sample.sampler: dopri5 does not go together with `sample.times`"],
            {"tune.space": {TIMES: {"low": 2, "high": 6}, "sample.sampler": {"choices": ["ab2", "heun"]}}},
        ),
        (
            space(TIMES, low=2, high=6) | {"sample.timestep_shift": 0.5},
            ["so does timestep_shift 0.5"],
            space(TIMES, low=2, high=6),
        ),
        (
            FRONT | {"tune.start": ["even"], "tune.trials": 4},
            ["tune.trials is 4, but tune.start has 5 starting points"],
            FRONT | {"tune.start": ["even"], "tune.trials": 5},
        ),
        (
            FRONT | {"tune.start": ["even", "even"]},
            ["tune.start", "name one twice"],
            FRONT | {"tune.start": ["even"]},
        ),
        (NEAR | {"tune.start": []}, ["belong together", "`learnt` is not among tune.start"], NEAR),
        (NEAR | {"tune.space": {STEPS: {"low": 2, "high": 6}}}, ["tune.space has no `schedule.knots`"], NEAR),
        (
            NEAR | {"schedule.kind": "offset", "schedule.learnt": None},
            ["the curve of stage `schedule`, but schedule.kind is `offset`"],
            NEAR,
        ),
        (NEAR | {"tune.kind": "sampling"}, ["`schedule.knots` cannot be searched by a study of kind `sampling`"], NEAR),
        (
            NEAR | space("schedule.knots", low=0.5, high=1.0),
            ["need low and high around 0"],
            NEAR | space("schedule.knots", low=-0.5, high=0.0),
        ),
        (
            NEAR
            | {"tune.space": {"schedule.knots": {"low": -1.0, "high": 1.0}, "schedule.gamma": {"low": 1, "high": 2}}},
            ["so `schedule.gamma` would change nothing"],
            NEAR | {"tune.space": {"schedule.knots": {"low": -1.0, "high": 1.0}, STEPS: {"low": 5, "high": 6}}},
        ),
        (HALVING | {"tune.kind": "sampling"}, ["tune.space: `schedule.tau` cannot be searched"], HALVING),
        (
            HALVING | {"tune.objectives": ["fd", "kid"]},
            ["ranks by a single objective", "has 2"],
            HALVING | {"tune.objectives": ["kid"]},
        ),
        (
            HALVING | {"tune.pruner": "hyperband"},
            ["tune.halving ends poor candidates itself", "tune.pruner is `hyperband`"],
            HALVING,
        ),
        (
            HALVING | {"tune.space": {"schedule.tau": {"low": 0.0, "high": 1.0}}},
            ["tune.space.schedule.tau: tune.halving needs its values one by one"],
            HALVING | {"tune.space": {"schedule.tau": {"choices": [0.0, 0.1, 0.5]}}},
        ),
        (
            HALVING | {"tune.space": HALVING["tune.space"] | {STEPS: {"choices": [5, 6]}}},
            ["`sample.num_steps` is no part of the schedule"],
            HALVING,
        ),
        (
            HALVING | {"tune.space": {"schedule.tau": {"choices": [0.0, 0.3]}}},
            ["tune.space has 2 candidates", "compares 3 to 100"],
            HALVING | {"tune.space": {"schedule.tau": {"choices": [0.0, 0.3, 0.6]}}},
        ),
        (
            HALVING | {"tune.space": {"schedule.kind": {"choices": ["offset", "power", "sync"]}}},
            ["`sync` is another network than that of the shared start"],
            HALVING | {"tune.space": {"schedule.kind": {"choices": ["offset", "power", "curve"]}}},
        ),
        (
            HALVING | {"tune.space": HALVING["tune.space"] | {"schedule.gamma": {"choices": [1.0, 2.0]}}},
            ["have the same schedule of kind `offset`", "remove what does not change it"],
            HALVING | {"schedule.kind": "power", "tune.space": {"schedule.gamma": {"choices": [1.0, 2.0, 3.0]}}},
        ),
        (
            HALVING | {"schedule.kind": "sync"},
            ["schedule.kind is `sync`, but the shared start", "network with two times"],
            HALVING | {"schedule.tau": {"low": 0.0, "high": 1.0}, "sample.schedule": {"tau": 0.5}},
        ),
        (
            HALVING | {"tune.halving": {"base_steps": 400, "first_steps": 701}},
            ["last 2 candidates for 3204 steps (400 + 701 * 2^2)", "num_steps 3200"],
            HALVING | {"tune.halving": {"base_steps": 400, "first_steps": 700}},
        ),
        (
            HALVING | {"diffusion.sparse_deep": {"first_blocks": 1, "last_blocks": 1, "full_token_steps": 200}},
            ["with diffusion.sparse_deep the last steps depend on their length"],
            HALVING,
        ),
        (TRAINING | {"tune.refine_steps": 10}, ["tune.refine_steps", "set it to 0"], TRAINING),
        (
            space("runtime.sample.batch_size", low=10, high=20),
            ["`runtime.sample.batch_size` changes no trial's images"],
            space(STEPS, low=10, high=20),
        ),
        (
            TRAINING | space("semantic.width", low=64, high=128),
            ["`semantic.width` cannot be searched by a study of kind `training`"],
            TRAINING | space("diffusion.loss.time_mean", low=-1, high=1),
        ),
        (
            space(STEPS, low=5, high=10, step=0.5),
            ["sample.num_steps", "step is 0.5", "whole number"],
            space(STEPS, low=5, high=10, step=5),
        ),
        (
            space(SCALE, low=1, high=30),
            ["scale_texture", "less than or equal to 20"],
            space(SCALE, low=1, high=20, step=0.5),
        ),
        (space(STEPS, choices=[5, "6"]), ["num_steps", "valid integer"], space(STEPS, choices=[5, 6])),
        (
            {"tune.storage": "postgresql://us@er@host/db"},
            ["%XX", "postgresql://USER:${VARIABLE}@HOST"],
            {"tune.storage": "postgresql://us%40er:${WORD}@host/db"},
        ),
        (
            {"tune.storage": "sqlite:///:memory:"},
            ["`sqlite:///:memory:` must name a file"],
            {"tune.storage": "sqlite:///mlruns/other.db"},
        ),
        (
            {"tune.storage": "sqlite:///a.db?mode=memory"},
            ["must name a file"],
            {"tune.storage": "journal://shared/study.log"},
        ),
    ],
)
def test_what_no_study_could_do_is_refused_and_its_neighbour_is_accepted(
    refused: dict[str, Any], named: list[str], accepted: dict[str, Any]
) -> None:
    check_study(parse_params(changed(accepted)))
    params = parse_params(changed(refused))
    with pytest.raises(UserError) as error:
        check_study(params)
    message = str(error.value)
    assert "\n" not in message
    assert all(part in message for part in named), message


@pytest.mark.parametrize(
    ("form", "named"),
    [
        ({"low": 1.0}, "give either low and high, or choices"),
        ({"low": 1.0, "high": 2.0, "choices": [1.0]}, "give either low and high, or choices"),
        ({"low": 2.0, "high": 1.0}, "low 2 must be below high 1"),
        ({"low": 1.0, "high": 2.0, "step": 1.5}, "step 1.5 must be at most high - low = 1"),
        ({"low": 0.0, "high": 2.0, "log": True}, "log needs low above 0"),
        ({"low": 1.0, "high": 2.0, "log": True, "step": 0.5}, "log needs low above 0, and no step"),
        ({"choices": [1.0], "log": True}, "choices take neither step nor log"),
        ({"choices": []}, "at least 1 item"),
    ],
)
def test_a_search_space_of_the_wrong_form_is_refused_with_its_key(form: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError) as error:
        parse_params(changed({"tune.space": {SCALE: form}}))
    assert f"tune.space.{SCALE}" in str(error.value) and named in str(error.value)


@pytest.mark.parametrize(
    "form",
    [
        {"low": 1.0, "high": 2.0},
        {"low": 1.0, "high": 2.0, "step": 1.0},
        {"low": 1.1, "high": 1.3, "step": 0.2},
        {"low": 1.0, "high": 2.0, "log": True},
        {"choices": [1.0, 1.5]},
    ],
)
def test_a_search_space_of_the_right_form_is_accepted(form: dict[str, Any]) -> None:
    check_study(parse_params(changed({"tune.space": {SCALE: form}})))


def test_the_command_refuses_in_one_line_what_sfd_tune_would_refuse(tmp_path: Path) -> None:
    tree = copy.deepcopy(changed({"tune.objectives": ["fid"]}))
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree))
    command = ["sfd", "params", "--file", tmp_path / "params.yaml"]
    run = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1)
    assert run.stderr.startswith("error: ") and "exchange them" in run.stderr
