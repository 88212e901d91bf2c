"""Features of whole image sets. Processes share the work, and features are kept on disk, so that an interrupted extraction continues.

There is one file per batch. 1.28 million images of 2,048 features take 10.5 GB, and flipped ones as much again: too much for memory.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from sfd.data.batches import BatchedDataset, read_ahead
from sfd.encoders.judges.judge import Judge
from sfd.errors import UserError
from sfd.evaluation.fidelity import Features, extract
from sfd.evaluation.memorisation import CHUNK
from sfd.network_files import link, write_tensors
from sfd.progress import track

INDEX = "index.json"
FEATURES = ("features",)
"""What is kept of a judge by default: the field of :class:`Features`."""


Views = Callable[[Tensor, Sequence[int]], Sequence[Tensor]]
"""Images uint8 (B, 3, H, W) on a judge's device, and their rows, to what judges see of them: one tensor per view."""


def as_they_are(images: Tensor, _rows: Sequence[int]) -> list[Tensor]:
    """The images, in one view."""
    return [images]


@dataclass(frozen=True)
class Source:
    """Images for judges.

    Attributes:
        images: gives them by row, uint8 (B, 3, H, W).
        views: makes of them what is judged.
        is_stream: the images come from one open file, which only this process can read.
    """

    images: BatchedDataset[Tensor]
    views: Views = as_they_are
    is_stream: bool = False


