"""The built-in digits and the walk through class folders."""

import hashlib
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from sfd.data.layout import FolderLayout
from sfd.data.sources.digits import write_digits
from sfd.data.sources.folder import scan_folder
from sfd.data.sources.source import Scan

MAX_PIXELS = 1_000_000


def write_image(path: Path, seed: int, width: int = 7) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (5, width, 3), dtype=np.uint8)
    Image.fromarray(values).save(path, format="PNG")


def refusals(scan: Scan) -> dict[str, str]:
    return {item.path: item.reason for item in scan.rejected}


def paths(scan: Scan) -> list[str]:
    return [item.path for item in scan.found]


def test_the_digits_are_1797_scans_in_ten_classes_with_the_same_bytes_on_two_runs(tmp_path: Path) -> None:
    write_digits(tmp_path / "a")
    write_digits(tmp_path / "b")
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.png"))
    assert len(files) == 1797
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [str(digit) for digit in range(10)]
    assert all((tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes() for path in files)


def test_a_digits_values_are_scaled_from_16_to_255(tmp_path: Path) -> None:
    write_digits(tmp_path)
    image = Image.open(tmp_path / "0" / "0000.png")
    scan = load_digits().images[0]
    assert image.mode == "L" and image.size == (8, 8)
    np.testing.assert_array_equal(np.asarray(image), np.rint(scan / 16 * 255))
    assert np.asarray(Image.open(tmp_path / "9" / "0009.png")).max() == 255


def test_an_accepted_image_is_described_as_it_is_on_disk(tmp_path: Path) -> None:
    write_image(tmp_path / "cat" / "one.png", 0, width=9)
    content = (tmp_path / "cat" / "one.png").read_bytes()
    (item,) = scan_folder(tmp_path, MAX_PIXELS).found
    assert (item.path, item.label, item.width, item.height) == ("cat/one.png", "cat", 9, 5)
    assert (item.size_bytes, item.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_nested_files_count_to_their_class_and_loose_files_are_refused(tmp_path: Path) -> None:
    for number, name in enumerate(("dog/1.png", "cat/deep/er/2.png", "cat/1.png", "loose.png")):
        write_image(tmp_path / name, number)
    scan = scan_folder(tmp_path, MAX_PIXELS)
    assert paths(scan) == ["cat/1.png", "cat/deep/er/2.png", "dog/1.png"]
    assert [item.label for item in scan.found] == ["cat", "cat", "dog"]
    assert refusals(scan) == {"loose.png": "not in a class folder"}
    assert scan.classes == ["cat", "dog"]


def test_spaces_and_unicode_names_are_kept_and_compared_in_one_form(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café au lait") for form in ("NFC", "NFD"))
    write_image(tmp_path / composed / "猫 1.png", 0)
    write_image(tmp_path / decomposed / "猫 2.png", 1)
    scan = scan_folder(tmp_path, MAX_PIXELS)
    assert scan.classes == [composed]
    assert {item.label for item in scan.found} == {composed}
    assert sorted(paths(scan)) == sorted([f"{composed}/猫 1.png", f"{decomposed}/猫 2.png"])
    assert all((tmp_path / path).is_file() for path in paths(scan))


def test_a_name_that_is_not_utf_8_is_refused_in_printable_form(tmp_path: Path) -> None:
    write_image(tmp_path / "cat" / "1.png", 0)
    try:
        os.rename(tmp_path / "cat" / "1.png", os.fsencode(tmp_path / "cat") + b"/\xff.png")
    except OSError:
        pytest.skip("this file system stores UTF-8 names only")
    assert refusals(scan_folder(tmp_path, MAX_PIXELS)) == {"cat/\\udcff.png": "file name is not valid UTF-8"}


def test_hidden_files_and_folders_are_passed_over_and_counted_and_a_gitkeep_is_not_counted(tmp_path: Path) -> None:
    for number, name in enumerate(("cat/1.png", "cat/._1.png", ".checkpoints/1.png")):
        write_image(tmp_path / name, number)
    (tmp_path / ".gitkeep").touch()
    scan = scan_folder(tmp_path, MAX_PIXELS)
    assert paths(scan) == ["cat/1.png"] and scan.classes == ["cat"]
    assert refusals(scan) == {} and scan.passed_over == {"hidden folder": 1, "._*": 1}


def test_links_that_lead_back_are_refused_and_never_followed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_image(root / "cat" / "1.png", 0)
    write_image(root / "dog" / "1.png", 1)
    (root / "cat" / "up").symlink_to("..")
    (root / "cat" / "self").symlink_to(".")
    (root / "above").symlink_to(tmp_path)
    (root / "kitten").symlink_to("cat")
    (root / "cat" / "round.png").symlink_to("round.png")
    scan = scan_folder(root, MAX_PIXELS)
    assert paths(scan) == ["cat/1.png", "dog/1.png"] and scan.classes == ["cat", "dog"]
    assert refusals(scan) == {
        "above": "symbolic link loop",
        "cat/round.png": "symbolic link loop",
        "cat/self": "symbolic link loop",
        "cat/up": "symbolic link loop",
        "kitten": "symbolic link to a folder of the same root, which is read there",
    }


def test_a_link_to_a_folder_elsewhere_is_followed_once(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    root.mkdir()
    write_image(elsewhere / "1.png", 0)
    (elsewhere / "back").symlink_to(elsewhere)
    (root / "cat").symlink_to(elsewhere)
    (root / "dog").symlink_to(elsewhere)
    (root / "picture").mkdir()
    (root / "picture" / "1.png").symlink_to(elsewhere / "1.png")
    scan = scan_folder(root, MAX_PIXELS)
    assert paths(scan) == ["cat/1.png", "picture/1.png"] and scan.classes == ["cat", "picture"]
    assert refusals(scan) == {
        "cat/back": "symbolic link loop",
        "dog": "symbolic link to a folder that another link has led to",
    }


def test_a_class_without_images_is_still_reported_as_a_class(tmp_path: Path) -> None:
    write_image(tmp_path / "cat" / "1.png", 0)
    (tmp_path / "dog").mkdir()
    assert scan_folder(tmp_path, MAX_PIXELS).classes == ["cat", "dog"]


def test_what_sfd_generate_leaves_beside_its_class_folders_is_passed_over_without_being_counted(tmp_path: Path) -> None:
    own = ("samples.parquet", "report.json", "strange.xyz")
    for number, name in enumerate(("cat/1.png", "dog/1.png")):
        write_image(tmp_path / name, number)
    for name in own:
        (tmp_path / name).touch()
    before = scan_folder(tmp_path, MAX_PIXELS)
    assert not refusals(before) and before.passed_over == {".parquet": 1, ".json": 1, ".xyz": 1}
    FolderLayout("sfd generate", own, own[0]).write(tmp_path)
    (tmp_path / "loose").touch()
    scan = scan_folder(tmp_path, MAX_PIXELS)
    assert set(refusals(scan)) == {"loose"} and scan.passed_over == {}
    assert paths(scan) == ["cat/1.png", "dog/1.png"]
