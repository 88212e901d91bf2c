"""Features on disk: the same whoever extracts them and however often the extraction is interrupted."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfd.encoders.judges.judge import Judge
from sfd.evaluation.extraction import FeatureStore, Source
from sfd.evaluation.fidelity import extract

IMAGES = torch.randint(0, 256, (23, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


class SmallJudge(Judge):
    """A random network with spatial features. ``shown``: how many images it has seen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.name, self.digest, self.classes, self.num_features = "inception", "0" * 64, None, 5
        self.num_spatial_features, self.shown = 6, 0
        self.conv, self.head = nn.Conv2d(3, 5, 3), nn.Linear(5, 4)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features, logits, _ = self.with_spatial(images)
        return features, logits

    def with_spatial(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.shown += len(images)
        maps = self.conv(images.float() / 64).relu()
        features = maps.mean(dim=(2, 3))
        return features, self.head(features), maps[:, 0, 0]


class Given:
    """:data:`IMAGES`. ``loaded``: the rows of each batch that was asked for. The batch that begins with row ``broken_at`` cannot be had."""

    def __init__(self, broken_at: int = -1) -> None:
        self.broken_at = broken_at
        self.loaded: list[list[int]] = []

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitems__(self, indices: list[int]) -> Tensor:
        if indices[0] == self.broken_at:
            raise KeyboardInterrupt
        self.loaded.append(indices)
        return IMAGES[indices]


def store(
    folder: Path, judge: Any, rank: int = 0, world_size: int = 1, batch_size: int = 5, num_workers: int | None = None
) -> FeatureStore:
    return FeatureStore(folder, judge, batch_size, rank, world_size, num_workers)


@pytest.mark.parametrize(("num_workers", "ranks"), [(1, 1), (2, 1), (2, 2)])
def test_reading_processes_change_no_byte(tmp_path: Path, num_workers: int, ranks: int) -> None:
    for name, workers, processes in (("without", 0, 1), ("with", num_workers, ranks)):
        for rank in range(processes):
            filled = store(tmp_path / name, SmallJudge(), rank, processes, num_workers=workers)
            filled.fill(["x"], range(len(IMAGES)), Source(Given()), ["features", "spatial"])
    for file in (tmp_path / "without" / "by-5" / "x").iterdir():
        assert file.read_bytes() == (tmp_path / "with" / "by-5" / "x" / file.name).read_bytes()


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_any_number_of_processes_share_the_work_and_give_the_features_of_one(tmp_path: Path, ranks: int) -> None:
    judge, seen = SmallJudge(), []
    for rank in range(ranks):
        filled = store(tmp_path, judge, rank, ranks)
        before = judge.shown
        filled.fill(["x"], range(len(IMAGES)), Source(Given()), ["features", "logits", "spatial"])
        seen.append(judge.shown - before)
    assert sum(seen) == len(IMAGES) and max(seen) <= -(-5 // ranks) * 5
    expected = extract(judge, IMAGES.split(5), spatial=True)
    found = filled.read("x")
    assert torch.equal(found.features, expected.features)
    assert torch.equal(found.logits, expected.logits) and torch.equal(found.spatial, expected.spatial)


def test_an_interrupted_extraction_goes_on_where_it_was(tmp_path: Path) -> None:
    judge = SmallJudge()

    with pytest.raises(KeyboardInterrupt):
        store(tmp_path, judge).fill(["x"], range(len(IMAGES)), Source(Given(broken_at=15)))
    assert judge.shown == 15
    (tmp_path / "by-5" / "x" / "000000015.part").write_bytes(b"half of a file")
    resumed = store(tmp_path, judge)
    resumed.fill(["x"], range(len(IMAGES)), Source(Given()))
    assert judge.shown == len(IMAGES)
    assert torch.equal(resumed.read("x").features, extract(SmallJudge(), IMAGES.split(5)).features)


@pytest.mark.parametrize("other", [2, 9])
def test_an_extraction_goes_on_in_batches_of_another_size_with_the_same_features(tmp_path: Path, other: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        store(tmp_path, SmallJudge()).fill(["x"], range(len(IMAGES)), Source(Given(broken_at=15)))
    resumed = store(tmp_path, SmallJudge(), batch_size=other)
    resumed.fill(["x"], range(len(IMAGES)), Source(Given()))
    torch.testing.assert_close(resumed.read("x").features, extract(SmallJudge(), IMAGES.split(5)).features)


def test_some_rows_are_read_in_their_order_and_without_what_was_not_kept(tmp_path: Path) -> None:
    judge = SmallJudge()
    filled = store(tmp_path, judge)
    filled.fill(["x"], range(len(IMAGES)), Source(Given()), ["features", "logits"])
    filled.fill(["y"], range(len(IMAGES)), Source(Given()))
    rows = [0, 4, 5, 21]
    found = filled.read("x", rows)
    assert torch.equal(found.features, filled.read("x").features[rows]) and len(found) == 4
    assert found.spatial is None and found.logits is not None and filled.read("y").logits is None


def test_views_of_the_same_images_are_loaded_once_and_follow_one_another_in_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sfd.evaluation.extraction.CHUNK", 8)
    judge, given = SmallJudge(), Given()
    filled = store(tmp_path, judge)
    filled.fill(["x", "mirrored"], range(len(IMAGES)), Source(given, lambda images, _rows: [images, images.flip(-1)]))
    assert len(given.loaded) == 5
    blocks = list(filled.blocks(["x", "mirrored"]))
    assert [len(block) for block in blocks[:2]] == [10, 10]
    expected = torch.cat([extract(judge, part.split(5)).features for part in (IMAGES, IMAGES.flip(-1))])
    assert torch.equal(torch.cat(blocks), expected)
