"""The command ``sfd generate``: a folder of generated images, equally many per class, and a table of where each one comes from.

Candidate k of a class has its own seed. The first ``per_class`` candidates that the judge accepts are kept. All batches of candidates have
the same size, and the content of a batch follows from the batches before it. So a folder that was interrupted and continued has the same
bytes as one that was not, and a larger folder begins with the images of a smaller one. With an adaptive sampler, whose steps depend on the
whole batch, this holds up to its tolerance.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain, cycle, islice, repeat
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import torch
from torch import Tensor

from sfd.data.images import ManifestImages, Pixels, png_bytes
from sfd.data.layout import HIDDEN
from sfd.data.manifest import HELDOUT, TRAIN
from sfd.data.prepared import Prepared
from sfd.encoders.judges.judge import Judge, load_judge
from sfd.errors import UserError
from sfd.evaluation.fidelity import Features, extract
from sfd.evaluation.memorisation import copy_limit, nearest
from sfd.evaluation.views import judge_images
from sfd.generation.generated import LAYOUT, TABLE, validate_table_of
from sfd.generation.prompts import prompts_to_draw
from sfd.models.conditions import Condition, TextFacts, Value
from sfd.params import Params
from sfd.pipeline.inputs import check_current, published_fingerprint
from sfd.pipeline.prepare import open_prepared
from sfd.pipeline.work import lock
from sfd.precision import Inference
from sfd.progress import progress
from sfd.registry.load import RegisteredModel, load_registered
from sfd.seeding import derive_seed
from sfd.synthetic.finish import batch_files, finish
from sfd.training.backbone import condition_of
from sfd.workspace import Workspace

LEAST_SHARE, ENOUGH_TRIES = 0.1, 200
"""The command stops if, after ENOUGH_TRIES candidates of a class, a smaller share of them than LEAST_SHARE was kept."""

COMMAND = "command.json"
"""File in the hidden folder that records the command."""
ONLY_FOLDER = "images"
"""For a model without classes: the only folder, and the class in the table."""

IMAGE_NAME = re.compile(r"\d{6,}\.png")


@dataclass(frozen=True)
class GenerateOptions:
    """Options of the command. ``version``: a number or an alias.

    ``min_confidence``: the least probability that the judge must give the requested class; None keeps all images.
    ``drop_memorised``: reject images that lie nearer to a training image than the limit of the memorisation check. ``prompts``: drawn in turn by
    a model that is told words; None: the captions of held-out images in its record.
    """

    per_class: int
    version: str
    seed: int
    min_confidence: float | None
    drop_memorised: bool
    prompts: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Upstream:
    """What the command reads of the project: parameters, prepared data set and judge."""

    workspace: Workspace
    params: Params
    data: Prepared
    judge: Judge

    @classmethod
    def load(cls, workspace: Workspace) -> "Upstream":
        """Reads ``params.yaml`` and ``results``. Raises :class:`UserError` if a result is missing or out of date."""
        params = workspace.load_params()
        check_current(workspace, ("prepare", "judge"), params)
        judge = Inference.of(params.runtime.evaluate).place(load_judge(workspace.judge(params.first_judge.name)))
        return cls(workspace, params, open_prepared(workspace, params), judge)

    @property
    def condition(self) -> Condition:
        """What models of this data set are told about an image."""
        words = TextFacts(self.params.text.width, self.params.text.max_tokens)
        return condition_of(self.params.diffusion, self.data.summary.classes, text=words)

    @property
    def classes(self) -> list[str]:
        """Names of the folders of images: one per class of the models, or a single one if they have no classes."""
        return folders_of(self.condition)


def folders_of(condition: Condition) -> list[str]:
    """Names of the folders for a model's images."""
    return condition.choices or [ONLY_FOLDER]


class CandidateScorer:
    """Scores generated images with the judge: its confidence in their class, and the nearest training image."""

    def __init__(self, upstream: Upstream, batch_size: int) -> None:
        self.knows_classes = (
            upstream.judge.knows_classes and upstream.condition.choices == upstream.data.summary.classes
        )
        self.judge, self.data, self.batch_size = upstream.judge, upstream.data, batch_size
        self.num_workers = upstream.params.runtime.evaluate.num_workers
        train = self.data.images(TRAIN)
        self.paths = train.paths
        self.originals = self._seen(train, self.data.params.mirror).features

    def limit(self) -> float:
        """The distance below which an image counts as memorised. Raises :class:`UserError` as :func:`copy_limit` does."""
        heldout = self.data.images(HELDOUT)
        return copy_limit(nearest(self._seen(heldout).features, [self.originals])[0])

    def _seen(self, images: ManifestImages, mirror: bool = False) -> Features:
        """What the judge computes for all images, and for their flips if ``mirror``."""
        return judge_images(self.judge, Pixels(images), range(len(images)), self.batch_size, self.num_workers, mirror)

    def __call__(self, images: Tensor, classes: list[int]) -> pd.DataFrame:
        """``confidence``, ``nearest_distance`` and ``nearest_file`` of images uint8 ``(B, 3, S, S)``."""
        seen = extract(self.judge, [images.to(self.judge.device)])
        distance, row = nearest(seen.features, [self.originals])
        confidence = [float("nan")] * len(classes)
        if self.knows_classes and seen.logits is not None:
            confidence = seen.logits.double().softmax(dim=1)[torch.arange(len(classes)), classes].tolist()
        files = [self.paths[index % len(self.paths)] for index in row.tolist()]
        return pd.DataFrame({"confidence": confidence, "nearest_distance": distance.numpy(), "nearest_file": files})


