"""Stage ``texture_vae``: the texture VAE, loaded or trained once, with a picture of what it does to held-out images."""

import torch

from sfd.data.images import ManifestImages
from sfd.data.manifest import HELDOUT, TRAIN
from sfd.encoders import texture_vae as texture_vaes
from sfd.pictures import NUM_PAIRS, pairs
from sfd.pipeline.prepare import open_prepared
from sfd.pipeline.stage import Stage
from sfd.pipeline.training import train_stage
from sfd.seeding import generator
from sfd.training.texture_vae import TextureVaeTask


def make_texture_vae(stage: Stage) -> None:
    """Writes the texture VAE as ``texture_vae.source`` says, and the picture."""
    params, data = stage.params.texture_vae, open_prepared(stage.workspace, stage.params)
    if params.source == "train":
        network = texture_vaes.TrainableAutoencoder(params, stage.params.seed)
        task = TextureVaeTask(params, network, data.images(TRAIN), data.params.image_size, stage.params.seed)
        train_stage(task, params.training, stage.params.runtime.texture_vae, stage).copy_to(network)
        vae = texture_vaes.TextureVae(network.autoencoder).eval()
    else:
        vae = texture_vaes.load_pretrained(stage.workspace.resolve_paths(params))
    _picture_reconstructions(vae, data.images(HELDOUT), stage)
    texture_vaes.save_texture_vae(stage.out / "model", vae)


def _picture_reconstructions(vae: texture_vaes.TextureVae, heldout: ManifestImages, stage: Stage) -> None:
    chosen = torch.linspace(0, len(heldout) - 1, min(NUM_PAIRS, len(heldout))).long().tolist()
    images = heldout.__getitems__(chosen).images
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
