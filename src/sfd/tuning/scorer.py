"""Draws images as a candidate says, and scores them. Does not use Optuna or MLflow, and trains nothing."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sfd.encoders.judges.judge import Judge
from sfd.encoders.text.encoder import TextEncoder
from sfd.encoders.texture_vae import load_texture_vae
from sfd.evaluation.agreement import Asked, carriers_of, retrieve
from sfd.evaluation.fidelity import Features, FeatureStatistics, Reference, class_accuracy, compare, extract
from sfd.generation.images import ImageGenerator, image_seed, load_weak, load_words
from sfd.generation.model import DiffusionModel
from sfd.models.backbone import Backbone
from sfd.models.conditions import Value
from sfd.names import RECALLED, TEXT_RANK, distance_name
from sfd.params import Params
from sfd.precision import Inference
from sfd.workspace import Workspace

GRID_IMAGES = 100


@dataclass(frozen=True)
class Repeat:
    """One set of samples with its metrics. ``images``: the first samples, uint8 ``(n, 3, S, S)``, with their ``labels``."""

    metrics: dict[str, float]
    images: Tensor
    labels: list[str]


class SampleScorer:
    """Holds what all candidates share: the judges, the decoder, and the weak models of AutoGuidance."""

    def __init__(self, workspace: Workspace, judges: Sequence[Judge], inference: Inference) -> None:
        """``inference``: how samples are drawn. Raises :class:`UserError` if the texture VAE is missing or damaged."""
        self.workspace, self.inference = workspace, inference
        self._weak_models: dict[Path, Backbone] = {}
        self._words: TextEncoder | None = None
        self.judges = list(judges)
        self.decoder = inference.place(load_texture_vae(workspace.result("texture_vae") / "model"))

    def score(
        self,
        model: DiffusionModel,
        params: Params,
        values: list[Value],
        seed: int,
        references: Sequence[Reference],
        others: Sequence[str] = (),
        captions: Sequence[Sequence[str]] | None = None,
    ) -> Repeat:
        """Draws an image of each of the ``values`` as ``params.sample`` says, and compares them with what each judge saw of real images.

        Image i has the seed that stage ``sample`` gives it if the stage has ``seed``. Only the first images are kept in memory.
        Metrics: those of :func:`sfd.evaluation.fidelity.compare` by the first judge; ``class_accuracy`` if it knows the classes and the
        model draws them; ``fd_NAME`` of the ``others``; ``evaluations`` of networks per image, and ``seconds_per_image`` of
        sampling.

        Args:
            references: of the judges, in their order; those of judges that are not asked may be missing at the end.
            others: names of the judges beside the first that are asked.
            captions: of each image of the first reference; then ``text_recall_K`` and ``text_rank`` are measured of the samples whose prompt
                one of them is, if there are any.
        """
        weak, size = params.sample.guidance.weak_model, params.runtime.evaluate.batch_size
        guide = self._weak_model(weak, model, params.sample.other_networks) if weak else None
        if model.condition.words is not None and self._words is None:
            self._words = load_words(self.workspace.text_encoder, model, params.sample.other_networks)
        images = ImageGenerator(model, self.decoder, guide, self.inference, self._words)
        seeds = [image_seed(seed, i) for i in range(len(values))]
        drawn = _Timed(images.sample(values, seeds, params.sample, params.runtime.sample.batch_size))
        shown: list[Tensor] = []
        seen: dict[str, list[Features]] = {}
        first, asked = self.judges[0], [self.judges[0], *(each for each in self.judges if each.name in others)]
        for pixels in _regrouped(_noted(drawn, shown), size):
            for judge in asked:
                spatial = judge is first and references[0].spatial is not None
                seen.setdefault(judge.name, []).append(extract(judge, [pixels.to(judge.device)], spatial=spatial))
        features = {name: Features.joined(parts) for name, parts in seen.items()}
        metrics = compare(features[first.name], references[0], params.evaluate, seed)
        wanted = model.condition.columns(values).get("class_index")
        if wanted is not None and first.knows_classes:
            metrics["class_accuracy"] = class_accuracy(features[first.name], torch.tensor(wanted), first)
        if captions is not None:
            metrics |= _agreement(features[first.name], list(map(str, values)), references[0], captions)
        for judge, reference in zip(self.judges[1:], references[1:], strict=False):
            if judge.name in others:
                found = FeatureStatistics.of(features[judge.name].features)
                metrics[distance_name(judge.name)] = found.distance(reference.statistics)
        metrics["evaluations"] = images.evaluated / len(values)
        metrics["seconds_per_image"] = drawn.seconds / len(values)
        pictures = torch.cat(shown)
        return Repeat(metrics, pictures, [model.condition.label(value) for value in values[: len(pictures)]])

    def _weak_model(self, folder: Path, model: DiffusionModel, other_networks: bool) -> Backbone:
        """AutoGuidance's weak model, loaded once: all candidates were trained on the same latents."""
        if folder not in self._weak_models:
            self._weak_models[folder] = load_weak(self.workspace.resolve(folder), model, other_networks)
        return self._weak_models[folder]


def _agreement(
    samples: Features, prompts: Sequence[str], reference: Reference, captions: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Whether samples show their prompts, by retrieval among the reference's images; empty if none of these carries a prompt."""
    asked = Asked.of(prompts, carriers_of(captions))
    if reference.images is None or not asked.rows:
        return {}
    found = retrieve(samples.features[asked.rows], asked.prompts, reference.images.features, asked.carriers)
    return {**{f"text_recall_{k}": found.recall(k) for k in RECALLED}, TEXT_RANK: float(found.median)}


def _noted(batches: Iterable[Tensor], shown: list[Tensor]) -> Iterator[Tensor]:
    """The same batches; ``shown`` gets the first images."""
    for pixels in batches:
        room = GRID_IMAGES - sum(map(len, shown))
        if room > 0:
            shown.append(pixels[:room].clone())  # a view would keep the whole batch in memory
        yield pixels


def _regrouped(batches: Iterator[Tensor], size: int) -> Iterator[Tensor]:
    """The same images in batches of ``size``, as stage ``evaluate`` reads them: how products round depends on the size of the batch."""
    waiting = torch.empty(0)
    for batch in batches:
        waiting = torch.cat([waiting, batch]) if len(waiting) else batch
        while len(waiting) >= size:
            yield waiting[:size]
            waiting = waiting[size:]
    if len(waiting):
        yield waiting


class _Timed:
    """Batches, and the ``seconds`` that it took to make them."""

    def __init__(self, batches: Iterator[Tensor]) -> None:
        self.batches, self.seconds = batches, 0.0

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            started = time.perf_counter()
            batch = next(self.batches, None)
            self.seconds += time.perf_counter() - started
            if batch is None:
                return
            yield batch
