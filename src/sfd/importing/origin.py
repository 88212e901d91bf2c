"""The networks that the latents of an imported model came from: folders that the user names, which must hold networks that fit."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sfd.data.networks import ENCODER, SEMANTIC, SHOWN, TEXTURE_VAE, WORDS, Networks
from sfd.encoders.semantic.encoder import load_semantic
from sfd.encoders.texture_vae import FLUX2, TextureVae, load_texture_vae
from sfd.encoders.vision import load_encoder
from sfd.errors import UserError
from sfd.models.flux2_config import Flux2Config
from sfd.models.lightningdit_config import LightningDiTConfig
from sfd.network_files import network_digest, read_config

OPTIONS = {TEXTURE_VAE: "--texture-vae", ENCODER: "--encoder", SEMANTIC: "--semantic-vae"}

Network = TypeVar("Network")


def read_latent_networks(
    texture_vae: Path | None, encoder: Path | None, semantic_vae: Path | None, config: LightningDiTConfig | Flux2Config
) -> Networks:
    """The digests of the networks in these folders, as far as they are given.

    Raises:
        UserError: a folder holds no such network, or one whose channels are not those of the model's latents.
    """
    semantic, found = config.semantic_channels, dict[str, str | None]()
    if semantic == 0:
        if encoder is not None or semantic_vae is not None:
            raise UserError(
                "--encoder and --semantic-vae are of models with semantic channels, which this one does not have: leave them out"
            )
        found |= {ENCODER: None, SEMANTIC: None}
    if texture_vae is not None:
        channels = _load(TEXTURE_VAE, texture_vae, _load_texture_vae).latent_channels
        _check_channels(TEXTURE_VAE, texture_vae, channels, config.in_channels - semantic)
        found[TEXTURE_VAE] = network_digest(texture_vae)
    if encoder is not None:
        channels = _load(ENCODER, encoder, load_encoder).feature_dim
        if config.repa_depth:
            _check_channels(ENCODER, encoder, channels, config.feature_dim)
        found[ENCODER] = network_digest(encoder)
    if semantic_vae is not None:
        channels = _load(SEMANTIC, semantic_vae, load_semantic).latent_channels
        _check_channels(SEMANTIC, semantic_vae, channels, semantic)
        found[SEMANTIC] = network_digest(semantic_vae)
    return {name: found[name] for name in WORDS if name in found}


def describe_networks(networks: Networks) -> list[str]:
    """Lines that say which networks are recorded, and which are not."""
    known = [f"{WORDS[name]} {digest[:SHOWN]}" for name, digest in networks.items() if digest is not None]
    unknown = [name for name in WORDS if name not in networks]
    lines = [f"its latents came from: {', '.join(known)}"] if known else []
    if unknown:
        options = " ".join(f"{OPTIONS[name]} FOLDER" for name in unknown)
        words = ", ".join(WORDS[name] for name in unknown)
        lines.append(f"not recorded, so others will not be refused: {words}; name them with {options}")
    return lines


def _load_texture_vae(folder: Path) -> TextureVae:
    """:func:`load_texture_vae`, after a look at the record: diffusers would look for pickled weights in a folder of something else."""
    config = read_config(folder)
    if "kind" not in config and config.get("_class_name") not in ("AutoencoderKL", FLUX2):
        raise UserError(f"{folder} holds no texture VAE; name a folder of `sfd import` or results/texture_vae/model")
    return load_texture_vae(folder)


def _load(name: str, folder: Path, load: Callable[[Path], Network]) -> Network:
    try:
        return load(folder)
    except UserError as error:
        raise UserError(f"{OPTIONS[name]}: {error}") from error


def _check_channels(name: str, folder: Path, found: int, wanted: int) -> None:
    if found != wanted:
        raise UserError(
            f"{OPTIONS[name]} {folder} has {found} channels, but the model was trained with {wanted}: name the network of the same publication"
        )
