"""params.yaml and the presets: complete, checked across sections, and refused with a reason when wrong."""

import copy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from sfd.errors import UserError
from sfd.names import SIZES
from sfd.params import (
    LoraParams,
    ModelSize,
    Params,
    SpaceParams,
    describe_params,
    dump_params,
    load_params,
    parse_params,
)

ROOT = Path(__file__).parents[1]
FILES = [ROOT / "params.yaml", *(ROOT / f"presets/{name}.yaml" for name in ("digits", "imagenet256-sfd-xl"))]
"""The complete ones; see test_preset.py for the overlays."""
SFD = Path(sys.executable).with_name("sfd")
NETWORKS = ["encoder", "texture_vae", "judge", "semantic", "diffusion"]
KEYS = """
NETWORK.training.accumulation_steps
NETWORK.training.batch_size
NETWORK.training.beta2
NETWORK.training.checkpoint_every
NETWORK.training.compile
NETWORK.training.decay
NETWORK.training.ema_decay
NETWORK.training.learning_rate
NETWORK.training.log_every
NETWORK.training.max_grad_norm
NETWORK.training.num_steps
NETWORK.training.num_workers
NETWORK.training.precision
NETWORK.training.warmup_steps
NETWORK.training.weight_decay
data.duplicates
data.holdout_fraction
data.image_column
data.image_size
data.label_column
data.max_pixels
data.max_rejected_fraction
data.mirror
data.revision
data.root
data.source
data.split
diffusion.file
diffusion.grid_every
diffusion.grid_images
diffusion.init_from
diffusion.init_statistics
diffusion.lora.alpha
diffusion.lora.rank
diffusion.loss.cosine_weight
diffusion.loss.repa_depth
diffusion.loss.repa_target
diffusion.loss.repa_weight
diffusion.loss.repa_width
diffusion.loss.semantic_weight
diffusion.loss.time_mean
diffusion.loss.time_std
diffusion.loss.timestep_sampling
diffusion.loss.velocity_weight
diffusion.model.backbone
diffusion.model.class_dropout
diffusion.model.condition
diffusion.model.patch_size
diffusion.model.size
diffusion.model.use_qknorm
diffusion.model.use_rmsnorm
diffusion.model.use_rope
diffusion.model.use_shift
diffusion.model.use_swiglu
diffusion.sharding
diffusion.source
encoder.depth
encoder.file
encoder.input_size
encoder.name
encoder.num_heads
encoder.patch_size
encoder.source
encoder.width
evaluate.batch_size
evaluate.kid_subset_size
evaluate.kid_subsets
evaluate.neighbours
evaluate.reference
features.batch_size
features.max_images
features.shard_size
judge.channels
judge.file
judge.kind
judge.name
judge.source
latents.batch_size
latents.shard_size
latents.statistics_images
latents.store_features
register.alias
register.gates.KEY.improve
register.gates.KEY.limit
register.name
sample.batch_size
sample.guidance.kind
sample.guidance.scale_semantic
sample.guidance.scale_texture
sample.guidance.start_semantic
sample.guidance.start_texture
sample.guidance.weak_model
sample.num_images
sample.num_steps
sample.rule
sample.sampler
sample.schedule
sample.timestep_shift
schedule.gamma
schedule.kind
schedule.knots
schedule.tau
seed
semantic.depth
semantic.kind
semantic.kl_weight
semantic.latent_channels
semantic.num_heads
semantic.width
texture_vae.channels
texture_vae.file
texture_vae.kl_weight
texture_vae.latent_channels
texture_vae.layers_per_block
texture_vae.name
texture_vae.source
tracking.experiment
tracking.required
tune.confirm_repeats
tune.heartbeat_seconds
tune.kind
tune.minutes
tune.num_images
tune.objectives
tune.pruner
tune.refine_steps
tune.repeats
tune.report_every
tune.sampler
tune.space.KEY.choices
tune.space.KEY.high
tune.space.KEY.log
tune.space.KEY.low
tune.space.KEY.step
tune.storage
tune.study
tune.trials
""".split()
"""The frozen surface of params.yaml, sorted; a change here is a change for every user."""

DIGITS: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    """The shipped parameters with some dotted keys set."""
    tree = copy.deepcopy(DIGITS)
    for key, value in changes.items():
        *sections, last = key.split(".")
        inner = tree
        for section in sections:
            inner = inner[section]
        inner[last] = value
    return tree


