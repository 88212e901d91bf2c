"""Stage ``scan``: did the images change? It looks at names, sizes and times, so it takes seconds.

DVC itself could watch the folder, but it would hash every byte, and it stops at a symbolic link loop, which users do have.
"""

import json
from pathlib import Path
from typing import Any

from sfd.data.sources.common import line_of
from sfd.data.sources.source import open_source
from sfd.errors import UserError
from sfd.params import DataParams


def write_listing(params: DataParams, file: Path) -> None:
    """Writes what the source says of its images (:meth:`sfd.data.sources.source.DataSource.listing`).

    Raises:
        UserError: the images are not there.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(read_listing(params), indent=2) + "\n", encoding="utf-8")


def read_listing(params: DataParams) -> Any:
    """What :func:`write_listing` writes. Raises :class:`UserError` as it does."""
    found = open_source(params, Path()).listing()
    if not isinstance(params.captions, Path):
        return found
    if not params.captions.is_file():
        raise UserError(
            f"data.captions {params.captions} does not exist; correct the path, or set data.captions to null"
        )
    return found | {"captions": line_of(str(params.captions), params.captions.name)}
