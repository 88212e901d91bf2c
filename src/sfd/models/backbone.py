"""The base class of the backbones in :data:`sfd.names.BACKBONES`, and how one is built by name.

Legend of shapes: B images, C channels, H x W latent positions, N tokens, F encoder feature width.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn

from sfd.errors import UserError
from sfd.models.checkpointing import Checkpointing
from sfd.models.conditions import Condition, Told
from sfd.names import BACKBONES, load

if TYPE_CHECKING:
    from sfd.params import ModelParams


@dataclass(frozen=True)
class Facts:
    """What a backbone needs to know besides its own options.

    Attributes:
        grid: positions along one side of the latents.
        texture_channels, semantic_channels: channels of the composite latent, in this order.
        feature_dim: width F of the encoder's features.
        condition: what the model is told about an image.
        two_times: whether texture and semantics have times of their own.
        repa_depth: block after which hidden states are aligned with the encoder's features; 0: nowhere.
        repa_width: hidden width of the projector of that alignment, where it has one.
        repa_projector: kind of that projector, one of :data:`sfd.models.projector.PROJECTORS`.
        dense_blocks: how many blocks at the start and at the end see all tokens, where those in between are a path of their own (SPRINT,
            :mod:`sfd.models.tokens`); None: there is one path.
    """

    grid: int
    texture_channels: int
    semantic_channels: int
    feature_dim: int
    condition: Condition
    two_times: bool
    repa_depth: int
    repa_width: int
    repa_projector: str
    dense_blocks: tuple[int, int] | None = None


class BackboneConfig(Protocol):
    """The configuration of a backbone, as code outside this package sees it.

    ``kind``: the backbone's name in :data:`sfd.names.BACKBONES`, ``params.yaml`` and ``config.json``.
    """

    kind: ClassVar[str]

    @property
    def input_size(self) -> int:
        """Positions along one side of the latents."""

    @property
    def in_channels(self) -> int:
        """Channels of the composite latent."""

    @property
    def semantic_channels(self) -> int:
        """How many of them are semantic; they are the last ones."""

    @property
    def two_times(self) -> bool:
        """Whether texture and semantics have times of their own."""

    @property
    def repa_depth(self) -> int:
        """Block after which hidden states are aligned with the encoder's features; 0: nowhere."""

    @property
    def condition(self) -> Condition:
        """What the model is told about an image."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``config.json``, without the condition."""

    @classmethod
    def from_dict(cls, values: dict[str, Any], condition: Condition) -> Self:
        """Inverse of :meth:`to_dict`. Raises ``TypeError`` or ``ValueError`` for keys that are missing or unknown."""

    @classmethod
    def from_params(cls, params: "ModelParams", facts: Facts) -> Self:
        """The configuration that the parameters describe. Raises :class:`sfd.errors.UserError` if the facts do not fit them."""


class Output(NamedTuple):
    """``velocity`` ``(B, C, H, W)``; ``projection`` ``(B, N, F)`` for REPA, or None unless it was requested.

    Where REPA's block sees a part of the tokens only, ``projection`` is of those, ``(B, K, F)``.
    """

    velocity: Tensor
    projection: Tensor | None


def channel_names(texture_channels: int, semantic_channels: int) -> list[str]:
    """Names of the composite's channels. A semantic name includes the number of semantic channels, because the channels of latents with
    different numbers of them do not correspond."""
    texture = [f"texture {n}" for n in range(texture_channels)]
    return [*texture, *(f"semantic {n} of {semantic_channels}" for n in range(semantic_channels))]


class Axis(NamedTuple):
    """A view of a tensor along one of its axes, and the names of the entries there."""

    tensor: Tensor
    axis: int
    names: Sequence[str]


