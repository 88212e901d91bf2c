"""The code of a stage: what it imports, however indirectly, and nothing else."""

import ast
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support import REPOSITORY, environment

from sfd import names
from sfd.errors import UserError
from sfd.names import DATA_SOURCES
from sfd.pipeline import code
from sfd.pipeline.code import LIBRARIES, WITHOUT_EFFECT, Imports
from sfd.pipeline.inputs import COMMANDS, STAGES

PRINT_CODES = """
import json, sys
from pathlib import Path
from sfd.pipeline.code import Imports
from sfd.pipeline.inputs import STAGES
source, before, imports = Path(sys.argv[1]), None, Imports()
for edited in [None, *sys.argv[2:]]:
    if edited is not None:
        text = (source / edited).read_text()
        (source / edited).write_text(text + "\\n")  # imports nothing else, so `imports` holds as it is
    codes = {name: imports.code(inputs.code) for name, inputs in STAGES.items()}
    if edited is None:
        before = codes
    else:
        print(json.dumps([name for name in STAGES if codes[name] != before[name]]))
        (source / edited).write_text(text)
"""
DRAWING = {"diffusion", "sample", "evaluate", "evaluate_steps", "register", "sweep", "tune"}
EVERY = set(STAGES)
WATCHERS = {
    "__init__.py": EVERY,
    "precision.py": EVERY - {"prepare"},
    "seeding.py": EVERY - {"prepare"},
    "sizes.py": DRAWING | {"schedule"},
    "data/sources/tar.py": EVERY - {"diffusion", "sample", "schedule"},
    "encoders/vision.py": {"encoder", "text", "texture_vae", "features", "semantic", "latents"},
    "encoders/composite.py": {"latents"},
    "encoders/semantic/pca.py": {"semantic", "latents", "diffusion", "tune"},
    "encoders/tokenizers/pca.py": EVERY - {"prepare", "encoder", "text", "judge", "features", "semantic", "schedule"},
    "encoders/judges/resnet.py": {"judge", "reference", "evaluate", "evaluate_steps", "sweep", "tune"},
    "encoders/text/small.py": DRAWING | {"text", "schedule"},
    "training/loop.py": {"encoder", "text", "texture_vae", "judge", "semantic", "schedule", "diffusion", "tune"},
    "training/optimizer.py": {"encoder", "text", "texture_vae", "judge", "semantic", "schedule", "diffusion", "tune"},
    "training/finetuning.py": {"diffusion", "tune"},
    "training/classifier.py": {"encoder", "judge"},
    "diffusion/samplers/ab2.py": DRAWING,
    "generation/samples.py": {"sample", "evaluate", "evaluate_steps", "register", "sweep"},
    "evaluation/balanced.py": {"encoder", "judge", "reference", "evaluate", "evaluate_steps", "sweep", "tune"},
    "evaluation/protocol.py": {"evaluate", "evaluate_steps", "sweep"},
    "evaluation/originals.py": {"reference", "evaluate", "evaluate_steps", "sweep", "tune"},
    "registry/pyfunc.py": {"register"},
    "tuning/report.py": {"tune"},
    "tuning/scorer.py": {"sweep", "tune"},
    "tuning/report.html": set(),
    "serving/page.html": set(),
    "serving/app.py": set(),
    "cli/__init__.py": set(),
    "tracking/run.py": set(),
    "errors.py": set(),
    "params/describe.py": set(),
    "names.py": set(),
    "pipeline/quality.py": set(),
    "pipeline/stage.py": set(),
}
"""The stages whose code changes when a file changes."""


def test_an_edit_changes_the_code_of_exactly_the_stages_that_import_the_module(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    command = ["python", "-c", PRINT_CODES, str(tmp_path / "src/sfd"), *WATCHERS]
    done = subprocess.run(command, env=environment(tmp_path / "src"), capture_output=True, text=True, check=True)
    found = dict(zip(WATCHERS, map(json.loads, done.stdout.splitlines()), strict=True))
    assert {file: set(stages) for file, stages in found.items()} == WATCHERS


@pytest.fixture(scope="module")
def codes() -> dict[str, dict[str, str]]:
    imports = Imports()
    return {name: imports.code(inputs.code) for name, inputs in STAGES.items()}


def test_imports_within_functions_count_and_those_for_types_alone_do_not(codes: dict[str, dict[str, str]]) -> None:
    assert "torchdiffeq" in codes["sample"] and "diffusers" in codes["sample"]
    assert "if TYPE_CHECKING:\n    from sfd.data.images" in (REPOSITORY / "src/sfd/data/latents.py").read_text()
    assert "sfd.data.latents" in codes["diffusion"] and "sfd.data.images" not in codes["diffusion"]


def test_what_a_table_names_counts_where_the_table_is_used(codes: dict[str, dict[str, str]]) -> None:
    sources = {entry.path.partition(":")[0] for entry in DATA_SOURCES.values()}
    assert sources <= set(codes["prepare"]) and not sources & set(codes["sample"])


def test_the_versions_of_the_libraries_that_decide_numbers_are_readable_and_no_others_are_there(
    codes: dict[str, dict[str, str]],
) -> None:
    import torch

    for found in codes.values():
        assert {name for name in found if not name.startswith("sfd")} <= set(LIBRARIES)
        assert found.get("torch", torch.__version__).split("+")[0] == torch.__version__.split("+")[0]
    assert "timm" in codes["encoder"] and "timm" not in codes["sample"]


def test_another_version_of_a_library_changes_the_code_of_the_stages_that_import_it(
    codes: dict[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = code.version
    monkeypatch.setattr(code, "version", lambda name: "9.9" if name == "timm" else known(name))
    imports = Imports()
    changed = {name for name, inputs in STAGES.items() if imports.code(inputs.code) != codes[name]}
    assert changed == {name for name in STAGES if "timm" in codes[name]} and "diffusion" not in changed


@pytest.mark.parametrize("name", [name for name in STAGES if name not in COMMANDS])
def test_what_a_stages_script_imports_is_part_of_its_code(name: str, codes: dict[str, dict[str, str]]) -> None:
    tree = ast.parse((REPOSITORY / "stages" / f"{name}.py").read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    assert {module for module in modules if module.startswith("sfd.")} - set(WITHOUT_EFFECT) <= set(codes[name])


def test_every_module_without_effect_exists_so_that_the_list_stays_short() -> None:
    for name in WITHOUT_EFFECT:
        place = REPOSITORY / "src" / name.replace(".", os.sep)
        assert place.is_dir() or place.with_suffix(".py").is_file(), name


def test_a_module_that_is_no_python_is_named_in_one_line(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    (tmp_path / "src/sfd/serving/own.py").write_text("import os\ndef half(:\n")
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    command = ["python", str(REPOSITORY / "stages/scan.py")]
    done = subprocess.run(command, env=environment(tmp_path / "src"), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: scan: ") and "serving/own.py, line 2: this is not Python" in done.stderr


def test_an_entry_of_a_table_without_a_module_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(names.SAMPLERS, "own", names.SamplerEntry("sfd.diffusion.samplers.owm:Own", "misspelt"))
    with pytest.raises(UserError, match="no module sfd.diffusion.samplers.owm, but a table in .*names.py names it"):
        Imports().code(STAGES["sample"].code)
