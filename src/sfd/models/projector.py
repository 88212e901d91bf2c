"""The projectors of REPA: hidden states of the tokens to the width of the encoder's features."""

from torch import Tensor, nn

PROJECTORS = ("mlp", "conv")
"""Kinds of projectors, as ``config.json`` names them."""


def check_projector(kind: str) -> None:
    """Raises ``ValueError`` unless it is one of :data:`PROJECTORS`."""
    if kind not in PROJECTORS:
        raise ValueError(f"repa_projector is {kind!r}, but must be {' or '.join(PROJECTORS)}")


def build_projector(kind: str, width: int, hidden_width: int, feature_dim: int, grid: int) -> nn.Module:
    """A module from hidden states ``(B, N, width)`` to ``(B, N, feature_dim)``, not initialised.

    ``mlp``: Linear, SiLU, Linear, SiLU, Linear with ``hidden_width``, per token (REPA, arXiv 2410.06940). ``conv``: :class:`ConvProjector`;
    ``grid``: tokens along one side.
    """
    if kind == "conv":
        return ConvProjector(width, feature_dim, grid)
    return nn.Sequential(
        nn.Linear(width, hidden_width),
        nn.SiLU(),
        nn.Linear(hidden_width, hidden_width),
        nn.SiLU(),
        nn.Linear(hidden_width, feature_dim),
    )


class ConvProjector(nn.Module):
    """One 3x3 convolution over the grid of tokens, with zeros around it (iREPA, arXiv 2512.10794). It needs all tokens of an image."""

    def __init__(self, width: int, feature_dim: int, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.proj = nn.Conv2d(width, feature_dim, kernel_size=3, padding=1)

    def forward(self, tokens: Tensor) -> Tensor:
        """``(B, N, D)``, row by row -> ``(B, N, F)``."""
        image = tokens.transpose(1, 2).unflatten(2, (self.grid, self.grid))
        return self.proj(image).flatten(2).transpose(1, 2)
