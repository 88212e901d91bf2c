"""What the subfolders of a folder of images mean: classes, or splits above classes, or nothing."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sfd.data.files import ImageRefused
from sfd.data.sources.common import nfc
from sfd.errors import UserError
from sfd.names import HELDOUT, TRAIN

NO_CLASS = "image"
"""The one class of images that have none."""
LOOSE = "not in a class folder"
SHOWN_FOLDERS = 5
"""Subfolders that a note names."""

_ENDING = r"[ _-]?(set|data|split|images|imgs|\d{4})?"
_SPLITS = {
    TRAIN: re.compile(rf"train(ing)?{_ENDING}", re.IGNORECASE),
    HELDOUT: re.compile(rf"(val|valid|validation|test|testing|dev|eval|heldout|holdout){_ENDING}", re.IGNORECASE),
}

_SPLIT_OF_SET = re.compile(r"(train(ing)?|val|valid|validation|test|testing)[ _-]?(?P<set>[A-Z0-9])")
"""A split of one of several sets, as in `trainA` and `testB`."""
_IMAGES = re.compile(r"(jpeg)?(image|img|photo|picture|rgb)s?", re.IGNORECASE)
_DRAWN = re.compile(
    r"(mask|label|annotation|annot|segmentation|segmentation[ _-]?(class|object|mask)|trimap|depth|alpha|matte|gt|ground[ _-]?truth)s?",
    re.IGNORECASE,
)


def split_of(name: str) -> str | None:
    """The split that a folder of this name holds: ``train`` as in `train` or `training_set`, ``heldout`` as in `val` or `test2017`."""
    return next((split for split, pattern in _SPLITS.items() if pattern.fullmatch(name)), None)


def holds_drawings(name: str) -> bool:
    """Whether a folder of this name holds what was drawn over images: masks, depth, annotations."""
    return _DRAWN.fullmatch(name) is not None


@dataclass(frozen=True)
class Arrangement:
    """Where in its path an image's split and its class stand.

    Attributes:
        words: what it is, in words.
        class_depth: the place of the class among the parts of a path, from 1; 0: the folders are no classes.
        split_of_folder: the split of each split folder; empty if there are none. None: the split is drawn.
        notes: what a user may not expect, a sentence each.
    """

    words: str
    class_depth: int
    split_of_folder: dict[str, str | None] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def place_of(self, relative: Path) -> tuple[str | None, str]:
        """Split and class of an image; split None: it is drawn. Raises :class:`ImageRefused` if it lies beside the folders."""
        parts = relative.parts
        if self.split_of_folder and (len(parts) == 1 or parts[0] not in self.split_of_folder):
            raise ImageRefused("not in a split folder")
        if len(parts) <= self.class_depth:
            raise ImageRefused(LOOSE)
        return self.split_of_folder.get(parts[0]), nfc(parts[self.class_depth - 1]) if self.class_depth else NO_CLASS


def arrange(
    root: Path, files: Sequence[Path], folders: set[str], layout: str | None, *, has_table: bool
) -> Arrangement:
    """Decides what the subfolders mean.

    By their names, they are splits if all of them are named like splits (:func:`split_of`) and one is for training. Else they are
    classes. A folder without subfolders that hold images has no classes.

    Args:
        root: the folder, for messages.
        files: what may be an image, relative to the root.
        folders: names of the subfolders that may hold images.
        layout: `classes`, `splits`, `flat`; None: by the names.
        has_table: whether a table gives the classes, so that folders are splits or nothing.

    Raises:
        UserError: split folders lack training images, images or classes; or the folders are neither splits nor classes.
    """
    if layout == "splits" or (layout is None and _are_splits(root, folders)):
        if layout is None and not has_table:
            _refuse_masks(root, {path.parts[1] for path in files if len(path.parts) > 2}, "splits")
        return _arrange_splits(root, files, folders, has_table)
    if has_table:
        return Arrangement("images in one folder", 0)
    if layout == "flat" or (layout is None and files and all(len(path.parts) == 1 for path in files)):
        return Arrangement("one folder without classes", 0, notes=_flat_notes(files))
    if layout is None:
        _refuse_masks(root, folders, "classes")
        _refuse_several_sets(root, folders)
    return Arrangement("class folders", 1, notes=_wrapper_notes(root, files, folders))


def _are_splits(root: Path, folders: set[str]) -> bool:
    splits = {split_of(name) for name in folders}
    if splits == {HELDOUT} and len(folders) > 1:
        raise UserError(
            f"{root} holds {_named(folders)}, which are named like splits, but none for training; name one of them `train`, or set "
            "data.layout to `classes` if they are classes"
        )
    return TRAIN in splits and None not in splits


def _arrange_splits(root: Path, files: Sequence[Path], folders: set[str], has_table: bool) -> Arrangement:
    names: dict[str, list[str]] = {
        split: sorted(name for name in folders if split_of(name) == split) for split in (TRAIN, HELDOUT)
    }
    if not names[TRAIN]:
        raise UserError(
            f"data.layout is `splits`, but {root} has no folder for training, which is named such as `train`; it holds {_named(folders) or 'none'}"
        )
    with_files = {path.parts[0] for path in files if len(path.parts) > 1}
    empty = [name for split in names.values() for name in split if name not in with_files]
    if empty:
        raise UserError(
            f"split folders of {root} hold no image: {_named(empty)}; add images or remove them (with training images alone, "
            "data.holdout_fraction of them is held out)"
        )
    nested = {path.parts[0] for path in files if len(path.parts) > 2}
    flat = sorted({*names[TRAIN], *names[HELDOUT]} - nested)
    if nested and flat and not has_table:
        raise UserError(
            f"the images of {_named(flat)} in {root} lie in no class folder, but those of {_named(nested)} do; sort them into class "
            "folders, or move them out of data.root (with training images alone, data.holdout_fraction of them is held out)"
        )
    depth = 2 if nested and not has_table else 0
    above = "above class folders" if depth else "without class folders"
    if not names[HELDOUT]:
        words = f"split folder {_named(names[TRAIN])} alone, {above}"
        return Arrangement(words, depth, dict.fromkeys(names[TRAIN]))
    words = f"split folders (train: {_named(names[TRAIN])}; held out: {_named(names[HELDOUT])}) {above}"
    return Arrangement(words, depth, {name: split for split in names for name in names[split]})


def _refuse_masks(root: Path, names: set[str], layout: str) -> None:
    """Raises :class:`UserError` if the folders that would be classes are one of images and others of what was drawn over them."""
    drawn = {name for name in names if holds_drawings(name)}
    images = [name for name in names - drawn if _IMAGES.fullmatch(name)]
    if drawn and images and len(names) == len(drawn) + len(images):
        raise UserError(
            f"{root} holds {_named(drawn)} beside {_named(images)}, which are named like images and what was drawn over them, not like "
            f"classes; keep {_named(images)} alone in data.root, or set data.layout to `{layout}` if they are classes"
        )


def _refuse_several_sets(root: Path, folders: set[str]) -> None:
    """Raises :class:`UserError` if all folders are splits of several sets, as data for translations between two kinds of images have them."""
    found = {name: match for name in folders if (match := _SPLIT_OF_SET.fullmatch(name))}
    if len(found) == len(folders) > 1 and len({match[1] for match in found.values()}) > 1:
        first = min(found)
        raise UserError(
            f"{root} holds {_named(found)}, which are named like the splits of several sets, and not like classes; make each set a class "
            f"(`{first}` becomes `{found[first][1]}/{found[first]['set']}`), name one set alone, or set data.layout to `classes` if they are classes"
        )


def _flat_notes(files: Sequence[Path]) -> tuple[str, ...]:
    """Images in subfolders of a folder whose images have no classes."""
    inner = Counter(path.parts[0] for path in files if len(path.parts) > 1)
    if not inner:
        return ()
    shown = _named(name for name, _ in inner.most_common(SHOWN_FOLDERS))
    return (
        f"{len(files) - inner.total()} images lie directly in the folder and {inner.total()} in subfolders ({shown}"
        f"{', ...' if len(inner) > SHOWN_FOLDERS else ''}), which are no classes: data.layout is `flat`",
    )


def _wrapper_notes(root: Path, files: Sequence[Path], folders: set[str]) -> tuple[str, ...]:
    """One folder that wraps all class folders, as archives do, makes one class of them."""
    inner = {path.parts[1] for path in files if len(path.parts) > 2}
    if len(folders) != 1 or len(inner) < 2 or any(len(path.parts) == 2 for path in files):
        return ()
    (name,) = folders
    return (
        f"all images are of one class, {name!r}, and lie in {len(inner)} subfolders of it; if these are the classes, set data.root to "
        f"{root / name}",
    )


def _named(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))
