"""ADM's reference batches: what is in the file comes out, and a file that is broken in any of many ways is refused before use."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sfd.errors import UserError
from sfd.evaluation.reference import ReferenceBatch


class SizesOfJudge:
    """All that opening a file needs of a judge."""

    num_features, num_spatial_features = 6, 4


Arrays = dict[str, Any]


def arrays() -> Arrays:
    random = np.random.default_rng(0)
    features, spatial = random.normal(size=(50, 6)), random.normal(size=(50, 4))
    return {
        "arr_0": random.integers(0, 256, (23, 5, 4, 3), dtype=np.uint8),
        "mu": features.mean(0).astype(np.float32),
        "sigma": np.cov(features.T),
        "mu_s": spatial.mean(0),
        "sigma_s": np.cov(spatial.T),
    }


def open_file(path: Path) -> ReferenceBatch:
    return ReferenceBatch.open(path, SizesOfJudge())  # type: ignore[arg-type]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_statistics_and_images_come_out_as_they_were_put_in(tmp_path: Path, save: Callable[..., None]) -> None:
    given = arrays()
    save(tmp_path / "ref.npz", **given)
    found = open_file(tmp_path / "ref.npz")
    assert found.image_shape == (23, 5, 4)
    for statistics, mean, covariance in ((found.statistics, "mu", "sigma"), (found.spatial, "mu_s", "sigma_s")):
        np.testing.assert_array_equal(statistics.mean, given[mean])
        np.testing.assert_array_equal(statistics.covariance, given[covariance])
        assert statistics.mean.dtype == statistics.covariance.dtype == np.float64
    expected = torch.from_numpy(given["arr_0"]).permute(0, 3, 1, 2)
    with found.images() as images:
        for rows in (range(3, 7), range(7, 8), range(20, 23), range(0, 2)):
            assert torch.equal(images.__getitems__(list(rows)), expected[rows.start : rows.stop])


def test_a_file_of_statistics_alone_is_accepted(tmp_path: Path) -> None:
    given = arrays()
    del given["arr_0"]
    np.savez(tmp_path / "ref.npz", **given)
    assert open_file(tmp_path / "ref.npz").image_shape is None


def test_reading_a_few_images_does_not_read_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = arrays() | {"arr_0": np.zeros((2000, 64, 64, 3), dtype=np.uint8)}
    np.savez(tmp_path / "ref.npz", **given)
    num_read = 0
    original = zipfile.ZipExtFile.read

    def counted(stream: zipfile.ZipExtFile, size: int = -1) -> bytes:
        nonlocal num_read
        data = original(stream, size)
        num_read += len(data)
        return data

    monkeypatch.setattr(zipfile.ZipExtFile, "read", counted)
    with open_file(tmp_path / "ref.npz").images() as images:
        images.__getitems__(list(range(10)))
    assert num_read < 20 * 64 * 64 * 3


ASYMMETRIC = np.eye(6)
ASYMMETRIC[0, 1] = 0.5
BROKEN: dict[str, tuple[Arrays, str]] = {
    "a key is missing": ({"mu_s": None}, r"has no `mu_s`"),
    "a mean of another length": ({"mu": np.zeros(5)}, r"`mu` of shape \(5,\).*not \(6,\)"),
    "a covariance of another shape": ({"sigma_s": np.eye(5)}, r"`sigma_s` of shape \(5, 5\)"),
    "whole numbers": ({"mu": np.zeros(6, dtype=np.int64)}, r"`mu` of shape .* type int64"),
    "not a number": ({"mu_s": np.full(4, np.nan)}, r"NaN or infinity in `mu_s`"),
    "an asymmetric covariance": ({"sigma": ASYMMETRIC}, r"`sigma` that is not a covariance"),
    "a negative variance": ({"sigma": -np.eye(6)}, r"`sigma` that is not a covariance"),
    "a pickled mean": ({"mu": np.array([{}], dtype=object)}, r"cannot be read \(.*pickle"),
    "pickled images": ({"arr_0": np.array([{}], dtype=object)}, r"`arr_0` of shape \(1,\) and type object"),
    "images of floats": ({"arr_0": np.zeros((9, 4, 4, 3))}, r"`arr_0` .* type float64"),
    "images with channels first": ({"arr_0": np.zeros((9, 3, 4, 4), dtype=np.uint8)}, r"not \(N, H, W, 3\)"),
    "no images": ({"arr_0": np.zeros((0, 4, 4, 3), dtype=np.uint8)}, r"`arr_0` of shape \(0, 4, 4, 3\)"),
    "images in Fortran order": ({"arr_0": np.asfortranarray(arrays()["arr_0"])}, r"in C order"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_file_is_refused_with_what_is_wrong_and_the_remedy(fault: str, tmp_path: Path) -> None:
    change, message = BROKEN[fault]
    given = {key: value for key, value in (arrays() | change).items() if value is not None}
    np.savez(tmp_path / "ref.npz", **given)
    with pytest.raises(UserError, match=message) as refused:
        open_file(tmp_path / "ref.npz")
    assert "download" in str(refused.value) and "ref.npz" in str(refused.value)


def test_what_is_no_npz_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ref.npz"
    with pytest.raises(UserError, match="does not exist"):
        open_file(path)
    path.write_bytes(b"not a zip file")
    with pytest.raises(UserError, match="cannot be read"):
        open_file(path)
    np.savez(path, **arrays())
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match="cannot be read"):
        open_file(path)


def test_images_that_end_before_their_shape_says_so_are_refused(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (9, 4, 4, 3)})
    given = arrays()
    del given["arr_0"]
    np.savez(tmp_path / "ref.npz", **given)
    with zipfile.ZipFile(tmp_path / "ref.npz", "a") as archive:
        archive.writestr("arr_0.npy", header.getvalue() + bytes(100))
    with pytest.raises(UserError, match="more or fewer bytes in `arr_0`"):
        open_file(tmp_path / "ref.npz")


def test_a_flipped_bit_in_the_images_is_noticed_when_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "ref.npz"
    images = np.random.default_rng(1).integers(0, 256, (200, 32, 32, 3), dtype=np.uint8)
    np.savez(path, **arrays() | {"arr_0": images})
    with open_file(path).images() as read:
        assert sum(len(read.__getitems__(list(range(start, start + 50)))) for start in range(0, 200, 50)) == 200
    whole = bytearray(path.read_bytes())
    whole[whole.index(images[100].tobytes())] ^= 1
    path.write_bytes(whole)
    with pytest.raises(UserError, match="is damaged"), open_file(path).images() as read:
        for start in range(0, 200, 50):
            read.__getitems__(list(range(start, start + 50)))
