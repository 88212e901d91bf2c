"""Decoding, the centre crop and batches, on files that the tests write themselves."""

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torchvision import transforms

from sfd.data import images
from sfd.data.decoding import ALLOWED_FORMATS, decode_rgb
from sfd.data.files import FolderStore, ImageRefused, open_regular
from sfd.data.images import ManifestImages, center_crop, classifier_crop, to_tensor_uint8
from sfd.data.sources.folder import scan_folder
from sfd.errors import UserError

MAX_PIXELS = 1_000_000


def open_rgb(path: Path, max_pixels: int) -> Image.Image:
    with open_regular(path) as file:
        return decode_rgb(file, max_pixels)


def pixels(path: Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    image = open_rgb(path, max_pixels)
    assert image.mode == "RGB"
    return np.asarray(image)


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_bytes(width: int, height: int, bit_depth: int, colour_type: int, rows: bytes, extra: bytes = b"") -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")


def refusal(path: Path, max_pixels: int = MAX_PIXELS) -> str:
    with pytest.raises(ImageRefused) as caught:
        open_rgb(path, max_pixels)
    return str(caught.value)


def test_rgb_comes_back_bit_by_bit_from_every_lossless_format(tmp_path: Path) -> None:
    original = noise(5, 7)
    for name, options in (("a.png", {}), ("a.bmp", {}), ("a.webp", {"lossless": True})):
        original.save(tmp_path / name, **options)
        np.testing.assert_array_equal(pixels(tmp_path / name), np.asarray(original))


def test_the_content_and_not_the_file_name_decides_the_format(tmp_path: Path) -> None:
    noise(5, 7).save(tmp_path / "a.txt", format="PNG")
    assert pixels(tmp_path / "a.txt").shape == (5, 7, 3)


def test_greyscale_and_one_bit_become_three_equal_channels(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 100, 255]], dtype=np.uint8)).save(tmp_path / "grey.png")
    Image.fromarray(np.array([[False, True]])).save(tmp_path / "bit.png")
    assert pixels(tmp_path / "grey.png").tolist() == [[[0] * 3, [100] * 3, [255] * 3]]
    assert pixels(tmp_path / "bit.png").tolist() == [[[0] * 3, [255] * 3]]


def test_16_bit_greyscale_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 257, 300, 25700, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").mode in ("I;16", "I")
    assert pixels(tmp_path / "a.png")[0, :, 0].tolist() == [0, 1, 1, 100, 128, 255]


def test_16_bit_colour_is_scaled_too(tmp_path: Path) -> None:
    row = b"\0" + struct.pack(">6H", 65535, 25700, 0, 257, 32896, 65535)
    (tmp_path / "a.png").write_bytes(png_bytes(2, 1, 16, 2, row))
    assert pixels(tmp_path / "a.png").tolist() == [[[255, 100, 0], [1, 128, 255]]]


def test_a_transparent_16_bit_grey_becomes_white(tmp_path: Path) -> None:
    row = b"\0" + struct.pack(">2H", 500, 25700)
    (tmp_path / "a.png").write_bytes(png_bytes(2, 1, 16, 0, row, png_chunk(b"tRNS", struct.pack(">H", 500))))
    assert pixels(tmp_path / "a.png").tolist() == [[[255] * 3, [100] * 3]]


def test_alpha_is_composited_on_white(tmp_path: Path) -> None:
    rgba = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 128]]], dtype=np.uint8)
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    Image.fromarray(np.array([[[10, 255], [10, 0]]], dtype=np.uint8), "LA").save(tmp_path / "la.png")
    assert pixels(tmp_path / "rgba.png").tolist() == [[[255, 0, 0], [255, 255, 255], [127, 127, 127]]]
    assert pixels(tmp_path / "la.png").tolist() == [[[10] * 3, [255] * 3]]


def test_a_palette_gives_its_colours_and_its_transparent_entry_is_white(tmp_path: Path) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    image.save(tmp_path / "opaque.png")
    image.save(tmp_path / "transparent.png", transparency=1)
    assert pixels(tmp_path / "opaque.png").tolist() == [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]
    assert pixels(tmp_path / "transparent.png").tolist() == [[[255, 0, 0], [255, 255, 255], [0, 0, 255]]]


def test_a_cmyk_jpeg_has_the_right_colours(tmp_path: Path) -> None:
    for ink, colour in (((0, 255, 255, 0), (255, 0, 0)), ((255, 0, 0, 0), (0, 255, 255)), ((0, 0, 0, 255), (0, 0, 0))):
        Image.new("CMYK", (16, 16), ink).save(tmp_path / "a.jpg", quality=100)
        assert Image.open(tmp_path / "a.jpg").mode == "CMYK"
        assert np.abs(pixels(tmp_path / "a.jpg").astype(int) - colour).max() <= 2