def refusal(changes: dict[str, Any]) -> str:
    with pytest.raises(UserError) as error:
        parse_params(changed(changes))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_shipped_file_is_valid_and_writes_out_every_field(file: Path) -> None:
    params = load_params(file)
    written = yaml.safe_load(file.read_text())
    space = written["tune"].pop("space")
    assert all(set(limits) <= set(SpaceParams.model_fields) for limits in space.values())
    dumped = params.model_dump(by_alias=True)
    dumped["tune"].pop("space")
    assert sorted(leaves(written)) == sorted(leaves(dumped))


def test_the_digits_preset_is_the_params_file_that_is_shipped() -> None:
    assert (ROOT / "presets/digits.yaml").read_bytes() == (ROOT / "params.yaml").read_bytes()


def test_the_imagenet_preset_is_the_papers_xl_run_and_names_its_result_and_source() -> None:
    file = ROOT / "presets/imagenet256-sfd-xl.yaml"
    comment = "".join(line for line in file.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert "3.53" in comment and "2512.04926" in comment
    params = load_params(file)
    diffusion = params.diffusion
    assert (diffusion.model.size, params.schedule.kind, params.schedule.tau) == ("XL", "offset", 0.3)
    assert (diffusion.loss.velocity_weight, diffusion.loss.semantic_weight) == (1.0, 2.0)
    assert (diffusion.loss.cosine_weight, diffusion.loss.repa_weight) == (1.0, 1.0)
    assert (diffusion.loss.repa_depth, diffusion.loss.repa_width) == (2, 2048)
    training = diffusion.training
    assert (training.num_steps, training.batch_size, training.learning_rate) == (400_000, 256, 1e-4)
    assert (training.decay, training.weight_decay, training.ema_decay) == ("constant", 0.0, 0.9999)
    assert (training.beta2, training.max_grad_norm, training.precision) == (0.999, None, "auto")
    assert (params.sample.num_images, params.sample.sampler, params.sample.guidance.kind) == (50_000, "dopri5", "none")
    assert params.judge.name == "inception"
    assert params.encoder.input_size // params.encoder.patch_size == 16


def test_what_is_printed_reads_back_as_the_same_parameters() -> None:
    for file in FILES:
        params = load_params(file)
        assert parse_params(yaml.safe_load(dump_params(params))) == params


def test_the_keys_are_exactly_these_so_that_growth_is_a_decision() -> None:
    expanded = [
        key.replace("NETWORK", network) for key in KEYS for network in (NETWORKS if key.startswith("NETWORK") else [""])
    ]
    assert sorted(KEYS) == KEYS
    dumped = parse_params(DIGITS).model_dump(by_alias=True)
    for section, mapping in (("tune", "space"), ("register", "gates")):
        dumped[section][mapping] = {"KEY": next(iter(dumped[section][mapping].values()))}
    dumped["diffusion"]["lora"] = LoraParams().model_dump()
    assert sorted(leaves(dumped)) == sorted(expanded)


def test_the_description_lists_every_field_once_and_says_what_network_stands_for() -> None:
    table = describe_params()
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| `")]
    assert sorted(row[0].strip("|` ") for row in rows) == KEYS
    assert all(len(row) == 4 and row[3].strip(" |") for row in rows)
    assert f"`NETWORK` is one of {', '.join(f'`{name}`' for name in NETWORKS)}." in table.splitlines()[-1]


def test_sizes_have_one_list_and_the_description_agrees_with_it() -> None:
    assert list(get_args(ModelSize)) == list(SIZES)
    assert "XL 1152x28x16" in describe_params()


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("diffusion.training.learning_rat", "diffusion.training.learning_rate"),
        ("schedule.tua", "schedule.tau"),
        ("sedd", "seed"),
        ("encoder.training.ema", "encoder.training.ema_decay"),
        ("register_", "register"),
    ],
)
def test_a_misspelt_key_is_refused_with_the_nearest_valid_one(key: str, nearest: str) -> None:
    message = refusal({key: 0.5})
    assert f"unknown key `{key}`" in message and f"`{nearest}`" in message


