"""CLIP of transformers as a judge, which also embeds texts: for the CLIP score of what is drawn for prompts."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sfd.encoders.judges.judge import Judge
from sfd.encoders.judges.timm_judge import fit_linear
from sfd.encoders.timm_networks import Preprocessing, in_slices
from sfd.errors import UserError
from sfd.network_files import load_weights, read_config, save_network, weights_digest
from sfd.params import JudgeParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER = "tokenizer"
"""The folder of the tokenizer, in the judge's own."""
TEXTS = 64
"""Texts that are embedded at a time."""


class ClipJudge(Judge):
    """Features are the projected embeddings of images, as those of a CLIP of timm.

    ``classes`` is None until :meth:`fit_classes`, and with a single class.
    """

    kind = "clip"
    fits_classes = True
    embeds_texts = True

    def __init__(self, config: dict[str, Any], tokenizer: "PreTrainedTokenizerBase", digest: str) -> None:
        super().__init__()
        from transformers import CLIPConfig, CLIPModel

        self.name, self.digest, self.classes = config["name"], digest, config["classes"]
        self.network: Any = CLIPModel(CLIPConfig.from_dict(config["network"]))
        self.num_features = config["network"]["projection_dim"]
        self.preprocessing, self.tokenizer = Preprocessing(config["preprocessing"], antialias=True), tokenizer
        self.head = nn.Linear(self.num_features, self.classes) if self.classes is not None else None

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """As :class:`Judge` says."""
        features = in_slices(self._features, images, self.preprocessing.input_size)
        return features, self.head(features) if self.head is not None else None

    def _features(self, images: Tensor) -> Tensor:
        return self.run(self._embedded, self.preprocessing(images.float() / 255.0))

    def _embedded(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.network.visual_projection(self.network.vision_model(pixel_values=inputs).pooler_output)
        return found

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """As :class:`Judge` says: projected embeddings. What exceeds CLIP's 77 tokens is cut."""
        longest = int(self.network.config.text_config.max_position_embeddings)
        found = []
        for first in range(0, len(texts), TEXTS):
            part = list(texts[first : first + TEXTS])
            tokens = self.tokenizer(part, padding=True, truncation=True, max_length=longest, return_tensors="pt")
            tokens = {name: tokens[name].to(self.device) for name in ("input_ids", "attention_mask")}
            pooled = self.network.text_model(**tokens).pooler_output
            found.append(self.network.text_projection(pooled).float().cpu())
        return torch.cat(found)

    @classmethod
    def save_pretrained(cls, folder: Path, params: JudgeParams) -> None:
        """As :class:`Judge` says: a CLIP of the model hub, by its name there, or of a folder as transformers writes it.

        Raises:
            UserError: there is no such CLIP, or its files are no safetensors.
        """
        from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

        source = str(params.file or params.model)
        with _explained(params, source):
            network: Any = CLIPModel.from_pretrained(source, use_safetensors=True, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(source)
            images = CLIPImageProcessor.from_pretrained(source)
        size = int(network.config.vision_config.image_size)
        preprocessing = {"mean": list(images.image_mean), "std": list(images.image_std), "input_size": size}
        config = {"kind": cls.kind, "name": params.name, "classes": None, "preprocessing": preprocessing}
        save_network(folder, nn.ModuleDict({"network": network}), config | {"network": network.config.to_dict()})
        tokenizer.save_pretrained(folder / TOKENIZER)

    @classmethod
    def fit_classes(cls, folder: Path, features: Tensor, labels: Tensor, classes: int) -> None:
        """As :class:`Judge` says: :func:`sfd.encoders.judges.timm_judge.fit_linear`."""
        judge = cls.load(folder)
        judge.head = fit_linear(features, labels)
        save_network(folder, judge, read_config(folder) | {"classes": classes})

    @classmethod
    def load(cls, folder: Path) -> "ClipJudge":
        """As :class:`Judge` says."""
        from transformers import AutoTokenizer

        config = read_config(folder)
        tokenizer = AutoTokenizer.from_pretrained(str(folder / TOKENIZER), local_files_only=True)
        judge = cls(config, tokenizer, weights_digest(folder))
        load_weights(folder, judge)
        return judge


def clip_images(params: JudgeParams) -> Callable[[], Tensor]:
    """A call that embeds an image as the judge does, with no weights read, on the current device: to count what it computes.

    Raises:
        UserError: the configuration of this CLIP cannot be had.
    """
    from transformers import CLIPConfig, CLIPVisionModelWithProjection

    source = str(params.file or params.model)
    with _explained(params, source):
        config: Any = CLIPConfig.from_pretrained(source).vision_config
    network: Any = CLIPVisionModelWithProjection(config)
    pixels = torch.empty(1, 3, config.image_size, config.image_size)
    return lambda: network.eval()(pixel_values=pixels).image_embeds


@contextmanager
def _explained(params: JudgeParams, source: str) -> Iterator[None]:
    """Raises :class:`UserError` for what goes wrong within: a hub that does not answer, a folder of other files."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"judge `{params.name}`: {source} is no CLIP that can be read ({' '.join(str(error).split())[:300]}); give the name of one on the "
            "model hub (`model`), or a folder with config.json, model.safetensors, preprocessor_config.json and the tokenizer's files (`file`)"
        ) from error
