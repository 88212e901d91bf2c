"""The probe of a learnt schedule: true gradients, and a problem whose best curve is known."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from sfd.data.latents import LatentBatch
from sfd.diffusion.learnt import LearntCurve
from sfd.models.backbone import Output
from sfd.models.conditions import ClassCondition
from sfd.models.lightningdit import LightningDiT
from sfd.models.lightningdit_config import LightningDiTConfig
from sfd.params import LossParams, TrainingParams
from sfd.seeding import generator
from sfd.training.loop import log_nothing, train
from sfd.training.probe import Probe, ProbeTask

COUPLING, SEMANTIC_WEIGHT, ENERGY_WEIGHT, PIECES = 0.95, 0.1, 0.02, 4
NUM_IMAGES, SIDE = 512, 4


class Pairs:
    """Texture and semantics of one channel each, standard normal with correlation COUPLING at every position."""

    def __init__(self) -> None:
        each = [torch.randn(2, SIDE, SIDE, generator=generator(0, "pair", n)) for n in range(NUM_IMAGES)]
        self.drawn = torch.stack(each)
        self.drawn[:, 0] = COUPLING * self.drawn[:, 1] + (1.0 - COUPLING**2) ** 0.5 * self.drawn[:, 0]

    def __len__(self) -> int:
        return NUM_IMAGES

    def __getitems__(self, indices: list[int]) -> LatentBatch:
        return LatentBatch(self.drawn[indices], torch.zeros(len(indices), dtype=torch.int64))


def covariances(t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of the noisy pair (a, b) at times t and s: its 2 x 2 matrix; and its covariances with both velocities, ``(..., 2)``."""
    both = COUPLING * t * s
    matrix = torch.stack([t**2 + (1 - t) ** 2, both, both, s**2 + (1 - s) ** 2], dim=-1).unflatten(-1, (2, 2))
    texture = torch.stack([2 * t - 1, COUPLING * s], dim=-1)
    semantic = torch.stack([COUPLING * t, 2 * s - 1], dim=-1)
    return matrix, texture, semantic


