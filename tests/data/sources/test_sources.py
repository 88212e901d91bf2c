"""The open place of data sources: a new one needs a class and an entry of the table, and stage `scan` stays quick."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from sfd import names
from sfd.data.listing import write_listing
from sfd.data.manifest import HELDOUT, TRAIN
from sfd.data.prepare import prepare
from sfd.data.prepared import Prepared
from sfd.data.sources.common import collect, describe
from sfd.data.sources.source import DataSource, Scan
from sfd.errors import UserError
from sfd.names import Entry
from sfd.params import DataParams

COLOURS = {"green": (0, 255, 0), "red": (255, 0, 0)}
NUM_SHADES = 5


def shade(path: str) -> bytes:
    """The PNG file of ``COLOUR/NUMBER``."""
    colour, _, number = path.partition("/")
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), tuple(value - 10 * int(number) if value else 0 for value in COLOURS[colour])).save(
        stream, "PNG"
    )
    return stream.getvalue()


class ShadesStore:
    """Files that are drawn when they are read."""

    def __init__(self, paths: list[str]) -> None:
        self.paths = paths

    def read(self, row: int) -> bytes:
        return shade(self.paths[row])

    def place(self, row: int) -> str:
        return f"shade {self.paths[row]}"


class ShadesSource(DataSource):
    """Plain images in shades of two colours, from no file at all."""

    expected_root = "nothing"

    def listing(self) -> dict[str, object]:
        return {"source": "shades", "num_shades": NUM_SHADES}

    def check_root(self) -> None:
        if self.params.root != "nothing":
            raise UserError(f"data.root is {self.params.root!r}, but must be {self.expected_root!r}")

    def scan(self) -> Scan:
        paths = [f"{colour}/{number}" for colour in COLOURS for number in range(NUM_SHADES)]
        return collect(
            (describe(path, path.split("/")[0], shade(path), self.params.max_pixels), path.split("/")[0])
            for path in paths
        )

    def open_store(self, manifest: pd.DataFrame) -> ShadesStore:
        return ShadesStore(manifest["path"].tolist())


@pytest.fixture
def params(monkeypatch: pytest.MonkeyPatch) -> DataParams:
    monkeypatch.setitem(names.DATA_SOURCES, "shades", Entry(f"{__name__}:ShadesSource", "shades of two colours"))
    return DataParams(source="shades", root="nothing", image_size=8)


def test_a_new_source_is_scanned_prepared_and_read_without_touching_another_module(
    params: DataParams, tmp_path: Path
) -> None:
    write_listing(params, tmp_path / "scan" / "listing.json")
    assert json.loads((tmp_path / "scan" / "listing.json").read_text()) == {
        "source": "shades",
        "num_shades": NUM_SHADES,
    }
    summary = prepare(params, 0, tmp_path / "prepare")
    assert (summary.classes, summary.num_train, summary.num_heldout) == (["green", "red"], 8, 2)
    data = Prepared.load(params, tmp_path / "prepare")
    images, classes = data.images(TRAIN).__getitems__([0, 7])
    assert images.shape == (2, 3, 8, 8) and classes.tolist() == [0, 1]
    assert images[0, :, 0, 0].argmax() == 1 and images[1, :, 0, 0].argmax() == 0
    assert len(data.images(HELDOUT)) == 2


def test_a_new_source_refuses_its_root_before_anything_is_written(params: DataParams, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be 'nothing'"):
        prepare(params.model_copy(update={"root": "something"}), 0, tmp_path / "prepare")
    assert not (tmp_path / "prepare").exists()


def test_a_source_whose_images_are_all_refused_says_so(
    params: DataParams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ShadesSource, "scan", lambda _: Scan([], [], []))
    with pytest.raises(UserError, match="nothing has no usable image .*point data.root at nothing"):
        prepare(params, 0, tmp_path / "prepare")


@pytest.mark.parametrize("source", ["digits", "folder", "tar", "huggingface"])
def test_stage_scan_imports_neither_torch_nor_pillow_nor_datasets_for_any_source(source: str, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from sfd.data.listing import write_listing; from sfd.params import DataParams\n"
        f"write_listing(DataParams(source={source!r}, root='root'), Path('listing.json'))\n"
        "sys.exit(', '.join({'torch', 'PIL', 'datasets', 'pandas', 'sklearn'} & set(sys.modules)) or 0)"
    )
    (tmp_path / "root").mkdir()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (found.returncode, found.stderr) == (0, "")
