"""The examples of docs/extending.md run as they stand there: each file is made a module, each entry is put into its table."""

import csv
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torchvision
from docs_commands import blocks
from PIL import Image
from support import REPOSITORY
from torch import Tensor, nn

from sfd import names
from sfd.data.latents import ChannelStatistics
from sfd.data.listing import write_listing
from sfd.data.manifest import TRAIN
from sfd.data.prepare import prepare
from sfd.data.prepared import Prepared
from sfd.diffusion.guidance import GuidanceScales
from sfd.diffusion.loss import Predicted
from sfd.diffusion.schedule import OffsetSchedule
from sfd.encoders.judges.judge import judge_class, load_judge
from sfd.encoders.semantic.encoder import load_semantic, save_semantic, semantic_class
from sfd.encoders.texture_vae import KlVae, load_texture_vae
from sfd.encoders.tokenizers.tokenizer import Tokenizer
from sfd.errors import UserError
from sfd.generation.images import ImageGenerator, build_sampler
from sfd.generation.model import DiffusionModel
from sfd.params import (
    DataParams,
    DiffusionParams,
    JudgeParams,
    LossParams,
    SampleParams,
    ScheduleParams,
    SemanticParams,
    TextureVaeParams,
)
from sfd.precision import Inference
from sfd.training.backbone import backbone_config, condition_of, initialised_backbone

TABLES = (
    "SAMPLERS",
    "LOSS_TERMS",
    "BACKBONES",
    "CONDITIONS",
    "DATA_SOURCES",
    "TOKENIZERS",
    "SEMANTIC_ENCODERS",
    "JUDGES",
)
ENTRY = re.compile(r"(\w+)\[\"(\w+)\"\] = ")


@pytest.fixture(scope="module", autouse=True)
def examples() -> Iterator[set[str]]:
    """Every file of the page as the module that its entry names; gives the tables that have an example."""
    texts = [block.text for block in blocks(REPOSITORY / "docs" / "extending.md", "python")]
    found = [(text, entry) for text, entry in zip(texts, texts[1:], strict=False) if ENTRY.match(entry)]
    with pytest.MonkeyPatch.context() as patch:
        for text, entry in found:
            table, name = ENTRY.match(entry).groups()
            patch.setitem(getattr(names, table), name, None)  # so that it is taken out again
            exec(entry, vars(names))
            module = ModuleType(getattr(names, table)[name].path.partition(":")[0])
            patch.setitem(sys.modules, module.__name__, module)
            exec(compile(text, f"{module.__name__} in extending.md", "exec"), vars(module))
        yield {ENTRY.match(entry)[1] for _, entry in found}


def test_every_table_has_an_example(examples: set[str]) -> None:
    assert examples == set(TABLES)


def test_the_sampler_is_of_second_order() -> None:
    def error(sampler: str, num_steps: int) -> float:
        params = SampleParams.model_validate({"sampler": sampler, "num_steps": num_steps, "guidance": {}})
        x = build_sampler(params)(lambda x, *_: x, torch.ones(1, 2, 1, 1).double(), OffsetSchedule(0.3), 1)
        return float((x - torch.e).abs().max())

    assert error("midpoint", 52) < error("midpoint", 26) / 3.0 and error("midpoint", 26) < error("euler", 26) / 10.0


def test_the_loss_term_gives_one_number_per_image_and_has_weight_one() -> None:
    velocity = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    ones = torch.ones(3)
    options = LossParams()
    term = names.load(names.LOSS_TERMS, "absolute")(options)
    assert torch.equal(term(Predicted(velocity, velocity + ones[:, None, None, None], 2, (ones, ones))), ones)
    assert options.weights()["absolute"] == 1.0 and term.needs_features is False


class Pixels(KlVae):
    """Shows the first three channels of a latent."""

    def __init__(self) -> None:
        super().__init__(nn.Identity())

    def decode(self, latent: Tensor) -> Tensor:
        return (latent[:, :3].clamp(-1, 1) * 127 + 128).to(torch.uint8)