@pytest.mark.parametrize("key", ["schedule", "sample.guidance", "diffusion.model.size", "judge.name"])
def test_a_missing_section_or_key_without_default_is_named(key: str) -> None:
    tree = copy.deepcopy(DIGITS)
    inner = tree
    *sections, last = key.split(".")
    for section in sections:
        inner = inner[section]
    del inner[last]
    with pytest.raises(UserError, match=f"key `{key}` is missing"):
        parse_params(tree)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("diffusion.training.num_steps", True),
        ("diffusion.training.num_steps", 2.0),
        ("diffusion.training.num_steps", "200"),
        ("diffusion.training.num_steps", 0),
        ("diffusion.training.learning_rate", True),
        ("diffusion.training.learning_rate", "0.3"),
        ("diffusion.training.learning_rate", float("nan")),
        ("diffusion.loss.cosine_weight", float("inf")),
        ("diffusion.training.max_grad_norm", "1"),
        ("diffusion.training.compile", 1),
        ("diffusion.training.compile", "no"),
        ("diffusion.training.precision", "fp16"),
        ("diffusion.sharding", "zero"),
        ("diffusion.model.patch_size", True),
        ("diffusion.model.patch_size", 3),
        ("diffusion.model.size", "XXL"),
        ("data.root", 3),
        ("data.split", "train[:10%]"),
        ("texture_vae.channels", []),
        ("texture_vae.channels", "8, 16"),
        ("judge.channels", [16, 32, 64]),
        ("judge.name", "my judge"),
        ("schedule.tau", 1.5),
        ("schedule.tau", None),
        ("features", None),
        ("register.alias", "1st"),
        ("seed", -1),
    ],
)
def test_a_wrong_type_or_range_is_refused_with_key_value_and_rule(key: str, value: object) -> None:
    message = refusal({key: value})
    assert f"`{key}` is {value!r}, but: " in message and len(message.split("but: ")[1]) > 10


@pytest.mark.parametrize("value", [True, "8", 8.0, 0])
def test_a_wrong_entry_in_a_list_is_named_by_its_place(value: object) -> None:
    assert f"`texture_vae.channels.1` is {value!r}" in refusal({"texture_vae.channels": [8, value]})


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("schedule.tau", 1, 1.0),
        ("diffusion.training.max_grad_norm", None, None),
        ("diffusion.training.max_grad_norm", 2, 2.0),
        ("texture_vae.channels", [8, 8, 8, 8], (8, 8, 8, 8)),
        ("diffusion.training.compile", True, True),
    ],
)
def test_whole_numbers_for_fractions_lists_and_nulls_are_accepted(key: str, value: object, expected: object) -> None:
    found: Any = parse_params(changed({key: value}))
    for part in key.split("."):
        found = getattr(found, part)
    assert found == expected and type(found) is type(expected)


PLAIN = {
    "semantic.kind": "none",
    "schedule.kind": "sync",
    "sample.guidance.scale_semantic": 1,
    "latents.store_features": False,
    "diffusion.loss.repa_weight": 0,
}
"""Texture alone, by itself."""
PRETRAINED_JUDGE = {
    "judge.kind": "inception",
    "judge.source": "pretrained",
    "judge.name": "inception",
    "judge.training": None,
}
FID_GATE = {"register.gates": {"fid": {"limit": 4.0, "improve": True}}}
CFG = {"sample.guidance.kind": "cfg", "sample.guidance.scale_texture": 1.5}


