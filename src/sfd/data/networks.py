"""The networks that latents came from, by digest. A model knows the latents of one texture VAE, vision encoder and semantic encoder only: with
others of the same shapes it would run, and give noise."""

from collections.abc import Mapping
from pathlib import Path

from sfd.errors import UserError
from sfd.network_files import CONFIG, read_config

Networks = Mapping[str, str | None]
"""A name of :data:`WORDS` to a digest (:func:`sfd.network_files.network_digest`). None: the latents have no such part. A name that is missing
is not known."""

TEXTURE_VAE, ENCODER, SEMANTIC = "texture_vae", "encoder", "semantic"
WORDS = {TEXTURE_VAE: "texture VAE", ENCODER: "vision encoder", SEMANTIC: "semantic encoder"}
START_REMEDY = (
    "take those that it was trained with (texture_vae, encoder, semantic; `source: file` where they were imported), or set "
    "diffusion.other_networks to true"
)
"""For a model that training starts from."""
SHOWN = 12
"""Digits of a digest in a message."""


def read_networks(folder: Path) -> Networks:
    """The networks that the latents of a saved diffusion model came from; empty for a model of a version that did not record them.

    Raises:
        UserError: the record is no mapping of known names to texts.
    """
    found = read_config(folder).get("networks", {})
    if not isinstance(found, dict) or not all(
        name in WORDS and (digest is None or isinstance(digest, str)) for name, digest in found.items()
    ):
        raise UserError(
            f"{folder / CONFIG}: networks must map {', '.join(WORDS)} to digests, but is {found!r}; make the model again, or correct the path"
        )
    return found


def compared_at_start(theirs: int, ours: int) -> tuple[str, ...]:
    """What must be the same where training starts from a model. Arguments: semantic channels of both.

    Semantic channels of another number are re-initialised, so any semantic encoder serves.
    """
    return tuple(WORDS) if theirs == ours else (TEXTURE_VAE,)


def check_networks(
    what: str,
    theirs: Networks,
    place: str,
    ours: Networks,
    compared: tuple[str, ...],
    remedy: str,
    accepted: bool,
) -> str:
    """Compares the networks that two sets of latents came from; parts that only one of them has are not compared.

    Args:
        what, theirs: the model and its networks.
        place, ours: what it is to be used with, and the networks of that.
        compared: names of :data:`WORDS`.
        remedy: what to do where they differ.
        accepted: whether the user wants to go on although they differ.

    Returns:
        A line for the user where they differ, or where a side does not know; else an empty text.

    Raises:
        UserError: they differ, and that is not accepted.
    """
    different = [
        f"{WORDS[name]} {_short(theirs[name])} there and {_short(ours[name])} here"
        for name in compared
        if theirs.get(name) and ours.get(name) and theirs[name] != ours[name]
    ]
    if different:
        reason = f"{what} was trained on latents of other networks than {place}: {', '.join(different)}"
        if not accepted:
            raise UserError(f"{reason}; {remedy}")
        return f"goes on as told, although {reason}"
    for side, networks in ((what, theirs), (place, ours)):
        unknown = [WORDS[name] for name in compared if name not in networks]
        if unknown:
            rest = "nothing can be compared" if len(unknown) == len(compared) else "that is not compared"
            return f"{side} does not say which {' and '.join(unknown)} its latents came from, so {rest}"
    return ""


def _short(digest: str | None) -> str:
    return (digest or "")[:SHOWN]
