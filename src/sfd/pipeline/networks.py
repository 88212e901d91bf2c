"""Stages ``encoder``, ``texture_vae`` and ``judge``: networks that are loaded, or trained once, and then stay as they are."""

import torch

from sfd.data.images import ManifestImages
from sfd.data.manifest import HELDOUT, TRAIN
from sfd.data.prepared import Prepared
from sfd.encoders import texture_vae as texture_vaes
from sfd.encoders import vision
from sfd.encoders.judges.judge import judge_class
from sfd.evaluation.accuracy import heldout_accuracy
from sfd.params import EncoderParams, JudgeParams, TextureVaeParams
from sfd.pictures import pairs
from sfd.pipeline.stage import Stage
from sfd.pipeline.training import train_stage
from sfd.seeding import generator
from sfd.training.classifier import ClassifierTask, num_outputs
from sfd.training.texture_vae import TextureVaeTask

NUM_PICTURES = 8
"""Images in the picture of reconstructions."""


def make_encoder(params: EncoderParams, data: Prepared, stage: Stage) -> vision.VisionEncoder:
    """The encoder as ``encoder.source`` says."""
    if params.source != "train":
        return vision.load_pretrained(stage.workspace.resolve_paths(params))
    network = vision.TrainableEncoder(params, num_outputs(data.num_classes), stage.params.seed)
    task = ClassifierTask(
        "encoder", network, data.images(TRAIN), data.num_classes, data.params.mirror, stage.params.seed
    )
    train_stage(task, params.training, stage).copy_to(network)
    return vision.freeze(params, network)


def make_judge(params: JudgeParams, data: Prepared, stage: Stage) -> None:
    """Writes the judge as ``judge.source`` says; a trained one is scored on the held-out images."""
    kind, folder = judge_class(params.kind), stage.out / "model"
    if params.source != "train":
        kind.save_pretrained(folder, stage.workspace.resolve_paths(params))
        return
    outputs = num_outputs(data.num_classes)
    network = kind.trainable(params, outputs, stage.params.seed)
    task = ClassifierTask("judge", network, data.images(TRAIN), data.num_classes, data.params.mirror, stage.params.seed)
    train_stage(task, params.training, stage).copy_to(network)
    classes = data.num_classes if data.num_classes > 1 else None
    kind.save_trained(folder, params, network, outputs, classes)
    if classes is not None:
        stage.log({"heldout_accuracy": heldout_accuracy(folder, data)})


def make_texture_vae(params: TextureVaeParams, data: Prepared, stage: Stage) -> texture_vaes.TextureVae:
    """The texture VAE as ``texture_vae.source`` says, with a picture of what it does to held-out images."""
    if params.source == "train":
        network = texture_vaes.TrainableAutoencoder(params, stage.params.seed)
        task = TextureVaeTask(params, network, data.images(TRAIN), data.params.image_size, stage.params.seed)
        train_stage(task, params.training, stage).copy_to(network)
        vae = texture_vaes.TextureVae(network.autoencoder).eval()
    else:
        vae = texture_vaes.load_pretrained(stage.workspace.resolve_paths(params))
    _picture_reconstructions(vae, data.images(HELDOUT), stage)
    return vae


def _picture_reconstructions(vae: texture_vaes.TextureVae, heldout: ManifestImages, stage: Stage) -> None:
    chosen = torch.linspace(0, len(heldout) - 1, min(NUM_PICTURES, len(heldout))).long().tolist()
    images, _ = heldout.__getitems__(chosen)
    noise = torch.randn(
        vae.latent_shape(len(images), images.shape[-1]), generator=generator(stage.params.seed, "texture_vae/picture")
    )
    pixels = texture_vaes.to_pixels(images)
    decoded = vae.decode(vae.encode(images, noise))
    errors = (pixels - texture_vaes.to_pixels(decoded)).square().mean(dim=(1, 2, 3))
    psnr = (10.0 * torch.log10(4.0 / errors)).tolist()
    file = stage.out / "reconstructions.png"
    pairs(images, decoded, [f"{value:.1f} dB" for value in psnr], file, titles=("held-out image", "decoded"))
    stage.log({"reconstruction_psnr": sum(psnr) / len(psnr)})
    stage.log_artifacts(file)
