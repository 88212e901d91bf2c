"""The judge: a trained ResNet, or Inception-v3 from a file in torch-fidelity's layout."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from sfd import names
from sfd.data.manifest import TRAIN
from sfd.data.prepare import prepare
from sfd.data.prepared import Prepared
from sfd.encoders.judges.inception import InceptionJudge
from sfd.encoders.judges.judge import Judge, load_judge
from sfd.encoders.judges.resnet import ResnetJudge
from sfd.errors import UserError
from sfd.evaluation.fidelity import class_accuracy, extract
from sfd.names import Entry
from sfd.network_files import load_weights, read_config, save_network, weights_digest, write_config
from sfd.params import DataParams, JudgeParams, QualityParams, RuntimeParams
from sfd.pipeline.judge import make_judge
from sfd.seeding import seeded_initialisation
from sfd.workspace import Workspace

IMAGES = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
PARAMS = JudgeParams.model_validate({"kind": "resnet", "source": "train", "name": "tiny", "channels": (8, 8, 8, 16)})


def inception_params(file: Path) -> JudgeParams:
    return JudgeParams.model_validate({"kind": "inception", "source": "file", "name": "inception", "file": str(file)})


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inception-v3's layout with random weights, which carry signals of the size of 1 through all layers."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    file = tmp_path_factory.mktemp("inception") / "weights.pth"
    with seeded_initialisation(0, "test/inception"):
        with patch.object(FeatureExtractorInceptionV3, "load_state_dict"), patch("torch.load"):
            network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path="any")
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
    torch.save(network.state_dict(), file)
    return file


def test_a_trained_judge_keeps_features_logits_and_digest(tmp_path: Path) -> None:
    network = ResnetJudge.trainable(PARAMS, 10, seed=0).eval()
    ResnetJudge.save_trained(tmp_path, PARAMS, network, 10, classes=10)
    first, second = load_judge(tmp_path), load_judge(tmp_path)
    features, logits = first(IMAGES)
    assert features.shape == (3, 16) and logits is not None and logits.shape == (3, 10)
    assert torch.allclose(logits, network(IMAGES.float() / 127.5 - 1.0), atol=1e-6)
    assert first.digest == second.digest and len(first.digest) == 64 and first.name == "tiny"


def test_a_judge_without_class_labels_has_no_logits(tmp_path: Path) -> None:
    ResnetJudge.save_trained(tmp_path, PARAMS, ResnetJudge.trainable(PARAMS, 4, seed=0), 4, classes=None)
    assert load_judge(tmp_path)(IMAGES)[1] is None


def test_inception_loads_from_its_file_and_speaks_of_no_class_of_ours(inception_file: Path, tmp_path: Path) -> None:
    InceptionJudge.save_pretrained(tmp_path / "model", inception_params(inception_file))
    judge = load_judge(tmp_path / "model")
    assert isinstance(judge, InceptionJudge) and judge.classes is None and judge.name == "inception"
    features, logits = judge(IMAGES)
    assert features.shape == (3, 2048) and logits is not None and logits.shape == (3, 1008)


def test_spatial_features_are_those_of_the_published_graph_channels_last(inception_file: Path, tmp_path: Path) -> None:
    """Against the network taken apart: block `mixed_6` of TensorFlow's graph is the fourth of 17x17, its `conv` the 1x1 one with ReLU."""
    InceptionJudge.save_pretrained(tmp_path / "model", inception_params(inception_file))
    judge = load_judge(tmp_path / "model")
    assert isinstance(judge, InceptionJudge)
    features, logits, spatial = judge.with_spatial(IMAGES)
    plain_features, plain_logits = judge(IMAGES)
    assert torch.equal(features, plain_features) and plain_logits is not None and torch.equal(logits, plain_logits)

    net, size = judge.inception, judge.inception.INPUT_IMAGE_SIZE
    maps = (
        interpolate_bilinear_2d_like_tensorflow1x(IMAGES.float(), size=(size, size), align_corners=False) - 128
    ) / 128
    stem = [net.Conv2d_1a_3x3, net.Conv2d_2a_3x3, net.Conv2d_2b_3x3, net.MaxPool_1]
    stem += [net.Conv2d_3b_1x1, net.Conv2d_4a_3x3, net.MaxPool_2]
    for block in [*stem, net.Mixed_5b, net.Mixed_5c, net.Mixed_5d, net.Mixed_6a, net.Mixed_6b, net.Mixed_6c]:
        maps = block(maps)
    weights = net.Mixed_6d.branch1x1
    norm = weights.bn
    convolved = torch.einsum("bchw,oc->bhwo", maps, weights.conv.weight[:, :, 0, 0])
    normed = (convolved - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    expected = normed.clamp_min(0.0)[..., :7].reshape(len(IMAGES), -1)
    assert spatial.shape == (3, 2023) == (3, judge.num_spatial_features)
    torch.testing.assert_close(spatial, expected, rtol=1e-4, atol=1e-5)
    assert 0.05 < float((spatial == 0).float().mean()) < 0.95, "the ReLU must matter, or this test could not see it"
    assert spatial.max() > 0.1, "far above the tolerance"


def test_a_trained_judge_has_no_spatial_features(tmp_path: Path) -> None:
    ResnetJudge.save_trained(tmp_path, PARAMS, ResnetJudge.trainable(PARAMS, 10, seed=0).eval(), 10, classes=10)
    judge = load_judge(tmp_path)
    assert judge.num_spatial_features == 0
    with pytest.raises(NotImplementedError):
        judge.with_spatial(IMAGES)


def test_a_file_that_is_not_inception_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(1)}, file)
    with pytest.raises(UserError, match="6726825d.pth"):
        InceptionJudge.save_pretrained(tmp_path / "model", inception_params(file))
    assert not list((tmp_path / "model").iterdir())


