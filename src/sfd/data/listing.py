"""Stage ``scan``: has anything in the image folder changed? Looks at names, sizes and times only, so it is quick.

DVC itself could watch the folder, but it hashes every byte of it and stops at a symlink loop, which users do have.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from sfd.errors import UserError
from sfd.params import DataParams


def write_listing(params: DataParams, file: Path) -> None:
    """Writes the number of files and a digest of their paths, sizes and modification times.

    Raises:
        UserError: the folder does not exist.
    """
    if params.source == "digits":
        facts: dict[str, object] = {"source": "digits", "scikit-learn": version("scikit-learn")}
    else:
        facts = _folder_facts(Path(params.root))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _folder_facts(root: Path) -> dict[str, object]:
    if not root.is_dir():
        raise UserError(
            f"data.root {root} is not a folder; write the path of a folder that holds one subfolder a class"
        )
    lines = sorted(_lines(root))
    digest = hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
    return {"source": "folder", "root": str(root), "num_files": len(lines), "sha256": digest}


def _lines(root: Path) -> Iterator[str]:
    """One line a file; linked folders are entered once, links within them are only named."""
    links: list[str] = []
    for folder, folders, files in os.walk(root):
        links += [linked for name in folders if os.path.islink(linked := os.path.join(folder, name))]
        yield from (_line(os.path.join(folder, name)) for name in files)
    for link in links:
        for folder, _, files in os.walk(os.path.realpath(link)):
            yield from (f"{link}/{_line(os.path.join(folder, name))}" for name in files)


def _line(path: str) -> str:
    try:
        status = os.stat(path)
    except OSError:  # a broken link or a loop; stage `prepare` refuses it by name
        status = os.lstat(path)
    return f"{path} {status.st_size} {status.st_mtime_ns}"
