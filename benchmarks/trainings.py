"""What the benchmarks share that compare trainings of the diffusion model: trainings on one set of latents, measured while they go on."""

import hashlib
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sfd.data.manifest import TRAIN
from sfd.evaluation.extraction import FeatureStore
from sfd.evaluation.fidelity import FeatureStatistics, Reference
from sfd.generation.model import DiffusionModel
from sfd.names import distance_name
from sfd.params import Params, as_yaml, to_tree, with_values
from sfd.pipeline.diffusion import open_latents
from sfd.pipeline.reference import open_kept
from sfd.seeding import derive_seed
from sfd.tuning.evaluator import CandidateEvaluator
from sfd.workspace import Workspace

Values = dict[str, Any]
"""Dotted keys of ``params.yaml``, and what they become."""
Point = dict[str, float]
"""``step``, ``images``, ``seconds`` of training, and the metrics at one moment of a training."""

TIMED_STEPS = 20

MEASURED: Values = {
    "diffusion.training.decay_start": None,
    "diffusion.training.keep_every": None,
    "sample.step": None,
    "sample.ema_decay": None,
    "evaluate.min_images.fd": None,
    "tune.kind": "training",
    "tune.objectives": ["fd"],
    "tune.repeats": 1,
}
"""What a project's training needs so that it can be cut short and measured, whatever the project samples, tunes or refuses."""


def now() -> float:
    """Seconds, when a GPU has done all that it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def save_json(file: Path, content: object) -> None:
    """Writes a file in one rename; its folder need not be there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_suffix(".part")
    fresh.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    fresh.replace(file)


class Trainings:
    """What all trainings of a project share: the latents, the judges with their features of real images, and the decoder.

    Attributes:
        tokens: that the backbone sees of an image.
        latents: a digest of them.
        digest: of the parameters and the latents.
    """

    def __init__(self, workspace: Workspace, base: Params, purpose: str) -> None:
        """``purpose``: names the seeds of the samples. Raises :class:`UserError` if an upstream result is missing or damaged."""
        self.base, self.purpose = base, purpose
        self.evaluator = CandidateEvaluator(workspace, base)
        self.stores = open_kept(workspace, self.evaluator.judges)
        self._references: dict[str, list[Reference]] = {}
        latents = open_latents(base, workspace.result("latents"))
        self.tokens = (latents.index.grid // base.diffusion.model.patch_size) ** 2
        shards = [shard.sha256 for shard in latents.reader.shards]
        self.latents = _digest(shards)
        self.digest = _digest([as_yaml(to_tree(base)), *shards])

    def references(self, split: str) -> list[Reference]:
        """What each judge saw of all images of a split."""
        if split not in self._references:
            self._references[split] = [Reference.of(store.read(split, _rows(store, split))) for store in self.stores]
        return self._references[split]

    def floors(self, split: str) -> dict[str, float]:
        """The distance of the images of a split from the training images, by judge."""
        found = {}
        for store, reference in zip(self.stores, self.references(TRAIN), strict=True):
            images = FeatureStatistics.of(store.read(split, _rows(store, split)).features)
            found[distance_name(store.judge.name)] = images.distance(reference.statistics)
        return found

    def seconds_per_step(self, params: Params) -> float:
        """The time of one step, over :data:`TIMED_STEPS` steps after as many others."""
        moments: list[float] = []
        short = {"diffusion.training.num_steps": 2 * TIMED_STEPS + 1, "tune.report_every": TIMED_STEPS}
        with tempfile.TemporaryDirectory() as work:
            self.evaluator.train(with_values(params, short), 0, Path(work), lambda _model, _step: moments.append(now()))
        return (moments[1] - moments[0]) / TIMED_STEPS

    def run(
        self,
        params: Params,
        seed: int,
        work: Path,
        split: str = TRAIN,
        others: Sequence[str] = (),
        kept: Path | None = None,
    ) -> list[Point]:
        """One training, measured every ``tune.report_every`` steps and at its end.

        A training that was stopped goes on in the same folder, also if it is now a longer one.

        Args:
            params: their ``tune.num_images`` images are drawn each time.
            seed: of the training. The samples of all trainings of a seed start from the same noise.
            work: its folder.
            split: what is sampled is compared with these images.
            others: names of the judges beside the first that are asked.
            kept: file of what was measured before it was stopped; None: such a training is not to go on.
        """
        found: list[Point] = json.loads(kept.read_text(encoding="utf-8")) if kept is not None and kept.is_file() else []
        elapsed, began = found[-1]["seconds"] if found else 0.0, now()

        def look(model: DiffusionModel, step: int) -> None:
            nonlocal elapsed, began
            if any(point["step"] == step for point in found):
                return
            elapsed += now() - began
            images = step * params.diffusion.training.batch_size
            found.append(
                {"step": step, "images": images, "seconds": elapsed, **self.score(model, params, seed, split, others)}
            )
            if kept is not None:
                save_json(kept, found)
            began = now()

        model = self.evaluator.train(params, seed, work, look)
        look(model, params.diffusion.training.num_steps)
        return found

    def score(
        self, model: DiffusionModel, params: Params, seed: int, split: str, others: Sequence[str]
    ) -> dict[str, float]:
        """The metrics of ``tune.num_images`` samples: ``fd`` is the distance by the first judge."""
        values = model.condition.plan(params.tune.num_images, params.sample.class_mix)
        noise = derive_seed(params.seed, self.purpose, seed)
        return self.evaluator.scorer.score(model, params, values, noise, self.references(split), others).metrics


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _rows(store: FeatureStore, split: str) -> list[int]:
    return sorted(store.rows[split])
