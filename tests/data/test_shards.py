"""Sharded tensors on disk."""

import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from sfd.data.shards import Shard, ShardReader, missing_shards, shard_bounds, write_index, write_shards
from sfd.errors import UserError
from sfd.network_files import file_digest

BOUNDS = shard_bounds(23, 5)


@dataclass(frozen=True)
class Facts:
    """What an index says about all images."""

    num_views: int = 2


READ_SOME_ROWS = """
import re, sys
from pathlib import Path
from dataclasses import dataclass
from sfd.data.shards import ShardReader

@dataclass(frozen=True)
class Facts:
    num_views: int

def resident_mib():
    return int(re.search(r"VmRSS:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

reader = ShardReader(Path(sys.argv[1]), Facts)
before = resident_mib()
rows = reader.rows("big", list(range(0, 64, 4)))
assert all(float(row[0]) == 4 * n for n, row in enumerate(rows))
print(resident_mib() - before)
"""


class Maker:
    """Makes shards whose rows say which image they are of, and counts."""

    def __init__(self, fail_at: int = -1) -> None:
        self.made: list[int] = []
        self.fail_at = fail_at

    def __call__(self, start: int, end: int) -> Shard:
        if start == self.fail_at:
            raise KeyboardInterrupt
        self.made.append(start)
        images = torch.arange(start, end)
        views = (images[:, None, None] * 10 + torch.arange(2)[:, None]).expand(-1, -1, 3).float()
        return {"values": views.contiguous(), "labels": images % 4}


def make_missing(folder: Path, maker: Maker, rank: int = 0, ranks: int = 1) -> None:
    write_shards(folder, BOUNDS, maker, missing_shards(folder, BOUNDS, rank, ranks))


def write(folder: Path, ranks: int = 1, order: list[int] | None = None) -> Path:
    for rank in order or range(ranks):
        make_missing(folder, Maker(), rank, ranks)
    write_index(folder, BOUNDS, Facts())
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def damage(file: Path) -> None:
    """Changes one bit near the end."""
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)


def test_bounds_cover_every_image_once_and_the_last_shard_is_shorter() -> None:
    assert BOUNDS == [(0, 5), (5, 10), (10, 15), (15, 20), (20, 23)]
    assert shard_bounds(10, 5) == [(0, 5), (5, 10)]
    assert shard_bounds(3, 5) == [(0, 3)]


@pytest.mark.parametrize("order", [[0, 1], [1, 0], [2, 0, 1], [7, 6, 5, 4, 3, 2, 1, 0]])
def test_any_number_of_processes_in_any_order_writes_the_same_bytes(tmp_path: Path, order: list[int]) -> None:
    assert content(write(tmp_path / "one")) == content(write(tmp_path / "many", len(order), order))


def test_a_run_that_was_ended_between_shards_makes_only_the_missing_ones(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        make_missing(tmp_path / "cut", Maker(fail_at=10))
    resumed = Maker()
    make_missing(tmp_path / "cut", resumed)
    assert resumed.made == [10, 15, 20]
    write_index(tmp_path / "cut", BOUNDS, Facts())
    assert content(tmp_path / "cut") == content(write(tmp_path / "whole"))


def test_damaged_unconfirmed_and_half_written_shards_are_made_anew_and_no_others(tmp_path: Path) -> None:
    whole, mended = write(tmp_path / "whole"), write(tmp_path / "mended")
    damage(mended / "shard-00001.safetensors")
    (mended / "shard-00003.sha256").unlink()  # killed between the shard and its checksum
    (mended / "shard-00004.safetensors").rename(mended / "shard-00004.tmp")  # killed before the rename
    maker = Maker()
    make_missing(mended, maker)
    assert maker.made == [5, 15, 20]
    write_index(mended, BOUNDS, Facts())
    assert content(mended) == content(whole)


def test_a_run_that_was_ended_after_the_index_makes_nothing_anew(tmp_path: Path) -> None:
    maker = Maker()
    make_missing(write(tmp_path), maker)
    assert maker.made == []


def test_rows_come_in_the_order_asked_for_across_shards(tmp_path: Path) -> None:
    reader = ShardReader(write(tmp_path), Facts)
    images = [22, 0, 4, 5, 9, 10, 0, 19, 20]
    rows = reader.rows("values", images)
    assert [row.tolist() for row in rows] == [[[image * 10.0] * 3, [image * 10.0 + 1] * 3] for image in images]
    assert len(reader) == 23
    assert reader.facts == Facts(2)


def test_a_single_view_of_each_row_can_be_asked_for(tmp_path: Path) -> None:
    rows = ShardReader(write(tmp_path), Facts).rows("values", [7, 21, 7], [1, 0, 0])
    assert [row.tolist() for row in rows] == [[71.0] * 3, [210.0] * 3, [70.0] * 3]


def test_a_row_beyond_the_last_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="shard-00005"):
        ShardReader(write(tmp_path), Facts).rows("values", [23])


