"""Presets: valid, of the published size, able to learn at digits size; found, shown and written by the command line."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from support import REPOSITORY, environment
from twins import twin

from sfd import preset
from sfd.bench.networks import bench_config, latent_shape
from sfd.data.latents import LatentBatch
from sfd.errors import UserError
from sfd.generation.schedules import build_training_schedule
from sfd.models.backbone import build_backbone
from sfd.models.conditions import ClassCondition
from sfd.models.flux2_config import Flux2Config
from sfd.models.lightningdit_config import LightningDiTConfig
from sfd.params import Params, ScheduleParams, check_study, load_params, parse_params, with_values
from sfd.preset import list_presets, load_preset, names, render, top_comments
from sfd.training.backbone import backbone_config
from sfd.training.diffusion import DiffusionTask

RELEASED = json.loads((REPOSITORY / "tests/data/conformance/released_checkpoint_shapes.json").read_text())
IMAGENET = {
    "imagenet256-autoguidance-b": 130,
    "imagenet256-dit-xl": 675,
    "imagenet256-lightningdit-xl": 675,
    "imagenet256-lightningdit-xl-repa": 675,
    "imagenet256-lwd-xl": 675,
    "imagenet256-redi-sfd": 675,
    "imagenet256-redi-xl": 675,
    "imagenet256-sfd-1p0b": None,
    "imagenet256-sfd-b": 130,
    "imagenet256-sfd-l": 458,
    "imagenet256-sfd-xl": 675,
    "imagenet256-sfd-xl-lr2e-4": 675,
    "imagenet256-vavae": 675,
    "imagenet256-vavae-sfd": 675,
    "imagenet512-sfd-xl": None,
}
"""Published millions of parameters: the fixed position table counts, REPA's projector does not (1.0B is published as 1.0 billion)."""
RESULTS = {
    "imagenet256-autoguidance-b": (1.30, 1.29, 1.06, 1.03),
    "imagenet256-lightningdit-xl": (9.29, 6.50),
    "imagenet256-lightningdit-xl-repa": (6.94, 5.84),
    "imagenet256-sfd-1p0b": (2.84, 2.92, 2.38, 2.36, 1.19, 1.20, 1.04),
    "imagenet256-sfd-b": (10.40,),
    "imagenet256-sfd-l": (3.89,),
    "imagenet256-sfd-xl": (3.43, 3.50, 3.53, 2.54, 2.66, 1.30, 1.29, 1.06, 1.03),
    "imagenet256-sfd-xl-lr2e-4": (3.23, 1.38),
    "imagenet256-lwd-xl": (2.87, 2.37, 2.14, 1.14, 1.05, 1.02),
}
"""Published FID, as the comments say it; the other presets have none."""
EXACT = {
    "imagenet256-autoguidance-b": "sfd_autoguidance_b",
    "imagenet256-sfd-b": "sfd_autoguidance_b",
    "imagenet256-sfd-xl": "sfd_xl",
    "imagenet256-sfd-xl-lr2e-4": "sfd_xl",
    "imagenet256-sfd-1p0b": "sfd_1p0",
    "imagenet256-vavae-sfd": "sfd_xl",
    "imagenet512-sfd-xl": "sfd_xl",
}
"""Presets whose backbone is, but for the length of its position table, that of published weights."""


class NoData:
    def __len__(self) -> int:
        return 1

    def __getitems__(self, _indices: list[int]) -> LatentBatch:
        raise NotImplementedError


def backbone(params: Params, num_classes: int, feature_dim: int) -> LightningDiTConfig | Flux2Config:
    """The backbone for the latents that the parameters describe."""
    config = backbone_config(
        params.diffusion,
        params.schedule,
        ClassCondition.numbered(num_classes),
        grid=params.data.image_size // 2 ** (len(params.texture_vae.channels) - 1),
        texture_channels=params.texture_vae.latent_channels,
        semantic_channels=0 if params.semantic.kind == "none" else params.semantic.latent_channels,
        feature_dim=feature_dim,
    )
    assert isinstance(config, LightningDiTConfig | Flux2Config)
    return config


def comments(name: str) -> str:
    return "".join(re.findall(r"\A(?:#.*\n)+", (REPOSITORY / f"presets/{name}.yaml").read_text()))


PHOTOS = ("photos256", "photos256-finetune", "photos64")


def test_the_presets_are_exactly_these() -> None:
    assert names() == ["digits", "digits-learnt", *IMAGENET, *PHOTOS, "sefi-1b"]


@pytest.mark.parametrize("name", (*PHOTOS, "sefi-1b"))
def test_a_preset_for_photos_says_what_it_needs_costs_and_gives(name: str) -> None:
    shown = top_comments(render(name))
    assert {"Needs", "Gives", "Before the first run"} <= set(re.findall(r"^# ([A-Z][\w ]*): ", shown, re.MULTILINE))
    assert "ImageNet's training images" not in shown and "not measured" in shown and "none measured" in shown


