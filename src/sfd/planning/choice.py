"""The size and the length of the training that fit a number of hours, and what each stage costs. Pure functions of what was measured."""

from dataclasses import dataclass

from sfd.errors import UserError
from sfd.names import distance_name
from sfd.params import Params, TrainingParams
from sfd.pipeline.texture_vae import FIT_IMAGES, QUALITY_IMAGES
from sfd.planning.draft import NEEDED_REFERENCE, RESIDUAL_BATCH, RESIDUAL_STEPS, WANTED_REFERENCE, Draft, Tree
from sfd.planning.timing import Timings
from sfd.sizes import SIZES, USEFUL_IMAGES

MOST_EPOCHS, COPYING_EPOCHS = 1000, 300
"""More passes over the images only repeat them; from so many on, copies are likely. Neither was measured."""
SLACK = 0.95
"""Share of the hours that is planned for."""
CPU_LEARNING_RATE = 4e-3
"""Of a width of 128, with small batches: better than 1e-3 and 2e-3 on emoji, and 8e-3 is no better (docs/your-own-images.md)."""
SIMPLE_IMAGES = 160_000
"""Training images, repeats counted, from which on XS draws simple things recognisably."""
SAMPLING_SHARE, RESIDUAL_SHARE = 0.15, 0.15
"""Largest share of the hours for drawing the samples that are scored, and for the network on top of the tokenizer."""
FEWEST_SAMPLES = 200
JUDGE_FEATURES = 1280
"""Of the judge from a package; a Frechet distance of fewer images is flagged. Kept as float32."""
COPIES_REFERENCE = 100
"""Held-out images below which the share of copies is flagged."""
GRIDS, GRID_IMAGES = 4, 32
SOLVING_SECONDS, SCORING_SECONDS = 4.0, 12.0
"""Components of 1,280 features with their picture, and distances with their errors; one CPU core."""
STATE_BYTES = 16
"""Per parameter in a checkpoint: weights, their average, two moments; float32."""
PARAMETERS_PER_BLOCK = 18
"""Times the squared width: attention 4, SwiGLU 8, modulation 6."""


@dataclass(frozen=True)
class Cost:
    """What one stage costs. ``what``: what it does, in words; ``gb``: on disk."""

    stage: str
    what: str
    seconds: float
    gb: float = 0.0


@dataclass(frozen=True)
class Plan:
    """A plan.

    Attributes:
        changes: what differs from the preset that it is put into.
        reasons: topic to a sentence.
        costs: of each stage, in the order of the graph.
        quality: what to expect, in plain words.
    """

    changes: Tree
    reasons: dict[str, str]
    costs: tuple[Cost, ...]
    quality: str

    @property
    def hours(self) -> float:
        """Of all stages."""
        return sum(cost.seconds for cost in self.costs) / 3600

    @property
    def gb(self) -> float:
        """Of all stages."""
        return sum(cost.gb for cost in self.costs)