@dataclass
class ClassCounts:
    """Counts for each class: candidates drawn (``tried``) and images kept."""

    classes: list[str]
    per_class: int
    tried: list[int]
    kept: list[int]
    num_batches: int = 0

    @property
    def is_complete(self) -> bool:
        """Whether every class has all its images."""
        return all(kept == self.per_class for kept in self.kept)

    def add(self, batch: pd.DataFrame) -> None:
        """Counts a finished batch."""
        for index, rows in batch.groupby("class_index"):
            self.tried[int(str(index))] += len(rows)
            self.kept[int(str(index))] += int(rows["kept"].sum())
        self.num_batches += 1

    def next_batch(self, size: int) -> list[tuple[int, int]]:
        """Class and number of the next ``size`` candidates.

        First come as many as are missing, class by class. Then come more candidates of these classes in turn.
        """
        lacking = {index: self.per_class - kept for index, kept in enumerate(self.kept) if kept < self.per_class}
        wanted = chain.from_iterable(repeat(index, count) for index, count in lacking.items())
        tried = list(self.tried)
        batch = []
        for index in islice(chain(wanted, cycle(lacking)), size):
            batch.append((index, tried[index]))
            tried[index] += 1
        return batch

    def check_shares(self) -> None:
        """Raises :class:`UserError` if a class keeps too few of its candidates."""
        for name, tried, kept in zip(self.classes, self.tried, self.kept, strict=True):
            if kept < self.per_class and tried >= ENOUGH_TRIES and kept < LEAST_SHARE * tried:
                raise UserError(
                    f"class {name!r} keeps only {kept} of {tried} candidates ({kept / tried:.1%}, at least {LEAST_SHARE:.0%} are "
                    "needed); lower --min-confidence or leave --drop-memorised out, and choose a new folder; this one stays as it is"
                )


def generate(out: Path, options: GenerateOptions, upstream: Upstream) -> str:
    """Makes the folder, or continues it; returns a summary of a few lines.

    Raises:
        UserError: before anything is drawn: the model does not fit the data set, the judge cannot do what is asked, the folder holds
            other files or images of another command. Later: a class keeps too few candidates, or files were changed meanwhile.
    """
    if options.min_confidence is not None and upstream.condition.choices is None:
        raise UserError(
            "--min-confidence is about the requested class, but the model has no classes; leave the option out"
        )
    if options.min_confidence is not None and upstream.judge.classes is None:
        raise UserError(
            f"--min-confidence needs a judge that knows the classes, but `{upstream.judge.name}` does not; leave the option out, "
            "or make one that knows them the first"
        )
    _check_place(out, upstream)
    registered = load_registered(
        upstream.workspace, upstream.workspace.model_name(upstream.params.register_), options.version
    )
    _check_model(registered, upstream)
    prompts_to_draw(registered.images.model.condition, options.prompts)
    command = _command(options, registered, upstream)
    _check_command(out, command)
    work = out / HIDDEN / "work"
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}; choose another folder") from None
    with lock(work, str(out)):
        _check_command(out, command)
        LAYOUT.write(out)
        _write(out / HIDDEN / COMMAND, json.dumps(command, indent=2, ensure_ascii=False).encode() + b"\n", work)
        if not LAYOUT.is_complete(out):
            _draw(out, work, options, registered, upstream)
            finish(out, work, upstream.classes, options.per_class)
        shutil.rmtree(work)
    return _describe(out, registered, options, upstream.classes)


