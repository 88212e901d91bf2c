"""What each stage reads, the fingerprint of that, and what has changed of it."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfd.errors import UserError
from sfd.params import Params, registered_model, select, shown, to_tree
from sfd.pipeline.code import Code
from sfd.workspace import Workspace

PUBLISHED = "fingerprint.json"
SCHEDULE = "schedule.json"
"""What stage ``schedule`` leaves for later stages: the curve, and the section of the parameters that asked for it."""

Facts = dict[str, Any]
"""What a result depends on, as JSON."""


@dataclass(frozen=True)
class Inputs:
    """What a stage's result depends on: dotted params keys, the stages whose results it reads, and the modules that its script imports."""

    params: tuple[str, ...]
    upstream: tuple[str, ...] = ()
    code: tuple[str, ...] = ()


STAGES: dict[str, Inputs] = {
    "prepare": Inputs(("seed", "data"), (), ("sfd.pipeline.prepare",)),
    "encoder": Inputs(("seed", "data.image_size", "data.mirror", "encoder"), ("prepare",), ("sfd.pipeline.encoder",)),
    "text": Inputs(
        ("seed", "data.image_size", "text", "diffusion.model.condition"),
        ("prepare", "encoder"),
        ("sfd.pipeline.text",),
    ),
    "texture_vae": Inputs(
        ("seed", "data.image_size", "texture_vae"), ("prepare", "encoder"), ("sfd.pipeline.texture_vae",)
    ),
    "judge": Inputs(
        ("seed", "data.image_size", "data.mirror", "judges"),
        ("prepare",),
        ("sfd.pipeline.judge", "sfd.pipeline.prepare"),
    ),
    "features": Inputs(
        ("seed", "data.image_size", "data.mirror", "features", "semantic.kind", "semantic.source"),
        ("prepare", "encoder"),
        ("sfd.pipeline.features",),
    ),
    "semantic": Inputs(
        ("seed", "data.image_size", "semantic"),
        ("prepare", "features"),
        ("sfd.pipeline.semantic", "sfd.pipeline.prepare"),
    ),
    "latents": Inputs(
        ("seed", "data.image_size", "data.mirror", "latents"),
        ("prepare", "encoder", "texture_vae", "semantic"),
        ("sfd.pipeline.latents",),
    ),
    "schedule": Inputs(
        (
            "seed",
            "schedule",
            "diffusion.model",
            # What a learnt curve depends on; a longer training of the model follows the same one.
            "diffusion.loss.semantic_weight",
            "diffusion.loss.channel_weights",
            "diffusion.loss.time_mean",
            "diffusion.loss.time_std",
            "diffusion.training.batch_size",
            "diffusion.training.learning_rate",
            "diffusion.training.warmup_steps",
            "diffusion.training.warmup_from",
            "diffusion.training.beta2",
            "diffusion.training.max_grad_norm",
            "diffusion.training.accumulation_steps",
            "diffusion.training.precision",
        ),
        ("latents", "text"),
        ("sfd.pipeline.schedule",),
    ),
    "diffusion": Inputs(
        ("seed", "diffusion"),
        ("semantic", "latents", "texture_vae", "schedule", "text"),
        ("sfd.pipeline.diffusion", "sfd.registry.source"),
    ),
    "sample": Inputs(
        ("seed", "sample", "evaluate.swaps", "evaluate.swap_images"),
        ("diffusion", "texture_vae", "text"),
        ("sfd.pipeline.sample",),
    ),
    "reference": Inputs(
        (
            "seed",
            "data.image_size",
            "data.mirror",
            "diffusion.model.condition",
            "sample.num_images",
            "sample.class_mix",
            "evaluate.reference",
            "evaluate.memorisation",
        ),
        ("prepare", "texture_vae", "judge"),
        ("sfd.pipeline.reference",),
    ),
    "evaluate": Inputs(
        ("seed", "data.image_size", "data.mirror", "evaluate"),
        ("prepare", "texture_vae", "judge", "reference", "sample"),
        ("sfd.pipeline.evaluate",),
    ),
    "register": Inputs(
        ("sample", "register.name", "register.alias"),
        ("prepare", "texture_vae", "diffusion", "sample", "evaluate", "text"),
        ("sfd.registry.register", "sfd.registry.pyfunc", "sfd.registry.smoke_process"),
    ),
    "evaluate_steps": Inputs(
        ("seed", "data.image_size", "data.mirror", "sample", "evaluate"),
        ("prepare", "texture_vae", "judge", "reference", "diffusion"),
        ("sfd.pipeline.evaluate_steps",),
    ),
    "sweep": Inputs(
        ("seed", "data.image_size", "data.mirror", "sample", "evaluate"),
        ("prepare", "texture_vae", "judge", "reference", "diffusion"),
        ("sfd.tuning.sweep",),
    ),
    "tune": Inputs(
        ("seed", "data.image_size", "data.mirror", "schedule", "diffusion", "sample", "evaluate", "tune"),
        (),
        ("sfd.tuning.study",),
    ),
}
"""The graph, and the commands that work as its stages do. ``dvc.yaml`` says the same of the graph to DVC; a test keeps the two equal.
What `tune` reads depends on the kind of its study."""

