"""Captions as people have them: each layout gives the right captions or the right sentence."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
from folders import FLAT, images, make

from sfd.data.captions import clean_caption
from sfd.data.listing import read_listing
from sfd.data.manifest import digest, read_manifest
from sfd.data.prepare import look, prepare
from sfd.data.prepared import Prepared
from sfd.errors import UserError
from sfd.params import DataParams

TWO = images("", 2)
TOLD = {"0.png": ["a red apple"], "1.png": ["a green apple"]}


def lines(*objects: Any) -> str:
    return "\n".join(json.dumps(each) for each in objects) + "\n"


class Case(NamedTuple):
    """Files, and the captions of each image. ``captions``: `data.captions`, a file relative to the folder."""

    files: dict[str, Any]
    told: dict[str, list[str]]
    captions: str = "auto"
    options: dict[str, Any] = {}


ROWS = "0.png,a red apple\n1.png,a green apple\n"
RIGHT = {
    "a text beside each image": Case(TWO | {"0.txt": "a red apple", "1.txt": "a green apple\n"}, TOLD),
    "several lines beside an image, some empty": Case(
        TWO | {"0.txt": "\ufeffa red apple\r\n\r\nfruit\r\n", "1.txt": "a green apple"}, TOLD | {"0.png": ["a red apple", "fruit"]}
    ),
    "texts with other endings": Case(TWO | {"0.caption": "a red apple", "1.png.txt": "a green apple"}, TOLD),
    "JSON beside each image, with another file of facts": Case(
        TWO | {"0.json": '{"caption": ["a red apple"], "seed": 3}', "1.png.json": '{"text": "a green apple"}', "info.json": '{"a": 1}'},
        TOLD,
    ),
    "a text beside an image before its JSON": Case(
        TWO | {"0.txt": "a red apple", "0.json": '{"caption": "x"}', "1.json": '{"caption": "a green apple"}'}, TOLD
    ),
    "texts in class folders": Case(
        images("a/", 2, 0) | images("b/", 2, 50)
        | {"a/0.txt": "one", "a/1.txt": "two", "b/50.txt": "three", "b/51.txt": "four"},
        {"a/0.png": ["one"], "a/1.png": ["two"], "b/50.png": ["three"], "b/51.png": ["four"]},
    ),
    "a CSV in the folder": Case(TWO | {"captions.csv": f"file_name,caption\n{ROWS}"}, TOLD),
    "a CSV that has another name": Case(TWO | {"fruit.csv": f"image,text\n{ROWS}", "sizes.csv": "image,size\n0.png,3\n"}, TOLD),
    "a CSV of semicolons and quotes, several rows per image": Case(
        TWO | {"t.csv": 'name;prompt\n0;"a red; ""apple"""\n1;a green apple\n0;fruit\n'},
        TOLD | {"0.png": ['a red; "apple"', "fruit"]}, "t.csv",
    ),
    "a CSV of bars, as Flickr30k has it": Case(
        TWO | {"results.csv": "image_name| comment_number| comment\n0.png| 0| a red apple\n1.png| 0| a green apple\n"},
        TOLD, "results.csv", {"image_column": "image_name"},
    ),
    "several columns": Case(
        TWO | {"t.csv": "file,short,long\n0.png,red,a red apple\n1.png,green,\n"},
        {"0.png": ["red", "a red apple"], "1.png": ["green"]}, "t.csv", {"caption_column": "short+long"},
    ),
    "numbered columns": Case(
        TWO | {"t.csv": "file,caption_1,caption_2\n0.png,a red apple,fruit\n1.png,a green apple,fruit\n"},
        {name: [*texts, "fruit"] for name, texts in TOLD.items()}, "t.csv",
    ),
    "a TSV": Case(TWO | {"t.tsv": "path\tcaption\n" + ROWS.replace(",", "\t")}, TOLD, "t.tsv"),
    "JSON lines of emoji64": Case(
        images("food/", 2) | {"captions.jsonl": lines(
            {"file": "food/0.png", "class": "food", "style": "noto", "caption": "a red apple"},
            {"file": "food/1.png", "class": "food", "style": "noto", "caption": "a green apple"},
        )},
        {f"food/{name}": texts for name, texts in TOLD.items()},
    ),
    "JSON lines with lists, as data sets of the hub have them": Case(
        TWO | {"metadata.jsonl": lines(
            {"file_name": "0.png", "captions": ["a red apple", "fruit"]}, {"file_name": "1.png", "captions": [{"raw": "a green apple"}]}
        )},
        TOLD | {"0.png": ["a red apple", "fruit"]},
    ),
    "a table in each split folder": Case(
        images("train/", 2) | images("val/", 2, 50)
        | {"train/metadata.csv": f"file_name,text\n{ROWS}", "val/metadata.csv": "file_name,text\n50.png,x\n51.png,y\n"},
        {f"train/{name}": texts for name, texts in TOLD.items()} | {"val/50.png": ["x"], "val/51.png": ["y"]},
    ),
    "JSON of COCO": Case(
        TWO | {"captions_train2017.json": json.dumps({
            "images": [{"id": 7, "file_name": "0.png"}, {"id": 8, "file_name": "1.png"}],
            "annotations": [{"image_id": image, "caption": text} for image, text in ((7, "a red apple"), (8, "a green apple"), (7, "fruit"))],
        })},
        TOLD | {"0.png": ["a red apple", "fruit"]},
    ),
    "JSON from files to captions": Case(TWO | {"c.json": json.dumps({"0.png": "a red apple", "1": ["a green apple"]})}, TOLD, "c.json"),
    "JSON, a list": Case(TWO | {"c.json": json.dumps([{"image": n, "text": t[0]} for n, t in TOLD.items()])}, TOLD, "c.json"),
    "a table from another machine, with its paths": Case(
        images("a/", 2, 0) | images("b/", 2, 5)
        | {"t.csv": "path,prompt\n" + "".join(rf"C:\pics\v2\{name},{name[0]} {name[2]}" + "\n" for name in ("a/0", "a/1", "b/5.png", "b/6", "b/9"))},
        {"a/0.png": ["a 0"], "a/1.png": ["a 1"], "b/5.png": ["b 5"], "b/6.png": ["b 6"]},
    ),
    "a text with a line per caption, as Flickr8k has it": Case(
        TWO | {"token.txt": "0.png#0\ta red apple\n0.png#1\tfruit\n1.png#0\ta green apple\n"},
        TOLD | {"0.png": ["a red apple", "fruit"]}, "token.txt",
    ),
    "a text that is a CSV": Case(TWO | {"captions.txt": 'image,caption\n0.png,"a red apple"\n1.png,a green apple\n'}, TOLD, "captions.txt"),
    "other scripts, blanks and control characters": Case(
        TWO | {"0.txt": " a \t red\u00a0\x00apple\x1b \u200d", "1.txt": "緑の りんご\n🍏 يوم"},
        {"0.png": ["a red apple \u200d"], "1.png": ["緑の りんご", "🍏 يوم"]},
    ),
    "the same caption twice": Case(TWO | {"0.txt": "a red apple\na  red apple", "1.txt": "a green apple"}, TOLD),
    "images without a caption left out": Case(
        images("", 3) | {"0.txt": "a red apple", "1.txt": "a green apple", "2.txt": " \n"}, TOLD, options={"uncaptioned": "drop"}
    ),
    "images without a caption by their class": Case(
        images("apple/", 3) | {"apple/0.txt": "a red apple", "apple/1.txt": "a green apple"},
        {"apple/0.png": ["a red apple"], "apple/1.png": ["a green apple"], "apple/2.png": ["apple"]},
        options={"uncaptioned": "class"},
    ),
}  # fmt: skip


