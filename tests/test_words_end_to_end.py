"""From captioned images to a served model that is told words, as a user walks: every stage in turn, small."""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml
from support import IN_ONE_PROCESS, Project, draw_images, small_params

from sfd.generation.model import DiffusionModel
from sfd.network_files import network_digest

pytestmark = pytest.mark.long
STAGES = ["scan", "prepare", "encoder", "text", "texture_vae", "judge", "features", "semantic", "latents", "schedule"]


def test_captioned_images_become_a_registered_model_that_is_told_words(tmp_path: Path) -> None:
    params = small_params()
    params["data"] |= {"source": "folder", "root": "images", "captions": "auto"}
    params["text"] |= {"width": 16, "depth": 1, "num_heads": 2, "vocabulary": 300, "max_tokens": 8, "shard_size": 20}
    params["text"]["training"] = params["encoder"]["training"] | {"num_steps": 20, "batch_size": 16}
    params["diffusion"]["model"]["condition"] = "text"
    params["register"]["gates"] = {}
    (tmp_path / "project").mkdir()
    project = Project(tmp_path / "project", params)
    for name, seed, vertical in (("lying", 1, False), ("upright", 2, True)):
        draw_images(project.folder / "images" / name, 40, seed, vertical)
        for file in (project.folder / "images" / name).glob("*.png"):
            file.with_suffix(".txt").write_text(f"a {name} stripe\n{name} bar\n")
    rest = ["diffusion", "sample", "reference", "evaluate", "register"]
    status, output = project.run("python", "-c", IN_ONE_PROCESS, *STAGES, *rest)
    assert status == 0, output
    model = DiffusionModel.load(project.result("diffusion") / "model")
    assert model.condition.kind == "text"
    samples = pd.read_csv(project.result("sample") / "samples.csv", dtype=str, keep_default_na=False)
    assert set(samples["prompt"]) <= {
        f"{a}{name} {b}" for name in ("lying", "upright") for a, b in (("a ", "stripe"), ("", "bar"))
    }
    assert network_digest(project.result("text") / "model") in json.dumps(model.condition.to_config())
    assert json.loads((project.result("register") / "registration.json").read_text())
    tree = yaml.safe_load((project.folder / "params.yaml").read_text())
    assert tree["diffusion"]["model"]["condition"] == "text"