WARM = {"diffusion.training.warmup_steps": 10}
NO_CONDITION = {
    "diffusion.model.condition": "none",
    "diffusion.model.class_dropout": 0,
    "sample.guidance": {},
    "register.gates": {"class_accuracy_heldout": {"limit": 0.9}},
}
"""A model that is told nothing, by itself."""


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"data.image_size": 64}, ["share one grid", "data.image_size 64 / 8 = 8", "= 4"]),
        ({"data.revision": "main"}, ["data.revision is 'main'", "data.source is `digits`", "null"]),
        ({"data.image_column": "label"}, ["image_column and data.label_column are both 'label'"]),
        ({"encoder.input_size": 30}, ["encoder.input_size 30", "encoder.patch_size 8"]),
        ({"encoder.num_heads": 5}, ["encoder.width 96", "encoder.num_heads 5"]),
        ({"semantic.num_heads": 3}, ["semantic.width 128", "semantic.num_heads 3"]),
        ({"semantic.training": None}, ["kind is `semvae`", "semantic.training must be given"]),
        (
            {"semantic.kind": "pca", "semantic.latent_channels": 97},
            ["latent_channels 97 must be at most encoder.width 96"],
        ),
        (PLAIN | {"schedule.kind": "offset"}, ["kind is `none`", "must be `sync`, not `offset`"]),
        (PLAIN | {"sample.guidance.scale_semantic": 1.25}, ["kind is `none`", "scale_semantic must be 1"]),
        (PLAIN | {"sample.guidance.start_semantic": 0.1}, ["kind is `none`", "start_semantic 0"]),
        (PLAIN | {"encoder.source": "none", "data.image_size": 36}, ["data.image_size 36 must be a multiple of 8"]),
        (
            PLAIN | {"encoder.source": "none", "data.image_size": 40, "diffusion.model.patch_size": 2},
            ["grid 5 (data.image_size / 8)", "patch_size 2"],
        ),
        ({"encoder.source": "none"}, ["encoder.source is `none`, but semantic.kind is `semvae`"]),
        (
            PLAIN | {"encoder.source": "none", "latents.store_features": True},
            ["encoder.source is `none`, but latents.store_features is true"],
        ),
        (
            {"encoder.source": "none", "encoder.file": "vit.pth"},
            ["encoder.file is 'vit.pth'", "`none`", "reads no file"],
        ),
        ({"encoder.source": "file"}, ["encoder.file must name"]),
        ({"texture_vae.source": "pretrained"}, ["texture_vae.name must be given"]),
        ({"texture_vae.file": "vae"}, ["texture_vae.file is 'vae'", "`train`", "null"]),
        ({"judge.training": None}, ["judge.training must be given"]),
        ({"diffusion.source": "file"}, ["diffusion.file must name the weights"]),
        ({"diffusion.file": "weights"}, ["diffusion.file is 'weights'", "`train`, which reads no file"]),
        (PRETRAINED_JUDGE | {"judge.name": "v3"}, ["judge.name is 'v3'", "call it `inception`"]),
        (
            PRETRAINED_JUDGE | {"judge.source": "file", "judge.file": "w.pth", "judge.name": "v3"},
            ["judge.name is 'v3'", "call it `inception`"],
        ),
        (PRETRAINED_JUDGE | {"judge.file": "w.pth"}, ["judge.file is 'w.pth'", "`pretrained`"]),
        ({"judge.name": "inception"}, ["`inception` is kept for Inception-v3"]),
        ({"judge.name": "heldout"}, ["'heldout' is taken", "fd_heldout"]),
        ({"judge.name": "reconstruction"}, ["'reconstruction' is taken", "fd_reconstruction"]),
        ({"latents.store_features": False}, ["repa_weight", "latents.store_features must be true", "`decoded`"]),
        ({"diffusion.lora": {"rank": 4}}, ["diffusion.lora adapts a trained model", "init_from is null"]),
        (
            WARM | {"diffusion.source": "file", "diffusion.file": "weights", "diffusion.init_from": "a model"},
            ["diffusion.source is `file`", "set source to `train`"],
        ),
        (
            WARM | {"diffusion.init_from": "a model", "diffusion.lora": {}, "diffusion.sharding": "fsdp"},
            ["diffusion.lora", "set sharding to `ddp`"],
        ),
        (
            PLAIN | {"diffusion.loss.repa_weight": 1.0, "diffusion.loss.repa_target": "decoded"},
            ["repa_target is `decoded`", "semantic.kind is `none`", "`stored`"],
        ),
        (WARM | {"diffusion.init_from": "models:/sfd"}, ["'models:/sfd' is no address", "models:/NAME@ALIAS"]),
        (WARM | {"diffusion.init_from": "models:/sfd/0"}, ["is no address"]),
        (
            WARM | {"diffusion.init_from": "results/diffusion/model"},
            ["DVC removes results/diffusion", "copy the model"],
        ),
        (
            {"diffusion.init_from": "models/b", "diffusion.training.warmup_steps": 0},
            ["init_from is set", "warmup_steps must be above 0"],
        ),
        ({"diffusion.loss.repa_depth": 5}, ["repa_depth is 5", "size tiny has 4 blocks"]),
        ({"diffusion.model.patch_size": 2}, ["repa_weight", "patch_size 2 to 1"]),
        (
            {f"diffusion.loss.{term}_weight": 0 for term in ("velocity", "cosine", "repa")},
            ["velocity_weight, cosine_weight and repa_weight are all 0"],
        ),
        ({"sample.guidance.kind": "autoguidance"}, ["weak_model is needed"]),
        ({"sample.guidance.weak_model": "models/b"}, ["weak_model is needed", "no other kind"]),
        ({"sample.guidance.kind": "none"}, ["kind is `none`", "scales must be 1"]),
        (CFG | {"diffusion.model.class_dropout": 0}, ["class_dropout must be above 0"]),
        ({"register.gates": {"fd_digit_judge": {"limit": 1.0}}}, ["no metric `fd_digit_judge`", "`fd_digits_judge`"]),
        ({"register.gates": {"fid": {"limit": 1.0}}}, ["judge `digits_judge` gives no metric `fid`"]),
        ({"judge.name": "eye"}, ["no metric `fd_digits_judge`"]),
        ({"register.gates": {"kid": {"improve": True}}}, ["kid.improve", "standard error (fd_digits_judge", "limit"]),
        ({"register.gates": {"fd_heldout": {"improve": True}}}, ["fd_heldout.improve", "standard error"]),
        ({"register.gates": {"recall": {"limit": None}}}, ["a gate needs a limit, or improve: true"]),
        (
            {"register.gates": {"recall": {"limits": 0.5}}},
            ["unknown key `register.gates.recall.limits`", "recall.limit`"],
        ),
        (PRETRAINED_JUDGE | {"register.gates": {"class_accuracy": {"limit": 0.9}}}, ["no metric `class_accuracy`"]),
        (
            {"evaluate.reference": "ref.npz"},
            ["evaluate.reference is 'ref.npz'", "the judge is `digits_judge`", "to null"],
        ),
        (NO_CONDITION | {"diffusion.model.class_dropout": 0.1}, ["nothing to drop", "class_dropout 0.1 to 0"]),
        (NO_CONDITION | {"sample.guidance": {"kind": "cfg", "scale_texture": 2}}, ["null condition", "`autoguidance`"]),
        (
            NO_CONDITION | {"register.gates": {"class_accuracy": {"limit": 0.9}}},
            ["register.gates.class_accuracy", "condition is `none`", "remove the gate"],
        ),
        ({"register.gates": {"sfid": {"limit": 9.0}}}, ["judge `digits_judge` gives no metric `sfid`"]),
        (PRETRAINED_JUDGE | {"register.gates": {"sfid": {"improve": True}}}, ["sfid.improve", "limit"]),
        ({"register.alias": "champion"}, ["alias `champion`", "`sfd models promote`"]),
        ({"register.alias": "previous"}, ["alias `previous`"]),
    ],
)
def test_options_that_do_not_fit_each_other_are_refused(changes: dict[str, Any], named: list[str]) -> None:
    message = refusal(changes)
    for part in named:
        assert part in message


