"""Learning rates: today's recipes to the bit, and the published one of SemVAE."""

import math
from typing import Any

import pytest

from sfd.params import TrainingParams
from sfd.training.rate import learning_rate


def rates(steps: list[int], **fields: Any) -> list[float]:
    """Shares of the peak."""
    params = TrainingParams.model_validate({"num_steps": 1_000_000, "learning_rate": 1.0} | fields)
    return [learning_rate(params, step) for step in steps]


@pytest.mark.parametrize("warmup", [0, 1, 50])
@pytest.mark.parametrize("decay", ["constant", "cosine"])
def test_the_defaults_give_the_rates_of_before_to_the_bit(warmup: int, decay: str) -> None:
    """Linear warm-up from 1/W, then constant or a cosine to zero: what every model up to November 2026 was trained with."""
    params = TrainingParams.model_validate(
        {"num_steps": 333, "learning_rate": 7e-4, "warmup_steps": warmup, "decay": decay}
    )
    for step in range(333):
        rate = 7e-4 * min(1.0, (step + 1) / max(1, warmup))
        if decay == "cosine" and step >= warmup:
            rate *= 0.5 * (1.0 + math.cos(math.pi * ((step - warmup) / max(1, 333 - warmup))))
        assert learning_rate(params, step) == rate


def test_the_published_recipe_of_semvae_warms_up_from_one_per_cent_and_falls_to_ten() -> None:
    recipe = {"warmup_steps": 500, "warmup_from": 0.01, "decay": "cosine", "decay_start": 800_000, "decay_to": 0.1}
    steps = [0, 1, 250, 499, 500, 501, 799_999, 800_000, 900_000, 999_999]
    expected = [0.01, 0.01198, 0.505, 0.99802, 1.0, 1.0, 1.0, 1.0, 0.55, 0.1]
    assert rates(steps, **recipe) == pytest.approx(expected, abs=1e-9)


def test_without_a_start_the_cosine_falls_from_the_end_of_the_warm_up() -> None:
    recipe = {"num_steps": 10, "warmup_steps": 2, "decay": "cosine", "decay_to": 0.5}
    assert rates([0, 1, 2, 6], **recipe) == pytest.approx([0.5, 1.0, 1.0, 0.75])
