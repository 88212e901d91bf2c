"""A text encoder of the library ``transformers``: T5, the text half of CLIP or SigLIP, BERT, Gemma and the like. The hidden states before any
head are the token embeddings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from sfd.errors import UserError
from sfd.models.words import Words, join_words
from sfd.network_files import CONFIG, read_config, with_default_mode, write_config

BATCH = 32
"""Texts that are encoded at a time."""
_OWN = ("kind", "max_tokens", "network")
"""Keys of ``config.json`` beside those of the library."""
_SHOWN = 300


class PretrainedTextEncoder:
    """A network of ``transformers`` with its tokenizer (:class:`sfd.encoders.text.encoder.TextEncoder`). It computes in float32."""

    kind: ClassVar[str] = "transformers"

    def __init__(self, tokenizer: Any, network: Any, max_tokens: int) -> None:
        self.tokenizer, self.network, self.max_tokens = tokenizer, network.eval().requires_grad_(False), max_tokens

    @classmethod
    def open(cls, name: str, max_tokens: int, option: str) -> Self:
        """The encoder half of a model, by its name on the hub or in a folder.

        Args:
            name: of the model, or of a folder in the library's layout.
            max_tokens: the most tokens that are kept of a text.
            option: that names it, for messages.

        Raises:
            UserError: there is no such model, it has no text encoder, or it takes fewer tokens.
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
        return cls(tokenizer, network, max_tokens)

    @property
    def width(self) -> int:
        """As :class:`TextEncoder` says."""
        config = self.network.config
        return int(getattr(config, "d_model", None) or config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        found: torch.device = next(self.network.parameters()).device
        return found

    def num_tokens(self, text: str) -> int:
        """As :class:`TextEncoder` says."""
        return max(1, len(self.tokenizer(text, verbose=False)["input_ids"]))

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Words:
        """As :class:`TextEncoder` says."""
        return join_words([self._encode(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)])

    def _encode(self, texts: Sequence[str]) -> Words:
        ids, mask = self._ids(texts)
        found: Tensor = self.network(input_ids=ids, attention_mask=mask.long()).last_hidden_state.float()
        return Words(found * mask[..., None], mask)

    def _ids(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Numbers of the tokens, padded behind, and which are real. A text that gives none gets the token that ends texts."""
        rows = [self.tokenizer(text, truncation=True, max_length=self.max_tokens)["input_ids"] for text in texts]
        tokenizer = self.tokenizer
        end = next(
            number
            for number in (tokenizer.eos_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id, 0)
            if number is not None
        )
        rows = [row or [end] for row in rows]
        fill = end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        length = max(map(len, rows))
        ids = torch.tensor([[*row, *[fill] * (length - len(row))] for row in rows], device=self.device)
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        return ids, torch.arange(length, device=self.device) < lengths[:, None]

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
        config = self.network.config.to_dict() | {"max_tokens": self.max_tokens, "network": type(self.network).__name__}
        write_config(folder, {"kind": self.kind} | config)

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
        return cls(tokenizer, network, int(config["max_tokens"]))


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
    return model.get_encoder() if config.is_encoder_decoder else model
