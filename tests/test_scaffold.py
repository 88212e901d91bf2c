"""``sfd init``: a complete project from the installed package, in which nothing of the user's is overwritten."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from served import ask
from support import REPOSITORY, draw_images, environment, small_params
from typer.testing import CliRunner

from sfd import cli
from sfd.errors import UserError
from sfd.params import load_params

MADE = {".dvc", ".dvcignore", ".git", ".gitignore", "README.md", "dvc.yaml", "launch", "params.yaml", "stages", "tune"}


def init(*arguments: str | Path) -> str:
    run = CliRunner().invoke(cli.app, ["init", *map(str, arguments)])
    if isinstance(run.exception, UserError):
        raise run.exception
    assert run.exit_code == 0, run.output
    return run.stdout


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_project_has_the_graph_the_stages_and_the_launchers_of_the_repository(tmp_path: Path) -> None:
    folder = tmp_path / "Meine Bilder ü" / "eins"
    assert "is now project eins" in init(folder)
    assert names(folder) == MADE
    for place in ("dvc.yaml", "tune/dvc.yaml", *(f"stages/{file.name}" for file in REPOSITORY.glob("stages/*.py"))):
        assert (folder / place).read_bytes() == (REPOSITORY / place).read_bytes()
        assert not (folder / place).is_symlink()
    assert os.access(folder / "launch/torchrun.sh", os.X_OK)
    assert names(folder / "stages") == {path.name for path in REPOSITORY.glob("stages/*.py")}


@pytest.mark.parametrize(
    ("folder", "name", "model", "judge"),
    [
        ("emo", None, "emo", "emo_judge"),
        ("emo", "Emoji 64", "Emoji 64", "Emoji_64_judge"),
        ("Käfer: 2", None, "Käfer- 2", "Käfer-_2_judge"),
    ],
)
def test_the_model_the_experiment_and_the_judge_have_the_projects_name(
    tmp_path: Path, folder: str, name: str | None, model: str, judge: str
) -> None:
    init(tmp_path / folder, *(["--name", name] if name else []))
    params = load_params(tmp_path / folder / "params.yaml")
    assert (params.register_.name, params.tracking.experiment, params.first_judge.name) == (model, model, judge)
    assert f"fd_{judge}" in params.register_.gates and "fd_digits_judge" not in params.register_.gates
    text = (tmp_path / folder / "params.yaml").read_text()
    assert text.startswith(f"# Project {model}, made by `sfd init`") and "# How the stages run here." in text


def test_a_name_that_mlflow_does_not_take_is_refused_with_one_that_it_takes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--name 'a/b' can be no name in MLflow; write 'a-b'"):
        init(tmp_path / "new", "--name", "a/b")
    assert not (tmp_path / "new").exists()


def test_nothing_is_overwritten_and_what_is_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "stages").mkdir()
    (tmp_path / "params.yaml").write_text("mine")
    (tmp_path / "stages" / "scan.py").symlink_to("nowhere")
    with pytest.raises(UserError, match="has params.yaml, stages/scan.py already, and nothing is overwritten"):
        init(tmp_path)
    assert names(tmp_path) == {"stages", "params.yaml"} and (tmp_path / "params.yaml").read_text() == "mine"
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is a file; name a new or an empty folder"):
        init(tmp_path / "file")
    with pytest.raises(UserError, match="has .dvc/.gitignore, .dvc/config, .* and .. more already"):
        init(tmp_path / "new")
        init(tmp_path / "new")


def test_a_folder_that_holds_other_things_only_is_taken_and_they_stay(tmp_path: Path) -> None:
    draw_images(tmp_path / "images" / "a", 1, 0, vertical=True)
    init(tmp_path)
    assert names(tmp_path) == MADE | {"images"} and (tmp_path / "images" / "a" / "bild 0.png").is_file()


def test_within_a_git_repository_no_other_one_is_made_and_without_git_dvc_is_told(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    init(tmp_path / "deep" / "inner")
    assert names(tmp_path / "deep" / "inner") == MADE - {".git"}
    for folder in (tmp_path / "deep" / "inner", tmp_path / "alone"):
        if not folder.exists():
            assert "without git" in init(folder, "--no-git")
        assert ("no_scm = true" in (folder / ".dvc/config").read_text()) == (folder.name == "alone")
        command = ["dvc", "stage", "list"]
        listed = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)
        assert listed.returncode == 0 and "diffusion" in listed.stdout, listed.stderr


def test_the_links_of_the_package_name_the_repositorys_own_files() -> None:
    for name in ("dvc.yaml", "stages", "launch", "tune"):
        link = REPOSITORY / "src/sfd/project" / name
        assert link.is_symlink() and link.resolve() == REPOSITORY / name


def make_source(folder: Path) -> Path:
    """A copy of what a package is built from."""
    folder.mkdir()
    for name in ("src", "presets", "stages", "launch", "tune"):
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(REPOSITORY / name, folder / name, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE", "dvc.yaml"):
        shutil.copy(REPOSITORY / name, folder)
    return folder


def build_wheel(source: Path, out: Path) -> Path:
    wheel = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(out),
        str(source),
    ]
    subprocess.run(wheel, check=True, capture_output=True)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the package, built from a source archive, as a package registry would hold it."""
    pytest.importorskip("setuptools", minversion="77")
    home = tmp_path_factory.mktemp("wheel")
    source = make_source(home / "source")
    code = f"import setuptools.build_meta as b; b.build_sdist({str(home)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    shutil.unpack_archive(next(home.glob("*.tar.gz")), home / "unpacked")
    return build_wheel(next((home / "unpacked").iterdir()), home / "out")


