"""Copies of training images are found, and honest samples are left in peace."""

import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from sfd.errors import UserError
from sfd.evaluation.memorisation import memorisation, nearest


def points(count: int, seed: int) -> Tensor:
    """Features far from the origin, where float32 distances would lose their digits."""
    return 100.0 + torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))


def test_the_nearest_rows_are_those_that_scikit_learn_finds() -> None:
    queries, reference = points(70, 0), points(90, 1)
    distance, index = nearest(queries, [reference])
    expected = NearestNeighbors(n_neighbors=1, algorithm="kd_tree").fit(reference.double().numpy())
    expected_distance, expected_index = expected.kneighbors(queries.double().numpy())
    torch.testing.assert_close(distance, torch.from_numpy(expected_distance[:, 0]))
    assert index.tolist() == expected_index[:, 0].tolist()


@pytest.mark.parametrize("chunk", [1, 7, 90, 1000])
def test_chunks_do_not_change_the_result(chunk: int) -> None:
    queries, reference = points(70, 0), points(90, 1)
    distance, index = nearest(queries, [reference], chunk=chunk)
    expected_distance, expected_index = nearest(queries, [reference])
    assert torch.equal(index, expected_index)
    assert torch.equal(distance, expected_distance)


@pytest.mark.parametrize("size", [1, 13, 90])
def test_a_reference_in_blocks_is_read_once_and_gives_the_result_of_one_piece(size: int) -> None:
    queries, reference = points(70, 0), points(90, 1)
    distance, index = nearest(queries, iter(reference.split(size)), chunk=40)
    expected_distance, expected_index = nearest(queries, [reference])
    assert torch.equal(index, expected_index)
    assert torch.equal(distance, expected_distance)


def test_a_copy_is_at_exactly_no_distance() -> None:
    reference = points(200, 0)
    distance, index = nearest(reference[[17, 3]], [reference], chunk=50)
    assert distance.tolist() == [0.0, 0.0]
    assert index.tolist() == [17, 3]


def test_copies_are_found_and_lead_the_table() -> None:
    train, heldout = points(1000, 0), points(500, 1)
    samples = points(100, 2)
    samples[[5, 50, 70]] = train[[11, 22, 33]] + 1e-3
    found = memorisation(samples, [train], heldout)
    assert found.memorised_fraction >= 0.03
    assert set(found.table["sample_index"][:3]) == {5, 50, 70}
    assert set(found.table["train_index"][:3]) == {11, 22, 33}
    assert found.table["distance"].is_monotonic_increasing
    assert found.table.shape == (100, 3)
    assert found.table["distance"][2] < found.threshold


def test_honest_samples_are_memorised_no_more_often_than_held_out_images() -> None:
    found = memorisation(points(2000, 2), [points(1000, 0)], points(2000, 1), quantile=0.05)
    assert found.heldout_fraction == pytest.approx(0.05, abs=0.001)
    assert found.memorised_fraction == pytest.approx(0.05, abs=0.02)


def test_a_model_that_only_copies_is_wholly_memorised() -> None:
    train = points(300, 0)
    found = memorisation(train[:100], [train], points(200, 1))
    assert found.memorised_fraction == 1.0
    assert found.table["train_index"].tolist() == found.table["sample_index"].tolist()


def test_held_out_copies_of_training_images_are_refused_with_the_remedy() -> None:
    train = points(100, 0)
    with pytest.raises(UserError, match="data.duplicates"):
        memorisation(points(10, 2), [train], train[:50])


def test_a_single_held_out_copy_below_the_quantile_is_accepted() -> None:
    train = points(100, 0)
    heldout = torch.cat([points(500, 1), train[:1]])
    assert memorisation(train[:10], [train], heldout).memorised_fraction == 1.0


@pytest.mark.parametrize(("empty", "name"), enumerate(["samples", "training images", "held-out images"]))
def test_an_empty_set_is_refused(empty: int, name: str) -> None:
    sets = [points(10, seed) for seed in range(3)]
    sets[empty] = sets[empty][:0]
    samples, train, heldout = sets
    with pytest.raises(UserError, match=f"images in every set, but has no {name}"):
        memorisation(samples, [train], heldout)
