"""The files beside a model, ``config.json`` and ``sample.json``: their keys are their own, and older files stay readable."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sfd.data.networks import read_networks
from sfd.errors import UserError
from sfd.generation.model import read_model_folder
from sfd.generation.model_config import write_model_config
from sfd.generation.settings import Settings, read_settings, write_settings
from sfd.models.conditions import ClassCondition, Condition, NoCondition
from sfd.models.lightningdit import LightningDiTConfig
from sfd.params import ScheduleParams

LITERAL_MODEL = {
    "input_size": 4,
    "in_channels": 6,
    "hidden_size": 128,
    "depth": 4,
    "num_heads": 4,
    "patch_size": 1,
    "semantic_channels": 2,
    "two_times": True,
    "use_qknorm": True,
    "use_swiglu": True,
    "use_rope": True,
    "use_rmsnorm": True,
    "use_shift": False,
    "repa_depth": 2,
    "repa_width": 16,
    "feature_dim": 24,
}
LITERAL_SCHEDULE = {"kind": "offset", "tau": 0.4, "gamma": 3.0, "knots": [0.5, 0.5]}
LITERAL_CONFIG = {
    "format": 1,
    "backbone": "lightningdit",
    "model": LITERAL_MODEL,
    "condition": {"kind": "class", "names": ["hoch ü", "quer"], "has_null": True},
    "schedule": LITERAL_SCHEDULE,
    "networks": {"texture_vae": "12ab", "encoder": None, "semantic": None},
}
"""As it stands on disk. A change here is a new format, or a key that older files lack."""
WITHOUT_FORMAT = {
    "model": LITERAL_MODEL | {"num_classes": 2, "use_null_class": True},
    "schedule": LITERAL_SCHEDULE,
    "classes": ["hoch ü", "quer"],
}
"""As it was before there were formats."""
LITERAL_SAMPLE = {
    "format": 1,
    "num_images": 12,
    "batch_size": 5,
    "sampler": "ab2",
    "num_steps": 7,
    "rule": "exact",
    "timestep_shift": 0.3,
    "schedule": None,
    "guidance": {
        "kind": "autoguidance",
        "weak_model": "models/weak",
        "scale_texture": 1.25,
        "scale_semantic": 1.5,
        "start_texture": 0.0,
        "start_semantic": 0.1,
        "end_texture": 0.9,
        "end_semantic": 1.0,
    },
}
"""As it stands on disk. A change here is a new format."""


def config(condition: Condition) -> LightningDiTConfig:
    """What the literals describe."""
    return LightningDiTConfig(
        4, 6, 128, 4, 4, condition, 1, 2, True, use_shift=False, repa_depth=2, repa_width=16, feature_dim=24
    )


CLASSES = ClassCondition(("hoch ü", "quer"))
OFFSET = ScheduleParams.model_validate(LITERAL_SCHEDULE)


def model_folder(folder: Path, content: object) -> Path:
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def sample_file(folder: Path, content: object) -> Path:
    (folder / "sample.json").write_text(json.dumps(content))
    return folder / "sample.json"


@pytest.mark.parametrize("condition", [CLASSES, ClassCondition(("a",), has_null=False), NoCondition()])
@pytest.mark.parametrize("schedule", [{"kind": "sync"}, {"tau": {"low": 0.1, "high": 0.5}}, {"kind": "curve"}])
def test_the_record_of_a_model_gives_its_configuration_again(
    condition: Condition, schedule: dict[str, Any], tmp_path: Path
) -> None:
    described = config(condition), ScheduleParams.model_validate(schedule)
    assert read_model_folder(model_folder(tmp_path, write_model_config(*described, {}))) == described


def test_format_1_of_a_model_is_written_and_read_as_it_stands_here(tmp_path: Path) -> None:
    networks = {"texture_vae": "12ab", "encoder": None, "semantic": None}
    assert write_model_config(config(CLASSES), OFFSET, networks) == LITERAL_CONFIG
    assert read_model_folder(model_folder(tmp_path, LITERAL_CONFIG)) == (config(CLASSES), OFFSET)
    assert read_networks(tmp_path) == networks


def test_a_model_of_two_paths_has_two_more_keys_and_the_same_format(tmp_path: Path) -> None:
    both = replace(config(CLASSES), first_blocks=1, last_blocks=2)
    written = write_model_config(both, OFFSET, {})
    assert written["format"] == 1 and written["model"] == LITERAL_MODEL | {"first_blocks": 1, "last_blocks": 2}
    assert read_model_folder(model_folder(tmp_path, written))[0] == both


def test_a_model_older_than_the_record_of_its_networks_is_read_and_they_are_not_known(tmp_path: Path) -> None:
    older = {key: value for key, value in LITERAL_CONFIG.items() if key != "networks"}
    assert read_model_folder(model_folder(tmp_path, older)) == (config(CLASSES), OFFSET)
    assert read_networks(tmp_path) == {}


def test_a_model_without_a_format_is_read_as_what_it_was(tmp_path: Path) -> None:
    assert read_model_folder(model_folder(tmp_path, WITHOUT_FORMAT)) == (config(CLASSES), OFFSET)
    unguided = WITHOUT_FORMAT | {"model": LITERAL_MODEL | {"num_classes": 2, "use_null_class": False}}
    assert read_model_folder(model_folder(tmp_path, unguided))[0].condition.has_null is False


def test_a_model_older_than_the_other_schedules_has_their_defaults(tmp_path: Path) -> None:
    oldest = WITHOUT_FORMAT | {"schedule": {"kind": "offset", "tau": 0.4}}
    assert read_model_folder(model_folder(tmp_path, oldest))[1] == ScheduleParams(tau=0.4)


def test_a_model_without_a_word_on_its_projector_has_the_mlp_and_the_convolution_is_recorded(tmp_path: Path) -> None:
    assert read_model_folder(model_folder(tmp_path, LITERAL_CONFIG))[0].repa_projector == "mlp"
    conv = replace(config(CLASSES), repa_projector="conv")
    written = write_model_config(conv, OFFSET, {})
    assert written["model"] == LITERAL_MODEL | {"repa_projector": "conv"}
    assert read_model_folder(model_folder(tmp_path, written))[0] == conv


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (WITHOUT_FORMAT | {"classes": ["a"]}, "num_classes is 2, but 1 classes are named"),
        (LITERAL_CONFIG | {"backbone": "lightingdit"}, "nearest: `lightningdit`"),
        (LITERAL_CONFIG | {"model": LITERAL_MODEL | {"widht": 3}}, "unknown keys in the model's configuration: widht"),
        (LITERAL_CONFIG | {"model": LITERAL_MODEL | {"repa_projector": "cnn"}}, "repa_projector is 'cnn'"),
        (LITERAL_CONFIG | {"condition": {"kind": "none", "names": []}}, "condition `none` has no configuration"),
        ({"format": 1}, "'condition'"),
    ],
)
def test_another_record_is_refused_with_its_file_and_a_remedy(content: object, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="config.json does not describe a diffusion model .*rerun stage") as refused:
        read_model_folder(model_folder(tmp_path, content))
    assert reason in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["[]", '{"format": 1', ""])
def test_a_file_that_is_cut_off_or_no_record_at_all_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="config.json holds no JSON object; rerun the stage that makes it"):
        read_model_folder(tmp_path)


@pytest.mark.parametrize("number", [2, 0, "1"])
def test_another_format_is_refused_with_the_remedy(number: object, tmp_path: Path) -> None:
    reason = rf"has format {number!r}, but this version of sfd reads format 1; install the version that wrote the file$"
    with pytest.raises(UserError, match=rf"config\.json {reason}"):
        read_model_folder(model_folder(tmp_path, LITERAL_CONFIG | {"format": number}))
    with pytest.raises(UserError, match=rf"sample\.json {reason}"):
        read_settings(sample_file(tmp_path, LITERAL_SAMPLE | {"format": number}))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sampler": "dopri5", "guidance": {"kind": "cfg", "scale_texture": 2.0}},
        {"schedule": {"tau": 0.2}, "class_mix": "natural"},
        {"other_networks": True},
        {"precision": "bf16"},
        {"sampler": "ab2", "num_steps": 2, "times": [0.0, 0.4]},
        {"schedule": {"kind": "curve", "knots": [0.0, 1.0]}, "rule": "published", "timestep_shift": 0.5},
    ],
)
def test_the_record_of_settings_gives_them_again(changes: dict[str, Any], tmp_path: Path) -> None:
    settings = Settings.model_validate({"batch_size": 3, "guidance": {}} | changes)
    write_settings(tmp_path / "sample.json", settings)
    assert read_settings(tmp_path / "sample.json") == settings


def test_format_1_of_settings_is_written_and_read_as_it_stands_here(tmp_path: Path) -> None:
    settings = read_settings(sample_file(tmp_path, LITERAL_SAMPLE))
    assert (settings.num_steps, settings.guidance.weak_model) == (7, Path("models/weak"))
    write_settings(tmp_path / "again.json", settings)
    assert json.loads((tmp_path / "again.json").read_text()) == LITERAL_SAMPLE


def test_settings_that_do_not_say_a_precision_are_of_float32_and_others_than_two_are_refused(tmp_path: Path) -> None:
    assert read_settings(sample_file(tmp_path, LITERAL_SAMPLE)).precision == "fp32"
    with pytest.raises(UserError, match="does not hold the settings of a registered model"):
        read_settings(sample_file(tmp_path, LITERAL_SAMPLE | {"precision": "auto"}))


def test_settings_without_a_format_are_read_and_the_oldest_ones_too(tmp_path: Path) -> None:
    before = {key: value for key, value in LITERAL_SAMPLE.items() if key != "format"}
    settings = read_settings(sample_file(tmp_path, LITERAL_SAMPLE))
    assert read_settings(sample_file(tmp_path, before)) == settings
    assert read_settings(sample_file(tmp_path, before | {"schedule": LITERAL_SCHEDULE})).schedule == OFFSET
    del before["schedule"]
    assert read_settings(sample_file(tmp_path, before)) == settings


@pytest.mark.parametrize("content", [{}, [], {"guidance": 3}, LITERAL_SAMPLE | {"num_steps": 0}])
def test_other_settings_are_refused_with_their_file_and_a_remedy(content: object, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sample.json does not hold the settings of a registered model .*register it"):
        read_settings(sample_file(tmp_path, content))


def test_settings_older_than_the_ends_of_guidance_guide_up_to_the_data(tmp_path: Path) -> None:
    guidance = {key: value for key, value in LITERAL_SAMPLE["guidance"].items() if not key.startswith("end_")}
    found = read_settings(sample_file(tmp_path, LITERAL_SAMPLE | {"guidance": guidance})).guidance
    assert (found.end_texture, found.end_semantic) == (1.0, 1.0)
