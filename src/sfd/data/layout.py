"""What the producer of an image folder says about it, in a small file in the folder's hidden `.sfd/`.

A command that writes class folders of images may leave tables and reports beside them. The marker names these, so that a reader of the
images skips them. It also tells whether the folder is complete. This module knows no producer.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from sfd.errors import UserError

HIDDEN = ".sfd"
"""Folder of the marker, and of other files that the producer needs."""
MARKER = "folder.json"


@dataclass(frozen=True)
class FolderLayout:
    """One marker.

    Attributes:
        made_by: the command that makes the folder, and that completes it when it is given again.
        beside: names directly in the folder that are neither classes nor images.
        complete_with: the one of these that is written last; the folder is complete if it exists.
    """

    made_by: str
    beside: tuple[str, ...]
    complete_with: str

    @classmethod
    def read(cls, root: Path) -> "FolderLayout | None":
        """The marker in this folder; None if it has none. Raises :class:`UserError` if it cannot be read."""
        file = root / HIDDEN / MARKER
        if not file.is_file():
            return None
        try:
            facts = json.loads(file.read_text(encoding="utf-8"))
            return cls(facts["made_by"], tuple(facts["beside"]), facts["complete_with"])
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(
                f"{file} cannot be read, so it is not known which names in {root} are no classes; make that folder again, or delete the "
                "file if it is a folder of your own"
            ) from None

    def write(self, root: Path) -> None:
        """Marks this folder, in one rename."""
        file = root / HIDDEN / MARKER
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        temporary.replace(file)

    @property
    def own_names(self) -> frozenset[str]:
        """All names directly in the folder that are no classes."""
        return frozenset({HIDDEN, *self.beside})

    def is_complete(self, root: Path) -> bool:
        """Whether the command that makes this folder has ended."""
        return (root / self.complete_with).is_file()
