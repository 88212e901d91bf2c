"""A set of samples: whole after any interruption, whatever the size of the batches before and after it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from served import untrained
from torch import Tensor

from sfd.data.images import png_bytes
from sfd.errors import UserError
from sfd.generation.samples import finish_samples, read_images, write_samples

MODEL = untrained()
NUM_IMAGES = 11


class Stops:
    """A generator that ends the process, so to speak, in its call number ``last``."""

    def __init__(self, last: int) -> None:
        self.model, self.left = MODEL.images.model, last

    def sample(self, *arguments: Any) -> Iterator[Tensor]:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return MODEL.images.sample(*arguments)


def draw(out: Path, batch_size: int, images: Any = MODEL.images) -> Tensor:
    params = MODEL.sample.model_copy(update={"num_images": NUM_IMAGES})
    table = write_samples(out, images, params, batch_size, 0, 0, 1)
    finish_samples(out, table, MODEL.images.model.condition, params)
    return read_images(out, table["file"].tolist())


def test_an_interrupted_set_has_the_bytes_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = draw(tmp_path / "whole", 4)
    with pytest.raises(KeyboardInterrupt):
        draw(tmp_path / "cut", 4, Stops(last=3))
    (tmp_path / "cut/images/000009.png").write_bytes((tmp_path / "whole/images/000009.png").read_bytes())
    (tmp_path / "cut/images/000010.png.part").write_bytes(b"half")
    assert torch.equal(draw(tmp_path / "cut", 4), whole)
    assert {file.name for file in (tmp_path / "cut/images").iterdir()} == {f"{n:06d}.png" for n in range(NUM_IMAGES)}


@pytest.mark.parametrize(("before", "after"), [(2, 5), (4, 3), (3, 11)])
def test_a_set_goes_on_in_batches_of_another_size_and_lacks_no_image(tmp_path: Path, before: int, after: int) -> None:
    whole = draw(tmp_path / "whole", 4)
    with pytest.raises(KeyboardInterrupt):
        draw(tmp_path / "cut", before, Stops(last=3))
    assert (draw(tmp_path / "cut", after).int() - whole.int()).abs().max() <= 1, (
        "one grey level is the rounding allowed"
    )


@pytest.mark.parametrize(
    "spoil",
    [lambda _: b"", lambda data: data[: len(data) // 2], lambda data: data[:11] + b"\x03" + data[12:], None],
    ids=["empty", "cut", "short header", "missing"],
)
def test_a_sample_that_cannot_be_read_is_named_with_the_remedy(
    tmp_path: Path, spoil: Callable[[bytes], bytes] | None
) -> None:
    pixels = torch.randint(256, (3, 8, 8), dtype=torch.uint8)
    (tmp_path / "images").mkdir()
    (tmp_path / "images/0.png").write_bytes(png_bytes(pixels))
    assert torch.equal(read_images(tmp_path, ["0.png"])[0], pixels)
    if spoil is not None:
        (tmp_path / "images/1.png").write_bytes(spoil(png_bytes(pixels)))
    with pytest.raises(UserError, match=r"^\S*/images/1\.png cannot be read \(.*\); make the samples again"):
        read_images(tmp_path, ["0.png", "1.png"])
