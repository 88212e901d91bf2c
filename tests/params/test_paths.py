"""Files and folders that parameters name."""

import copy
from pathlib import Path

from changed_params import DIGITS

from sfd.params import parse_params


def test_a_path_is_found_by_its_type_at_or_below_a_key() -> None:
    tree = copy.deepcopy(DIGITS)
    tree["texture_vae"] |= {"source": "file", "file": "weights/vae"}
    tree["sample"]["guidance"] |= {"kind": "autoguidance", "weak_model": "weights/weak"}
    params = parse_params(tree)
    assert params.paths("seed", "data", "texture_vae") == [Path("weights/vae")]
    assert params.paths("sample") == params.paths("sample.guidance.weak_model") == [Path("weights/weak")]
    assert params.paths("register.name", "sample.schedule", "judges") == []


def test_the_model_to_start_from_is_a_path_unless_it_is_registered() -> None:
    tree = copy.deepcopy(DIGITS)
    tree["diffusion"]["init_from"] = "models/b"
    assert parse_params(tree).paths("diffusion") == [Path("models/b")]
    tree["diffusion"]["init_from"] = "models:/sfd@champion"
    assert parse_params(tree).paths("diffusion") == []
