"""The backbone that the parameters describe, for given latents."""

from sfd.data.latents import LatentDataset
from sfd.errors import UserError
from sfd.models.backbone import Backbone, BackboneConfig, Facts, build_backbone, config_from_params
from sfd.models.conditions import Condition, TextFacts
from sfd.models.tokens import Routing, SparseDeep, TokenRouting
from sfd.names import BACKBONES, CONDITIONS, load
from sfd.params import DiffusionParams, Params, ScheduleParams, check_patch_size, check_token_groups
from sfd.seeding import generator
from sfd.training.diffusion import needs_features


def condition_of(
    params: DiffusionParams, classes: list[str], counts: list[int] | None = None, text: TextFacts | None = None
) -> Condition:
    """The condition that the parameters name, for a data set with these classes, of which there are ``counts`` training images.

    ``text``: what is known of its captions.
    """
    condition: Condition = load(CONDITIONS, params.model.condition).from_data(classes, counts, text)
    return condition


def backbone_config(
    params: DiffusionParams,
    schedule: ScheduleParams,
    condition: Condition,
    *,
    grid: int,
    texture_channels: int,
    semantic_channels: int,
    feature_dim: int,
) -> BackboneConfig:
    """The configuration for latents of this shape, see :class:`sfd.models.backbone.Facts`.

    Raises:
        UserError: the backbone does not fit the latents.
    """
    _check_routes(params)
    try:
        check_patch_size(params.model.patch_size, grid, "that of the stored latents")
        check_token_groups(params, grid, "that of the stored latents")
    except ValueError as error:
        raise UserError(str(error)) from None
    loss, sparse = params.loss, params.sparse_deep
    facts = Facts(
        grid=grid,
        texture_channels=texture_channels,
        semantic_channels=semantic_channels,
        feature_dim=feature_dim,
        condition=condition,
        two_times=schedule.kind != "sync",
        repa_depth=loss.repa_depth if needs_features(loss) else 0,
        repa_width=loss.repa_width,
        dense_blocks=None if sparse is None else (sparse.first_blocks, sparse.last_blocks),
        repa_projector=loss.repa_projector,
    )
    return config_from_params(params.model, facts)


def build_routing(params: DiffusionParams, grid: int) -> Routing | None:
    """How the training shows tokens to blocks, on latents of ``grid`` positions along one side; None: all blocks see all tokens.

    Raises:
        UserError: not one token would leave.
    """
    tokens, sparse, routing = grid // params.model.patch_size, params.sparse_deep, params.token_routing
    if sparse is not None:
        sparse_steps = params.training.num_steps - sparse.full_token_steps
        return SparseDeep(
            tokens, sparse.kept_per_group, sparse.path_drop, sparse_steps, sparse.first_blocks, sparse.last_blocks
        )
    if routing is None:
        return None
    made = TokenRouting(tokens**2, routing.share, routing.first_blocks, routing.last_blocks)
    if made.num_kept == tokens**2:
        raise UserError(
            f"diffusion.token_routing.share {routing.share:g} of {tokens**2} tokens is less than one token: raise it, or set token_routing to null"
        )
    return made


def _check_routes(params: DiffusionParams) -> None:
    """Raises :class:`UserError` if blocks are to see a part of the tokens, and the backbone cannot do that."""
    name = "token_routing" if params.token_routing is not None else "sparse_deep"
    backbone = params.model.backbone
    if getattr(params, name) is not None and not load(BACKBONES, backbone).routes_tokens:
        raise UserError(f"diffusion.{name}: backbone `{backbone}` cannot leave tokens out: set {name} to null")


def initialised_backbone(config: BackboneConfig, seed: int) -> Backbone:
    """The network that training starts from."""
    return build_backbone(config).initialise(generator(seed, "diffusion/initialisation"))


def build_network(params: Params, dataset: LatentDataset, seed: int) -> Backbone:
    """The backbone for a data set, freshly initialised. Raises :class:`UserError` if parameters and latents do not fit."""
    index = dataset.index
    config = backbone_config(
        params.diffusion,
        params.schedule,
        condition_of(params.diffusion, index.classes, index.class_counts, dataset.text_facts),
        grid=index.grid,
        texture_channels=index.texture_channels,
        semantic_channels=index.semantic_channels,
        feature_dim=index.feature_dim,
    )
    return initialised_backbone(config, seed)
