"""Stage ``diffusion``: network and data set from the parameters, training with sample grids, and what it leaves."""

from pathlib import Path

from torch import nn

from sfd.data.latents import LatentDataset
from sfd.diffusion.guidance import GuidanceScales
from sfd.diffusion.sampling import Sampler
from sfd.encoders.texture_vae import load_texture_vae
from sfd.errors import UserError
from sfd.evaluation.pictures import labelled_grid, plot_schedule, save_png
from sfd.generation import DiffusionModel, ImageGenerator, build_training_schedule, image_seed, middle_schedule
from sfd.models.lightningdit import LightningDiT
from sfd.params import Params
from sfd.pipeline import Stage, inference_device
from sfd.seeding import generator
from sfd.training.curves import write_curve
from sfd.training.diffusion import DiffusionTask, model_config
from sfd.training.loop import train

GRID_SAMPLER = Sampler("euler", num_steps=50)
"""Sample grids during training are quick looks, not results."""


def build_network(params: Params, dataset: LatentDataset, seed: int) -> LightningDiT:
    """The backbone for a data set, freshly initialised. Raises :class:`UserError` if parameters and latents do not fit."""
    facts, diffusion = dataset.reader.index, params.diffusion
    config = model_config(
        diffusion.model,
        diffusion.loss,
        params.schedule,
        grid=facts["grid"],
        texture_channels=facts["texture_channels"],
        semantic_channels=facts["semantic_channels"],
        num_classes=len(facts["classes"]),
        feature_dim=facts["feature_dim"],
    )
    return LightningDiT(config).initialise(generator(seed, "diffusion/initialisation"))


def open_latents(params: Params, folder: Path) -> LatentDataset:
    """The latents that stage ``latents`` left, with features if REPA wants them."""
    return LatentDataset(folder / "shards", with_features=params.diffusion.loss.repa_weight > 0.0)


def build_task(params: Params, network: LightningDiT, dataset: LatentDataset, seed: int) -> DiffusionTask:
    """What the training loop must know."""
    schedule, diffusion = build_training_schedule(params.schedule), params.diffusion
    return DiffusionTask(network, dataset, diffusion.loss, schedule, diffusion.model.class_dropout, seed)


def make_diffusion(stage: Stage) -> None:
    """The diffusion model as ``diffusion.source`` says."""
    if stage.params.diffusion.source == "file":
        adopt_diffusion(stage)
    else:
        train_diffusion(stage)


def adopt_diffusion(stage: Stage) -> None:
    """Writes the model that `sfd import` made as ``model/``, and ``schedule.png``.

    Raises:
        UserError: the folder holds no diffusion model, or one of another schedule, image size or texture VAE than the parameters say.
    """
    folder, params = Path(stage.params.diffusion.file or ""), stage.params
    model = DiffusionModel.load(folder)
    config, vae = model.network.config, load_texture_vae(stage.upstream("texture_vae") / "model")
    if model.schedule_params != params.schedule:
        theirs = {key: value for key, value in model.schedule_params.model_dump().items() if key in ("kind", "tau")}
        raise UserError(f"the weights in {folder} have the schedule {theirs}: set schedule in params.yaml to that")
    wanted = vae.latent_shape(1, params.data.image_size)[1:]
    found = config.in_channels - config.semantic_channels, config.input_size, config.input_size
    if found != wanted:
        raise UserError(
            f"the weights in {folder} draw texture latents {found}, but images of data.image_size {params.data.image_size} have "
            f"{wanted} in this texture VAE: give texture_vae.file and data.image_size of the same publication"
        )
    model.save(stage.out / "model")
    plot_schedule(middle_schedule(params.schedule).times, stage.out / "schedule.png")
    stage.log({"parameters": float(sum(p.numel() for p in model.network.parameters()))})
    stage.log_artifacts(stage.out / "schedule.png")


def train_diffusion(stage: Stage) -> None:
    """Trains and writes ``model/``, ``curves.*``, ``schedule.png`` and ``grids/``."""
    params, seed = stage.params.diffusion, stage.params.seed
    dataset = open_latents(stage.params, stage.upstream("latents"))
    facts = dataset.reader.index
    network = build_network(stage.params, dataset, seed)
    task = build_task(stage.params, network, dataset, seed)
    model = DiffusionModel(network, stage.params.schedule, dataset.statistics, facts["classes"])
    grids = SampleGrids(model, stage, params.grid_images)
    trained = train(task, params.training, seed, stage.work, stage.fingerprint, stage.log, grids, params.grid_every)
    trained.copy_to(network)
    model.save(stage.out / "model")
    plot_schedule(middle_schedule(stage.params.schedule).times, stage.out / "schedule.png")
    stage.log({"parameters": float(sum(p.numel() for p in network.parameters()))})
    stage.log_input(
        "latents",
        facts["shards"][0]["sha256"],
        stage.upstream("latents"),
        "training",
        {"num_images": len(dataset.reader)},
    )
    stage.log_artifacts(*write_curve(stage.out, trained.curve), stage.out / "schedule.png")


class SampleGrids:
    """Draws the same classes and seeds from the network as training goes on."""

    def __init__(self, model: DiffusionModel, stage: Stage, num_images: int) -> None:
        self.model, self.stage = model, stage
        self.decoder = load_texture_vae(stage.upstream("texture_vae") / "model")
        num_classes = len(model.classes)
        per_class = max(1, num_images // num_classes)
        self.per_class = per_class
        self.classes = [index for index in range(min(num_classes, num_images)) for _ in range(per_class)]
        self.seeds = [image_seed(stage.params.seed, n) for n in range(len(self.classes))]

    def __call__(self, network: nn.Module, step: int) -> None:
        """Writes and logs one grid."""
        assert isinstance(network, LightningDiT)
        model = DiffusionModel(network, self.model.schedule_params, self.model.statistics, self.model.classes)
        was_training = network.training
        network.eval()
        images = ImageGenerator(model, self.decoder, device=inference_device())(
            self.classes, self.seeds, GRID_SAMPLER, GuidanceScales(), middle_schedule(self.model.schedule_params)
        )
        network.train(was_training)
        file = self.stage.out / "grids" / f"step-{step:07d}.png"
        file.parent.mkdir(exist_ok=True)
        names = [self.model.classes[index] for index in self.classes]
        save_png(labelled_grid(images, names, self.per_class), file)
        self.stage.log_artifacts(file)
