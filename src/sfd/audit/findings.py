"""Types of an audit: the samples that it examines, and its findings."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sfd.audit.membership import Separation
from sfd.data.images import read_crop, to_tensor_uint8
from sfd.evaluation.memorisation import Memorisation
from sfd.params import DataParams


@dataclass(frozen=True)
class Samples:
    """Images to be audited: paths relative to ``folder``. ``version``: model and version that made them, if a table says so.

    ``refused``: files that are no images, with reasons (only of a folder without a table). ``num_cropped``: images of another size.
    """

    folder: Path
    files: list[str]
    version: tuple[str, str] | None
    refused: dict[str, str]
    num_cropped: int

    def load(self, rows: Sequence[int], params: DataParams) -> Tensor:
        """Centre crops uint8 ``(B, 3, S, S)``."""
        return to_tensor_uint8(
            [read_crop(self.folder / self.files[row], params.image_size, params.max_pixels) for row in rows]
        )

    def batches(self, size: int, params: DataParams) -> Iterator[Tensor]:
        """All samples in order, as batches of :meth:`load`."""
        for start in range(0, len(self.files), size):
            yield self.load(range(start, min(start + size, len(self.files))), params)


@dataclass(frozen=True)
class Neighbours:
    """How near samples lie to training images.

    ``identical``: rows of ``found.table`` below the limit whose pixels are those of the training image.
    ``interval``: of the share of samples below the limit; ``expected``: share of held-out images, with its interval.
    ``p_value``: probability that as many honest samples, or more, lie below the limit.
    """

    found: Memorisation
    identical: list[bool]
    num_samples: int
    num_below: int
    interval: tuple[float, float]
    num_heldout: int
    num_heldout_below: int
    expected_interval: tuple[float, float]
    p_value: float


@dataclass(frozen=True)
class Attack:
    """The outcome of membership by loss on the model in ``results/diffusion``. Losses are means over ``num_images`` images each."""

    num_images: int
    member_loss: float
    heldout_loss: float
    separation: Separation
