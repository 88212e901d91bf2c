"""Saved networks whose ``config.json`` does not say what it must: one sentence, never a traceback."""

import json
from pathlib import Path

import pytest

from sfd.encoders.judges.judge import load_judge
from sfd.encoders.semantic.encoder import load_semantic
from sfd.encoders.texture_vae import load_texture_vae
from sfd.encoders.vision import load_encoder
from sfd.errors import UserError
from sfd.network_files import read_config


def folder_with(config: dict[str, object], folder: Path) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def test_a_key_that_is_there_is_read(tmp_path: Path) -> None:
    assert read_config(folder_with({"kind": "resnet"}, tmp_path))["kind"] == "resnet"


@pytest.mark.parametrize(
    ("load", "config"),
    [
        (load_judge, {"kind": "resnet", "name": "mine"}),
        (load_judge, {"kind": "timm", "name": "mine"}),
        (load_encoder, {"patch_size": 8}),
        (load_semantic, {"kind": "pca"}),
        (load_texture_vae, {"kind": "pca"}),
    ],
)
def test_a_network_whose_record_lacks_a_key_is_refused_with_its_file(
    load: object, config: dict[str, object], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"config\.json (lacks '\w+'|does not describe a .*'\w+'.*); rerun the stage"):
        load(folder_with(config, tmp_path))  # type: ignore[operator]