def params(root: Path, captions: str = "auto", **options: Any) -> DataParams:
    given = captions if captions == "auto" else str(root / captions)
    return DataParams.model_validate(
        {"source": "folder", "root": str(root), "image_size": 8, "captions": given, **options}
    )


def captions_in(folder: Path) -> dict[str, list[str]]:
    rows = read_manifest(folder)
    return dict(zip(rows["path"], rows["captions"], strict=True))


@pytest.mark.parametrize("case", RIGHT.values(), ids=RIGHT.keys())
def test_a_folder_gives_the_right_captions(case: Case, tmp_path: Path) -> None:
    root = make(tmp_path / "root", case.files)
    prepare(params(root, case.captions, **case.options), 0, tmp_path / "out")
    assert captions_in(tmp_path / "out") == case.told


class Wrong(NamedTuple):
    """Files, and a pattern of the sentence that refuses them."""

    files: dict[str, Any]
    sentence: str
    captions: str = "auto"
    options: dict[str, Any] = {}


WRONG = {
    "no captions at all": Wrong(TWO, r"none of the 2 images has a caption \(in files beside the images\): 0.png \(no text file beside it\)"),
    "one image without": Wrong(
        TWO | {"0.txt": "a red apple"},
        r"1 of 2 images have no caption: 1.png \(no text file beside it\).*set data.uncaptioned to `drop`, .* or to `class`",
    ),
    "an empty text": Wrong(TWO | {"0.txt": "a red apple", "1.txt": "\n"}, r"1.png \(1.txt is empty\)"),
    "control characters alone": Wrong(TWO | {"0.txt": "a red apple", "1.txt": "\x01\x02"}, r"1.png \(its captions are empty\)"),
    "a text of Latin-1": Wrong(TWO | {"0.txt": "a", "1.txt": "Bär".encode("latin-1")}, r"1.png \(1.txt is not UTF-8\)"),
    "an endless text": Wrong(TWO | {"0.txt": "a", "1.txt": "a" * 70_000}, r"1.txt has more than 65536 bytes"),
    "a table that misses an image": Wrong(TWO | {"t.csv": "file,caption\n0.png,a\n"}, r"1.png \(the table does not name it\)", "t.csv"),
    "a table without names of columns": Wrong(
        TWO | {"captions.csv": ROWS}, r"none of .* has a caption \(in files .*captions.csv has no column `image`, but `0.png`, `a red apple`"
    ),
    "a table with the paths of two folders": Wrong(
        TWO | {"t.csv": "file,caption\n/old/a/0.png,x\n/old/b/0.png,y\n"}, "none of the 2 images has a caption", "t.csv"
    ),
    "a table of other files": Wrong(TWO | {"t.csv": "file,caption\nx.png,a\n"}, "none of the 2 images has a caption", "t.csv"),
    "a table without the column": Wrong(
        TWO | {"t.csv": "file,class\n0.png,a\n"}, "has no column `caption`, but `file`, `class`; name the right one in data.caption_column", "t.csv"
    ),
    "a table without a column of files": Wrong(TWO | {"t.csv": "x,caption\n0.png,a\n"}, "has no column `image`, but `x`", "t.csv"),
    "a row that names two images": Wrong(
        images("a/", 2, 0) | {"b/0.png": 7, "b/1.png": 8} | {"t.csv": "file,caption\n0.png,x\n1.png,y\n"},
        "line 2 of the table names 2 files", "t.csv",
    ),
    "a broken line in a table that is named like captions": Wrong(
        TWO | {"captions.jsonl": '{"file": "0.png", "caption": "x"}\n{"file"\n'}, "line 2 of data.captions .* is no JSON object"
    ),
    "JSON beside an image that is broken, and one without a caption": Wrong(
        images("", 3) | {"0.txt": "a", "1.json": "{", "2.json": '{"seed": 3}'},
        r"1.png \(1.json is not JSON\); 2.png \(2.json has no key such as `caption`\)",
    ),
    "broken JSON": Wrong(TWO | {"c.json": "{"}, "data.captions .* is no JSON", "c.json"),
    "COCO's boxes": Wrong(
        TWO | {"c.json": json.dumps({"images": [{"id": 1, "file_name": "0.png"}], "annotations": [{"image_id": 1, "bbox": []}]})},
        "has annotations without `caption`", "c.json",
    ),
    "a table that is not there": Wrong(TWO, "t.csv does not exist; correct the path, or set data.captions to null", "t.csv"),
    "a table of another kind": Wrong(TWO | {"t.xlsx": "x"}, "must be a table: .csv, .tsv, .jsonl, .json or .txt", "t.xlsx"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG.keys())
def test_captions_that_cannot_be_used_give_the_right_sentence(case: Wrong, tmp_path: Path) -> None:
    root = make(tmp_path / "root", case.files)
    for attempt in (lambda given: look(given), lambda given: prepare(given, 0, tmp_path / "out")):
        with pytest.raises(UserError, match=case.sentence):
            attempt(params(root, case.captions, **case.options))


def pack(archive: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(archive, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return archive


def png(tmp_path: Path, seed: int) -> bytes:
    return (make(tmp_path / "drawn", {f"{seed}.png": seed}) / f"{seed}.png").read_bytes()


IN_TAR: dict[str, dict[str, Any]] = {
    "a text member": {"0.txt": b"a red apple\nfruit", "1.txt": b"a green apple"},
    "a key of JSON": {"0.json": b'{"caption": ["a red apple", "fruit"]}', "1.json": b'{"caption": "a green apple"}'},
    "a key of JSON with another usual name": {"0.json": b'{"text": ["a red apple", "fruit"]}', "1.json": b'{"text": "a green apple"}'},
    "a table among the members": {
        "captions.jsonl": lines(
            {"file": "0.png", "caption": "a red apple"}, {"file": "0.png", "caption": "fruit"}, {"file": "1.png", "caption": "a green apple"}
        ).encode()
    },
}  # fmt: skip


@pytest.mark.parametrize("members", IN_TAR.values(), ids=IN_TAR.keys())
@pytest.mark.parametrize("folder", ["", "emoji64/food/"], ids=["loose", "in folders"])
def test_an_archive_gives_the_right_captions(members: dict[str, bytes], folder: str, tmp_path: Path) -> None:
    drawn = {f"{folder}{seed}.png": png(tmp_path, seed) for seed in (0, 1)}
    own = {name if name == "captions.jsonl" else f"{folder}{name}": content for name, content in members.items()}
    given = DataParams(source="tar", root=str(pack(tmp_path / "a.tar", drawn | own)), image_size=8, captions="auto")
    prepare(given, 0, tmp_path / "out")
    assert captions_in(tmp_path / "out") == {
        f"a.tar#{folder}0.png": ["a red apple", "fruit"],
        f"a.tar#{folder}1.png": ["a green apple"],
    }


def test_archives_with_a_table_elsewhere_and_with_images_without_captions(tmp_path: Path) -> None:
    archive = pack(
        tmp_path / "a.tar", {f"x/{seed}.png": png(tmp_path, seed) for seed in (0, 1)} | {"x/0.txt": b"a red apple"}
    )
    with pytest.raises(
        UserError, match=r"1 of 2 images have no caption: a.tar#x/1.png \(no caption among its members\)"
    ):
        look(DataParams(source="tar", root=str(archive), image_size=8, captions="auto"))
    (tmp_path / "t.csv").write_text(f"file,caption\n{ROWS}")
    prepare(DataParams(source="tar", root=str(archive), image_size=8, captions=tmp_path / "t.csv"), 0, tmp_path / "out")
    assert captions_in(tmp_path / "out") == {f"a.tar#x/{name}": texts for name, texts in TOLD.items()}


def test_a_data_set_of_the_hub_gives_the_captions_of_its_column_and_needs_no_classes(tmp_path: Path) -> None:
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    cells = [{"bytes": png(tmp_path, seed), "path": None} for seed in (0, 1)]
    rows = {"image": cells, "text": [["a red apple", "fruit"], ["a green apple"]]}
    Dataset.from_dict(rows, features=Features({"image": ImageFeature(), "text": [Value("string")]})).save_to_disk(
        tmp_path / "set"
    )
    given = DataParams(source="huggingface", root=str(tmp_path / "set"), image_size=8, captions="auto")
    prepare(given, 0, tmp_path / "out")
    told = captions_in(tmp_path / "out")
    assert told == {"train/00000000": ["a red apple", "fruit"], "train/00000001": ["a green apple"]}
    assert Prepared.load(given, tmp_path / "out").images("train").__getitems__([0]).images.shape == (1, 3, 8, 8)
    for options, sentence in (
        ({"caption_column": "prompt"}, "has no column `prompt`, but `image`, `text`; name the column of captions"),
        ({"label_column": "art"}, "data.label_column is `art`"),
        ({"captions": None}, "data.label_column is `label`"),
    ):
        with pytest.raises(UserError, match=sentence):
            look(given.model_copy(update=options))


def test_the_report_says_what_the_captions_are_like_and_lists_images_without(tmp_path: Path) -> None:
    files = images("", 4) | {"0.txt": "A red apple\nfruit", "1.txt": "a red\x07 pear", "2.txt": "a pear"}
    given = params(make(tmp_path / "root", files), uncaptioned="drop")
    prepare(given, 0, tmp_path / "out")
    said = "\n".join(look(given).lines())
    assert "captions: 3 of 4 images (75.0%) have some, 1 to 2 per image, median 1 (in files beside the images)" in said
    assert "1 to 3 words, median 2; 5 different words" in said
    assert "1 images without a caption are left out (data.uncaptioned; listed in uncaptioned.csv)" in said
    assert "control characters were removed from 1 captions" in said
    assert pd.read_csv(tmp_path / "out" / "uncaptioned.csv").to_dict("records") == [
        {"path": "3.png", "reason": "no text file beside it"}
    ]
    assert "3.png" in (tmp_path / "out" / "rejected.csv").read_text()


def test_without_the_option_the_manifest_and_its_digest_are_as_they_were(tmp_path: Path) -> None:
    root = make(tmp_path / "root", FLAT)
    plain = prepare(params(root).model_copy(update={"captions": None}), 0, tmp_path / "a")
    make(root, {f"{number}.txt": f"number {number}" for number in range(4)})
    assert prepare(params(root).model_copy(update={"captions": None}), 0, tmp_path / "b").digest == plain.digest
    assert (tmp_path / "a/manifest.parquet").read_bytes() == (tmp_path / "b/manifest.parquet").read_bytes()
    assert "captions" not in read_manifest(tmp_path / "a") and not (tmp_path / "a/captions.json").exists()
    told = prepare(params(root), 0, tmp_path / "c").digest
    (root / "0.txt").write_text("another caption")
    assert len({plain.digest, told, prepare(params(root), 0, tmp_path / "d").digest}) == 3
    rows = read_manifest(tmp_path / "d")
    assert digest(rows.sample(frac=1.0, random_state=0)) == digest(rows)


def test_the_listing_changes_with_a_table_of_captions_that_lies_elsewhere(tmp_path: Path) -> None:
    root = make(tmp_path / "root", TWO)
    (tmp_path / "t.csv").write_text(f"file,caption\n{ROWS}")
    given = params(root, "../t.csv")
    before = read_listing(given)
    assert read_listing(given) == before
    (tmp_path / "t.csv").write_text(f"file,caption\n{ROWS}0.png,fruit\n")
    assert read_listing(given) != before
    (tmp_path / "t.csv").unlink()
    with pytest.raises(UserError, match="t.csv does not exist"):
        read_listing(given)


def test_options_of_captions_that_nothing_reads_are_refused() -> None:
    for options, sentence in (
        ({"uncaptioned": "drop"}, "uncaptioned is `drop`, but captions is null"),
        ({"source": "huggingface", "captions": "t.csv"}, "source is `huggingface`, which has them in a column"),
    ):
        with pytest.raises(ValueError, match=sentence):
            DataParams.model_validate({"source": "folder", **options})
    assert DataParams.model_validate({"source": "folder", "captions": "auto"}).captions == "auto"
    assert DataParams.model_validate({"source": "folder", "captions": "t.csv"}).captions == Path("t.csv")


def test_a_caption_is_cleaned_once_and_for_all() -> None:
    for text in (" a\tb\n", "\ud800a b\x00", "Cafe\u0301", "a b"):
        clean, _ = clean_caption(text)
        assert clean_caption(clean) == (clean, False)
    assert clean_caption("Cafe\u0301 \x7f") == ("Café", True)
