"""Stage `evaluate` as users run it: on one process, on two, against a published reference; and the files that it stands on."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

from sfd.cli import app
from sfd.data.manifest import HELDOUT
from sfd.data.prepared import Prepared
from sfd.encoders.judges.judge import Judge, load_judge
from sfd.encoders.texture_vae import load_texture_vae
from sfd.errors import UserError
from sfd.evaluation.extraction import FeatureStore
from sfd.evaluation.fidelity import FeatureStatistics, extract
from sfd.evaluation.protocol import Evaluation
from sfd.evaluation.views import choose_like
from sfd.generation.export import export_npz
from sfd.generation.samples import read_table
from sfd.params import load_params
from sfd.pipeline.inputs import stage_fingerprint
from sfd.workspace import Workspace
from tests.support import Project, finished_project, free_port


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    made = finished_project(tmp_path_factory).copy_to(tmp_path_factory.mktemp("evaluate") / "project")
    with made.entered():
        yield made


class SmallInception(Judge):
    """Stands for Inception-v3: its name, its spatial features, no classes of ours; but small."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.name, self.digest, self.classes, self.num_features = "inception", "0" * 64, None, 6
        self.num_spatial_features = 7
        self.conv, self.head = nn.Conv2d(3, 8, 5, stride=4), nn.Linear(6, 4)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features, logits, _ = self.with_spatial(images)
        return features, logits

    def with_spatial(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        maps = self.conv(nn.functional.interpolate(images.float() / 64, size=(17, 17)))
        features = maps.relu().mean(dim=(2, 3))[:, :6]
        return features, self.head(features), maps[:, 7].flatten(1)[:, :7]


def write_reference(file: Path, images: Tensor, has_images: bool = True) -> None:
    """Statistics of a data set, and a part of it, as ADM publishes them."""
    seen = extract(SmallInception(), [images], spatial=True)
    features, spatial = FeatureStatistics.of(seen.features), FeatureStatistics.of(seen.spatial)  # type: ignore[arg-type]
    arrays = {"mu": features.mean, "sigma": features.covariance, "mu_s": spatial.mean, "sigma_s": spatial.covariance}
    if has_images:
        arrays["arr_0"] = images[:17].permute(0, 2, 3, 1).numpy()
    np.savez(file, **arrays)


def evaluate(
    out: Path, reference: Path | None, judge: Any = None, batch_size: int = 8
) -> tuple[dict[str, float], dict[str, object]]:
    """Metrics and measurement of the project that this process is in, by the small Inception."""
    params = load_params(Path("params.yaml"))
    options = params.evaluate.model_copy(update={"reference": None if reference is None else str(reference)})
    data, results = Prepared.load(params.data, Path("results/prepare")), Path("results")
    store = FeatureStore(out / "features", judge or SmallInception(), batch_size, 0, 1)
    vae = load_texture_vae(results / "texture_vae" / "model")
    evaluation = Evaluation.open(options, data, vae, results / "sample", params.seed, [store])
    evaluation.extract()
    metrics, files = evaluation.measure(out)
    assert all(file.is_file() for file in files)
    return metrics, json.loads((out / "measurement.json").read_text())


def heldout_images() -> Tensor:
    images = Prepared.load(load_params(Path("params.yaml")).data, Path("results/prepare")).images(HELDOUT)
    return images.__getitems__(list(range(len(images)))).images


def test_two_processes_give_the_files_of_one_to_the_last_byte(project: Project) -> None:
    names = ("metrics.json", "measurement.json", "classes.csv", "nearest.csv", "nearest.png")
    alone = {name: (project.result("evaluate") / name).read_bytes() for name in names}
    (project.result("evaluate") / "metrics.json").unlink()
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]
    status, output = project.run("python", *launcher, "stages/evaluate.py", CUDA_VISIBLE_DEVICES="")
    assert status == 0, output
    assert {name: (project.result("evaluate") / name).read_bytes() for name in names} == alone
    assert not (project.folder / ".sfd/work/evaluate").exists(), "features are not kept beyond the stage"


