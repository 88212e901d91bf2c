"""Text encoders: the small one that is trained here, and those of the library `transformers`."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_clip import write_clip
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from sfd.encoders.text.encoder import TextEncoder, load_text_encoder
from sfd.encoders.text.pretrained import PretrainedTextEncoder, Reading
from sfd.encoders.text.small import SmallTextEncoder, train_tokenizer
from sfd.errors import UserError
from sfd.network_files import network_digest

TEXTS = ["a red apple", "", "緑の りんご 🍏 and a very long description of it"]


def small(seed: int = 0) -> SmallTextEncoder:
    tokenizer = train_tokenizer(["a red apple", "a green apple"] * 3, 300)
    built = SmallTextEncoder.build(tokenizer, max_tokens=8, width=16, depth=2, num_heads=2, seed=seed)
    built.network.eval()
    return built


def tokenizer_of_hub(folder: Path, with_end: bool) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["a red apple", "a green apple"], trainer)
    if with_end:
        tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def t5() -> torch.nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=300, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0)
    return T5ForConditionalGeneration(config)


def clip() -> torch.nn.Module:
    from transformers import CLIPConfig, CLIPModel

    text = SIZES | {
        "vocab_size": 300,
        "max_position_embeddings": 20,
        "eos_token_id": 1,
        "bos_token_id": 0,
        "pad_token_id": 0,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=SIZES | {"image_size": 16, "patch_size": 8}))


def bert() -> torch.nn.Module:
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(vocab_size=300, max_position_embeddings=20, **SIZES))


def gemma() -> torch.nn.Module:
    from transformers import GemmaConfig, GemmaForCausalLM

    return GemmaForCausalLM(GemmaConfig(vocab_size=300, num_key_value_heads=1, head_dim=8, **SIZES))


def qwen3_vl() -> torch.nn.Module:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    text = SIZES | {
        "vocab_size": 300,
        "num_hidden_layers": 3,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "rope_parameters": rope,
    }
    seen = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": 16,
        "patch_size": 8,
    }
    return Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(text_config=text, vision_config=seen | {"deepstack_visual_indexes": [0]})
    )


CHAT = "{% for message in messages %}user {{ message.content }} </s>{% endfor %}{% if add_generation_prompt %}answer{% endif %}"


def chat_model(folder: Path) -> str:
    """A small model in the layout of Qwen3-VL: images and texts, and a chat template."""
    name = write(folder, qwen3_vl, with_end=False)
    (folder / "chat_template.jinja").write_text(CHAT)
    return name


def write(folder: Path, make: Callable[[], torch.nn.Module], with_end: bool = True) -> str:
    make().save_pretrained(folder)
    tokenizer_of_hub(folder, with_end)
    return str(folder)


def check(encoder: TextEncoder, folder: Path) -> None:
    """What is asked of every text encoder."""
    words = encoder.encode(TEXTS)
    assert words.tokens.shape == (3, words.length, encoder.width) and words.tokens.dtype == torch.float32
    assert words.mask.any(dim=1).all() and words.length == encoder.max_tokens
    assert words.tokens[~words.mask].abs().sum() == 0
    needed = [encoder.num_tokens(text) for text in TEXTS]
    assert words.mask.sum(dim=1).tolist() == [min(number, encoder.max_tokens) for number in needed]
    assert needed[2] > encoder.max_tokens
    alone = encoder.encode(TEXTS[:1])
    torch.testing.assert_close(alone.tokens[0], words.tokens[0, : alone.length], atol=1e-5, rtol=1e-4)
    encoder.save(folder)
    again = load_text_encoder(folder)
    assert torch.equal(again.encode(TEXTS).tokens, words.tokens) and again.max_tokens == encoder.max_tokens
    assert len(network_digest(folder)) == 64


def test_the_small_encoder_gives_words_and_is_saved_and_loaded(tmp_path: Path) -> None:
    check(small(), tmp_path / "a")
    small().save(tmp_path / "b")
    small(seed=1).save(tmp_path / "c")
    files = [{file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in "abc"]
    assert files[0] == files[1] != files[2]


def test_any_script_is_bytes_where_the_vocabulary_lacks_it_and_case_does_not_count() -> None:
    encoder = small()
    assert encoder.ids("A RED apple") == encoder.ids("a red apple") != encoder.ids("a green apple")
    assert encoder.num_tokens("緑") > 3 and encoder.ids("緑") != encoder.ids("赤")
    assert encoder.ids("") == encoder.ids("  ") and len(encoder.ids("")) == 1


@pytest.mark.parametrize(("make", "with_end"), [(t5, True), (clip, True), (bert, True), (gemma, False)])
def test_encoders_of_the_library_give_words_and_are_saved_and_loaded(
    make: Callable[[], torch.nn.Module], with_end: bool, tmp_path: Path
) -> None:
    encoder = PretrainedTextEncoder.open(write(tmp_path / "hub", make, with_end), 8, "text.file")
    assert encoder.width == 16
    check(encoder, tmp_path / "saved")


def test_a_text_is_read_by_several_layers_in_a_chat_with_its_padding_as_sefi_image_does(tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    name = chat_model(tmp_path / "hub")
    reading = Reading(hidden_layers=(1, 3), chat_template=True, attend_padding=True)
    encoder = PretrainedTextEncoder.open(name, 24, "text.name", reading)
    texts = ["a red apple", ""]
    tokenizer, whole = AutoTokenizer.from_pretrained(name), AutoModel.from_pretrained(name, dtype=torch.float32).eval()
    asked = tokenizer(
        [f"user {text} </s>answer" for text in texts], padding="max_length", max_length=24, return_tensors="pt"
    )
    with torch.no_grad():
        states = whole(asked["input_ids"], asked["attention_mask"], output_hidden_states=True).hidden_states
    words = encoder.encode(texts)
    assert encoder.width == 32 and words.mask.all() and words.tokens.shape == (2, 24, 32)
    torch.testing.assert_close(words.tokens, torch.cat([states[1], states[3]], dim=-1))
    encoder.save(tmp_path / "saved")
    again = load_text_encoder(tmp_path / "saved")
    assert torch.equal(again.encode(texts).tokens, words.tokens) and again.num_tokens("") == encoder.num_tokens("") > 1


def test_a_reading_that_the_model_does_not_allow_is_refused(tmp_path: Path) -> None:
    name = chat_model(tmp_path / "hub")
    with pytest.raises(UserError, match="text.hidden_layers has 4, but .* has 3 layers; take numbers from 0 to 3"):
        PretrainedTextEncoder.open(name, 8, "text.name", Reading(hidden_layers=(1, 4)))
    with pytest.raises(UserError, match="text.chat_template is true, but the tokenizer of .* has no chat template"):
        PretrainedTextEncoder.open(write(tmp_path / "t5", t5), 8, "text.name", Reading(chat_template=True))
    layers = Reading(hidden_layers=(0, 1))
    assert PretrainedTextEncoder.open(str(tmp_path / "t5"), 8, "text.name", layers).encode(["red"]).width == 32


def test_what_is_no_text_encoder_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="text.file .*nothing gives no text encoder: .* name the folder in text.file"):
        PretrainedTextEncoder.open(str(tmp_path / "nothing"), 8, "text.file")
    name = write(tmp_path / "hub", clip)
    with pytest.raises(UserError, match="text.max_tokens is 77, but .* takes 20; lower it"):
        PretrainedTextEncoder.open(name, 77, "text.file")
    small().save(tmp_path / "small")
    (tmp_path / "small" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="do not describe a text encoder of kind `small`.*rerun stage `text`"):
        load_text_encoder(tmp_path / "small")
    (tmp_path / "hub" / "config.json").write_text('{"kind": "other"}')
    with pytest.raises(UserError, match="kind is 'other', but must be one of small, transformers"):
        load_text_encoder(tmp_path / "hub")


def test_the_small_encoder_places_every_token_but_the_end() -> None:
    encoder = small()
    found = encoder.place_words("A red applepie")
    assert [word for word, _ in found] == ["A", "red", "applepie"]
    assert [n for _, tokens in found for n in tokens] == list(range(min(encoder.num_tokens("A red applepie"), 8) - 1))
    assert encoder.place_words("") == []
    cut = encoder.place_words("red " * 20)
    assert len(cut) == 7, "seven are read, and the end"


def test_encoders_of_the_library_place_words_behind_their_first_special_token(tmp_path: Path) -> None:
    clip = PretrainedTextEncoder.open(str(write_clip(tmp_path / "clip")), 12, "text.file")
    assert clip.place_words("red bars") == [("red", (1, 2, 3)), ("bars", (4, 5, 6, 7))]
    assert clip.place_words("") == []
    plain = PretrainedTextEncoder.open(write(tmp_path / "bert", bert), 8, "text.file")
    assert plain.place_words("a red")[0] == ("a", (0,))


def test_in_a_chat_template_the_words_are_those_of_the_text_alone(tmp_path: Path) -> None:
    reading = Reading(hidden_layers=(1,), chat_template=True, attend_padding=True)
    encoder = PretrainedTextEncoder.open(chat_model(tmp_path / "hub"), 24, "text.name", reading)
    found = encoder.place_words("user red")
    ids = encoder.tokenizer("user user red </s>answer", add_special_tokens=False)["input_ids"]
    assert [word for word, _ in found] == ["user", "red"]
    theirs = encoder.tokenizer.convert_ids_to_tokens([ids[n] for _, tokens in found for n in tokens])
    assert "".join(theirs).replace("Ġ", " ").split() == ["user", "red"]
    assert found[0].tokens[0] > 0, "the template's own word `user` is none of the text"


def test_a_tokenizer_without_offsets_gives_a_word_per_token(tmp_path: Path) -> None:
    from transformers import ByT5Tokenizer

    encoder = PretrainedTextEncoder.open(write(tmp_path / "bert", bert), 8, "text.file")
    encoder.tokenizer = ByT5Tokenizer()
    assert encoder.place_words("ab") == [("a", (0,)), ("b", (1,))], "and none for the token that ends the text"
