"""The whole of sfd on a pretended GPU: devices, dtypes and values where there is no GPU to run on."""

import json
import runpy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pretended_cuda import Seen, pretended_cuda
from safetensors.torch import load_file, save_file
from support import Project, draw_images, small_params
from torch import Tensor, nn

from sfd.data.images import ImageBatch
from sfd.data.latents import ChannelStatistics
from sfd.diffusion.guidance import GuidanceScales
from sfd.diffusion.sampling import Sampler
from sfd.diffusion.schedule import OffsetSchedule
from sfd.encoders.judges.judge import load_judge
from sfd.encoders.judges.resnet import ResnetJudge
from sfd.encoders.judges.timm_judge import TimmJudge
from sfd.encoders.texture_vae import KlVae, TrainableAutoencoder
from sfd.generation.images import ImageGenerator
from sfd.generation.model import DiffusionModel
from sfd.models.conditions import ClassCondition
from sfd.models.lightningdit import LightningDiT, LightningDiTConfig
from sfd.names import SAMPLERS, load
from sfd.params import JudgeParams, ScheduleParams, TextureVaeParams, TrainingParams
from sfd.seeding import seeded_initialisation
from sfd.training.loop import log_nothing, train

STAGES = (
    "scan",
    "prepare",
    "encoder",
    "text",
    "texture_vae",
    "judge",
    "features",
    "semantic",
    "latents",
    "schedule",
    "diffusion",
    "sample",
)
STAGES += ("reference", "evaluate")
TRAINED = ("encoder", "texture_vae", "judge", "semantic", "diffusion")


def on_gpu(project: Project, *stages: str) -> dict[str, Seen]:
    """Runs stages in this process, each on a pretended GPU of its own."""
    found = {}
    with project.entered():
        for name in stages:
            with pretended_cuda() as found[name]:
                runpy.run_path(f"stages/{name}.py")
    return found


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """Two classes of 40 images."""
    params = small_params()
    params["data"] |= {"source": "folder", "root": "images", "mirror": True}
    made = Project(tmp_path_factory.mktemp("gpu"), params)
    draw_images(made.folder / "images" / "lying", 40, 1, vertical=False)
    draw_images(made.folder / "images" / "upright", 40, 2, vertical=True)
    yield made


@pytest.fixture(scope="module")
def seen(project: Project) -> dict[str, Seen]:
    """What all stages did on the GPU."""
    return on_gpu(project, *STAGES)


def change(project: Project, **sections: dict[str, Any]) -> None:
    """Changes keys of sections, and of sections in them."""
    tree = yaml.safe_load((project.folder / "params.yaml").read_text())
    for section, changes in sections.items():
        for key, value in changes.items():
            inner = tree[section].get(key)
            tree[section][key] = inner | value if isinstance(inner, dict) and isinstance(value, dict) else value
    project.write_params(tree)


@pytest.mark.long
def test_every_stage_runs_on_the_gpu_and_trainings_multiply_in_bf16(project: Project, seen: dict[str, Seen]) -> None:
    for name in TRAINED:
        assert "bfloat16" in seen[name].dtypes(), name
    idle = {"schedule", "text"}  # the one is given here, the other has no words
    for name in set(STAGES[2:]) - idle:
        assert seen[name].bytes_to_device > 0, name
        assert seen[name].products, name
    metrics = json.loads((project.result("evaluate") / "metrics.json").read_text())
    assert metrics["num_images"] == 12 and 0.0 <= metrics["class_accuracy"] <= 1.0
    weights = load_file(project.result("diffusion") / "model" / "model.safetensors")
    assert all(value.isfinite().all() for value in weights.values())


