"""The data report: what it counts, its files, and its picture."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from sfd.data.prepare import look, prepare
from sfd.data.report import DataReport
from sfd.params import DataParams


def scene(seed: int, side: int = 48) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes: 30 cats of 48 pixels, one of them with transparency and two with a copy, and 5 dogs of 24 pixels, each twice as JPEG."""
    root = tmp_path_factory.mktemp("images")
    for folder in ("cat", "dog"):
        (root / folder).mkdir()
    for seed in range(30):
        scene(seed).save(root / "cat" / f"{seed:02d}.png")
    clear = scene(30).convert("RGBA")
    clear.putpixel((0, 0), (0, 0, 0, 0))
    clear.save(root / "cat" / "30.png")
    for seed in (3, 4):
        (root / "cat" / f"copy {seed}.png").write_bytes((root / "cat" / f"{seed:02d}.png").read_bytes())
    for seed in range(100, 105):
        scene(seed, 24).save(root / "dog" / f"{seed}.png")
        scene(seed, 24).save(root / "dog" / f"{seed}.jpg", quality=95, subsampling=0)
    (root / "dog" / "note.txt").write_text("x")
    (root / "dog" / "broken.png").write_text("x")
    return root


@pytest.fixture
def params(root: Path) -> DataParams:
    return DataParams(source="folder", root=str(root), image_size=32, max_rejected_fraction=0.05)


def test_the_report_counts_what_is_there(params: DataParams) -> None:
    report = look(params)
    assert report.counts == {"cat": {"train": 27, "heldout": 6}, "dog": {"train": 8, "heldout": 2}}
    assert (report.num_images, report.num_train, report.num_heldout) == (43, 35, 8)
    assert report.shorter_side == (24, 48, 48) and report.upscaled == pytest.approx(10 / 43)
    assert report.transparent == pytest.approx(1 / 43)
    assert report.copies == 2
    assert report.near_across + report.near_within == 5
    assert report.passed_over == {".txt": 1} and report.refused == {"not an image": 1}
    assert (report.layout, report.split_by) == ("class folders", "draw")


def test_the_lines_say_what_a_user_must_know(params: DataParams) -> None:
    report = look(params)
    text = "\n".join(report.lines())
    for part in (
        "43 images in 2 classes, 1 file refused (class folders)",
        "35 to train on, 8 held out (drawn from each class); smallest class 'dog' with 10, largest 'cat' with 33",
        "shorter side 24 to 48 pixels, median 48; 23.3% are enlarged to data.image_size 32; 2.3% have transparency",
        f"{report.near_across} of 8 held-out images look like a training image",
        "2 exact copies",
        "passed over: 1 .txt; refused: 1 not an image",
        "note: the classes are unequal: 'cat' has 33 images and 'dog' 10",
    ):
        assert part in text


def test_the_stage_writes_the_report_the_table_the_pairs_and_the_picture_and_the_same_bytes_again(
    params: DataParams, tmp_path: Path
) -> None:
    for run in ("a", "b"):
        prepare(params, 0, tmp_path / run)
    for name in ("report.json", "report.csv", "near_duplicates.csv", "report.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    report = DataReport.read(tmp_path / "a")
    assert report == look(params)
    assert pd.read_csv(tmp_path / "a" / "report.csv").to_dict("records") == [
        {"class": "cat", "train": 27, "heldout": 6},
        {"class": "dog", "train": 8, "heldout": 2},
    ]
    pairs = pd.read_csv(tmp_path / "a" / "near_duplicates.csv")
    assert len(pairs) == report.near_across
    assert all(Path(one).stem == Path(two).stem for one, two in zip(pairs["heldout"], pairs["train"], strict=True))
    assert Image.open(tmp_path / "a" / "report.png").width > 1000


def test_near_duplicates_across_the_split_are_a_note_and_none_are_silent(params: DataParams) -> None:
    across = [look(params, seed) for seed in range(4)]
    assert any(report.near_across for report in across)
    for report in across:
        says = any("like a training image (listed in near_duplicates.csv)" in note for note in report.notes)
        assert says == (report.near_across > 0)


def test_dropped_copies_are_counted_as_copies_and_as_refused(params: DataParams) -> None:
    report = look(params.model_copy(update={"duplicates": "drop"}))
    assert (report.num_images, report.copies, report.refused["duplicate"]) == (41, 2, 2)


def test_flat_images_are_reported_without_near_duplicates(tmp_path: Path) -> None:
    (tmp_path / "grey").mkdir()
    for shade in range(60):
        stream = io.BytesIO()
        Image.new("L", (8, 8), shade).save(stream, "PNG")
        (tmp_path / "grey" / f"{shade}.png").write_bytes(stream.getvalue())
    report = look(DataParams(source="folder", root=str(tmp_path), image_size=8))
    assert (report.near_across, report.near_within, report.copies) == (0, 0, 0)


def test_class_names_are_drawn_as_they_are_and_never_read_as_formulas(tmp_path: Path) -> None:
    for number, name in enumerate(("$x^_$", "a\nb", "%41 {}", "猫 $")):
        (tmp_path / "root" / name).mkdir(parents=True)
        for seed in range(2):
            scene(10 * number + seed, 8).save(tmp_path / "root" / name / f"{seed}.png")
    prepare(DataParams(source="folder", root=str(tmp_path / "root"), image_size=8), 0, tmp_path / "out")
    assert (tmp_path / "out" / "report.png").is_file()


def test_a_picture_of_many_classes_with_long_names_is_drawn(tmp_path: Path) -> None:
    for number in range(40):
        folder = tmp_path / "root" / f"{number:02d} a class with a\nname of many words that never ends"
        folder.mkdir(parents=True)
        for seed in range(2):
            scene(100 * number + seed, 8).save(folder / f"{seed}.png")
    prepare(DataParams(source="folder", root=str(tmp_path / "root"), image_size=8), 0, tmp_path / "out")
    with Image.open(tmp_path / "out" / "report.png") as picture:
        assert picture.height < 3000
