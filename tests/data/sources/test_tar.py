"""Images in tar archives: packed, scanned and read in place, and every way in which an archive can be wrong."""

import io
import json
import multiprocessing
import os
import pickle
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from operator import attrgetter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from sfd.data.images import ManifestImages
from sfd.data.manifest import read_manifest
from sfd.data.prepare import prepare
from sfd.data.prepared import Prepared
from sfd.data.sources import tar as archives
from sfd.data.sources.source import Scan
from sfd.data.sources.tar import TarStore, scan_archives
from sfd.errors import UserError
from sfd.params import DataParams

MAX_PIXELS = 10_000


def png(seed: int, side: int = 12) -> bytes:
    stream = io.BytesIO()
    values = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(values).save(stream, format="PNG")
    return stream.getvalue()


def pack(archive: Path, members: dict[str, bytes], **options: object) -> Path:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w", **options) as tar:
        for name, content in members.items():
            add(tar, name, content)
    return archive


def add(tar: tarfile.TarFile, name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, target: str = "") -> None:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = len(content), kind, target
    tar.addfile(member, io.BytesIO(content))


def refusals(scan: Scan) -> dict[str, str]:
    return {item.path: item.reason for item in scan.rejected}


def labels(scan: Scan) -> dict[str, str]:
    return {item.path: item.label for item in scan.found}


def tar_params(root: Path, **options: object) -> DataParams:
    return DataParams.model_validate({"source": "tar", "root": str(root), "image_size": 8, **options})


def test_a_class_is_the_number_in_cls_else_the_label_in_json_else_the_folder(tmp_path: Path) -> None:
    pack(
        tmp_path / "a.tar",
        {
            "0001.png": png(1),
            "0001.cls": b"7\n",
            "0001.json": b'{"label": 8}',
            "0002.jpg": png(2),
            "0002.json": b'{"label": "cat"}',
            "dog/0003.PNG": png(3),
            "dog/0003.json": b'{"caption": "no label here"}',
            "dog/0003.seg.png": png(4),
            "./dog/4.png": png(5),
        },
    )
    scan = scan_archives(tmp_path, MAX_PIXELS)
    assert labels(scan) == {
        "a.tar#0001.png": "7",
        "a.tar#0002.jpg": "cat",
        "a.tar#dog/0003.PNG": "dog",
        "a.tar#dog/4.png": "dog",
    }
    assert scan.rejected == [] and scan.classes == ["7", "cat", "dog"]


def test_numbers_get_leading_zeros_so_that_class_10_follows_class_9_and_folders_called_by_numbers_do_not(
    tmp_path: Path,
) -> None:
    pack(
        tmp_path / "numbers.tar",
        {f"{n}.{e}": png(n) if e == "png" else b"%d" % n for n in (2, 10) for e in ("png", "cls")},
    )
    assert scan_archives(tmp_path / "numbers.tar", MAX_PIXELS).classes == ["02", "10"]
    pack(tmp_path / "folders.tar", {"2/a.png": png(1), "10/a.png": png(2)})
    assert scan_archives(tmp_path / "folders.tar", MAX_PIXELS).classes == ["10", "2"]


def test_members_of_a_sample_need_not_follow_each_other_and_shards_are_read_in_order_of_name(tmp_path: Path) -> None:
    pack(tmp_path / "b.tar", {"x.png": png(1), "y.png": png(2), "y.cls": b"1", "x.cls": b"1"})
    pack(tmp_path / "a.tar", {"x.png": png(3), "x.cls": b"1"})
    (tmp_path / "index.json").write_text("{}")
    scan = scan_archives(tmp_path, MAX_PIXELS)
    assert [item.path for item in scan.found] == ["a.tar#x.png", "b.tar#x.png", "b.tar#y.png"]


