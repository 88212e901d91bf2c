"""The built-in data set: scikit-learn's handwritten digits, written out as PNG files in class folders."""

from importlib.metadata import version
from pathlib import Path

from sfd.data.sources.folder import FolderSource
from sfd.data.sources.source import Scan


class DigitsSource(FolderSource):
    """The digits, in folder ``images`` beside the manifest. So they take the same way as a user's folder."""

    expected_root = "nothing: the digits are built in"

    @property
    def root(self) -> Path:
        """Where the PNG files are."""
        return self.prepared / "images"

    def listing(self) -> dict[str, object]:
        """The version of the library that holds the digits."""
        return {"source": "digits", "scikit-learn": version("scikit-learn")}

    def check_root(self) -> None:
        """Nothing can be wrong."""

    def scan(self) -> Scan:
        """Writes the files, then reads them."""
        write_digits(self.root)
        return super().scan()


def write_digits(out: Path) -> None:
    """Writes scikit-learn's 1,797 handwritten digits as 8x8 greyscale PNG files ``out/CLASS/NUMBER.png``.

    Names and bytes are the same on every run. Source: load_digits, values 0..16, here scaled to 0..255.
    """
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for index, (scan, target) in enumerate(zip(digits.images, digits.target, strict=True)):
        folder = out / str(target)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.rint(scan * (255 / 16)).astype(np.uint8)).save(folder / f"{index:04d}.png")
