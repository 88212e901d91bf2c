"""Stage ``prepare`` from folders on disk to the manifest."""

import json
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from support import environment

from sfd.data.manifest import digest, read_manifest
from sfd.data.prepare import Summary, prepare
from sfd.data.sources.source import open_source
from sfd.errors import UserError
from sfd.params import DataParams

OUTPUTS = ("manifest.parquet", "rejected.csv", "summary.json")


def write_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)


def write_classes(root: Path, *labels: str, count: int = 40) -> Path:
    for index, label in enumerate(labels):
        for number in range(count):
            write_image(root / label / f"{number:02d}.png", 1000 * index + number)
    return root


def write_bad_files(folder: Path) -> dict[str, str]:
    """One file of every bad kind, and the start of the reason that each must be refused with."""
    write_image(folder / "whole.png", 5000)
    write_image(folder / "whole.jpg", 5001)
    for name in ("png", "jpg"):
        whole = (folder / f"whole.{name}").read_bytes()
        (folder / f"truncated.{name}").write_bytes(whole[: len(whole) // 2])
        (folder / f"whole.{name}").unlink()
    write_image(folder / "picture.ppm", 5002)
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("a text that calls itself an image")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "broken.png").symlink_to("nowhere.png")
    (folder / "circle").symlink_to(folder.parent, target_is_directory=True)
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (folder / "bomb.png").write_bytes(bomb + b"\0\0\0\0IDAT" + struct.pack(">I", zlib.crc32(b"IDAT")))
    write_image(folder.parent / "loose.png", 5003)
    reasons = {
        "picture.ppm": "format not allowed: PPM",
        "bomb.png": "too many pixels: 60000 x 60000",
        "broken.png": "broken symbolic link",
        "circle": "symbolic link loop",
        "empty.png": "empty file",
        "loop.png": "symbolic link loop",
        "text.png": "not an image",
        "truncated.jpg": "truncated",
        "truncated.png": "truncated",
    }
    return {f"{folder.name}/{name}": reason for name, reason in reasons.items()} | {
        "loose.png": "not in a class folder"
    }


def folder_params(root: Path, **options: object) -> DataParams:
    return DataParams.model_validate({"source": "folder", "root": str(root), **options})


def test_the_digits_become_a_manifest_of_1797_images_in_ten_classes(tmp_path: Path) -> None:
    params = DataParams(source="digits")
    summary = prepare(params, 0, tmp_path)
    rows = read_manifest(tmp_path)
    assert (summary.num_images, summary.num_train + summary.num_heldout, len(rows)) == (1797, 1797, 1797)
    assert summary.classes == [str(digit) for digit in range(10)] and summary.num_rejected == 0
    share = (rows["split"] == "heldout").groupby(rows["label"]).mean()
    assert share.between(0.195, 0.205).all()
    assert (rows["class_index"].astype(str) == rows["label"]).all()
    assert all((open_source(params, tmp_path).root / path).is_file() for path in rows["path"])
    assert (tmp_path / "rejected.csv").read_text() == "path,reason\n"


def test_the_summary_is_what_the_manifest_says(tmp_path: Path) -> None:
    summary = prepare(folder_params(write_classes(tmp_path / "root", "dog", "cat")), 0, tmp_path / "out")
    rows = read_manifest(tmp_path / "out")
    assert summary == Summary(80, 64, 16, ["cat", "dog"], 0, digest(rows))
    assert Summary(**json.loads((tmp_path / "out" / "summary.json").read_text())) == summary
    assert open_source(folder_params(tmp_path / "root"), tmp_path / "out").root == tmp_path / "root"


def test_two_runs_give_the_same_bytes_and_another_seed_another_split(tmp_path: Path) -> None:
    params = folder_params(write_classes(tmp_path / "root", "cat", "dog", count=10))
    for run, seed in (("a", 0), ("b", 0), ("c", 1)):
        prepare(params, seed, tmp_path / run)
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in OUTPUTS)
    assert (tmp_path / "a" / "manifest.parquet").read_bytes() != (tmp_path / "c" / "manifest.parquet").read_bytes()


def test_one_of_each_bad_file_gives_exactly_the_right_list(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "root", "cat", "dög 犬")
    expected = write_bad_files(root / "cat")
    summary = prepare(folder_params(root, max_rejected_fraction=0.2), 0, tmp_path / "out")
    rejected = pd.read_csv(tmp_path / "out" / "rejected.csv").set_index("path")["reason"].to_dict()
    assert rejected.keys() == expected.keys()
    assert all(rejected[path].startswith(reason) for path, reason in expected.items())
    assert (summary.num_images, summary.num_rejected, summary.classes) == (80, len(expected), ["cat", "dög 犬"])


def test_too_many_refused_files_stop_the_stage_and_the_list_is_there(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "root", "cat", "dog")
    expected = write_bad_files(root / "cat")
    prepare(folder_params(root, max_rejected_fraction=0.2), 0, tmp_path / "out")
    with pytest.raises(UserError, match=r"10 of 90 files \(11.1%\).*max_rejected_fraction is 0.01") as caught:
        prepare(folder_params(root), 0, tmp_path / "out")
    assert "symbolic link loop (2)" in str(caught.value) and str(tmp_path / "out" / "rejected.csv") in str(caught.value)
    assert set(pd.read_csv(tmp_path / "out" / "rejected.csv")["path"]) == set(expected)
    assert not (tmp_path / "out" / "manifest.parquet").exists()


