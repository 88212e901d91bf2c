"""The import of diffusers' ``AutoencoderKL`` without the libraries that other models of diffusers need.

Where peft and transformers are installed, diffusers imports both with any of its models. On a slow core that takes as long as the import of
torch, and half of the stages, every registered model and every server load a texture VAE.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

FOR_OTHER_MODELS = ("peft", "transformers")
"""What diffusers looks for and does without; an autoencoder has neither adapters nor text encoders."""


def import_autoencoder() -> "type[AutoencoderKL]":
    """The class ``AutoencoderKL``."""
    # A diffusers that is imported already has looked for them.
    with nullcontext() if "diffusers" in sys.modules else not_found(*FOR_OTHER_MODELS):
        from diffusers import AutoencoderKL
    found: type[AutoencoderKL] = AutoencoderKL
    return found


@contextmanager
def not_found(*packages: str) -> Iterator[None]:
    """Within the block, an import of these packages says that they are not there; those that are imported already stay.

    Python does so for a name that ``sys.modules`` maps to None.
    """
    hidden = [name for name in packages if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in hidden:
            if sys.modules.get(name, name) is None:
                del sys.modules[name]
