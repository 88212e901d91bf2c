"""``sfd init``: a project from the installed package: parameters, graph, stages, launchers, and what git and DVC need.

``sfd/project`` holds links to the files of the repository, which is such a project itself, and in an installed package the files.
"""

import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sfd.errors import UserError
from sfd.names import distance_name
from sfd.params import parse_params, parse_yaml
from sfd.preset import render, top_comments
from sfd.preset_use import with_changes
from sfd.workspace import PARAMS_NAME, plain_name

FILES = Path(__file__).parent / "project"
COPIED = ("dvc.yaml", "tune/dvc.yaml", "stages/*.py", "launch/*")
"""What a project has as it is in :data:`FILES`."""
PRESET = "digits"
"""The parameters of a project whose images are not named."""

_GIT_IGNORE = "/.venv/\n/.sfd/\n/results/\n/mlruns/\n/dvc_plots/\n__pycache__/\n"
_DVC_IGNORE = "/.venv\n/.sfd\n/mlruns\n"
_DVC_GIT_IGNORE = "/config.local\n/tmp\n/cache\n"
_DVC_CONFIG = "[core]\n    analytics = false\n    check_update = false\n"
_NO_GIT = "    no_scm = true\n"
_README = """# {name}

A project of sfd, Semantic-First Diffusion: from images to an evaluated, registered model. `sfd init` made it.

```bash
sfd params    # checks params.yaml
dvc repro     # runs what is out of date
sfd show      # samples, metrics, model
sfd doctor    # what is not up to date, and what to type
```

Activate the environment in which sfd is installed first: the stages run the `python` that the shell finds.

`params.yaml` holds all options, and `sfd params --describe` explains them. `dvc.yaml` is the graph: each stage is a script in `stages/`, and its
result a folder in `results/`. Where the project was planned for images, `plan.md` says what was chosen and why.
"""


def project_name(folder: Path, name: str | None) -> str:
    """``name``, or without one that of the folder as far as MLflow takes it. Raises :class:`UserError` if MLflow would not take ``name``."""
    if name is not None and plain_name(name) != name:
        raise UserError(f"--name {name!r} can be no name in MLflow; write {plain_name(name)!r}, for example")
    return name or plain_name(folder.resolve().name)


def judge_name(project: str) -> str:
    """The first judge's name in metric keys: ``PROJECT_judge``, with an underscore in place of what a key cannot hold."""
    return "".join(letter if letter.isalnum() or letter in "_-." else "_" for letter in project) + "_judge"


def names_of(project: str, judge: str, gates: dict[str, Any], others: int = 0) -> dict[str, Any]:
    """What in params.yaml derives from the project's name. ``gates``: as they are while the first judge is called ``judge``.

    ``others``: how many further judges there are.
    """
    named = judge_name(project)
    own = distance_name(judge)
    return {
        "judges": [{"name": named}, *({} for _ in range(others))],
        "register": {
            "name": project,
            "gates": {distance_name(named) if metric == own else metric: gate for metric, gate in gates.items()},
        },
        "tracking": {"experiment": project},
    }


def first_params(project: str) -> str:
    """The text of params.yaml for the built-in images, under the project's name."""
    text = render(PRESET)
    tree = parse_yaml(text, PRESET)
    body = with_changes(
        text, names_of(project, tree["judges"][0]["name"], tree["register"]["gates"], len(tree["judges"]) - 1)
    )
    parse_params(parse_yaml(body, PARAMS_NAME), PARAMS_NAME)
    return (
        f"# Project {project}, made by `sfd init`: the built-in digits, a few minutes on two CPU cores. Your own images: `data`.\n"
        "# `sfd params --describe` explains every key.\n"
    ) + body.removeprefix(top_comments(body))


def project_files() -> list[str]:
    """The files of every project, relative to its folder."""
    copied = [str(path.relative_to(FILES)) for pattern in COPIED for path in sorted(FILES.glob(pattern))]
    return [*copied, PARAMS_NAME, "README.md", ".gitignore", ".dvcignore", ".dvc/.gitignore", ".dvc/config"]


def make_project(folder: Path, name: str, files: Mapping[str, str], with_git: bool) -> str:
    """Writes a project into a folder, which may be new, and never over a file; says what was made.

    A project within a git repository is a folder of it; else it becomes a repository of its own.

    Args:
        folder: where.
        name: the project's name, for its README.
        files: the text of params.yaml, and of other files, by name.
        with_git: whether DVC works with git, if the program is installed.

    Raises:
        UserError: ``folder`` has files of the same names, or cannot be written.
    """
    with_git = with_git and shutil.which("git") is not None
    written = {
        **files,
        "README.md": _README.format(name=name),
        ".gitignore": _GIT_IGNORE,
        ".dvcignore": _DVC_IGNORE,
        ".dvc/.gitignore": _DVC_GIT_IGNORE,
        ".dvc/config": _DVC_CONFIG if with_git else _DVC_CONFIG + _NO_GIT,
    }
    check_free(folder, {*project_files(), *written})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if with_git and not _is_in_git(folder):
            subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
        for place in project_files():
            (folder / place).parent.mkdir(exist_ok=True)
            if place not in written:
                shutil.copy(FILES / place, folder / place)
        for place, text in written.items():
            with (folder / place).open("x", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}; name a folder that you may write to") from None
    except subprocess.CalledProcessError as error:
        raise UserError(
            f"`git init` in {folder} ended with status {error.returncode}; mend that, or give --no-git"
        ) from None
    without = "" if with_git else ", without git: `dvc exp` and `dvc diff` do not work in it"
    return f"{folder} is now project {name}{without}"


def check_free(folder: Path, files: Iterable[str]) -> None:
    """Raises :class:`UserError` if ``folder`` is a file, or has one of the files, which are relative to it."""
    if os.path.lexists(folder) and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a new or an empty folder")
    found = sorted(path for path in files if os.path.lexists(folder / path))
    if found:
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise UserError(
            f"{folder} has {', '.join(found[:5])}{more} already, and nothing is overwritten; name a new or an empty folder"
        )


def _is_in_git(folder: Path) -> bool:
    resolved = folder.resolve()
    return any((place / ".git").exists() for place in (resolved, *resolved.parents))
