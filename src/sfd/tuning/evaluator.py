"""A study's candidates: trained if needed, sampled, and measured. Does not use Optuna or MLflow.

Every candidate is scored on the same noise (common random numbers), so that seeds cause no difference between candidates.
"""

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from sfd.data.latents import LatentDataset
from sfd.data.manifest import HELDOUT, TRAIN
from sfd.data.prepared import Prepared
from sfd.errors import UserError
from sfd.evaluation.enough import judge_of, least_images
from sfd.evaluation.extraction import FeatureStore
from sfd.evaluation.fidelity import FeatureStatistics, Reference
from sfd.evaluation.views import choose, choose_like, choose_mix
from sfd.evaluation.words import captions_of
from sfd.generation.images import check_decoder
from sfd.generation.model import DiffusionModel
from sfd.generation.prompts import plan_values
from sfd.models.backbone import Backbone, build_backbone
from sfd.names import FDR, INCEPTION, RETRIEVAL, distance_name
from sfd.params import Params
from sfd.pipeline.diffusion import build_task, open_latents, prepare_network, wants_features
from sfd.pipeline.prepare import open_prepared
from sfd.pipeline.reference import load_judges, open_kept
from sfd.pipeline.schedule import with_schedule
from sfd.pipeline.training import check_shards
from sfd.precision import Inference
from sfd.registry.source import open_source
from sfd.seeding import derive_seed, generator
from sfd.training.backbone import condition_of
from sfd.training.loop import Callback, log_nothing, train
from sfd.tuning.scorer import Repeat, SampleScorer
from sfd.workspace import Workspace

STUDY, CONFIRMATION = "study", "confirmation"
"""Names of the two halves of the held-out images, and of the seeds that belong to each."""


def halves(labels: list[int], seed: int) -> dict[str, list[int]]:
    """Rows of the held-out images of each half, in ascending order. Both have the same number of each class, give or take one.

    ``labels``: the class of each held-out image.
    """
    found: dict[str, list[int]] = {STUDY: [], CONFIRMATION: []}
    seen: Counter[int] = Counter()
    for row in torch.randperm(len(labels), generator=generator(seed, "tune/reference")).tolist():
        # An odd image goes to one half or the other by class, so that the halves are equally large.
        found[(STUDY, CONFIRMATION)[(seen[labels[row]] + labels[row]) % 2]].append(row)
        seen[labels[row]] += 1
    return {purpose: sorted(rows) for purpose, rows in found.items()}


