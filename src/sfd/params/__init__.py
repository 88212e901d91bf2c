"""Every option of the platform, declared once: name, type, limits, unit and meaning; the rules between options; params files as YAML.

``params.yaml`` is read into :class:`Params`; the CLI, the DVC stages and MLflow's logged parameters all read it from here.
Defaults are the paper's values (arXiv 2512.04926) where it has one; a field without a default must be written out.
"""

from sfd.params.describe import describe_params
from sfd.params.diffusion import (
    DiffusionParams,
    DiffusionTrainingParams,
    GuidanceParams,
    LoraParams,
    LossParams,
    ModelParams,
    SampleParams,
    registered_model,
)
from sfd.params.grid import check_patch_size, check_token_groups, shared_grid
from sfd.params.halving import candidate_values, candidates, round_sizes, round_steps
from sfd.params.judging import known_metrics
from sfd.params.mistakes import describe_mistakes, shown
from sfd.params.networks import (
    AlignmentParams,
    DataParams,
    EncoderParams,
    FeaturesParams,
    JudgeParams,
    LatentsParams,
    SemanticParams,
    TextureVaeParams,
    TrainingParams,
)
from sfd.params.operations import (
    CHAMPION,
    LOCK_ENDING,
    MAX_MODEL_NAME,
    PREVIOUS,
    VARIABLE,
    EvaluateParams,
    GateParams,
    HalvingParams,
    RegisterParams,
    SpaceParams,
    TrackingParams,
    TuneParams,
)
from sfd.params.parse import (
    current_value,
    dump_params,
    load_params,
    parse_params,
    select,
    to_tree,
    with_values,
)
from sfd.params.quality import QualityParams
from sfd.params.rules import check_sampling_schedule
from sfd.params.runtime import CompileMode, InferenceRuntime, ReadingRuntime, RuntimeParams, Sharding, TrainingRuntime
from sfd.params.schedule import LearntParams, ScheduleParams, TauRange
from sfd.params.schema import Params
from sfd.params.study import (
    JOURNAL,
    KNOTS,
    POSTGRES,
    SQLITE,
    TIME_PARTS,
    TIMES,
    check_storage_address,
    check_study,
    even_times,
    holds_whole_numbers,
    knot_parts,
    start_values,
)
from sfd.params.text import TextParams
from sfd.params.tokens import SparseDeepParams, TokenRoutingParams
from sfd.params.types import ComputedIn, FilePath, Fraction, OneOf, Positive, Precision, Scale, Section
from sfd.params.yaml import as_yaml, dump_tree, parse_yaml, read_tree
from sfd.sizes import ModelSize

__all__ = [
    "CHAMPION",
    "JOURNAL",
    "KNOTS",
    "LOCK_ENDING",
    "MAX_MODEL_NAME",
    "POSTGRES",
    "PREVIOUS",
    "SQLITE",
    "TIMES",
    "TIME_PARTS",
    "VARIABLE",
    "AlignmentParams",
    "CompileMode",
    "ComputedIn",
    "DataParams",
    "DiffusionParams",
    "DiffusionTrainingParams",
    "EncoderParams",
    "EvaluateParams",
    "FeaturesParams",
    "FilePath",
    "Fraction",
    "GateParams",
    "GuidanceParams",
    "HalvingParams",
    "InferenceRuntime",
    "JudgeParams",
    "LatentsParams",
    "LearntParams",
    "LoraParams",
    "LossParams",
    "ModelParams",
    "ModelSize",
    "OneOf",
    "Params",
    "Positive",
    "Precision",
    "QualityParams",
    "ReadingRuntime",
    "RegisterParams",
    "RuntimeParams",
    "SampleParams",
    "Scale",
    "ScheduleParams",
    "Section",
    "SemanticParams",
    "Sharding",
    "SpaceParams",
    "SparseDeepParams",
    "TauRange",
    "TextParams",
    "TextureVaeParams",
    "TokenRoutingParams",
    "TrackingParams",
    "TrainingParams",
    "TrainingRuntime",
    "TuneParams",
    "as_yaml",
    "candidate_values",
    "candidates",
    "check_patch_size",
    "check_sampling_schedule",
    "check_storage_address",
    "check_study",
    "check_token_groups",
    "current_value",
    "describe_mistakes",
    "describe_params",
    "dump_params",
    "dump_tree",
    "even_times",
    "holds_whole_numbers",
    "knot_parts",
    "known_metrics",
    "load_params",
    "parse_params",
    "parse_yaml",
    "read_tree",
    "registered_model",
    "round_sizes",
    "round_steps",
    "select",
    "shared_grid",
    "shown",
    "start_values",
    "to_tree",
    "with_values",
]
