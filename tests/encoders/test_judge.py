"""The judge: a trained ResNet, or Inception-v3 from a file in torch-fidelity's layout."""

from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from sfd.encoders.judge import InceptionJudge, build_trainable, load_judge, save_inception, save_trained
from sfd.errors import UserError
from sfd.params import JudgeParams

IMAGES = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
PARAMS = JudgeParams.model_validate({"source": "train", "name": "tiny", "channels": (8, 8, 8, 16)})


def inception_params(file: Path) -> JudgeParams:
    return JudgeParams.model_validate({"source": "file", "name": "inception", "file": str(file)})


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inception-v3's layout with random weights."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    file = tmp_path_factory.mktemp("inception") / "weights.pth"
    with patch.object(FeatureExtractorInceptionV3, "load_state_dict"), patch("torch.load"):
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path="any")
    torch.save(network.state_dict(), file)
    return file


def test_a_trained_judge_keeps_features_logits_and_digest(tmp_path: Path) -> None:
    network = build_trainable(PARAMS, 10, seed=0).eval()
    save_trained(tmp_path, PARAMS, network, 10, classes=10)
    first, second = load_judge(tmp_path), load_judge(tmp_path)
    features, logits = first(IMAGES)
    assert features.shape == (3, 16) and logits is not None and logits.shape == (3, 10)
    assert torch.allclose(logits, network(IMAGES.float() / 127.5 - 1.0), atol=1e-6)
    assert first.digest == second.digest and len(first.digest) == 64 and first.name == "tiny"


def test_a_judge_without_class_labels_has_no_logits(tmp_path: Path) -> None:
    save_trained(tmp_path, PARAMS, build_trainable(PARAMS, 4, seed=0), 4, classes=None)
    assert load_judge(tmp_path)(IMAGES)[1] is None


def test_inception_loads_from_its_file_and_speaks_of_no_class_of_ours(inception_file: Path, tmp_path: Path) -> None:
    save_inception(tmp_path / "model", inception_params(inception_file))
    judge = load_judge(tmp_path / "model")
    assert isinstance(judge, InceptionJudge) and judge.classes is None and judge.name == "inception"
    features, logits = judge(IMAGES)
    assert features.shape == (3, 2048) and logits is not None and logits.shape == (3, 1008)


def test_a_file_that_is_not_inception_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(1)}, file)
    with pytest.raises(UserError, match="6726825d.pth"):
        save_inception(tmp_path / "model", inception_params(file))
    assert not list((tmp_path / "model").iterdir())


def test_a_file_that_needs_unpickling_of_objects_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "pickled.pth"
    torch.save({"path": Path("x")}, file)
    with pytest.raises(UserError, match=r"could not be loaded"):
        save_inception(tmp_path / "model", inception_params(file))
