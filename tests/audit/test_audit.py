"""``sfd audit``: copies are found, honest samples left in peace, and a model that learnt by heart is told from one that did not."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image
from sklearn.metrics import roc_auc_score
from support import Project, finished_project
from torch import Tensor
from typer.testing import CliRunner

from sfd import cli
from sfd.audit import audit as auditing
from sfd.audit.audit import UPSTREAM
from sfd.audit.findings import SizesOf
from sfd.audit.membership import image_losses, separation
from sfd.data.images import read_crop
from sfd.data.latents import ChannelStatistics, LatentBatch
from sfd.errors import UserError
from sfd.generation.model import DiffusionModel
from sfd.models.conditions import ClassCondition
from sfd.models.lightningdit import LightningDiT, LightningDiTConfig
from sfd.params import LossParams, ScheduleParams, TrainingParams
from sfd.seeding import generator
from sfd.training.diffusion import DiffusionTask
from sfd.training.loop import log_nothing, train

pytestmark = pytest.mark.long


@pytest.fixture(scope="module", autouse=True)
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A copy of the finished project, in which this process works."""
    with finished_project(tmp_path_factory).copy_to(tmp_path_factory.mktemp("audit") / "project").entered() as made:
        yield made


def audit(samples: Path) -> str:
    """The command, in this process; returns what it prints."""
    run = CliRunner().invoke(cli.app, ["audit", str(samples)])
    if run.exception is not None:
        raise run.exception
    return run.output


def facts() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path("results/audit/audit.json").read_text())
    return found


def training_files() -> list[str]:
    manifest = pd.read_parquet("results/prepare/manifest.parquet")
    found: list[str] = manifest[manifest["split"] == "train"]["path"].tolist()
    return found


SAMPLE = Path("results/sample")


def test_the_samples_of_the_graph_get_the_numbers_of_stage_evaluate_with_their_uncertainty() -> None:
    printed = audit(SAMPLE)
    near, metrics = facts()["nearest"], json.loads(Path("results/evaluate/metrics.json").read_text())
    assert near["fraction"] == metrics["memorised_fraction"]
    assert near["interval"][0] <= near["fraction"] <= near["interval"][1]
    assert near["heldout_interval"][0] <= near["heldout_fraction"] == 0.05 <= near["heldout_interval"][1]
    mine, theirs = (pd.read_csv(f"results/{name}/nearest.csv") for name in ("audit", "evaluate"))
    np.testing.assert_array_equal(mine["distance"], theirs["distance"])
    assert mine["file"].tolist() == [f"images/{row:06d}.png" for row in theirs["sample_index"]]
    assert facts()["membership"]["model"].endswith("which made these samples.")
    assert facts()["membership"]["num_images"] == 20
    assert near["verdict"] in printed and facts()["membership"]["verdict"] in printed
    page = Path("results/audit/report.md").read_text()
    assert "Clopper-Pearson" in page and "does not prove" in page and "LiRA" in page
    assert Image.open("results/audit/closest.png").width > 100


def test_the_same_audit_twice_gives_the_same_bytes_and_leaves_nothing_of_the_one_before() -> None:
    audit(SAMPLE)
    before = {path.name: path.read_bytes() for path in Path("results/audit").iterdir()}
    Path("results/audit/of another audit").touch()
    audit(SAMPLE)
    assert {path.name: path.read_bytes() for path in Path("results/audit").iterdir()} == before


def test_processes_that_read_change_no_byte_and_name_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(SAMPLE / "images", tmp_path / "samples")
    (tmp_path / "samples" / "notes.txt").write_text("no image")
    audit(tmp_path / "samples")
    before = {path.name: path.read_bytes() for path in Path("results/audit").iterdir()}
    assert facts()["samples"]["refused"] == {"notes.txt": "not an image"}
    monkeypatch.setattr("sfd.data.batches.FEW_IMAGES", 1)
    monkeypatch.setattr("sfd.data.batches.cores", lambda: 2)
    audit(tmp_path / "samples")
    assert {path.name: path.read_bytes() for path in Path("results/audit").iterdir()} == before


def test_a_size_is_still_one_when_an_older_torch_has_made_lists_of_plain_tuples() -> None:
    found = SizesOf(
        SAMPLE / "images", sorted(path.name for path in (SAMPLE / "images").iterdir()), 10_000
    ).__getitems__([0])
    assert found == [(16, 16)] and hasattr(found[0], "_fields"), "torch keeps a named tuple on its way to pinned memory"


def test_an_audit_that_fails_leaves_the_one_before_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    audit(SAMPLE)
    before = {path.name: path.read_bytes() for path in Path("results/audit").iterdir()}

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(auditing, "attack_model", dies)
    Image.new("RGB", (16, 16)).save(tmp_path / "black.png")
    run = CliRunner().invoke(cli.app, ["audit", str(tmp_path)])
    assert run.exit_code != 0
    assert {path.name: path.read_bytes() for path in Path("results/audit").iterdir()} == before


