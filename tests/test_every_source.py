"""The stages from images to latents, through folders, tar archives and data sets of the library ``datasets``: the same bytes."""

import json
import tarfile
from pathlib import Path

import pandas as pd
import pytest
from support import IN_ONE_PROCESS, Project, draw_images, small_params

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

STAGES = ("scan", "prepare", "encoder", "texture_vae", "features", "semantic", "latents")


def draw(root: Path) -> Path:
    draw_images(root / "quer", 12, 1, vertical=False)
    draw_images(root / "hoch ü", 12, 2, vertical=True)
    return root


def pack(root: Path, archives: Path) -> None:
    """One archive for each class."""
    archives.mkdir()
    for folder in sorted(root.iterdir()):
        with tarfile.open(archives / f"{folder.name}.tar", "w") as tar:
            tar.add(folder, folder.name)


def save_dataset(root: Path, out: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Image

    files = sorted(root.rglob("*.png"))
    names = sorted(folder.name for folder in root.iterdir())
    rows = {
        "bild": [{"bytes": file.read_bytes(), "path": None} for file in files],
        "klasse": [names.index(file.parent.name) for file in files],
    }
    Dataset.from_dict(rows, features=Features({"bild": Image(), "klasse": ClassLabel(names=names)})).save_to_disk(out)


def run(folder: Path, data: dict[str, object]) -> Project:
    folder.mkdir()
    params = small_params()
    params["data"] |= data
    project = Project(folder, params)
    status, output = project.run("python", "-c", IN_ONE_PROCESS, *STAGES, HF_HUB_OFFLINE="1")
    assert status == 0, output
    assert "24 images in 2 classes, 0 files refused" in output
    return project


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Project]:
    home = tmp_path_factory.mktemp("sources")
    root = draw(home / "images")
    pack(root, home / "archives")
    save_dataset(root, home / "saved")
    return {
        "folder": run(home / "folder", {"source": "folder", "root": str(root)}),
        "tar": run(home / "tar", {"source": "tar", "root": "../archives"}),
        "huggingface": run(
            home / "huggingface",
            {"source": "huggingface", "root": "../saved", "image_column": "bild", "label_column": "klasse"},
        ),
    }


@pytest.mark.parametrize("source", ["tar", "huggingface"])
def test_networks_and_latents_are_the_same_bytes_as_from_a_folder(projects: dict[str, Project], source: str) -> None:
    compared = 0
    for name in ("encoder", "texture_vae", "features", "semantic", "latents"):
        for file in projects["folder"].result(name).rglob("*.safetensors"):
            other = projects[source].folder / file.relative_to(projects["folder"].folder)
            assert other.read_bytes() == file.read_bytes(), other
            compared += 1
    assert compared >= 6


@pytest.mark.parametrize("source", ["tar", "huggingface"])
def test_a_change_of_the_source_shows_in_the_listing(projects: dict[str, Project], source: str) -> None:
    project = projects[source]
    listing = json.loads((project.result("scan") / "listing.json").read_text())
    assert listing["source"] == source
    (file,) = project.folder.parent.glob("archives/quer.tar" if source == "tar" else "saved/*.arrow")
    file.touch()
    status, output = project.run("python", "stages/scan.py")
    assert status == 0, output
    assert json.loads((project.result("scan") / "listing.json").read_text()) != listing


def test_a_broken_archive_ends_the_stage_in_one_line_and_is_listed(
    projects: dict[str, Project], tmp_path: Path
) -> None:
    project = projects["tar"].copy_to(tmp_path / "copy")
    archives = tmp_path / "archives"
    archives.mkdir()
    whole = (projects["tar"].folder.parent / "archives" / "quer.tar").read_bytes()
    (archives / "quer.tar").write_bytes(whole[: len(whole) // 2])
    status, output = project.run("python", "stages/prepare.py")
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert status == 2 and "Traceback" not in output
    assert len(lines) == 1 and lines[0].startswith(
        "error: prepare: 1 archives cannot be read: quer.tar (damaged archive"
    )
    listed = pd.read_csv(project.folder / ".sfd/work/prepare/out/rejected.csv")
    assert listed["path"].tolist() == ["quer.tar"]