def test_rows_of_one_number_are_read_too(tmp_path: Path) -> None:
    labels = ShardReader(write(tmp_path), Facts).rows("labels", list(range(23)))
    assert torch.equal(torch.stack(labels), torch.arange(23) % 4)


def test_a_reader_with_open_files_can_be_sent_to_another_process(tmp_path: Path) -> None:
    reader = ShardReader(write(tmp_path), Facts)
    reader.rows("labels", [22])
    copy = pickle.loads(pickle.dumps(reader))
    assert torch.equal(copy.rows("values", [11])[0], reader.rows("values", [11])[0])


def test_a_damaged_shard_is_named_by_the_check(tmp_path: Path) -> None:
    reader = ShardReader(write(tmp_path), Facts)
    reader.check()
    damage(tmp_path / "shard-00002.safetensors")
    with pytest.raises(UserError, match=r"shard-00002\.safetensors is missing or damaged .*; rerun the stage"):
        reader.check()


def test_a_shard_that_was_whole_is_read_for_its_check_once_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def digest(file: Path) -> str:
        read.append(file.name)
        return file_digest(file)

    monkeypatch.setattr("sfd.data.shards.file_digest", digest)
    write(tmp_path / "shards")
    read.clear()
    for rank in (0, 1):  # two processes, then one
        ShardReader(tmp_path / "shards", Facts).check(rank, 2, tmp_path / "notes")
    assert sorted(read) == [f"shard-0000{number}.safetensors" for number in range(5)]
    ShardReader(tmp_path / "shards", Facts).check(notes=tmp_path / "notes")
    assert len(read) == 5
    damage(tmp_path / "shards" / "shard-00003.safetensors")
    with pytest.raises(UserError, match=r"shard-00003\.safetensors is missing or damaged"):
        ShardReader(tmp_path / "shards", Facts).check(notes=tmp_path / "notes")
    assert read[5:] == ["shard-00003.safetensors"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: data[:8] + b"{]" + data[10:],
        lambda _: b"",
        lambda data: data[:40],
    ],
)
def test_a_shard_whose_header_is_damaged_is_named_where_it_is_read(
    tmp_path: Path, spoil: Callable[[bytes], bytes]
) -> None:
    reader = ShardReader(write(tmp_path), Facts)
    file = tmp_path / "shard-00001.safetensors"
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(UserError, match=r"shard-00001\.safetensors is missing or damaged"):
        reader.rows("values", [6])


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    (write(tmp_path) / "shard-00004.safetensors").unlink()
    with pytest.raises(UserError, match=r"shard-00004\.safetensors is missing or damaged"):
        ShardReader(tmp_path, Facts)


def test_processes_share_the_check_of_the_shards_and_together_they_check_all(tmp_path: Path) -> None:
    for number in range(len(BOUNDS)):
        folder = write(tmp_path / str(number))
        damage(folder / f"shard-{number:05d}.safetensors")
        stopped = 0
        for rank in range(2):
            try:
                ShardReader(folder, Facts).check(rank, 2)
            except UserError as error:
                assert f"shard-{number:05d}" in str(error)
                stopped += 1
        assert stopped == 1


def test_a_shard_that_is_cut_short_after_its_check_is_named(tmp_path: Path) -> None:
    reader = ShardReader(write(tmp_path), Facts)
    file = tmp_path / "shard-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"shard-00000\.safetensors was cut short"):
        reader.rows("values", [4])


def test_shards_without_an_index_are_not_complete(tmp_path: Path) -> None:
    make_missing(tmp_path, Maker())
    with pytest.raises(UserError, match=r"index\.json is missing, so these shards are not complete; rerun"):
        ShardReader(tmp_path, Facts)
    write_index(tmp_path, BOUNDS, Facts())
    assert len(ShardReader(tmp_path, Facts)) == 23


def test_an_index_that_lacks_a_fact_is_refused_with_its_name(tmp_path: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class More(Facts):
        grid: int

    with pytest.raises(UserError, match=r"index\.json has no 'grid'; rerun the stage"):
        ShardReader(write(tmp_path), More)


def test_an_index_that_is_older_than_a_fact_gets_what_the_fact_was_then(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Later(Facts):
        precision: str = "fp32"

    assert ShardReader(write(tmp_path), Later).facts.precision == "fp32"
    write_index(tmp_path, BOUNDS, Later(precision="bf16"))
    assert ShardReader(tmp_path, Later).facts.precision == "bf16"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
def test_reading_some_rows_of_a_large_shard_does_not_load_it(tmp_path: Path) -> None:
    bounds = shard_bounds(64, 64)
    rows = torch.arange(64, dtype=torch.float32)[:, None].expand(-1, 2**18)
    write_shards(tmp_path, bounds, lambda start, end: {"big": rows[start:end].contiguous()}, range(len(bounds)))
    write_index(tmp_path, bounds, Facts())
    done = subprocess.run([sys.executable, "-c", READ_SOME_ROWS, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 32.0, "16 rows of 1 MiB out of a shard of 64 MiB"