@pytest.mark.usefixtures("project")
def test_a_reference_file_is_compared_whole_and_with_what_it_has(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("heldout", "file")]
    for folder in folders:
        folder.mkdir()
    plain, _ = evaluate(folders[0], None)
    images = heldout_images()
    write_reference(tmp_path / "ref.npz", images)
    found, measured = evaluate(folders[1], tmp_path / "ref.npz")
    # Held-out images: as many as there are samples. The file: all of them.
    assert plain["num_images"] == found["num_images"] == 12 < len(images)
    assert {"fid", "sfid", "kid", "precision", "recall", "fd_heldout", "fd_reconstruction"} <= set(found)
    assert found["memorised_fraction"] == plain["memorised_fraction"]
    assert found["fid"] != plain["fid"] and found["sfid"] != plain["sfid"]
    assert found["inception_score"] == plain["inception_score"] and measured["judge"] == "inception"
    write_reference(tmp_path / "bare.npz", images, has_images=False)
    (tmp_path / "bare").mkdir()
    bare, other = evaluate(tmp_path / "bare", tmp_path / "bare.npz")
    assert (bare["fid"], bare["sfid"], bare["se_fid"]) == (found["fid"], found["sfid"], found["se_fid"])
    assert not {"kid", "precision", "recall", "precision_heldout"} & set(bare)
    assert measured["reference"] != other["reference"], "a gate must see that these two cannot be compared"


def test_the_numbers_are_those_of_plain_formulas_on_the_sampled_files(project: Project, tmp_path: Path) -> None:
    write_reference(tmp_path / "ref.npz", heldout_images())
    found, measured = evaluate(tmp_path, tmp_path / "ref.npz")
    files = sorted((project.result("sample") / "images").iterdir())
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) for file in files])
    with torch.no_grad():
        features, _, spatial = SmallInception().with_spatial(pixels)
    with np.load(tmp_path / "ref.npz") as reference:
        for key, seen, mean, covariance in (("fid", features, "mu", "sigma"), ("sfid", spatial, "mu_s", "sigma_s")):
            mine = np.cov(seen.numpy().astype(np.float64).T)
            values, vectors = np.linalg.eigh(reference[covariance])
            root = (vectors * values.clip(0) ** 0.5) @ vectors.T
            overlap = (np.linalg.eigvalsh(root @ mine @ root).clip(0) ** 0.5).sum()
            gap = seen.numpy().mean(0) - reference[mean]
            expected = gap @ gap + np.trace(mine) + np.trace(reference[covariance]) - 2 * overlap
            assert found[key] == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert measured["reference"] == hashlib.sha256((tmp_path / "ref.npz").read_bytes()).hexdigest()


def test_the_floors_have_the_classes_of_the_samples() -> None:
    labels, wanted = [0] * 50 + [1] * 5 + [2] * 45, [0, 1, 2] * 5
    chosen = choose_like(wanted, labels, seed=3, purpose="train")
    assert chosen == sorted(set(chosen)) and sorted(labels[row] for row in chosen) == sorted(wanted)
    assert chosen == choose_like(wanted, labels, seed=3, purpose="train")
    assert chosen != choose_like(wanted, labels, seed=4, purpose="train")
    too_many = [labels[row] for row in choose_like([1] * 20, labels, seed=3, purpose="train")]
    assert len(too_many) == 20 and too_many.count(1) == 5


@pytest.mark.usefixtures("project")
def test_a_broken_or_too_small_reference_is_refused_before_the_judge_sees_an_image(tmp_path: Path) -> None:
    images = heldout_images()
    write_reference(tmp_path / "ref.npz", images)
    with np.load(tmp_path / "ref.npz") as file:
        arrays = dict(file)
    for change, message in (
        ({"arr_0": arrays["arr_0"][:3]}, "at least 4 images in every set"),
        ({"sigma_s": np.eye(3)}, r"`sigma_s` of shape \(3, 3\)"),
    ):
        np.savez(tmp_path / "bad.npz", **arrays | change)
        with pytest.raises(UserError, match=message):
            evaluate(tmp_path, tmp_path / "bad.npz")
    assert not (tmp_path / "features").exists()


def test_a_reference_is_refused_where_another_judge_was_made_and_accepted_where_inception_was(
    project: Project, tmp_path: Path
) -> None:
    write_reference(tmp_path / "ref.npz", heldout_images())
    with pytest.raises(UserError, match=r"the first judge in results/judge is 'digits_judge'; run `dvc repro judge`"):
        evaluate(tmp_path, tmp_path / "ref.npz", load_judge(project.result("judge") / "digits_judge/model"))
    assert evaluate(tmp_path, tmp_path / "ref.npz")[0]["fid"] > 0.0