def test_one_of_each_bad_sample_is_refused_with_its_reason_and_nothing_is_unpacked(tmp_path: Path) -> None:
    archive = tmp_path / "root" / "a.tar"
    archive.parent.mkdir()
    with tarfile.open(archive, "w", format=tarfile.GNU_FORMAT) as tar:
        add(tar, "cat/whole.png", png(0))
        add(tar, "cat/truncated.png", png(1)[:100])
        add(tar, "cat/text.jpg", b"not an image at all")
        add(tar, "cat/empty.png")
        add(tar, "cat/large.png", bytes(8 * MAX_PIXELS + 2**20 + 1))
        add(tar, "cat/bomb.png", png(2, side=101))
        add(tar, "cat/two.png", png(3))
        add(tar, "cat/two.jpg", png(4))
        add(tar, "cat/again.png", png(5))
        add(tar, "cat/again.png", png(6))
        add(tar, "cat/soft.png", kind=tarfile.SYMTYPE, target="/etc/passwd")
        add(tar, "cat/hard.png", kind=tarfile.LNKTYPE, target="cat/whole.png")
        add(tar, "cat/pipe.png", kind=tarfile.FIFOTYPE)
        add(tar, "../outside/up.png", png(7))
        add(tar, "/outside/root.png", png(8))
        add(tar, "cat/._whole.png", png(9))
        add(tar, "loose.png", png(10))
        add(tar, "cat/deep/er.png", png(11))
        add(tar, "n1.png", png(12))
        add(tar, "n1.cls", b"tabby")
        add(tar, "n2.png", png(13))
        add(tar, "n2.cls", b"-1")
        add(tar, "n3.png", png(14))
        add(tar, "n3.json", b"{label: 1}")
        add(tar, "n4.png", png(15))
        add(tar, "n4.json", b'{"label": 1.5}')
        add(tar, "n5.png", png(16))
        add(tar, "n5.json", b"[" * 200_000)
        add(tar, "n6.png", png(17))
        add(tar, "n6.cls", kind=tarfile.SYMTYPE, target="n1.cls")
        add(tar, "cat/caption.txt", b"no image")
        add(tar, "cat/version.v2.png", png(18))
        add(tar, "cat/\udcff.png", png(19))
        add(tar, "dog", kind=tarfile.DIRTYPE)
    before = sorted(tmp_path.rglob("*"))
    scan = scan_archives(tmp_path / "root", MAX_PIXELS)
    expected = {
        "cat/truncated.png": "truncated",
        "cat/text.jpg": "not an image",
        "cat/empty.png": "empty file",
        "cat/large.png": "too large: large.png has 1128577 bytes",
        "cat/bomb.png": "too many pixels: 101 x 101",
        "cat/two": "two images with one key: png, jpg",
        "cat/again": "two members with one name",
        "cat/soft": "link: cat/soft.png points to /etc/passwd",
        "cat/hard": "link: cat/hard.png points to cat/whole.png",
        "cat/pipe": "not a regular file",
        "../outside/up": "path leads out of the archive",
        "/outside/root": "path leads out of the archive",
        "loose.png": "no label: neither",
        "cat/deep/er.png": "no label: neither",
        "n1.png": "label: its .cls holds 'tabby'",
        "n2.png": "label: its .cls holds '-1'",
        "n3.png": "label: its .json is not JSON",
        "n4.png": "label: '1.5' is neither a number",
        "n5.png": "label: its .json is not JSON",
        "n6": "link: n6.cls points to n1.cls",
        "cat/version": "no image among its members: 'v2.png'",
        "cat/\\udcff": "file name is not valid UTF-8",
    }
    found = refusals(scan)
    assert labels(scan) == {"a.tar#cat/whole.png": "cat"}
    assert scan.passed_over == {"._*": 1, ".txt": 1}
    assert found.keys() == {f"a.tar#{name}" for name in expected}
    assert all(found[f"a.tar#{name}"].startswith(reason) for name, reason in expected.items()), found
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_wraps_all_others_is_no_class_and_what_systems_leave_is_passed_over(tmp_path: Path) -> None:
    images = {f"pets/{name}/{number}.png": png(number) for number, name in enumerate(("cat", "cat", "dog", "dog"))}
    others = {
        "__MACOSX/pets/cat/._0.png": b"x",
        "pets/.DS_Store": b"x",
        "pets/README.md": b"x",
        "pets/captions.jsonl": b"{}",
    }
    pack(tmp_path / "a.tar", images | others)
    scan = scan_archives(tmp_path / "a.tar", MAX_PIXELS)
    assert scan.classes == ["cat", "dog"] and refusals(scan) == {}
    assert scan.passed_over == {"__MACOSX/": 1, ".DS_Store": 1, ".md": 1, ".jsonl": 1}
    pack(tmp_path / "b.tar", images | {"pets/5.png": png(5)})
    assert set(refusals(scan_archives(tmp_path / "b.tar", MAX_PIXELS))) == {f"b.tar#{name}" for name in images}


