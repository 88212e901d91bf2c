"""Stage ``scan``: did the images change? It looks at names, sizes and times, so it takes seconds.

DVC itself could watch the folder, but it would hash every byte, and it stops at a symbolic link loop, which users do have.
"""

import json
from pathlib import Path

from sfd.data.sources.source import open_source
from sfd.params import DataParams


def write_listing(params: DataParams, file: Path) -> None:
    """Writes what the source says of its images (:meth:`sfd.data.sources.source.DataSource.listing`).

    Raises:
        UserError: the images are not there.
    """
    facts = open_source(params, Path()).listing()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
