"""Random draws that depend only on (seed, purpose, index), and not on order, batches or restarts."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(seed: int, purpose: str, index: int = 0) -> int:
    """A 63-bit seed for one draw, e.g. ``derive_seed(0, "diffusion/noise", step)``."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, purpose: str, index: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator on ``device`` that is seeded by :func:`derive_seed`."""
    return torch.Generator(device).manual_seed(derive_seed(seed, purpose, index))


@contextmanager
def seeded_initialisation(seed: int, purpose: str) -> Iterator[None]:
    """Seeds torch's global generator for code that cannot take a generator (layer constructors), then restores it."""
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, purpose))
        yield