def members_of(count: int) -> dict[str, bytes]:
    return {
        f"{label}/{number:02d}.png": png(100 * ord(label[0]) + number)
        for label in ("cat", "dog")
        for number in range(count)
    }


def cut(archive: Path, end: int) -> None:
    os.truncate(archive, end)


def compress(archive: Path) -> None:
    content = archive.read_bytes()
    archive.unlink()
    with tarfile.open(archive, "w:bz2") as tar:
        add(tar, "cat/a.png", content)


def overwrite(archive: Path, place: int, content: bytes) -> None:
    with archive.open("r+b") as file:
        file.seek(place)
        file.write(content)


def header_of(archive: Path, index: int) -> int:
    with tarfile.open(archive) as tar:
        return tar.getmembers()[index].offset


def resize(archive: Path, size: bytes) -> None:
    """Gives the second member another size, with a correct checksum."""
    place = header_of(archive, 1)
    header = bytearray(archive.read_bytes()[place : place + 512])
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    overwrite(archive, place, bytes(header))


def announce_long_header(archive: Path) -> None:
    """An extended header that claims 100 MB."""
    member = tarfile.TarInfo("pax")
    member.type, member.size = tarfile.XHDTYPE, 100_000_000
    archive.write_bytes(member.tobuf(tarfile.USTAR_FORMAT) + archive.read_bytes())


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut in a member": (lambda path: cut(path, header_of(path, 1) + 600), "damaged archive: unexpected end of data"),
    "cut between two members": (lambda path: cut(path, header_of(path, 2)), "truncated archive: it has no end mark"),
    "cut in a header": (lambda path: cut(path, header_of(path, 2) + 100), "truncated archive: it has no end mark"),
    "empty": (lambda path: cut(path, 0), "damaged archive: empty file"),
    "no archive": (lambda path: path.write_bytes(b"text" * 1000) and None, "damaged archive: "),
    "compressed": (compress, "compressed archive: no random access"),
    "a broken header": (
        lambda path: overwrite(path, header_of(path, 2) + 20, b"\xff" * 9),
        "damaged archive: no header",
    ),
    "a negative size": (lambda path: resize(path, b"\xff" * 10 + b"\xf0\x00"), "damaged archive: "),
    "a huge header": (announce_long_header, "damaged archive: a header of 100000"),
    "two joined": (
        lambda path: path.write_bytes(path.read_bytes() * 2) and None,
        "damaged archive: data behind its end",
    ),
    "a folder": (lambda path: (path.unlink(), path.mkdir()) and None, "not a regular file"),
    "a broken link": (lambda path: (path.unlink(), path.symlink_to("nowhere")) and None, "broken symbolic link"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_archive_that_is_not_whole_stops_the_stage_and_the_list_names_it_and_no_image_of_it(
    tmp_path: Path, damage: str
) -> None:
    spoil, reason = DAMAGES[damage]
    pack(tmp_path / "root" / "a.tar", members_of(3))
    bad = pack(tmp_path / "root" / "b.tar", {f"dog/{number}.png": png(number) for number in range(3)})
    spoil(bad)
    scan = scan_archives(tmp_path / "root", MAX_PIXELS)
    assert len(scan.found) == 6 and refusals(scan)["b.tar"].startswith(reason), scan.rejected
    with pytest.raises(UserError, match=r"1 archives cannot be read: b\.tar \("):
        prepare(tar_params(tmp_path / "root", max_rejected_fraction=1.0), 0, tmp_path / "out")
    assert pd.read_csv(tmp_path / "out" / "rejected.csv")["path"].tolist() == ["b.tar"]


@pytest.mark.parametrize("name", ["b.tar.gz", "b.tgz", "b.tar.zst"])
def test_a_compressed_archive_is_not_passed_over(tmp_path: Path, name: str) -> None:
    pack(tmp_path / "a.tar", members_of(2))
    (tmp_path / name).write_bytes(b"\x28\xb5\x2f\xfd" if name.endswith("zst") else b"\x1f\x8b" + bytes(20))
    assert refusals(scan_archives(tmp_path, MAX_PIXELS))[name].startswith("compressed archive")


def test_a_member_whose_name_begins_like_a_compressed_file_is_an_image(tmp_path: Path) -> None:
    pack(tmp_path / "a.tar", {"BZh9/1.png": png(0)})
    assert labels(scan_archives(tmp_path, MAX_PIXELS)) == {"a.tar#BZh9/1.png": "BZh9"}


def test_long_names_of_every_tar_format_are_read(tmp_path: Path) -> None:
    name = f"{'k' * 120}/{'n' * 150} ü.png"
    for number, form in enumerate((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        pack(tmp_path / f"{number}.tar", {name: png(number)}, format=form)
    assert list(labels(scan_archives(tmp_path, MAX_PIXELS))) == [f"0.tar#{name}", f"1.tar#{name}"]


def test_a_root_without_archives_or_without_images_is_explained(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    pack(tmp_path / "captions" / "a.tar", {"a.txt": b"a cat"})
    for name, reason in (
        ("missing", r"does not exist; point data.root at a folder that holds \*\.tar files"),
        ("empty", r"no usable image \(0 are refused.*\*\.tar files"),
        ("captions", r"no usable image \(0 are refused.*passed over: 1 .txt"),
    ):
        with pytest.raises(UserError, match=reason):
            prepare(tar_params(tmp_path / name), 0, tmp_path / "out")


@pytest.fixture
def packed(tmp_path: Path) -> Iterator[Path]:
    """Three archives with four images each."""
    members = list(members_of(6).items())
    for number in range(3):
        pack(tmp_path / "root" / f"{number}.tar", dict(members[4 * number : 4 * number + 4]))
    yield tmp_path / "root"


def read_prepared(root: Path, out: Path) -> Prepared:
    params = tar_params(root)
    prepare(params, 0, out)
    return Prepared.load(params, out)


def test_images_are_read_where_the_manifest_says_and_archives_packed_anew_keep_the_digest(
    packed: Path, tmp_path: Path
) -> None:
    data = read_prepared(packed, tmp_path / "out")
    contents = {
        f"{number}.tar#{name}": content for number in range(3) for name, content in _contents(packed, number).items()
    }
    rows = data.manifest
    store = TarStore(packed, rows)
    assert rows["offset"].dtype == "int64" and [store.read(row) for row in range(12)] == [
        contents[p] for p in rows["path"]
    ]
    for number in range(3):
        pack(packed / f"{number}.tar", dict(reversed(_contents(packed, number).items())))
    again = read_prepared(packed, tmp_path / "again")
    assert again.summary == data.summary and again.manifest["offset"].tolist() != rows["offset"].tolist()


def _contents(root: Path, number: int) -> dict[str, bytes]:
    with tarfile.open(root / f"{number}.tar") as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def test_an_archive_that_changed_or_vanished_is_named_with_the_remedy(packed: Path, tmp_path: Path) -> None:
    images = read_prepared(packed, tmp_path / "out").images("train")
    everything = list(range(len(images)))
    whole = images.__getitems__(everything).images
    assert whole.shape == (len(images), 3, 8, 8)
    pack(packed / "1.tar", {"cat/04.png": png(0), "cat/05.png": png(1)})
    (packed / "2.tar").unlink()
    fresh = pickle.loads(pickle.dumps(images))  # holds no open file
    for row, path in enumerate(images.paths):
        if path.startswith("0.tar"):
            assert torch.equal(fresh.__getitems__([row]).images[0], whole[row])
        else:
            with pytest.raises(UserError, match=rf"{path} has changed .*rerun `dvc repro`"):
                fresh.__getitems__([row])


def test_few_archives_are_open_at_once_and_those_read_last(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = TarStore(packed, read_prepared(packed, tmp_path / "out").manifest)
    monkeypatch.setattr(archives, "MAX_OPEN_ARCHIVES", 2)
    order = sorted(range(12), key=lambda row: store.paths[row])  # four of each archive
    before = _num_open(packed)
    for row in (order[0], order[4], order[1], order[8], order[2]):
        store.read(row)
        assert _num_open(packed) - before <= 2
    assert sorted(store._open) == ["0.tar", "2.tar"]


def _num_open(root: Path) -> int:
    links = [Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd")]
    return sum(link.is_symlink() and os.readlink(link).startswith(str(root)) for link in links)


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.long)])
def test_workers_of_a_data_loader_read_the_same_pixels(packed: Path, tmp_path: Path, method: str) -> None:
    images = read_prepared(packed, tmp_path / "out").images("train")
    alone = images.__getitems__(list(range(len(images)))).images  # the parent's files are open now
    loader = torch.utils.data.DataLoader(
        images,
        2,
        num_workers=1,
        collate_fn=attrgetter("images"),
        multiprocessing_context=multiprocessing.get_context(method),
    )
    assert torch.equal(torch.cat(list(loader)), alone)


def test_a_manifest_of_a_folder_is_refused(packed: Path, tmp_path: Path) -> None:
    rows = read_prepared(packed, tmp_path / "out").manifest.drop(columns="offset")
    with pytest.raises(UserError, match="another data.source than `tar`; rerun `dvc repro prepare`"):
        TarStore(packed, rows)


def test_two_sets_of_images_become_one(packed: Path, tmp_path: Path) -> None:
    data = read_prepared(packed, tmp_path / "out")
    train, heldout = data.images("train"), data.images("heldout")
    both: ManifestImages = train.joined(heldout)
    pixels, classes = both.__getitems__([0, len(train), len(both) - 1])
    assert both.paths == train.paths + heldout.paths
    assert torch.equal(pixels[0], train.__getitems__([0]).images[0])
    assert torch.equal(pixels[1:], heldout.__getitems__([0, len(heldout) - 1]).images)
    assert classes.tolist() == [train.class_indices[0], heldout.class_indices[0], heldout.class_indices[-1]]


def test_reading_headers_keeps_no_member_in_memory(tmp_path: Path) -> None:
    """``tarfile`` would keep a kilobyte of each, and a shard may hold a million."""
    pack(tmp_path / "a.tar", {f"cat/{number}.png": b"" for number in range(4000)})
    tracemalloc.start()
    count = sum(1 for _ in archives.members_of(tmp_path / "a.tar"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 4000 and peak < 500_000


def test_the_manifest_of_archives_is_read_back(packed: Path, tmp_path: Path) -> None:
    data = read_prepared(packed, tmp_path / "out")
    assert read_manifest(tmp_path / "out").equals(data.manifest)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["num_images"] == 12 and summary["classes"] == ["cat", "dog"]
