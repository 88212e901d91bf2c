"""Folders as people have them: each gives the right classes and splits, or the right sentence. Files are told by a short text each."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
from folders import BY_TABLE, CAT_DOG, FLAT, IN_CAT_DOG, IN_SPLITS, ONE_CLASS, PNG, ROWS, SPLITS, TABLE, images, make

from sfd.data.listing import read_listing
from sfd.data.manifest import read_manifest
from sfd.data.prepare import look, prepare
from sfd.errors import UserError
from sfd.params import DataParams


def params(root: Path, **options: Any) -> DataParams:
    return DataParams.model_validate({"source": "folder", "root": str(root), "image_size": 8, **options})


class Case(NamedTuple):
    """A folder, and what must come of it.

    Attributes:
        files: as :func:`make` takes them.
        counts: images per class and split, (train, heldout).
        passed: number of companions by kind.
        options: of section `data`; `labels` is relative to the folder.
        layout: a part of the layout in words.
        note: a part of a note; empty: there is none.
    """

    files: dict[str, Any]
    counts: dict[str, tuple[int, int]]
    passed: dict[str, int] = {}
    options: dict[str, Any] = {}
    layout: str = ""
    note: str = ""


RIGHT = {
    "class folders": Case(CAT_DOG, IN_CAT_DOG, layout="class folders"),
    "class folders, images deep inside": Case(images("cat/a/b/") | images("dog/"), IN_CAT_DOG),
    "train and val above class folders": Case(SPLITS, IN_SPLITS, layout="split folders (train: `train`; held out: `val`)"),
    "train, val and test, in capitals": Case(
        images("Train/cat/", 3) | images("Val/cat/") | images("TEST/cat/", 1),
        {"cat": (3, 3)},
        layout="(train: `Train`; held out: `TEST`, `Val`) above class folders",
        note=ONE_CLASS,
    ),
    "training_set and test_set": Case(
        images("training_set/cat/") | images("training_set/dog/") | images("test_set/cat/") | images("test_set/dog/"),
        IN_SPLITS,
    ),
    "train2017 and val2017 without class folders": Case(
        images("train2017/") | images("val2017/"), {"image": (2, 2)}, layout="without class folders", note=ONE_CLASS
    ),
    "train alone above class folders": Case(
        images("train/cat/") | images("train/dog/"), IN_CAT_DOG, layout="split folder `train` alone, above class folders"
    ),
    "train alone with images": Case(images("train/", 3), {"image": (2, 1)}, note=ONE_CLASS),
    "splits, junk and documents between them": Case(
        SPLITS | {"README.md": "x", "__MACOSX/train/._1.png": "x", "annotations/a.json": "{}", "train/.DS_Store": "x"},
        IN_SPLITS,
        {".md": 1, "__MACOSX/": 1, ".json": 1, ".DS_Store": 1},
    ),
    "classes that are named train and plane": Case(
        images("train/") | images("plane/"), {"plane": (1, 1), "train": (1, 1)}, layout="class folders"
    ),
    "classes that are named train and test, said so": Case(
        images("train/") | images("test/"), {"test": (1, 1), "train": (1, 1)}, options={"layout": "classes"}
    ),
    "classes that are named images and masks, said so": Case(
        images("images/") | images("masks/"), {"images": (1, 1), "masks": (1, 1)}, options={"layout": "classes"}
    ),
    "masks as a class beside others": Case(images("masks/") | images("hats/"), {"hats": (1, 1), "masks": (1, 1)}),
    "images beside a class of another name": Case(
        images("images/") | images("sketches/"), {"images": (1, 1), "sketches": (1, 1)}
    ),
    "images directly in the folder": Case(FLAT, {"image": (3, 1)}, layout="one folder without classes", note=ONE_CLASS),
    "folders that are no classes, said so": Case(
        images("2019/") | images("2020/", 3), {"image": (4, 1)}, options={"layout": "flat"}, note=ONE_CLASS
    ),
    "captions beside the images": Case(
        FLAT | {f"{number}.txt": "a cat" for number in range(4)} | {"lost.txt": "no image"},
        {"image": (3, 1)},
        {".txt": 5},
        note=ONE_CLASS,
    ),
    "one folder around the class folders": Case(
        images("pets/cat/") | images("pets/dog/"), {"pets": (3, 1)}, note="set data.root to"
    ),
    "system files and folders of every kind": Case(
        CAT_DOG
        | {"cat/.DS_Store": "x", "cat/Thumbs.db": "x", "dog/desktop.ini": "x", "dog/._0.png": "x", ".hidden": "x"}
        | {"@eaDir/0.png": "x", "cat/@eaDir/0.png": "x", "cat/.ipynb_checkpoints/0.png": "x", "__MACOSX/cat/._0.png": "x"},
        IN_CAT_DOG,
        {".DS_Store": 1, "Thumbs.db": 1, "desktop.ini": 1, "._*": 1, "hidden file": 1}
        | {"@eaDir/": 2, ".ipynb_checkpoints/": 1, "__MACOSX/": 1},
    ),
    "companions of every kind": Case(
        CAT_DOG | {f"cat/0{ending}": "x" for ending in (".json", ".xml", ".npy", ".html", ".pdf")} | {"LICENSE": "x"},
        IN_CAT_DOG,
        {".json": 1, ".xml": 1, ".npy": 1, ".html": 1, ".pdf": 1, "LICENSE": 1},
    ),
    "a file per image of a kind that nobody knows, and one of them for all": Case(
        CAT_DOG | {"cat/0.png.mcmeta": "{}", "dog/0.png.mcmeta": "{}", "dog/1.kra": "x", "pack.xyz": "", "tools/a.zig": "x"},
        IN_CAT_DOG,
        {".mcmeta": 2, ".kra": 1, ".xyz": 1, ".zig": 1},
    ),
    "a few images sorted into a folder, said to be no class": Case(
        FLAT | images("female/"),
        {"image": (5, 1)},
        options={"layout": "flat"},
        layout="one folder without classes",
        note="4 images lie directly in the folder and 2 in subfolders (`female`), which are no classes",
    ),
    "a folder of companions is no class": Case(CAT_DOG | {"notes/a/b.txt": "x"}, IN_CAT_DOG, {".txt": 1}),
    "files of other formats": Case(
        images("cat/", 1, 0, ".tiff") | images("cat/", 1, 1, ".gif") | images("dog/", 1, 0, ".avif")
        | images("dog/", 1, 1, ".webp") | images("dog/", 1, 2, ".bmp") | images("dog/", 1, 3, ".JPG"),
        {"cat": (1, 1), "dog": (3, 1)},
    ),  # fmt: skip
    "images without an ending or with an unknown one": Case(
        {"cat/0": PNG, "cat/1.xyz": PNG + b"0", "dog/a.b": PNG + b"1", "dog/photo.2019": PNG + b"2"}, IN_CAT_DOG
    ),
    "a table of classes": Case(FLAT | TABLE, IN_CAT_DOG, {".csv": 1}, BY_TABLE, "columns `file_name` and `label`"),
    "a table as a spreadsheet writes it: BOM, CRLF, semicolons, quotes": Case(
        FLAT | {"l.csv": '\ufeffImage;Class;Note\r\n"0.png";"a, ""b""";x\r\n1.png;"a, ""b""";\r\n2.png;dog;\r\n3.png;dog;\r\n'},
        {'a, "b"': (1, 1), "dog": (1, 1)},
        {".csv": 1},
        {"labels": "l.csv"},
    ),
    "a table with one line per image in JSON, and numbers as classes": Case(
        FLAT | {"m.jsonl": "\n".join(json.dumps({"path": f"./{n}.png", "category": 9 + n // 2}) for n in range(4))},
        {"09": (1, 1), "10": (1, 1)},
        {".jsonl": 1},
        {"labels": "m.jsonl"},
    ),
    "a table with names without ending, tabs, and images in a subfolder": Case(
        images("images/", 4) | {"t.tsv": "id\tlabel\n0\tcat\n1\tcat\n2\tdog\n3\tdog\n"},
        IN_CAT_DOG,
        {".tsv": 1},
        {"labels": "t.tsv"},
    ),
    "a table with Windows paths and columns of other names": Case(
        images("images/", 4) | {"t.csv": "bild,art,label\n" + "".join(f"images\\{n}.png,{'ab'[n // 2]},x\n" for n in range(4))},
        {"a": (1, 1), "b": (1, 1)},
        {".csv": 1},
        {"labels": "t.csv", "image_column": "bild", "label_column": "art"},
    ),
    "a table with the paths of another machine": Case(
        images("", 4) | {"t.csv": "path,label\n" + "".join(f"/home/me/pics/{n}.png,{'ab'[n // 2]}\n" for n in range(4))},
        {"a": (1, 1), "b": (1, 1)},
        {".csv": 1},
        {"labels": "t.csv"},
    ),
    "a table over split folders": Case(
        images("train/", 4) | images("val/", 2)
        | {"t.csv": "path,label\n" + "".join(f"train/{n}.png,{'ab'[n % 2]}\n" for n in range(4)) + "val/0.png,a\nval/1.png,b\n"},
        {"a": (2, 1), "b": (2, 1)},
        {".csv": 1},
        {"labels": "t.csv"},
        "split folders (train: `train`; held out: `val`) without class folders, classes from t.csv",
    ),  # fmt: skip
    "a table that says the same twice": Case(
        FLAT | {"labels.csv": f"file,label\n{ROWS}0.png,cat\n"}, IN_CAT_DOG, {".csv": 1}, BY_TABLE
    ),
    "a text with a line per image": Case(
        FLAT | {"list.txt": "# made by hand\nImage label\n0.png cat\n1.png,cat\n\n2.png\tdog\n3.png ;  dog\n"},
        IN_CAT_DOG,
        {".txt": 1},
        {"labels": "list.txt"},
        "classes from list.txt",
    ),
    "a text with names without ending, blanks in names and classes, and numbers": Case(
        {"my cat.png": 1, "b 2.jpeg": 2, "c": PNG, "d": PNG + b"0"}
        | {"l.txt": "\ufeffmy cat.png big cat\r\nb 2.jpeg big cat\r\nc 7\r\nd 7\r\n"},
        {"7": (1, 1), "big cat": (1, 1)},
        {".txt": 1},
        {"labels": "l.txt"},
    ),
    "folders such as trainA that are classes, said so": Case(
        images("trainA/") | images("testA/"), {"testA": (1, 1), "trainA": (1, 1)}, options={"layout": "classes"}
    ),
    "unequal classes": Case(
        images("cat/", 8) | images("dog/"), {"cat": (6, 2), "dog": (1, 1)}, note="'cat' has 8 images and 'dog' 2"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", RIGHT.values(), ids=RIGHT.keys())
def test_a_folder_gives_the_right_classes_and_splits(case: Case, tmp_path: Path) -> None:
    root = make(tmp_path / "root", case.files)
    options = case.options | ({"labels": str(root / case.options["labels"])} if "labels" in case.options else {})
    report = look(params(root, **options))
    found = {name: (splits["train"], splits["heldout"]) for name, splits in report.counts.items()}
    assert found == case.counts
    assert report.passed_over == case.passed and report.refused == {}
    assert case.layout in report.layout
    notes = [note for note in report.notes if "enlarged" not in note]
    assert len(notes) >= bool(case.note) and (not case.note or any(case.note in note for note in notes)), notes


class Wrong(NamedTuple):
    """A folder, and a pattern of the sentence that refuses it."""

    files: dict[str, Any]
    sentence: str
    options: dict[str, Any] = {}


WRONG = {
    "an empty folder": Wrong({}, r"has no images \(passed over: nothing\); point data.root at a folder of images"),
    "only companions": Wrong({"a.txt": "x", "b.zip": "x"}, r"has no images \(passed over: 1 .txt, 1 .zip\)"),
    "an empty class folder": Wrong(CAT_DOG | {"owl/": ""}, "at least two usable images, but 1 have none: 'owl'"),
    "a class of one image": Wrong(CAT_DOG | images("owl/", 1), "class 'owl' has 1 distinct image"),
    "two classes of one image": Wrong(
        CAT_DOG | images("owl/", 1) | images("ant/", 1), "classes 'ant', 'owl' have 1 distinct image"
    ),
    "a class that is not held out": Wrong(
        SPLITS | images("train/owl/"), "images in the split folders .*but 'owl' has 2 and 0; add images"
    ),
    "a class that is only held out": Wrong(SPLITS | images("val/owl/"), "'owl' has 0 and 2"),
    "equal images in both splits": Wrong(
        SPLITS | {"val/cat/same.png": 7, "train/cat/same.png": 7},
        "1 images have the same content .* as one of the other split folders: .*data.duplicates to drop",
    ),
    "val and test without train": Wrong(
        images("val/cat/") | images("test/cat/"), "`test`, `val`, which are named like splits, but none for training"
    ),
    "an empty val": Wrong(images("train/cat/") | {"val/": ""}, "split folders of .* hold no image: `val`"),
    "test images without class folders": Wrong(
        images("train/cat/") | images("train/dog/") | images("test/"),
        "the images of `test` in .* lie in no class folder, but those of `train` do",
    ),
    "images beside their masks": Wrong(
        images("images/") | images("masks/"), "`masks` beside `images`, which are named like .* set data.layout to `classes`"
    ),
    "images beside their masks and trimaps, as in an archive": Wrong(
        images("JPEGImages/") | images("SegmentationClass/") | images("trimaps/"),
        "`SegmentationClass`, `trimaps` beside `JPEGImages`",
    ),
    "images beside their masks in split folders": Wrong(
        images("train/images/") | images("train/masks/") | images("val/images/") | images("val/masks/"),
        "`masks` beside `images`, which are named like .* set data.layout to `splits`",
    ),
    "the splits of two sets": Wrong(
        images("trainA/") | images("trainB/") | images("testA/") | images("testB/"),
        r"`testA`, `testB`, `trainA`, `trainB`, which are named like the splits of several sets.*`testA` becomes `test/A`",
    ),
    "a text whose line is no pair": Wrong(
        FLAT | {"l.txt": "0.png cat\n1.png\n"}, r"line 2 of data.labels .*l\.txt is no pair; write .* `1.png cat`", {"labels": "l.txt"}
    ),
    "a text that names other files": Wrong(
        FLAT | {"l.txt": "a.png cat\nb.png cat\n"}, "names no image of .*begins with 'a.png'", {"labels": "l.txt"}
    ),
    "no splits, but said so": Wrong(CAT_DOG, "data.layout is `splits`, but .*`cat`, `dog`", {"layout": "splits"}),
    "more loose images than in class folders": Wrong(
        FLAT | images("thumbs/"), "4 files in .* lie in no class folder, and 2 lie in one; set data.layout to `flat`"
    ),
    "an image that is none": Wrong(CAT_DOG | {"cat/x.png": "text"}, "1 of 5 files .* not an image"),
    "a photo of a telephone": Wrong(
        CAT_DOG | {"cat/x.HEIC": b"\0\0\0\x18ftypheic" + bytes(60)},
        "1 of 5 files .* most often: HEIC, which needs the package pillow-heif",
    ),
    "a file without an ending that is no image": Wrong(CAT_DOG | {"cat/x": "text"}, "1 of 5 files .* not an image"),
    "nothing but drawings of a kind that is not read": Wrong({"cat/0.svg": "<svg/>", "cat/1.svg": "<svg/>"}, "has no images .passed over: 2 .svg"),
    "an image without a row": Wrong(FLAT | {"4.png": 4} | TABLE, "1 of 5 files .* no label", BY_TABLE),
    "a row without an image": Wrong(
        FLAT | {"labels.csv": f"file,label\n{ROWS}9.png,cat\n"}, "1 of 5 files .*9.png .no such file: line 6", BY_TABLE
    ),
    "a row without a class": Wrong(
        FLAT | {"labels.csv": f"file,label\n{ROWS.replace('1.png,cat', '1.png,')}"}, "label: '' is neither", BY_TABLE
    ),
    "two classes for one image": Wrong(
        FLAT | {"labels.csv": f"file,label\n{ROWS}0.png,dog\n"},
        r"1 files two classes: 0.png in lines 2 \(cat\) and 6 \(dog\); keep one row",
        BY_TABLE,
    ),
    "a row that names two images": Wrong(
        images("a/") | images("b/") | {"labels.csv": "file,label\n0.png,cat\n1.png,dog\n"},
        "line 2 of labels.csv names 2 files",
        BY_TABLE,
    ),
    "a table of other files": Wrong(
        FLAT | {"labels.csv": "file,label\nx.png,cat\n"}, "names no image of .*begins with 'x.png'.* '0.png'", BY_TABLE
    ),
    "a table without the column": Wrong(
        FLAT | TABLE, "has no column `art`, but `file_name`, `label`; name the right one in data.label_column",
        BY_TABLE | {"label_column": "art"},
    ),
    "a table without names of columns": Wrong(
        FLAT | {"labels.csv": ROWS}, "has no column `image`, but `0.png`, `cat`", BY_TABLE
    ),
    "a table whose cells hold the separator": Wrong(
        FLAT | {"labels.csv": "file,label\n0.png,a,b\n"}, "line 2 of .* more cells than the first line", BY_TABLE
    ),
    "a table that is not UTF-8": Wrong(FLAT | {"labels.csv": "file,label\n0.png,Bär\n".encode("latin-1")}, "not UTF-8", BY_TABLE),
    "a table without rows": Wrong(FLAT | {"labels.csv": "file,label\n"}, "has no rows", BY_TABLE),
    "a broken line of JSON": Wrong(
        FLAT | {"m.jsonl": '{"file": "0.png", "label": 1}\n{"file":\n'}, "line 2 of .* is no JSON object", {"labels": "m.jsonl"}
    ),
    "no table at all": Wrong(FLAT, "labels.csv does not exist", BY_TABLE),
    "a table of another kind": Wrong(FLAT | {"t.xlsx": "x"}, "must be a table: .csv, .tsv, .jsonl or .txt", {"labels": "t.xlsx"}),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG.keys())
def test_a_folder_that_cannot_be_used_gives_the_right_sentence(
    case: Wrong, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    root = make(tmp_path / "root", case.files)
    options = case.options | ({"labels": str(root / case.options["labels"])} if "labels" in case.options else {})
    with pytest.raises(UserError, match=case.sentence):
        look(params(root, **options))


def test_split_folders_decide_which_images_are_held_out_and_the_fraction_is_not_read(tmp_path: Path) -> None:
    root = make(tmp_path / "root", SPLITS | images("train/cat/", 9))
    for fraction in (0.1, 0.9):
        prepare(params(root, holdout_fraction=fraction), 0, tmp_path / "out")
        rows = read_manifest(tmp_path / "out")
        assert (rows["split"] == rows["path"].str.split("/").str[0].map({"train": "train", "val": "heldout"})).all()
        assert Counter(rows["label"]) == {"cat": 11, "dog": 4}
    assert "by folders; data.holdout_fraction is not read" in "\n".join(look(params(root)).lines())


def test_classes_of_equal_size_are_said_to_be_so(tmp_path: Path) -> None:
    assert "every class has 2" in "\n".join(look(params(make(tmp_path / "root", CAT_DOG))).lines())


def test_equal_images_in_both_splits_are_dropped_on_request_and_the_training_image_stays(tmp_path: Path) -> None:
    files = images("train/cat/", 3) | images("test/cat/", 3) | {"train/cat/z.png": 7, "test/cat/a.png": 7}
    root = make(tmp_path / "root", files)
    prepare(params(root, duplicates="drop"), 0, tmp_path / "out")
    rejected = pd.read_csv(tmp_path / "out" / "rejected.csv").to_dict("records")
    assert rejected == [{"path": "test/cat/a.png", "reason": "duplicate: same content as train/cat/z.png"}]
    assert "train/cat/z.png" in set(read_manifest(tmp_path / "out")["path"])


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "pictures", CAT_DOG)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert look(DataParams(source="folder", root="~/pictures", image_size=8)).num_images == 4
    with pytest.raises(UserError, match=f"data.root {tmp_path}/nowhere does not exist"):
        look(DataParams(source="folder", root="~/nowhere"))


def test_the_listing_changes_with_a_table_that_lies_elsewhere_and_names_it_when_it_is_missing(tmp_path: Path) -> None:
    root, table = make(tmp_path / "root", FLAT), tmp_path / "labels.csv"
    table.write_text(f"file,label\n{ROWS}")
    before = read_listing(params(root, labels=str(table)))
    assert read_listing(params(root, labels=str(table))) == before
    table.write_text(f"file,label\n{ROWS.replace('dog', 'goat')}")
    assert read_listing(params(root, labels=str(table))) != before
    table.unlink()
    with pytest.raises(UserError, match="labels.csv does not exist"):
        read_listing(params(root, labels=str(table)))


def test_looking_writes_nothing(tmp_path: Path) -> None:
    root = make(tmp_path / "root", CAT_DOG)
    before = sorted(tmp_path.rglob("*"))
    look(params(root))
    assert sorted(tmp_path.rglob("*")) == before
