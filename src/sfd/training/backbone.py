"""The backbone that the parameters describe, for given latents."""

from sfd.errors import UserError
from sfd.models.backbone import Backbone, BackboneConfig, Facts, build_backbone, config_from_params
from sfd.models.conditions import Condition
from sfd.names import CONDITIONS, load
from sfd.params import DiffusionParams, ScheduleParams, check_patch_size
from sfd.seeding import generator
from sfd.training.diffusion import needs_features


def condition_of(params: DiffusionParams, classes: list[str], counts: list[int] | None = None) -> Condition:
    """The condition that the parameters name, for a data set with these classes, of which there are ``counts`` training images."""
    condition: Condition = load(CONDITIONS, params.model.condition).from_data(classes, counts)
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
    try:
        check_patch_size(params.model.patch_size, grid, "that of the stored latents")
    except ValueError as error:
        raise UserError(str(error)) from None
    loss = params.loss
    facts = Facts(
        grid=grid,
        texture_channels=texture_channels,
        semantic_channels=semantic_channels,
        feature_dim=feature_dim,
        condition=condition,
        two_times=schedule.kind != "sync",
        repa_depth=loss.repa_depth if needs_features(loss) else 0,
        repa_width=loss.repa_width,
        repa_projector=loss.repa_projector,
    )
    return config_from_params(params.model, facts)


def initialised_backbone(config: BackboneConfig, seed: int) -> Backbone:
    """The network that training starts from."""
    return build_backbone(config).initialise(generator(seed, "diffusion/initialisation"))
