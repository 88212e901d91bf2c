"""The optimizers of a training: AdamW for all weights, or Muon for the matrices of the blocks and AdamW for the rest."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from sfd.errors import UserError
from sfd.params import DiffusionTrainingParams, TrainingParams
from sfd.precision import dies_of_bf16

if TYPE_CHECKING:  # the trainings of other networks do not depend on the backbones' code
    from sfd.models.backbone import Backbone


def build_optimizers(network: nn.Module, params: TrainingParams) -> tuple[torch.optim.Optimizer, ...]:
    """What trains the weights of ``network`` that are not frozen: each of them is in one of the optimizers.

    Raises:
        UserError: the optimizer is `muon`, and the backbone names no layers for it, or this CPU dies of bf16.
    """
    if isinstance(params, DiffusionTrainingParams) and params.optimizer == "muon":
        return _muon_and_adamw(cast("Backbone", network), params)
    return (_adamw(network.parameters(), params),)


def block_matrices(network: "Backbone") -> dict[str, nn.Parameter]:
    """The weights that Muon trains, by name: the matrices of ``network.block_layers`` that are not frozen."""
    return {
        name: weight
        for name, weight in network.named_parameters()
        if weight.requires_grad
        and weight.ndim == 2
        and re.fullmatch(network.block_layers, name.removesuffix(".weight"))
    }


def _adamw(weights: Iterable[nn.Parameter], params: TrainingParams) -> torch.optim.Optimizer:
    trained = [weight for weight in weights if weight.requires_grad]
    return torch.optim.AdamW(
        trained,
        lr=params.learning_rate,
        betas=(0.9, params.beta2),
        weight_decay=params.weight_decay,
        fused=trained[0].device.type in ("cuda", "cpu"),
    )


def _muon_and_adamw(network: "Backbone", params: TrainingParams) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the matrices of ``network.block_layers``, AdamW for all other weights.

    Muon (kellerjordan.github.io/posts/muon), as torch has it: with a gradient G and a momentum M of 0.95, per matrix and step

        M <- 0.95 M + 0.05 G
        W <- (1 - lr * weight_decay) W - lr * 0.2 * sqrt(max(rows, columns)) * O(0.05 G + 0.95 M)

    where O makes a matrix nearly orthogonal, with five Newton-Schulz iterations in bf16: its singular values become about 1, its singular
    vectors stay. The factor 0.2 * sqrt(max(rows, columns)) is that of arXiv 2502.16982 (torch's `match_rms_adamw`): an entry then moves as
    far as AdamW moves it, so that both share one learning rate, its schedule, and the weight decay.

    Embeddings, the output layer, norms and biases are AdamW's, as Muon's author advises. So is the modulation: its input is one vector per
    image, so its gradient has a low rank, and O would fill the other directions with noise.
    """
    matrices = block_matrices(network)
    if not matrices:
        raise UserError(
            f"diffusion.training.optimizer is `muon`, which trains the matrices of a backbone's blocks, but the backbone "
            f"`{network.config.kind}` names none (`block_layers`): set the optimizer to `adamw`"
        )
    if dies_of_bf16(next(iter(matrices.values())).device):
        raise UserError(
            "diffusion.training.optimizer is `muon`, which computes in bf16, and a trial product in bf16 ended with an error: this machine "
            "announces AMX, but does not have it. Set ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 in the environment, or the optimizer to `adamw`"
        )
    muon = torch.optim.Muon(
        matrices.values(),
        lr=params.learning_rate,
        weight_decay=params.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    return muon, _adamw((weight for name, weight in network.named_parameters() if name not in matrices), params)
