"""The work of stage ``text``: a text encoder, trained or loaded; the captions of training and held-out images, as tokens or as texts; and a
measure of their tokens: how often an image finds its caption, where a linear map of the tokens predicts the image's features."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

from sfd.class_mix import evenly_spaced
from sfd.data.batches import in_batches, read_ahead
from sfd.data.images import ManifestImages
from sfd.data.latents import heldout_rows
from sfd.data.manifest import HELDOUT, TRAIN
from sfd.data.prepared import Prepared
from sfd.data.shards import Shard, missing_shards, rows_to_read, shard_bounds, shard_name, write_shards
from sfd.data.text_tokens import (
    TEXTS_OF,
    CaptionTexts,
    TextTokens,
    TokensIndex,
    check_finite,
    choose_caption,
    close_tokens,
    examples_of,
    open_text,
    write_texts,
    write_tokens,
)
from sfd.encoders.text.encoder import TextEncoder, load_text_encoder
from sfd.encoders.text.pretrained import PretrainedTextEncoder, Reading
from sfd.encoders.text.small import SmallTextEncoder, train_tokenizer
from sfd.encoders.vision import load_encoder
from sfd.errors import UserError
from sfd.network_files import network_digest
from sfd.params import TextParams
from sfd.pictures import plot_captions
from sfd.pipeline.prepare import open_prepared
from sfd.pipeline.quality import record_quality
from sfd.pipeline.stage import Stage
from sfd.pipeline.training import train_stage
from sfd.precision import Inference
from sfd.processes import inference_device
from sfd.progress import progress
from sfd.seeding import generator
from sfd.training.captions import CaptionReader
from sfd.training.text import CaptionDataset, ContrastiveTask, TwoTowers, pooled

MOST_IMAGES = 200_000
"""Training images whose pooled features are computed, to train on and to measure with; evenly spaced if there are more."""
PROBED_IMAGES = 10_000
"""The most of them that the linear map is fitted to."""
FEATURES_SHARD, BATCH = 1000, 64
CANDIDATES = 100
"""Images whose captions compete, in the measure."""
RIDGE = 0.01
"""Of the linear map: this share of the tokens' mean variance is added to each."""
SHOWN = 6


@dataclass(frozen=True)
class _Captioned:
    """Some images of a split: their captions, and their pooled features float32 ``(N, D)``, None without a vision encoder."""

    captions: list[list[str]]
    features: Tensor | None


def make_text_encoder(stage: Stage) -> None:
    """Writes ``model``, ``shards`` and ``heldout`` or the folders of texts in their place, ``null.safetensors``, ``quality.json`` and pictures.

    Raises:
        UserError: the text encoder cannot be had or does not fit its section, or its captions tell images apart too poorly.
    """
    data = open_prepared(stage.workspace, stage.params)
    captions = {split: _captions(data, split) for split in (TRAIN, HELDOUT)}
    chosen = {TRAIN: evenly_spaced(len(captions[TRAIN]), MOST_IMAGES), HELDOUT: heldout_rows(len(captions[HELDOUT]))}
    seen = {
        split: _Captioned([captions[split][row] for row in rows], _features(stage, data.images(split), rows, split))
        for split, rows in chosen.items()
    }
    _save(stage, seen[TRAIN], captions[TRAIN])
    encoder = load_text_encoder(stage.out / "model").to(inference_device())
    examples = examples_of(seen[HELDOUT].captions)
    if not stage.params.text.store_tokens:
        for start in range(0, len(examples), BATCH):  # of all captions, a training would tell
            check_finite(encoder.encode(examples[start : start + BATCH]).tokens.half(), "held-out images")
    _write(stage, HELDOUT, seen[HELDOUT].captions, encoder, examples)
    facts = _write(stage, TRAIN, captions[TRAIN], encoder, examples)
    found = {"captions": facts.num_captions, "truncated": facts.truncated, "width": facts.width}
    if facts.truncated:
        print(
            f"text: {facts.truncated} of {facts.num_captions} captions of training images are longer than text.max_tokens "
            f"{encoder.max_tokens} and are cut"
        )
    stage.log_input(
        "train", data.summary.digest, stage.upstream("prepare"), "text", {"num_captions": facts.num_captions}
    )
    if seen[TRAIN].features is None:
        stage.log(found)
        return
    record_quality(stage, found | _quality(stage, data, seen[TRAIN], seen[HELDOUT], chosen, encoder))


