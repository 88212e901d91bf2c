"""Captions of images: what is told of each image, cleaned; which images have none; and what the captions are like."""

import csv
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

from sfd.data.sources.source import Found, Rejected, Told
from sfd.errors import UserError
from sfd.params import DataParams

CAPTIONS_NAME, UNCAPTIONED_NAME = "captions.json", "uncaptioned.csv"
_SHOWN = 5
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class CaptionFacts:
    """What the captions of a set of images are like.

    Attributes:
        words: where they come from.
        images: images with at least one caption.
        uncaptioned: images without.
        handling: `data.uncaptioned`.
        per_image: fewest, median and most captions of an image that has some.
        length: fewest, median and most words of a caption.
        vocabulary: different words, in lower case.
        cleaned: captions from which control characters were removed.
    """

    words: str
    images: int
    uncaptioned: int
    handling: str
    per_image: tuple[int, int, int]
    length: tuple[int, int, int]
    vocabulary: int
    cleaned: int

    def lines(self) -> list[str]:
        """The facts in a few lines, for a terminal."""
        total = self.images + self.uncaptioned
        low, middle, high = self.per_image
        each = f"{low} per image" if low == high else f"{low} to {high} per image, median {middle}"
        lines = [
            f"captions: {self.images} of {total} images ({self.images / total:.1%}) have some, {each} ({self.words}); "
            f"{self.length[0]} to {self.length[2]} words, median {self.length[1]}; {self.vocabulary} different words"
        ]
        if self.uncaptioned:
            what = "are left out" if self.handling == "drop" else "get the name of their class as caption"
            lines.append(
                f"{self.uncaptioned} images without a caption {what} (data.uncaptioned; listed in {UNCAPTIONED_NAME})"
            )
        if self.cleaned:
            lines.append(f"control characters were removed from {self.cleaned} captions")
        return lines

    def write(self, folder: Path) -> None:
        """Writes ``captions.json``."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"
        (folder / CAPTIONS_NAME).write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "CaptionFacts | None":
        """What :meth:`write` wrote; None if there are no captions."""
        file = folder / CAPTIONS_NAME
        if not file.is_file():
            return None
        facts = json.loads(file.read_text(encoding="utf-8"))
        return cls(**facts | {key: tuple(facts[key]) for key in ("per_image", "length")})


@dataclass(frozen=True)
class Captioned:
    """Images with their captions.

    Attributes:
        found: the images that are used.
        uncaptioned: those without a caption, and why; they are used or not, as `data.uncaptioned` says.
        facts: what the captions are like.
    """

    found: list[Found]
    uncaptioned: list[Rejected]
    facts: CaptionFacts


def clean_caption(text: str) -> tuple[str, bool]:
    """A caption in Unicode form NFC, on one line, with single blanks; and whether control characters were removed."""
    kept = "".join(char for char in text if char.isspace() or unicodedata.category(char) not in ("Cc", "Cs"))
    return " ".join(unicodedata.normalize("NFC", kept).split()), len(kept) < len(text)


def caption_images(
    found: Sequence[Found], told: Sequence[Told], words: str, params: DataParams, out: Path | None
) -> Captioned:
    """Gives each image what is told of it. Repetitions are told once.

    Args:
        found: the images.
        told: for each image.
        words: where the captions come from.
        params: section `data`.
        out: where ``uncaptioned.csv`` (path, reason) is written, also if that is an error; None: nowhere.

    Raises:
        UserError: no image has a caption, or some have none and `data.uncaptioned` is `error`.
    """
    captioned: list[Found] = []
    counts: list[int] = []
    uncaptioned: list[Rejected] = []
    lengths: list[int] = []
    vocabulary: set[str] = set()
    num_cleaned = 0
    for item, own in zip(found, told, strict=True):
        texts, cleaned = _cleaned(own.texts)
        num_cleaned += cleaned
        if texts:
            counts.append(len(texts))
            lengths += [len(text.split()) for text in texts]
            vocabulary.update(word for text in texts for word in _WORD.findall(text.lower()))
        else:
            uncaptioned.append(Rejected(item.path, own.problem or "its captions are empty"))
            texts = (item.label,) if params.uncaptioned == "class" else ()
        captioned.append(replace(item, captions=texts))
    _list(uncaptioned, out)
    _check(len(found), uncaptioned, words, params, out)
    facts = CaptionFacts(
        words=words,
        images=len(found) - len(uncaptioned),
        uncaptioned=len(uncaptioned),
        handling=params.uncaptioned,
        per_image=_spread(counts),
        length=_spread(lengths),
        vocabulary=len(vocabulary),
        cleaned=num_cleaned,
    )
    return Captioned([item for item in captioned if item.captions], uncaptioned, facts)


def _cleaned(texts: Iterable[str]) -> tuple[tuple[str, ...], int]:
    """Different captions that are not empty, in their order, and how many lost control characters."""
    pairs = [clean_caption(text) for text in texts]
    return tuple(dict.fromkeys(text for text, _ in pairs if text)), sum(cleaned for _, cleaned in pairs)


def _spread(values: list[int]) -> tuple[int, int, int]:
    return min(values), int(median(values)), max(values)


def _list(uncaptioned: list[Rejected], out: Path | None) -> None:
    if out is None:
        return
    with (out / UNCAPTIONED_NAME).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(
            [("path", "reason"), *((item.path, item.reason) for item in uncaptioned)]
        )


def _check(total: int, uncaptioned: list[Rejected], words: str, params: DataParams, out: Path | None) -> None:
    shown = "; ".join(f"{item.path} ({item.reason})" for item in uncaptioned[:_SHOWN])
    if len(uncaptioned) == total:
        raise UserError(
            f"data.captions is `{params.captions}`, but none of the {total} images has a caption ({words}): {shown}; correct data.captions or "
            "data.caption_column, or set data.captions to null"
        )
    if uncaptioned and params.uncaptioned == "error":
        listed = "" if out is None else f"; all are listed in {out / UNCAPTIONED_NAME}"
        raise UserError(
            f"{len(uncaptioned)} of {total} images have no caption: {shown}{listed}; write their captions, or set data.uncaptioned "
            "to `drop`, which leaves these images out, or to `class`, which takes the name of the class"
        )