@pytest.mark.long
@pytest.mark.parametrize("text_attention", ["cross", "in_context"])
def test_a_model_of_words_is_trained_and_samples_are_drawn_on_the_gpu(
    project: Project, tmp_path: Path, text_attention: str
) -> None:
    told = project.copy_to(tmp_path / "told")
    for name in ("lying", "upright"):
        for file in (told.folder / "images" / name).glob("*.png"):
            file.with_suffix(".txt").write_text(f"a {name} stripe number {file.stem[-1]}")
    training = {"num_steps": 20, "batch_size": 16, "learning_rate": 0.003}
    tree = yaml.safe_load((told.folder / "params.yaml").read_text())
    tree["text"] |= {"width": 16, "depth": 1, "num_heads": 2, "vocabulary": 300, "max_tokens": 8}
    tree["text"]["training"] = tree["encoder"]["training"] | training
    tree["data"]["captions"] = "auto"
    tree["diffusion"]["model"] |= {"condition": "text", "text_attention": text_attention}
    tree["register"]["gates"] = {}
    told.write_params(tree)
    found = on_gpu(told, *STAGES)
    for name in ("text", "diffusion", "sample"):
        assert found[name].bytes_to_device > 0 and found[name].products, name
    for name in ("text", "diffusion"):
        assert "bfloat16" in found[name].dtypes(), name
    weights = load_file(told.result("diffusion") / "model" / "model.safetensors")
    assert all(value.isfinite().all() for value in weights.values())


@pytest.mark.long
@pytest.mark.usefixtures("seen")
def test_fine_tunes_and_every_other_kind_of_network_run_on_the_gpu(project: Project) -> None:
    folder = project.folder / "first"
    shutil.copytree(project.result("diffusion") / "model", folder)
    change(project, diffusion={"init_from": "first", "training": {"warmup_steps": 1}}, sample={"sampler": "dopri5"})
    on_gpu(project, "diffusion")
    guidance = {"kind": "autoguidance", "weak_model": "first"}
    change(project, diffusion={"lora": {"rank": 2, "alpha": 2}}, sample={"guidance": guidance})
    on_gpu(project, "diffusion", "sample")
    pca = {"source": "pca", "block_size": 4, "latent_channels": 6, "residual_width": 8}
    change(
        project,
        texture_vae=pca,
        semantic={"kind": "pca", "training": None},
        diffusion={"init_from": None, "lora": None},
    )
    change(project, sample={"sampler": "heun", "guidance": {"kind": "cfg", "weak_model": None}})
    change(project, judges={}, diffusion={"loss": {"repa_target": "decoded"}}, latents={"store_features": False})
    on_gpu(project, "texture_vae", "semantic", "latents", "schedule", "diffusion", "sample", "reference", "evaluate")


# --- sampling ---


def network(seed: int, depth: int = 2) -> LightningDiT:
    """Random weights, none of them zero."""
    config = LightningDiTConfig(4, 6, 32, depth, 2, ClassCondition(("a", "b")), semantic_channels=2, two_times=True)
    made, random = LightningDiT(config), torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        if parameter.requires_grad:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=random)
    return made.eval().requires_grad_(False)


def drawn(sampler: str, guidance: str, rule: str) -> Tensor:
    """Three images of a model with random weights, on the device that is there."""
    fields = {"source": "train", "channels": (8, 8), "layers_per_block": 1, "latent_channels": 4}
    decoder = KlVae(TrainableAutoencoder(TextureVaeParams.model_validate(fields), seed=0).autoencoder).eval()
    statistics = ChannelStatistics(torch.arange(6.0) / 10, torch.full((6,), 0.5))
    model = DiffusionModel(network(0), ScheduleParams.model_validate({"tau": 0.3}), statistics)
    images = ImageGenerator(model, decoder, weak=network(9, depth=1) if guidance == "autoguidance" else None)
    scales = GuidanceScales() if guidance == "none" else GuidanceScales(1.5, 2.0, start_texture=0.1, end_semantic=0.9)
    solver = Sampler(load(SAMPLERS, sampler), num_steps=4, published_rule=rule == "published")
    return images([0, 1, 1], [5, 6, 7], solver, scales, OffsetSchedule(0.3))


MANY_EVALUATIONS = ("dopri5", "cfg", "published")