def test_a_file_that_needs_unpickling_of_objects_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "pickled.pth"
    torch.save({"path": Path("x")}, file)
    with pytest.raises(UserError, match=r"could not be loaded"):
        InceptionJudge.save_pretrained(tmp_path / "model", inception_params(file))


class MeanColourJudge(Judge):
    """Features are the mean colour; a linear layer on them tells classes apart."""

    kind = "colour"

    def __init__(self, name: str, digest: str, classes: int) -> None:
        super().__init__()
        self.name, self.digest, self.classes, self.num_features = name, digest, classes, 3
        self.layers = self.trainable(PARAMS, classes, 0)

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pixels = images.float() / 127.5 - 1.0
        return pixels.mean(dim=(2, 3)), self.layers(pixels)

    @classmethod
    def trainable(cls, _params: JudgeParams, num_outputs: int, _seed: int) -> nn.Module:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_outputs))

    @classmethod
    def save_trained(
        cls, folder: Path, params: JudgeParams, network: nn.Module, _num_outputs: int, classes: int | None
    ) -> None:
        save_network(folder, network, {"kind": cls.kind, "name": params.name, "classes": classes})

    @classmethod
    def load(cls, folder: Path) -> "MeanColourJudge":
        config = read_config(folder)
        judge = cls(config["name"], weights_digest(folder), config["classes"])
        load_weights(folder, judge.layers)
        return judge


def write_colours(root: Path) -> Path:
    for number, (name, colour) in enumerate((("green", (0, 200, 0)), ("red", (200, 0, 0)))):
        (root / name).mkdir(parents=True)
        for shade in range(5):
            pixels = Image.new("RGB", (8, 8), tuple(max(value - 10 * shade - number, 0) for value in colour))
            pixels.save(root / name / f"{shade}.png")
    return root


def test_a_new_kind_of_judge_is_made_loaded_and_scores_without_touching_another_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(names.JUDGES, "colour", Entry(f"{__name__}:MeanColourJudge", "the mean colour"))
    data_params = DataParams(source="folder", root=str(write_colours(tmp_path / "images")), image_size=8)
    prepare(data_params, 0, tmp_path / "prepare")
    training = {"num_steps": 30, "batch_size": 4, "learning_rate": 0.1, "ema_decay": 0.0}
    params = JudgeParams.model_validate({"kind": "colour", "source": "train", "name": "toy", "training": training})
    logged: dict[str, float] = {}
    (tmp_path / "out").mkdir()
    stage: Any = SimpleNamespace(
        name="judge",
        params=SimpleNamespace(seed=0, runtime=RuntimeParams(), quality=QualityParams()),
        work=tmp_path,
        finished=tmp_path / "finished",
        out=tmp_path / "out",
        workspace=Workspace(tmp_path),
        facts={"stage": "judge", "params": {"judge": params.model_dump(mode="json")}},
        fingerprint="",
        mark="",
        log=lambda metrics, *_: logged.update(metrics),
        log_artifacts=lambda *_: None,
    )
    data = Prepared.load(data_params, tmp_path / "prepare")
    make_judge(params, 0, data, stage)
    judge = load_judge(tmp_path / "out" / "model")
    assert (judge.kind, judge.name, judge.classes, len(judge.digest)) == ("colour", "toy", 2, 64)
    assert logged["heldout_accuracy"] == 1.0
    seen = extract(judge, [data.images(TRAIN).__getitems__([0, 7]).images])
    assert seen.features.shape == (2, 3) and seen.spatial is None
    assert class_accuracy(seen, torch.tensor([0, 1]), judge) == 1.0


def test_a_folder_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    write_config(tmp_path, {"kind": "resnets"})
    with pytest.raises(
        UserError, match="kind is 'resnets', but must be one of resnet, timm, inception, clip; rerun the stage"
    ):
        load_judge(tmp_path)
