"""Batches read by other processes: the same as without, and nothing left behind. As a script, this file is a process that reads."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor

from sfd.data import batches
from sfd.data.batches import FEW_IMAGES, choose_workers, in_batches, read_ahead, read_batches
from sfd.data.files import FolderStore
from sfd.data.images import ManifestImages
from sfd.errors import UserError
from sfd.network_files import file_digest

NUM_IMAGES = 17


def images_in(folder: Path) -> ManifestImages:
    """Some JPEG files, each of another size and colour."""
    folder.mkdir(exist_ok=True)
    for number in range(NUM_IMAGES):
        size = (40 + number, 30 + 2 * number)
        Image.effect_mandelbrot(size, (-2.0, -1.5, 1.0, 1.5), 10 + number).convert("RGB").save(
            folder / f"{number:02d}.jpg"
        )
    files = sorted(folder.iterdir())
    table = pd.DataFrame({"sha256": map(file_digest, files), "class_index": range(NUM_IMAGES)})
    return ManifestImages(table, FolderStore(folder, [file.name for file in files]), 16, 10_000)


class Threads:
    """The number of threads that torch computes with where a batch is read."""

    def __len__(self) -> int:
        return 4

    def __getitems__(self, indices: list[int]) -> Tensor:
        return torch.tensor([torch.get_num_threads()] * len(indices))


class Slow:
    """Rows that take a moment each; the process that reads leaves its id in the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __len__(self) -> int:
        return 10_000

    def __getitems__(self, indices: list[int]) -> Tensor:
        (self.folder / f"{os.getpid()}.pid").touch()
        time.sleep(0.05)
        return torch.tensor(indices)


def read_slowly(folder: Path) -> None:
    with read_batches(Slow(folder), in_batches(range(10_000), 1), 2) as read:
        for _ in read:
            pass


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_batches_read_by_other_processes_are_those_of_this_one_in_their_order(tmp_path: Path, num_workers: int) -> None:
    images, order = images_in(tmp_path / "images"), in_batches([3, 1, 16, 8, 8, 0, 5], 2)
    with read_ahead(images, order, 0) as expected, read_ahead(images, order, num_workers) as found:
        for wanted, given in zip(expected, found, strict=True):
            assert torch.equal(wanted.images, given.images) and torch.equal(wanted.class_indices, given.class_indices)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_image_that_changed_is_the_same_one_line_in_another_process(tmp_path: Path, num_workers: int) -> None:
    images = images_in(tmp_path / "images")
    (tmp_path / "images" / "05.jpg").write_bytes(b"another file")
    with (
        pytest.raises(
            UserError, match=r"^\S*/05\.jpg has changed since stage `prepare` \(its content is another one\);"
        ),
        read_ahead(images, in_batches(range(NUM_IMAGES), 4), num_workers) as found,
    ):
        assert [len(batch.images) for batch in found] == []


def test_processes_that_read_compute_with_one_thread_each() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with read_batches(Threads(), [[0, 1], [2, 3]], 2) as found:
            assert [batch.tolist() for batch in found] == [[1, 1], [1, 1]]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_processes_that_read_end_with_the_one_that_started_them(tmp_path: Path, number: signal.Signals) -> None:
    from support import script_environment  # not in the processes that run this file as a script

    process = subprocess.Popen(["python", __file__, str(tmp_path)], env=script_environment(), stderr=subprocess.PIPE)
    end = time.monotonic() + 120
    while len(list(tmp_path.glob("*.pid"))) < 2:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    readers = [int(file.stem) for file in tmp_path.glob("*.pid")]
    assert process.pid not in readers and all(map(_runs, readers))
    process.send_signal(number)
    process.wait(30)
    end = time.monotonic() + 30  # torch's workers look every 5 s whether their parent is there
    while any(map(_runs, readers)):
        assert time.monotonic() < end, "a process that reads has outlived the one that started it"
        time.sleep(0.1)


def _runs(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# --- how many ---


@pytest.mark.parametrize("own", [0, 1, 7])
def test_a_number_that_is_given_counts_however_few_images_there_are(own: int) -> None:
    assert choose_workers(own, Threads(), 1, 1) == own


@pytest.mark.parametrize(
    ("cores", "processes", "num_images", "expected"),
    [
        (8, 1, FEW_IMAGES, 8),
        (8, 1, FEW_IMAGES - 1, 0),
        (8, 2, FEW_IMAGES, 4),
        (2, 2, FEW_IMAGES, 0),
        (3, 8, FEW_IMAGES, 0),
    ],
)
def test_without_a_number_every_core_of_this_process_reads_unless_there_is_only_one_or_little_to_read(
    monkeypatch: pytest.MonkeyPatch, cores: int, processes: int, num_images: int, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(cores)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    monkeypatch.setattr(batches.shutil, "disk_usage", lambda _path: SimpleNamespace(free=2**40))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_workers(None, Threads(), num_images, 10) == expected


def test_without_a_number_no_process_is_started_where_processes_are_not_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    monkeypatch.setattr(sys, "platform", "darwin")
    assert choose_workers(None, Threads(), FEW_IMAGES, 10) == 0


def test_on_a_single_core_one_process_reads_while_a_gpu_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0})
    monkeypatch.setattr(batches.shutil, "disk_usage", lambda _path: SimpleNamespace(free=2**40))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_workers(None, Threads(), FEW_IMAGES, 10) == 1


@pytest.mark.parametrize(("batches_that_fit", "expected"), [(100, 8), (7, 2), (3, 1), (2, 0)])
def test_without_a_number_there_are_no_more_than_shared_memory_has_room_for(
    monkeypatch: pytest.MonkeyPatch, batches_that_fit: int, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    row = Threads().__getitems__([0]).nbytes
    monkeypatch.setattr(batches.shutil, "disk_usage", lambda _path: SimpleNamespace(free=10 * row * batches_that_fit))
    assert choose_workers(None, Threads(), FEW_IMAGES, 10) == expected


if __name__ == "__main__":
    read_slowly(Path(sys.argv[1]))
