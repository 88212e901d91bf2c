"""The configuration of a Flux2: shape, and what it is told."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self

from sfd.models.backbone import Facts, check_keys
from sfd.models.conditions import Condition
from sfd.models.projector import check_projector
from sfd.sizes import FLUX2_DOUBLE_BLOCKS, FLUX2_HEAD_WIDTH, SIZES

if TYPE_CHECKING:
    from sfd.params import ModelParams

NUM_AXES = 4
"""Axes of a position: one that is always 0 here, row, column, place in the text. Each turns an equal part of a head."""


@dataclass(frozen=True)
class Flux2Config:
    """Shape of one Flux2, which has one token per position.

    ``double_blocks``: blocks in which image and text have weights of their own; ``single_blocks``: those after them, of one sequence.
    ``two_times``: False: both timestep embedders read texture's time.
    """

    kind: ClassVar[str] = "flux2"

    input_size: int
    in_channels: int
    num_heads: int
    double_blocks: int
    single_blocks: int
    condition: Condition
    head_width: int = FLUX2_HEAD_WIDTH
    semantic_channels: int = 0
    two_times: bool = False
    repa_depth: int = 0
    repa_width: int = 2048
    feature_dim: int = 768
    repa_projector: str = "mlp"

    def __post_init__(self) -> None:
        if self.head_width % (2 * NUM_AXES):
            raise ValueError(
                f"head_width is {self.head_width}, but must be a multiple of {2 * NUM_AXES}: pairs of channels turn with each of "
                f"{NUM_AXES} axes"
            )
        if min(self.double_blocks, self.single_blocks) < 1:
            raise ValueError(
                f"double_blocks is {self.double_blocks} and single_blocks is {self.single_blocks}, but each must be above 0"
            )
        check_projector(self.repa_projector)

    @property
    def grid(self) -> int:
        """Tokens along one side."""
        return self.input_size

    @property
    def width(self) -> int:
        """Hidden width D."""
        return self.num_heads * self.head_width

    @property
    def depth(self) -> int:
        """Blocks of both kinds."""
        return self.double_blocks + self.single_blocks

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``config.json``, without the condition."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "condition"}

    @classmethod
    def from_dict(cls, values: dict[str, Any], condition: Condition) -> Self:
        """Inverse of :meth:`to_dict`. Raises ``ValueError`` for an unknown key, ``TypeError`` for a missing one."""
        check_keys(cls, values)
        return cls(**values, condition=condition)

    @classmethod
    def from_params(cls, params: "ModelParams", facts: Facts) -> Self:
        """Width and blocks of the named size, and the shape of the latents."""
        width, depth, _ = SIZES[params.size]
        double_blocks = FLUX2_DOUBLE_BLOCKS[params.size]
        return cls(
            input_size=facts.grid,
            in_channels=facts.texture_channels + facts.semantic_channels,
            num_heads=width // FLUX2_HEAD_WIDTH,
            double_blocks=double_blocks,
            single_blocks=depth - double_blocks,
            condition=facts.condition,
            semantic_channels=facts.semantic_channels,
            two_times=facts.two_times,
            repa_depth=facts.repa_depth,
            repa_width=facts.repa_width,
            feature_dim=facts.feature_dim,
            repa_projector=facts.repa_projector,
        )
