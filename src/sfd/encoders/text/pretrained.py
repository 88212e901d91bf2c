"""A text encoder of the library ``transformers``: T5, the text half of CLIP or SigLIP, BERT, Gemma and the like. Hidden states before any
head are the token embeddings: the last ones, or those of several layers side by side."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from sfd.data.transfer import send
from sfd.encoders.text.places import PlacedWord, place_words
from sfd.errors import UserError
from sfd.models.words import Words, join_words
from sfd.network_files import CONFIG, read_config, with_default_mode, write_config

BATCH = 32
"""Texts that are encoded at a time."""
_OWN = ("kind", "max_tokens", "network", "reading")
"""Keys of ``config.json`` beside those of the library."""
_SHOWN = 300
_MARK = "\ue000"
"""A character of no script: it shows where a chat template puts the text."""


@dataclass(frozen=True)
class Reading:
    """How a network reads a text. The defaults are those of most text encoders; SeFi-Image reads by layers 9, 18 and 27, chat and padding.

    Attributes:
        hidden_layers: whose hidden states lie side by side in a token, 0 for the embeddings before the first layer; empty: the last ones.
        chat_template: the text is a user's turn in the tokenizer's chat template, and the answer is about to begin.
        attend_padding: every text has ``max_tokens`` tokens, and padding counts as real. Within the network it is still masked out.
    """

    hidden_layers: tuple[int, ...] = ()
    chat_template: bool = False
    attend_padding: bool = False


class PretrainedTextEncoder:
    """A network of ``transformers`` with its tokenizer (:class:`sfd.encoders.text.encoder.TextEncoder`). It computes in float32."""

    kind: ClassVar[str] = "transformers"

    def __init__(self, tokenizer: Any, network: Any, max_tokens: int, reading: Reading) -> None:
        self.tokenizer, self.network, self.max_tokens = tokenizer, network.eval().requires_grad_(False), max_tokens
        self.reading = reading

    @classmethod
    def open(cls, name: str, max_tokens: int, option: str, reading: Reading | None = None) -> Self:
        """The encoder half of a model, by its name on the hub or in a folder.

        Args:
            name: of the model, or of a folder in the library's layout.
            max_tokens: the most tokens that are kept of a text.
            option: that names it, for messages.
            reading: None: the defaults of :class:`Reading`.

        Raises:
            UserError: there is no such model, it has no text encoder, it takes fewer tokens, or it cannot be read so.
        """
        transformers = _library()
        try:
            tokenizer, network = transformers.AutoTokenizer.from_pretrained(name), _network(name)
        except (OSError, ValueError, KeyError, ImportError, AttributeError) as error:
            raise UserError(
                f"{option} {name} gives no text encoder: {' '.join(str(error).split())[:_SHOWN]}; correct the name, check the connection, or "
                "fetch it elsewhere (`hf download NAME --local-dir FOLDER`) and name the folder in text.file"
            ) from error
        most = getattr(network.config, "max_position_embeddings", None)
        if isinstance(most, int) and max_tokens > most:
            raise UserError(f"text.max_tokens is {max_tokens}, but {name} takes {most}; lower it")
        reading = reading or Reading()
        _check_reading(reading, name, tokenizer, network.config)
        return cls(tokenizer, network, max_tokens, reading)

    @property
    def width(self) -> int:
        """As :class:`TextEncoder` says."""
        config = self.network.config
        return int(getattr(config, "d_model", None) or config.hidden_size) * max(1, len(self.reading.hidden_layers))

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        found: torch.device = next(self.network.parameters()).device
        return found

    def num_tokens(self, text: str) -> int:
        """As :class:`TextEncoder` says."""
        return max(1, len(self._row(text, verbose=False)))

    def place_words(self, text: str) -> list[PlacedWord]:
        """As :class:`TextEncoder` says. A tokenizer that keeps no offsets into the text gives one word per token, as the token reads."""
        cut = {"truncation": True, "max_length": self.max_tokens}
        if not self.tokenizer.is_fast:
            special = set(self.tokenizer.all_special_ids)
            tokens = [(n, number) for n, number in enumerate(self._row(text, **cut)) if number not in special]
            return [PlacedWord(self.tokenizer.decode([number]).strip(), (n,)) for n, number in tokens]
        start = self._in_template(_MARK).index(_MARK)
        offsets: list[tuple[int, int]] = self._read(text, return_offsets_mapping=True, **cut)["offset_mapping"]
        return place_words(text, [(first - start, end - start) for first, end in offsets])

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Words:
        """As :class:`TextEncoder` says."""
        return join_words([self._encode(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)])

    def _encode(self, texts: Sequence[str]) -> Words:
        ids, mask = self._ids(texts)
        layers = self.reading.hidden_layers
        out = self.network(input_ids=ids, attention_mask=mask.long(), output_hidden_states=bool(layers))
        found: Tensor = torch.cat([out.hidden_states[n] for n in layers], -1) if layers else out.last_hidden_state
        if self.reading.attend_padding:
            mask = torch.ones_like(mask)
        return Words(found.float() * mask[..., None], mask)

    def _row(self, text: str, **options: Any) -> list[int]:
        """Numbers of a text's tokens."""
        ids: list[int] = self._read(text, **options)["input_ids"]
        return ids

    def _read(self, text: str, **options: Any) -> Any:
        """What the tokenizer makes of a text. A chat template brings the special tokens itself."""
        return self.tokenizer(self._in_template(text), add_special_tokens=not self.reading.chat_template, **options)

    def _in_template(self, text: str) -> str:
        """The text as the tokenizer gets it: a user's turn where the network reads a chat."""
        if not self.reading.chat_template:
            return text
        turn = [{"role": "user", "content": text}]
        chat: str = self.tokenizer.apply_chat_template(
            turn, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        return chat

    def _ids(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Numbers of the tokens, padded behind, and which are real. A text that gives none gets the token that ends texts."""
        rows = [self._row(text, truncation=True, max_length=self.max_tokens) for text in texts]
        tokenizer = self.tokenizer
        end = next(
            number
            for number in (tokenizer.eos_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id, 0)
            if number is not None
        )
        rows = [row or [end] for row in rows]
        fill = end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        length = self.max_tokens if self.reading.attend_padding else max(map(len, rows))
        ids = torch.tensor([[*row, *[fill] * (length - len(row))] for row in rows])
        mask = torch.arange(length) < torch.tensor([len(row) for row in rows])[:, None]
        return send(ids, self.device), send(mask, self.device)

    def to(self, device: torch.device | str) -> Self:
        """As :class:`TextEncoder` says."""
        self.network.to(device)
        return self

    def save(self, folder: Path) -> None:
        """As :class:`TextEncoder` says; the weights in the library's layout, in one file."""
        folder.mkdir(parents=True, exist_ok=True)
        with with_default_mode(folder / "model.safetensors"):
            self.network.save_pretrained(folder, max_shard_size="1000GB")
        self.tokenizer.save_pretrained(folder)
        own = {"max_tokens": self.max_tokens, "network": type(self.network).__name__, "reading": asdict(self.reading)}
        write_config(folder, {"kind": self.kind} | self.network.config.to_dict() | own)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """As :class:`TextEncoder` says."""
        transformers, config = _library(), read_config(folder)
        values = {key: value for key, value in config.items() if key not in _OWN}
        try:
            network_class = getattr(transformers, config["network"])
            settings = transformers.AutoConfig.for_model(**values)
            network = network_class.from_pretrained(folder, config=settings, dtype=torch.float32)
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, config=settings)
        except (OSError, ValueError, KeyError, ImportError, AttributeError, RuntimeError) as error:
            raise UserError(
                f"{folder / CONFIG} does not describe a text encoder of kind `{cls.kind}`: {' '.join(str(error).split())[:_SHOWN]}; rerun stage "
                "`text`"
            ) from error
        reading = dict(config.get("reading", {}))  # older folders have none
        reading["hidden_layers"] = tuple(reading.get("hidden_layers", ()))
        return cls(tokenizer, network, int(config["max_tokens"]), Reading(**reading))


def _check_reading(reading: Reading, name: str, tokenizer: Any, config: Any) -> None:
    """Raises :class:`UserError` where the network lacks a layer, or the tokenizer a chat template."""
    depth = int(config.num_hidden_layers)
    beyond = [number for number in reading.hidden_layers if number > depth]
    if beyond:
        raise UserError(
            f"text.hidden_layers has {beyond[0]}, but {name} has {depth} layers; take numbers from 0 to {depth}"
        )
    if reading.chat_template and not tokenizer.chat_template:
        raise UserError(
            f"text.chat_template is true, but the tokenizer of {name} has no chat template; set it to false"
        )


def _library() -> Any:
    """``transformers``, which else reports every weight of the half that is not loaded. It is imported where it is needed, for that takes seconds."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _network(name: str) -> Any:
    """The half of a model that reads texts, in float32."""
    transformers = _library()
    config = transformers.AutoConfig.from_pretrained(name)
    if config.model_type in transformers.models.auto.modeling_auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES:
        return transformers.AutoModelForTextEncoding.from_pretrained(name, dtype=torch.float32)
    text = getattr(config, "text_config", None)
    if text is not None and config.model_type in ("clip", "siglip", "siglip2"):
        own = getattr(transformers, f"{type(config).__name__.removesuffix('Config')}TextModel")
        return own.from_pretrained(name, config=text, dtype=torch.float32)
    model = transformers.AutoModel.from_pretrained(name, dtype=torch.float32)
    if config.is_encoder_decoder:
        return model.get_encoder()
    return getattr(model, "language_model", model)  # a model of images and texts, as Qwen3-VL
