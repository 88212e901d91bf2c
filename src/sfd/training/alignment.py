"""Alignment of the texture latent with the frozen encoder's patch features: the two losses of VA-VAE (arXiv 2501.01423, section 3.2).

Let ``z`` be the latent at a position, ``z' = W z`` its linear map to the width of the features, and ``f`` the feature of the same image there.
With N positions per image, and means over the images of a batch::

    marginal cosine similarity      1/N   * sum_i    relu(1 - m_cos - cos(z'_i, f_i))
    marginal distance matrix        1/N^2 * sum_i,j  relu(|cos(z'_i, z'_j) - cos(f_i, f_j)| - m_dist)

The margins leave alone what is near enough, so that the latent keeps room for what the features do not say. Both are of the mapped latent, as
in the authors' code. Its adaptive weight makes the gradient of this loss, at the last layer of the encoder, as long as that of the
reconstruction: ``|grad L_rec| / (|grad L_align| + 1e-4)``, at most 1e8, taken as a constant; times the weight that the user gives.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, interpolate, normalize, relu

from sfd.encoders.tiles import map_to_tokens, tokens_to_map
from sfd.params import AlignmentParams
from sfd.seeding import seeded_initialisation

SMALLEST_NORM, LARGEST_RATIO = 1e-4, 1e8
"""Limits of the adaptive weight."""


def marginal_cosine(mapped: Tensor, features: Tensor, margin: float) -> Tensor:
    """How far the cosines stay below ``1 - margin``: mapped latents and features ``(B, N, D)`` -> a scalar."""
    return relu(1.0 - margin - cosine_similarity(mapped, features, dim=-1)).mean()


def marginal_distance_matrix(mapped: Tensor, features: Tensor, margin: float) -> Tensor:
    """By how much more than ``margin`` the cosines within an image differ: mapped latents and features ``(B, N, D)`` -> a scalar."""
    return relu((_cosines(mapped) - _cosines(features)).abs() - margin).mean()


def _cosines(values: Tensor) -> Tensor:
    """Of all pairs of positions of an image: ``(B, N, D)`` -> ``(B, N, N)``."""
    unit = normalize(values, dim=-1)
    return unit @ unit.transpose(1, 2)


def on_grid(features: Tensor, grid: int) -> Tensor:
    """Features ``(B, N, D)`` of a square -> ``(B, grid * grid, D)``.

    If the sides differ they are resized bilinearly, with averaging where they shrink; pixel centres correspond, as everywhere.
    """
    if features.shape[1] == grid * grid:
        return features
    return map_to_tokens(interpolate(tokens_to_map(features), (grid, grid), mode="bilinear", antialias=True))


class Alignment(nn.Module):
    """The linear map ``W`` from the latent to the width of the features, which is trained beside the autoencoder, and the losses."""

    def __init__(self, params: AlignmentParams, latent_channels: int, feature_dim: int, seed: int) -> None:
        super().__init__()
        self.params = params
        with seeded_initialisation(seed, "texture_vae/alignment"):
            self.map = nn.Linear(latent_channels, feature_dim, bias=False)

    def terms(self, latent: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Latent ``(B, C, h, h)`` and features ``(B, N, D)`` -> both losses, computed in float32."""
        with torch.autocast(latent.device.type, enabled=False):
            mapped = self.map(map_to_tokens(latent.float()))
            wanted = on_grid(features.float(), latent.shape[-1])
            return (
                marginal_cosine(mapped, wanted, self.params.cosine_margin),
                marginal_distance_matrix(mapped, wanted, self.params.distance_margin),
            )


def gradient_ratio(reconstruction: Tensor, alignment: Tensor, layer: Tensor) -> Tensor:
    """The adaptive weight: how much longer the gradient of one loss is than that of the other. A constant for later gradients.

    Args:
        reconstruction: a scalar loss, the mean over this process's images.
        alignment: another one.
        layer: the weights of the encoder's last layer. The gradients there are first averaged over the processes, so that the ratio is the
            one of the whole batch.
    """
    gradients = torch.stack(
        [torch.autograd.grad(loss, layer, retain_graph=True)[0] for loss in (reconstruction, alignment)]
    )
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(gradients)
        gradients /= torch.distributed.get_world_size()
    ours, theirs = gradients.flatten(1).norm(dim=1)
    ratio: Tensor = ours / (theirs + SMALLEST_NORM)
    return ratio.clamp(0.0, LARGEST_RATIO)