def test_a_training_image_among_the_samples_is_found_whatever_its_size_and_name(tmp_path: Path) -> None:
    shutil.copytree(SAMPLE / "images", tmp_path / "samples")
    audit(tmp_path / "samples")
    assert facts()["nearest"]["num_identical"] == 0 and "pixel for pixel" not in facts()["nearest"]["verdict"]
    original = training_files()[7]
    shutil.copy(Path("images") / original, tmp_path / "samples" / "planted.png")
    (tmp_path / "samples" / "notes.txt").write_text("no image")
    printed = audit(tmp_path / "samples")
    first = pd.read_csv("results/audit/nearest.csv").iloc[0]
    assert (first["file"], first["nearest_file"]) == ("planted.png", original)
    assert first["is_identical"] and first["is_below_limit"] and not first["is_mirrored"]
    assert first["distance"] == pytest.approx(0.0, abs=1e-4)
    assert "1 of them is a training image, pixel for pixel" in printed
    assert facts()["samples"] | {"folder": ""} == {
        "folder": "",
        "num_images": 13,
        "num_cropped": 1,
        "refused": {"notes.txt": "not an image"},
    }
    assert "it is not known whether it made these samples" in printed


def test_a_mirrored_training_image_is_found_too_and_said_to_be_mirrored(tmp_path: Path) -> None:
    original = next(file for file in training_files() if file.startswith("hoch"))
    crop = read_crop(Path("images") / original, 16, 10_000)
    crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "mirrored.png")
    audit(tmp_path)
    first = pd.read_csv("results/audit/nearest.csv").iloc[0]
    assert first["is_identical"] and first["is_mirrored"] and first["nearest_file"] == original


def test_a_model_that_only_copies_is_beyond_chance(tmp_path: Path) -> None:
    for number, file in enumerate(training_files()[:20]):
        shutil.copy(Path("images") / file, tmp_path / f"{number}.png")
    printed = audit(tmp_path)
    assert "More samples lie this near to a training image than chance explains" in printed
    assert "20 of them are training images, pixel for pixel" in printed
    assert facts()["nearest"]["p_value"] < 1e-6 and facts()["nearest"]["interval"][1] == 1.0


def test_held_out_images_in_the_samples_place_are_not_beyond_chance(tmp_path: Path) -> None:
    manifest = pd.read_parquet("results/prepare/manifest.parquet")
    for number, file in enumerate(manifest[manifest["split"] == "heldout"]["path"]):
        shutil.copy(Path("images") / file, tmp_path / f"{number}.png")
    audit(tmp_path)
    near = facts()["nearest"]
    assert near["fraction"] == pytest.approx(near["heldout_fraction"]) and near["p_value"] > 0.3
    assert near["verdict"].startswith("No more samples")


def test_samples_of_another_version_than_the_attacked_one_are_told_so() -> None:
    run = CliRunner().invoke(cli.app, ["generate", "made", "--per-class", "2"])
    assert run.exit_code == 0
    assert "in results/diffusion, sfd-digits version 1, which made these samples." in audit(Path("made"))
    registration = Path("results/register/registration.json")
    original = registration.read_text()
    store = MlflowClient()
    digest = json.loads(original)["digest"]
    try:
        again = store.create_model_version("sfd-digits", store.get_model_version("sfd-digits", "1").source)
        store.set_model_version_tag("sfd-digits", again.version, "digest", digest)
        assert "sfd-digits version 2; the samples are of another model, sfd-digits version 1" in audit(Path("made"))
        registration.write_text(json.dumps(json.loads(original) | {"digest": "0"}))
        assert "of which MLflow has no version; the samples are of sfd-digits version 1" in audit(Path("made"))
        Path("results/register").rename("results/elsewhere")
        assert "It is not known whether that is the same model, because results/register is missing" in audit(
            Path("made")
        )
    finally:
        if Path("results/elsewhere").exists():
            Path("results/elsewhere").rename("results/register")
        registration.write_text(original)


@pytest.mark.parametrize("stage", UPSTREAM)
def test_each_missing_result_is_named_before_anything_is_computed(stage: str, project: Project, tmp_path: Path) -> None:
    project.result(stage).rename(tmp_path / stage)
    try:
        with pytest.raises(
            UserError, match=f"the result of stage `{stage}` is missing .*run `dvc repro {stage}` first"
        ):
            audit(SAMPLE)
    finally:
        (tmp_path / stage).rename(project.result(stage))


def test_what_is_no_folder_of_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere is not a folder"):
        audit(tmp_path / "nowhere")
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(UserError, match="holds no image .1 other files."):
        audit(tmp_path)


def test_a_table_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "samples.csv").write_text("path,class\n1.png,a\n")
    with pytest.raises(UserError, match="samples.csv has no column `file`"):
        audit(tmp_path)
    (tmp_path / "samples.csv").unlink()
    Path(tmp_path / "samples.parquet").write_text("nothing")
    with pytest.raises(UserError, match="samples.parquet is not a Parquet file"):
        audit(tmp_path)


