"""A trained diffusion model on disk: backbone, schedule, statistics, classes."""

from dataclasses import dataclass
from pathlib import Path

from sfd.data.latents import STATISTICS, ChannelStatistics
from sfd.diffusion.schedule import Schedule
from sfd.errors import UserError
from sfd.generation.schedules import build_schedule
from sfd.models.lightningdit import LightningDiT, LightningDiTConfig
from sfd.network_files import load_weights, read_config, save_network
from sfd.params import ScheduleParams


@dataclass(frozen=True)
class DiffusionModel:
    """A trained backbone with what it takes to use it. ``classes``: names, by class index."""

    network: LightningDiT
    schedule_params: ScheduleParams
    statistics: ChannelStatistics
    classes: list[str]

    @property
    def schedule(self) -> Schedule:
        """The schedule that it was trained with. Raises :class:`UserError` if that was a range of offsets."""
        return build_schedule(self.schedule_params)

    def save(self, folder: Path) -> None:
        """Writes ``model.safetensors``, ``config.json`` and the statistics."""
        config = {
            "model": self.network.config.to_dict(),
            "schedule": self.schedule_params.model_dump(),
            "classes": self.classes,
        }
        save_network(folder, self.network, config)
        self.statistics.save(folder / STATISTICS)

    @classmethod
    def load(cls, folder: Path) -> "DiffusionModel":
        """Inverse of :meth:`save`, in evaluation mode. Raises :class:`UserError` if files are missing or do not fit."""
        config = read_config(folder)
        try:
            network = LightningDiT(LightningDiTConfig.from_dict(config["model"]))
            schedule = ScheduleParams.model_validate(config["schedule"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{folder / 'config.json'} does not describe a diffusion model ({' '.join(str(error).split())}); "
                "rerun stage `diffusion`, or correct the path"
            ) from error
        load_weights(folder, network)
        return cls(
            network.eval().requires_grad_(False),
            schedule,
            ChannelStatistics.load(folder / STATISTICS),
            list(config["classes"]),
        )
