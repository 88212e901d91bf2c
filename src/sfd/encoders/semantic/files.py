"""Semantic encoders on disk, of either kind."""

from pathlib import Path

from sfd.encoders.semantic.pca import PcaSemantic
from sfd.encoders.semantic.semvae import SemVae, load_semvae
from sfd.errors import UserError
from sfd.network_files import load_weights, read_config, save_network

SemanticEncoder = SemVae | PcaSemantic
"""``encode``: features ``(B, N, D)`` to the latent ``(B, N, C_sem)`` (of a VAE: the posterior's mean); ``decode``: the way back;
``latent_channels``: C_sem."""


def save_pca(folder: Path, network: PcaSemantic) -> None:
    """Writes ``config.json`` and ``model.safetensors``."""
    config = {"kind": "pca", "input_dim": network.input_dim, "latent_channels": network.latent_channels}
    save_network(folder, network, config)


def load_semantic(folder: Path) -> SemanticEncoder:
    """What stage ``semantic`` left, in evaluation mode. Raises :class:`UserError` if files are missing or do not fit."""
    config = read_config(folder)
    kind = config.pop("kind", "semvae")
    if kind == "semvae":
        return load_semvae(folder)
    if kind != "pca":
        raise UserError(f"{folder / 'config.json'}: kind is {kind!r}, but must be `pca`, or absent for a SemVAE")
    try:
        network = PcaSemantic(**config)
    except (TypeError, RuntimeError) as error:
        raise UserError(
            f"{folder / 'config.json'} does not describe principal components: {error}; rerun stage `semantic`"
        ) from error
    load_weights(folder, network)
    return network.eval()
