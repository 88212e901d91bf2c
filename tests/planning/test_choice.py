"""Plans as a pure function of the images, the machine and its speed: a table of cases."""

from dataclasses import replace
from typing import Any

import pytest

from sfd.data.report import DataReport
from sfd.errors import UserError
from sfd.params import LearntParams, Params, check_study, current_value, parse_params, parse_yaml
from sfd.params.yaml import merge
from sfd.planning.choice import Plan, Problem, choose, costs, needed_hours
from sfd.planning.draft import Draft, draft
from sfd.planning.machine import Machine
from sfd.planning.plan import put
from sfd.planning.timing import Timings
from sfd.preset import render

CPU = Machine(cores=2, memory_gb=24, disk_gb=100)
OFFLINE = replace(CPU, packages=("tf_efficientnet_lite0", "tf_efficientnet_lite1"))
GPU = replace(CPU, gpu="a GPU", gpu_memory_gb=24, has_hub=True)
TIMES = Timings(
    start=6.0,
    read=0.002,
    step={"tiny": 0.075, "XS": 0.2, "S": 1.6},
    draw={"tiny": 0.08, "XS": 0.2, "S": 1.6},
    encode=0.05,
    features=0.05,
    judge=0.02,
    tokenizer_step=0.4,
    feature_dim=1280,
)
"""About those of two cores."""
FAST = replace(
    TIMES, step={"XS": 0.02, "S": 0.05, "B": 0.15}, draw={"XS": 0.01, "S": 0.02, "B": 0.05}, encode=0.003, judge=0.001
)
EMOJI = {"activities": 255, "food": 700, "people": 1130, "signs": 1200}