def test_the_allowed_share_of_refused_files_is_inclusive(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "root", "cat", count=9)
    (root / "cat" / "empty.png").touch()
    assert prepare(folder_params(root, max_rejected_fraction=0.1), 0, tmp_path / "out").num_rejected == 1
    with pytest.raises(UserError, match="1 of 10 files"):
        prepare(folder_params(root, max_rejected_fraction=0.09), 0, tmp_path / "out")


def test_a_root_that_cannot_be_used_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".gitkeep").touch()
    write_image(tmp_path / "flat" / "1.png", 0)
    for name, reason in (
        ("missing", "does not exist; point data.root"),
        ("file", "is not a folder; point data.root"),
        ("empty", r"has no images \(passed over: nothing\); .*one subfolder per class"),
        ("flat", "there is 1 distinct image, but at least two are needed"),
    ):
        with pytest.raises(UserError, match=reason):
            prepare(folder_params(tmp_path / name), 0, tmp_path / "out")


def test_a_root_that_holds_the_results_is_refused(tmp_path: Path) -> None:
    write_classes(tmp_path, "cat", count=2)
    with pytest.raises(UserError, match="holds the results folder"):
        prepare(folder_params(tmp_path), 0, tmp_path / "results" / "prepare")


def test_one_class_is_enough_but_one_image_of_a_class_is_not(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "root", "cat", count=2)
    assert prepare(folder_params(root), 0, tmp_path / "out").num_heldout == 1
    write_image(root / "dog" / "1.png", 99)
    with pytest.raises(UserError, match="class 'dog' has 1 distinct image"):
        prepare(folder_params(root), 0, tmp_path / "out")


def test_a_class_folder_without_usable_images_is_named(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "root", "cat", count=2)
    (root / "dog").mkdir()
    with pytest.raises(UserError, match="at least two usable images, but 1 have none: 'dog'"):
        prepare(folder_params(root), 0, tmp_path / "out")


def test_one_content_in_two_classes_is_an_error_by_default_and_dropped_on_request(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "root", "cat", "dog", count=10)
    shutil.copy(root / "cat" / "03.png", root / "dog" / "copy.png")
    with pytest.raises(UserError, match=r"same content .*cat/03.png = dog/copy.png.*data.duplicates to drop"):
        prepare(folder_params(root), 0, tmp_path / "out")
    summary = prepare(folder_params(root, duplicates="drop"), 0, tmp_path / "out")
    rejected = pd.read_csv(tmp_path / "out" / "rejected.csv").to_dict("records")
    assert rejected == [{"path": "dog/copy.png", "reason": "duplicate: same content as cat/03.png"}]
    assert (summary.num_images, summary.num_rejected) == (20, 1)


def test_copies_within_a_class_share_a_split_and_are_dropped_on_request(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "root", "cat", count=10)
    for number in range(10):
        shutil.copy(root / "cat" / f"{number:02d}.png", root / "cat" / f"copy {number:02d}.png")
    prepare(folder_params(root), 0, tmp_path / "out")
    rows = read_manifest(tmp_path / "out")
    assert len(rows) == 20 and (rows.groupby("sha256")["split"].nunique() == 1).all()
    assert prepare(folder_params(root, duplicates="drop"), 0, tmp_path / "out").num_rejected == 10


def test_a_file_added_to_another_class_moves_no_image(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "root", "cat", "dog")
    prepare(folder_params(root), 0, tmp_path / "before")
    write_image(root / "cat" / "new.png", 9999)
    write_classes(root, "ant", count=5)
    for number in range(5):
        write_image(root / "ant" / f"{number:02d}.png", 7000 + number)
    prepare(folder_params(root), 0, tmp_path / "after")
    before, after = (read_manifest(tmp_path / run).set_index("path")["split"] for run in ("before", "after"))
    dogs = [path for path in before.index if path.startswith("dog/")]
    assert before[dogs].tolist() == after[dogs].tolist()


def test_progress_is_not_printed_where_nobody_watches(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "root", "cat", count=3)
    script = (
        "import sys; from pathlib import Path\n"
        "from sfd.data.prepare import prepare; from sfd.params import DataParams\n"
        "prepare(DataParams(source='folder', root=sys.argv[1]), 0, Path(sys.argv[2]))"
    )
    command = ["python", "-c", script, str(root), str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True, env=environment(), check=True)
    assert result.stdout == "" and result.stderr == ""


@pytest.mark.parametrize("name", ["[a]", "*", "a?{x,y}", "a b", "%41", "~", "$HOME", "-rf", "it's", "a\nb"])
def test_folders_named_like_patterns_or_commands_are_folders(tmp_path: Path, name: str) -> None:
    root = tmp_path / name
    for label in (name, "plain"):
        (root / label).mkdir(parents=True)
        for number in range(3):
            write_image(root / label / f"{name}{number}.png", hash((label == name, number)) % 1000)
    summary = prepare(folder_params(root), 0, tmp_path / "out")
    assert sorted(summary.classes) == sorted([name, "plain"]) and summary.num_rejected == 0


def test_a_marker_that_cannot_be_read_is_named_with_the_remedy(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "root", "a", "b")
    (root / ".sfd").mkdir()
    for content in ("", "[]", "{}", '{"made_by": "x", "beside": 3}'):
        (root / ".sfd" / "folder.json").write_text(content)
        with pytest.raises(UserError, match=r"folder.json cannot be read.*delete the file"):
            prepare(folder_params(root), 0, tmp_path / "out")
