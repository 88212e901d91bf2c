"""``sfd preset use``: what is the user's stays, and nothing of it is lost."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import REPOSITORY

from sfd.errors import UserError
from sfd.params import load_params
from sfd.preset import load_preset, names, render
from sfd.preset_use import use
from sfd.scaffold import first_params


def test_the_params_file_that_is_shipped_may_be_replaced_and_brought_back_byte_by_byte(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    shutil.copy(REPOSITORY / "params.yaml", file)
    for name in ("imagenet256-autoguidance-b", "imagenet256-dit-xl"):
        assert use(name, file, force=False) == f"{file} is now preset {name}"
        assert load_params(file) == load_preset(name)
    use("digits", file, force=False)
    assert file.read_bytes() == (REPOSITORY / "params.yaml").read_bytes()
    assert use("digits", file, force=False) == f"{file} is preset digits already"
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


def test_a_params_file_of_ones_own_is_replaced_by_force_only_and_kept(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    own = [(REPOSITORY / "params.yaml").read_text().replace("seed: 0", f"seed: {n + 1}  # mine") for n in range(2)]
    file.write_text(own[0])
    with pytest.raises(UserError, match="differs from every preset in more than `data`, names and gates.*--force"):
        use("imagenet256-sfd-b", file, force=False)
    assert file.read_text() == own[0]
    assert use("imagenet256-sfd-b", file, force=True).endswith(f"the old one is {file}.old-1")
    assert (tmp_path / "params.yaml.old-1").read_text() == own[0] and file.read_text() == render("imagenet256-sfd-b")
    file.write_text(own[1])
    use("digits", file, force=True)
    assert [(tmp_path / f"params.yaml.old-{n + 1}").read_text() for n in range(2)] == own
    assert len(list(tmp_path.iterdir())) == 3


def test_a_missing_params_file_is_made_and_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    use("digits", tmp_path / "params.yaml", force=False)
    assert (tmp_path / "params.yaml").read_bytes() == (REPOSITORY / "params.yaml").read_bytes()
    with pytest.raises(UserError, match="cannot be written: Is a directory"):
        use("digits", tmp_path, force=True)
    with pytest.raises(UserError, match="cannot be written: No such file or directory"):
        use("digits", tmp_path / "missing" / "params.yaml", force=False)


def test_a_linked_params_file_stays_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real.yaml", tmp_path / "params.yaml"
    real.write_text("mine")
    link.symlink_to(real)
    use("digits", link, force=True)
    assert link.is_symlink() and real.read_bytes() == (REPOSITORY / "params.yaml").read_bytes()
    assert (tmp_path / "params.yaml.old-1").read_text() == "mine"


def own(file: Path, **changes: Any) -> Path:
    """The digits with changed sections."""
    tree = yaml.safe_load(render("digits"))
    for section, values in changes.items():
        if section == "judges":
            tree["judges"][0] |= values[0]
        else:
            tree[section] |= values
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    return file


DATA = {"source": "folder", "root": "/photos", "mirror": True, "holdout_fraction": 0.1, "duplicates": "drop"}
DATA |= {"layout": None}
GATES = {"class_accuracy": {"limit": 0.5, "improve": False}, "fd_mine": {"limit": 3.0, "improve": True}}
GATES |= {"memorised_fraction": {"limit": 0.02, "improve": False}}


def test_data_but_the_size_of_images_and_names_and_gates_are_kept_without_force_and_the_old_file_too(
    tmp_path: Path,
) -> None:
    changed = {
        "judges": [{"name": "mine"}],
        "register": {"name": "mine", "gates": GATES},
        "tracking": {"experiment": "ours"},
    }
    file = own(tmp_path / "params.yaml", data=DATA, **changed)
    before = file.read_text()
    assert use("imagenet256-sfd-b", file, force=False) == (
        f"{file} is now preset imagenet256-sfd-b; kept of the old one: data (but image_size), register.name, tracking.experiment, register.gates "
        f"(without class_accuracy, which this preset's evaluation does not give); the old one is {file}.old-1"
    )
    found, preset = load_params(file), load_preset("imagenet256-sfd-b")
    assert found.data == load_params(tmp_path / "params.yaml.old-1").data.model_copy(update={"image_size": 256})
    assert (found.register_.name, found.tracking.experiment, found.judges) == ("mine", "ours", preset.judges)
    assert {metric: gate.limit for metric, gate in found.register_.gates.items()} == {
        "fid": 3.0,
        "memorised_fraction": 0.02,
    }
    rest = {"data", "register_", "tracking"}
    assert found.model_dump(exclude=rest) == preset.model_dump(exclude=rest)
    assert Path(f"{file}.old-1").read_text() == before
    assert (
        "# Before the first run: put ImageNet's" in file.read_text()
        and "fid: {limit: 3.0, improve: true, reference: null}" in file.read_text()
    )
    assert "data (but image_size), register.name" in use("digits", file, force=False)
    back = load_params(file)
    assert (
        back.data.root == "/photos"
        and back.data.image_size == 32
        and back.register_.gates.keys() == {"fd_digits_judge", "memorised_fraction"}
    )


def test_a_project_of_sfd_init_keeps_its_names_and_gets_the_presets_gates(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(first_params("emo"))
    assert "kept of the old one: register.name, tracking.experiment; the old" in use(
        "imagenet256-sfd-xl", file, force=False
    )
    found = load_params(file)
    assert (found.register_.name, found.tracking.experiment, found.data.root) == ("emo", "emo", "images")
    assert found.register_.gates == load_preset("imagenet256-sfd-xl").register_.gates


def test_other_values_of_ones_own_need_force_and_are_in_the_old_file_then(tmp_path: Path) -> None:
    file = own(tmp_path / "params.yaml", data=DATA, sample={"num_steps": 9})
    with pytest.raises(UserError, match="may hold your own work; give --force"):
        use("imagenet256-sfd-b", file, force=False)
    assert "kept of the old one: data" in use("imagenet256-sfd-b", file, force=True)
    assert load_params(file).sample == load_preset("imagenet256-sfd-b").sample
    assert load_params(Path(f"{file}.old-1")).sample.num_steps == 9


def test_of_a_file_that_breaks_a_rule_nothing_is_kept_and_that_is_said(tmp_path: Path) -> None:
    file = own(tmp_path / "params.yaml", data=DATA, sample={"num_stepps": 9})
    with pytest.raises(UserError, match="unknown key `sample.num_stepps`.*correct it, or give --force"):
        use("digits", file, force=False)
    assert "nothing is kept of the old one, which is no valid params file" in use("digits", file, force=True)
    assert file.read_text() == render("digits")


@pytest.mark.parametrize("name", names())
def test_every_preset_can_take_the_place_of_the_digits_with_images_of_ones_own(name: str, tmp_path: Path) -> None:
    file = own(tmp_path / "params.yaml", data=DATA)
    use(name, file, force=False)
    assert load_params(file).data.root == "/photos"


@pytest.mark.parametrize(("captions", "kept"), [(None, "auto"), ("words.csv", "words.csv")])
def test_a_preset_of_words_looks_for_captions_where_ones_own_data_named_none(
    captions: str | None, kept: str, tmp_path: Path
) -> None:
    file = own(tmp_path / "params.yaml", data=DATA | {"captions": captions})
    said = use("sefi-1b", file, force=False)
    assert ("captions: auto, which this preset needs" in said) == (captions is None)
    assert str(load_params(file).data.captions) == kept


def test_a_preset_of_classes_leaves_captions_as_they_are(tmp_path: Path) -> None:
    file = own(tmp_path / "params.yaml", data=DATA)
    use("imagenet256-sfd-b", file, force=False)
    assert load_params(file).data.captions is None
