"""Text files of the user's that are replaced."""

import os
import shutil
import tempfile
from pathlib import Path


def replace_text(file: Path, text: str) -> None:
    """Writes a text file in one rename; one that is there keeps its permissions. Raises :class:`OSError` if it cannot be written."""
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=f".{file.name}.") as folder:
        fresh = Path(folder) / file.name
        fresh.write_text(text, encoding="utf-8")
        if file.exists():
            shutil.copymode(file, fresh)
        os.replace(fresh, file)
