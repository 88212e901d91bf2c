"""Sections ``diffusion.token_routing`` and ``diffusion.sparse_deep``: trainings in which the middle blocks see a part of the tokens only."""

from pydantic import Field

from sfd.params.types import Fraction, Positive, Section


class TokenRoutingParams(Section):
    """TREAD (arXiv 2501.04765): a random share of the tokens skips the middle blocks, in training alone. It adds no weights."""

    share: float = Field(
        0.5, gt=0.0, lt=1.0, description="share of the tokens that skips them, others for each image and step"
    )
    first_blocks: Positive = Field(2, description="blocks at the start that see all tokens")
    last_blocks: Positive = Field(4, description="blocks at the end that see all tokens again")


class SparseDeepParams(Section):
    """SPRINT (arXiv 2510.21986): the middle blocks are a path of their own, trained on a part of the tokens and joined with its input."""

    share: float = Field(
        0.75,
        ge=0.25,
        le=0.75,
        multiple_of=0.25,
        description="share of the tokens that the middle blocks do not see: 0.25, 0.5 or 0.75. Of each 2 x 2 group, 3, 2 or 1 stay at random",
    )
    first_blocks: Positive = Field(2, description="blocks at the start that see all tokens")
    last_blocks: Positive = Field(2, description="blocks at the end that see all tokens again")
    path_drop: Fraction = Field(
        0.1,
        description="share of images that are trained without the middle blocks, for `sample.guidance.kind: path_drop`",
    )
    full_token_steps: int = Field(
        ge=0, description="steps at the end of the training that show all tokens to all blocks"
    )

    @property
    def kept_per_group(self) -> int:
        """How many tokens of each 2 x 2 group stay."""
        return round(4 * (1.0 - self.share))
