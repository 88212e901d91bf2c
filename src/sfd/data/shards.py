"""Sharded safetensors: each shard is written by one rank, in one rename; they are resumed, and checked by sha256."""

import json
import math
import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor

from sfd.data.batches import in_batches
from sfd.errors import UserError
from sfd.network_files import file_digest, write_tensors
from sfd.progress import Progress

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Facts = TypeVar("Facts", bound="DataclassInstance")
"""What the index of a set of shards says about all of its images: a frozen dataclass of plain values."""
Shard = dict[str, Tensor]
DTYPES = {"F16": torch.float16, "F32": torch.float32, "I64": torch.int64, "U8": torch.uint8}
"""The types of tensors in our shards, by their names in safetensors."""


BAD_HEADER = (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError)
"""What reading the header of a damaged shard raises."""


def shard_bounds(num_images: int, shard_size: int) -> list[tuple[int, int]]:
    """First and past-the-last image of every shard."""
    return [(start, min(start + shard_size, num_images)) for start in range(0, num_images, shard_size)]


def missing_shards(
    folder: Path, bounds: list[tuple[int, int]], rank: int, world_size: int, shown: Progress | None = None
) -> list[int]:
    """The shards of this process that are not there yet, or whose checksum is wrong; shard k belongs to rank ``k % world_size``.

    ``shown``: hears of the images whose shards are there.
    """
    missing = []
    for number in range(rank, len(bounds), world_size):
        if not _is_complete(folder / shard_name(number)):
            missing.append(number)
        elif shown is not None:
            shown.skip(bounds[number][1] - bounds[number][0])
    return missing


def rows_to_read(
    rows: Sequence[int], bounds: list[tuple[int, int]], numbers: Iterable[int], size: int
) -> list[list[int]]:
    """The batches of which the shards of these numbers are made, ``size`` rows at most in each. None spans two shards.

    ``rows``: those of all shards in their source.
    """
    return [batch for number in numbers for batch in in_batches(rows[slice(*bounds[number])], size)]