def _captions(data: Prepared, split: str) -> list[list[str]]:
    if "captions" not in data.manifest:
        raise UserError("the manifest has no captions; set data.captions and run `dvc repro prepare`")
    found: list[list[str]] = data.manifest.loc[data.manifest["split"] == split, "captions"].tolist()
    return found


def _features(stage: Stage, images: ManifestImages, rows: list[int], split: str) -> Tensor | None:
    """The vision encoder's features of these images, averaged over the patches. What is there from a run that was killed is kept."""
    if stage.params.encoder.source == "none":
        return None
    folder, bounds = stage.work / "features" / split, shard_bounds(len(rows), FEATURES_SHARD)
    encoder = Inference.float32().place(load_encoder(stage.upstream("encoder") / "model"))

    def pooled_batches(batches: Iterator[Tensor]) -> Iterator[Tensor]:
        for batch in batches:
            shown.update(len(batch))
            yield encoder(batch.to(encoder.device)).float().mean(dim=1).cpu()

    with progress(f"text: features of {split} images", "image", len(rows)) as shown:
        missing = missing_shards(folder, bounds, 0, 1, shown)
        order = rows_to_read(rows, bounds, missing, BATCH)
        with read_ahead(images, order, stage.params.runtime.text.num_workers) as found:
            features = pooled_batches(batch.images for batch in found)

            def make(start: int, end: int) -> Shard:
                return {"features": torch.cat([next(features) for _ in range(start, end, BATCH)])}

            write_shards(folder, bounds, make, missing)
    return torch.cat([load_file(folder / shard_name(number))["features"] for number in range(len(bounds))])


def _save(stage: Stage, seen: _Captioned, captions: Sequence[Sequence[str]]) -> None:
    """Writes the text encoder as ``text.source`` says."""
    params, folder = stage.params.text, stage.out / "model"
    if params.source == "train":
        _train(stage, seen, captions).save(folder)
        return
    given, option = (params.name, "text.name") if params.source == "pretrained" else (None, "text.file")
    path = None if params.file is None else stage.workspace.resolve(params.file)
    reading = Reading(params.hidden_layers, params.chat_template, params.attend_padding)
    encoder: TextEncoder
    if path is not None and (path / "config.json").is_file() and _is_ours(path):
        encoder = load_text_encoder(path)
        if reading not in (Reading(), getattr(encoder, "reading", Reading())):
            raise UserError(
                f"{path} was written by stage `text`, and reads texts in its own way: remove text.hidden_layers, text.chat_template and "
                "text.attend_padding"
            )
    else:
        encoder = PretrainedTextEncoder.open(str(given or path), params.max_tokens, option, reading)
    _check_sizes(params, encoder, str(given or path))
    encoder.save(folder)


def _is_ours(folder: Path) -> bool:
    from sfd.names import TEXT_ENCODERS
    from sfd.network_files import read_config

    return read_config(folder).get("kind") in TEXT_ENCODERS


def _check_sizes(params: TextParams, encoder: TextEncoder, name: str) -> None:
    for option, given, found in (
        ("width", params.width, encoder.width),
        ("max_tokens", params.max_tokens, encoder.max_tokens),
    ):
        if given != found:
            raise UserError(f"text.{option} is {given}, but {name} has {found}: write text.{option} {found}")


def _train(stage: Stage, seen: _Captioned, captions: Sequence[Sequence[str]]) -> SmallTextEncoder:
    params, seed = stage.params.text, stage.params.seed
    assert seen.features is not None  # a rule of the parameters
    tokenizer = train_tokenizer((text for image in captions for text in image), params.vocabulary)
    encoder = SmallTextEncoder.build(tokenizer, params.max_tokens, params.width, params.depth, params.num_heads, seed)
    features = _standardised(seen.features, seen.features)
    dataset = CaptionDataset(features, seen.captions, encoder, seed)
    towers = TwoTowers(encoder, features.shape[1], seed)
    task = ContrastiveTask(towers, dataset, params.max_tokens, seed)
    train_stage(task, params.training, stage.params.runtime.text, stage).copy_to(towers)
    return encoder


def _standardised(features: Tensor, among: Tensor) -> Tensor:
    """Each channel with mean 0 and standard deviation 1 among the training images."""
    return (features - among.mean(dim=0)) / among.std(dim=0).clamp(min=1e-6)