def _check_model(registered: RegisteredModel, upstream: Upstream) -> None:
    """Raises :class:`UserError` unless the model has the project's classes and image size, and the names of classes can be folder names."""
    what = f"version {registered.version} of model `{registered.name}`"
    model, decoder = registered.images.model, registered.images.decoder
    remedy = "give a --version that was trained with this params.yaml, or run `dvc repro`"
    known = folders_of(model.condition)
    if known != upstream.classes:
        there, here = model.condition.choices, upstream.condition.choices
        raise UserError(f"{what} knows {_some(there)}, but models of this project know {_some(here)}; {remedy}")
    size = model.network.config.input_size * decoder.factor
    if size != upstream.params.data.image_size:
        raise UserError(
            f"{what} draws images of {size} pixels, but data.image_size is {upstream.params.data.image_size}; {remedy}"
        )
    for name in known:
        if name.startswith(".") or "/" in name or "\0" in name or name in LAYOUT.own_names:
            raise UserError(f"class {name!r} cannot be the name of a folder of images; rename it and train again")


def _some(classes: list[str] | None) -> str:
    if classes is None:
        return "no classes"
    return f"{len(classes)} classes ({', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''})"


def _command(options: GenerateOptions, registered: RegisteredModel, upstream: Upstream) -> dict[str, object]:
    """Everything that the images and their table depend on, as the file COMMAND records it."""
    facts = asdict(options) | {"version": registered.version, "model": registered.name}
    return facts | {
        "prompts": None if options.prompts is None else list(options.prompts),
        "classes": upstream.classes,
        "mirror": upstream.params.data.mirror,
        "data set": published_fingerprint(upstream.workspace, "prepare"),
        "judge": upstream.judge.digest,
        "weights": _digest(registered),
        "precision": registered.images.inference.computed_in,
        "judge precision": upstream.judge.computed_in,
    }


def _digest(registered: RegisteredModel) -> str:
    """sha256 of weights and settings. The number of a version is not enough, because another store can have another model under it."""
    # Without what settings did not have before, so that older folders go on: the precision is compared by itself, and no version is sampled
    # along a schedule that is yet to be learnt.
    settings = registered.sample.model_dump_json(exclude={"precision": True, "schedule": {"learnt"}})
    digest = hashlib.sha256(settings.encode())
    for network in (registered.images.network, registered.images.decoder):
        for name, tensor in network.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _check_place(out: Path, upstream: Upstream) -> None:
    """Raises :class:`UserError` if the folder holds files of others, or lies among the training images."""
    root = upstream.data.source.root
    if out.resolve().is_relative_to(root.resolve()):
        raise UserError(f"{out} lies in {root}, where its images would be taken for real ones; choose another folder")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; name a new folder")
    foreign = next(_foreign(out, upstream.classes), None) if out.is_dir() else None
    if foreign is not None:
        raise UserError(
            f"{foreign} was not made by `sfd generate`, which overwrites nothing; choose a new or empty folder"
        )


def _foreign(out: Path, classes: list[str]) -> Iterator[str]:
    """Paths that `sfd generate` did not make."""
    is_ours = (out / HIDDEN / COMMAND).is_file()
    for entry in os.scandir(out):
        if entry.name == HIDDEN or (is_ours and entry.name in LAYOUT.own_names):
            continue
        if not (is_ours and entry.name in classes and entry.is_dir(follow_symlinks=False)):
            yield entry.path
            continue
        yield from (file.path for file in os.scandir(entry) if not IMAGE_NAME.fullmatch(file.name))


def _check_command(out: Path, command: dict[str, object]) -> None:
    """Raises :class:`UserError` if another command made the folder."""
    file = out / HIDDEN / COMMAND
    if not file.is_file():
        return
    # Older folders do not say in which type networks computed: in float32.
    known = {"precision": "fp32", "judge precision": "fp32"} | json.loads(file.read_text(encoding="utf-8"))
    differences = [
        f"{key} {known.get(key)!r} there and {value!r} now" for key, value in command.items() if known.get(key) != value
    ]
    if differences:
        raise UserError(
            f"{out} is made by another command ({'; '.join(differences)[:300]}); choose a new folder, or repeat that command"
        )


def _write(file: Path, content: bytes, work: Path) -> None:
    """Writes a file with one rename, so that it is never seen half written."""
    temporary = work / "unfinished"
    temporary.write_bytes(content)
    temporary.replace(file)


def _draw(out: Path, work: Path, options: GenerateOptions, registered: RegisteredModel, upstream: Upstream) -> None:
    """Draws batches until every class has its images. The rows of a batch are written to ``work`` after its images; then it counts."""
    counts = ClassCounts(upstream.classes, options.per_class, [0] * len(upstream.classes), [0] * len(upstream.classes))
    for file in batch_files(work):
        counts.add(pd.read_parquet(file))
    counts.check_shares()
    for name in upstream.classes:
        (out / name).mkdir(exist_ok=True)
    draw = _Draw(out, work, options, registered, CandidateScorer(upstream, registered.sample.batch_size))
    total = options.per_class * len(upstream.classes)
    with progress("generate", "image", total, sum(counts.kept)) as bar:
        while not counts.is_complete:
            rows = draw(counts)
            counts.add(rows)
            bar.update(int(rows["kept"].sum()))
            counts.check_shares()