@pytest.mark.parametrize("name", names())
def test_a_preset_is_valid_and_complete_when_shown_and_its_study_could_run(name: str, tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(render(name))
    assert load_params(file) == load_preset(name)
    assert set(yaml.safe_load(render(name))) == set(Params.model_json_schema()["properties"])
    check_study(load_preset(name))
    assert render(name).startswith(comments(name))


@pytest.mark.parametrize("name", names())
def test_the_comments_name_the_preset_the_result_it_should_give_and_its_source(name: str) -> None:
    text = comments(name)
    assert text.startswith(f"# Preset {name}: ")
    if name in RESULTS:
        assert ("arXiv 2606.19662" if "lwd" in name else "arXiv 2512.04926") in text and all(
            f" {number:.2f}" in text for number in RESULTS[name]
        )
    elif not name.startswith("digits"):
        assert re.search(r"Result to expect: (none|no published number)", text)


def test_register_names_are_all_different_so_that_baselines_are_not_versions_of_one_model() -> None:
    registered = [load_preset(name).register_.name for name in names()]
    assert len(set(registered)) == len(registered)


@pytest.mark.parametrize("name", IMAGENET)
def test_a_backbone_has_the_published_number_of_parameters(name: str) -> None:
    params = load_preset(name)
    with torch.device("meta"):
        network = build_backbone(backbone(params, num_classes=1000, feature_dim=params.encoder.width))
    counts = {key: value.numel() for key, value in network.named_parameters()}
    if IMAGENET[name] is not None:
        assert round(sum(n for key, n in counts.items() if "repa" not in key) / 1e6) == IMAGENET[name]
    if name in EXACT:
        assert (
            sum(n for key, n in counts.items() if key != "pos_embed") == RELEASED[EXACT[name]]["trainable_parameters"]
        )
        shapes = {key: list(value.shape) for key, value in network.named_parameters() if key != "pos_embed"}
        assert shapes.items() <= RELEASED[EXACT[name]]["state_dict"].items()


def test_the_preset_of_sefi_image_has_its_shape_and_number_of_parameters() -> None:
    params = load_preset("sefi-1b")
    shape = latent_shape(params)
    assert shape.latent == (144, 64, 64)
    with torch.device("meta"):
        network = build_backbone(bench_config(params, shape))
    assert sum(parameter.numel() for parameter in network.parameters()) == 1_177_621_504
    assert network.config.condition.words == (6144, 512)


@pytest.mark.parametrize("name", names())
def test_a_digits_sized_twin_learns_from_a_step(name: str) -> None:
    params = parse_params(twin(load_preset(name)))
    config = backbone(params, num_classes=3, feature_dim=params.encoder.width)
    random = torch.Generator().manual_seed(0)
    network = build_backbone(config).initialise(random)
    # A learnt schedule is a curve when the model is trained.
    schedule = ScheduleParams.model_validate({"kind": "curve"}) if params.schedule.kind == "learnt" else params.schedule
    task = DiffusionTask(network, NoData(), params.diffusion.loss, build_training_schedule(schedule), 0.1, params.seed)
    data = LatentBatch(
        torch.randn(8, config.in_channels, config.input_size, config.input_size, generator=random),
        torch.arange(8) % 3,
        torch.randn(8, config.grid**2, config.feature_dim, generator=random),
    )
    noise = task.noise(0, 8, torch.device("cpu"))
    optimizer = torch.optim.AdamW((p for p in network.parameters() if p.requires_grad), lr=1e-3)
    losses = []
    for _ in range(2):
        terms = task.losses(network, data, noise)
        assert set(terms) == set(task.weights)
        loss = sum((task.weights[term] * value for term, value in terms.items()), torch.zeros(()))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        assert all(
            p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters() if p.requires_grad
        )
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[1] < losses[0]


def test_each_baseline_differs_from_the_paper_in_its_mechanism_alone() -> None:
    paper = load_preset("imagenet256-sfd-xl")
    for name, changes in {
        "imagenet256-sfd-b": {"diffusion.model.size": "B"},
        "imagenet256-autoguidance-b": {"diffusion.model.size": "B", "diffusion.training.num_steps": 70_000},
        "imagenet256-sfd-xl-lr2e-4": {
            "diffusion.loss.repa_loss": "cosine_mse",
            "diffusion.loss.repa_weight": 0.5,
            "diffusion.training.learning_rate": 2e-4,
            "diffusion.training.beta2": 0.95,
        },
        "imagenet256-vavae-sfd": {"texture_vae.file": "weights/vavae_f16d32"},
        "imagenet256-redi-sfd": {
            "features.max_images": 100_000,
            "semantic.kind": "pca",
            "semantic.latent_channels": 8,
            "semantic.training": None,
            "latents.store_features": False,
            "diffusion.loss.repa_weight": 0.0,
        },
        "imagenet256-lightningdit-xl-repa": {
            "semantic.kind": "none",
            "semantic.training": None,
            "schedule.kind": "sync",
        },
    }.items():
        found, own = load_preset(name), ("register_", "tune")
        assert found.model_dump(exclude=own) == with_values(paper, changes).model_dump(exclude=own)


def presets_in(folder: Path, monkeypatch: pytest.MonkeyPatch, **overlays: str) -> None:
    """A folder of presets with the digits and some overlays."""
    shutil.copy(REPOSITORY / "presets/digits.yaml", folder)
    for name, text in overlays.items():
        (folder / f"{name}.yaml").write_text(f"# Preset {name}: own\n{text}")
    monkeypatch.setattr(preset, "FOLDER", folder)


def test_an_overlay_changes_what_it_names_and_null_takes_a_section_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    presets_in(
        tmp_path,
        monkeypatch,
        first="base: digits\nschedule: {tau: 0.2}\njudges: [{channels: [8, 8, 8, 8]}]\ndiffusion: {training: {max_grad_norm: 1.0}}\n",
        second="base: first\nseed: 3\nsemantic: {kind: pca, training: null}\ndiffusion: {training: {max_grad_norm: null}}\n"
        "tune: {space: {sample.num_steps: null}}\n",
    )
    digits, first, second = (load_preset(name) for name in ("digits", "first", "second"))
    assert (first.schedule.tau, first.first_judge.channels, first.seed) == (0.2, (8, 8, 8, 8), 0)
    assert first.diffusion.training.max_grad_norm == 1.0 and first.semantic == digits.semantic
    assert (second.schedule.tau, second.seed, second.semantic.training) == (0.2, 3, None)
    assert second.diffusion.training.max_grad_norm is None
    assert set(digits.tune.space) - set(second.tune.space) == {"sample.num_steps"}
    assert list_presets().splitlines()[1:] == ["first   own", "second  own"]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("base: digits\nschedule: {tua: 0.2}\n", "preset wrong: unknown key `schedule.tua`"),
        ("base: digits\nsemantic: {kind: none}\n", "preset wrong: semantic.kind is `none`, so schedule.kind"),
        ("base: digit\n", "no preset `digit`; nearest: digits"),
        ("schedule: {tau: 0.2}\n", "key `data` is missing"),
    ],
)
def test_an_overlay_that_breaks_a_rule_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, named: str
) -> None:
    presets_in(tmp_path, monkeypatch, wrong=text)
    with pytest.raises(UserError, match=re.escape(named)):
        render("wrong")