def _write(
    stage: Stage, split: str, captions: list[list[str]], encoder: TextEncoder, examples: list[str]
) -> TokensIndex:
    """Writes the tokens of these captions in shards, or their texts. ``examples``: captions of held-out images."""
    params, folder = stage.params.text, stage.out / ("shards" if split == TRAIN else HELDOUT)
    what = "training images" if split == TRAIN else "held-out images"
    if params.store_tokens:
        bounds = write_tokens(folder, captions, lambda texts: encoder.encode(texts), params.shard_size, what)
    else:
        folder = folder.with_name(TEXTS_OF[folder.name])
        bounds = write_texts(folder, captions, params.shard_size)
    texts = {text for image in captions for text in image}
    cut = {text for text in texts if encoder.num_tokens(text) > encoder.max_tokens}
    facts = TokensIndex(
        width=encoder.width,
        max_tokens=encoder.max_tokens,
        encoder=network_digest(stage.out / "model"),
        num_captions=sum(map(len, captions)),
        truncated=sum(text in cut for image in captions for text in image),
        examples=examples,
    )
    close_tokens(folder, bounds, facts, encoder.encode([""]))
    return facts


def _quality(
    stage: Stage,
    data: Prepared,
    train: _Captioned,
    heldout: _Captioned,
    chosen: dict[str, list[int]],
    encoder: TextEncoder,
) -> dict[str, float]:
    """Share of the held-out images that find their caption first among those of 100 images, the same by chance, and a picture."""
    assert train.features is not None and heldout.features is not None
    seed = stage.params.seed
    places = evenly_spaced(len(train.captions), PROBED_IMAGES)
    stored = {shards: open_text(stage.params, stage.out, shards) for shards in ("shards", HELDOUT)}
    known = _pooled(stored["shards"], encoder, [chosen[TRAIN][place] for place in places])
    asked = _pooled(stored[HELDOUT], encoder, list(range(len(heldout.captions))))
    predict = _linear_map(known, _standardised(train.features, train.features)[places])
    # Without what all texts share, and what all images share.
    texts, images = predict(asked), _standardised(heldout.features, train.features)
    first = [captions[choose_caption(seed, number, len(captions))] for number, captions in enumerate(heldout.captions)]
    similar = normalize(texts, dim=1) @ normalize(images, dim=1).T
    right: list[float] = []
    chance: list[float] = []
    order = torch.randperm(len(first), generator=generator(seed, "text/quality")).tolist()
    for start in range(0, len(order), CANDIDATES):
        part = order[start : start + CANDIDATES]
        nearest = similar[part][:, part].argmax(dim=0).tolist()
        own = [first[number] for number in part]
        right += [float(own[found] == text) for found, text in zip(nearest, own, strict=True)]
        chance += [own.count(text) / len(own) for text in own]
    _picture(stage, data, similar, first, chosen[HELDOUT])
    return {"heldout_retrieval": sum(right) / len(right), "chance": sum(chance) / len(chance)}


def _pooled(captions: TextTokens | CaptionTexts, encoder: TextEncoder, images: list[int]) -> Tensor:
    """The mean token of a caption of each image, float64 ``(N, E)``. The caption is that of the sample of the image's number."""
    parts, read = [], CaptionReader(encoder)
    for part in in_batches(images, 256):
        if isinstance(captions, TextTokens):
            words = captions.words(part, part)
        else:
            words = read(captions.texts(part, part)).to("cpu")
        parts.append(pooled(words.tokens.double(), words.mask))
    return torch.cat(parts)


def _linear_map(x: Tensor, y: Tensor) -> "_Linear":
    """Ridge regression from ``(N, E)`` to ``(N, D)``."""
    mean = x.mean(dim=0)
    centred = x - mean
    moments = centred.T @ centred / len(x)
    moments += RIDGE * moments.trace() / len(moments) * torch.eye(len(moments), dtype=moments.dtype)
    return _Linear(mean, torch.linalg.solve(moments, centred.T @ y.double() / len(x)))


@dataclass(frozen=True)
class _Linear:
    mean: Tensor
    weight: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return ((x - self.mean) @ self.weight).float()


def _picture(stage: Stage, data: Prepared, similar: Tensor, texts: list[str], rows: list[int]) -> None:
    """Some held-out images, each with its caption and with those that are nearest to it."""
    places = evenly_spaced(len(texts), SHOWN)
    images = data.images(HELDOUT).__getitems__([rows[place] for place in places]).images
    nearest = [
        list(dict.fromkeys(texts[n] for n in similar[:, place].argsort(descending=True).tolist()))[:3]
        for place in places
    ]
    plot_captions(images, [texts[place] for place in places], nearest, stage.out / "captions.png")
    stage.log_artifacts(stage.out / "captions.png")
