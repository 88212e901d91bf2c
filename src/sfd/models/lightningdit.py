"""LightningDiT (arXiv 2501.01423) with two times (arXiv 2512.04926). Parameter names are those of the published weights.

Legend of shapes: B images, C channels, H x W latent positions, N tokens, D hidden width, F encoder feature width.
"""

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from sfd.models.backbone import Axis, Backbone, Facts, Output, channel_names
from sfd.models.conditions import Condition
from sfd.models.projector import PROJECTORS, ConvProjector, build_projector
from sfd.sizes import SIZES

if TYPE_CHECKING:
    from sfd.params import ModelParams

FREQUENCY_SIZE = 256
"""Width of the sinusoidal embedding of a time."""


@dataclass(frozen=True)
class LightningDiTConfig:
    """Shape and parts of one LightningDiT. ``two_times``: one timestep embedder per part, else a single one.

    ``repa_projector``: one of :data:`sfd.models.projector.PROJECTORS`; records from before there was a choice lack it, and mean ``mlp``.
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
    repa_projector: str = "mlp"

    def __post_init__(self) -> None:
        if self.repa_projector not in PROJECTORS:
            raise ValueError(f"repa_projector is {self.repa_projector!r}, but must be {' or '.join(PROJECTORS)}")

    @property
    def grid(self) -> int:
        """Tokens along one side."""
        return self.input_size // self.patch_size

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``config.json``, without the condition."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "condition"}

    @classmethod
    def from_dict(cls, values: dict[str, Any], condition: Condition) -> Self:
        """Inverse of :meth:`to_dict`. Raises ``ValueError`` naming keys that it does not know."""
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"unknown keys in the model's configuration: {', '.join(sorted(unknown))}")
        return cls(**values, condition=condition)

    @classmethod
    def from_params(cls, params: "ModelParams", facts: Facts) -> Self:
        """Width, depth and heads of the named size, the parts that are enabled, and the shape of the latents."""
        width, depth, heads = SIZES[params.size]
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
            repa_projector=facts.repa_projector,
        )


class LightningDiT(Backbone):
    """Velocity of a composite latent, given the times of its parts and a condition.

    Without a condition embedding, the blocks are modulated by the times alone.
    """

    config_type = LightningDiTConfig
    shared_options = (
        "patch_size",
        "hidden_size",
        "depth",
        "num_heads",
        "use_qknorm",
        "use_swiglu",
        "use_rope",
        "use_rmsnorm",
        "use_shift",
    )
    computed = ("pos_embed", "feat_rope.freqs_cos", "feat_rope.freqs_sin")
    adapted_layers = r"blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(w12|w3|fc1|fc2))"
    config: LightningDiTConfig

    def __init__(self, config: LightningDiTConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.x_embedder = PatchEmbedding(config.in_channels, width, config.patch_size)
        if config.two_times:
            self.t_embedder_sem = TimestepEmbedder(width // 2)
            self.t_embedder_tex = TimestepEmbedder(width // 2)
        else:
            self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = config.condition.embedding(width)
        self.pos_embed = nn.Parameter(sincos_embedding(width, config.grid), requires_grad=False)
        self.feat_rope = RotaryEmbedding(width // config.num_heads, config.grid) if config.use_rope else None
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.depth)])
        self.final_layer = FinalLayer(config)
        if config.repa_depth:
            self.repa_projector = build_projector(
                config.repa_projector, width, config.repa_width, config.feature_dim, config.grid
            )

    def forward(
        self, x: Tensor, t_tex: Tensor, t_sem: Tensor, condition: Tensor, with_projection: bool = False
    ) -> Output:
        """As :meth:`sfd.models.backbone.Backbone.forward`. A model with a single time reads ``t_tex``."""
        tokens = self.x_embedder(x) + self.pos_embed
        if self.config.two_times:
            time = torch.cat([self.t_embedder_sem(t_sem), self.t_embedder_tex(t_tex)], dim=-1)
        else:
            time = self.t_embedder(t_tex)
        modulation = time if self.y_embedder is None else time + self.y_embedder(condition)
        projection = None
        for depth, block in enumerate(self.blocks, start=1):
            tokens = block(tokens, modulation, self.feat_rope)
            if with_projection and depth == self.config.repa_depth:
                projection = self.repa_projector(tokens)
        return Output(self._unpatchify(self.final_layer(tokens, modulation)), projection)

    def _unpatchify(self, tokens: Tensor) -> Tensor:
        """``(B, N, patch*patch*C)`` with channels last within a token -> ``(B, C, H, W)``."""
        grid, patch, channels = self.config.grid, self.config.patch_size, self.config.in_channels
        tokens = tokens.reshape(-1, grid, grid, patch, patch, channels)
        return tokens.permute(0, 5, 1, 3, 2, 4).reshape(-1, channels, grid * patch, grid * patch)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> Self:
        """The publication's initialisation: Xavier; normal of std 0.02 for class tables and time embedders; zero for adaLN and output."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)
        projection = self.x_embedder.proj
        nn.init.xavier_uniform_(projection.weight.flatten(1), generator=generator)
        nn.init.zeros_(projection.bias)  # type: ignore[arg-type]  # the patch embedding has a bias
        for table in (module for module in self.modules() if isinstance(module, nn.Embedding)):
            nn.init.normal_(table.weight, std=0.02, generator=generator)
        for embedder in (module for module in self.modules() if isinstance(module, TimestepEmbedder)):
            for layer in embedder.mlp:
                if isinstance(layer, nn.Linear):
                    nn.init.normal_(layer.weight, std=0.02, generator=generator)
        for layer in (*self.blocks, self.final_layer):
            nn.init.zeros_(layer.adaLN_modulation[1].weight)
        nn.init.zeros_(self.final_layer.linear.weight)
        for convolution in (module.proj for module in self.modules() if isinstance(module, ConvProjector)):
            # As the patch embedding; last, so that the random numbers of the other weights do not depend on it.
            nn.init.xavier_uniform_(convolution.weight.flatten(1), generator=generator)
            nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]  # it has a bias
        return self

    def output_layer(self) -> nn.Linear:
        """The last layer."""
        return self.final_layer.linear

    def named_axes(self) -> dict[str, Axis]:
        """Channels of the patch embedding and of the output, rows of the condition's tables."""
        semantic, state = self.config.semantic_channels, self.state_dict()
        channels = channel_names(self.config.in_channels - semantic, semantic)
        tables = {f"y_embedder.{name}": rows for name, rows in self.config.condition.rows().items()}
        axes = {name: Axis(state[name], 0, rows) for name, rows in tables.items()}
        axes["x_embedder.proj.weight"] = Axis(state["x_embedder.proj.weight"], 1, channels)
        for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
            # The outputs of a token are ordered by position, and within a position by channel.
            axes[name] = Axis(state[name].unflatten(0, (-1, self.config.in_channels)), 1, channels)
        return axes


