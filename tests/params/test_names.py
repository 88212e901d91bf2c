"""Names that MLflow, its addresses or its searches refuse are refused by the params file; the default is the project's name."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.store.artifact.utils.models import _parse_model_uri
from mlflow.utils.validation import (
    _validate_experiment_name,
    _validate_model_alias_name,
    _validate_model_alias_name_reserved,
    _validate_model_name,
)
from support import REPOSITORY

from sfd.errors import UserError
from sfd.params import parse_params
from sfd.workspace import Workspace

TREE = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
WRONG_NAMES = [
    "",
    " ",
    "it's",
    'a "b"',
    "a/b",
    "a:b",
    " a",
    "a ",
    "a\n",
    "a?b",
    "a#b",
    "a%41",
    "..",
    "a`b",
    "a\tb",
    "x" * 201,
]
WRONG_NAMES += ["x.promotion"]
WRONG_ALIASES = ["latest", "Latest", "v1", "V22", "1a", "a b", "a@b", "", "it's", "champion", "previous", "x" * 256]
WRONG_EXPERIMENTS = ["", " ", " a", "a ", "a\nb", "a\x00", "x" * 251]


def changed(section: str, key: str, value: str | None) -> dict[str, Any]:
    return TREE | {section: TREE[section] | {key: value}}


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("register", "name", name) for name in WRONG_NAMES]
    + [("register", "alias", alias) for alias in WRONG_ALIASES]
    + [("tracking", "experiment", name) for name in WRONG_EXPERIMENTS],
)
def test_a_name_that_would_fail_after_hours_is_refused(section: str, key: str, value: str) -> None:
    with pytest.raises(UserError, match=rf"`{section}(\.{key})?`"):
        parse_params(changed(section, key, value))


@pytest.mark.parametrize("name", ["sfd-digits", "Zahlen (neu) ü", "a.b@c+d_e", "x" * 200, "7"])
def test_a_model_name_that_is_accepted_is_one_for_mlflow_too(name: str) -> None:
    assert parse_params(changed("register", "name", name)).register_.name == name
    _validate_model_name(name)
    assert _parse_model_uri(f"models:/{name}@champion") == (None, name, None, None, "champion")
    assert _parse_model_uri(f"models:/{name}/3").version == "3"


@pytest.mark.parametrize("alias", ["candidate", "v1a", "latest-one", "prüfling", "x" * 255])
def test_an_alias_that_is_accepted_is_one_for_mlflow_too(alias: str) -> None:
    assert parse_params(changed("register", "alias", alias)).register_.alias == alias
    _validate_model_alias_name(alias)
    _validate_model_alias_name_reserved(alias)


@pytest.mark.parametrize("name", ["sfd", "it's ok: a/b", "ü", "x" * 250])
def test_an_experiment_that_is_accepted_is_one_for_mlflow_too(name: str) -> None:
    assert parse_params(changed("tracking", "experiment", name)).tracking.experiment == name
    _validate_experiment_name(name)


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("flowers", "flowers"),
        ("it's: mine!", "it-s- mine"),
        (".hidden", "hidden"),
        ("%41", "41"),
        ("x" * 250, "x" * 200),
    ],
)
def test_without_names_the_project_gives_them_and_they_are_valid(tmp_path: Path, folder: str, name: str) -> None:
    home = Workspace(tmp_path / folder)
    home.root.mkdir()
    tree = TREE | {"register": TREE["register"] | {"name": None}, "tracking": {}}
    home.params_file.write_text(yaml.safe_dump(tree))
    params = home.load_params()
    assert (home.model_name(params.register_), home.experiment(params.tracking)) == (name, name)
    assert parse_params(changed("register", "name", name)) and parse_params(changed("tracking", "experiment", name))


def test_a_password_in_params_is_refused_unseen_and_a_variable_is_accepted() -> None:
    for address in (
        "postgresql://me:hidden@host/db",
        "postgresql://host/db?password=hidden",
        "postgresql://me:hid@den@h/d",
    ):
        with pytest.raises(UserError, match="storage holds a password, and params.yaml is committed") as error:
            parse_params(changed("tune", "storage", address))
        assert "hid" not in str(error.value)
    for address in (
        "postgresql://me:${WORD}@host/db",
        "postgresql://me@host/db",
        "postgresql://host/db?password=${WORD}",
    ):
        parse_params(changed("tune", "storage", address))