@pytest.mark.parametrize("name", names())
def test_a_shown_preset_has_all_comments_of_its_base_but_those_about_a_topic_of_its_own(name: str) -> None:
    shown = render(name)
    assert "`sfd params --describe` explains every key.\nseed" in shown and "# How the stages run here." in shown
    assert "  # What a version must show before" in shown
    topics = re.findall(r"^# ([A-Z][\w ]*): ", top_comments(shown), re.MULTILINE)
    assert len(set(topics)) == len(topics)
    if not name.startswith(("digits", "photos")):
        assert {
            "Result to expect",
            "Gate",
            "Reference",
            "Before the first run",
            "Check",
            "Disk",
            "Sampling",
            "SemVAE",
        } <= set(topics)


def test_an_overlay_takes_a_topic_from_its_base_unless_it_has_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    presets_in(
        tmp_path,
        monkeypatch,
        first="# Disk: much,\n# and more.\n# Gate: none: never.\nbase: digits\n",
        second="# Disk: none.\nbase: first\nseed: 3\n",
    )
    keys = "# `sfd params --describe` explains every key.\n"
    assert top_comments(render("second")) == "# Preset second: own\n# Disk: none.\n# Gate: none: never.\n" + keys
    assert "and more" in top_comments(render("first"))


def test_an_overlay_read_as_a_params_file_says_how_to_get_the_whole() -> None:
    with pytest.raises(UserError, match="only what differs from preset `imagenet256-sfd-xl`.*sfd preset use"):
        load_params(REPOSITORY / "presets/imagenet256-sfd-b.yaml")


def run_sfd(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["sfd", "preset", *arguments], cwd=folder, env=environment(), capture_output=True, text=True)


def test_the_commands_list_show_and_use_and_name_the_nearest_for_an_unknown_one(tmp_path: Path) -> None:
    listed = run_sfd(tmp_path, "list")
    assert [line.split()[0] for line in listed.stdout.splitlines()] == names()
    shown = run_sfd(tmp_path, "show", "imagenet256-dit-xl")
    assert shown.returncode == 0 and shown.stdout == render("imagenet256-dit-xl")
    assert run_sfd(tmp_path, "use", "imagenet256-dit-xl").stdout == "params.yaml is now preset imagenet256-dit-xl\n"
    assert (tmp_path / "params.yaml").read_text() == shown.stdout
    unknown = run_sfd(tmp_path, "show", "imagenet-sfd-xl")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert unknown.stderr.startswith("error: there is no preset `imagenet-sfd-xl`; nearest: imagenet512-sfd-xl")
    assert unknown.stderr.count("\n") == 1 and "imagenet256-sfd-xl" in unknown.stderr