def write_shards(
    folder: Path, bounds: list[tuple[int, int]], make: Callable[[int, int], Shard], numbers: Iterable[int]
) -> None:
    """Makes the shards of these numbers, in order.

    A shard depends on its bounds alone, so any number of processes writes the same bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        file = folder / shard_name(number)
        temporary = file.with_suffix(".tmp")
        write_tensors(temporary, make(*bounds[number]))
        digest = file_digest(temporary)
        temporary.replace(file)
        _checksum_file(file).write_text(digest, encoding="utf-8")


@dataclass(frozen=True)
class ShardFile:
    """One shard, as the index names it."""

    file: str
    num_images: int
    sha256: str


def write_index(folder: Path, bounds: list[tuple[int, int]], facts: "DataclassInstance") -> None:
    """Closes a set of shards: ``index.json`` with every file, its images and its sha256, beside ``facts``.

    The checksum files stay, so that a stage that is killed after this point does not make its shards again.
    """
    shards = []
    for number, (start, end) in enumerate(bounds):
        file = folder / shard_name(number)
        shards.append(ShardFile(file.name, end - start, _checksum_file(file).read_text(encoding="utf-8")))
    index = asdict(facts) | {"num_images": bounds[-1][1], "shards": [asdict(shard) for shard in shards]}
    (folder / "index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def share_of(bounds: list[tuple[int, int]], rank: int, world_size: int) -> int:
    """Images in the shards of this process."""
    return sum(end - start for start, end in bounds[rank::world_size])


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:05d}.safetensors"


def _checksum_file(file: Path) -> Path:
    return file.with_suffix(".sha256")


def _is_complete(file: Path) -> bool:
    checksum = _checksum_file(file)
    return file.is_file() and checksum.is_file() and checksum.read_text(encoding="utf-8") == file_digest(file)


class ShardReader(Generic[Facts]):
    """Reads rows of a closed set of shards. Nothing is loaded but the rows asked for.

    Rows are read at their place in the file. A slice of ``safe_open`` is a view of a memory map, whose pages stay in a process once they
    were read: its resident memory would grow with the rows that it has seen, and a file that is cut short would end it by SIGBUS.

    Attributes:
        facts: what the index says about all images.
        shards: the files, in order.
    """

    def __init__(self, folder: Path, facts: type[Facts]) -> None:
        """Opens the shards in ``folder``, without a look into them.

        Raises:
            UserError: the index is missing or lacks one of the ``facts``, or a shard is missing; it is named.
        """
        index_file = folder / "index.json"
        if not index_file.is_file():
            raise UserError(
                f"{index_file} is missing, so these shards are not complete; rerun the stage that writes {folder}"
            )
        index: dict[str, Any] = json.loads(index_file.read_text(encoding="utf-8"))
        try:
            # What has a default was added later: older shards do not have it.
            needed = [field.name for field in fields(facts) if field.default is MISSING or field.name in index]
            self.facts = facts(**{name: index[name] for name in needed})
        except KeyError as error:
            raise UserError(f"{index_file} has no {error}; rerun the stage that writes {folder}") from None
        self.shards = [ShardFile(**shard) for shard in index["shards"]]
        self.folder = folder
        self._ends = list(accumulate(shard.num_images for shard in self.shards))
        for shard in self.shards:
            if not (folder / shard.file).is_file():
                raise self._damaged(shard)
        self._open: dict[int, _OpenShard] = {}

    def check(self, rank: int = 0, world_size: int = 1, notes: Path | None = None) -> None:
        """Compares the sha256 of every shard with that in the index. Of ``world_size`` processes, each one checks its share.

        Args:
            notes: a folder that keeps which shards were whole. They are not read again until their size or time of change is another.

        Raises:
            UserError: a shard is damaged; it is named.
        """
        for shard in self.shards[rank::world_size]:
            file = self.folder / shard.file
            state = file.stat()
            known = f"{shard.sha256} {state.st_size} {state.st_mtime_ns}"
            note = None if notes is None else notes / f"{self.folder.name}-{shard.file}.txt"
            if note is not None and note.is_file() and note.read_text(encoding="utf-8") == known:
                continue
            if file_digest(file) != shard.sha256:
                raise self._damaged(shard)
            if note is not None:
                note.parent.mkdir(parents=True, exist_ok=True)
                note.write_text(known, encoding="utf-8")

    def _damaged(self, shard: ShardFile) -> UserError:
        return UserError(
            f"{self.folder / shard.file} is missing or damaged (its sha256 is not the one in index.json); rerun the stage that writes "
            f"{self.folder}"
        )

    def __len__(self) -> int:
        return self._ends[-1]

    def __getstate__(self) -> dict[str, Any]:
        """Open files stay behind where a data loader's worker gets a pickled copy."""
        return self.__dict__ | {"_open": {}}

    def rows(self, name: str, images: list[int], views: list[int] | None = None) -> list[Tensor]:
        """Rows of tensor ``name``, one per requested image. ``views``: only that entry of each row's first dimension."""
        found = []
        for n, image in enumerate(images):
            number = bisect_right(self._ends, image)
            row = image - (self._ends[number - 1] if number else 0)
            found.append(self._file(number).read(name, row, None if views is None else views[n]))
        return found

    def span(self, name: str, image: int, start: int, count: int) -> Tensor:
        """Entries ``start`` to ``start + count`` of the first dimension of tensor ``name`` in the shard that holds an image."""
        return self._file(bisect_right(self._ends, image)).span(name, start, count)

    def _file(self, number: int) -> "_OpenShard":
        if number not in self._open:
            try:
                self._open[number] = _OpenShard(self.folder / shard_name(number))
            except BAD_HEADER:
                raise self._damaged(self.shards[number]) from None
        return self._open[number]


class _OpenShard:
    """A safetensors file: 8 bytes with the header's length, the header in JSON, the tensors' bytes."""

    def __init__(self, file: Path) -> None:
        self.stream = file.open("rb", buffering=0)
        header = int.from_bytes(self.stream.read(8), "little")
        found = json.loads(self.stream.read(header))
        found.pop("__metadata__", None)
        self.tensors = {
            name: (DTYPES[facts["dtype"]], tuple(facts["shape"]), 8 + header + int(facts["data_offsets"][0]))
            for name, facts in found.items()
        }

    def read(self, name: str, row: int, view: int | None) -> Tensor:
        """A row of the tensor's first dimension, or an entry of the row's first dimension."""
        shape = self.tensors[name][1]
        if view is None:
            return self._at(name, row * math.prod(shape[1:]), shape[1:])
        return self._at(name, (row * shape[1] + view) * math.prod(shape[2:]), shape[2:])

    def span(self, name: str, start: int, count: int) -> Tensor:
        """Entries of the tensor's first dimension, one behind the other."""
        inner = self.tensors[name][1][1:]
        return self._at(name, start * math.prod(inner), (count, *inner))

    def _at(self, name: str, place: int, shape: tuple[int, ...]) -> Tensor:
        """The values behind the first ``place`` values of the tensor."""
        dtype, _, start = self.tensors[name]
        num_bytes = math.prod(shape) * dtype.itemsize
        data = bytearray(num_bytes)
        first = start + place * dtype.itemsize
        if os.preadv(self.stream.fileno(), [data], first) != num_bytes:
            raise UserError(f"{self.stream.name} was cut short while it was read; rerun the stage that writes it")
        return (torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)).reshape(shape)