@pytest.mark.parametrize(
    ("sampler", "guidance", "rule"),
    [
        pytest.param(*drawing, id="-".join(drawing), marks=[pytest.mark.long] if drawing == MANY_EVALUATIONS else [])
        for sampler in SAMPLERS
        for way in (("none", "exact"), ("cfg", "published"), ("autoguidance", "exact"))
        for drawing in [(sampler, *way)]
    ],
)
def test_every_sampler_draws_the_images_of_the_cpu(sampler: str, guidance: str, rule: str) -> None:
    expected = drawn(sampler, guidance, rule)
    with pretended_cuda() as seen:
        found = drawn(sampler, guidance, rule)
    assert not found.is_cuda and seen.bytes_to_host > 0
    assert (found.int() - expected.int()).abs().max() <= 1


# --- judges ---


def resnet(folder: Path) -> None:
    params = JudgeParams.model_validate({"kind": "resnet", "source": "train", "name": "own", "channels": (8, 8, 8, 16)})
    ResnetJudge.save_trained(folder, params, ResnetJudge.trainable(params, 3, seed=0), 3, classes=3)


def timm_vit(folder: Path) -> None:
    import timm

    with seeded_initialisation(0, "test"):
        save_file(timm.create_model("test_vit").state_dict(), folder.with_suffix(".safetensors"))
    fields = {"kind": "timm", "source": "file", "name": "other", "model": "test_vit", "input_size": 32}
    TimmJudge.save_pretrained(
        folder, JudgeParams.model_validate(fields | {"file": str(folder.with_suffix(".safetensors"))})
    )
    TimmJudge.fit_classes(folder, torch.randn(12, 64), torch.arange(12) % 3, 3)


@pytest.mark.parametrize("make", [resnet, timm_vit])
def test_a_judge_sees_on_the_gpu_what_it_sees_on_the_cpu(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "judge")
    images = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    expected = load_judge(tmp_path / "judge")(images)
    with pretended_cuda():
        found = load_judge(tmp_path / "judge").to("cuda:0")(images.to("cuda:0"))
        features, logits = found[0].cpu(), None if found[1] is None else found[1].cpu()
    torch.testing.assert_close(features, expected[0], rtol=1e-4, atol=1e-5)
    assert logits is not None and expected[1] is not None
    torch.testing.assert_close(logits, expected[1], rtol=1e-4, atol=1e-5)


# --- training ---


class Line:
    """A network that learns to see nothing in images, as far as the loop must know a task."""

    purpose, weights = "line", {"mse": 1.0}

    def __init__(self) -> None:
        with seeded_initialisation(0, "test"):
            self.network = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.SiLU(), nn.Linear(8, 2))
        self.dataset = self

    def __len__(self) -> int:
        return 20

    def __getitems__(self, indices: list[int]) -> ImageBatch:
        random = torch.Generator().manual_seed(indices[0])
        return ImageBatch(
            torch.randint(256, (len(indices), 3, 2, 2), dtype=torch.uint8, generator=random), torch.tensor(indices) % 2
        )

    def noise(self, step: int, batch_size: int, device: torch.device) -> Tensor:
        return torch.randn(batch_size, 2, generator=torch.Generator(device).manual_seed(step), device=device)

    def losses(self, network: nn.Module, data: ImageBatch, noise: Tensor) -> dict[str, Tensor]:
        return {"mse": (network(data.images.float() / 255) - noise).square().mean()}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_training_in_float32_ends_with_the_weights_of_the_cpu(accumulation: int, tmp_path: Path) -> None:
    fields = {"num_steps": 6, "batch_size": 4, "precision": "fp32", "max_grad_norm": 1.0, "ema_decay": 0.5}
    params = TrainingParams.model_validate(fields | {"accumulation_steps": accumulation})
    (tmp_path / "cpu").mkdir()
    (tmp_path / "gpu").mkdir()
    expected = train(Line(), params, 0, tmp_path / "cpu", "f", log_nothing)  # type: ignore[arg-type]
    with pretended_cuda() as seen:
        found = train(Line(), params, 0, tmp_path / "gpu", "f", log_nothing)  # type: ignore[arg-type]
    assert seen.dtypes() == {"float32"}
    for mine, theirs in zip(found.network.parameters(), expected.network.parameters(), strict=True):
        assert torch.equal(mine, theirs)
