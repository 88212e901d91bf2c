"""Copies of training images that are drawn for these images' own captions."""

import pandas as pd
import pytest

from sfd.evaluation.memorisation import Memorisation
from sfd.evaluation.pairs import memorised_pairs


def memorised(*rows: tuple[int, int, float]) -> Memorisation:
    """Sample index, row of the nearest training image, distance; copies are nearer than 1."""
    table = pd.DataFrame(rows, columns=["sample_index", "train_index", "distance"])
    return Memorisation(1.0, 0.0, 0.0, table.sort_values("distance", ignore_index=True))


CAPTIONS = [["a cat", "an animal"], ["a dog"], []]


def test_a_pair_is_a_copy_drawn_for_its_own_caption_and_chance_is_that_of_the_other_prompts() -> None:
    found = memorised_pairs(
        # A cat that is a copy of the cat; a dog that is a copy of the flipped cat; a cat far from all; a copy that is asked with news.
        memorised((0, 0, 0.1), (1, 3, 0.2), (2, 0, 1.5), (3, 0, 0.0)),
        ["A cat", "a dog", "an animal", "something new"],
        CAPTIONS,
    )
    assert found is not None
    assert found.found.tolist() == [1.0, 0.0, 0.0] and found.prompts.tolist() == [0, 1, 2]
    # Of the three prompts that training images carry, the cat has two.
    assert found.chance.tolist() == pytest.approx([2 / 3, 2 / 3, 0.0])


def test_samples_whose_prompts_no_training_image_carries_give_no_pairs() -> None:
    assert memorised_pairs(memorised((0, 0, 0.1)), ["something new"], CAPTIONS) is None
