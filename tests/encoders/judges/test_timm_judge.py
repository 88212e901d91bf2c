"""A network of timm as the judge, with a linear classifier that is fitted to the classes."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import interpolate

from sfd.data.prepare import prepare
from sfd.data.prepared import Prepared
from sfd.encoders.judges.judge import load_judge
from sfd.encoders.judges.timm_judge import TimmJudge, fit_linear
from sfd.encoders.timm_networks import describe, encoder_network, judge_network
from sfd.errors import UserError
from sfd.evaluation.fidelity import FeatureStatistics
from sfd.network_files import WEIGHTS
from sfd.params import DataParams, EncoderParams, JudgeParams, QualityParams, RuntimeParams
from sfd.pipeline.judge import make_judge
from sfd.seeding import seeded_initialisation
from sfd.workspace import Workspace

IMAGES = torch.randint(0, 256, (3, 3, 40, 40), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
FAMILIES = ["test_resnet", "test_convnext", "test_efficientnet", "test_vit", "test_mambaout"]


def judge_params(file: Path, model: str = "test_resnet", **changes: object) -> JudgeParams:
    fields = {"kind": "timm", "source": "file", "name": "other", "model": model, "file": str(file), "input_size": 32}
    return JudgeParams.model_validate(fields | changes)


def write_weights(folder: Path, name: str = "test_resnet") -> Path:
    with seeded_initialisation(0, name):
        save_file(timm.create_model(name).state_dict(), folder / f"{name}.safetensors")
    return folder / f"{name}.safetensors"


@pytest.mark.parametrize("model", FAMILIES)
def test_features_are_what_the_networks_own_classifier_sees(model: str, tmp_path: Path) -> None:
    TimmJudge.save_pretrained(tmp_path / "model", judge_params(write_weights(tmp_path, model), model))
    judge = load_judge(tmp_path / "model")
    features, logits = judge(IMAGES)
    assert features.shape == (3, judge.num_features) and logits is None and not judge.knows_classes
    with seeded_initialisation(0, model):
        network = timm.create_model(model).eval()
    mean, std = (torch.tensor(network.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    pixels = (IMAGES.float() / 255.0 - mean) / std
    shrunk = interpolate(pixels, size=(32, 32), mode="bicubic", antialias=True)
    with torch.no_grad():
        if model == "test_vit":  # built for one size
            network.set_input_size(img_size=(32, 32))
        torch.testing.assert_close(network.get_classifier()(features), network(shrunk), rtol=1e-4, atol=1e-5)


def test_the_features_of_a_clip_are_its_projected_embeddings_and_the_encoder_keeps_no_projection(
    tmp_path: Path,
) -> None:
    name = "vit_xsmall_patch16_clip_224.tinyclip_yfcc15m"
    file = write_weights(tmp_path, name)
    TimmJudge.save_pretrained(tmp_path / "model", judge_params(file, name))
    judge = load_judge(tmp_path / "model")
    assert judge.num_features == timm.get_pretrained_cfg(name).num_classes == 512
    with seeded_initialisation(0, name):
        network = timm.create_model(name).eval()
    network.set_input_size(img_size=(32, 32))
    mean, std = (torch.tensor(network.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    shrunk = interpolate((IMAGES.float() / 255.0 - mean) / std, size=(32, 32), mode="bicubic", antialias=True)
    with torch.no_grad():
        torch.testing.assert_close(judge(IMAGES)[0], network(shrunk), rtol=1e-4, atol=1e-5)
    encoder = EncoderParams.model_validate(
        {"source": "file", "name": name, "file": str(file), "input_size": 32, "patch_size": 16}
    )
    assert "projection" not in describe(encoder_network(encoder))
    tuned = judge_params(file, "vit_base_patch16_clip_224.openai_ft_in1k")
    assert "projection" not in describe(judge_network(tuned)), "its head is a classifier of ImageNet"


def test_fitted_classes_are_logits_of_the_judge_in_every_run(tmp_path: Path) -> None:
    TimmJudge.save_pretrained(tmp_path / "first", judge_params(write_weights(tmp_path)))
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    random = torch.Generator().manual_seed(0)
    before, labels = load_judge(tmp_path / "first"), torch.arange(40) % 4
    features = torch.randn(40, before.num_features, generator=random) + labels[:, None]
    for folder in ("first", "second"):
        TimmJudge.fit_classes(tmp_path / folder, features, labels, 4)
    judge = load_judge(tmp_path / "first")
    seen, logits = judge(IMAGES)
    assert torch.equal(seen, before(IMAGES)[0]) and logits is not None and logits.shape == (3, 4)
    assert judge.classes == 4 and judge.digest != before.digest
    assert (tmp_path / "first" / WEIGHTS).read_bytes() == (tmp_path / "second" / WEIGHTS).read_bytes()


def clouds(counts: list[int], random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Overlapping classes along the first feature, of very different scale from the others; one feature never changes."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    features = torch.randn(len(labels), 8, generator=random)
    features[:, 0] += 2.5 * labels
    return torch.cat([features * torch.logspace(-3, 3, 8), torch.full((len(labels), 1), 7.0)], dim=1), labels


@pytest.mark.parametrize("classes", [2, 3])
def test_a_rare_class_weighs_as_much_as_a_common_one(classes: int) -> None:
    random = torch.Generator().manual_seed(0)
    head = fit_linear(*clouds([1000, 50, 50][:classes], random))
    features, labels = clouds([500] * classes, random)
    hits = head(features).argmax(dim=1) == labels
    shares = [float(hits[labels == index].float().mean()) for index in range(classes)]
    assert min(shares) > 0.6 and abs(shares[0] - shares[-1]) < 0.15


def test_fewer_images_than_features_still_have_a_finite_distance() -> None:
    random = torch.Generator().manual_seed(0)
    sets = [FeatureStatistics.of(torch.randn(30, 200, generator=random).relu() + shift) for shift in (0.0, 0.0, 1.0)]
    same, near, far = (sets[0].distance(other) for other in sets)
    assert abs(same) < 0.01 * near and 0.0 < near < far < float("inf")


def test_a_size_that_the_network_cannot_take_is_refused(tmp_path: Path) -> None:
    file = write_weights(tmp_path, "test_vit")
    with pytest.raises(
        UserError, match=r"judges\[other\].file .*test_vit.safetensors could not be loaded as test_vit|input_size 10"
    ):
        TimmJudge.save_pretrained(tmp_path / "model", judge_params(file, "test_vit", input_size=10))


def test_an_unknown_network_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"judges\[other\].model test_resnets is no network of timm; nearest: `test_resnet`"
    ):
        TimmJudge.save_pretrained(tmp_path / "model", judge_params(tmp_path, "test_resnets"))


def write_images(root: Path, colours: dict[str, tuple[int, int, int]]) -> Path:
    for name, colour in colours.items():
        (root / name).mkdir(parents=True)
        for shade in range(5):
            Image.new("RGB", (8, 8), tuple(max(value - 9 * shade, 0) for value in colour)).save(
                root / name / f"{shade}.png"
            )
    return root


def run_stage(
    tmp_path: Path, params: JudgeParams, encoder: EncoderParams, colours: dict[str, Any], number: int = 0
) -> dict[str, float]:
    data_params = DataParams(source="folder", root=str(write_images(tmp_path / "images", colours)), image_size=8)
    prepare(data_params, 0, tmp_path / "prepare")
    logged: dict[str, float] = {}
    (tmp_path / "out").mkdir()
    stage: Any = SimpleNamespace(
        name="judge",
        params=SimpleNamespace(
            seed=0, runtime=RuntimeParams(), quality=QualityParams(), encoder=encoder, is_encoder=lambda _: False
        ),
        out=tmp_path / "out",
        workspace=Workspace(tmp_path),
        log=lambda metrics, *_: logged.update(metrics),
    )
    make_judge(params, number, Prepared.load(data_params, tmp_path / "prepare"), stage)
    return logged


NO_ENCODER = EncoderParams(source="none")
COLOURS = {"green": (0, 200, 0), "red": (200, 0, 0), "white": (250, 250, 250)}


def test_the_stage_fits_the_classes_of_the_training_images_and_scores_held_out_ones(tmp_path: Path) -> None:
    logged = run_stage(tmp_path, judge_params(write_weights(tmp_path)), NO_ENCODER, COLOURS)
    judge = load_judge(tmp_path / "out/model")
    assert (judge.kind, judge.name, judge.classes) == ("timm", "other", 3)
    assert logged == {"heldout_accuracy": 1.0, "classes": 3}


def test_images_of_one_class_leave_the_judge_without_logits(tmp_path: Path) -> None:
    logged = run_stage(tmp_path, judge_params(write_weights(tmp_path)), NO_ENCODER, {"red": (200, 0, 0)})
    assert load_judge(tmp_path / "out/model").classes is None and logged == {}


def test_a_copy_of_the_encoders_weights_is_no_judge(tmp_path: Path) -> None:
    file = write_weights(tmp_path)
    copy = shutil.copy(file, tmp_path / "copy.safetensors")
    encoder = EncoderParams.model_validate({"source": "file", "name": "test_resnet", "file": str(copy)})
    with pytest.raises(
        UserError, match="judges.0.model test_resnet has the weights of encoder.name test_resnet: choose"
    ):
        run_stage(tmp_path, judge_params(file), encoder, COLOURS)
    with pytest.raises(
        UserError, match="judges.1.model test_resnet has the weights .* write source, model and file as"
    ):
        run_stage(tmp_path / "second", judge_params(file), encoder, COLOURS, number=1)


def test_no_classes_are_fitted_to_a_further_judge(tmp_path: Path) -> None:
    logged = run_stage(tmp_path, judge_params(write_weights(tmp_path)), NO_ENCODER, COLOURS, number=1)
    assert load_judge(tmp_path / "out/model").classes is None and logged == {}
