"""A small ResNet as the judge, trained on the class labels of the data set."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfd.encoders.judges.judge import Judge
from sfd.network_files import load_weights, read_config, save_network, weights_digest
from sfd.params import JudgeParams
from sfd.pixels import to_pixels
from sfd.seeding import seeded_initialisation

BASE = "resnet18"
"""The timm model whose dimensions :func:`_arguments` replaces."""


class ResnetJudge(Judge):
    """A small ResNet. ``classes`` is None if it was trained without class labels (a single class)."""

    kind = "resnet"

    def __init__(
        self, name: str, digest: str, channels: tuple[int, ...], num_outputs: int, classes: int | None
    ) -> None:
        import timm

        super().__init__()
        self.name, self.digest, self.classes, self.num_features = name, digest, classes, channels[-1]
        self.resnet = timm.create_model(BASE, num_classes=num_outputs, **_arguments(channels))

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """As :class:`Judge` says; the features are pooled, and there are no logits without class labels."""
        # Pooled in float32: a mean in bf16 has so few values that different images would get the same features.
        maps = self.run(self.resnet.forward_features, to_pixels(images))
        features = self.resnet.forward_head(maps, pre_logits=True)
        return features, self.resnet.fc(features) if self.classes is not None else None

    @classmethod
    def trainable(cls, params: JudgeParams, num_outputs: int, seed: int) -> nn.Module:
        """As :class:`Judge` says."""
        import timm

        with seeded_initialisation(seed, "judge/initialisation"):
            network: nn.Module = timm.create_model(BASE, num_classes=num_outputs, **_arguments(params.channels))
        return network

    @classmethod
    def save_trained(
        cls, folder: Path, params: JudgeParams, network: nn.Module, num_outputs: int, classes: int | None
    ) -> None:
        """As :class:`Judge` says."""
        shape = {"channels": list(params.channels), "num_outputs": num_outputs, "classes": classes}
        save_network(folder, network, {"kind": cls.kind, "name": params.name, **shape})

    @classmethod
    def load(cls, folder: Path) -> "ResnetJudge":
        """As :class:`Judge` says."""
        config = read_config(folder)
        channels = tuple(config["channels"])
        judge = cls(config["name"], weights_digest(folder), channels, config["num_outputs"], config["classes"])
        load_weights(folder, judge.resnet)
        return judge


def _arguments(channels: tuple[int, ...]) -> dict[str, Any]:
    """timm arguments: one block per stage, and no initial pooling, because the images are small."""
    return {
        "layers": [1, 1, 1, 1],
        "channels": list(channels),
        "stem_width": channels[0],
        "stem_type": "deep",
        "replace_stem_pool": True,
    }
