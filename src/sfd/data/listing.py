"""Stage ``scan``: have the images changed? Looks at names, sizes and times only, so it is quick.

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

EXPECTED_ROOT = {
    "folder": "a folder that holds one subfolder of images per class",
    "tar": "a folder that holds *.tar files, or of one such file",
    "huggingface": "a folder that holds a data set of the library `datasets`",
}
"""What ``data.root`` must name, by ``data.source``."""


def write_listing(params: DataParams, file: Path) -> None:
    """Writes the number of files and a digest of their paths, sizes and modification times.

    Raises:
        UserError: the folder does not exist, or the hub does not say which revision it has.
    """
    root = Path(params.root)
    if params.source == "digits":
        facts: dict[str, object] = {"source": "digits", "scikit-learn": version("scikit-learn")}
    elif params.source == "huggingface" and not root.is_dir():
        facts = {"source": "huggingface", "root": params.root, "revision": _commit_on_hub(params)}
    else:
        facts = _files_facts(params.source, root)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _commit_on_hub(params: DataParams) -> str:
    """The commit that ``data.root`` at ``data.revision`` is now. Asks the hub, unless the revision is a commit.

    Raises:
        UserError: the name is unknown or the hub cannot be reached.
    """
    revision = params.revision or ""
    if len(revision) == 40 and set(revision) <= set("0123456789abcdef"):
        return revision
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    try:
        commit = HfApi().dataset_info(params.root, revision=params.revision).sha
    except (OSError, ValueError, HTTPError) as error:
        raise UserError(
            f"data.root {params.root} is no folder, and its revision on the hub is not known: {' '.join(str(error).split())[:300]}; "
            "correct the name, check the connection, set data.revision to a commit that was loaded before, or point data.root at a folder"
        ) from error
    return str(commit)


def _files_facts(source: str, root: Path) -> dict[str, object]:
    if source == "tar" and root.is_file():
        lines = [_line(str(root), root.name)]
    elif root.is_dir():
        lines = sorted(_lines(root))
    else:
        raise UserError(f"data.root {root} is not a folder; write the path of {EXPECTED_ROOT[source]}")
    digest = hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
    return {"source": source, "num_files": len(lines), "sha256": digest}


def _lines(root: Path) -> Iterator[str]:
    """One line per file, named relative to the root; linked folders are entered once, links within them are only named."""
    links: list[str] = []
    for folder, folders, files in os.walk(root):
        links += [linked for name in folders if os.path.islink(linked := os.path.join(folder, name))]
        yield from (_line(path := os.path.join(folder, name), path.removeprefix(str(root))) for name in files)
    for link in links:
        target, name_of_link = os.path.realpath(link), link.removeprefix(str(root))
        for folder, _, files in os.walk(target):
            for path in (os.path.join(folder, name) for name in files):
                yield _line(path, name_of_link + path.removeprefix(target))


def _line(path: str, name: str) -> str:
    try:
        status = os.stat(path)
    except OSError:  # a broken link or a loop; stage `prepare` refuses it by name
        status = os.lstat(path)
    return f"{name} {status.st_size} {status.st_mtime_ns}"
