"""The learning rate of each step."""

import math

from sfd.params import TrainingParams


def learning_rate(params: TrainingParams, step: int) -> float:
    """Linear warm-up, then constant, then, with ``decay: cosine``, down to ``decay_to`` of the peak. ``step``: counted from 0.

    Without ``warmup_from`` the first of W steps has 1/W of the peak, and the last one the peak. With it the first step has that share, and
    the peak comes after W steps.
    """
    warmup, rate = params.warmup_steps, params.learning_rate
    if params.warmup_from is None or step >= warmup:
        rate *= min(1.0, (step + 1) / max(1, warmup))
    else:
        rate *= params.warmup_from + (1.0 - params.warmup_from) * step / warmup
    start = warmup if params.decay_start is None else params.decay_start
    if params.decay == "cosine" and step >= start:
        done = (step - start) / max(1, params.num_steps - start)
        rate *= params.decay_to + (1.0 - params.decay_to) * 0.5 * (1.0 + math.cos(math.pi * done))
    return rate
