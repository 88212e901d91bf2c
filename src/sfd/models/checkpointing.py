"""What a block keeps of its forward pass for the backward pass, and what it computes a second time."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal, TypeVar

import torch
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

Checkpointing = Literal["none", "block", "selective"]
"""``none``: everything is kept; ``block``: the block's input alone; ``selective``: the input, and the results of products and attention, which
cost most to compute. The gradients have the same bytes."""

Made = TypeVar("Made")

_OPERATIONS = torch.ops.aten
KEPT = [
    _OPERATIONS.mm.default,
    _OPERATIONS.addmm.default,
    _OPERATIONS.bmm.default,
    _OPERATIONS._scaled_dot_product_flash_attention.default,
    _OPERATIONS._scaled_dot_product_flash_attention_for_cpu.default,
    _OPERATIONS._scaled_dot_product_efficient_attention.default,
    _OPERATIONS._scaled_dot_product_cudnn_attention.default,
]
"""Operations whose results ``selective`` keeps."""


def checkpointed(kind: Checkpointing, compute: Callable[..., Made], *arguments: object) -> Made:
    """``compute(*arguments)``, a tensor or a tuple of tensors, which draws no random numbers."""
    if kind == "none" or not torch.is_grad_enabled():
        return compute(*arguments)
    if kind == "block":
        return checkpoint(compute, *arguments, use_reentrant=False, preserve_rng_state=False)
    return checkpoint(compute, *arguments, use_reentrant=False, preserve_rng_state=False, context_fn=_keep_products)


def _keep_products() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """The contexts of the first and of the second computation."""
    first, second = create_selective_checkpoint_contexts(KEPT)
    return first, second