def test_the_stage_needs_the_file_and_depends_on_its_content(project: Project, tmp_path: Path) -> None:
    copied = project.copy_to(tmp_path / "copy")
    params = yaml.safe_load((copied.folder / "params.yaml").read_text())
    params["evaluate"]["reference"] = "ref.npz"
    params["judges"][0] |= {"kind": "inception", "source": "pretrained", "name": "inception"}
    params["register"]["gates"] = {}
    copied.write_params(params)
    status, output = copied.run("python", "stages/evaluate.py")
    assert status == 2 and "ref.npz does not exist, but params.yaml names it" in output and "Traceback" not in output
    with copied.entered():
        prints = set()
        for content in (b"one", b"two", b"one"):
            Path("ref.npz").write_bytes(content)
            prints.add(stage_fingerprint(Workspace(Path()), "evaluate", load_params(Path("params.yaml"))))
    assert len(prints) == 2


def test_the_samples_say_how_they_were_made(project: Project) -> None:
    facts = json.loads((project.result("sample") / "sampling.json").read_text())
    params = load_params(project.folder / "params.yaml")
    assert facts["num_images"] == 12 and facts["images_per_class"] == [6, 6] and facts["num_classes"] == 2
    assert (facts["seed"], facts["sampler"], facts["num_steps"]) == (params.seed, params.sample.sampler, 3)
    assert facts["guidance"] == params.sample.guidance.model_dump(mode="json")


def test_exported_samples_are_the_array_that_adm_reads(project: Project, tmp_path: Path) -> None:
    out = tmp_path / "samples.npz"
    done = CliRunner().invoke(app, ["export", "npz", "results/sample", str(out)])
    assert done.exit_code == 0 and "12 images of 16 x 16 pixels" in done.output
    with np.load(out, allow_pickle=False) as file:
        assert file.files == ["arr_0"]
        pixels = file["arr_0"]
    expected = [np.array(Image.open(file)) for file in sorted((project.result("sample") / "images").iterdir())]
    assert pixels.dtype == np.uint8 and np.array_equal(pixels, np.stack(expected))
    assert [path.name for path in tmp_path.iterdir()] == ["samples.npz"]


def test_a_table_of_samples_that_is_no_table_is_named_and_a_class_may_be_called_null(tmp_path: Path) -> None:
    (tmp_path / "samples.csv").write_text("file,class,seed\n0.png,null,1\n1.png,NA,2\n")
    assert read_table(tmp_path)["class"].tolist() == ["null", "NA"]
    for text in ("", "\n", "a,b\n1,2\n", "file,class\n", "file,class\n,x\n", "file\n1\n1,2,3\n", 'file\n"1'):
        (tmp_path / "samples.csv").write_text(text)
        with pytest.raises(
            UserError, match=r"samples.csv (is no table|names no file|has no column).*dvc repro -f -s sample"
        ):
            export_npz(tmp_path, tmp_path / "new.npz")
    (tmp_path / "samples.csv").write_text("file,class,seed\n0.png,null,1\n")
    with pytest.raises(UserError, match="holds 0 images, but its table names 1"):
        export_npz(tmp_path, tmp_path / "new.npz")


def test_an_export_overwrites_nothing_and_refuses_samples_that_are_not_those_of_their_table(
    project: Project, tmp_path: Path
) -> None:
    copied, out = project.copy_to(tmp_path / "copy").result("sample"), tmp_path / "samples.npz"
    out.write_bytes(b"mine")
    with pytest.raises(UserError, match="exists already"):
        export_npz(copied, out)
    assert out.read_bytes() == b"mine"
    with pytest.raises(UserError, match=r"must end in \.npz"):
        export_npz(copied, tmp_path / "samples.zip")
    with pytest.raises(UserError, match="samples.csv is missing"):
        export_npz(tmp_path, tmp_path / "other.npz")
    (copied / "images" / "000003.png").rename(copied / "images" / "other.png")
    with pytest.raises(UserError, match=r"12 images, but its table names 12 \(2 differ\)"):
        export_npz(copied, tmp_path / "other.npz")
    (copied / "images" / "other.png").unlink()
    with pytest.raises(UserError, match="11 images, but its table names 12"):
        export_npz(copied, tmp_path / "other.npz")
    (copied / "images" / "000003.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="cannot be read"):
        export_npz(copied, tmp_path / "other.npz")
    Image.new("RGB", (8, 8)).save(copied / "images" / "000003.png")
    with pytest.raises(UserError, match=r"\(8, 8\) pixels"):
        export_npz(copied, tmp_path / "other.npz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "samples.npz"]
