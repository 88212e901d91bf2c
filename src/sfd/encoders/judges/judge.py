"""The base class of judges, and loading one that stage ``judge`` wrote. A new kind is one file beside this one and one line of
``names.JUDGES``."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from sfd import names
from sfd.network_files import read_implementation
from sfd.params import JudgeParams
from sfd.precision import InferenceNetwork


class Judge(InferenceNetwork, ABC):
    """A frozen network that scores images. The first of a project is never the encoder whose features became semantic latents.

    An implementation calls its network by :meth:`run`, so that it computes in the precision of the stage.

    Attributes:
        kind: its name in ``names.JUDGES``, and in ``config.json``.
        name: appears in the keys of metrics; ``inception`` is kept for Inception-v3.
        digest: sha256 of its weights.
        num_features: D, the channels of its features.
        num_spatial_features: S, the size of the spatial features that sFID needs; 0 if it has none.
        fits_classes: whether stage ``judge`` calls :meth:`fit_classes` where the data set has several classes.
        classes: how many classes of the data set its logits score; None if they score other classes, or if it has no logits.
        embeds_texts: whether its features of an image can be compared with :meth:`embed_texts`.
    """

    kind: ClassVar[str]
    name: str
    digest: str
    num_features: int
    num_spatial_features: int = 0
    fits_classes: ClassVar[bool] = False
    classes: int | None
    embeds_texts: ClassVar[bool] = False

    @abstractmethod
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images uint8 ``(B, 3, H, W)`` on its device -> features float32 ``(B, D)``, and logits ``(B, K)`` or None."""

    def with_spatial(self, images: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """As :meth:`forward`, and spatial features ``(B, S)``. Only a judge with ``num_spatial_features`` above 0 implements it."""
        raise NotImplementedError

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts -> features ``(P, D)`` float32 on the CPU. Only a judge with ``embeds_texts`` implements it."""
        raise NotImplementedError

    @property
    def knows_classes(self) -> bool:
        """Whether its logits distinguish the classes of the data set."""
        return self.classes is not None and self.classes > 1

    @property
    def device(self) -> torch.device:
        """Where its weights are, and where it expects images."""
        return next(self.parameters()).device

    @classmethod
    def trainable(cls, params: JudgeParams, num_outputs: int, seed: int) -> nn.Module:
        """A new network for stage ``judge`` to train: pixels ``(B, 3, H, W)`` in [-1, 1] -> logits ``(B, num_outputs)``.

        Only kinds that allow ``source: train`` implement it.
        """
        raise NotImplementedError

    @classmethod
    def save_trained(
        cls, folder: Path, params: JudgeParams, network: nn.Module, num_outputs: int, classes: int | None
    ) -> None:
        """Writes the network of :meth:`trainable` after its training. ``classes``: see the attribute."""
        raise NotImplementedError

    @classmethod
    def save_pretrained(cls, folder: Path, params: JudgeParams) -> None:
        """Writes the judge with weights that others trained, taken from where ``params.source`` says.

        Only kinds that allow ``source: pretrained`` or ``file`` implement it.

        Raises:
            UserError: the weights cannot be loaded.
        """
        raise NotImplementedError

    @classmethod
    def fit_classes(cls, folder: Path, features: Tensor, labels: Tensor, classes: int) -> None:
        """Adds logits to the judge in ``folder``: a classifier of the features ``(N, D)`` of all training images and their ``labels`` ``(N,)``.

        Only kinds with ``fits_classes`` implement it.
        """
        raise NotImplementedError

    @classmethod
    def load(cls, folder: Path) -> "Judge":
        """The judge in ``folder``. Raises :class:`UserError` if its files are missing or do not fit.

        Every kind implements it.
        """
        raise NotImplementedError


def judge_class(kind: str) -> type[Judge]:
    """The implementation of ``judges.N.kind``."""
    found: type[Judge] = names.load(names.JUDGES, kind)
    return found


def load_judge(folder: Path) -> Judge:
    """A judge that stage ``judge`` wrote to ``folder``, in evaluation mode. Raises :class:`UserError` if it is missing or does not fit."""
    kind: type[Judge] = read_implementation(folder, names.JUDGES)
    return kind.load(folder).eval().requires_grad_(False)
