"""Our metrics beside those of clean-fid, torchmetrics and prdc, on the same features of the same images.

    pip install --target /tmp/others --no-deps clean-fid==0.1.35 torchmetrics==1.9.0 lightning-utilities==0.15.3 prdc==0.2
    PYTHONPATH=/tmp/others python -P benchmarks/agreement.py

The libraries are no dependency of sfd, so they go into a folder of their own. `-P`, because another benchmark is called `tokenizers`, as a
library is. Features are those of a small random network for handwritten digits, so nothing is downloaded: what is compared is everything
behind the features. The exit status is 1 if a difference is too large.
"""

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sfd.evaluation.fidelity import Features, FeatureStatistics, Reference, compare
from sfd.evaluation.kernel import cmmd, kernel_distance
from sfd.evaluation.neighbours import density_and_coverage
from sfd.params import EvaluateParams

NUM_IMAGES, NUM_FEATURES, NEIGHBOURS = 700, 64, 5
TOLERANCE = 1e-5
"""Largest relative difference that passes."""


class Network(nn.Module):
    """A random network of digits to features; torchmetrics asks for ``num_features``."""

    num_features = NUM_FEATURES

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 32, 5), nn.ReLU(), nn.Conv2d(32, NUM_FEATURES, 3, stride=2), nn.ReLU())

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images uint8 ``(B, 3, 8, 8)`` -> features ``(B, 64)``."""
        found: Tensor = self.layers(images.float() / 255.0).mean(dim=(2, 3))
        return found


class InDouble(Network):
    """The same features as float64, in which torchmetrics then computes."""

    def forward(self, images: Tensor) -> Tensor:
        """As :class:`Network`."""
        return super().forward(images).double()


def digits() -> tuple[Tensor, Tensor]:
    """Two disjoint sets of handwritten digits, uint8 ``(N, 3, 8, 8)``; the first has some noise."""
    from sklearn.datasets import load_digits

    pixels = torch.from_numpy(load_digits().images * 15.9).to(torch.uint8)[:, None].expand(-1, 3, -1, -1).contiguous()
    noise = torch.randint(0, 60, (NUM_IMAGES, 3, 8, 8), generator=torch.Generator().manual_seed(1))
    samples = (pixels[:NUM_IMAGES] + noise).clamp(max=255).to(torch.uint8)
    return samples, pixels[NUM_IMAGES : 2 * NUM_IMAGES]


def ours(samples: Tensor, reference: Tensor) -> dict[str, float]:
    """Metrics of features, as stage ``evaluate`` computes them."""
    options = {"kid_subsets": 1, "kid_subset_size": NUM_IMAGES, "neighbours": NEIGHBOURS, "density": True}
    params = EvaluateParams.model_validate(options)
    found = compare(Features(samples, None), Reference.of(Features(reference, None)), params, seed=0)
    density, coverage = density_and_coverage(samples, reference, NEIGHBOURS)
    return found | {"kid": kernel_distance(samples, reference), "density": density, "coverage": coverage}


def by_clean_fid(samples: Tensor, reference: Tensor) -> dict[str, float]:
    """Of numpy features: the Frechet distance, and KID with a subset of all images."""
    from cleanfid.fid import frechet_distance, kernel_distance

    first, second = samples.double().numpy(), reference.double().numpy()
    moments = [(each.mean(axis=0), np.cov(each, rowvar=False)) for each in (first, second)]
    found = {"fd": float(frechet_distance(*moments[0], *moments[1]))}
    return found | {"kid": float(kernel_distance(second, first, num_subsets=1, max_subset_size=NUM_IMAGES))}


def by_torchmetrics(images: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Of images, through the network."""
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    network = InDouble()
    distance = FrechetInceptionDistance(feature=network, input_img_size=(3, 8, 8))
    kernel = KernelInceptionDistance(feature=network, subsets=1, subset_size=NUM_IMAGES)
    for metric in (distance, kernel):
        metric.update(images[1], real=True)
        metric.update(images[0], real=False)
    return {"fd": float(distance.compute()), "kid": float(kernel.compute()[0])}


def by_prdc(samples: Tensor, reference: Tensor) -> dict[str, float]:
    """Of numpy features."""
    from prdc import compute_prdc

    with redirect_stdout(None):
        found: dict[str, Any] = compute_prdc(reference.double().numpy(), samples.double().numpy(), nearest_k=NEIGHBOURS)
    return {name: float(value) for name, value in found.items()}


def by_definition(samples: Tensor, reference: Tensor) -> dict[str, float]:
    """CMMD as its paper's code has it: on whole matrices of squared distances of unit vectors."""
    first, second = (each.double() / each.double().norm(dim=1, keepdim=True) for each in (samples, reference))

    def mean(one: Tensor, other: Tensor) -> Tensor:
        gaps = one.square().sum(dim=1)[:, None] + other.square().sum(dim=1) - 2.0 * one @ other.T
        return torch.exp(-gaps / (2.0 * 10.0**2)).mean()

    return {"cmmd": float(1000.0 * (mean(first, first) + mean(second, second) - 2.0 * mean(first, second)))}


def main() -> int:
    """Prints the table; returns the exit status."""
    network, images = Network(), digits()
    samples, reference = (network(each) for each in images)
    mine = ours(samples, reference) | {"cmmd": cmmd(samples, reference)}
    # torch-fidelity, which computes the distance here, takes covariances as clean-fid does.
    assert np.isclose(mine["fd"], FeatureStatistics.of(samples).distance(FeatureStatistics.of(reference)))
    others: dict[str, Callable[[], dict[str, float]]] = {
        "clean-fid": lambda: by_clean_fid(samples, reference),
        "torchmetrics": lambda: by_torchmetrics(images),
        "prdc": lambda: by_prdc(samples, reference),
        "definition": lambda: by_definition(samples, reference),
    }
    print("| metric | sfd | by | its value | relative difference |\n|---|---|---|---|---|")
    largest = 0.0
    for name, measure in others.items():
        for metric, theirs in measure().items():
            difference = abs(mine[metric] - theirs) / abs(theirs)
            largest = max(largest, difference)
            print(f"| `{metric}` | {mine[metric]:.6g} | {name} | {theirs:.6g} | {difference:.1e} |")
    return int(largest > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
