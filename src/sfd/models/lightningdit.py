"""LightningDiT (arXiv 2501.01423) with two times (arXiv 2512.04926). Parameter names are those of the published weights.

Legend of shapes: B images, C channels, H x W latent positions, N tokens, L tokens of a text, D hidden width, F encoder feature width.
"""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from sfd.models.attention import AttentionSum
from sfd.models.backbone import Axis, Backbone, Output, channel_names
from sfd.models.blocks import Block, CrossAttention, FinalLayer, TextEmbedder
from sfd.models.checkpointing import Checkpointing
from sfd.models.conditions import Told
from sfd.models.embeddings import PatchEmbedding, RotaryEmbedding, Rotation, TimestepEmbedder, sincos_embedding
from sfd.models.lightningdit_config import LightningDiTConfig
from sfd.models.projector import ConvProjector, build_projector
from sfd.models.text_condition import PooledWords
from sfd.models.tokens import Route, put_back, take
from sfd.models.words import Words


class LightningDiT(Backbone):
    """Velocity of a composite latent, given the times of its parts and a condition.

    Without a condition embedding, the blocks are modulated by the times alone. A condition of words is told in two ways: its mean token is added
    to the times' embedding, and the blocks see all its tokens, by cross-attention or in the image's sequence.
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
        "shared_modulation",
    )
    computed = ("pos_embed", "feat_rope.freqs_cos", "feat_rope.freqs_sin")
    routes_tokens = True
    block_layers = r"blocks\.\d+\.(attn\.(qkv|proj)|cross_attn\.(q|kv|proj)|mlp\.(w12|w3|fc1|fc2))"
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
        words = config.condition.words
        self.text_embedder = None if words is None else TextEmbedder(words.width, width)
        self.t_block = None
        if config.shared_modulation:
            self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(width, config.modulation_parts * width))
        self.pos_embed = nn.Parameter(sincos_embedding(width, config.grid), requires_grad=False)
        self.feat_rope = RotaryEmbedding(width // config.num_heads, config.grid) if config.use_rope else None
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.depth)])
        self.final_layer = FinalLayer(config)
        if config.has_deep_path:
            # Fixed after its draw, as in the published code of SPRINT.
            self.mask_token = nn.Parameter(torch.zeros(1, 1, width), requires_grad=False)
            self.fusion = nn.Linear(2 * width, width)
        if config.repa_depth:
            self.repa_projector = build_projector(
                config.repa_projector, width, config.repa_width, config.feature_dim, config.grid
            )

    @property
    def has_deep_path(self) -> bool:
        """As :class:`sfd.models.backbone.Backbone` says."""
        return self.config.has_deep_path

    @property
    def has_word_attention(self) -> bool:
        """As :class:`sfd.models.backbone.Backbone` says."""
        return self.config.has_cross_attention

    def forward(
        self,
        x: Tensor,
        t_tex: Tensor,
        t_sem: Tensor,
        condition: Told,
        with_projection: bool = False,
        route: Route | None = None,
        skip_deep: bool = False,
        sums: Sequence[AttentionSum | None] | None = None,
    ) -> Output:
        """As :meth:`sfd.models.backbone.Backbone.forward`. A model with a single time reads ``t_tex``.

        ``route``: what the blocks between the first and the last ones see in this step of the training; None: all tokens. ``skip_deep``: leave
        these blocks out, in a network where they are a path of their own. ``sums``: what is told where the image's tokens look at words, by a
        network with cross-attention.
        """
        tokens = self._embed(x)
        modulation = self._modulation(t_tex, t_sem, condition)
        shared = modulation if self.t_block is None else self.t_block(modulation)
        words, text = self._read(condition, tokens)
        rotation = None if self.feat_rope is None else self.feat_rope(product_type(tokens))
        projection = None

        def run(tokens: Tensor, first: int, last: int, rotation: Rotation | None) -> Tensor:
            """Blocks ``first`` to ``last``, counted from 1. Words in the image's sequence come before its tokens, and do not turn."""
            nonlocal projection, text
            length, seen = 0, None
            if text is not None:
                length, seen = text.length, pad(text.mask, (0, tokens.shape[1]), value=True)
                tokens = torch.cat([text.tokens, tokens], dim=1)
                rotation = None if rotation is None else rotation.behind(length)
            for number in range(first, last + 1):
                tokens = self.blocks[number - 1](tokens, shared, rotation, words, seen, sums)
                if with_projection and number == self.config.repa_depth:
                    projection = self.repa_projector(tokens[:, length:])
            if text is not None:
                text = text._replace(tokens=tokens[:, :length])
            return tokens[:, length:]

        first, last = self._middle(route)
        tokens = run(tokens, 1, first - 1, rotation)
        if first <= last:
            kept, shallow, before = None if route is None else route.kept, tokens, text
            if skip_deep:
                deep = self.mask_token.to(shallow).expand_as(shallow)
            elif kept is None:
                deep = run(shallow, first, last, rotation)
            else:
                deep = run(take(shallow, kept), first, last, None if rotation is None else rotation.at(kept))
                others = self.mask_token.to(shallow).expand_as(shallow) if self.has_deep_path else shallow
                deep = put_back(others, kept, deep)
            tokens = self._fuse(deep, shallow, route) if self.has_deep_path else deep
            if text is not None and before is not None and route is not None and route.without_deep is not None:
                tokens_of_text = torch.where(route.without_deep[:, None, None], before.tokens, text.tokens)
                text = text._replace(tokens=tokens_of_text)
            tokens = run(tokens, last + 1, len(self.blocks), rotation)
        return Output(self._unpatchify(self.final_layer(tokens, modulation)), projection)

    def _embed(self, x: Tensor) -> Tensor:
        """Tokens with their positions. Under autocast the sum over the blocks is float32, even where weights are gathered in bf16."""
        tokens = self.x_embedder(x) + self.pos_embed
        return tokens.float() if is_in_autocast(tokens) else tokens

    def _read(self, condition: Told, tokens: Tensor) -> tuple[Words | None, Words | None]:
        """The words that blocks look at by cross-attention, and those in the image's sequence."""
        if self.text_embedder is None or not isinstance(condition, Words):
            return None, None
        found = self.text_embedder(condition)
        return (found, None) if self.config.has_cross_attention else (None, found.to(dtype=tokens.dtype))

    def _middle(self, route: Route | None) -> tuple[int, int]:
        """The first and the last block, counted from 1, of those that may see a part of the tokens; ``(depth + 1, depth)``: none."""
        ends = self.config if self.has_deep_path else route
        depth = len(self.blocks)
        return (depth + 1, depth) if ends is None else (ends.first_blocks + 1, depth - ends.last_blocks)

    def _fuse(self, deep: Tensor, shallow: Tensor, route: Route | None) -> Tensor:
        """Joins the results of both paths (SPRINT), each ``(B, N, D)``."""
        if route is not None and route.without_deep is not None:
            deep = torch.where(route.without_deep[:, None, None], self.mask_token.to(deep), deep)
        return self.fusion(torch.cat([deep, shallow], dim=-1)).to(shallow.dtype)

    def _modulation(self, t_tex: Tensor, t_sem: Tensor, condition: Told) -> Tensor:
        """What modulates every block: the embeddings of times and condition, ``(B, D)``."""
        if self.config.two_times:
            time = torch.cat([self.t_embedder_sem(t_sem), self.t_embedder_tex(t_tex)], dim=-1)
        else:
            time = self.t_embedder(t_tex)
        return time if self.y_embedder is None else time + self.y_embedder(condition)

    def _unpatchify(self, tokens: Tensor) -> Tensor:
        """``(B, N, patch*patch*C)`` with channels last within a token -> ``(B, C, H, W)``."""
        grid, patch, channels = self.config.grid, self.config.patch_size, self.config.in_channels
        tokens = tokens.reshape(-1, grid, grid, patch, patch, channels)
        return tokens.permute(0, 5, 1, 3, 2, 4).reshape(-1, channels, grid * patch, grid * patch)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> Self:
        """The publication's initialisation: Xavier; normal of std 0.02 for class tables and time embedders; zero for adaLN and output.

        Zero, too: cross-attention's output, so that a model without words can be the start, and the layer of the mean word.
        """
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
        for module in self.modules():
            if isinstance(module, CrossAttention | PooledWords):
                nn.init.zeros_(module.proj.weight)
        for name, weight in self.named_parameters():
            if "adaLN_modulation" in name or name.startswith("t_block"):
                nn.init.zeros_(weight)
        nn.init.zeros_(self.final_layer.linear.weight)
        if self.has_deep_path:
            nn.init.normal_(self.mask_token, std=0.02, generator=generator)
        for convolution in (module.proj for module in self.modules() if isinstance(module, ConvProjector)):
            # As the patch embedding; last, so that the random numbers of the other weights do not depend on it.
            nn.init.xavier_uniform_(convolution.weight.flatten(1), generator=generator)
            nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]  # it has a bias
        return self

    def checkpoint_activations(self, kind: Checkpointing) -> None:
        """As :class:`sfd.models.backbone.Backbone` says, for each block."""
        for block in self.blocks:
            block.checkpointing = kind  # type: ignore[assignment]  # a module's attributes are modules or tensors to mypy

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


def product_type(x: Tensor) -> torch.dtype:
    """The type in which matrix products with ``x`` are computed: autocast's where that is on, else that of ``x``."""
    return torch.get_autocast_dtype(x.device.type) if is_in_autocast(x) else x.dtype


def is_in_autocast(x: Tensor) -> bool:
    """Whether autocast is on for the device of ``x``; on the meta device, which knows shapes alone, torch has none."""
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)
