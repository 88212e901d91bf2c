"""A small network on top of a tokenizer's decoding: it removes the edges of blocks and adds detail."""

from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle, silu

from sfd.seeding import seeded_initialisation

DEPTH = 4
"""Residual blocks."""


class ResidualDecoder(nn.Module):
    """Adds what it predicts to be missing to decoded pixels.

    It works on squares of factor / 2 pixels, two to a block along each side, which is 16 times cheaper than single pixels for blocks of 8.
    A second way in sees whole blocks, so that the network knows where in its block a square lies. Without training it changes nothing.
    """

    def __init__(self, factor: int, width: int) -> None:
        """``factor``: pixels per latent position along one side, even. ``width``: channels of the network."""
        super().__init__()
        self.factor, self.width = factor, width
        self.square = factor // 2
        self.squares_in = nn.Conv2d(3 * self.square**2, width, 3, padding=1)
        self.blocks_in = nn.Conv2d(3 * factor**2, 4 * width, 1)
        self.layers = nn.Sequential(*(_Layer(width) for _ in range(DEPTH)))
        self.out = nn.Conv2d(width, 3 * self.square**2, 3, padding=1)

    @classmethod
    def initialised(cls, factor: int, width: int, seed: int) -> "ResidualDecoder":
        """What training starts from."""
        with seeded_initialisation(seed, "texture_vae/residual"):
            made = cls(factor, width)
        for parameter in made.out.parameters():
            nn.init.zeros_(parameter)
        return made

    def forward(self, pixels: Tensor) -> Tensor:
        """Decoded pixels ``(B, 3, S, S)`` -> better ones."""
        hidden = self.squares_in(pixel_unshuffle(pixels, self.square))
        hidden = hidden + pixel_shuffle(self.blocks_in(pixel_unshuffle(pixels, self.factor)), 2)
        return pixels + pixel_shuffle(self.out(silu(self.layers(hidden))), self.square)


class _Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.second(silu(self.first(silu(x))))
        return x + change
