"""Features of whole image sets. Processes share the work, and features are kept on disk, so that an interrupted extraction continues.

There is one file per batch. 1.28 million images of 2,048 features take 10.5 GB, and flipped ones as much again: too much for memory.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from sfd.encoders.judges.judge import Judge
from sfd.evaluation.fidelity import Features, extract
from sfd.evaluation.memorisation import CHUNK
from sfd.network_files import write_tensors
from sfd.progress import track

Load = Callable[[range], Sequence[Tensor]]
"""Maps rows of a set to images uint8 (B, 3, H, W), one tensor per view: the images, and, where wanted, their horizontal flips."""


class FeatureStore:
    """Sets of features by name, in ``folder``, which all processes see.

    The batches do not depend on the number of processes, so the features are the same to the last bit.
    """

    def __init__(self, folder: Path, judge: Judge, batch_size: int, rank: int, world_size: int) -> None:
        # Files hold batches, so those of another size cannot be continued.
        self.folder, self.judge, self.batch_size = folder / f"by-{batch_size}", judge, batch_size
        self.rank, self.world_size = rank, world_size
        self.device = judge.device
        self.num_images: dict[str, int] = {}

    def fill(self, names: Sequence[str], num_images: int, load: Load, keep: Sequence[str] = ("features",)) -> None:
        """Extracts this process's share of the batches, except those that are on disk already. ``names``: one per view.

        ``keep``: which fields of :class:`Features` to keep; logits of all of ImageNet would take another 5 GB.
        Other processes write the other batches, so wait at a barrier before you read.
        """
        for name in names:
            self.num_images[name] = num_images
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        starts = range(self.rank * self.batch_size, num_images, self.world_size * self.batch_size)
        for start in track(starts, f"features of {names[0]}", "batch", len(starts)):
            files = [self._file(name, start) for name in names]
            if all(file.exists() for file in files):
                continue
            views = load(range(start, min(start + self.batch_size, num_images)))
            for file, images in zip(files, views, strict=True):
                found = vars(extract(self.judge, [images.to(self.device)], "spatial" in keep))
                part = file.with_suffix(".part")
                write_tensors(part, {key: value for key, value in found.items() if key in keep and value is not None})
                os.replace(part, file)

    def forget(self, name: str) -> None:
        """Removes a set."""
        shutil.rmtree(self.folder / name)

    def read(self, name: str, rows: Sequence[int] | None = None) -> Features:
        """A whole set, or these of its rows, which must ascend."""
        rows = range(self.num_images[name]) if rows is None else rows
        parts = [
            _features(self._file(name, start)).take([row - start for row in wanted])
            for start, wanted in groupby(rows, key=lambda row: row // self.batch_size * self.batch_size)
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
            for start in range(0, self.num_images[name], self.batch_size):
                waiting.append(_features(self._file(name, start)).features)
                if sum(map(len, waiting)) >= CHUNK:
                    yield torch.cat(waiting)
                    waiting = []
        if waiting:
            yield torch.cat(waiting)

    def _file(self, name: str, start: int) -> Path:
        return self.folder / name / f"{start:09d}.safetensors"


def _features(file: Path) -> Features:
    found = load_file(file)
    return Features(found["features"], found.get("logits"), found.get("spatial"))