class FeatureStore:
    """One judge's sets of features by name, in ``folder``, which all processes see.

    The batches do not depend on the number of processes, so the features are the same to the last bit.

    Attributes:
        rows: by set, the rows of its source that it holds, in order: their numbers, which ascend.
        made_of: by set, what its features were made from and which fields are kept, in one digest or text.
        before: a finished store of the same judge; a set that it holds of the same rows, made of the same, is taken over.
    """

    def __init__(
        self,
        folder: Path,
        judge: Judge,
        batch_size: int,
        rank: int,
        world_size: int,
        num_workers: int | None = None,
    ) -> None:
        """``num_workers``: as in :func:`sfd.data.batches.choose_workers`."""
        # Files hold batches, so those of another size cannot be continued; and those of another precision must not be.
        suffix = "" if judge.computed_in == "fp32" else f"-{judge.computed_in}"
        self.root, self.folder = folder, folder / f"by-{batch_size}{suffix}"
        self.judge, self.batch_size = judge, batch_size
        self.rank, self.world_size, self.num_workers = rank, world_size, num_workers
        self.device = judge.device
        self.rows: dict[str, Sequence[int]] = {}
        self.made_of: dict[str, str] = {}
        self.before: FeatureStore | None = None

    @classmethod
    def opened(cls, folder: Path, judge: Judge) -> "FeatureStore":
        """The store that :meth:`finish` left in ``folder``. Raises :class:`UserError` if it is missing, another judge's, or of a judge that
        computed in another precision."""
        file = folder / INDEX
        index = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if index.get("judge") != judge.digest:
            raise UserError(f"{folder} holds no features of judge `{judge.name}`; run `dvc repro reference`")
        precision = index.get("precision", "fp32")
        if precision != judge.computed_in:
            raise UserError(
                f"judge `{judge.name}` computed in {precision} when it saw the images of {folder}, and would see samples in {judge.computed_in} "
                f"here, so they cannot be compared; set runtime.evaluate.precision to {precision}, or run `dvc repro -f -s reference`"
            )
        found = cls(folder, judge, index["batch_size"], 0, 1)
        found.rows = {name: range(rows) if isinstance(rows, int) else rows for name, rows in index["rows"].items()}
        found.made_of = index["made_of"]
        return found

    def finish(self) -> None:
        """Writes what :meth:`opened` reads, and removes what an interrupted extraction in batches of another size has left."""
        for folder in self.root.glob("by-*"):
            if folder != self.folder:
                shutil.rmtree(folder)
        rows = {name: len(each) if each == range(len(each)) else list(each) for name, each in self.rows.items()}
        facts = {
            "judge": self.judge.digest,
            "precision": self.judge.computed_in,
            "batch_size": self.batch_size,
            "rows": rows,
            "made_of": self.made_of,
        }
        (self.root / INDEX).write_text(json.dumps(facts) + "\n", encoding="utf-8")

    def fill(self, names: Sequence[str], rows: Sequence[int], source: Source, keep: Sequence[str] = FEATURES) -> None:
        """:func:`fill` for this store alone; ``keep``: which fields of :class:`Features`."""
        fill([self], names, rows, source, {self.judge.name: keep})

    def has(self, name: str, rows: Sequence[int]) -> bool:
        """Whether the set holds these rows of its source."""
        held = self.rows.get(name)
        return held is not None and (held == rows or set(rows) <= set(held))

    def begin(self, name: str, rows: Sequence[int], made_of: str) -> None:
        """Begins or continues a set, with the files of :attr:`before` where that holds the same."""
        self.rows[name], self.made_of[name], old = rows, made_of, self.before
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        if (
            old is not None
            and old.batch_size == self.batch_size
            and old.made_of.get(name) == made_of
            and list(old.rows[name]) == list(rows)
        ):
            for file in (old.folder / name).iterdir():
                if not (folder / file.name).exists():
                    link(file, folder / file.name)

    def lacks(self, names: Sequence[str], start: int) -> bool:
        """Whether a batch is still to be extracted."""
        return not all(self._file(name, start).exists() for name in names)

    def write(self, names: Sequence[str], start: int, views: Sequence[Tensor], keep: Sequence[str]) -> None:
        """Extracts one batch, whose images on the judge's device are given by view, and keeps some fields of its :class:`Features`."""
        for name, images in zip(names, views, strict=True):
            file = self._file(name, start)
            spatial = "spatial" in keep and self.judge.num_spatial_features > 0
            found = vars(extract(self.judge, [images], spatial))
            part = file.with_suffix(".part")
            write_tensors(part, {key: value for key, value in found.items() if key in keep and value is not None})
            os.replace(part, file)

    def forget(self, name: str) -> None:
        """Removes a set."""
        shutil.rmtree(self.folder / name)

    def read(self, name: str, rows: Sequence[int] | None = None) -> Features:
        """A whole set, or the features of these rows of its source, which must ascend."""
        held = self.rows[name]
        if rows is None:
            places: Sequence[int] = range(len(held))
        else:
            place_of = {row: place for place, row in enumerate(held)}
            places = [place_of[row] for row in rows]
        parts = [
            _features(self._file(name, start)).take([place - start for place in wanted])
            for start, wanted in groupby(places, key=lambda place: place // self.batch_size * self.batch_size)
        ]
        columns = zip(*((part.features, part.logits, part.spatial) for part in parts), strict=True)
        features, logits, spatial = (
            None if column[0] is None else torch.cat([each for each in column if each is not None])
            for column in columns
        )
        assert features is not None
        return Features(features, logits, spatial)

    def blocks(self, names: Sequence[str]) -> Iterator[Tensor]:
        """Features of several sets, one set after another, in blocks of about :data:`CHUNK` rows."""
        waiting: list[Tensor] = []
        for name in names:
            for start in range(0, len(self.rows[name]), self.batch_size):
                waiting.append(_features(self._file(name, start)).features)
                if sum(map(len, waiting)) >= CHUNK:
                    yield torch.cat(waiting)
                    waiting = []
        if waiting:
            yield torch.cat(waiting)

    def _file(self, name: str, start: int) -> Path:
        return self.folder / name / f"{start:09d}.safetensors"


def fill(
    stores: Sequence[FeatureStore],
    names: Sequence[str],
    rows: Sequence[int],
    source: Source,
    keep: Mapping[str, Sequence[str]] | None = None,
    made_of: str = "",
) -> None:
    """Extracts this process's share of the batches, except those that are on disk already. All judges see the images that are loaded once.

    Other processes write the other batches, so wait at a barrier before you read.

    Args:
        stores: one per judge, on one device and with batches of one size. None: nothing is done.
        names: of the sets, one per view.
        rows: of the images in their source, ascending.
        source: gives the images in some of these rows.
        keep: by judge, which fields of :class:`Features` to keep, where that is more than the features; logits of all of ImageNet
            would take another 5 GB.
        made_of: a digest of what the features are made of, apart from the judge.
    """
    for store in stores:
        fields = (keep or {}).get(store.judge.name, FEATURES)
        for name in names:
            store.begin(name, rows, " ".join([made_of, *fields]))
    if not stores:
        return
    first = stores[0]
    size = first.batch_size
    starts = [
        start
        for start in range(first.rank * size, len(rows), first.world_size * size)
        if any(store.lacks(names, start) for store in stores)
    ]
    order = [list(rows[start : start + size]) for start in starts]
    with read_ahead(source.images, order, 0 if source.is_stream else first.num_workers) as batches:
        shown = track(batches, f"features of {names[0]}", "batch", len(starts))
        for start, chosen, images in zip(starts, order, shown, strict=True):
            views = source.views(images.to(first.device, non_blocking=True), chosen)
            for store in stores:
                if store.lacks(names, start):
                    store.write(names, start, views, (keep or {}).get(store.judge.name, FEATURES))


def _features(file: Path) -> Features:
    found = load_file(file)
    return Features(found["features"], found.get("logits"), found.get("spatial"))