class CandidateEvaluator:
    """Holds what all trials share: judges, decoder, the features of the reference, the trained model or the latents.

    The held-out images are split into two halves: one is the reference of all trials, the other that of the confirmation. Of each half,
    those images are used that have the class mix of the samples.
    """

    def __init__(self, workspace: Workspace, params: Params) -> None:
        """Raises :class:`UserError` if an upstream result is missing or damaged, or an objective would rest on too few images."""
        self.workspace, self.params = workspace, params
        self._opened: dict[bool, LatentDataset] = {}
        sampling, judging = Inference.of(params.runtime.sample), Inference.of(params.runtime.evaluate)
        self.scorer = SampleScorer(workspace, load_judges(workspace, params.judges, judging), sampling)
        self.judges = self.scorer.judges
        self.trained = DiffusionModel.load(workspace.sampled_model(params)) if params.tune.kind == "sampling" else None
        if self.trained is not None:
            check_decoder(
                self.trained, workspace.result("texture_vae") / "model", other_networks=params.sample.other_networks
            )
        with open_source(workspace, params.diffusion.init_from if params.tune.kind == "training" else None) as folder:
            self.source = None if folder is None else DiffusionModel.load(folder)
        data = open_prepared(workspace, params)
        labels, classes = data.images(HELDOUT).class_indices.tolist(), self._sampled_classes(data)
        kept, captions = open_kept(workspace, self.judges), captions_of(data, HELDOUT)
        self.references: dict[str, list[Reference]] = {}
        self.captions: dict[str, list[list[str]] | None] = {}
        self.floors: dict[str, list[float]] = {}
        self.num_reference = len(labels)
        for purpose, half in halves(labels, params.seed).items():
            alike = choose_mix(classes, [labels[row] for row in half], params.seed, f"tune/{purpose}")
            rows = [half[row] for row in alike]
            self.num_reference = min(self.num_reference, len(rows))
            self._check_enough(len(rows))
            self.references[purpose] = [Reference.of(store.read(HELDOUT, rows)) for store in kept]
            self.captions[purpose] = [captions[row] for row in rows] if params.is_told_words else None
            if FDR in params.tune.objectives:
                self.floors[purpose] = self._floors(purpose, kept, data.images(TRAIN).class_indices.tolist(), classes)

    def _sampled_classes(self, data: Prepared) -> list[int] | None:
        """The classes of the samples of every repeat; None if they have none, or others than the data set."""
        params, train = self.params, data.images(TRAIN)
        if params.diffusion.model.condition == "text":
            return None
        counts = train.class_indices.bincount(minlength=data.num_classes).tolist()
        condition = condition_of(params.diffusion, data.summary.classes, counts)
        if self.trained is not None:
            condition = self.trained.condition
        values = condition.plan(params.tune.num_images, params.sample.class_mix)
        found: list[int] | None = condition.columns(values).get("class_index")
        return found if found is not None and max(found) < data.num_classes else None

    def _floors(
        self, purpose: str, kept: list[FeatureStore], labels: list[int], classes: list[int] | None
    ) -> list[float]:
        """The distance of real training images from the reference, by judge: as many as a repeat draws, in the class mix of the samples.

        ``labels``: the class of each training image. Of some judges, the features of a part of them are kept.
        """
        rows = sorted(set.intersection(*(set(store.rows[TRAIN]) for store in kept)))
        number, name = min(self.params.tune.num_images, len(rows)), f"tune/{purpose}/floor"
        if classes is None:
            chosen = choose(len(rows), number, self.params.seed, name)
        else:
            chosen = choose_like(classes[:number], [labels[row] for row in rows], self.params.seed, name)
        picked = [rows[place] for place in chosen]
        return [
            FeatureStatistics.of(store.read(TRAIN, picked).features).distance(reference.statistics)
            for store, reference in zip(kept, self.references[purpose], strict=True)
        ]

    def _check_enough(self, num_reference: int) -> None:
        """Raises :class:`UserError` if an objective cannot be measured, or would rest on too few images."""
        number, params = min(self.params.tune.num_images, num_reference), self.params
        first, *more = self.judges
        if "class_accuracy" in params.tune.objectives and not first.knows_classes:
            raise UserError(
                f"tune.objectives: `class_accuracy` needs a judge of two classes or more, but {first.name!r} knows none: remove it"
            )
        for metric in params.tune.objectives:
            needed = least_images(metric, params.evaluate, judge_of(metric, first, more))
            if needed is not None and number < needed:
                raise UserError(
                    f"tune.objectives: `{metric}` needs {needed} images, but a repeat compares {params.tune.num_images} samples with "
                    f"{num_reference} held-out images of the same class mix: raise tune.num_images or data.holdout_fraction, set "
                    "sample.class_mix to `natural`, or lower evaluate.min_images"
                )

    def score(self, model: DiffusionModel, params: Params, purpose: str, repeat: int) -> Repeat:
        """Samples ``tune.num_images`` images in the mix of ``sample.class_mix``, and scores them.

        ``purpose``: ``STUDY`` or ``CONFIRMATION``, which decides the half of the held-out images and the seeds.
        Metrics: ``fd`` (``fid`` if the first judge is Inception), ``kid``, ``precision``, ``recall``; ``class_accuracy`` if that judge knows
        the classes and the model draws them; ``text_recall_K`` and ``text_rank`` of a model that is told words; ``fd_NAME`` of other judges
        and ``fdr`` where they are objectives; ``evaluations`` of networks per image; and ``seconds_per_image`` of sampling.
        """
        sample = self.workspace.resolve_sample(params).model_copy(update={"num_images": params.tune.num_images})
        values = plan_values(model.condition, sample)
        seed = derive_seed(params.seed, f"tune/{purpose}", repeat)
        scored = self.scorer.score(
            model, params, values, seed, self.references[purpose], self._asked(), self.captions[purpose]
        )
        metrics, first = scored.metrics, self.judges[0].name
        missing = next((name for name in params.tune.objectives if name in RETRIEVAL and name not in metrics), None)
        if missing is not None:
            raise UserError(
                f"tune.objectives: `{missing}` needs prompts that are captions of held-out images, and no sample has one: set sample.prompts to "
                "null, or remove the objective"
            )
        if FDR in params.tune.objectives:
            floors = dict(zip([judge.name for judge in self.judges], self.floors[purpose], strict=True))
            ratios = [
                metrics["fd" if name == first else distance_name(name)] / floors[name] for name in self._counted()
            ]
            metrics[FDR] = sum(ratios) / len(ratios)
        if first == INCEPTION:
            metrics["fid"] = metrics.pop("fd")
        return scored

    def _counted(self) -> list[str]:
        return [judge.name for judge in self.params.counted_judges]

    def _asked(self) -> list[str]:
        """The judges beside the first that an objective needs."""
        others, objectives = [judge.name for judge in self.judges[1:]], self.params.tune.objectives
        return [
            name
            for name in others
            if distance_name(name) in objectives or (FDR in objectives and name in self._counted())
        ]

    def model(
        self, params: Params, seed: int, folder: Path, look: Callable[[DiffusionModel, int], None] | None = None
    ) -> DiffusionModel:
        """A candidate's model.

        A study of kind `training` trains it, see :meth:`train`. Kind `sampling` uses the trained model, which is refined at the candidate's
        schedule if ``tune.refine_steps`` is above 0.
        """
        if self.trained is None:
            return self.train(params, seed, folder, look)
        return self.refine(self.trained, params, seed, folder) if params.tune.refine_steps else self.trained

    def train(
        self, params: Params, seed: int, folder: Path, look: Callable[[DiffusionModel, int], None] | None = None
    ) -> DiffusionModel:
        """A model trained on the latents, from random weights or from those of ``diffusion.init_from``.

        ``look`` is called with the model and the step every ``tune.report_every`` steps before the last.
        """
        if params.schedule.kind == "learnt":
            params = with_schedule(params, self.workspace.result("schedule"))
        dataset = self._latents(params)
        start = prepare_network(params, dataset, seed, self.source)
        model = DiffusionModel(start.network, params.schedule, dataset.statistics, dataset.index.networks)
        last = params.diffusion.training.num_steps

        def preview(averaged: torch.nn.Module, step: int) -> None:
            assert isinstance(averaged, Backbone)
            if look is not None and step < last:
                look(replace(model, network=averaged.eval()), step)
                averaged.train()

        trained = train(
            build_task(self.workspace, params, start.network, dataset, seed),
            params.diffusion.training,
            seed,
            folder,
            "tune",
            log_nothing,
            params.runtime.diffusion,
            [Callback(preview, params.tune.report_every)],
        )
        start.finish(trained)
        return model

    def _latents(self, params: Params) -> LatentDataset:
        """The latents, with features if the loss needs them. They are opened and checked once."""
        with_features = wants_features(params, "stored")
        if with_features not in self._opened:
            opened = self._opened[with_features] = open_latents(params, self.workspace.result("latents"))
            check_shards(self.workspace, "latents", [opened.reader])
        return copy.copy(self._opened[with_features])  # a trial may normalise them by other statistics

    def refine(self, shared: DiffusionModel, params: Params, seed: int, folder: Path) -> DiffusionModel:
        """Trains a copy of ``shared``, a model of a range of offsets, for ``tune.refine_steps`` more steps at ``sample.schedule``.

        All blocks see all tokens, as at the end of a training.
        """
        assert params.sample.schedule is not None
        diffusion, steps = params.diffusion, params.tune.refine_steps
        training = diffusion.training.model_copy(update={"num_steps": steps})
        sparse = diffusion.sparse_deep
        if sparse is not None:
            sparse = sparse.model_copy(update={"full_token_steps": steps})
        diffusion = diffusion.model_copy(update={"training": training, "token_routing": None, "sparse_deep": sparse})
        params = params.model_copy(update={"schedule": params.sample.schedule, "diffusion": diffusion})
        dataset = self._latents(params)
        dataset.statistics = shared.statistics
        network = build_backbone(shared.network.config)
        network.load_state_dict(shared.network.state_dict())
        task = build_task(self.workspace, params, network, dataset, seed)
        train(task, training, seed, folder, "tune", log_nothing, params.runtime.diffusion).copy_to(network)
        return DiffusionModel(network, params.schedule, shared.statistics, shared.networks)