@dataclass(frozen=True)
class Problem:
    """What a plan is for.

    Attributes:
        draft: the choices that needed no measurement.
        params: the preset with these choices.
        timings: of the networks of ``params``.
        has_gpu: whether they were measured on a GPU.
    """

    draft: Draft
    params: Params
    timings: Timings
    has_gpu: bool = False

    @property
    def views(self) -> int:
        """Of each training image."""
        return 1 + self.params.data.mirror

    @property
    def batch(self) -> int:
        """Of the diffusion model."""
        return self.params.diffusion.training.batch_size

    def useful_steps(self, size: str) -> int:
        """From which on a size is worth its time."""
        return USEFUL_IMAGES[size] // self.batch

    def learning_rate(self, size: str) -> float:
        """Of the diffusion model, the smaller the wider it is."""
        width = SIZES[size][0]
        return round(min(1e-3, 1e-3 * 192 / width) if self.has_gpu else CPU_LEARNING_RATE * 128 / width, 6)

    @property
    def can_have_residual(self) -> bool:
        """Whether a network can be trained on top of the tokenizer."""
        return self.params.texture_vae.source == "pca"

    @property
    def wanted_samples(self) -> int:
        """As many as there are held-out images to compare them with, rounded up; at most what steady scores need."""
        return max(FEWEST_SAMPLES, min(WANTED_REFERENCE, -(-self.draft.num_heldout // 50) * 50))


def choose(problem: Problem, hours: float) -> Plan:
    """The plan for so many hours of the whole graph.

    Raises:
        UserError: they are too few for anything useful; the message says how many would do.
    """
    fitting = [(size, *afford(problem, size, hours)) for size in problem.timings.step]
    fitting = [each for each in fitting if each[-1] >= problem.useful_steps(each[0])]
    if not fitting:
        raise UserError(_too_short(problem, hours))
    draft = problem.draft
    most = MOST_EPOCHS * draft.num_train * problem.views // problem.batch
    worth = [each for each in fitting if problem.useful_steps(each[0]) <= most] or fitting[:1]
    size, residual, num_samples, steps = worth[-1]
    most = max(problem.useful_steps(size), most)
    steps = _rounded(min(steps, most))
    all_costs = costs(problem, size, num_samples, steps, residual)
    epochs = steps * problem.batch / (draft.num_train * problem.views)
    reasons = draft.reasons | {
        "model": f"{size} ({'x'.join(map(str, SIZES[size]))}): the largest size that gets the steps that it needs ({problem.useful_steps(size):,}) "
        "without too many passes over the images",
        "steps": f"{steps:,} of batch {problem.batch}, {epochs:,.0f} passes over the images: "
        + ("what the hours leave" if steps < most else "more would only repeat them, so the hours are not used up"),
        "samples": f"{num_samples:,}: " + _why_samples(problem, num_samples),
    }
    if problem.can_have_residual:
        reasons["tokenizer"] += "; " + _why_residual(residual)
    if size in problem.timings.step_fp32:
        seconds, slower = problem.timings.step[size], problem.timings.step_fp32[size]
        reasons["precision"] = f"bf16: this processor has it; a step takes {seconds:.2g} s, in float32 {slower:.2g} s"
    gates, reasons["gates"] = _gates(problem, num_samples)
    changes = _changes(problem, size, num_samples, steps, residual) | {"register": {"gates": gates}}
    return Plan(changes, reasons, all_costs, _quality(problem, size, steps, epochs, residual))


def afford(problem: Problem, size: str, hours: float) -> tuple[int, int, int]:
    """Steps of the network on top of the tokenizer, samples, and steps of training that fit the hours in one size.

    The last is below 0 where not even the other stages fit.
    """
    budget = hours * 3600 * SLACK
    step = problem.timings.tokenizer_step
    allowed = [steps for steps in RESIDUAL_STEPS if 0 < steps * step <= RESIDUAL_SHARE * budget]
    most = int(SAMPLING_SHARE * budget / problem.timings.draw[size]) // 50 * 50
    residual, num_samples = max(allowed, default=0), min(problem.wanted_samples, max(FEWEST_SAMPLES, most))
    for parts in ((residual, num_samples), (0, FEWEST_SAMPLES)):
        others = sum(cost.seconds for cost in costs(problem, size, parts[1], 0, parts[0]))
        steps = int((budget - others) / problem.timings.step[size])
        if steps >= problem.useful_steps(size):
            break
    return *parts, steps


def needed_hours(problem: Problem) -> tuple[float, str]:
    """The fewest hours in which something useful comes out, and the size of model that they are for."""
    seconds = {
        size: sum(cost.seconds for cost in costs(problem, size, FEWEST_SAMPLES, problem.useful_steps(size), 0))
        for size in problem.timings.step
    }
    size = min(seconds, key=lambda each: seconds[each])
    return seconds[size] / (3600 * SLACK), size


def costs(problem: Problem, size: str, num_samples: int, steps: int, residual: int) -> tuple[Cost, ...]:
    """What each stage costs. ``residual``: steps of the network on top of the tokenizer."""
    params, timings, views = problem.params, problem.timings, problem.views
    train, heldout = problem.draft.num_train, problem.draft.num_heldout
    start, read, draw = timings.start, timings.read, timings.draw[size]
    chosen = min(train, params.features.max_images) if params.semantic.kind != "none" else 0
    compared = min(num_samples, train, heldout)
    judged = heldout + compared + train * views
    weights = PARAMETERS_PER_BLOCK * SIZES[size][1] * SIZES[size][0] ** 2
    view_bytes = 2 * timings.tokens * timings.latent_channels
    feature_bytes = 2 * timings.tokens * timings.feature_dim
    return (
        Cost("scan", "looks at names and code", start),
        Cost("prepare", f"reads {train + heldout:,} images", start + (train + heldout) * read),
        Cost("encoder", *_frozen(params.encoder.source, params.encoder.training, timings.encoder_step, timings)),
        *_text(problem),
        Cost(
            "texture_vae",
            params.texture_vae.source + (f", and {residual:,} steps of the network on top" if residual else ""),
            start
            + (2 * min(train, FIT_IMAGES) + min(heldout, QUALITY_IMAGES)) * read
            + residual * (timings.tokenizer_step + RESIDUAL_BATCH * read),
        ),
        Cost("judge", *_judge(problem)),
        Cost(
            "features",
            f"of {chosen:,} images",
            start + chosen * (read + views * timings.features),
            chosen * views * feature_bytes / 1e9,
        ),
        Cost("semantic", params.semantic.kind, start + SOLVING_SECONDS + chosen * views * timings.fit),
        Cost(
            "latents",
            f"of {train * views:,} views",
            start + train * (read + views * timings.encode),
            train * views * view_bytes / 1e9,
        ),
        Cost("schedule", *_schedule(problem, size)),
        Cost(
            "diffusion",
            f"{size}, {steps:,} steps of batch {problem.batch}",
            start + steps * timings.step[size] + GRIDS * GRID_IMAGES * draw,
            2 * weights * STATE_BYTES / 1e9,
        ),
        Cost("sample", f"{num_samples:,} images", start + num_samples * draw),
        Cost(
            "reference",
            f"judges {judged:,} images",
            start + judged * timings.judge + (train + heldout) * read,
            judged * JUDGE_FEATURES * 4 / 1e9,
        ),
        Cost(
            "evaluate",
            f"judges {num_samples:,} samples",
            start + SCORING_SECONDS + num_samples * timings.judge,
        ),
        Cost("register", "a version of the model", 2 * start, weights * 4 / 1e9),
    )


def _frozen(source: str, training: TrainingParams | None, step: float, timings: Timings) -> tuple[str, float]:
    """What is done for a frozen network, and its seconds."""
    if source != "train" or training is None:
        return f"from {source}", timings.start
    seconds = training.num_steps * (step + training.batch_size * timings.read)
    return f"trained here, {training.num_steps:,} steps", timings.start + seconds


def _text(problem: Problem) -> tuple[Cost, ...]:
    """As :func:`_frozen`, where the model is told words. The encoder sees each image once. Each caption's tokens are stored, or none."""
    params, timings, draft = problem.params, problem.timings, problem.draft
    if params.diffusion.model.condition != "text":
        return ()
    what, seconds = f"from {params.text.source}", timings.start
    if params.text.source == "train" and params.text.training is not None:
        what = f"trained here, {params.text.training.num_steps:,} steps"
        seconds += params.text.training.num_steps * timings.text_step
    seconds += (draft.num_train + draft.num_heldout) * (timings.read + timings.features)
    most = 2 * params.text.width * params.text.max_tokens * draft.num_train if params.text.store_tokens else 0
    return (Cost("text", what, seconds, most / 1e9),)


def _schedule(problem: Problem, size: str) -> tuple[str, float]:
    """As :func:`_frozen`, of a model of this size. A schedule that is given passes through; to learn one, probes are trained."""
    schedule, timings = problem.params.schedule, problem.timings
    if schedule.learnt is None:
        return schedule.kind, timings.start
    probe_size, steps = schedule.learnt.probe_size or size, schedule.learnt.probe_steps * schedule.learnt.repeats
    seconds = steps * timings.step_of(probe_size)
    return f"learnt, {steps:,} steps of {probe_size}", timings.start + seconds


def _judge(problem: Problem) -> tuple[str, float]:
    """As :func:`_frozen`. A head is fitted to the features of all training images."""
    judge, timings, draft = problem.params.first_judge, problem.timings, problem.draft
    what, seconds = _frozen(judge.source, judge.training, timings.judge_step, timings)
    seen = draft.num_heldout + (0 if judge.source == "train" else draft.num_train)
    return what, seconds + seen * (timings.judge + timings.read)


def _changes(problem: Problem, size: str, num_samples: int, steps: int, residual: int) -> Tree:
    """The draft's values with those of the training, the samples, and how often the training is looked at."""
    changes = {
        section: dict(values) if isinstance(values, dict) else values
        for section, values in problem.draft.changes.items()
    }
    if problem.can_have_residual:
        training = changes["texture_vae"]["training"]
        changes["texture_vae"]["training"] = training | {"num_steps": residual} if residual else None
    diffusion = changes.setdefault("diffusion", {})
    diffusion["model"] = diffusion.get("model", {}) | {"size": size}
    diffusion["training"] = {
        "num_steps": steps,
        "batch_size": problem.batch,
        "learning_rate": problem.learning_rate(size),
        "warmup_steps": min(200, steps // 10),
        "decay": "cosine",
        "beta2": 0.95,
        "weight_decay": 0.01,
        "ema_decay": round(min(0.9999, 1 - 20 / steps), 4),
        "max_grad_norm": 1.0,
        "precision": "bf16" if size in problem.timings.step_fp32 else "auto",
    }
    changes.setdefault("sample", {})["num_images"] = num_samples
    every = max(50, round(60 / problem.timings.step[size], -1))
    changes["runtime"] = {
        "diffusion": {
            "checkpoint_every": int(min(every, steps)),
            "grid_every": max(1, steps // GRIDS),
            "grid_images": GRID_IMAGES,
            "heldout_every": max(1, steps // GRIDS),
        }
    }
    return changes


def _why_residual(residual: int) -> str:
    if residual:
        return f"a small network on top removes the edges of blocks, in {residual:,} steps"
    return (
        f"no network on top, which would remove the edges of blocks: its {min(RESIDUAL_STEPS):,} steps would take more than {RESIDUAL_SHARE:.0%} of "
        "the hours, or leave too few for the model"
    )


def _quality(problem: Problem, size: str, steps: int, epochs: float, residual: int) -> str:
    pixels = problem.params.data.image_size
    if not problem.has_gpu:
        said = (
            "none sharp: simple things recognisable, detailed ones mostly not"
            if steps * problem.batch >= SIMPLE_IMAGES and size != "tiny"
            else "rough: colours and outlines, some things recognisable"
        )
        words = f"small pictures of {pixels} pixels, {said}"
    else:
        words = f"pictures of {pixels} pixels; not measured for this size of model on a GPU"
    if problem.can_have_residual and not residual:
        words += "; the edges of the tokenizer's blocks show"
    return words + (
        "; so many passes over few images make near copies of them likely" if epochs > COPYING_EPOCHS else ""
    )


def _why_samples(problem: Problem, num_samples: int) -> str:
    if num_samples == problem.wanted_samples:
        return "as many as there are held-out images to compare them with, or as steady scores need"
    return f"drawing {problem.wanted_samples:,} would take more than {SAMPLING_SHARE:.0%} of the hours"


def _gates(problem: Problem, num_samples: int) -> tuple[Tree, str]:
    """Gates that can be reached, and the reason for them."""
    judge, made = problem.params.first_judge, problem.draft
    gates: Tree = {}
    said = []
    if made.num_heldout >= COPIES_REFERENCE:
        gates["memorised_fraction"] = {"limit": 0.05, "improve": False}
        said.append("at most 5 % copies")
    needed = NEEDED_REFERENCE if judge.kind == "resnet" else JUDGE_FEATURES + 1
    measures_distance = min(num_samples, made.num_heldout, made.num_train) >= needed
    if made.num_classes > 1:
        limit = round(1 / made.num_classes + 0.25 * (1 - 1 / made.num_classes), 2)
        gates["class_accuracy"] = {"limit": limit, "improve": not measures_distance}
        said.append(f"classes recognised a quarter of the way from chance to perfect ({limit:g})")
    if measures_distance:
        gates[distance_name(judge.name)] = {"limit": None, "improve": True}
        said.append("a smaller distance than the champion's")
    else:
        said.append(f"no distance: of fewer than {needed:,} images it is flagged")
    return gates, "; ".join(said)


def _rounded(steps: int) -> int:
    """Down to two digits, so that the number can be read."""
    unit = int(10 ** max(0, len(str(steps)) - 2))
    return steps // unit * unit


def _too_short(problem: Problem, hours: float) -> str:
    needed, size = needed_hours(problem)
    steps = problem.useful_steps(size)
    return (
        f"in {hours:g} hours nothing useful comes out on this machine: the model that is trained soonest ({size}) needs {steps:,} steps "
        f"or more, and the other stages their time, too; give --hours {max(0.01, round(needed + 0.005, 2)):g} or more"
    )
