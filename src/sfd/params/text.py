"""Section ``text``: the frozen text encoder of a model that is told words."""

from typing import Annotated, Literal

from pydantic import Field

from sfd.params.networks import TrainingParams
from sfd.params.types import FilePath, Positive, Section


class TextParams(Section):
    """The frozen text encoder (stage ``text``). Only `diffusion.model.condition: text` reads it."""

    source: Literal["train", "pretrained", "file"] = Field(
        "train",
        description="`train`: a small transformer, trained here with the captions against the vision encoder's features; `pretrained`: a model of "
        "the library `transformers` by name (T5, the text half of CLIP, BERT, Gemma and the like); `file`: one in a folder",
    )
    name: str | None = Field(None, min_length=1, description="hub name (`pretrained`)")
    file: FilePath | None = Field(
        None,
        description="folder in the layout of `transformers`, or the `results/text/model` of another project, for `file`",
    )
    max_tokens: int = Field(32, ge=2, le=2048, description="tokens that are kept of a caption; the last one ends it")
    width: Positive = Field(
        128,
        description="numbers per token (`train`; else checked against the model, as 768 for CLIP ViT-L and 4096 for T5-XXL)",
    )
    hidden_layers: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (),
        strict=False,
        description="layers whose hidden states lie side by side in a token, 0 for the embeddings before the first (a model of `transformers`); "
        "empty: the last one's",
    )
    chat_template: bool = Field(
        False,
        description="put a text into the tokenizer's chat template, as a user's turn with the beginning of an answer (a model of `transformers`)",
    )
    attend_padding: bool = Field(
        False,
        description="pad every text to max_tokens, and let the diffusion model attend to the padding, too, as SeFi-Image and Flux2 do (a model of "
        "`transformers`)",
    )
    depth: Positive = Field(3, description="blocks of the transformer (`train`)")
    num_heads: Positive = Field(4, description="attention heads (`train`)")
    vocabulary: int = Field(
        2000,
        ge=300,
        le=1_000_000,
        description="most subwords; a few captions give fewer (`train`). Bytes stand for what is not among them",
    )
    store_tokens: bool = Field(
        True,
        description="store the token embeddings of all captions, 2 * width bytes per token. false: the captions alone, which the text encoder reads "
        "in each step of a training: no disk, but its memory and time",
    )
    shard_size: Positive = Field(10_000, description="images per file of token embeddings, or of captions")
    training: TrainingParams | None = Field(None, description="needed by `train` where the condition is `text`")
