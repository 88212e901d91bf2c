"""Draws images as a candidate says, and scores them. Does not use Optuna or MLflow, and trains nothing."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sfd.encoders.judges.judge import load_judge
from sfd.encoders.texture_vae import load_texture_vae
from sfd.evaluation.fidelity import Reference, class_accuracy, compare, extract
from sfd.generation.images import ImageGenerator, image_seed, load_weak
from sfd.generation.model import DiffusionModel
from sfd.models.backbone import Backbone
from sfd.models.conditions import Value
from sfd.params import Params
from sfd.processes import inference_device
from sfd.workspace import Workspace

GRID_IMAGES = 100


@dataclass(frozen=True)
class Repeat:
    """One set of samples with its metrics. ``images``: the first samples, uint8 ``(n, 3, S, S)``, with their ``labels``."""

    metrics: dict[str, float]
    images: Tensor
    labels: list[str]


class SampleScorer:
    """Holds what all candidates share: the judge, the decoder, and the weak models of AutoGuidance."""

    def __init__(self, workspace: Workspace) -> None:
        """Raises :class:`UserError` if the judge or the texture VAE is missing or damaged."""
        self.workspace, self.device = workspace, inference_device()
        self._weak_models: dict[Path, Backbone] = {}
        self.judge = load_judge(workspace.result("judge") / "model").to(self.device)
        self.decoder = load_texture_vae(workspace.result("texture_vae") / "model").to(self.device)

    def score(
        self, model: DiffusionModel, params: Params, values: list[Value], seed: int, reference: Reference
    ) -> Repeat:
        """Draws an image of each of the ``values`` as ``params.sample`` says, and compares them with ``reference``.

        Image i has the seed that stage ``sample`` gives it if the stage has ``seed``. Only the first images are kept in memory.
        Metrics: those of :func:`sfd.evaluation.fidelity.compare`; ``class_accuracy`` if the judge knows the classes and the model draws
        them; and ``seconds_per_image`` of sampling.
        """
        weak, size = params.sample.guidance.weak_model, params.runtime.evaluate.batch_size
        images = ImageGenerator(
            model,
            self.decoder,
            self._weak_model(weak, model, params.sample.other_networks) if weak else None,
            self.device,
        )
        seeds = [image_seed(seed, i) for i in range(len(values))]
        drawn = _Timed(images.sample(values, seeds, params.sample, params.runtime.sample.batch_size))
        shown: list[Tensor] = []

        def noted() -> Iterator[Tensor]:
            for pixels in drawn:
                room = GRID_IMAGES - sum(map(len, shown))
                if room > 0:
                    shown.append(pixels[:room].clone())  # a view would keep the whole batch in memory
                yield pixels

        batches = (batch.to(self.device) for batch in _regrouped(noted(), size))
        features = extract(self.judge, batches, spatial=reference.spatial is not None)
        metrics = compare(features, reference, params.evaluate, seed)
        wanted = model.condition.columns(values).get("class_index")
        if wanted is not None and self.judge.knows_classes:
            metrics["class_accuracy"] = class_accuracy(features, torch.tensor(wanted), self.judge)
        metrics["seconds_per_image"] = drawn.seconds / len(values)
        first = torch.cat(shown)
        return Repeat(metrics, first, [model.condition.label(value) for value in values[: len(first)]])

    def _weak_model(self, folder: Path, model: DiffusionModel, other_networks: bool) -> Backbone:
        """AutoGuidance's weak model, loaded once: all candidates were trained on the same latents."""
        if folder not in self._weak_models:
            self._weak_models[folder] = load_weak(self.workspace.resolve(folder), model, other_networks)
        return self._weak_models[folder]


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