class PatchEmbedding(nn.Module):
    """Convolution with kernel = stride = patch; tokens row by row."""

    def __init__(self, in_channels: int, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, N, D)``."""
        return self.proj(x).flatten(2).transpose(1, 2)


class TimestepEmbedder(nn.Module):
    """Sinusoidal embedding ``[cos | sin]`` of ``t`` (not scaled), then Linear, SiLU, Linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCY_SIZE, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """``(B,)`` -> ``(B, width)``."""
        half = FREQUENCY_SIZE // 2
        frequencies = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
        angles = t[:, None].float() * frequencies
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))


class RotaryEmbedding(nn.Module):
    """2D rotary embedding: the first half of a head turns with the row index, the second with the column index."""

    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, head_dim: int, grid: int) -> None:
        super().__init__()
        half = head_dim // 2
        frequencies = 10_000.0 ** (-torch.arange(0, half, 2)[: half // 2].float() / half)
        angles = (torch.arange(grid).float()[:, None] * frequencies).repeat_interleave(2, dim=-1)
        rows = angles[:, None, :].expand(grid, grid, half)
        columns = angles[None, :, :].expand(grid, grid, half)
        table = torch.cat([rows, columns], dim=-1).reshape(grid * grid, head_dim)
        self.register_buffer("freqs_cos", table.cos())
        self.register_buffer("freqs_sin", table.sin())

    def forward(self, x: Tensor) -> Tensor:
        """Turns neighbouring pairs of ``x`` ``(B, heads, N, head_dim)``: ``(a, b) -> (a cos - b sin, b cos + a sin)``."""
        a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack([-b, a], dim=-1).flatten(-2)
        return x * self.freqs_cos + turned * self.freqs_sin


class Attention(nn.Module):
    """Multi-head self-attention with one ``qkv`` projection and optional QK-norm per head."""

    def __init__(self, config: LightningDiTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_heads
        head_dim = width // config.num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = _head_norm(config, head_dim)
        self.k_norm = _head_norm(config, head_dim)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rope: RotaryEmbedding | None) -> Tensor:
        """``(B, N, D)`` -> ``(B, N, D)``."""
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = rope(q), rope(k)
        heads = scaled_dot_product_attention(q.to(v), k.to(v), v)
        return self.proj(heads.transpose(1, 2).reshape(batch, tokens, width))


def _head_norm(config: LightningDiTConfig, head_dim: int) -> nn.Module:
    if not config.use_qknorm:
        return nn.Identity()
    return nn.RMSNorm(head_dim, eps=1e-6) if config.use_rmsnorm else nn.LayerNorm(head_dim, eps=1e-5)


def _token_norm(config: LightningDiTConfig) -> nn.Module:
    if config.use_rmsnorm:
        return nn.RMSNorm(config.hidden_size, eps=1e-6)
    return nn.LayerNorm(config.hidden_size, eps=1e-6, elementwise_affine=False)


class SwiGLU(nn.Module):
    """``w3(silu(a) * b)`` with ``[a | b] = w12(x)``; hidden width 2/3 of four times the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = int(2 / 3 * int(4 * width))
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, N, D)`` -> ``(B, N, D)``."""
        a, b = self.w12(x).chunk(2, dim=-1)
        return self.w3(silu(a) * b)


class GeluMlp(nn.Module):
    """Linear, tanh-GELU, Linear; hidden four times the width (names as in timm's ``Mlp``)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.act = nn.GELU(approximate="tanh")
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, N, D)`` -> ``(B, N, D)``."""
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """Transformer block with adaLN-zero; without shift the modulation is ``[scale, gate]`` twice."""

    def __init__(self, config: LightningDiTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.use_shift = config.use_shift
        self.norm1 = _token_norm(config)
        self.attn = Attention(config)
        self.norm2 = _token_norm(config)
        self.mlp = SwiGLU(width) if config.use_swiglu else GeluMlp(width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, (6 if config.use_shift else 4) * width))

    def forward(self, x: Tensor, condition: Tensor, rope: RotaryEmbedding | None) -> Tensor:
        """Tokens ``(B, N, D)``, condition ``(B, D)`` -> tokens."""
        parts = self.adaLN_modulation(condition)[:, None, :]
        if self.use_shift:
            shift1, scale1, gate1, shift2, scale2, gate2 = parts.chunk(6, dim=-1)
            x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1, rope)
            return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)
        scale1, gate1, scale2, gate2 = parts.chunk(4, dim=-1)
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1), rope)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2))


class FinalLayer(nn.Module):
    """Norm, adaLN ``[shift, scale]``, Linear to the latent values of a token."""

    def __init__(self, config: LightningDiTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm_final = _token_norm(config)
        self.linear = nn.Linear(width, config.patch_size**2 * config.in_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Tokens ``(B, N, D)``, condition ``(B, D)`` -> ``(B, N, patch*patch*C)``."""
        shift, scale = self.adaLN_modulation(condition)[:, None, :].chunk(2, dim=-1)
        return self.linear(self.norm_final(x) * (1 + scale) + shift)


def sincos_embedding(width: int, grid: int) -> Tensor:
    """Fixed 2D embedding ``(1, N, D)``: first half of the width from the column, second from the row, each ``[sin | cos]``."""
    quarter = width // 4
    frequencies = 10_000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * frequencies
    line = torch.cat([angles.sin(), angles.cos()], dim=-1)
    columns = line[None, :, :].expand(grid, grid, -1)
    rows = line[:, None, :].expand(grid, grid, -1)
    return torch.cat([columns, rows], dim=-1).reshape(1, grid * grid, width).float()