@pytest.mark.parametrize(
    "changes",
    [
        {"data.image_size": 64, "encoder.input_size": 64},
        {"semantic.kind": "pca", "semantic.training": None, "semantic.latent_channels": 96, "semantic.num_heads": 3},
        {"semantic.kind": "pca", "schedule.kind": "sync"},
        PLAIN,
        PLAIN | {"semantic.training": None, "diffusion.loss.repa_weight": 1, "latents.store_features": True},
        PLAIN | {"encoder.source": "none", "encoder.training": None, "data.image_size": 40},
        PLAIN
        | {"encoder.source": "none", "texture_vae.source": "file", "texture_vae.file": "vae", "data.image_size": 36},
        {"data.source": "huggingface", "data.root": "owner/name", "data.revision": "main", "data.split": "train+test"},
        {"data.source": "tar", "data.root": "shards"},
        {"encoder.source": "file", "encoder.file": "vit.safetensors", "encoder.training": None},
        {"texture_vae.source": "file", "texture_vae.file": "vae", "data.image_size": 64},
        PRETRAINED_JUDGE | FID_GATE,
        PRETRAINED_JUDGE | FID_GATE | {"judge.source": "file", "judge.file": "w.pth"},
        PRETRAINED_JUDGE | FID_GATE | {"evaluate.reference": "VIRTUAL_imagenet256_labeled.npz"},
        PRETRAINED_JUDGE | {"register.gates": {"sfid": {"limit": 9.0}}},
        {"register.gates": {}},
        {"register.gates": {"kid": {"limit": 0.01}, "fd_heldout": {"limit": 1}, "recall": {"improve": True}}},
        {"latents.store_features": False, "diffusion.loss.repa_weight": 0},
        {"latents.store_features": False, "diffusion.loss.repa_target": "decoded"},
        WARM | {"diffusion.init_from": "../other/results/diffusion/model"},
        WARM | {"diffusion.init_from": "models:/sfd@champion", "diffusion.lora": {}},
        WARM | {"diffusion.init_from": "models:/sfd/12", "diffusion.init_statistics": "new"},
        {"diffusion.model.patch_size": 2, "diffusion.loss.repa_weight": 0},
        {"diffusion.loss.velocity_weight": 0, "diffusion.loss.cosine_weight": 0},
        {"sample.guidance.kind": "autoguidance", "sample.guidance.weak_model": "models/b"},
        CFG,
        NO_CONDITION,
        NO_CONDITION | {"sample.guidance": {"kind": "autoguidance", "weak_model": "models/b", "scale_texture": 2}},
        {"register.gates": {"class_accuracy": {"limit": 0.9}}},
        {"schedule.kind": "sync"},
        {"diffusion.source": "file", "diffusion.file": "weights"},
    ],
)
def test_options_that_fit_each_other_are_accepted(changes: dict[str, Any]) -> None:
    assert isinstance(parse_params(changed(changes)), Params)


