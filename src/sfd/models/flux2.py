"""Flux2 with two times, the backbone of SeFi-Image (arXiv 2606.22568). The blocks are those of diffusers; parameter names are those of the
published weights.

Inside the network are the conventions of those weights: semantic channels come first, a time is a noise level (1: noise, 0: data), and the
velocity points from data to noise. The borders of :meth:`Flux2.forward` translate, so that the weights need no change.

Legend of shapes: B images, C channels, H x W latent positions, N = H * W tokens, L tokens of the text, D hidden width.
"""

from typing import Any, Self

import torch
from torch import Tensor, nn

from sfd.models.backbone import Axis, Backbone, Output, channel_names
from sfd.models.checkpointing import Checkpointing, checkpointed
from sfd.models.conditions import Told
from sfd.models.flux2_config import NUM_AXES, Flux2Config
from sfd.models.lightningdit import is_in_autocast
from sfd.models.projector import ConvProjector, build_projector
from sfd.models.words import Words

MLP_RATIO, ROPE_THETA, FREQUENCY_SIZE, TIME_UNIT = 3.0, 2000, 256, 1000.0
"""Hidden width of an MLP over D; base of the rotations; width of the sinusoidal embedding of a time, and what it counts a time in. As
published, and the same in all sizes."""


class DualTimeEmbedding(nn.Module):
    """One embedding per part, each of half the width; semantics first."""

    def __init__(self, width: int) -> None:
        from diffusers.models.embeddings import TimestepEmbedding, Timesteps

        super().__init__()
        self.time_proj = Timesteps(FREQUENCY_SIZE, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.semantic_embedder = TimestepEmbedding(FREQUENCY_SIZE, width // 2, sample_proj_bias=False)
        self.texture_embedder = TimestepEmbedding(FREQUENCY_SIZE, width // 2, sample_proj_bias=False)

    def forward(self, noise_sem: Tensor, noise_tex: Tensor) -> Tensor:
        """Noise levels ``(B,)`` -> ``(B, D)``."""
        semantic = self.semantic_embedder(self.time_proj(TIME_UNIT * noise_sem.float()))
        texture = self.texture_embedder(self.time_proj(TIME_UNIT * noise_tex.float()))
        return torch.cat([semantic, texture], dim=-1)


class Flux2(Backbone):
    """Velocity of a composite latent, given the times of its parts and a text.

    Words are the text. A condition without words is a text of one token, its embedding; without any condition the text is empty.
    """

    config_type = Flux2Config
    shared_options = ("num_heads", "head_width", "double_blocks", "single_blocks")
    block_layers = (
        r"backbone\.(transformer_blocks\.\d+\.(attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)|ff(_context)?\.linear_(in|out))"
        r"|single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out))"
    )
    config: Flux2Config

    def __init__(self, config: Flux2Config) -> None:
        from diffusers import Flux2Transformer2DModel

        super().__init__()
        self.config = config
        words = config.condition.words
        self.backbone: Any = Flux2Transformer2DModel(
            in_channels=config.in_channels,
            num_layers=config.double_blocks,
            num_single_layers=config.single_blocks,
            attention_head_dim=config.head_width,
            num_attention_heads=config.num_heads,
            joint_attention_dim=1 if words is None else words.width,
            timestep_guidance_channels=FREQUENCY_SIZE,
            mlp_ratio=MLP_RATIO,
            axes_dims_rope=(config.head_width // NUM_AXES,) * NUM_AXES,
            rope_theta=ROPE_THETA,
            guidance_embeds=False,
        )
        self.backbone.time_guidance_embed = nn.Identity()
        self.dual_time_embed = DualTimeEmbedding(config.width)
        self.y_embedder = None
        if words is None:
            self.backbone.context_embedder = nn.Identity()
            self.y_embedder = config.condition.embedding(config.width)
        self.checkpointing: Checkpointing = "none"
        if config.repa_depth:
            self.repa_projector = build_projector(
                config.repa_projector, config.width, config.repa_width, config.feature_dim, config.input_size
            )

    def forward(
        self, x: Tensor, t_tex: Tensor, t_sem: Tensor, condition: Told, with_projection: bool = False
    ) -> Output:
        """As :meth:`sfd.models.backbone.Backbone.forward`. A model with a single time reads ``t_tex``. Padding of the words is not attended to."""
        time = self.dual_time_embed(1.0 - (t_sem if self.config.two_times else t_tex), 1.0 - t_tex)
        image = self.backbone.x_embedder(self._semantics_first(x).flatten(2).transpose(1, 2))
        text, seen = self._read(condition, image)
        if is_in_autocast(image):
            image, text = image.float(), text.float()  # the sum over the blocks
        tokens, projection = self._run(image, text, time, seen, with_projection)
        velocity = self.backbone.proj_out(self.backbone.norm_out(tokens, time))
        return Output(-self._texture_first(velocity.transpose(1, 2).unflatten(2, x.shape[2:])), projection)

    def _run(
        self, image: Tensor, text: Tensor, time: Tensor, seen: Tensor | None, with_projection: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens of image ``(B, N, D)`` and text ``(B, L, D)`` through all blocks -> tokens of the image, and REPA's projection."""
        network, length, projection = self.backbone, text.shape[1], None
        rotation, options = self._rotation(length, image.device), {"attention_mask": seen}
        of_image, of_text = network.double_stream_modulation_img(time), network.double_stream_modulation_txt(time)
        for number, block in enumerate(network.transformer_blocks, start=1):
            text, image = checkpointed(self.checkpointing, block, image, text, of_image, of_text, rotation, options)
            if with_projection and number == self.config.repa_depth:
                projection = self.repa_projector(image)
        tokens, modulation = torch.cat([text, image], dim=1), network.single_stream_modulation(time)
        for number, block in enumerate(network.single_transformer_blocks, start=1 + self.config.double_blocks):
            tokens = checkpointed(self.checkpointing, block, tokens, None, modulation, rotation, options)
            if with_projection and number == self.config.repa_depth:
                projection = self.repa_projector(tokens[:, length:])
        return tokens[:, length:], projection

    def _read(self, condition: Told, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """The text as tokens ``(B, L, D)``, and which tokens of text and image are attended to, ``(B, 1, 1, L + N)``; None: all."""
        if isinstance(condition, Words):
            mask = torch.cat([condition.mask, condition.mask.new_ones(image.shape[:2])], dim=1)
            return self.backbone.context_embedder(condition.tokens), mask[:, None, None, :]
        if self.y_embedder is None:
            return image[:, :0], None
        return self.y_embedder(condition)[:, None, :].to(image.dtype), None

    def _rotation(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosines and sines ``(L + N, head_width)``: a token of the text has its place, one of the image its row and column."""
        size = self.config.input_size
        places = torch.zeros(length + size**2, NUM_AXES, device=device)
        places[:length, 3] = torch.arange(length, device=device)
        side = torch.arange(size, device=device)
        places[length:, 1], places[length:, 2] = side.repeat_interleave(size), side.repeat(size)
        found: tuple[Tensor, Tensor] = self.backbone.pos_embed(places)
        return found

    def _semantics_first(self, x: Tensor) -> Tensor:
        """``[texture ; semantic]`` ``(B, C, H, W)`` -> ``[semantic ; texture]``."""
        return x.roll(self.config.semantic_channels, dims=1)

    def _texture_first(self, x: Tensor) -> Tensor:
        """Inverse of :meth:`_semantics_first`."""
        return x.roll(-self.config.semantic_channels, dims=1)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> Self:
        """As LightningDiT: Xavier; normal of std 0.02 for class tables and time embedders; zero for modulations and output.

        How the published models began is not known.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.RMSNorm):
                nn.init.ones_(module.weight)
        tables = [module.weight for module in self.modules() if isinstance(module, nn.Embedding)]
        times = [module.weight for module in self.dual_time_embed.modules() if isinstance(module, nn.Linear)]
        for weight in (*tables, *times):
            nn.init.normal_(weight, std=0.02, generator=generator)
        network = self.backbone
        modulations = (
            network.double_stream_modulation_img,
            network.double_stream_modulation_txt,
            network.single_stream_modulation,
            network.norm_out,
        )
        for modulation in modulations:
            nn.init.zeros_(modulation.linear.weight)
        nn.init.zeros_(network.proj_out.weight)
        for convolution in (module.proj for module in self.modules() if isinstance(module, ConvProjector)):
            nn.init.xavier_uniform_(convolution.weight.flatten(1), generator=generator)
            nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]  # it has a bias
        return self

    def checkpoint_activations(self, kind: Checkpointing) -> None:
        """As :class:`sfd.models.backbone.Backbone` says, for each block."""
        self.checkpointing = kind

    def output_layer(self) -> nn.Linear:
        """The last layer."""
        layer: nn.Linear = self.backbone.proj_out
        return layer

    def named_axes(self) -> dict[str, Axis]:
        """Channels of the first and the last layer, semantics first; rows of the condition's tables."""
        semantic, state = self.config.semantic_channels, self.state_dict()
        names = channel_names(self.config.in_channels - semantic, semantic)
        channels = [*names[len(names) - semantic :], *names[: len(names) - semantic]]
        tables = {} if self.y_embedder is None else self.config.condition.rows()
        axes = {f"y_embedder.{name}": Axis(state[f"y_embedder.{name}"], 0, rows) for name, rows in tables.items()}
        axes["backbone.x_embedder.weight"] = Axis(state["backbone.x_embedder.weight"], 1, channels)
        axes["backbone.proj_out.weight"] = Axis(state["backbone.proj_out.weight"], 0, channels)
        return axes