def test_backbone_and_condition_are_built_saved_loaded_and_sampled(tmp_path: Path) -> None:
    model = {"size": "tiny", "backbone": "convnet", "condition": "coarse"}
    fields = {"model": model, "loss": {"repa_weight": 0.0}, "training": {"num_steps": 1}}
    params = DiffusionParams.model_validate(fields)
    condition = condition_of(params, ["cat-siamese", "dog-beagle", "dog-poodle"])
    assert condition.choices == ["cat", "dog"] and condition.of_images(torch.tensor([2, 0, 1])).tolist() == [1, 0, 1]
    assert condition.columns([1, 0]) == {"group": ["dog", "cat"]}
    shape: dict[str, Any] = {"grid": 4, "texture_channels": 4, "semantic_channels": 2, "feature_dim": 8}
    network = initialised_backbone(backbone_config(params, ScheduleParams(), condition, **shape), 0)
    assert not network.output_layer().weight.any()
    nn.init.normal_(network.output_layer().weight, generator=torch.Generator().manual_seed(0))
    made = DiffusionModel(network, ScheduleParams(), ChannelStatistics(torch.zeros(6), torch.ones(6)))
    made.save(tmp_path)
    loaded = DiffusionModel.load(tmp_path)
    assert loaded.network.config == network.config and loaded.condition == condition
    settings = SampleParams.model_validate({"sampler": "midpoint", "num_steps": 2, "guidance": {}})
    images = [
        ImageGenerator(each, Pixels(), inference=Inference(torch.device("cpu"))) for each in (replace(made), loaded)
    ]
    drawn = [each([0, 1], [5, 5], build_sampler(settings), GuidanceScales(2.0, 2.0)) for each in images]
    assert torch.equal(*drawn) and not torch.equal(drawn[0][0], drawn[0][1])
    aligned = DiffusionParams.model_validate(fields | {"loss": {"repa_weight": 1.0}})
    with pytest.raises(UserError, match="set diffusion.loss.repa_weight to 0"):
        backbone_config(aligned, ScheduleParams(), condition, **shape)


def test_the_data_source_is_listed_prepared_and_read_and_refuses_what_it_must(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    (root / "all").mkdir(parents=True)
    rows = [(f"all/{number}.png", "red" if number % 2 else "green") for number in range(10)]
    for number, (path, label) in enumerate(rows):
        Image.new("RGB", (8, 8), (200 - number, 0, 0) if label == "red" else (0, 200 - number, 0)).save(root / path)
    with (root / "images.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows, ("all/none.png", "red")])
    fields = {"source": "csv", "root": str(root / "images.csv"), "image_size": 8, "max_rejected_fraction": 0.2}
    params = DataParams.model_validate(fields)
    write_listing(params, tmp_path / "listing.json")
    summary = prepare(params, 0, tmp_path / "prepare")
    assert (summary.classes, summary.num_images, summary.num_rejected) == (["green", "red"], 10, 1)
    images, classes = Prepared.load(params, tmp_path / "prepare").images(TRAIN).__getitems__([0, 7])
    assert classes.tolist() == [0, 1] and images[0, 1].min() > 150 and images[1, 0].min() > 150
    (root / "images.csv").write_text("file,class\na.png,red\n")
    with pytest.raises(UserError, match="is not a CSV file with columns `path` and `label`"):
        prepare(params, 0, tmp_path / "again")


def test_the_tokenizer_is_built_saved_and_loaded(tmp_path: Path) -> None:
    params = TextureVaeParams(source="mean_colour", block_size=4)
    made: Tokenizer = names.load(names.TOKENIZERS, params.source).build(params)
    made.save(tmp_path)
    loaded = load_texture_vae(tmp_path)
    images = torch.tensor([0, 200], dtype=torch.uint8).repeat_interleave(48).view(2, 3, 4, 4)
    latent = loaded.encode(images, torch.empty(0))
    assert latent.shape == loaded.latent_shape(2, 4) == (2, 3, 1, 1) and torch.equal(loaded.decode(latent), images)


def test_the_semantic_encoder_is_built_fitted_saved_and_loaded(tmp_path: Path) -> None:
    params = SemanticParams(kind="first_channels", latent_channels=2)
    features = torch.randn(6, 4, 5, generator=torch.Generator().manual_seed(0)) + 3.0
    made = semantic_class(params.kind).build(params, 5, 0)
    made.fit(features.split(4))
    save_semantic(tmp_path, made)
    loaded = load_semantic(tmp_path)
    assert loaded.latent_channels == 2
    torch.testing.assert_close(loaded.encode(features), (features - features.mean(dim=(0, 1)))[..., :2])
    torch.testing.assert_close(loaded.decode(loaded.encode(features))[..., :2], features[..., :2])


def test_the_judge_is_made_loaded_and_gives_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = torchvision.models.resnet18(weights=None).state_dict()
    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", lambda *_, **__: weights)
    fields = {"kind": "torchvision", "source": "pretrained", "name": "photos", "model": "resnet18"}
    params = JudgeParams.model_validate(fields)
    judge_class(params.kind).save_pretrained(tmp_path, params)
    judge = load_judge(tmp_path)
    features, logits = judge(torch.full((2, 3, 32, 32), 99, dtype=torch.uint8))
    assert features.shape == (2, judge.num_features) and bool(features.isfinite().all()) and logits is None
    assert (judge.name, judge.knows_classes, len(judge.digest)) == ("photos", False, 64)