OF_CONTENT = ("prepare", "schedule")
"""Stages whose fingerprint is of what they made, not of what they made it from."""

COMMANDS = ("evaluate_steps", "sweep", "tune")
"""Those that no stage of ``dvc.yaml`` runs."""


def upstream_of(name: str, params: Params) -> tuple[str, ...]:
    """The stages whose results a stage reads. Weights from a file are not trained, so they need no latents; the texture VAE needs an
    encoder for the terms that compare features, a schedule that is given needs nothing, and only a model that is told words needs a text
    encoder."""
    needed = STAGES[name].upstream
    if params.diffusion.model.condition != "text":
        needed = () if name == "text" else tuple(read for read in needed if read != "text")
    if name == "diffusion" and params.diffusion.source == "file":
        return ("texture_vae",)
    if name == "texture_vae" and not params.texture_vae.needs_encoder:
        return ("prepare",)
    if name == "schedule" and params.schedule.kind != "learnt":
        return ()
    return needed


def stage_fingerprint(workspace: Workspace, name: str, params: Params, upstream: tuple[str, ...] | None = None) -> str:
    """sha256 over the stage's parameters, the weights files that they name, and the fingerprints of what it reads.

    Raises:
        UserError: an upstream result is missing.
    """
    return digest_facts(input_facts(workspace, name, params, upstream))


def digest_facts(facts: Facts) -> str:
    """sha256 of the facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def input_facts(workspace: Workspace, name: str, params: Params, upstream: tuple[str, ...] | None = None) -> Facts:
    """What :func:`stage_fingerprint` is made of. Raises :class:`UserError` as it does."""
    upstream = upstream_of(name, params) if upstream is None else upstream
    keys = STAGES[name].params
    tree = to_tree(params)
    init_from = params.diffusion.init_from if "diffusion" in keys else None
    addresses = [init_from] if init_from is not None and registered_model(init_from) else []
    return {
        "stage": name,
        "params": {key: select(tree, key) for key in keys},
        "upstream": {read: published_fingerprint(workspace, read) for read in upstream},
        "files": {str(path): digest_path(workspace.resolve(path)) for path in params.paths(*keys)},
        "registered": [resolve_registered(workspace, address) for address in addresses],
    }


def work_facts(workspace: Workspace, params: Params, facts: Facts, code: Code) -> Facts:
    """What work in progress depends on: the ``facts`` of the fingerprint, what the results that it reads are, the ``code``, and for `prepare`
    the images.

    Raises:
        UserError: the images are not there.
    """
    more: Facts = {"upstream": {read: published(workspace, read) for read in facts["upstream"]}, "code": code}
    if facts["stage"] == "prepare":
        from sfd.data.listing import read_listing

        more["images"] = read_listing(workspace.resolve_paths(params.data))
    return facts | more


def mark_of(facts: Facts) -> str:
    """Stands for what work in progress depends on: all facts, but not how many steps will follow where that does not matter."""
    if training_of(facts) and continuable(facts):
        return digest_facts(with_steps(facts, 0))
    if facts["stage"] == "judge" and "judges" in facts["params"]:
        entries = [judge_facts(facts, number) for number in range(len(facts["params"]["judges"]))]
        lengths = [with_steps(each, 0) if training_of(each) and continuable(each) else each for each in entries]
        return digest_facts(facts | {"params": [each["params"] for each in lengths]})
    return digest_facts(facts)


def judge_facts(facts: Facts, number: int) -> Facts:
    """What one of the judges depends on, as if it were the only one: so another judge beside it changes nothing for its training.

    ``facts``: those of stage ``judge``.
    """
    params = {key: value for key, value in facts["params"].items() if key != "judges"}
    return facts | {"params": params | {"judge": facts["params"]["judges"][number]}, "files": {}}


def training_of(facts: Facts) -> dict[str, Any]:
    """The parameters of a stage's training; empty if it has none."""
    section = facts["params"].get(facts["stage"])
    return (section.get("training") if isinstance(section, dict) else None) or {}


def continuable(facts: Facts) -> bool:
    """Whether what a training does in a step does not depend on how many will follow."""
    return not needs_length(facts)


def needs_length(facts: Facts) -> str:
    """What of a training depends on its number of steps, in words; empty if nothing does."""
    if training_of(facts)["decay"] != "constant":
        return "the learning rate of `decay: cosine` depends on num_steps (that of `constant` does not)"
    sparse = facts["params"][facts["stage"]].get("sparse_deep")
    if sparse and sparse["full_token_steps"]:
        return "the last `sparse_deep.full_token_steps` are counted from num_steps"
    return ""


def num_steps(facts: Facts) -> int:
    """The length of a stage's training."""
    return int(training_of(facts)["num_steps"])


def with_steps(facts: Facts, number: int) -> Facts:
    """The facts of a training of another length."""
    name, params = facts["stage"], facts["params"]
    training = training_of(facts) | {"num_steps": number}
    return facts | {"params": params | {name: params[name] | {"training": training}}}


