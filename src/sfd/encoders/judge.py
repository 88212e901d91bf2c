"""The judge: the frozen network whose features score samples. Inception-v3, or a small ResNet trained here."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from sfd.errors import UserError
from sfd.network_files import load_weights, read_config, save_network, weights_digest
from sfd.params import JudgeParams
from sfd.seeding import seeded_initialisation

TRAINED_BASE = "resnet18"
"""timm entry whose dimensions a trained judge overrides."""

INCEPTION_FEATURES = 2048
SPATIAL_CHANNELS, SPATIAL_SIDE = 7, 17
"""What sFID sees of Inception-v3, as ADM's evaluator takes it (arXiv 2105.05233, `mixed_6/conv` of the published graph)."""


class TrainedJudge(nn.Module):
    """A small ResNet. ``classes`` is None when it was trained without class labels (a single class)."""

    def __init__(
        self, name: str, digest: str, channels: tuple[int, ...], num_outputs: int, classes: int | None
    ) -> None:
        super().__init__()
        self.name, self.digest, self.classes, self.num_features = name, digest, classes, channels[-1]
        self.resnet = timm.create_model(TRAINED_BASE, num_classes=num_outputs, **trained_arguments(channels))

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images uint8 ``(B, 3, H, W)`` -> pooled features ``(B, num_features)`` and class logits (None without class labels)."""
        maps = self.resnet.forward_features(images.float() / 127.5 - 1.0)
        features = self.resnet.forward_head(maps, pre_logits=True)
        return features, self.resnet.fc(features) if self.classes is not None else None


class InceptionJudge(nn.Module):
    """Inception-v3 as FID defines it (torch-fidelity); its logits speak of ImageNet, so ``classes`` is None."""

    def __init__(self, weights: Path) -> None:
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        self.name, self.classes, self.num_features = "inception", None, INCEPTION_FEATURES
        self.num_spatial_features = SPATIAL_CHANNELS * SPATIAL_SIDE**2
        with weights.open("rb") as stream:
            self.digest = hashlib.file_digest(stream, "sha256").hexdigest()
        self.inception = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights)
        )

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images uint8 ``(B, 3, H, W)`` -> features ``(B, 2048)`` and unbiased ImageNet logits ``(B, 1008)``."""
        features, logits = self.inception(images)
        return features, logits

    def with_spatial(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`forward`, and the spatial features ``(B, 2023)`` of sFID: the first 7 channels of the 17x17 map behind the 1x1
        convolution (with its ReLU) of TensorFlow's block `mixed_6`, which torch-fidelity calls `Mixed_6d`; channels last, as there."""
        maps: list[Tensor] = []
        hook = self.inception.Mixed_6d.branch1x1.register_forward_hook(
            lambda _module, _inputs, found: maps.append(found)
        )
        try:
            features, logits = self.inception(images)
        finally:
            hook.remove()
        return features, logits, maps[0][:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)


Judge = TrainedJudge | InceptionJudge


def trained_arguments(channels: tuple[int, ...]) -> dict[str, Any]:
    """timm arguments of the small ResNet: one block a stage, no initial pooling (the images are small)."""
    return {
        "layers": [1, 1, 1, 1],
        "channels": list(channels),
        "stem_width": channels[0],
        "stem_type": "deep",
        "replace_stem_pool": True,
    }


def build_trainable(params: JudgeParams, num_outputs: int, seed: int) -> nn.Module:
    """The small ResNet, initialised."""
    with seeded_initialisation(seed, "judge/initialisation"):
        model: nn.Module = timm.create_model(
            TRAINED_BASE, num_classes=num_outputs, **trained_arguments(params.channels)
        )
    return model


def save_trained(folder: Path, params: JudgeParams, resnet: nn.Module, num_outputs: int, classes: int | None) -> None:
    """Writes a trained judge."""
    config = {
        "kind": "trained",
        "name": params.name,
        "channels": list(params.channels),
        "num_outputs": num_outputs,
        "classes": classes,
    }
    save_network(folder, resnet, config)


def save_inception(folder: Path, params: JudgeParams) -> None:
    """Puts Inception's weights into ``folder``: a copy of ``params.file``, or fetched by torch-fidelity.

    Raises:
        UserError: the weights cannot be fetched, or the file does not hold plain tensors of Inception-v3.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "inception.pth"
    try:
        if params.file is not None:
            torch.load(
                params.file, weights_only=True, map_location="cpu"
            )  # torch-fidelity itself would unpickle anything
            shutil.copyfile(params.file, target)
        else:
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(target), progress=False)
        InceptionJudge(target)
    except Exception as error:
        target.unlink(missing_ok=True)
        reason = " ".join(str(error).split())[:300]
        remedy = (
            "give torch-fidelity's weights-inception-2015-12-05-6726825d.pth"
            if params.file
            else "download it elsewhere and set judge.source: file and judge.file: PATH"
        )
        raise UserError(
            f"the weights of Inception-v3 ({params.file or URL_INCEPTION_V3}) could not be loaded: {reason}; {remedy}"
        ) from error


def load_judge(folder: Path) -> Judge:
    """The judge that stage ``judge`` left in ``folder``, in evaluation mode."""
    inception = folder / "inception.pth"
    if inception.is_file():
        return InceptionJudge(inception).eval()
    config = read_config(folder)
    judge = TrainedJudge(
        config["name"], weights_digest(folder), tuple(config["channels"]), config["num_outputs"], config["classes"]
    )
    load_weights(folder, judge.resnet)
    return judge.eval().requires_grad_(False)
