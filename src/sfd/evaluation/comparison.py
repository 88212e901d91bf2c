"""Which images are compared with samples, and how many: sets of one class mix, in equal numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from sfd.class_mix import count_alike, scarcest
from sfd.data.images import ManifestImages
from sfd.data.manifest import HELDOUT, TRAIN
from sfd.data.prepared import Prepared
from sfd.evaluation.views import choose, choose_like


@dataclass(frozen=True)
class Comparison:
    """Samples, training images and held-out images of one comparison.

    Attributes:
        data: the images.
        num_samples: how many samples there are.
        asked: the class index for which each sample was drawn; None if the model is not told a class.
        seed: of the choice of images.
        is_published: whether samples are compared with a published reference, which keeps its own number, in the held-out images' place.
    """

    data: Prepared
    num_samples: int
    asked: list[int] | None
    seed: int
    is_published: bool = False

    @cached_property
    def train(self) -> ManifestImages:
        """All training images."""
        return self.data.images(TRAIN)

    @cached_property
    def heldout(self) -> ManifestImages:
        """All held-out images."""
        return self.data.images(HELDOUT)

    @property
    def classes(self) -> list[int] | None:
        """:attr:`asked`, if they are classes of this data set: then the sets that are compared have the mix of their first ones."""
        return self.asked if self.asked is not None and max(self.asked) < self.data.num_classes else None

    @property
    def _sets(self) -> list[ManifestImages]:
        return [self.train] if self.is_published else [self.train, self.heldout]

    @cached_property
    def count(self) -> int:
        """Number of images in every set that is compared: the most with the samples' class mix."""
        if self.classes is None:
            return min(self.num_samples, *map(len, self._sets))
        return count_alike(self.classes, *(images.class_indices.tolist() for images in self._sets))

    @property
    def notes(self) -> list[str]:
        """What a user must know of the class mix: which class is short, or that the mix is not the same."""
        if self.asked is None or self.count == min(self.num_samples, *map(len, self._sets)):
            return []
        if self.classes is None:
            return [f"samples have class index {max(self.asked)}, but the data set has {self.data.num_classes} classes"]
        short = scarcest(self.asked, *(images.class_indices.tolist() for images in self._sets))
        return [
            f"{self.count} of {self.num_samples} samples are compared, because there are too few images of class "
            f"{self.data.summary.classes[short]!r} to compare more in the samples' class mix; with sample.class_mix `natural`, or a "
            "larger data.holdout_fraction, there are more"
        ]

    @cached_property
    def heldout_rows(self) -> Sequence[int]:
        """Rows of the held-out images that are the reference; all rows if the reference is published."""
        if self.is_published:
            return range(len(self.heldout))
        return self._rows_like_samples(self.heldout, HELDOUT)

    @cached_property
    def train_rows(self) -> list[int]:
        """Rows of the training images that give the floors."""
        return self._rows_like_samples(self.train, TRAIN)

    def _rows_like_samples(self, images: ManifestImages, purpose: str) -> list[int]:
        """Rows of images with the class mix of the compared samples, so that these differ from them in nothing but quality.

        If samples were drawn without a class, the images are chosen at random.
        """
        if self.classes is None:
            return choose(len(images), self.count, self.seed, purpose)
        return choose_like(self.classes[: self.count], images.class_indices.tolist(), self.seed, purpose)


def floor_rows(*comparisons: Comparison) -> list[int]:
    """The training images that give the floors of some comparisons, ascending."""
    return sorted({row for comparison in comparisons for row in comparison.train_rows})