def test_a_wheel_holds_each_file_of_a_project_and_each_preset_once(wheel: Path) -> None:
    held = [name.removeprefix("sfd/") for name in zipfile.ZipFile(wheel).namelist() if name.startswith("sfd/p")]
    expected = ["project/dvc.yaml", "project/tune/dvc.yaml"]
    expected += [
        f"project/{path.relative_to(REPOSITORY)}"
        for name in ("stages/*.py", "launch/*")
        for path in REPOSITORY.glob(name)
    ]
    expected += [f"presets/{path.name}" for path in REPOSITORY.glob("presets/*.yaml")]
    assert sorted(name for name in held if name.startswith(("project/", "presets/"))) == sorted(expected)


class Installed:
    """An environment of its own with the wheel, which borrows the libraries of this one."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        venv.create(folder, with_pip=False)
        pip = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(folder / "bin/python"),
            "install",
            "-q",
            "--no-deps",
            "--no-index",
        ]
        subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
        site = next(folder.glob("lib/python*/site-packages"))
        own = next(path for path in map(Path, sys.path) if path.name == "site-packages")
        (site / "borrowed.pth").write_text(f"{own}\n")
        kept = {
            key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "PYTHONPATH", "SFD_"))
        }
        path = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), kept["PATH"]])
        self.environment = kept | {"PATH": path, "OMP_NUM_THREADS": "1"}

    def start(self, folder: Path, *command: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            command, cwd=folder, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def run(self, folder: Path, *command: str) -> str:
        process = self.start(folder, *command)
        output, _ = process.communicate()
        assert process.returncode == 0, output
        return output


def shrink(file: Path) -> None:
    """Networks and trainings of seconds, under the names and on the images of the project."""
    tree: dict[str, Any] = yaml.safe_load(file.read_text())
    small = small_params()
    for name in (
        "encoder",
        "text",
        "texture_vae",
        "features",
        "latents",
        "semantic",
        "diffusion",
        "sample",
        "evaluate",
        "quality",
        "runtime",
    ):
        tree[name] = small[name]
    tree["judges"] = [new | {"name": old["name"]} for new, old in zip(small["judges"], tree["judges"], strict=True)]
    tree["data"] |= {"image_size": 16, "source": "folder", "root": "own images"}
    tree["register"]["gates"]["class_accuracy"]["limit"] = 0.0
    file.write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))


@pytest.mark.long
@pytest.mark.timeout(900)
def test_an_installed_wheel_goes_from_an_empty_folder_to_a_served_model(tmp_path: Path, wheel: Path) -> None:
    installed, home = Installed(tmp_path / "environment", wheel), tmp_path / "mit Blanks ünd Umlauten"
    home.mkdir()
    where = installed.run(home, "python", "-c", "import sfd; print(sfd.__file__)")
    assert where.startswith(str(tmp_path / "environment"))
    installed.run(home, "sfd", "init", "emo", "--name", "emo")
    project = home / "emo"
    shrink(project / "params.yaml")
    draw_images(project / "own images" / "quer", 40, 1, vertical=False)
    draw_images(project / "own images" / "hoch ü", 40, 2, vertical=True)
    installed.run(project, "dvc", "repro")
    again = [line for line in installed.run(project, "dvc", "repro").splitlines() if line.startswith("Running")]
    assert again == ["Running stage 'scan':"]
    assert "models:/emo@candidate" in installed.run(project, "sfd", "show")
    server = installed.start(project, "sfd", "serve", "--alias", "candidate", "--port", "0")
    assert server.stdout is not None
    try:
        url = next(line for line in server.stdout if "http://" in line).split()[-1]
        assert ask(f"{url}/generate", {"class": "hoch ü", "seed": 7}).content.startswith(b"\x89PNG")
    finally:
        server.terminate()
        server.communicate()
    assert server.returncode == 0
