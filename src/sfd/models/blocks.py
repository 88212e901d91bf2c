"""The parts of a LightningDiT that work on tokens: blocks of attention and MLP, and the final layer.

Legend of shapes: B images, N tokens, L tokens of a text, E numbers per token of the text encoder, D hidden width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

from sfd.models.attention import AttentionSum, add_attention
from sfd.models.checkpointing import Checkpointing, checkpointed
from sfd.models.embeddings import Rotation
from sfd.models.lightningdit_config import LightningDiTConfig
from sfd.models.words import Words


class RMSNorm(nn.RMSNorm):
    """RMSNorm whose weight follows the type of its input.

    Under autocast inputs are bf16 and weights float32, and torch's fused kernel takes one type only. It computes in float32 inside.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Any shape that ends in the normalised width."""
        return rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


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

    def forward(self, x: Tensor, rotation: Rotation | None, seen: Tensor | None = None) -> Tensor:
        """``(B, N, D)`` -> ``(B, N, D)``. ``seen``: the tokens that are attended to, bool ``(B, N)``; None: all."""
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = rotation.turn(q), rotation.turn(k)
        mask = None if seen is None else seen[:, None, None, :]
        heads = scaled_dot_product_attention(q.to(v), k.to(v), v, attn_mask=mask)
        return self.proj(heads.transpose(1, 2).reshape(batch, tokens, width))


class CrossAttention(nn.Module):
    """The image's tokens look at the text's (PixArt-alpha, arXiv 2310.00426): queries of the residual stream as it is, without a norm.

    The output projection is zero at the start, so that a network without words can be the start. QK-norm as in :class:`Attention`.
    """

    def __init__(self, config: LightningDiTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_heads
        head_dim = width // config.num_heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.q_norm = _head_norm(config, head_dim)
        self.k_norm = _head_norm(config, head_dim)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, words: Words, sums: Sequence[AttentionSum | None] | None = None) -> Tensor:
        """``(B, N, D)``, words of width D -> ``(B, N, D)``. Padding is not looked at. ``sums``: where it is noted who looks at what."""
        batch, tokens, width = x.shape
        q = self.q(x).reshape(batch, tokens, self.num_heads, -1).transpose(1, 2)
        k, v = self.kv(words.tokens).reshape(batch, words.length, 2, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q).to(v), self.k_norm(k).to(v)
        add_attention(sums, q, k, words.mask)
        heads = scaled_dot_product_attention(q, k, v, attn_mask=words.mask[:, None, None, :])
        return self.proj(heads.transpose(1, 2).reshape(batch, tokens, width))


class TextEmbedder(nn.Module):
    """The text encoder's tokens for the blocks: RMSNorm, because encoders differ in scale, then Linear, tanh-GELU, Linear (PixArt-alpha)."""

    def __init__(self, words_width: int, width: int) -> None:
        super().__init__()
        self.norm = RMSNorm(words_width, eps=1e-6)
        self.fc1 = nn.Linear(words_width, width)
        self.act = nn.GELU(approximate="tanh")
        self.fc2 = nn.Linear(width, width)

    def forward(self, words: Words) -> Words:
        """``(B, L, E)`` -> ``(B, L, D)``."""
        return Words(self.fc2(self.act(self.fc1(self.norm(words.tokens)))), words.mask)


def _head_norm(config: LightningDiTConfig, head_dim: int) -> nn.Module:
    if not config.use_qknorm:
        return nn.Identity()
    return RMSNorm(head_dim, eps=1e-6) if config.use_rmsnorm else nn.LayerNorm(head_dim, eps=1e-5)


def _token_norm(config: LightningDiTConfig) -> nn.Module:
    if config.use_rmsnorm:
        return RMSNorm(config.hidden_size, eps=1e-6)
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
    """Transformer block with adaLN-zero; without shift the modulation is ``[scale, gate]`` twice.

    With a shared modulation (adaLN-single, PixArt-alpha), the network computes one for all blocks, and a block adds a table of its own.

    ``checkpointing``: what is kept for the backward pass. It stands in here, within the call of the block, so that the hooks of sharded
    training gather weights once around both computations.
    """

    checkpointing: Checkpointing = "none"

    def __init__(self, config: LightningDiTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.use_shift = config.use_shift
        self.norm1 = _token_norm(config)
        self.attn = Attention(config)
        self.norm2 = _token_norm(config)
        self.mlp = SwiGLU(width) if config.use_swiglu else GeluMlp(width)
        self.shares_modulation = config.shared_modulation
        if config.shared_modulation:
            self.scale_shift_table = nn.Parameter(torch.zeros(config.modulation_parts * width))
        else:
            self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, config.modulation_parts * width))
        if config.has_cross_attention:
            self.cross_attn = CrossAttention(config)

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        rotation: Rotation | None,
        words: Words | None = None,
        seen: Tensor | None = None,
        sums: Sequence[AttentionSum | None] | None = None,
    ) -> Tensor:
        """Tokens ``(B, N, D)``, condition ``(B, D)`` -> tokens.

        ``condition``: with a shared modulation, that, ``(B, parts * D)``. ``words``: what a block with cross-attention looks at. ``seen``: as
        in :class:`Attention`. ``sums``: as in :class:`CrossAttention`, where nothing is trained.
        """
        return checkpointed(self.checkpointing, self._compute, x, condition, rotation, words, seen, sums)

    def _compute(
        self,
        x: Tensor,
        condition: Tensor,
        rotation: Rotation | None,
        words: Words | None,
        seen: Tensor | None,
        sums: Sequence[AttentionSum | None] | None,
    ) -> Tensor:
        parts = self._modulation(condition)[:, None, :]
        if self.use_shift:
            shift1, scale1, gate1, shift2, scale2, gate2 = parts.chunk(6, dim=-1)
            x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1, rotation, seen)
            x = x if words is None else x + self.cross_attn(x, words, sums)
            return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)
        scale1, gate1, scale2, gate2 = parts.chunk(4, dim=-1)
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1), rotation, seen)
        x = x if words is None else x + self.cross_attn(x, words, sums)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2))

    def _modulation(self, condition: Tensor) -> Tensor:
        """Shifts, scales and gates, ``(B, parts * D)``."""
        return condition + self.scale_shift_table if self.shares_modulation else self.adaLN_modulation(condition)


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
