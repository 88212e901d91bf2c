"""The whole of params.yaml."""

from pathlib import Path
from typing import Any

from pydantic import Field

from sfd.params.diffusion import DiffusionParams, SampleParams
from sfd.params.networks import (
    DataParams,
    EncoderParams,
    FeaturesParams,
    JudgeParams,
    LatentsParams,
    SemanticParams,
    TextureVaeParams,
)
from sfd.params.operations import EvaluateParams, RegisterParams, TrackingParams, TuneParams
from sfd.params.quality import QualityParams
from sfd.params.runtime import RuntimeParams
from sfd.params.schedule import ScheduleParams
from sfd.params.text import TextParams
from sfd.params.types import Section, paths_in


class Params(Section):
    """The whole of ``params.yaml``."""

    seed: int = Field(0, ge=0, description="every random draw derives from it")
    data: DataParams
    encoder: EncoderParams
    texture_vae: TextureVaeParams
    judges: tuple[JudgeParams, ...] = Field(strict=False, min_length=1, description="")
    text: TextParams = TextParams.model_validate({})
    features: FeaturesParams
    semantic: SemanticParams
    latents: LatentsParams
    schedule: ScheduleParams
    diffusion: DiffusionParams
    sample: SampleParams
    evaluate: EvaluateParams
    register_: RegisterParams = Field(alias="register", description="")
    tune: TuneParams
    tracking: TrackingParams
    quality: QualityParams = QualityParams.model_validate({})
    runtime: RuntimeParams = RuntimeParams.model_validate({})

    @property
    def first_judge(self) -> JudgeParams:
        """The judge on whose features everything but the distances of other judges rests."""
        return self.judges[0]

    def is_encoder(self, judge: JudgeParams) -> bool:
        """Whether a judge is the vision encoder. Samples were trained towards its features, so its distance is for reporting only."""
        encoder = self.encoder
        return judge.kind == "timm" and (judge.source, judge.model, judge.file) == (
            encoder.source,
            encoder.name,
            encoder.file,
        )

    @property
    def counted_judges(self) -> list[JudgeParams]:
        """The judges whose distances count in gates, studies and `fdr`: all but the encoder."""
        return [judge for judge in self.judges if not self.is_encoder(judge)]

    @property
    def is_told_words(self) -> bool:
        """Whether the model draws for prompts."""
        return self.diffusion.model.condition == "text"

    @property
    def encodes_captions(self) -> bool:
        """Whether a training of the diffusion model encodes captions as batches come."""
        return self.is_told_words and not self.text.store_tokens

    @property
    def needs_features(self) -> bool:
        """Whether anything reads the vision encoder's features: the semantic latents, or REPA through stored features."""
        return self.semantic.kind != "none" or self.latents.store_features

    def paths(self, *keys: str) -> list[Path]:
        """The files and folders that are named at or below these dotted keys, whose content takes part in a result.

        ``data.root`` is none of them: stage ``scan`` looks at the images.
        """
        found: list[Path] = []
        for key in keys:
            node: Any = self
            for name in key.split("."):
                node = None if node is None else getattr(node, "register_" if name == "register" else name)
            found += paths_in(node)
        return found