def errors(t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest possible squared errors of both velocities at times t and s."""
    matrix, *shared = covariances(t, s)
    inverse = torch.linalg.inv(matrix)
    texture, semantic = (2.0 - (c[..., None, :] @ inverse @ c[..., None]).squeeze() for c in shared)
    return texture, semantic


class BestPrediction(nn.Module):
    """The conditional mean of both velocities, given the noisy pair: what an endless training would reach."""

    def __init__(self) -> None:
        super().__init__()
        condition = ClassCondition.numbered(1)
        self.config = LightningDiTConfig(SIDE, 2, 8, 1, 1, condition, semantic_channels=1, two_times=True)

    def forward(self, x: Tensor, t_tex: Tensor, t_sem: Tensor, _condition: Tensor) -> Output:
        matrix, texture, semantic = covariances(t_tex, t_sem)
        weights = torch.stack([texture, semantic], dim=1) @ torch.linalg.inv(matrix)
        return Output(torch.einsum("bij,bjhw->bihw", weights, x), None)


class Wrong(BestPrediction):
    """Depends on both times and on the latent as a network in training does: not in the best way."""

    def forward(self, x: Tensor, t_tex: Tensor, t_sem: Tensor, condition: Tensor) -> Output:
        velocity = super().forward(x, t_sem, t_tex, condition).velocity
        return Output(velocity + torch.sin(3.0 * t_tex - t_sem)[:, None, None, None] * x.flip(1), None)


def objective(free: Tensor) -> Tensor:
    """What the probe minimises, by quadrature over the logit-normal times of each part."""
    curve = LearntCurve(PIECES).double()
    curve.free.data = free
    quantiles = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    t = torch.sigmoid(2.0**0.5 * torch.erfinv(2.0 * quantiles - 1.0))
    with torch.no_grad():
        texture = errors(t, curve.semantic_at(t))[0].mean()
        semantic = errors(curve.texture_at(t), t)[1].mean()
        return 0.5 * (texture + SEMANTIC_WEIGHT * semantic) + ENERGY_WEIGHT * (curve.energy() - 1.0)


def heights(free: Tensor) -> Tensor:
    curve = LearntCurve(PIECES).double()
    curve.free.data = free
    return curve.heights.detach()


def test_a_curve_that_is_learnt_where_the_best_one_is_known_comes_to_it(tmp_path: Path) -> None:
    best = minimize(
        lambda free: float(objective(torch.tensor(free))), np.zeros(PIECES + 1), method="Nelder-Mead",
        options={"xatol": 1e-3, "fatol": 1e-7, "maxiter": 4000},
    )  # fmt: skip
    loss = LossParams(semantic_weight=SEMANTIC_WEIGHT, cosine_weight=0.0, repa_weight=0.0)
    probe = Probe(BestPrediction(), LearntCurve(PIECES))  # type: ignore[arg-type]  # what a probe uses of a backbone
    task = ProbeTask(probe, Pairs(), loss, ENERGY_WEIGHT, 0.0, seed=0)
    training = TrainingParams(
        num_steps=500, batch_size=128, learning_rate=0.05, warmup_steps=0, decay="cosine", ema_decay=0.98
    )
    trained = train(task, training, 0, tmp_path, "probe", log_nothing).network
    assert isinstance(trained, Probe)
    found = trained.curve.free.detach().double()

    start, optimum = float(objective(torch.zeros(PIECES + 1, dtype=torch.float64))), float(best.fun)
    ordinary = float(objective(torch.tensor([40.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)))
    reached = float(objective(found))
    assert min(start, ordinary) - optimum > 0.002, "or the problem tells nothing"
    assert reached - optimum < 0.1 * (min(start, ordinary) - optimum)
    assert float((heights(found) - heights(torch.tensor(best.x))).abs().max()) < 0.05


def test_gradients_of_the_knots_are_those_of_finite_differences_through_latent_and_time() -> None:
    probe = Probe(Wrong(), LearntCurve(PIECES).double())  # type: ignore[arg-type]  # what a probe uses of a backbone
    probe.curve.free.data = torch.tensor([0.3, -0.2, 0.1, 0.0, -0.4], dtype=torch.float64)
    task = ProbeTask(probe, Pairs(), LossParams(), ENERGY_WEIGHT, 0.1, seed=3)
    data = Pairs().__getitems__(list(range(16)))
    data = LatentBatch(data.latents.double(), data.class_indices)
    noise = task.noise(0, 16, torch.device("cpu"))
    noise = noise._replace(x0=noise.x0.double(), t=noise.t.double())

    def total() -> Tensor:
        losses = task.losses(probe, data, noise)
        return torch.stack([weight * losses[name] for name, weight in task.weights.items()]).sum()

    total().backward()
    assert probe.curve.free.grad is not None
    step = 1e-3  # the loss is computed in float32
    for knot in range(PIECES + 1):
        values = []
        for sign in (1, -1):
            probe.curve.free.data[knot] += sign * step
            values.append(float(total().detach()))
            probe.curve.free.data[knot] -= sign * step
        assert float(probe.curve.free.grad[knot]) == pytest.approx((values[0] - values[1]) / (2 * step), abs=5e-4)


def test_each_part_is_drawn_for_half_of_the_images_at_times_that_no_curve_changes() -> None:
    condition = ClassCondition.numbered(1)
    config = LightningDiTConfig(SIDE, 2, 16, 1, 2, condition, semantic_channels=1, two_times=True)
    loss = LossParams(time_mean=-0.4, time_std=0.8)
    curves = [LearntCurve(PIECES), LearntCurve(PIECES)]
    curves[1].free.data[0] = 3.0
    draws = [
        ProbeTask(Probe(LightningDiT(config), curve), Pairs(), loss, 0.0, 0.1, 0).noise(7, 20_000, torch.device("cpu"))
        for curve in curves
    ]
    assert all(torch.equal(a, b) for a, b in zip(*draws, strict=True))
    drawn = draws[0]
    assert float(drawn.by_texture.float().mean()) == pytest.approx(0.5, abs=0.02)
    for part in (drawn.by_texture, ~drawn.by_texture):
        logits = torch.logit(drawn.t[part].double())
        assert float(logits.mean()) == pytest.approx(-0.4, abs=0.03)
        assert float(logits.std()) == pytest.approx(0.8, abs=0.03)
