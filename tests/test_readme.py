"""What the README says is what the code does."""

import re

import yaml
from support import REPOSITORY

from sfd.params import describe_params

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_the_options_table_is_the_generated_one() -> None:
    assert README.split("<!-- options", 1)[1].split("-->", 1)[1].strip() == describe_params()


def test_every_path_that_the_readme_shows_exists() -> None:
    named = set(re.findall(r"`((?:presets|stages|src|tests|docs)/[\w./-]+)`", README)) | set(
        re.findall(r"\]\((docs/[^)]+)\)", README)
    )
    assert named and not [path for path in named if not (REPOSITORY / path).exists()]


def test_every_stage_of_the_graph_is_in_the_readme() -> None:
    graph = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    assert not [name for name in graph if f"`{name}`" not in README]


def test_nothing_in_the_repository_names_a_package_registry() -> None:
    for name in ("constraints.txt", "pyproject.toml", "Makefile"):
        assert "://" not in (REPOSITORY / name).read_text().replace("sqlite:///", "")
