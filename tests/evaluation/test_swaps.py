"""Colour words and the colours of pictures."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image, ImageColor
from torch import Tensor

from sfd.evaluation.colours import colour_of, named_colour, shown_colour, to_lab
from sfd.evaluation.swaps import score_swaps
from sfd.evaluation.words import Scores
from sfd.generation.swaps import finish_swaps, plan_swaps, read_swaps, write_swaps

COLOURS = ["red", "orange", "yellow", "green", "blue", "purple", "brown", "black"]


def blot(colour: str, background: str = "white", side: int = 16) -> Tensor:
    """A square of a colour in the middle of another."""
    picture = torch.tensor(ImageColor.getrgb(background), dtype=torch.uint8)[:, None, None].repeat(1, side, side)
    picture[:, 4:12, 4:12] = torch.tensor(ImageColor.getrgb(colour), dtype=torch.uint8)[:, None, None]
    return picture


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        ((255, 255, 255), (100.0, 0.0, 0.0)),
        ((0, 0, 0), (0.0, 0.0, 0.0)),
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 128, 0), (46.23, -51.70, 49.90)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
    ],
)
def test_cielab_is_that_of_the_tables(rgb: tuple[int, ...], lab: tuple[float, ...]) -> None:
    assert to_lab(torch.tensor(rgb)).tolist() == pytest.approx(lab, abs=0.02)


@pytest.mark.parametrize("background", ["white", "black", "teal"])
@pytest.mark.parametrize("colour", COLOURS)
def test_a_blot_has_the_colour_of_its_word_whatever_is_behind_it(colour: str, background: str) -> None:
    if colour != background:
        assert named_colour(blot(colour, background), COLOURS) == colour


def test_noise_of_the_background_and_an_outline_do_not_change_the_colour() -> None:
    picture = blot("blue")
    noise = torch.randint(-12, 13, picture.shape, generator=torch.Generator().manual_seed(0))
    noisy = (picture + noise).clamp(0, 255).to(torch.uint8)
    noisy[:, 4, 4:12] = 0
    assert named_colour(noisy, ["red", "green", "blue"]) == "blue"
    shown = shown_colour(picture)
    assert shown is not None
    torch.testing.assert_close(shown, colour_of("blue"))


def test_a_picture_of_one_colour_shows_nothing() -> None:
    assert named_colour(torch.full((3, 8, 8), 200, dtype=torch.uint8), ["red", "blue"]) is None


SWAPS = {"a {} heart": ["red", "blue"], "{} circle": ["red", "green", "blue"]}


def test_every_word_of_a_template_has_the_same_seeds() -> None:
    table = plan_swaps(SWAPS, 3, seed=0)
    assert table["prompt"].tolist()[::3] == ["a red heart", "a blue heart", "red circle", "green circle", "blue circle"]
    assert len(table) == 15 and table["file"].is_unique
    assert table["seed"].tolist() == table["seed"].tolist()[:3] * 5 and table["seed"].nunique() == 3
    assert plan_swaps(SWAPS, 3, seed=1)["seed"].tolist() != table["seed"].tolist()


class Painter:
    """A model that draws the colour of each prompt, but circles always in green. It counts what it draws."""

    def __init__(self) -> None:
        self.drawn: list[int] = []

    def sample(self, prompts: list[str], seeds: list[int], *_: object) -> Iterator[Tensor]:
        self.drawn += seeds
        colours = ["green" if "circle" in prompt else prompt.split()[1] for prompt in prompts]
        yield torch.stack([blot(colour) for colour in colours])


def paint(folder: Path, table: pd.DataFrame, colours: list[str]) -> None:
    """What stage `sample` would leave of a model that draws these colours."""
    (folder / "swaps/images").mkdir(parents=True)
    for file, colour in zip(table["file"], colours, strict=True):
        Image.fromarray(blot(colour).permute(1, 2, 0).numpy()).save(folder / "swaps/images" / file)


def test_processes_share_the_images_and_what_is_there_is_not_drawn_again(tmp_path: Path) -> None:
    table, painters = plan_swaps(SWAPS, 4, seed=0), [Painter(), Painter(), Painter()]
    for rank in (0, 1):
        write_swaps(tmp_path, painters[rank], table, None, 3, rank, 2)  # type: ignore[arg-type]
    assert painters[0].drawn + painters[1].drawn != [] and len(painters[0].drawn) + len(painters[1].drawn) == 20
    kept = {file.name: file.read_bytes() for file in (tmp_path / "swaps/images").iterdir()}
    assert sorted(kept) == table["file"].tolist()
    (tmp_path / "swaps/images/000004.png").unlink()
    (tmp_path / "swaps/images/000009.png.part").touch()
    write_swaps(tmp_path, painters[2], table, None, 3, 0, 1)  # type: ignore[arg-type]
    finish_swaps(tmp_path, table)
    assert painters[2].drawn == table["seed"].tolist()[3:6], "the batch of the missing image"
    assert {file.name: file.read_bytes() for file in (tmp_path / "swaps/images").iterdir()} == kept


def test_the_accuracy_is_counted_beside_chance_and_real_images(tmp_path: Path) -> None:
    table = plan_swaps(SWAPS, 4, seed=0)
    write_swaps(tmp_path, Painter(), table, None, 5, 0, 1)  # type: ignore[arg-type]
    assert read_swaps(tmp_path) is None
    finish_swaps(tmp_path, table)
    found = read_swaps(tmp_path)
    assert found is not None and found.equals(table)
    pictures = torch.stack([blot("red"), blot("green"), blot("yellow")])
    images: Any = SimpleNamespace(__getitems__=lambda places: SimpleNamespace(images=pictures[places]))
    # A red heart that is red, a blue one that is green, and a caption that nobody asks for.
    captions = [["A red  heart"], ["a blue heart"], ["a yellow heart"]]
    scores = Scores()
    score_swaps(tmp_path, found, [(images, captions)], seed=0).add_to(scores)
    assert scores.metrics == {
        "swap_accuracy": pytest.approx(12 / 20),
        "swap_accuracy_chance": pytest.approx((8 / 2 + 12 / 3) / 20),
        "swap_accuracy_heldout": 0.5,
    }
    assert scores.counts == {"swap_accuracy": 20, "swap_accuracy_chance": 20, "swap_accuracy_heldout": 2}
    by_template = scores.report["swaps"]["by_template"]
    assert by_template["a {} heart"] == {"images": 8, "right": 8, "words": 2}
    assert by_template["{} circle"] == {"images": 12, "right": 4, "words": 3}
    assert scores.report["swaps"]["blank"] == 0


def test_a_picture_that_shows_nothing_is_wrong_and_counted(tmp_path: Path) -> None:
    table = plan_swaps({"{} sky": ["red", "blue"]}, 1, seed=0)
    paint(tmp_path, table, ["red", "white"])
    found = score_swaps(tmp_path, table, [], seed=0)
    assert found.accuracy.value == 0.5 and found.blank == 1 and found.real is None
    assert found.table["shown"].tolist() == ["red", ""] and found.table["right"].tolist() == [True, False]
