"""Rules about judges, and about what their metrics are used for. As in :mod:`sfd.params.rules`, a function is a rule."""

from sfd.names import (
    FLOORS,
    INCEPTION,
    distance_name,
    distance_names,
    has_error,
    metric_names,
    nearest,
    ratio_name,
    with_floors,
    word_metrics,
)
from sfd.params.networks import JudgeParams
from sfd.params.schema import Params


def judge_sections(params: Params) -> dict[str, JudgeParams]:
    """The judges by their places in params.yaml."""
    return {f"judges.{number}": judge for number, judge in enumerate(params.judges)}


def check_judges(params: Params) -> None:
    """Each judge has what its kind needs, and all have names of their own."""
    for key, judge in judge_sections(params).items():
        _check_judge(key, judge)
        _check_judge_name(key, judge)
    names = [judge.name for judge in params.judges]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"judges: two are called `{twice}`, the name of one metric `fd_{twice}`: choose other names")


def _check_judge(key: str, judge: JudgeParams) -> None:
    if judge.kind == "inception" and judge.source not in ("pretrained", "file"):
        raise ValueError(
            f"{key}.kind is `inception`, which is downloaded or read from a file, but {key}.source is `{judge.source}`: set {key}.source "
            "to `pretrained` or `file`"
        )
    if judge.kind == "resnet" and judge.source != "train":
        raise ValueError(
            f"{key}.kind is `resnet`, which has no published weights, but {key}.source is `{judge.source}`: set it to `train`, "
            f"or {key}.kind to `timm` or `inception`"
        )
    if judge.kind == "timm" and judge.source == "train":
        raise ValueError(
            f"{key}.kind is `timm`, whose weights others trained, but {key}.source is `train`: set it to `pretrained`, `file` or `package`, "
            f"or {key}.kind to `resnet`"
        )
    if judge.kind == "clip" and judge.source not in ("pretrained", "file"):
        raise ValueError(
            f"{key}.kind is `clip`, which is downloaded or read from a folder, but {key}.source is `{judge.source}`: set {key}.source to "
            "`pretrained` or `file`"
        )
    if judge.kind == "clip" and judge.source == "pretrained" and judge.model is None:
        raise ValueError(f"{key}.kind is `clip`, so {key}.model must name a CLIP of the model hub")
    if judge.kind == "timm" and judge.model is None:
        raise ValueError(f"{key}.kind is `timm`, so {key}.model must name a network of timm")


def _check_judge_name(key: str, judge: JudgeParams) -> None:
    """Inception-v3 alone is called `inception`, because FID means nothing else; and no metric has the name of another."""
    if judge.kind == "inception" and judge.name != INCEPTION:
        raise ValueError(f"{key}.name is {judge.name!r}, but {key}.kind is `inception`: call it `inception`")
    if judge.kind != "inception" and judge.name == INCEPTION:
        raise ValueError(
            f"{key}.name `inception` is kept for Inception-v3, because FID means nothing else: choose another name"
        )
    if judge.name in FLOORS or judge.name.endswith(tuple(f"_{floor}" for floor in FLOORS)):
        raise ValueError(
            f"{key}.name {judge.name!r} is taken: metric `fd_{judge.name}` is a floor; choose another name"
        )
    if judge.name.endswith(".json"):
        raise ValueError(
            f"{key}.name {judge.name!r} is that of a file, but results/judge has a folder of this name: choose another name"
        )


def check_judge_is_another(params: Params) -> None:
    """What judges samples did not make the semantic latents: else samples would be scored by what they were trained to match."""
    if params.is_encoder(params.first_judge):
        raise ValueError(
            f"judges.0.model is {params.first_judge.model}, with the weights of the encoder: choose another judges.0.model, because samples "
            "that were trained towards a network's features cannot be judged by them; further judges may be the encoder, for reporting only"
        )


def check_reference(params: Params) -> None:
    """Published statistics are those of Inception-v3."""
    judge = params.first_judge
    if params.evaluate.reference is not None and judge.kind != "inception":
        raise ValueError(
            f"evaluate.reference is {str(params.evaluate.reference)!r}, which holds statistics of Inception-v3, but the first judge is "
            f"`{judge.name}`: set evaluate.reference to null, or judges.0.kind to `inception`"
        )