def test_parameters_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse_params(DIGITS).seed = 1  # type: ignore[misc]


def test_many_mistakes_are_named_together_and_the_rest_counted() -> None:
    message = refusal({f"data.wrong{n}": n for n in range(7)})
    assert message.count("unknown key") == 5 and message.endswith("and 2 more")


def test_a_huge_wrong_value_is_cut_short() -> None:
    assert len(refusal({"sections": {"x": "y" * 5000}})) < 250


@pytest.mark.parametrize(("text", "value"), [("1e-4", 1e-4), ("2E-3", 2e-3), ("1.5e-4", 1.5e-4), ("0.01", 0.01)])
def test_numbers_are_read_as_dvc_reads_them(tmp_path: Path, text: str, value: float) -> None:
    file = tmp_path / "params.yaml"
    file.write_text((ROOT / "params.yaml").read_text().replace("learning_rate: 0.001", f"learning_rate: {text}"))
    assert load_params(file).diffusion.training.learning_rate == value


def wrong_file(folder: Path, content: bytes) -> Path:
    file = folder / "wrong.yaml"
    file.write_bytes(content)
    return file


SHIPPED = (ROOT / "params.yaml").read_bytes()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"seed: [1", "is not valid YAML"),
        (b"\xff\xfe\x00", "is not valid YAML"),
        (b"", "must be a mapping of sections"),
        (b"- seed", "must be a mapping of sections"),
        (SHIPPED + b"\nseed: 1\n", "key `seed` stands twice"),
        (SHIPPED.replace(b"tau: 0.3", b"tau: 0.3\n  tau: 0.2"), "key `tau` stands twice"),
        (SHIPPED + b"\n1: 2\n", "`1` is"),
    ],
)
def test_a_file_that_is_no_params_file_is_refused(tmp_path: Path, content: bytes, named: str) -> None:
    with pytest.raises(UserError) as error:
        load_params(wrong_file(tmp_path, content))
    assert named in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist; run in the project's folder"):
        load_params(tmp_path / "params.yaml")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        load_params(tmp_path)


def test_the_command_prints_the_resolved_parameters_or_one_line_that_says_what_is_wrong(tmp_path: Path) -> None:
    good = subprocess.run([SFD, "params", "--file", ROOT / "params.yaml"], capture_output=True, text=True)
    assert good.returncode == 0
    assert parse_params(yaml.safe_load(good.stdout)) == load_params(ROOT / "params.yaml")
    file = wrong_file(tmp_path, SHIPPED.replace(b"  tau: 0.3", b"  tua: 0.3"))
    bad = subprocess.run([SFD, "params", "--file", file], capture_output=True, text=True)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith(f"error: {file}: unknown key `schedule.tua`") and bad.stderr.count("\n") == 1


def test_the_command_describes_all_options() -> None:
    run = subprocess.run([SFD, "params", "--describe"], capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout.strip() == describe_params()
