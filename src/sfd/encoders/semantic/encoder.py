"""The base class of semantic encoders, and how one is saved. A new kind is one file beside this one and one line of
``names.SEMANTIC_ENCODERS``."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor

from sfd import names
from sfd.errors import UserError
from sfd.network_files import CONFIG, load_weights, read_config, read_implementation, save_network
from sfd.params import SemanticParams
from sfd.precision import InferenceNetwork


class SemanticEncoder(InferenceNetwork, ABC):
    """Patch features ``(B, N, D)`` to the semantic latent ``(B, N, C_sem)``, and back.

    Stage ``semantic`` builds it, then fits or trains it. A kind that is trained also has ``forward(features, noise)``, which gives the
    terms of its loss as batch means, and :meth:`loss_weights`.

    Attributes:
        kind: its name in ``names.SEMANTIC_ENCODERS``, and in ``config.json``.
        is_trained: whether it is trained step by step; else :meth:`fit` computes its weights in one pass over the features.
    """

    kind: ClassVar[str]
    is_trained: ClassVar[bool]

    @property
    @abstractmethod
    def latent_channels(self) -> int:
        """C_sem."""

    @abstractmethod
    def encode(self, features: Tensor) -> Tensor:
        """Features ``(B, N, D)`` to the latent ``(B, N, C_sem)``; for a VAE, that is the posterior's mean."""

    def sample(self, features: Tensor, _noise: Tensor) -> Tensor:
        """As :meth:`encode`; for a VAE, a draw from the posterior by standard normal noise of the latent's shape."""
        return self.encode(features)

    @abstractmethod
    def decode(self, latent: Tensor) -> Tensor:
        """Latent ``(B, N, C_sem)`` to features ``(B, N, D)``."""

    @classmethod
    @abstractmethod
    def build(cls, params: SemanticParams, feature_dim: int, seed: int) -> Self:
        """The encoder that the parameters describe, for features of D = ``feature_dim`` channels; not yet fitted or trained."""

    def fit(self, batches: Iterable[Tensor]) -> None:
        """Computes its weights from all stored features. They come in batches ``(B, N, D)``, one in memory at a time."""
        raise NotImplementedError

    @staticmethod
    def loss_weights(params: SemanticParams) -> dict[str, float]:
        """The weight of each term of the loss that ``forward`` returns."""
        raise NotImplementedError

    def quality(self, _features: Tensor) -> dict[str, float]:
        """Metrics that only this kind has, besides the quality of the reconstruction: means over the images."""
        return {}

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Plain values from which :meth:`from_config` builds a network of the same shape."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Inverse of :meth:`config`. Raises ``TypeError``, ``RuntimeError`` or ``AssertionError`` for a record that does not fit."""


def semantic_class(kind: str) -> type[SemanticEncoder]:
    """The implementation of ``semantic.kind``."""
    found: type[SemanticEncoder] = names.load(names.SEMANTIC_ENCODERS, kind)
    return found


def save_semantic(folder: Path, network: SemanticEncoder) -> None:
    """Writes ``config.json`` and ``model.safetensors``."""
    save_network(folder, network, {"kind": network.kind, **network.config()})


def load_semantic(folder: Path) -> SemanticEncoder:
    """Inverse of :func:`save_semantic`, in evaluation mode. Raises :class:`UserError` if files are missing or do not fit."""
    kind: type[SemanticEncoder] = read_implementation(folder, names.SEMANTIC_ENCODERS)
    config = read_config(folder)
    del config["kind"]
    try:
        network = kind.from_config(config)
    except (TypeError, RuntimeError, AssertionError) as error:
        raise UserError(
            f"{folder / CONFIG} does not describe a semantic encoder of kind `{kind.kind}`: {error}; rerun the stage that makes it"
        ) from error
    load_weights(folder, network)
    return network.eval().requires_grad_(False)