def test_a_file_that_a_table_names_must_be_there(tmp_path: Path) -> None:
    shutil.copytree(SAMPLE, tmp_path / "sample")
    (tmp_path / "sample" / "images" / "000003.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"000003.png is in the folder's table, but cannot be read .empty file."):
        audit(tmp_path / "sample")


def losses(count: int, seed: int, shift: float = 0.0) -> Tensor:
    return shift + torch.rand(count, generator=generator(seed, "test"), dtype=torch.float64)


def test_losses_that_do_not_overlap_are_told_apart_always_and_equal_ones_never() -> None:
    assert separation(losses(50, 0), losses(60, 1, shift=2.0), 0).auc == 1.0
    assert separation(losses(50, 0, shift=2.0), losses(60, 1), 0).auc == 0.0
    members, others = losses(50, 0).round(decimals=1), losses(60, 1, shift=0.2).round(decimals=1)
    truth = [1] * 50 + [0] * 60
    assert separation(members, others, 0).auc == pytest.approx(roc_auc_score(truth, -torch.cat([members, others])))
    equal = torch.ones(10, dtype=torch.float64)
    assert separation(equal, equal, 0).auc == 0.5


def test_one_distribution_gives_a_half_inside_its_interval_and_a_shifted_one_does_not() -> None:
    same = separation(losses(400, 0), losses(400, 1), 0)
    assert same.auc == pytest.approx(0.5, abs=0.06) and same.interval[0] < 0.5 < same.interval[1]
    assert same == separation(losses(400, 0), losses(400, 1), 0), "the bootstrap is seeded"
    shifted = separation(losses(400, 0), losses(400, 1, shift=0.1), 0)
    assert 0.5 < shifted.interval[0] < shifted.auc < shifted.interval[1]
    # Of two uniform draws the one that is shifted by s is the larger with chance 1 - (1 - s)^2 / 2.
    assert shifted.interval[0] < 1.0 - 0.9**2 / 2.0 < shifted.interval[1]


class Latents:
    """A few latents of noise, which can only be learnt by heart."""

    def __init__(self, count: int, seed: int) -> None:
        self.latents = torch.randn(count, 6, 2, 2, generator=generator(seed, "latents"))
        self.labels = torch.arange(count) % 2

    def __len__(self) -> int:
        return len(self.latents)

    def __getitems__(self, indices: list[int]) -> LatentBatch:
        return LatentBatch(self.latents[indices], self.labels[indices])


def test_a_model_that_learnt_its_images_by_heart_betrays_them_and_a_fresh_one_does_not(tmp_path: Path) -> None:
    members, others = Latents(12, 0), Latents(12, 1)
    config = LightningDiTConfig(2, 6, 64, 2, 2, ClassCondition(("a", "b")), semantic_channels=2, two_times=True)
    network = LightningDiT(config).initialise(generator(0, "initialisation"))
    schedule = ScheduleParams.model_validate({"tau": 0.3})
    model = DiffusionModel(network, schedule, ChannelStatistics(torch.zeros(6), torch.ones(6)))

    def attack() -> float:
        network.eval()
        seen, unseen = (image_losses(model, network, part.latents, part.labels, 2.0, 0) for part in (members, others))
        return separation(seen, unseen, 0).auc

    assert attack() == pytest.approx(0.5, abs=0.25), (
        "a fresh model predicts no velocity, so only the latents' lengths differ"
    )
    loss = LossParams.model_validate({"repa_weight": 0.0})
    task = DiffusionTask(network, members, loss, model.schedule, class_dropout=0.0, seed=0)
    params = {"num_steps": 300, "batch_size": 24, "learning_rate": 3e-3, "ema_decay": 0.9}
    train(task, TrainingParams.model_validate(params), 0, tmp_path, "toy", log_nothing).copy_to(network)
    assert attack() > 0.97


def test_an_images_loss_does_not_depend_on_its_company() -> None:
    network = LightningDiT(
        LightningDiTConfig(2, 6, 32, 2, 2, ClassCondition(("a", "b")), semantic_channels=2, two_times=True)
    )
    for parameter in network.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2, generator=generator(0, "weights"))
    model = DiffusionModel(
        network.eval(),
        ScheduleParams.model_validate({"tau": 0.3}),
        ChannelStatistics(torch.zeros(6), torch.ones(6)),
    )
    data = Latents(5, 3)
    together = image_losses(model, network, data.latents, data.labels, 2.0, 0)
    alone = image_losses(model, network, data.latents[3:4], data.labels[3:4], 2.0, 0)
    torch.testing.assert_close(together[3:4], alone, rtol=1e-5, atol=0.0)
    assert not torch.allclose(together, image_losses(model, network, data.latents, data.labels, 2.0, 1)), (
        "the seed matters"
    )
