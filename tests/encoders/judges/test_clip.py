"""A CLIP of transformers as a judge: its embeddings are the library's own."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_clip import write_clip
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

from sfd.encoders.judges.clip import ClipJudge, clip_images
from sfd.encoders.judges.judge import Judge, load_judge
from sfd.errors import UserError
from sfd.params import JudgeParams

IMAGES = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
TEXTS = ["red", "a green heart", "x" * 50]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "source")


def params(file: Path) -> JudgeParams:
    fields = {"kind": "clip", "source": "file", "name": "eye", "file": str(file)}
    return JudgeParams.model_validate(fields)


@pytest.fixture
def judge(source: Path, tmp_path: Path) -> Judge:
    ClipJudge.save_pretrained(tmp_path / "model", params(source))
    return load_judge(tmp_path / "model")


def test_images_and_texts_are_embedded_as_the_library_does(judge: Judge, source: Path) -> None:
    features, logits = judge(IMAGES)
    assert features.shape == (3, judge.num_features) == (3, 8) and logits is None and judge.embeds_texts
    network, tokenizer = CLIPModel.from_pretrained(str(source)), AutoTokenizer.from_pretrained(str(source))
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in IMAGES]
    pixels = CLIPImageProcessor.from_pretrained(str(source))(pictures, return_tensors="pt")["pixel_values"]
    tokens = tokenizer(TEXTS, padding=True, truncation=True, max_length=12, return_tensors="pt")
    with torch.no_grad():
        expected = network(**tokens, pixel_values=pixels)
    torch.testing.assert_close(torch.nn.functional.normalize(features, dim=1), expected.image_embeds, atol=1e-5, rtol=0)
    found = torch.nn.functional.normalize(judge.embed_texts(TEXTS), dim=1)
    torch.testing.assert_close(found, expected.text_embeds, atol=1e-5, rtol=0)


def test_texts_are_embedded_alike_whatever_is_beside_them(judge: Judge) -> None:
    torch.testing.assert_close(judge.embed_texts(TEXTS)[:1], judge.embed_texts(TEXTS[:1]), atol=1e-5, rtol=0)


def test_a_classifier_of_the_classes_is_fitted_to_its_features(judge: Judge, tmp_path: Path) -> None:
    features = torch.cat([torch.randn(20, 8) + 4.0, torch.randn(20, 8) - 4.0])
    ClipJudge.fit_classes(tmp_path / "model", features, torch.arange(40) // 20, 2)
    fitted = load_judge(tmp_path / "model")
    assert fitted.knows_classes and not judge.knows_classes and fitted.digest != judge.digest
    assert fitted(IMAGES)[1].shape == (3, 2)
    torch.testing.assert_close(fitted(IMAGES)[0], judge(IMAGES)[0])


def test_a_folder_without_a_clip_is_refused_in_words(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"judge `eye`: .*nowhere is no CLIP that can be read.*`model`.*`file`"):
        ClipJudge.save_pretrained(tmp_path / "model", params(tmp_path / "nowhere"))
    broken = tmp_path / "broken"
    shutil.copytree(source, broken)
    (broken / "model.safetensors").unlink()
    with pytest.raises(UserError, match="is no CLIP that can be read"):
        ClipJudge.save_pretrained(tmp_path / "model", params(broken))


def test_what_it_computes_is_counted_without_its_weights(source: Path) -> None:
    with torch.device("meta"):
        assert clip_images(params(source))().shape == (1, 8)
