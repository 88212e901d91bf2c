"""Stage `judge` with several judges, and what a further one costs in it and in the stages behind it."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import Project, finished_project, run_stages

pytestmark = pytest.mark.long


def files_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Place on disk and content of each file."""
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def read(project: Project, name: str) -> Any:
    return json.loads((project.result("evaluate") / name).read_text())


def test_a_further_judge_leaves_the_others_as_they_are_and_what_they_saw(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    project = finished_project(tmp_path_factory).copy_to(tmp_path / "project")
    params = yaml.safe_load((project.folder / "params.yaml").read_text())
    first = params["judges"][0]
    judge, seen = (project.result(name) / first["name"] for name in ("judge", "reference"))
    networks, features, metrics = files_of(judge), files_of(seen), read(project, "metrics.json")
    params["judges"].append(first | {"name": "another", "channels": [8, 8, 8, 16]})
    project.write_params(params)
    output = run_stages(project, "judge", "reference", "evaluate")
    assert "goes on after step 4 of the finished training in .sfd/finished/judge/digits_judge" in output
    assert {name: content for name, (_, content) in files_of(judge).items()} == {
        name: content for name, (_, content) in networks.items()
    }
    assert files_of(seen) == features | {"index.json": files_of(seen)["index.json"]}, "linked, not extracted"
    found, record = read(project, "metrics.json"), read(project, "measurement.json")
    assert {key: found[key] for key in metrics if not key.endswith("fdr")} == {
        key: value for key, value in metrics.items() if not key.endswith("fdr")
    }
    names = [each["name"] for each in params["judges"]]
    assert found["fd_another"] > 0 and record["fdr"] == ", ".join(names)
    assert found["fdr"] == pytest.approx(sum(found[f"fdr_{name}"] for name in names) / len(names))
    weights = {name: (project.result("judge") / name / "model/model.safetensors").read_bytes() for name in names}
    assert len(set(weights.values())) == len(names)
