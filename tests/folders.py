"""Small folders of images, told by a mapping from names to contents."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def make(root: Path, files: dict[str, str | bytes | int]) -> Path:
    """Writes files below ``root``: a number is an image drawn from it, a text or bytes are the content; `a/b/` is an empty folder."""
    root.mkdir(exist_ok=True)
    for name, content in files.items():
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, int):
            pixels = np.random.default_rng(content).integers(0, 256, (9, 11, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path, format="JPEG" if path.suffix in (".jpg", ".JPG") else None)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def images(folder: str, count: int = 2, start: int = 0, ending: str = ".png") -> dict[str, str | bytes | int]:
    """Different images in a folder, drawn from numbers that belong to its name."""
    first = sum(map(ord, folder)) * 100 + start
    return {f"{folder}{number}{ending}": first + number for number in range(start, start + count)}


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (9, 9), "red").save(stream, "PNG")
    return stream.getvalue()


PNG = png()
CAT_DOG = images("cat/") | images("dog/")
IN_CAT_DOG = {"cat": (1, 1), "dog": (1, 1)}
SPLITS = images("train/cat/") | images("train/dog/") | images("val/cat/") | images("val/dog/")
IN_SPLITS = {"cat": (2, 2), "dog": (2, 2)}
FLAT = images("", 4)
ONE_CLASS = "there is one class"
ROWS = "0.png,cat\n1.png,cat\n2.png,dog\n3.png,dog\n"
TABLE = {"labels.csv": f"file_name,label\n{ROWS}"}
BY_TABLE: dict[str, Any] = {"labels": "labels.csv"}
