"""Guidance: ``guided = weak + scale * (strong - weak)``, separately for texture and semantics."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sfd.diffusion.loss import per_part

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``velocity(x, t_tex, t_sem)``: composite ``(B, C, H, W)`` and times ``(B,)`` to the velocity ``(B, C, H, W)``."""


@dataclass(frozen=True)
class GuidanceScales:
    """Scales (1: unguided), and the interval of guidance (arXiv 2404.07724): a part is guided while its own t is from its start to its end."""

    texture: float = 1.0
    semantic: float = 1.0
    start_texture: float = 0.0
    start_semantic: float = 0.0
    end_texture: float = 1.0
    end_semantic: float = 1.0

    @property
    def active(self) -> bool:
        """Whether any part is guided at all."""
        return self.texture != 1.0 or self.semantic != 1.0

    def at(self, t_tex: Tensor, t_sem: Tensor) -> tuple[Tensor, Tensor]:
        """The scale of texture and of semantics at these times, each ``(B,)``: 1 outside of the part's interval."""
        return (
            _within(t_tex, self.start_texture, self.end_texture, self.texture),
            _within(t_sem, self.start_semantic, self.end_semantic, self.semantic),
        )


def _within(t: Tensor, start: float, end: float, scale: float) -> Tensor:
    return torch.where((t >= start) & (t <= end), torch.full_like(t, scale), 1.0)


def guided_velocity(strong: Velocity, weak: Velocity, scales: GuidanceScales, semantic_channels: int) -> Velocity:
    """The guided velocity: classifier-free guidance (arXiv 2207.12598) if ``weak`` is given the null class, AutoGuidance (arXiv 2406.02507)
    if it is a weaker model. ``semantic_channels``: how many of the C channels, the last ones, are semantic."""

    def velocity(x: Tensor, t_tex: Tensor, t_sem: Tensor) -> Tensor:
        scale_tex, scale_sem = scales.at(t_tex, t_sem)
        strong_velocity = strong(x, t_tex, t_sem)
        if bool(((scale_tex == 1.0) & (scale_sem == 1.0)).all()):
            return strong_velocity
        weak_velocity = weak(x, t_tex, t_sem)
        scale = per_part(scale_tex, scale_sem, x.shape[1], semantic_channels)
        return weak_velocity + scale * (strong_velocity - weak_velocity)

    return velocity if scales.active else strong
