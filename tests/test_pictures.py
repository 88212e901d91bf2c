"""Sizes and pixels of grids; equal input gives equal bytes."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sfd import pictures
from sfd.pictures import (
    GAP,
    Scale,
    image_grid,
    labelled_grid,
    plot_curves,
    plot_heat_map,
    plot_pca_features,
    plot_schedule,
    save_png,
    side_by_side,
)


def flat_images(*values: int, height: int = 4, width: int = 4) -> Tensor:
    """One image of one grey for each value."""
    greys = torch.tensor(values, dtype=torch.uint8)
    return greys[:, None, None, None].expand(-1, 3, height, width).clone()


def noise_images(count: int, side: int = 8) -> Tensor:
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def offset(u: Tensor) -> tuple[Tensor, Tensor]:
    return (1.3 * u - 0.3).clamp(min=0.0), (1.3 * u).clamp(max=1.0)


def sync(u: Tensor) -> tuple[Tensor, Tensor]:
    return u, u


def step(u: Tensor) -> tuple[Tensor, Tensor]:
    return (2 * u - 1).clamp(min=0.0), (2 * u).clamp(max=1.0)


def near(pixels: np.ndarray, colour: str) -> np.ndarray:
    target = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return (np.abs(pixels.astype(int) - target) <= 2).all(axis=-1)


def test_a_grid_has_thin_gaps_and_an_unfinished_last_row() -> None:
    grid = np.asarray(image_grid(flat_images(10, 20, 30, height=4, width=6), columns=2, scale=3))
    assert grid.shape == (2 * (12 + GAP) + GAP, 2 * (18 + GAP) + GAP, 3)
    assert (grid[GAP : GAP + 12, GAP : GAP + 18] == 10).all()
    assert (grid[GAP : GAP + 12, 2 * GAP + 18 : 2 * GAP + 36] == 20).all()
    assert (grid[2 * GAP + 12 : 2 * GAP + 24, GAP : GAP + 18] == 30).all()
    assert near(grid[2 * GAP + 12 :, 2 * GAP + 18 :], pictures.GAP_COLOUR).all()
    assert near(grid[:GAP], pictures.GAP_COLOUR).all()


def test_enlarging_repeats_pixels_and_invents_none() -> None:
    image = noise_images(1)
    grid = np.asarray(image_grid(image, columns=1, scale=5))[GAP:-GAP, GAP:-GAP]
    assert np.array_equal(grid[2::5, 2::5], image[0].permute(1, 2, 0).numpy())
    assert np.array_equal(grid, np.repeat(np.repeat(grid[2::5, 2::5], 5, axis=0), 5, axis=1))


def test_a_labelled_grid_has_one_class_a_row_in_order_of_appearance() -> None:
    images = flat_images(10, 20, 11, 21, 12, 22, 13)
    grid = np.asarray(labelled_grid(images, ["seal", "owl", "seal", "owl", "seal", "owl", "seal"], per_row=3))
    side = pictures.CELL_SIDE
    assert grid.shape[0] == 2 * (side + GAP) + GAP
    centres = [
        [int(grid[GAP + side // 2 + row * (side + GAP), -(3 - column) * (side + GAP) + 5, 0]) for column in range(3)]
        for row in range(2)
    ]
    assert centres == [[10, 11, 12], [20, 21, 22]]
    label = grid[: side + GAP, : grid.shape[1] - 3 * (side + GAP) - GAP]
    assert near(label, pictures.PAPER).any() and near(label, pictures.INK).any()


def test_with_one_image_per_label_captions_stand_below_images_that_fill_rows() -> None:
    images, captions = flat_images(*range(10, 18)), [f"prompt {n}" for n in range(8)]
    grid = np.asarray(labelled_grid(images, captions, per_row=1))
    side, margin = pictures.CAPTIONED_SIDE, pictures.MARGIN
    assert grid.shape[1] == pictures.CAPTIONED_PER_ROW * (side + margin) + margin
    second = margin + (grid.shape[0] - margin) // 2
    assert [int(grid[margin + 5, margin + 5 + n * (side + margin), 0]) for n in range(6)] == [10, 11, 12, 13, 14, 15]
    assert [int(grid[second + 5, margin + 5 + n * (side + margin), 0]) for n in range(2)] == [16, 17]
    below = grid[margin + side + 2 : second]
    assert near(below[:, : side + margin], pictures.INK).any() and not near(below[:, -margin:], pictures.INK).any()


def test_a_long_caption_takes_more_lines_and_a_word_that_is_too_long_is_cut() -> None:
    images = flat_images(1, 2)
    short, long = (labelled_grid(images, ["a cat", text], per_row=1) for text in ("a dog", "a dog " * 12))
    assert long.height > short.height and long.width == short.width
    assert labelled_grid(images, ["a cat", "W" * 90], per_row=1).size == short.size


def test_labels_and_images_of_different_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        labelled_grid(flat_images(1, 2), ["one"], per_row=2)


def test_pairs_stand_side_by_side_in_rows(tmp_path: Path) -> None:
    columns = flat_images(10, 30), flat_images(20, 40)
    side_by_side(columns, ["0.1", "0.2"], tmp_path / "new" / "pairs.png", titles=("a", "b"))
    picture = np.asarray(Image.open(tmp_path / "new" / "pairs.png"))
    x, y = pictures.MARGIN + 5, picture.shape[0] - pictures.MARGIN - 5
    across, up = pictures.CELL_SIDE + pictures.MARGIN, pictures.CELL_SIDE + pictures.MARGIN
    found = [[int(picture[y - up * row, x + across * column, 0]) for column in range(2)] for row in range(2)]
    assert found == [[30, 40], [10, 20]]


def test_features_that_are_reconstructed_perfectly_have_the_same_colours(tmp_path: Path) -> None:
    features = torch.randn(2, 4, 4, 8, generator=torch.Generator().manual_seed(0))
    plot_pca_features(features, features.clone(), noise_images(2), tmp_path / "same.png")
    plot_pca_features(features, -features, noise_images(2), tmp_path / "opposite.png")
    assert _feature_cells_equal(tmp_path / "same.png")
    assert not _feature_cells_equal(tmp_path / "opposite.png")


def _feature_cells_equal(path: Path) -> bool:
    picture = np.asarray(Image.open(path))
    side, margin = pictures.CELL_SIDE, pictures.MARGIN
    # Titles can widen a column, so the cells are found by their first pixel that is not paper.
    row = near(picture[-margin - side // 2], pictures.PAPER)
    starts = [x for x in range(margin, len(row)) if not row[x] and row[x - margin : x].all()]
    first, second = (picture[-margin - side : -margin, x : x + side] for x in starts[1:3])
    return np.array_equal(first, second)


@pytest.mark.parametrize(
    ("times", "phases"), [(offset, [True, True, True]), (sync, [False, True, False]), (step, [True, False, True])]
)
def test_a_schedule_is_shaded_by_the_phases_that_it_has(
    tmp_path: Path, times: Callable[[Tensor], tuple[Tensor, Tensor]], phases: list[bool]
) -> None:
    plot_schedule(times, tmp_path / "schedule.png")
    pixels = np.asarray(Image.open(tmp_path / "schedule.png").convert("RGB"))
    assert [near(pixels, colour).sum() > 5000 for colour in pictures.PHASE_COLOURS.values()] == phases
    assert near(pixels, pictures.SEMANTIC_COLOUR).any() and near(pixels, pictures.TEXTURE_COLOUR).any()


@pytest.mark.parametrize("log_y", [False, True])
def test_each_curve_is_drawn_in_its_own_colour(tmp_path: Path, log_y: bool) -> None:
    curves = {
        "loss": [(k, 1.0 / (k + 1)) for k in range(50)],
        "repa": [(k, 2.0 / (k + 1)) for k in range(50)],
        "empty": [],
    }
    plot_curves(curves, tmp_path / "curves.png", "step", "loss", log_y=log_y)
    pixels = np.asarray(Image.open(tmp_path / "curves.png").convert("RGB"))
    assert all(near(pixels, colour).any() for colour in pictures.PALETTE[:2])


def test_a_curve_of_one_point_is_visible(tmp_path: Path) -> None:
    plot_curves({"fd": [(1000, 12.0)]}, tmp_path / "one.png", "step", "distance")
    assert near(np.asarray(Image.open(tmp_path / "one.png").convert("RGB")), pictures.PALETTE[0]).sum() > 20


def test_a_heat_map_has_a_cell_for_each_value_and_a_frame_around_the_marked_one(tmp_path: Path) -> None:
    rows, columns = Scale("end", ["0.5", "1.0"]), Scale("scale", ["1", "2", "3"])
    values = [[3.0, 1.0, math.nan], [4.0, 2.0, 5.0]]
    frames = []
    for number, marked in enumerate([(0, 1), (1, 2)]):
        plot_heat_map(values, rows, columns, marked, tmp_path / f"{number}.png", "fd")
        pixels = np.asarray(Image.open(tmp_path / f"{number}.png").convert("RGB"))
        frames.append(np.argwhere(near(pixels, pictures.PALETTE[1])).mean(axis=0))
    assert frames[0][0] < frames[1][0] and frames[0][1] < frames[1][1]


DRAWINGS: dict[str, Callable[[Path], None]] = {
    "grid": lambda path: save_png(image_grid(noise_images(5), 3, 2), path),
    "labelled": lambda path: save_png(labelled_grid(noise_images(4), ["a", "b", "a", "b"], 2), path),
    "curves": lambda path: plot_curves({"a": [(0, 1.0), (1, 0.5)], "b": [(0, 2.0)]}, path, "step", "loss", log_y=True),
    "heat map": lambda path: plot_heat_map([[1.0, 2.0]], Scale("", [""]), Scale("x", ["a", "b"]), (0, 1), path, "fd"),
    "schedule": lambda path: plot_schedule(offset, path),
    "pairs": lambda path: side_by_side([noise_images(2)] * 3, ["x", "y"], path, ("a", "", "c")),
    "features": lambda path: plot_pca_features(
        torch.eye(16).reshape(1, 4, 4, 16), torch.ones(1, 4, 4, 16), noise_images(1), path
    ),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_drawing_again_gives_the_same_bytes_without_the_name_of_a_software(tmp_path: Path, name: str) -> None:
    DRAWINGS[name](tmp_path / "first.png")
    DRAWINGS[name](tmp_path / "second.png")
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()
    assert "Software" not in Image.open(tmp_path / "first.png").info