def report(counts: dict[str, int], side: int = 64, split_by: str = "draw") -> DataReport:
    halves = {name: {"train": count - count // 5, "heldout": count // 5} for name, count in counts.items()}
    facts: dict[str, Any] = {"layout": "", "split_by": split_by, "shorter_side": (side, side, side), "image_size": 64}
    facts |= {"upscaled": 0.0, "transparent": 0.0, "near_across": 0, "near_within": 0, "copies": 0}
    return DataReport(counts=halves, passed_over={}, refused={}, notes=[], **facts)


def problem(images: DataReport, machine: Machine, timings: Timings) -> Problem:
    made, tree = draft(images, machine, "emo_judge"), parse_yaml(render("photos64"), "photos64")
    put(tree, made.changes)
    return Problem(made, parse_params(tree), timings, machine.gpu is not None)


def plan(images: DataReport, machine: Machine, hours: float, timings: Timings = TIMES) -> tuple[Plan, Params]:
    """The plan, and the whole parameters, which are valid."""
    made = choose(problem(images, machine, timings), hours)
    tree = parse_yaml(render("photos64"), "photos64")
    merge(tree, {"data": {"root": "/images"}})
    put(tree, made.changes)
    params = parse_params(tree)
    check_study(params)
    return made, params


CASES = {
    "unequal classes": (
        report(EMOJI),
        OFFLINE,
        {
            "encoder.source": "package",
            "judges.0.kind": "timm",
            "data.image_size": 64,
            "sample.class_mix": "natural",
            "sample.guidance.scale_texture": 3.0,
            "quality.scored_images": 1.0,
        },
    ),
    "no classes": (
        report({"all": 3000}),
        OFFLINE,
        {"diffusion.model.condition": "none", "diffusion.model.class_dropout": 0.0, "sample.guidance.kind": "none"},
    ),
    "no packages": (
        report(EMOJI),
        CPU,
        {"encoder.source": "train", "judges.0.kind": "resnet", "encoder.patch_size": 8},
    ),
    "the hub without a GPU": (
        report(EMOJI),
        replace(CPU, has_hub=True),
        {
            "encoder.source": "pretrained",
            "encoder.name": "tf_efficientnet_lite0.in1k",
            "judges.0.model": "tf_efficientnet_lite1.in1k",
        },
    ),
    "few images": (
        report({"a": 150, "b": 150}),
        OFFLINE,
        {
            "data.mirror": True,
            "data.holdout_fraction": 0.4,
            "quality.scored_images": 0.01,
            "sample.class_mix": "balanced",
        },
    ),
    "many images": (
        report({"a": 30_000, "b": 30_000}),
        OFFLINE,
        {"data.mirror": False, "data.holdout_fraction": 0.023},
    ),
    "tiny images": (
        report(EMOJI, side=28),
        OFFLINE,
        {"data.image_size": 32, "texture_vae.block_size": 4, "encoder.input_size": 256},
    ),
    "huge images": (report(EMOJI, side=4000), OFFLINE, {"data.image_size": 64, "texture_vae.block_size": 8}),
    "a GPU and the hub": (
        report({"a": 4000, "b": 4000}, side=512),
        GPU,
        {
            "data.image_size": 256,
            "sample.guidance.scale_texture": 1.5,
            "texture_vae.source": "pretrained",
            "encoder.input_size": 448,
            "encoder.source": "pretrained",
        },
    ),
    "a GPU alone": (
        report({"a": 4000, "b": 4000}, side=512),
        replace(GPU, has_hub=False),
        {"data.image_size": 64, "texture_vae.source": "pca", "encoder.source": "train"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_plan_fits_the_images_the_machine_and_the_hours(case: str) -> None:
    images, machine, expected = CASES[case]
    made, params = plan(images, machine, 2.0, FAST if machine.gpu else TIMES)
    for key, value in expected.items():
        assert current_value(params, key) == value, key
    assert 0.7 <= made.hours <= 2.0 and made.gb > 0
    assert [cost.stage for cost in made.costs] == [
        "scan",
        "prepare",
        "encoder",
        "texture_vae",
        "judge",
        "features",
        "semantic",
        "latents",
        "schedule",
        "diffusion",
        "sample",
        "reference",
        "evaluate",
        "register",
    ]
    assert {
        "image size",
        "held out",
        "condition",
        "tokenizer",
        "encoder",
        "judge",
        "gates",
        "model",
        "steps",
        "samples",
    } <= set(made.reasons)
    training = params.diffusion.training
    assert training.warmup_steps < training.num_steps and 1 / (1 - training.ema_decay) <= training.num_steps / 10
    assert ("class_accuracy" in params.register_.gates) == (len(images.counts) > 1)


def test_more_hours_give_more_steps_then_a_larger_model() -> None:
    chosen = [plan(report(EMOJI), OFFLINE, hours)[1].diffusion for hours in (0.7, 1.5, 3.0, 20.0)]
    assert [each.model.size for each in chosen] == ["XS", "XS", "XS", "S"]
    steps = [each.training.num_steps for each in chosen]
    assert steps[0] < steps[1] < steps[2] and steps[3] >= 10_000


@pytest.mark.parametrize(
    ("machine", "timings", "batch", "rates"),
    [(OFFLINE, TIMES, 16, (0.002667, 0.001333)), (GPU, FAST, 32, (0.001, 0.0005))],
    ids=["cpu", "gpu"],
)
def test_a_cpu_trains_in_small_batches_at_a_high_rate_and_wider_models_at_a_lower_one(
    machine: Machine, timings: Timings, batch: int, rates: tuple[float, float]
) -> None:
    asked = problem(report(EMOJI), machine, timings)
    assert asked.params.diffusion.training.batch_size == batch
    assert (asked.learning_rate("XS"), asked.learning_rate("S")) == rates
    training = plan(report(EMOJI), machine, 3.0, timings)[1].diffusion.training
    assert training.batch_size == batch and training.learning_rate in rates + (asked.learning_rate("B"),)


def test_the_network_on_top_of_the_tokenizer_and_the_samples_take_their_share_and_no_more() -> None:
    short, long = (plan(report(EMOJI), OFFLINE, hours)[1] for hours in (0.7, 3.0))
    assert short.texture_vae.training is None and long.texture_vae.training is not None
    assert long.texture_vae.training.num_steps == 2500
    assert long.sample.num_images == 700
    slow = replace(TIMES, draw=dict.fromkeys(TIMES.draw, 1.5))
    made, params = plan(report(EMOJI), OFFLINE, 2.0, slow)
    assert 200 <= params.sample.num_images < 700 and "would take more than 15%" in made.reasons["samples"]


@pytest.mark.parametrize(
    ("hours", "said"), [(0.4, "no network on top"), (2.0, "on top removes the edges of blocks, in 2,500 steps")]
)
def test_the_plan_says_of_the_network_on_top_what_it_writes(hours: float, said: str) -> None:
    made, params = plan(report(EMOJI), OFFLINE, hours)
    assert said in made.reasons["tokenizer"]
    has_none = params.texture_vae.training is None
    assert has_none == said.startswith("no ") == ("edges of the tokenizer's blocks show" in made.quality)


def test_a_size_that_a_cpu_trains_quicker_in_bf16_is_planned_so_and_the_others_are_not() -> None:
    quicker = replace(TIMES, step=TIMES.step | {"XS": 0.3}, step_fp32={"XS": 0.4})
    made, params = plan(report(EMOJI), OFFLINE, 2.0, quicker)
    assert (params.diffusion.model.size, params.diffusion.training.precision) == ("XS", "bf16")
    assert "a step takes 0.3 s, in float32 0.4 s" in made.reasons["precision"]
    made, params = plan(report(EMOJI), OFFLINE, 2.0)
    assert params.diffusion.training.precision == "auto" and "precision" not in made.reasons


def test_more_passes_over_few_images_than_are_worth_it_are_not_planned() -> None:
    made, params = plan(report({"a": 100, "b": 100}), GPU, 24.0, FAST)
    assert made.hours < 24 and "not used up" in made.reasons["steps"] and "near copies" in made.quality
    assert params.diffusion.model.size == "XS" and params.diffusion.training.num_steps <= 1000 * 240 // 32


def test_hours_in_which_nothing_useful_comes_out_are_refused_with_those_that_would_do() -> None:
    asked = problem(report(EMOJI), OFFLINE, TIMES)
    with pytest.raises(
        UserError, match=r"in 0.1 hours nothing useful comes out .* give --hours (0\.\d+) or more"
    ) as refused:
        choose(asked, 0.1)
    enough = float(str(refused.value).split("--hours ")[1].split()[0])
    hours, size = needed_hours(asked)
    assert 0 <= enough - hours <= 0.02 and f"({size}) needs {asked.useful_steps(size):,} steps" in str(refused.value)
    made = choose(asked, enough)
    assert made.hours <= enough and made.reasons["model"].startswith(size)


def test_too_few_images_are_refused_and_a_split_by_folders_is_kept() -> None:
    with pytest.raises(UserError, match="there are 60 images; a model of fewer than 100 repeats them"):
        draft(report({"a": 30, "b": 30}), CPU, "emo_judge")
    made: Draft = draft(report(EMOJI, split_by="folders"), CPU, "emo_judge")
    assert "holdout_fraction" not in made.changes["data"] and "the folders say so" in made.reasons["held out"]
    assert made.num_heldout == report(EMOJI).num_heldout


def test_the_distance_is_a_gate_where_the_images_are_more_than_the_judges_features() -> None:
    few, many = (plan(report(counts), OFFLINE, 3.0)[1] for counts in (EMOJI, {"a": 4000, "b": 4000}))
    assert (
        set(few.register_.gates) == {"memorised_fraction", "class_accuracy"}
        and few.register_.gates["class_accuracy"].improve
    )
    assert set(many.register_.gates) == {"memorised_fraction", "class_accuracy", "fd_emo_judge"}
    assert few.register_.gates["class_accuracy"].limit == 0.44 and not many.register_.gates["class_accuracy"].improve
    assert set(plan(report(EMOJI), CPU, 3.0)[1].register_.gates) >= {"fd_emo_judge"}


def test_gates_on_what_too_few_images_flag_are_left_out() -> None:
    for count, gates in {110: {"class_accuracy"}, 200: {"class_accuracy", "memorised_fraction"}}.items():
        assert set(plan(report({"a": count, "b": count}), CPU, 3.0)[1].register_.gates) == gates


def test_a_class_that_stage_prepare_would_stop_at_is_named() -> None:
    assert (
        "1 with fewer than 10 training images (b)"
        in draft(report({"a": 200, "b": 9}), CPU, "j").reasons["small classes"]
    )
    assert "small classes" not in draft(report({"a": 200, "b": 30}), CPU, "j").reasons


def test_a_cost_grows_with_what_it_is_for() -> None:
    asked = problem(report(EMOJI), OFFLINE, TIMES)
    less = {cost.stage: cost.seconds for cost in costs(asked, "XS", 200, 2000, 0)}
    more = {cost.stage: cost.seconds for cost in costs(asked, "XS", 1000, 4000, 1000)}
    assert {stage for stage in less if more[stage] > less[stage]} == {
        "texture_vae",
        "diffusion",
        "sample",
        "reference",
        "evaluate",
    }


@pytest.mark.parametrize(
    ("learnt", "what", "seconds"),
    [
        ({"probe_steps": 500}, "learnt, 500 steps of XS", 500 * TIMES.step["XS"]),
        (
            {"probe_steps": 500, "probe_size": "tiny", "repeats": 3},
            "learnt, 1,500 steps of tiny",
            1500 * TIMES.step["tiny"],
        ),
        ({"probe_steps": 100, "probe_size": "B"}, "learnt, 100 steps of B", 100 * 4 * TIMES.step["S"]),
    ],
)
def test_a_schedule_that_is_to_be_learnt_has_the_price_of_its_probes(
    learnt: dict[str, Any], what: str, seconds: float
) -> None:
    asked = problem(report(EMOJI), OFFLINE, TIMES)
    schedule = asked.params.schedule.model_copy(update={"kind": "learnt", "learnt": LearntParams(**learnt)})
    asked = replace(asked, params=asked.params.model_copy(update={"schedule": schedule}))
    cost = next(cost for cost in costs(asked, "XS", 200, 2000, 0) if cost.stage == "schedule")
    assert cost.what == what and cost.seconds == pytest.approx(TIMES.start + seconds)
    given = next(
        cost for cost in costs(problem(report(EMOJI), OFFLINE, TIMES), "XS", 200, 2000, 0) if cost.stage == "schedule"
    )
    assert given.seconds == TIMES.start
