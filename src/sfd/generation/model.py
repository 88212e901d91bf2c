"""A trained diffusion model on disk: backbone, condition, schedule, statistics."""

from dataclasses import dataclass
from pathlib import Path

from sfd.data.latents import STATISTICS, ChannelStatistics
from sfd.diffusion.schedule import Schedule
from sfd.errors import UserError
from sfd.generation.model_config import FORMAT, check_format, read_model_config, write_model_config
from sfd.generation.schedules import build_schedule
from sfd.models.backbone import Backbone, BackboneConfig, build_backbone
from sfd.models.conditions import Condition
from sfd.network_files import CONFIG, load_weights, read_config, save_network
from sfd.params import ScheduleParams


@dataclass(frozen=True)
class DiffusionModel:
    """A trained backbone, the schedule that it was trained with, and the statistics that its latents are normalised by."""

    network: Backbone
    schedule_params: ScheduleParams
    statistics: ChannelStatistics

    @property
    def condition(self) -> Condition:
        """What the model is told about an image."""
        return self.network.config.condition

    @property
    def schedule(self) -> Schedule:
        """The schedule of the training. Raises :class:`UserError` if that was a range of offsets."""
        return build_schedule(self.schedule_params)

    def save(self, folder: Path) -> None:
        """Writes ``model.safetensors``, ``config.json`` and the statistics."""
        save_network(folder, self.network, write_model_config(self.network.config, self.schedule_params))
        self.statistics.save(folder / STATISTICS)

    @classmethod
    def load(cls, folder: Path) -> "DiffusionModel":
        """Inverse of :meth:`save`, in evaluation mode. Raises :class:`UserError` if files are missing or do not fit."""
        config, schedule = read_model_folder(folder)
        network = build_backbone(config)
        load_weights(folder, network)
        return cls(network.eval().requires_grad_(False), schedule, ChannelStatistics.load(folder / STATISTICS))


def read_model_folder(folder: Path) -> tuple[BackboneConfig, ScheduleParams]:
    """The configuration of a saved model, without its weights.

    Raises:
        UserError: the folder holds no diffusion model, or its record has a format that this version cannot read.
    """
    content = read_config(folder)
    check_format(folder / CONFIG, content, FORMAT)
    try:
        return read_model_config(dict(content))
    except (KeyError, TypeError, ValueError, UserError) as error:
        raise UserError(
            f"{folder / CONFIG} does not describe a diffusion model ({' '.join(str(error).split())}); "
            "rerun stage `diffusion`, or correct the path"
        ) from error