WORDS = {
    "params": "`{key}` in params.yaml",
    "upstream": "the result of stage `{key}`",
    "files": "{key}",
    "registered": "the registered model of diffusion.init_from",
    "code": "the code or library `{key}`",
    "images": "the list of images",
}
"""What a user calls the facts."""


def first_change(before: Facts, after: Facts) -> str:
    """The first difference of two sets of facts in words; empty if there is none."""
    for part, words in WORDS.items():
        old, new = before.get(part), after.get(part)
        if old == new:
            continue
        if not isinstance(old, dict) or not isinstance(new, dict) or part == "images":
            return f"{words} changed"
        key, one, other = next(differences(old, new))
        key = key.partition(".")[0] if part == "upstream" else key
        values = f" from {shown(one)} to {shown(other)}" if part == "params" else ""
        return f"{words.format(key=key)} changed{values}"
    return ""


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Dotted key, old and new value of every difference of two trees."""
    for key in dict.fromkeys([*old, *new]):
        one, other = _by_place(old.get(key)), _by_place(new.get(key))
        if isinstance(one, dict) and isinstance(other, dict):
            yield from ((f"{key}.{inner}", *values) for inner, *values in differences(one, other))
        elif one != other:
            yield key, one, other


def _by_place(value: Any) -> Any:
    """A list of mappings as a mapping from places."""
    is_list = isinstance(value, list) and value and all(isinstance(each, dict) for each in value)
    return {str(place): each for place, each in enumerate(value)} if is_list else value


def resolve_registered(workspace: Workspace, address: str) -> dict[str, str]:
    """``name`` and ``version`` behind a registered model's address, and the ``run_id`` that made it, as stage ``scan`` found them.

    Raises:
        UserError: the stage has not looked this address up.
    """
    file = workspace.init_from
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    registered = registered_model(address)
    if registered is None or known.get("init_from") != address:
        raise UserError(
            f"which version {address} means is not known ({file}); run `dvc repro diffusion`, which looks it up"
        )
    return {"name": registered[0], "version": known["version"], "run_id": known["run_id"]}


def digest_path(path: Path) -> str:
    """sha256 of a file, or of a folder's names and files. Raises :class:`UserError` if it does not exist.

    A shard counts by the checksum file beside it, because reading it again may take an hour.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist, but params.yaml names it; correct the path or put the file there")
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        has_checksum = file.suffix == ".safetensors" and file.with_suffix(".sha256").is_file()
        if file.is_file() and file.suffix != ".pyc" and not has_checksum:
            digest.update((file.relative_to(path).as_posix() if path.is_dir() else file.name).encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def write_published(folder: Path, stage: str, fingerprint: str, content: str | None = None) -> None:
    """Writes ``fingerprint.json`` of a finished result: what it was made from, and the digest of what it is.

    ``content``: a digest of what later stages read of it, if that is not the whole folder.
    """
    facts = {"stage": stage, "fingerprint": fingerprint, "content": content or digest_path(folder)}
    (folder / PUBLISHED).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def published_fingerprint(workspace: Workspace, name: str) -> str:
    """The fingerprint that a finished stage left beside its result. Raises :class:`UserError` when there is none."""
    return published(workspace, name)["fingerprint"]


def published(workspace: Workspace, name: str) -> dict[str, str]:
    """What :func:`write_published` wrote of a finished stage. Raises :class:`UserError` when there is nothing."""
    file = workspace.result(name) / PUBLISHED
    if not file.is_file():
        raise UserError(f"the result of stage `{name}` is missing ({file}); run `dvc repro {name}` first")
    return dict(json.loads(file.read_text(encoding="utf-8")))


def check_asked(folder: Path, params: Params) -> None:
    """Raises :class:`UserError` unless ``schedule.json`` in ``folder`` was made from the section `schedule` of these parameters."""
    file = folder / SCHEDULE
    if not file.is_file():
        raise UserError(f"{file} is missing; run `dvc repro schedule` first")
    asked = json.loads(file.read_text(encoding="utf-8")).get("asked")
    if asked != params.schedule.model_dump(mode="json"):
        raise UserError(
            f"{file} was made from another section `schedule` than that of params.yaml; run `dvc repro schedule` first"
        )


def check_current(workspace: Workspace, names: Iterable[str], params: Params) -> None:
    """Raises :class:`UserError` unless these stages are finished and made from these parameters."""
    for name in names:
        found = published_fingerprint(workspace, name)
        if name == "schedule" or (name == "diffusion" and params.diffusion.source == "train"):
            # The schedule takes part by its content, which is that of the last run of its stage.
            check_asked(workspace.result("schedule"), params)
        is_of_content = name in OF_CONTENT or (name == "text" and params.diffusion.model.condition != "text")
        if not is_of_content and found != stage_fingerprint(workspace, name, params):
            raise UserError(
                f"{workspace.result(name)} was made from other parameters than those in params.yaml; run `dvc repro {name}` first"
            )
