"""Heat maps of words over an image: what they hold, and that the image stays as it is."""

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from served import SAMPLE, untrained, untrained_decoder
from told_words import LetterEncoder, told_words
from torch import Tensor

from sfd.encoders.text.places import PlacedWord
from sfd.errors import UserError
from sfd.generation.images import ImageGenerator
from sfd.generation.settings import Settings
from sfd.generation.word_maps import WordMap, word_maps
from sfd.models.attention import AttentionSum
from sfd.models.lightningdit import LightningDiT
from sfd.precision import Inference


def sampling(**changes: Any) -> Settings:
    return Settings.model_validate(SAMPLE | changes)


def pixels(png: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(png)))


def draw(prompts: list[str], asked: list[int], **changes: Any) -> tuple[Tensor, list[AttentionSum | None]]:
    sums = [AttentionSum() if n in asked else None for n in range(len(prompts))]
    images = told_words().images.sample(prompts, range(len(prompts)), sampling(**changes), 4, fill=True, sums=sums)
    return torch.cat(list(images)), sums


def test_a_map_holds_the_share_of_a_words_tokens_and_its_picture_goes_from_black_to_white() -> None:
    attention = torch.zeros(4, 3)
    attention[:, 0] = torch.tensor([0.1, 0.2, 0.3, 0.4])
    attention[:, 2] = 0.2
    found = word_maps([PlacedWord("ab", (0, 2)), PlacedWord("flat", (2,))], attention)
    assert [each.word for each in found] == ["ab", "flat"]
    torch.testing.assert_close(found[0].shares, torch.tensor([[0.3, 0.4], [0.5, 0.6]]))
    assert (found[0].low, found[0].high, found[0].share) == pytest.approx((0.3, 0.6, 0.45))
    picture = pixels(found[0].png())
    assert picture.shape == (128, 128) and picture[0, 0] == 0 and picture[-1, -1] == 255
    assert picture[0, -1] < picture[-1, 0]
    assert not pixels(found[1].png()).any()
    assert pixels(WordMap("large", torch.rand(48, 48)).png()).shape == (144, 144)


@pytest.mark.parametrize("changes", [{}, {"sampler": "euler"}, {"guidance": {"kind": "none"}}])
def test_an_image_has_the_same_bytes_with_and_without_attention_and_the_attention_the_same_in_any_company(
    changes: dict[str, Any],
) -> None:
    prompts = ["a red bar", "a blue bar", "stripes"]
    plain, _ = draw(prompts, [], **changes)
    asked, sums = draw(prompts, [0, 2], **changes)
    assert torch.equal(asked, plain)
    _, alone = draw(prompts[:1], [0], **changes)
    assert sums[0] is not None and sums[1] is None and sums[2] is not None and alone[0] is not None
    assert torch.equal(alone[0].mean(), sums[0].mean())
    assert not torch.equal(sums[0].mean(), sums[2].mean())


def test_the_null_pass_of_guidance_is_not_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, bool]] = []
    forward = LightningDiT.forward

    def watched(self: LightningDiT, x: Tensor, *inputs: Any, **options: Any) -> Any:
        calls.append((int(inputs[2].mask[0].sum()), "sums" in options))
        return forward(self, x, *inputs, **options)

    monkeypatch.setattr(LightningDiT, "forward", watched)
    draw(["a red bar"], [0], sampler="euler")
    assert calls == [(3, True), (1, False)] * 3, "the prompt has three tokens, and the null value one"


def test_attention_is_refused_in_words_where_there_is_none() -> None:
    with pytest.raises(UserError, match="attention to words is asked for, but the model has no cross-attention"):
        next(untrained().images.sample([0], [0], sampling(), 1, sums=[AttentionSum()]))
    model = told_words().images.model
    compiled = replace(Inference.float32(), mode="default")
    images = ImageGenerator(model, untrained_decoder(), inference=compiled, words=LetterEncoder())
    with pytest.raises(UserError, match=r"the network is compiled \(default\)"):
        next(images.sample(["a"], [0], sampling(), 1, sums=[AttentionSum()]))
