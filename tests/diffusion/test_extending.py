"""A sampler and a term of the loss of one's own: one file each and one entry in a table, nothing else."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from sfd.data.latents import LatentBatch
from sfd.diffusion.schedule import OffsetSchedule
from sfd.errors import UserError
from sfd.generation.images import build_sampler
from sfd.models.conditions import ClassCondition
from sfd.models.lightningdit import LightningDiT, LightningDiTConfig
from sfd.names import LOSS_TERMS, SAMPLERS, Entry, SamplerEntry, load
from sfd.params import LossParams, SampleParams, TrainingParams
from sfd.seeding import generator
from sfd.training.diffusion import DiffusionTask
from sfd.training.loop import Trained, log_nothing, train

MIDPOINT = '''
"""The midpoint rule: second order, two evaluations per step."""

from torch import Tensor

from sfd.diffusion.solver import FixedStepSolver, Steps


class Midpoint(FixedStepSolver):
    def step(self, steps: Steps, n: int, x: Tensor) -> Tensor:
        size = steps.size(n, x)
        t_tex, t_sem = ((times[n] + times[n + 1]) / 2 for times in steps.times)
        return x + size * steps.ode.evaluate(x + 0.5 * size * steps.velocity(n, x), t_tex, t_sem)
'''

ABSOLUTE = '''
"""The absolute velocity error."""

from torch import Tensor

from sfd.diffusion.loss import Predicted


class AbsoluteTerm:
    needs_features = False

    def __init__(self, _options: object) -> None:
        pass

    def __call__(self, batch: Predicted) -> Tensor:
        return (batch.velocity - batch.target).abs().mean(dim=(1, 2, 3))
'''


class RandomLatents:
    def __init__(self) -> None:
        random = generator(0, "test/latents")
        self.latents = torch.randn(16, 6, 4, 4, generator=random)

    def __len__(self) -> int:
        return len(self.latents)

    def __getitems__(self, indices: list[int]) -> LatentBatch:
        return LatentBatch(self.latents[indices], torch.tensor(indices) % 3)


@pytest.fixture(autouse=True)
def own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project's own modules."""
    (tmp_path / "own_midpoint.py").write_text(MIDPOINT)
    (tmp_path / "own_absolute.py").write_text(ABSOLUTE)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.fixture
def midpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SAMPLERS, "midpoint", SamplerEntry("own_midpoint:Midpoint", "the midpoint rule"))


@pytest.fixture
def absolute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSS_TERMS, "absolute", Entry("own_absolute:AbsoluteTerm", "absolute velocity error"))


def trained(work: Path, **loss: float) -> Trained:
    """A network 32 wide, two steps old."""
    config = LightningDiTConfig(4, 6, 32, 1, 2, ClassCondition.numbered(3), semantic_channels=2, two_times=True)
    network = LightningDiT(config).initialise(generator(0, "test/initialisation"))
    options = LossParams.model_validate({"repa_weight": 0.0} | loss)
    task = DiffusionTask(network, RandomLatents(), options, OffsetSchedule(0.3), 0.1, 0)
    params = TrainingParams(batch_size=8, num_steps=2, learning_rate=1e-2, ema_decay=0.0, precision="fp32")
    return train(task, params, 0, work, "a", log_nothing)


def sample_params(sampler: str, num_steps: int = 4) -> SampleParams:
    return SampleParams.model_validate({"sampler": sampler, "num_steps": num_steps, "guidance": {"kind": "none"}})


@pytest.mark.usefixtures("absolute")
def test_a_term_of_ones_own_is_trained_with_and_logged_beside_the_others(tmp_path: Path) -> None:
    row = trained(tmp_path).curve[-1]
    assert list(row) == ["step", "velocity", "cosine", "absolute", "total"]
    assert row["absolute"] > 0.0
    assert row["total"] == pytest.approx(row["velocity"] + row["cosine"] + row["absolute"], rel=1e-6)


@pytest.mark.usefixtures("midpoint")
def test_a_trained_network_is_sampled_with_a_sampler_of_ones_own(tmp_path: Path) -> None:
    network = trained(tmp_path).network
    noise = torch.randn(2, 6, 4, 4, generator=generator(0, "test/noise"))

    def velocity(x: Tensor, t_tex: Tensor, t_sem: Tensor) -> Tensor:
        made: Tensor = network(x, t_tex, t_sem, torch.tensor([0, 1])).velocity
        return made

    def images(sampler: str, num_steps: int) -> Tensor:
        return build_sampler(sample_params(sampler, num_steps))(velocity, noise, OffsetSchedule(0.3), 2)

    made = images("midpoint", 26)
    assert made.shape == noise.shape and bool(made.isfinite().all())
    torch.testing.assert_close(made, images("heun", 26), rtol=0, atol=0.02)
    assert not torch.equal(made, images("euler", 26))


@pytest.mark.usefixtures("midpoint", "absolute")
def test_names_that_are_misspelt_are_refused_with_the_nearest_one() -> None:
    with pytest.raises(ValidationError, match="nearest: 'midpoint'"):
        sample_params("midpiont")
    assert sample_params("midpoint").sampler == "midpoint"
    with pytest.raises(UserError, match="'absolut' is none of .*; nearest: `absolute`"):
        load(LOSS_TERMS, "absolut")
    assert load(LOSS_TERMS, "absolute").needs_features is False
