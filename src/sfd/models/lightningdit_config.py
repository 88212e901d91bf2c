"""The configuration of a LightningDiT: shape, and which parts it has."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args

from sfd.models.backbone import Facts, check_keys
from sfd.models.conditions import Condition
from sfd.models.projector import check_projector
from sfd.sizes import SIZES

if TYPE_CHECKING:
    from sfd.params import ModelParams

TextAttention = Literal["cross", "in_context"]
"""How the tokens of an image meet those of a text: by cross-attention in each block, or as one sequence."""


@dataclass(frozen=True)
class LightningDiTConfig:
    """Shape and parts of one LightningDiT.

    ``two_times``: one timestep embedder per part, else a single one. ``first_blocks``, ``last_blocks``: how many blocks at the start and at
    the end see all tokens, where those in between are a path of their own (SPRINT, :mod:`sfd.models.tokens`); 0: there is one path.
    ``repa_projector``: one of :data:`sfd.models.projector.PROJECTORS`; a record without it, as all older ones, has the ``mlp``.
    ``text_attention``: counts only with a condition of words. ``shared_modulation``: one modulation for all blocks, and a table in each
    (adaLN-single, arXiv 2310.00426).
    """

    kind: ClassVar[str] = "lightningdit"

    input_size: int
    in_channels: int
    hidden_size: int
    depth: int
    num_heads: int
    condition: Condition
    patch_size: int = 1
    semantic_channels: int = 0
    two_times: bool = False
    use_qknorm: bool = True
    use_swiglu: bool = True
    use_rope: bool = True
    use_rmsnorm: bool = True
    use_shift: bool = True
    repa_depth: int = 0
    repa_width: int = 2048
    feature_dim: int = 768
    first_blocks: int = 0
    last_blocks: int = 0
    repa_projector: str = "mlp"
    text_attention: TextAttention = "cross"
    shared_modulation: bool = False

    def __post_init__(self) -> None:
        check_projector(self.repa_projector)
        if self.text_attention not in get_args(TextAttention):
            raise ValueError(
                f"text_attention is {self.text_attention!r}, but must be {' or '.join(get_args(TextAttention))}"
            )

    @property
    def grid(self) -> int:
        """Tokens along one side."""
        return self.input_size // self.patch_size

    @property
    def has_deep_path(self) -> bool:
        """Whether the blocks between the first and the last ones are a path of their own."""
        return self.first_blocks > 0

    @property
    def has_cross_attention(self) -> bool:
        """Whether blocks look at words."""
        return self.condition.words is not None and self.text_attention == "cross"

    @property
    def modulation_parts(self) -> int:
        """Vectors that modulate a block."""
        return 6 if self.use_shift else 4

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``config.json``, without the condition. What newer versions added is there only where it is in use."""
        left_out = {"condition"}
        if not self.has_deep_path:
            left_out |= {"first_blocks", "last_blocks"}
        if self.repa_projector == "mlp":
            left_out |= {"repa_projector"}
        if self.text_attention == "cross":
            left_out |= {"text_attention"}
        if not self.shared_modulation:
            left_out |= {"shared_modulation"}
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in left_out}

    @classmethod
    def from_dict(cls, values: dict[str, Any], condition: Condition) -> Self:
        """Inverse of :meth:`to_dict`. Raises ``ValueError`` naming keys that it does not know.

        A record without ``first_blocks`` and ``last_blocks``, as all older ones, has one path.
        """
        check_keys(cls, values)
        return cls(**values, condition=condition)

    @classmethod
    def from_params(cls, params: "ModelParams", facts: Facts) -> Self:
        """Width, depth and heads of the named size, the parts that are enabled, and the shape of the latents."""
        width, depth, heads = SIZES[params.size]
        first_blocks, last_blocks = facts.dense_blocks or (0, 0)
        return cls(
            input_size=facts.grid,
            in_channels=facts.texture_channels + facts.semantic_channels,
            hidden_size=width,
            depth=depth,
            num_heads=heads,
            condition=facts.condition,
            patch_size=params.patch_size,
            semantic_channels=facts.semantic_channels,
            two_times=facts.two_times,
            use_qknorm=params.use_qknorm,
            use_swiglu=params.use_swiglu,
            use_rope=params.use_rope,
            use_rmsnorm=params.use_rmsnorm,
            use_shift=params.use_shift,
            repa_depth=facts.repa_depth,
            repa_width=facts.repa_width,
            feature_dim=facts.feature_dim,
            first_blocks=first_blocks,
            last_blocks=last_blocks,
            repa_projector=facts.repa_projector,
            text_attention=params.text_attention,
            shared_modulation=params.shared_modulation,
        )
