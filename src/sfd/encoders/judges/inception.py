"""Inception-v3 as the judge, through torch-fidelity: the network that FID, sFID and the inception score are defined on."""

import shutil
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from sfd.encoders.judges.judge import Judge
from sfd.errors import UserError
from sfd.names import INCEPTION
from sfd.network_files import file_digest, write_config
from sfd.params import JudgeParams

WEIGHTS = "inception.pth"
"""The weights, in torch-fidelity's own format."""
NUM_FEATURES = 2048
SPATIAL_CHANNELS, SPATIAL_SIDE = 7, 17
"""The part of Inception-v3 that sFID uses, as in ADM's evaluator (arXiv 2105.05233): from `mixed_6/conv` of the published graph."""


class InceptionJudge(Judge):
    """Inception-v3 as FID defines it. Its logits score classes of ImageNet, so ``classes`` is None."""

    kind = "inception"

    def __init__(self, weights: Path) -> None:
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        self.name, self.classes, self.num_features = INCEPTION, None, NUM_FEATURES
        self.num_spatial_features = SPATIAL_CHANNELS * SPATIAL_SIDE**2
        self.digest = file_digest(weights)
        self.inception = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights)
        )

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """As :class:`Judge` says: features ``(B, 2048)`` and unbiased ImageNet logits ``(B, 1008)``."""
        return self.run(self._seen, images)

    def _seen(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = self.inception(images)
        return features, logits

    @torch.no_grad()
    def with_spatial(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As :class:`Judge` says: spatial features ``(B, 2023)``.

        They are the first 7 channels of the 17x17 map behind the 1x1 convolution (with its ReLU) of TensorFlow's block `mixed_6`,
        channels last, as there. torch-fidelity calls this block `Mixed_6d`. Never compiled, because a hook reads them within the network.
        """
        maps: list[Tensor] = []
        hook = self.inception.Mixed_6d.branch1x1.register_forward_hook(
            lambda _module, _inputs, found: maps.append(found)
        )
        try:
            with nullcontext() if self.inference is None else self.inference.arithmetic():
                features, logits = self._seen(images)
        finally:
            hook.remove()
        spatial = maps[0][:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        return features.float(), logits.float(), spatial.float()

    @classmethod
    def save_pretrained(cls, folder: Path, params: JudgeParams) -> None:
        """As :class:`Judge` says: a copy of ``params.file``, or the weights that torch-fidelity downloads.

        Raises:
            UserError: the weights cannot be fetched, or the file does not hold plain tensors of Inception-v3.
        """
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

        folder.mkdir(parents=True, exist_ok=True)
        target = folder / WEIGHTS
        try:
            if params.file is not None:
                # torch-fidelity itself would unpickle anything.
                torch.load(params.file, weights_only=True, map_location="cpu")
                shutil.copyfile(params.file, target)
            else:
                torch.hub.download_url_to_file(URL_INCEPTION_V3, str(target), progress=False)
            cls(target)
        except Exception as error:
            target.unlink(missing_ok=True)
            raise UserError(_advice(params.file, URL_INCEPTION_V3, error)) from error
        write_config(folder, {"kind": cls.kind})

    @classmethod
    def load(cls, folder: Path) -> "InceptionJudge":
        """As :class:`Judge` says."""
        return cls(folder / WEIGHTS)


def _advice(file: Path | None, url: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:300]
    remedy = (
        "give torch-fidelity's weights-inception-2015-12-05-6726825d.pth"
        if file
        else "download it elsewhere and set its source to `file` and its file to PATH in `judges`"
    )
    return f"the weights of Inception-v3 ({file or url}) could not be loaded: {reason}; {remedy}"
