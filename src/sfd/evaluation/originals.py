"""What judges see of real images: the reference, the floors, and the training images that samples may be copies of.

None of it depends on the model's weights. So stage ``reference`` extracts it once, and evaluations of other samples read it. What it does not
hold, because samples were drawn otherwise than the parameters say, an evaluation extracts itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sfd.data.images import Pixels
from sfd.data.latents import views_of
from sfd.data.manifest import HELDOUT, TRAIN
from sfd.encoders.texture_vae import TextureVae
from sfd.evaluation.comparison import Comparison, floor_rows
from sfd.evaluation.extraction import FEATURES, FeatureStore, Source, fill
from sfd.params import EvaluateParams
from sfd.seeding import generator

RECONSTRUCTIONS, FLIPPED = "reconstructions", "flipped"
"""Names of sets of features, beside those of the manifest's splits."""
EVERYTHING = ("features", "logits", "spatial")

Kept = Sequence[FeatureStore | None]
"""What was extracted before, by judge; None: nothing."""


@dataclass(frozen=True)
class Originals:
    """Real images, for the comparisons of one set of samples.

    Attributes:
        params: section ``evaluate``.
        vae: makes the floor `reconstruction`.
        comparison: that of the first judge.
        plain: that of the other judges, which are never compared with a published reference.
    """

    params: EvaluateParams
    vae: TextureVae
    comparison: Comparison
    plain: Comparison

    @classmethod
    def of(cls, params: EvaluateParams, vae: TextureVae, comparison: Comparison) -> "Originals":
        """Those of samples that are compared with held-out images, or with the published reference that ``params`` names."""
        published = params.reference is not None
        first = Comparison(comparison.data, comparison.num_samples, comparison.asked, comparison.seed, published)
        return cls(params, vae, first, comparison if published else first)

    @property
    def training_sets(self) -> list[str]:
        """Names of the sets of all training images."""
        return [TRAIN, FLIPPED] if self.comparison.data.params.mirror else [TRAIN]

    def floors(self, stores: Sequence[FeatureStore]) -> list[int]:
        """Rows of the training images that give the floors of all judges."""
        return floor_rows(self.comparison, *([self.plain] if len(stores) > 1 else []))

    def fill_heldout(self, stores: Sequence[FeatureStore], kept: Kept, images: str = "") -> None:
        """As :meth:`fill`, of the held-out images alone."""
        heldout = self.comparison.heldout
        rows, chosen = range(len(heldout)), list(zip(stores, kept, strict=True))
        whole = {stores[0].judge.name: FEATURES if self.comparison.is_published else EVERYTHING}
        fill(lacking(chosen, HELDOUT, rows), [HELDOUT], rows, Source(Pixels(heldout)), whole, images)

    def fill(self, stores: Sequence[FeatureStore], kept: Kept, images: str = "", vae: str = "") -> None:
        """Extracts this process's share of what ``kept`` does not hold; one store per judge, the first judge's first.

        ``images``, ``vae``: digests of the images, and of what reconstructs them.
        """
        train = self.comparison.train
        mirror, floors = self.comparison.data.params.mirror, self.floors(stores)
        everything, everyone = range(len(train)), list(zip(stores, kept, strict=True))
        with_all = everyone[:1] if self.params.memorisation else []

        def reconstructions(originals: Tensor, rows: Sequence[int]) -> list[Tensor]:
            return [reconstruct(originals, self.vae, self.comparison.seed, rows)]

        read = Pixels(train)
        self.fill_heldout(stores, kept, images)
        decoded = f"{images} {vae} {self.comparison.seed}"
        fill(
            lacking(everyone, RECONSTRUCTIONS, floors),
            [RECONSTRUCTIONS],
            floors,
            Source(read, reconstructions),
            made_of=decoded,
        )
        fill(
            lacking(with_all, TRAIN, everything),
            self.training_sets,
            everything,
            Source(read, lambda originals, _rows: views_of(originals, mirror)),
            made_of=images,
        )
        some = everyone[len(with_all) :]
        fill(lacking(some, TRAIN, floors), [TRAIN], floors, Source(read), made_of=images)


def lacking(
    chosen: Sequence[tuple[FeatureStore, FeatureStore | None]], name: str, rows: Sequence[int]
) -> list[FeatureStore]:
    """The stores beside which nothing is kept that holds these rows of a set."""
    return [store for store, kept in chosen if kept is None or not kept.has(name, rows)]


def holding(stores: Sequence[FeatureStore | None], name: str, rows: Sequence[int]) -> FeatureStore:
    """The first of some stores of one judge whose set holds these rows."""
    return next(store for store in stores if store is not None and store.has(name, rows))


def reconstruct(images: Tensor, vae: TextureVae, seed: int, rows: Sequence[int]) -> Tensor:
    """Images, numbered ``rows``, after the VAE round trip. Latents are samples of the posterior, as in the training set of diffusion."""
    shape = vae.latent_shape(1, images.shape[-1])[1:]
    noise = torch.stack([torch.randn(shape, generator=generator(seed, "evaluate/reconstruction", row)) for row in rows])
    return vae.decode(vae.encode(images, noise.to(images.device)))