class _Draw:
    """Draws batches one by one, and writes their images and rows to disk."""

    def __init__(
        self, out: Path, work: Path, options: GenerateOptions, registered: RegisteredModel, scorer: CandidateScorer
    ) -> None:
        self.out, self.work, self.options, self.registered, self.scorer = out, work, options, registered, scorer
        self.limit = scorer.limit() if options.drop_memorised else None
        self.prompts = prompts_to_draw(registered.images.model.condition, options.prompts)

    def _values(self, names: list[str], numbers: list[int]) -> list[Value]:
        """What candidates are drawn for: their classes, or the prompts in turn."""
        if self.prompts is not None:
            return [self.prompts[number % len(self.prompts)] for number in numbers]
        condition = self.registered.images.model.condition
        return [None if condition.choices is None else condition.from_request(name) for name in names]

    def __call__(self, counts: ClassCounts) -> pd.DataFrame:
        """The next batch: one row per candidate, with the table's columns and ``kept``."""
        candidates = counts.next_batch(self.registered.sample.batch_size)
        classes, numbers = [index for index, _ in candidates], [number for _, number in candidates]
        names = [counts.classes[index] for index in classes]
        seeds = [derive_seed(self.options.seed, f"generate/{name}", k) for name, k in zip(names, numbers, strict=True)]
        values = self._values(names, numbers)
        sample = self.registered.sample
        (images,) = self.registered.images.sample(values, seeds, sample, sample.batch_size, fill=True)
        files = [png_bytes(image) for image in images]
        facts = {
            "file": [f"{name}/{k:06d}.png" for name, k in zip(names, numbers, strict=True)],
            "class": names,
            "class_index": classes,
            "seed": seeds,
            "model": self.registered.name,
            "model_version": self.registered.version,
            **({} if self.prompts is None else {"prompt": values}),
        }
        digests = [hashlib.sha256(file).hexdigest() for file in files]
        rows = pd.concat([pd.DataFrame(facts), self.scorer(images, classes)], axis=1).assign(sha256=digests)
        validate_table_of(self.out, rows)
        accepted = self._accepted(rows)
        room = rows["class_index"].map(dict(enumerate(counts.per_class - kept for kept in counts.kept)))
        rows["kept"] = accepted & (accepted.groupby(rows["class_index"]).cumsum() <= room)
        for file, content, kept in zip(rows["file"], files, rows["kept"], strict=True):
            if kept:
                _write(self.out / file, content, self.work)
        rows.to_parquet(self.work / "unfinished", index=False)
        (self.work / "unfinished").replace(self.work / f"batch-{counts.num_batches:06d}.parquet")
        return rows

    def _accepted(self, rows: pd.DataFrame) -> pd.Series:
        accepted = pd.Series(True, index=rows.index)
        if self.options.min_confidence is not None:
            accepted &= rows["confidence"] >= self.options.min_confidence
        if self.limit is not None:
            accepted &= rows["nearest_distance"] >= self.limit
        return accepted


def _describe(out: Path, registered: RegisteredModel, options: GenerateOptions, classes: list[str]) -> str:
    balance = (
        f", {options.per_class} in each of {len(classes)} classes," if registered.images.model.condition.choices else ""
    )
    lines = [
        f"{options.per_class * len(classes)} images{balance} by {registered.name} version {registered.version}: {out}"
    ]
    if options.min_confidence is not None or options.drop_memorised:
        looked_at = _looked_at(out, classes)
        total, most = sum(looked_at.values()), max(classes, key=lambda name: looked_at[name])
        lines.append(
            f"kept {options.per_class * len(classes) / total:.1%} of {total} candidates; the lowest share is "
            f"{options.per_class / looked_at[most]:.1%}, of class {most!r}"
        )
    return "\n".join([*lines, f"table: {out / TABLE}; as a data set: data.source: folder, data.root: {out}"])


def _looked_at(out: Path, classes: list[str]) -> dict[str, int]:
    """For each class, the number of candidates up to the last kept one. Files are named by the numbers of their candidates."""
    last = dict.fromkeys(classes, 0)
    for batch in pq.ParquetFile(out / TABLE).iter_batches(columns=["class", "file"]):
        for name, file in zip(batch["class"].to_pylist(), batch["file"].to_pylist(), strict=True):
            last[name] = max(last[name], int(Path(file).stem) + 1)
    return last
