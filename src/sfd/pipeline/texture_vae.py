"""Stage ``texture_vae``: the texture VAE, loaded, fitted or trained once, and what it does to held-out images."""

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from sfd.class_mix import evenly_spaced
from sfd.data.batches import in_batches
from sfd.data.images import ManifestImages
from sfd.data.manifest import HELDOUT, TRAIN
from sfd.data.prepared import Prepared
from sfd.encoders import texture_vae as texture_vaes
from sfd.encoders.tokenizers.pca import PcaTokenizer
from sfd.encoders.tokenizers.residual import ResidualDecoder
from sfd.encoders.tokenizers.tokenizer import Tokenizer
from sfd.encoders.vision import VisionEncoder, load_encoder
from sfd.evaluation.reconstruction import psnr, ssim
from sfd.names import TOKENIZERS, load
from sfd.params import TextureVaeParams
from sfd.pictures import NUM_PAIRS, side_by_side
from sfd.pipeline.prepare import open_prepared
from sfd.pipeline.quality import record_quality
from sfd.pipeline.stage import Stage
from sfd.pipeline.training import train_stage
from sfd.precision import Inference
from sfd.processes import inference_device
from sfd.seeding import generator
from sfd.training.alignment import Alignment
from sfd.training.texture_vae import Features, ResidualTask, TextureVaeTask

FIT_IMAGES = 5000
"""Training images that a tokenizer, and the linear yardstick, are fitted to."""

QUALITY_IMAGES = 1000
"""Held-out images that the reconstruction is measured on."""

BATCH = 50
"""Images that are in memory at a time."""


@dataclass(frozen=True)
class Quality:
    """How well held-out images survive the round trip, beside the linear yardstick: principal components of blocks of the same size with
    as many channels, fitted to training images.

    Attributes:
        images: held-out images measured.
        psnr: median over the images, dB.
        ssim: mean over the images.
        linear_psnr: as ``psnr``, of the yardstick.
        linear_ssim: as ``ssim``, of the yardstick.
    """

    images: int
    psnr: float
    ssim: float
    linear_psnr: float
    linear_ssim: float

    def __str__(self) -> str:
        return (
            f"{self.images} held-out images: PSNR {self.psnr:.1f} dB (linear: {self.linear_psnr:.1f}), "
            f"SSIM {self.ssim:.3f} (linear: {self.linear_ssim:.3f})"
        )


def make_texture_vae(stage: Stage) -> None:
    """Writes the texture VAE as ``texture_vae.source`` says, ``quality.json``, and the picture."""
    data = open_prepared(stage.workspace, stage.params)
    vae = _make(data, stage)
    train = data.images(TRAIN)
    linear = PcaTokenizer.yardstick(vae.factor, vae.latent_channels, _spread(train, FIT_IMAGES))
    heldout = data.images(HELDOUT)
    quality = _measure(vae, linear, heldout, stage.params.seed)
    print(f"texture_vae: {quality}", file=sys.stderr)
    _picture(vae, linear, heldout, stage)
    vae.cpu().save(stage.out / "model")
    record_quality(stage, asdict(quality))


def _make(data: Prepared, stage: Stage) -> texture_vaes.TextureVae:
    params, seed, size = stage.params.texture_vae, stage.params.seed, data.params.image_size
    images, runtime = data.images(TRAIN), stage.params.runtime.texture_vae
    if params.is_fitted:
        return _fit(params, images, stage)
    if params.source != "train":
        return texture_vaes.load_pretrained(stage.workspace.resolve_paths(params))
    network = texture_vaes.TrainableAutoencoder(params, seed)
    encoder = _encoder(stage)
    alignment = None
    if encoder is not None and params.alignment.weight > 0.0:
        alignment = Alignment(params.alignment, params.latent_channels, encoder.feature_dim, seed)
    task = TextureVaeTask(params, network, images, size, seed, _features(encoder), alignment)
    train_stage(task, params.training, runtime, stage).copy_to(task.network)
    return texture_vaes.KlVae(network.autoencoder).eval()


def _fit(params: TextureVaeParams, images: ManifestImages, stage: Stage) -> Tokenizer:
    """A fitted tokenizer, and on top of it the trained network if there is to be one."""
    tokenizer: Tokenizer = load(TOKENIZERS, params.source).build(params)
    tokenizer.fit(_spread(images, FIT_IMAGES))
    if params.training is not None:
        residual = ResidualDecoder.initialised(tokenizer.factor, params.residual_width, stage.params.seed)
        frozen = tokenizer.to(inference_device())
        task = ResidualTask(params, residual, frozen, images, stage.params.seed, _features(_encoder(stage)))
        train_stage(task, params.training, stage.params.runtime.texture_vae, stage).copy_to(task.network)
        tokenizer.residual = residual
    return tokenizer.eval()


def _encoder(stage: Stage) -> VisionEncoder | None:
    """The encoder, if a term of the loss needs its features."""
    if not stage.params.texture_vae.needs_encoder:
        return None
    return load_encoder(stage.upstream("encoder") / "model").to(inference_device())


def _features(encoder: VisionEncoder | None) -> Features | None:
    """Its features of pixels in [-1, 1]."""
    return None if encoder is None else lambda pixels: encoder.features((pixels + 1.0) / 2.0)


def _spread(images: ManifestImages, most: int) -> Iterator[Tensor]:
    """At most so many images, evenly spaced, in batches."""
    for rows in in_batches(evenly_spaced(len(images), most), BATCH):
        yield images.__getitems__(rows).images


def _measure(
    vae: texture_vaes.TextureVae, linear: texture_vaes.TextureVae, heldout: ManifestImages, seed: int
) -> Quality:
    device, noise = inference_device(), generator(seed, "texture_vae/quality")
    for network in (vae, linear):
        network.to(device)
    rows = []
    for images in _spread(heldout, QUALITY_IMAGES):
        both = [_round_trip(network, images.to(device), noise) for network in (vae, linear)]
        rows.append(
            torch.stack([score(images.to(device), decoded).cpu() for decoded in both for score in (psnr, ssim)])
        )
    scores = torch.cat(rows, dim=1)
    return Quality(
        images=scores.shape[1],
        psnr=float(scores[0].median()),
        ssim=float(scores[1].mean()),
        linear_psnr=float(scores[2].median()),
        linear_ssim=float(scores[3].mean()),
    )


def _round_trip(vae: texture_vaes.TextureVae, images: Tensor, random: torch.Generator) -> Tensor:
    """The images, encoded and decoded in float32. The noise is drawn on the CPU, so that it is the same on every device."""
    noise = torch.randn(vae.latent_shape(len(images), images.shape[-1]), generator=random)
    with Inference.float32().arithmetic():
        return vae.decode(vae.encode(images, noise.to(images.device)))


def _picture(
    vae: texture_vaes.TextureVae, linear: texture_vaes.TextureVae, heldout: ManifestImages, stage: Stage
) -> None:
    random, device = generator(stage.params.seed, "texture_vae/picture"), inference_device()
    images = next(_spread(heldout, NUM_PAIRS)).to(device)
    decoded, plain = (_round_trip(network, images, random) for network in (vae, linear))
    captions = [
        f"{mine:.1f} dB, linear {theirs:.1f} dB"
        for mine, theirs in zip(psnr(images, decoded).tolist(), psnr(images, plain).tolist(), strict=True)
    ]
    file = stage.out / "reconstructions.png"
    side_by_side((images, decoded, plain), captions, file, titles=("held-out image", "decoded", "linear"))
    stage.log_artifacts(file)
