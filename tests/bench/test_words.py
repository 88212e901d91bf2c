"""benchmarks/words.py: the table of what samples find by their own prompts, and by those of others."""

from types import ModuleType

import pytest
import torch
from support import benchmark

from sfd.errors import UserError
from sfd.evaluation.agreement import retrieve

CANDIDATES = torch.eye(12)
CARRIERS = [[number] for number in range(12)]
ASKED = torch.arange(12)


@pytest.fixture(scope="module")
def words() -> ModuleType:
    return benchmark("words")


def near(prompts: torch.Tensor, noise: float, seed: int) -> torch.Tensor:
    """Samples that lie near to the images of these prompts."""
    random = torch.Generator().manual_seed(seed)
    return CANDIDATES[prompts] + noise * torch.randn(len(prompts), 12, generator=random)


def test_samples_of_their_prompts_are_better_than_shuffled_ones_and_samples_of_others_are_not(
    words: ModuleType,
) -> None:
    listening = [retrieve(near(ASKED, 0.02 + 0.01 * seed, seed), ASKED, CANDIDATES, CARRIERS) for seed in range(3)]
    table = "\n".join(words.report(listening))
    assert table.startswith("3 seeds of 12 samples, 12 prompts")
    assert "| 1 | 1.000 | 0.000 | +1.000" in table and "better |" in table
    shifted = [torch.randperm(12, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    deaf = [retrieve(near(shown, 0.02, 7), ASKED, CANDIDATES, CARRIERS) for shown in shifted]
    assert "better" not in "\n".join(words.report(deaf))


def test_one_seed_has_no_interval_and_one_prompt_cannot_be_shuffled(words: ModuleType) -> None:
    one = [retrieve(near(ASKED, 0.02, 0), ASKED, CANDIDATES, CARRIERS)]
    assert "not known | not told apart" in "\n".join(words.report(one))
    asked = torch.zeros(4, dtype=torch.int64)
    same = [retrieve(near(asked, 0.02, 0), asked, CANDIDATES, CARRIERS[:1])]
    with pytest.raises(UserError, match="all samples have one prompt, so none can be shuffled"):
        list(words.report(same))