@pytest.mark.parametrize("orientation, rotations", [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_an_exif_orientation_is_applied(tmp_path: Path, orientation: int, rotations: int) -> None:
    original = noise(4, 6)
    exif = Image.Exif()
    exif[0x0112] = orientation
    original.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), np.rot90(np.asarray(original), rotations))


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    for name, options in (("a.webp", {"lossless": True}), ("a.png", {})):
        first.save(tmp_path / name, save_all=True, append_images=[second], **options)
        assert pixels(tmp_path / name)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp"])
def test_a_truncated_file_is_refused_with_its_reason(tmp_path: Path, name: str) -> None:
    noise(40, 56).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    assert pixels(tmp_path / name).shape == (40, 56, 3)
    for length in (len(whole) // 2, len(whole) - 20, len(whole) - 1):
        (tmp_path / name).write_bytes(whole[:length])
        assert refusal(tmp_path / name) == "truncated"
    (tmp_path / name).write_bytes(whole[:20])
    assert refusal(tmp_path / name).startswith(("truncated", "damaged: "))


def test_files_that_are_no_images_are_refused_with_their_reason(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("this is not an image, whatever its name says")
    (tmp_path / "tiny.png").write_text("x")
    (tmp_path / "damaged.png").write_bytes(png_bytes(2, 1, 8, 2, b"\0" * 7).replace(b"IDAT", b"IDAX"))
    assert refusal(tmp_path / "empty.png") == "empty file"
    assert refusal(tmp_path / "text.png") == "not an image"
    assert refusal(tmp_path / "tiny.png") == "not an image"
    assert refusal(tmp_path / "damaged.png").startswith("damaged: ")


@pytest.mark.parametrize("name, format_name", [("a.ico", "ICO"), ("a.ppm", "PPM")])
def test_another_format_is_refused_by_name(tmp_path: Path, name: str, format_name: str) -> None:
    noise(5, 7).save(tmp_path / name)
    assert refusal(tmp_path / name) == f"format not allowed: {format_name}, only {ALLOWED_FORMATS}"


def test_broken_links_loops_pipes_and_folders_are_refused(tmp_path: Path) -> None:
    noise(5, 7).save(tmp_path / "real.png")
    (tmp_path / "good.png").symlink_to("real.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "broken.png").symlink_to("nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert pixels(tmp_path / "good.png").shape == (5, 7, 3)
    assert refusal(tmp_path / "loop.png") == "symbolic link loop"
    assert refusal(tmp_path / "broken.png") == "broken symbolic link"
    assert refusal(tmp_path / "pipe.png") == "not a regular file"
    assert refusal(tmp_path) == "not a regular file"
    assert refusal(tmp_path / "missing.png") == "unreadable: No such file or directory"


def test_a_bomb_is_refused_from_its_header_alone(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png_bytes(100_000, 100_000, 8, 2, b""))
    assert refusal(tmp_path / "bomb.png", 100_000_000) == "too many pixels: 100000 x 100000, at most 100000000"


def test_max_pixels_is_an_exact_limit_for_every_format(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "a.webp", "a.bmp"):
        noise(10, 12).save(tmp_path / name)
        assert pixels(tmp_path / name, 120).shape == (10, 12, 3)
        assert refusal(tmp_path / name, 119).startswith("too many pixels")
        assert refusal(tmp_path / name, 10).startswith("too many pixels")


def test_pillows_own_limit_neither_interferes_nor_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.png", "a.jpg", "a.webp", "a.bmp"):
        noise(40, 40).save(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("a.png", "a.jpg", "a.webp", "a.bmp"):
            assert center_crop(open_rgb(tmp_path / name, MAX_PIXELS), 16).size == (16, 16)
    assert refusal(tmp_path / "a.webp", 100).startswith("too many pixels")
    assert Image.MAX_IMAGE_PIXELS == 10


@pytest.mark.parametrize("height, width", [(8, 8), (16, 24), (31, 64), (33, 17), (100, 70), (5, 9)])
def test_the_centre_crop_is_adms(height: int, width: int) -> None:
    image, size = noise(height, width), 8
    shrunk = image
    while min(shrunk.size) >= 2 * size:
        shrunk = shrunk.resize(tuple(side // 2 for side in shrunk.size), resample=Image.Resampling.BOX)
    factor = size / min(shrunk.size)
    shrunk = shrunk.resize(tuple(round(side * factor) for side in shrunk.size), resample=Image.Resampling.BICUBIC)
    array = np.array(shrunk)
    top, left = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
    np.testing.assert_array_equal(np.asarray(center_crop(image, size)), array[top : top + size, left : left + size])


def test_a_crop_of_an_extremely_long_image_needs_little_memory() -> None:
    assert center_crop(Image.new("RGB", (1_000_000, 1), "red"), 64).getcolors() == [(64 * 64, (255, 0, 0))]


def test_tensors_are_channels_first_with_unchanged_values() -> None:
    images = [noise(6, 4, seed) for seed in range(3)]
    tensor = to_tensor_uint8(images)
    assert tensor.shape == (3, 3, 6, 4) and tensor.dtype == torch.uint8 and tensor.is_contiguous()
    assert tensor[2, 1, 5, 3].item() == images[2].getpixel((3, 5))[1]


@pytest.mark.parametrize(("height", "width"), [(300, 400), (401, 300), (256, 256), (90, 70), (231, 1000)])
def test_the_crop_of_classifiers_is_that_of_torchvision(height: int, width: int) -> None:
    image = noise(height, width)
    steps = transforms.Compose(
        [transforms.Resize(256, interpolation=transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(224)]
    )
    np.testing.assert_array_equal(np.asarray(classifier_crop(image, 224)), np.asarray(steps(image)))


def test_the_crop_of_classifiers_takes_images_of_any_length() -> None:
    assert classifier_crop(noise(3, 4000), 14).size == (14, 14)


def manifest_of(root: Path) -> pd.DataFrame:
    found = scan_folder(root, MAX_PIXELS).found
    return pd.DataFrame(found).assign(class_index=[int(item.label) for item in found])


def dataset(root: Path) -> ManifestImages:
    for label in range(2):
        (root / str(label)).mkdir(parents=True)
        for number in range(3):
            noise(20, 20 + number, 10 * label + number).save(root / str(label) / f"{number}.png")
    manifest = manifest_of(root)
    return ManifestImages(manifest, FolderStore(root, manifest["path"].tolist()), 8, MAX_PIXELS)


def test_batches_follow_the_manifest_rows(tmp_path: Path) -> None:
    images = dataset(tmp_path)
    batch, classes = images.__getitems__([4, 0])
    assert len(images) == 6
    assert batch.shape == (2, 3, 8, 8) and batch.dtype == torch.uint8
    assert classes.dtype == torch.int64 and classes.tolist() == [1, 0]
    assert torch.equal(batch, to_tensor_uint8([center_crop(noise(20, 21, 11), 8), center_crop(noise(20, 20, 0), 8)]))


def test_a_set_of_images_can_have_another_crop(tmp_path: Path) -> None:
    found = dataset(tmp_path)
    manifest = manifest_of(tmp_path)
    store = FolderStore(tmp_path, manifest["path"].tolist())
    (image,), _ = ManifestImages(manifest, store, 14, MAX_PIXELS, classifier_crop).__getitems__([4])
    assert torch.equal(image, to_tensor_uint8([classifier_crop(noise(20, 21, 11), 14)])[0])
    assert found.__getitems__([4]).images.shape == (1, 3, 8, 8)


def test_a_data_loader_with_workers_reads_whole_batches(tmp_path: Path) -> None:
    images = dataset(tmp_path)
    loader = torch.utils.data.DataLoader(images, batch_size=4, num_workers=1, collate_fn=lambda batch: batch)
    assert [tuple(batch.images.shape) for batch in loader] == [(4, 3, 8, 8), (2, 3, 8, 8)]


def test_an_image_that_changed_or_vanished_is_named_with_the_remedy(tmp_path: Path) -> None:
    images = dataset(tmp_path)
    noise(20, 20, 99).save(tmp_path / "0" / "0.png")
    (tmp_path / "0" / "1.png").unlink()
    for index, name in enumerate(("0.png", "1.png")):
        with pytest.raises(UserError, match=rf"0/{name} has changed .*rerun `dvc repro`"):
            images.__getitems__([2, index])
    assert images.__getitems__([2]).images.shape == (1, 3, 8, 8)


def test_a_written_image_holds_its_pixels_and_equal_pixels_give_equal_bytes() -> None:
    image = torch.arange(3 * 4 * 5, dtype=torch.uint8).reshape(3, 4, 5)
    written = images.png_bytes(image)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(written))), image.permute(1, 2, 0).numpy())
    assert images.png_bytes(image.clone()) == written != images.png_bytes(image + 1)
