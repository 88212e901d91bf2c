"""Stage ``diffusion``: network and data set from the parameters, training with sample grids, and what it leaves."""

from torch import nn

from sfd.data.latents import LatentDataset
from sfd.diffusion.guidance import GuidanceScales
from sfd.diffusion.sampling import Sampler
from sfd.encoders.texture_vae import load_texture_vae
from sfd.evaluation.pictures import labelled_grid, plot_schedule, save_png
from sfd.generation import DiffusionModel, ImageGenerator, build_schedule, image_seed
from sfd.models.lightningdit import LightningDiT
from sfd.pipeline import Stage, inference_device
from sfd.seeding import generator
from sfd.training.curves import write_curve
from sfd.training.diffusion import DiffusionTask, model_config
from sfd.training.loop import train

GRID_SAMPLER = Sampler("euler", num_steps=50)
"""Sample grids during training are quick looks, not results."""


def make_diffusion(stage: Stage) -> None:
    """Trains and writes ``model/``, ``curves.*``, ``schedule.png`` and ``grids/``."""
    params, schedule_params = stage.params.diffusion, stage.params.schedule
    dataset = LatentDataset(stage.upstream("latents") / "shards", with_features=params.loss.repa_weight > 0.0)
    facts, schedule = dataset.reader.index, build_schedule(schedule_params)
    config = model_config(
        params.model,
        params.loss,
        schedule_params,
        grid=facts["grid"],
        texture_channels=facts["texture_channels"],
        semantic_channels=facts["semantic_channels"],
        num_classes=len(facts["classes"]),
        feature_dim=facts["feature_dim"],
    )
    network = LightningDiT(config).initialise(generator(stage.params.seed, "diffusion/initialisation"))
    task = DiffusionTask(network, dataset, params.loss, schedule, params.model.class_dropout, stage.params.seed)
    model = DiffusionModel(network, schedule_params, dataset.statistics, facts["classes"])
    grids = SampleGrids(model, stage, params.grid_images)
    trained = train(
        task, params.training, stage.params.seed, stage.work, stage.fingerprint, stage.log, grids, params.grid_every
    )
    trained.copy_to(network)
    model.save(stage.out / "model")
    plot_schedule(schedule.times, stage.out / "schedule.png")
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
            self.classes, self.seeds, GRID_SAMPLER, GuidanceScales()
        )
        network.train(was_training)
        file = self.stage.out / "grids" / f"step-{step:07d}.png"
        file.parent.mkdir(exist_ok=True)
        names = [self.model.classes[index] for index in self.classes]
        save_png(labelled_grid(images, names, self.per_class), file)
        self.stage.log_artifacts(file)
