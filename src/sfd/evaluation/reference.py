"""ADM's reference batches: published statistics of a data set, and a sample of its images (arXiv 2105.05233).

A reference batch is an npz file. ``mu`` (2048,) and ``sigma`` (2048, 2048) are the mean and covariance of Inception's pooled features over
the whole data set; ``mu_s`` (2023,) and ``sigma_s`` (2023, 2023) are those of its spatial features. Where images were published,
``arr_0`` holds them, uint8 (N, H, W, 3). They may have any size, because Inception resizes them.
"""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from sfd.encoders.judges.judge import Judge
from sfd.errors import UserError
from sfd.evaluation.fidelity import FeatureStatistics
from sfd.network_files import file_digest

IMAGES = "arr_0"
TOLERANCE = 1e-4
"""Largest asymmetry of a covariance, as a fraction of its largest value. It is not 0, because a file may hold float32."""
REMEDY = "download ADM's reference batch again (openai/guided-diffusion, folder evaluations)"


@dataclass(frozen=True)
class ReferenceBatch:
    """An opened reference batch. ``image_shape`` is (N, H, W), or None where the file has statistics only."""

    path: Path
    statistics: FeatureStatistics
    spatial: FeatureStatistics
    image_shape: tuple[int, int, int] | None

    @classmethod
    def open(cls, path: Path, judge: Judge) -> "ReferenceBatch":
        """Reads the statistics and the header of the images.

        Raises:
            UserError: the file is missing or is not an npz; a key is missing; or a value has a wrong shape or type, is not finite, or is
                not a covariance.
        """
        if not path.is_file():
            raise UserError(f"evaluate.reference is {path}, which does not exist; correct the path, or set it to null")
        try:
            with zipfile.ZipFile(path) as archive, np.load(path, allow_pickle=False) as arrays:
                missing = [key for key in ("mu", "sigma", "mu_s", "sigma_s") if key not in arrays.files]
                if missing:
                    raise _refused(path, f"has no {', '.join(f'`{key}`' for key in missing)}")
                statistics = _statistics(path, arrays, "mu", "sigma", judge.num_features)
                spatial = _statistics(path, arrays, "mu_s", "sigma_s", judge.num_spatial_features)
                shape = _image_shape(path, archive) if IMAGES in arrays.files else None
        except (zipfile.BadZipFile, ValueError, EOFError, OSError) as error:
            raise _refused(path, f"cannot be read ({' '.join(str(error).split())[:200]})") from error
        return cls(path, statistics, spatial, shape)

    @contextmanager
    def images(self) -> Iterator["StreamedImages"]:
        """Opens the images.

        Raises:
            UserError: the file turns out to be damaged while the block reads it.
        """
        assert self.image_shape is not None
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{IMAGES}.npy") as stream:
                _read_header(stream)
                yield StreamedImages(stream, self.image_shape)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise _refused(self.path, f"is damaged ({error})") from error

    def digest(self) -> str:
        """sha256 of the file."""
        return file_digest(self.path)


class StreamedImages:
    """The images of a reference batch. If rows ascend from call to call, the file is read in one pass."""

    def __init__(self, stream: IO[bytes], shape: tuple[int, int, int]) -> None:
        """``stream``: at its first pixel. ``shape``: (N, H, W)."""
        self.stream, self.start, self.shape = stream, stream.tell(), shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitems__(self, indices: list[int]) -> Tensor:
        """Images uint8 (B, 3, H, W) of rows that follow one another."""
        _, height, width = self.shape
        size = height * width * 3
        self.stream.seek(self.start + indices[0] * size)
        pixels = np.frombuffer(bytearray(self.stream.read(len(indices) * size)), dtype=np.uint8)
        return torch.from_numpy(pixels.reshape(len(indices), height, width, 3)).permute(0, 3, 1, 2)


def _refused(path: Path, reason: str) -> UserError:
    return UserError(f"evaluate.reference {path} {reason}; {REMEDY}")


def _statistics(path: Path, arrays: Any, mean_key: str, covariance_key: str, size: int) -> FeatureStatistics:
    mean, covariance = arrays[mean_key], arrays[covariance_key]
    for key, value, shape in ((mean_key, mean, (size,)), (covariance_key, covariance, (size, size))):
        if value.shape != shape or value.dtype.kind != "f":
            raise _refused(path, f"holds `{key}` of shape {value.shape} and type {value.dtype}, not {shape} floats")
        if not np.isfinite(value).all():
            raise _refused(path, f"holds NaN or infinity in `{key}`")
    if (
        np.abs(covariance - covariance.T).max() > TOLERANCE * np.abs(covariance).max()
        or covariance.diagonal().min() < 0
    ):
        raise _refused(
            path,
            f"holds a `{covariance_key}` that is not a covariance: it is not symmetric, or has a negative variance",
        )
    return FeatureStatistics(mean.astype(np.float64), covariance.astype(np.float64))


def _image_shape(path: Path, archive: zipfile.ZipFile) -> tuple[int, int, int]:
    """(N, H, W), read from the header alone, because the images may be larger than memory."""
    member = f"{IMAGES}.npy"
    with archive.open(member) as stream:
        shape, in_fortran_order, dtype = _read_header(stream)
        start = stream.tell()
    if len(shape) != 4 or shape[3] != 3 or 0 in shape or dtype != np.uint8 or in_fortran_order:
        raise _refused(path, f"holds `{IMAGES}` of shape {shape} and type {dtype}, not (N, H, W, 3) uint8 in C order")
    if archive.getinfo(member).file_size != start + int(np.prod(shape)):
        raise _refused(path, f"holds more or fewer bytes in `{IMAGES}` than its shape {shape} needs")
    return shape[0], shape[1], shape[2]


def _read_header(stream: Any) -> tuple[tuple[int, ...], bool, "np.dtype[Any]"]:
    """Shape, whether the order is Fortran's, and type. Raises :class:`ValueError` if the stream is not an npy file."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    found: tuple[tuple[int, ...], bool, np.dtype[Any]] = read(stream)
    return found
