"""A semantic encoder that is given as a folder: whether it is the one that the parameters describe."""

from pathlib import Path

from sfd.errors import UserError
from sfd.network_files import read_config
from sfd.params import SemanticParams

OPTIONS = {
    "latent_channels": "latent_channels",
    "latent_dim": "latent_channels",
    "hidden_dim": "width",
    "blocks": "depth",
    "heads": "num_heads",
}
"""Keys of a semantic encoder's ``config.json``, and what section ``semantic`` calls them."""
FEATURE_DIM = "input_dim"
"""The key of the features' channels."""


def check_given(folder: Path, params: SemanticParams, feature_dim: int) -> None:
    """Reads the configuration alone. ``feature_dim``: channels of the vision encoder's features.

    Raises:
        UserError: the folder holds none, or one of another kind or of other widths; all that differs is named.
    """
    config = read_config(folder)
    if config.get("kind") != params.kind:
        raise UserError(
            f"semantic.file {folder} is of kind {config.get('kind')!r}, but semantic.kind is `{params.kind}`: give a folder of "
            "`sfd import --kind semantic-vae`, or of results/semantic/model, and its kind"
        )
    differ = [
        f"semantic.{option} is {getattr(params, option)}, but its own is {config[key]}"
        for key, option in OPTIONS.items()
        if key in config and config[key] != getattr(params, option)
    ]
    if differ:
        raise UserError(
            f"semantic.file {folder}: {'; '.join(differ)}: write its own into params.yaml, or give another file"
        )
    if config.get(FEATURE_DIM, feature_dim) != feature_dim:
        raise UserError(
            f"semantic.file {folder} takes features of {config[FEATURE_DIM]} channels, but the vision encoder gives {feature_dim}: set encoder to "
            "the network that it was trained with, or give another file"
        )
