"""Section ``diffusion.token_routing``: a training in which some blocks see a part of the tokens only."""

from pydantic import Field

from sfd.params.types import Positive, Section


class TokenRoutingParams(Section):
    """TREAD (arXiv 2501.04765): a random share of the tokens skips the middle blocks, in training alone. It adds no weights."""

    share: float = Field(
        0.5, gt=0.0, lt=1.0, description="share of the tokens that skips them, others for each image and step"
    )
    first_blocks: Positive = Field(2, description="blocks at the start that see all tokens")
    last_blocks: Positive = Field(4, description="blocks at the end that see all tokens again")