class Backbone(nn.Module, ABC):
    """Velocity of a composite latent, given the times of its parts and a condition.

    Attributes:
        config_type: the class of ``config``.
        projector: name of the module that projects hidden states for REPA.
        embedding: name of the condition's module, which is trained in full where other layers get low-rank adapters.
        shared_options: fields of ``config`` that must be equal in a model and the one it is fine-tuned from.
        computed: names of tensors that follow from ``config``; where the grids differ, fine-tuning computes them instead of copying.
        block_layers: regular expression of the names of the linear layers that map tokens to tokens inside the blocks. They get the low-rank
            adapters, and the optimizer `muon` trains their matrices.
        routes_tokens: whether ``forward`` takes ``route``, a :class:`sfd.models.tokens.Route` or None, and the configuration
            :attr:`Facts.dense_blocks`.
    """

    config_type: ClassVar[type[BackboneConfig]]
    projector: ClassVar[str] = "repa_projector"
    embedding: ClassVar[str] = "y_embedder"
    shared_options: ClassVar[tuple[str, ...]] = ()
    computed: ClassVar[tuple[str, ...]] = ()
    block_layers: ClassVar[str] = ""
    routes_tokens: ClassVar[bool] = False
    config: BackboneConfig

    @property
    def has_deep_path(self) -> bool:
        """Whether ``forward`` takes ``skip_deep``, for path-drop guidance (:mod:`sfd.models.tokens`)."""
        return False

    @property
    def has_word_attention(self) -> bool:
        """Whether ``forward`` takes ``sums``, a :class:`sfd.models.attention.AttentionSum` or None for each of the first images."""
        return False

    @abstractmethod
    def forward(
        self, x: Tensor, t_tex: Tensor, t_sem: Tensor, condition: Told, with_projection: bool = False
    ) -> Output:
        """``x`` ``(B, C, H, W)``, times ``(B,)`` in [0, 1], condition as :meth:`sfd.models.conditions.Condition.batch` gives it."""

    @abstractmethod
    def initialise(self, generator: torch.Generator) -> Self:
        """Sets all weights, with random numbers from ``generator`` only; returns the network."""

    def checkpoint_activations(self, kind: Checkpointing) -> None:
        """Chooses what training keeps for the backward pass. Raises :class:`UserError` for a backbone that keeps everything."""
        if kind != "none":
            raise UserError(
                f"runtime.diffusion.activation_checkpointing is `{kind}`, but backbone `{self.config.kind}` has no blocks to compute again: set it "
                "to `none`"
            )

    @abstractmethod
    def output_layer(self) -> nn.Linear | nn.Conv2d:
        """The layer that gives the velocity. It is zero after :meth:`initialise`."""

    def named_axes(self) -> dict[str, Axis]:
        """Tensors whose entries belong to channels of the composite or to values of the condition, by parameter name."""
        return {}


def check_keys(config_type: type[Any], values: dict[str, Any]) -> None:
    """Raises ``ValueError`` naming the keys of a record that are no fields of the configuration, a dataclass."""
    unknown = set(values) - {field.name for field in fields(config_type)}
    if unknown:
        raise ValueError(f"unknown keys in the model's configuration: {', '.join(sorted(unknown))}")


def config_from_params(params: "ModelParams", facts: Facts) -> BackboneConfig:
    """The configuration of ``params.backbone``. Raises as :meth:`BackboneConfig.from_params` does."""
    config: BackboneConfig = load(BACKBONES, params.backbone).config_type.from_params(params, facts)
    return config


def config_from_dict(kind: str, values: dict[str, Any], condition: Condition) -> BackboneConfig:
    """The configuration from its record in ``config.json``. Raises as :meth:`BackboneConfig.from_dict` does."""
    config: BackboneConfig = load(BACKBONES, kind).config_type.from_dict(values, condition)
    return config


def build_backbone(config: BackboneConfig) -> Backbone:
    """The network of a configuration. Its weights must still be initialised or loaded."""
    network: Backbone = load(BACKBONES, config.kind)(config)
    return network