def _word_metrics(params: Params) -> list[str]:
    if not params.is_told_words:
        return []
    has_clip = any(judge.kind == "clip" for judge in params.judges)
    return word_metrics(params.evaluate.memorisation, has_clip, params.evaluate.swaps is not None)


def known_metrics(params: Params) -> list[str]:
    """The metrics that the evaluation gives, but those that rest on the encoder's own features."""
    first, options = params.first_judge, params.evaluate
    others = [judge.name for judge in params.counted_judges[1:]]
    known = metric_names(first.name, first.kind != "inception") + _word_metrics(params)
    known += distance_names(first.name, others, has_mean=len(others) > 0)
    known += with_floors("density", "coverage") if options.density else []
    known += with_floors("cmmd") if options.cmmd else []
    absent = [] if options.memorisation else ["memorised_fraction"]
    absent += ["class_accuracy"] if params.diffusion.model.condition == "none" else []
    return [metric for metric in known if metric not in absent]


def encoder_metrics(params: Params) -> list[str]:
    """The metrics of the judge that is the encoder, which are for reporting only."""
    names = [judge.name for judge in params.judges if params.is_encoder(judge)]
    return [key for name in names for key in (distance_name(name), ratio_name(name))]


def check_cmmd(params: Params) -> None:
    """The kernel distance is taken on a judge that is there, and not the encoder."""
    name = params.evaluate.cmmd
    if name is None:
        return
    known = [judge.name for judge in params.counted_judges if judge.kind in ("timm", "clip")]
    if name not in known:
        said = f"the nearest is `{nearest(name, known)}`" if known else "there is none: add one"
        raise ValueError(
            f"evaluate.cmmd is `{name}`, which is no judge of kind `timm` or `clip` in `judges` (but the encoder): {said}, or set it to null"
        )


def check_clip(params: Params) -> None:
    """The CLIP that scores prompts is not the one that the model was told them by."""
    text = params.text
    for key, judge in judge_sections(params).items():
        same = (judge.source, judge.model, judge.file) == (text.source, text.name, text.file)
        if judge.kind == "clip" and params.is_told_words and same:
            raise ValueError(
                f"{key} is the CLIP {judge.file or judge.model}, which is the text encoder, too: choose another one, because a model cannot be "
                "judged by the network that it was told its prompts by"
            )


def check_swaps(params: Params) -> None:
    """Colours are swapped in prompts, which only a model that is told words has."""
    if params.evaluate.swaps is not None and not params.is_told_words:
        raise ValueError(
            f"evaluate.swaps puts words into prompts, but diffusion.model.condition is `{params.diffusion.model.condition}`: set it to `text`, "
            "or evaluate.swaps to null"
        )


def check_gates(params: Params) -> None:
    """Gates refer to metrics that the evaluation gives."""
    gates, known, of_encoder = params.register_.gates, known_metrics(params), encoder_metrics(params)
    for metric, gate in gates.items():
        if metric == "class_accuracy" and params.diffusion.model.condition == "none":
            raise ValueError(
                "register.gates.class_accuracy needs samples of known classes, but diffusion.model.condition is `none`: remove the gate"
            )
        if metric in of_encoder:
            raise ValueError(
                f"register.gates.{metric} is measured by the encoder, towards whose features samples were trained, so it is for reporting "
                "only: remove the gate, or set it on another judge"
            )
        if metric == "memorised_fraction" and not params.evaluate.memorisation:
            raise ValueError(
                "register.gates.memorised_fraction needs evaluate.memorisation: set that to true, or remove the gate"
            )
        if metric not in known:
            raise ValueError(
                f"register.gates.{metric}: {_not_given(params, metric)}; nearest metric: `{nearest(metric, known)}`"
            )
        if gate.improve and not has_error(metric):
            able = ", ".join(name for name in known if has_error(name))
            raise ValueError(
                f"register.gates.{metric}.improve needs a metric with a standard error ({able}): give {metric} a limit instead"
            )


def _not_given(params: Params, metric: str) -> str:
    names = [judge.name for judge in params.judges]
    said = f"judge `{names[0]}` gives" if len(names) == 1 else f"judges {', '.join(f'`{name}`' for name in names)} give"
    return f"{said} no metric `{metric}`"
