"""Rules of ``diffusion.token_routing`` and ``diffusion.sparse_deep`` with other sections. As in :mod:`sfd.params.rules`."""

from sfd.params.schema import Params
from sfd.sizes import SIZES


def check_tokens(params: Params) -> None:
    """A training that leaves tokens out has blocks for it, and there is one way to do it."""
    diffusion = params.diffusion
    ways = {"token_routing": diffusion.token_routing, "sparse_deep": diffusion.sparse_deep}
    chosen = {name: way for name, way in ways.items() if way is not None}
    if len(chosen) > 1:
        raise ValueError(
            "diffusion.token_routing and diffusion.sparse_deep both choose what the middle blocks see: set one of them to null"
        )
    for name, way in chosen.items():
        if diffusion.source == "file":
            raise ValueError(
                f"diffusion.source is `file`, which trains nothing, so diffusion.{name} must be null: nothing reads it"
            )
        depth = SIZES[diffusion.model.size][1]
        if way.first_blocks + way.last_blocks >= depth:
            raise ValueError(
                f"diffusion.{name}: first_blocks {way.first_blocks} and last_blocks {way.last_blocks} leave none of the {depth} blocks of "
                f"a model of size {diffusion.model.size} in between: lower them, or set {name} to null"
            )


def check_repa_projector(params: Params) -> None:
    """A convolution needs the whole grid of tokens, and the middle blocks see a part of it."""
    diffusion = params.diffusion
    loss, depth = diffusion.loss, SIZES[diffusion.model.size][1]
    way = diffusion.token_routing or diffusion.sparse_deep
    if way is None or loss.repa_weight == 0.0 or loss.repa_projector != "conv":
        return
    if way.first_blocks < loss.repa_depth <= depth - way.last_blocks:
        raise ValueError(
            f"diffusion.loss.repa_projector is `conv`, which needs all tokens, but block repa_depth {loss.repa_depth} sees a part of them: set "
            f"repa_depth to at most first_blocks {way.first_blocks}, or repa_projector to `mlp`"
        )


def check_full_token_steps(params: Params) -> None:
    """The part of the training that shows all tokens is a part of it."""
    sparse, num_steps = params.diffusion.sparse_deep, params.diffusion.training.num_steps
    if sparse is not None and sparse.full_token_steps > num_steps:
        raise ValueError(
            f"diffusion.sparse_deep.full_token_steps {sparse.full_token_steps} is more than diffusion.training.num_steps {num_steps}: lower it"
        )


def check_path_drop(params: Params) -> None:
    """Path-drop guidance needs a path that was dropped in training, and the null class where there are classes.

    A model from a file brings its own paths; whether it has two is seen when it is loaded.
    """
    diffusion = params.diffusion
    if params.sample.guidance.kind != "path_drop":
        return
    if diffusion.source == "train" and (diffusion.sparse_deep is None or diffusion.sparse_deep.path_drop == 0.0):
        raise ValueError(
            "sample.guidance.kind is `path_drop`, so diffusion.sparse_deep must be given, and its path_drop be above 0: the model is not trained "
            "without its middle blocks otherwise"
        )
    if diffusion.model.condition != "none" and diffusion.model.class_dropout == 0.0:
        raise ValueError(
            "sample.guidance.kind is `path_drop`, whose weak velocity has the null class, so diffusion.model.class_dropout must be above 0"
        )
