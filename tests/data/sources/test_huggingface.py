"""Data sets of the library ``datasets``, made by it, and the same images through every source."""

import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from sfd.data.listing import write_listing
from sfd.data.prepare import prepare
from sfd.data.prepared import Prepared
from sfd.data.sources.huggingface import scan_dataset
from sfd.errors import UserError
from sfd.params import DataParams


@pytest.fixture(autouse=True, scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nobody asks the hub, and what the library caches goes with the test. It reads its settings once, when imported."""
    import datasets.config
    import huggingface_hub.constants

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        yield


def encoded(seed: int, form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (14, 12, 3), dtype=np.uint8)).save(stream, format=form)
    return stream.getvalue()


def table(cells: list[bytes | None], classes: list[object], label: object, **names: str) -> Dataset:
    image, column = names.get("image", "image"), names.get("label", "label")
    rows = {image: [None if cell is None else {"bytes": cell, "path": None} for cell in cells], column: classes}
    return Dataset.from_dict(rows, features=Features({image: ImageFeature(), column: label}))


def animals(count: int = 6) -> Dataset:
    return table(
        [encoded(n) for n in range(2 * count)], [n // count for n in range(2 * count)], ClassLabel(names=["cat", "dog"])
    )


def hub_params(root: Path | str, **options: object) -> DataParams:
    return DataParams.model_validate({"source": "huggingface", "root": str(root), "image_size": 8, **options})


def listing(params: DataParams, file: Path) -> dict[str, object]:
    write_listing(params, file)
    facts: dict[str, object] = json.loads(file.read_text())
    return facts


# --- one set of images, every source ---


def write_everywhere(root: Path) -> dict[str, DataParams]:
    """PNG and JPEG files of two classes as a folder, as tar archives of both kinds, and as data sets of every layout."""
    files = {
        f"{label}/{n:02d}.{form}": encoded(1000 * k + n, form)
        for k, label in enumerate(("cat", "dog"))
        for n, form in enumerate(["png", "jpeg"] * 5)
    }
    for name, content in files.items():
        (root / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "folder" / name).write_bytes(content)
    with tarfile.open(root / "folders.tar", "w") as tar:
        tar.add(root / "folder", ".")
    with tarfile.open(root / "labels.tar", "w") as tar:
        for number, (name, content) in enumerate(files.items()):
            members = {name.rpartition(".")[2]: content, "json": json.dumps({"label": name.split("/")[0]}).encode()}
            for extension, data in members.items():
                member = tarfile.TarInfo(f"{number:06d}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    rows = table(
        list(files.values()), [name.split("/")[0] == "dog" for name in files], ClassLabel(names=["cat", "dog"])
    )
    rows.save_to_disk(root / "saved")
    DatasetDict({"train": rows.select(range(7)), "test": rows.select(range(7, 20))}).save_to_disk(root / "splits")
    (root / "parquet" / "data").mkdir(parents=True)
    for shard in range(2):
        rows.shard(2, shard, contiguous=True).to_parquet(
            root / "parquet" / "data" / f"train-0000{shard}-of-00002.parquet"
        )
    return {
        "folder": DataParams(source="folder", root=str(root / "folder"), image_size=8),
        "folders.tar": DataParams(source="tar", root=str(root / "folders.tar"), image_size=8),
        "labels.tar": DataParams(source="tar", root=str(root / "labels.tar"), image_size=8),
        "saved": hub_params(root / "saved"),
        "splits": hub_params(root / "splits", split="train+test"),
        "parquet": hub_params(root / "parquet"),
    }


def test_the_same_images_give_the_same_labels_splits_and_pixels_through_every_source(tmp_path: Path) -> None:
    seen, pixels = {}, {}
    for name, params in write_everywhere(tmp_path).items():
        prepare(params, 0, tmp_path / "out" / name)
        data = Prepared.load(params, tmp_path / "out" / name)
        seen[name] = data.manifest.drop(columns=["path", "offset"], errors="ignore")
        pixels[name] = data.images("train").__getitems__(list(range(data.summary.num_train)))
    assert len(seen) == 6 and len(seen["folder"]) == 20
    for name in seen:
        pd.testing.assert_frame_equal(seen[name], seen["folder"])
        assert all(torch.equal(a, b) for a, b in zip(pixels[name], pixels["folder"], strict=True))


# --- rows ---


def test_rows_are_named_by_split_and_number_and_hold_the_files_that_were_put_in(tmp_path: Path) -> None:
    animals().save_to_disk(tmp_path / "set")
    found = scan_dataset(hub_params(tmp_path / "set")).found
    assert [item.path for item in found] == [f"train/{row:08d}" for row in range(12)]
    assert [item.sha256 for item in found] == [hashlib.sha256(encoded(row)).hexdigest() for row in range(12)]
    assert (found[0].width, found[0].height, found[0].size_bytes) == (12, 14, len(encoded(0)))


@pytest.mark.parametrize(
    ("feature", "classes", "expected"),
    [
        (ClassLabel(names=["ant", "bee", "cow"]), [0, 2], ["ant", "cow"]),
        (ClassLabel(names=["tench", "goldfish", "ant"]), [0, 2], ["0 tench", "2 ant"]),
        (ClassLabel(num_classes=12), [2, 11], ["02 2", "11 11"]),
        (Value("int64"), [9, 10], ["09", "10"]),
        (Value("string"), ["bee", "ant"], ["bee", "ant"]),
    ],
)
def test_classes_keep_their_order(tmp_path: Path, feature: object, classes: list[object], expected: list[str]) -> None:
    table([encoded(0), encoded(1)], classes, feature).save_to_disk(tmp_path / "set")
    scan = scan_dataset(hub_params(tmp_path / "set"))
    assert [item.label for item in sorted(scan.found, key=lambda item: item.path)] == expected
    assert scan.classes == sorted(expected)


def test_bad_rows_are_refused_with_their_reason(tmp_path: Path) -> None:
    cells = [encoded(0), None, b"", b"no image at all", encoded(1)[:90], encoded(2, "PPM"), encoded(3), encoded(4)]
    table(cells, [0, 0, 0, 0, 0, 0, None, -1], ClassLabel(names=["cat"])).save_to_disk(tmp_path / "set")
    scan = scan_dataset(hub_params(tmp_path / "set"))
    assert [item.path for item in scan.found] == ["train/00000000"]
    reasons = {int(item.path[-8:]): item.reason for item in scan.rejected}
    expected = {
        1: "no image",
        2: "empty file",
        3: "not an image",
        4: "truncated",
        5: "format not allowed: PPM",
        6: "label",
        7: "label",
    }
    assert reasons.keys() == expected.keys()
    assert all(reasons[row].startswith(reason) for row, reason in expected.items()), reasons


def test_images_that_are_only_paths_are_refused(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(encoded(0))
    rows = {"image": [str(tmp_path / "1.png")], "label": [0]}
    folder = tmp_path / "set" / "data"
    folder.mkdir(parents=True)
    pd.DataFrame(rows).to_parquet(folder / "train-00000-of-00001.parquet")
    (item,) = scan_dataset(hub_params(tmp_path / "set")).rejected
    assert item.reason == "no image: the cell holds no bytes"


def test_parquet_files_of_another_program_with_other_columns_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "set" / "data"
    folder.mkdir(parents=True)
    rows = pd.DataFrame({"img": [{"bytes": encoded(n), "path": f"{n}.png"} for n in range(3)], "fine": [1, 2, 1]})
    rows.to_parquet(folder / "test-00000-of-00001.parquet")
    scan = scan_dataset(hub_params(tmp_path / "set", split="test", image_column="img", label_column="fine"))
    assert [(item.path, item.label) for item in scan.found] == [
        ("test/00000000", "1"),
        ("test/00000002", "1"),
        ("test/00000001", "2"),
    ]


# --- what is missing or changed ---


def test_a_wrong_split_column_or_folder_is_named_with_what_there_is(tmp_path: Path) -> None:
    animals().save_to_disk(tmp_path / "set")
    DatasetDict({"train": animals()}).save_to_disk(tmp_path / "splits")
    (tmp_path / "parquet").mkdir()
    animals().to_parquet(tmp_path / "parquet" / "train-00000-of-00001.parquet")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "train.parquet").write_bytes(b"PAR1 and no more")
    for name, options, reason in (
        ("splits", {"split": "test"}, "has no split `test`, but train; correct data.split"),
        ("parquet", {"split": "test"}, 'Unknown split "test"'),
        ("set", {"image_column": "img"}, "data.image_column is `img`, but .* has the columns image, label"),
        ("set", {"label_column": "fine"}, "data.label_column is `fine`, but .* has the columns image, label"),
        ("set", {"image_column": "label", "label_column": "image"}, "correct data.split and data.image_column"),
        ("empty", {}, "empty"),
        ("broken", {}, "broken"),
    ):
        with pytest.raises(UserError, match=reason) as caught:
            prepare(hub_params(tmp_path / name, **options), 0, tmp_path / "out")
        assert "\n" not in str(caught.value)


TABLES = {
    "an empty file": ("train.parquet", b"", "file size is 0 bytes"),
    "no parquet": ("train.parquet", b"PAR1junk", "Parquet"),
    "no columns": ("train.csv", b"", "No columns to parse"),
    "another encoding": ("train.csv", "image,label\nä,ö\n".encode("latin-1"), "can't decode byte 0xe4"),
    "ragged rows of JSON": ("train.jsonl", b'{"image": "a", "label": 1}\n{"label": [1]}\n[]\n', "JSON parse error"),
    "half a line of JSON": ("train.jsonl", b'{"image": "a", "label": 1}\n{"lab', "JSON parse error"),
    "no images": ("train.csv", b"image,label\na,b\nc\n", "has no usable image"),
}


@pytest.mark.parametrize(("name", "content", "reason"), TABLES.values(), ids=TABLES)
def test_a_table_that_is_broken_empty_or_ragged_ends_in_one_line_that_says_how(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / name).write_bytes(content)
    with pytest.raises(UserError, match=reason) as refused:
        prepare(hub_params(tmp_path / "set"), 0, tmp_path / "out")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["*", "[set]", "se?", "a::b"])
def test_a_folder_that_the_library_takes_for_a_pattern_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    animals(2).to_parquet(tmp_path / name / "train.parquet")
    (tmp_path / "link").symlink_to(tmp_path / name)
    for root in (tmp_path / name, tmp_path / "link"):
        with pytest.raises(UserError, match="takes the signs .* for a pattern.*; rename the folder"):
            scan_dataset(hub_params(root))
    animals(2).save_to_disk(tmp_path / "[saved]")  # the library reads such folders by their name
    assert len(scan_dataset(hub_params(tmp_path / "[saved]")).found) == 4


@pytest.mark.parametrize("root", ["nobody/no-such-set", "no-such-folder/deep/er", "bad name!"])
def test_a_name_that_cannot_be_had_ends_in_one_line_with_a_remedy(tmp_path: Path, root: str) -> None:
    for attempt in (lambda: scan_dataset(hub_params(root)), lambda: write_listing(hub_params(root), tmp_path / "x")):
        with pytest.raises(UserError, match=f"data.root {root}") as caught:
            attempt()
        assert "\n" not in str(caught.value) and "point data.root at" in str(caught.value)


def test_a_data_set_that_changed_since_prepare_is_named_with_the_remedy(tmp_path: Path) -> None:
    animals().save_to_disk(tmp_path / "set")
    params = hub_params(tmp_path / "set")
    prepare(params, 0, tmp_path / "out")
    data = Prepared.load(params, tmp_path / "out")
    shutil.rmtree(tmp_path / "set")
    other = table([encoded(99), *(encoded(n) for n in range(1, 6))], [0] * 6, ClassLabel(names=["cat", "dog"]))
    other.save_to_disk(tmp_path / "set")
    images = Prepared.load(params, tmp_path / "out").images("train")
    states = {}
    for row, path in enumerate(images.paths):
        try:
            images.__getitems__([row])
            states[path] = "same"
        except UserError as error:
            states[path] = "another one" if "its content is another one" in str(error) else "gone"
            assert f"row {path} has changed since stage `prepare`" in str(error) and "rerun `dvc repro`" in str(error)
    assert all(
        state == ("gone" if int(path[-8:]) > 5 else "another one" if int(path[-8:]) == 0 else "same")
        for path, state in states.items()
    )
    assert "gone" in states.values() and "same" in states.values()
    with pytest.raises(UserError, match="another data.source or data.split than `test`"):
        Prepared(hub_params(tmp_path / "set", split="test"), data.folder, data.manifest, data.summary).images("train")


def test_reading_leaves_the_folder_as_it_is_and_a_change_shows_in_the_listing(tmp_path: Path) -> None:
    animals().save_to_disk(tmp_path / "set")
    params = hub_params(tmp_path / "set")
    before = listing(params, tmp_path / "listing.json")
    prepare(params, 0, tmp_path / "out")
    assert listing(params, tmp_path / "listing.json") == before and before["num_files"] == 3
    (arrow,) = (tmp_path / "set").glob("*.arrow")
    os.utime(arrow, (1, 1))
    assert listing(params, tmp_path / "listing.json") != before


def test_a_commit_on_the_hub_is_listed_without_asking_and_a_branch_is_asked_for(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    facts = listing(hub_params("owner/name", revision=commit), tmp_path / "listing.json")
    assert facts == {"source": "huggingface", "root": "owner/name", "revision": commit}
    with pytest.raises(UserError, match="offline mode is enabled.*set data.revision to a commit"):
        write_listing(hub_params("owner/name", revision="main"), tmp_path / "listing.json")


def test_images_travel_to_other_processes(tmp_path: Path) -> None:
    animals().save_to_disk(tmp_path / "set")
    params = hub_params(tmp_path / "set")
    prepare(params, 0, tmp_path / "out")
    images = Prepared.load(params, tmp_path / "out").images("train")
    sent = pickle.dumps(images)
    assert len(sent) < sum(len(encoded(row)) for row in range(10))  # the images themselves stay where they are
    assert torch.equal(pickle.loads(sent).__getitems__([0, 3]).images, images.__getitems__([0, 3]).images)
    loader = torch.utils.data.DataLoader(images, 4, num_workers=1, collate_fn=lambda batch: batch)
    assert torch.equal(
        torch.cat([batch.images for batch in loader]), images.__getitems__(list(range(len(images)))).images
    )


def test_stages_that_read_other_sources_do_not_import_the_library() -> None:
    script = "import sys, sfd.data.prepared, sfd.data.listing; sys.exit('datasets' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        ).returncode
        == 0
    )
