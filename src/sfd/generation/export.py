"""Exports samples to the single npz file that ADM's evaluator reads (openai/guided-diffusion, folder evaluations)."""

import zipfile
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from sfd.errors import UserError
from sfd.generation.samples import read_table
from sfd.progress import track


def export_npz(samples: Path, out: Path) -> tuple[int, int, int, int]:
    """Writes the images of a finished stage ``sample`` as ``arr_0`` uint8 (N, H, W, 3) in the table's order; returns the shape.

    One image is in memory at a time: 50,000 images of 256 pixels take 10 GB. ``out`` appears only when it is complete.

    Raises:
        UserError: ``out`` exists or does not end in .npz, an image cannot be read or has another size, or the images are not exactly
            those in the table.
    """
    if out.suffix != ".npz" or not out.parent.is_dir():
        raise UserError(f"{out} must end in .npz and lie in a folder that exists; give another path")
    _check_free(out)
    files = [samples / "images" / name for name in read_table(samples)["file"]]
    folder = samples / "images"
    found = {file for file in folder.iterdir() if not file.name.startswith(".")} if folder.is_dir() else set()
    if len(files) != len(set(files)) or found != set(files):
        raise UserError(
            f"{samples} holds {len(found)} images, but its table names {len(files)} ({len(found ^ set(files))} differ); "
            f"run `dvc repro -f -s sample` to make them again"
        )
    height, width = _pixels(files[0]).shape[:2]
    shape = (len(files), height, width, 3)
    part = out.with_name(f".{out.name}.part")
    try:
        with zipfile.ZipFile(part, "w") as archive, archive.open("arr_0.npy", "w", force_zip64=True) as stream:
            np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for file in track(files, "export", "image", len(files)):
                pixels = _pixels(file)
                if pixels.shape != shape[1:]:
                    raise UserError(
                        f"{file} has {pixels.shape[:2]} pixels, but the first image has {shape[1:3]}; make them again"
                    )
                stream.write(pixels.tobytes())
        _check_free(out)  # once more, because writing takes minutes
        part.rename(out)
    finally:
        part.unlink(missing_ok=True)
    return shape


def _check_free(out: Path) -> None:
    if out.exists():
        raise UserError(f"{out} exists already, and is left as it is; delete it, or give another path")


def _pixels(file: Path) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"{file} cannot be read ({error}); make the samples again") from error
