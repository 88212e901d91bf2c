"""The precision of stages and commands: what their networks compute in, what is recorded, and that nothing mixes two of them."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import yaml
from support import Project, finished_project
from torch.utils._python_dispatch import TorchDispatchMode
from typer.testing import CliRunner

from sfd import cli, precision
from sfd.audit.audit import attack_model
from sfd.data.latents import LatentDataset
from sfd.encoders.semantic.features import FeatureDataset
from sfd.generation.samples import sampled_in
from sfd.pipeline.evaluate import evaluate
from sfd.pipeline.features import make_features
from sfd.pipeline.inference import start_inference
from sfd.pipeline.latents import make_latents
from sfd.pipeline.prepare import open_prepared
from sfd.pipeline.reference import make_reference
from sfd.pipeline.sample import make_samples
from sfd.pipeline.stage import Stage, stage
from sfd.precision import Inference
from sfd.registry.load import load_registered
from sfd.registry.register import register_results
from sfd.synthetic.generate import GenerateOptions, Upstream, generate
from sfd.workspace import Workspace

pytestmark = pytest.mark.long

BODIES: dict[str, Callable[[Stage], None]] = {
    "features": make_features,
    "latents": make_latents,
    "sample": make_samples,
    "reference": make_reference,
    "evaluate": evaluate,
}
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution")


class Products(TorchDispatchMode):
    """``seen``: the types that products, convolutions and attentions of float32 or less were computed in, by operation."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, set[torch.dtype]] = defaultdict(set)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ARG002
        name = func._schema.name.removeprefix("aten::")
        if name in PRODUCTS or "attention" in name:
            dtype = next(each.dtype for each in args if isinstance(each, torch.Tensor))
            if dtype != torch.float64:
                self.seen[name].add(dtype)
        return func(*args, **(kwargs or {}))

    @property
    def types(self) -> set[torch.dtype]:
        return set().union(*self.seen.values())


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """Without the check for memorised images: in bf16, these untrained judges give different images the same features."""
    copied = finished_project(tmp_path_factory).copy_to(tmp_path_factory.mktemp("precision") / "project")
    with copied.entered():
        tree = yaml.safe_load((copied.folder / "params.yaml").read_text())
        tree["evaluate"]["memorisation"] = False
        copied.write_params(tree)
        yield copied


def set_precision(project: Project, value: str) -> None:
    """In all sections of `runtime` that have one."""
    tree = yaml.safe_load((project.folder / "params.yaml").read_text())
    for section in ("features", "latents", "sample", "evaluate"):
        tree["runtime"][section]["precision"] = value
    project.write_params(tree)


def run(name: str) -> Products:
    with stage(name) as s, Products() as products:
        BODIES[name](s)
    return products


@pytest.fixture(scope="module")
def in_bf16(project: Project) -> dict[str, Products]:
    """What the stages compute in, with bf16 in all sections of `runtime`."""
    set_precision(project, "bf16")
    return {name: run(name) for name in BODIES}


def test_every_stage_that_only_calls_networks_computes_in_float32_by_default(project: Project) -> None:
    set_precision(project, "auto")
    for name in BODIES:
        found = run(name).types
        # Stage `reference` takes over what it has left before, so that nothing is computed.
        assert found == {torch.float32} or (name == "reference" and not found), name
    assert sampled_in(project.result("sample")) == "fp32"


def test_every_stage_that_only_calls_networks_computes_in_bf16_where_that_is_asked_for(
    in_bf16: dict[str, Products],
) -> None:
    for name in ("features", "latents", "sample"):
        assert in_bf16[name].types == {torch.bfloat16}, name
    for name in ("reference", "evaluate"):
        assert in_bf16[name].seen["convolution"] == {torch.bfloat16}, name
        # The classifier of a judge is one small product, and the distances are no networks.
        assert in_bf16[name].types == {torch.bfloat16, torch.float32}, name


def test_results_say_what_they_were_computed_in(project: Project, in_bf16: dict[str, Products]) -> None:  # noqa: ARG001
    assert FeatureDataset(project.result("features") / "shards").index.precision == "bf16"
    assert LatentDataset(project.result("latents") / "shards", False).index.precision == "bf16"
    assert sampled_in(project.result("sample")) == "bf16"
    measured = json.loads((project.result("evaluate") / "measurement.json").read_text())
    assert measured["precision"] == "bf16"


def test_the_same_samples_are_drawn_twice_in_bf16(project: Project, in_bf16: dict[str, Products]) -> None:  # noqa: ARG001
    files = sorted((project.result("sample") / "images").iterdir())
    before = [file.read_bytes() for file in files]
    run("sample")
    assert [file.read_bytes() for file in files] == before


def test_commands_compute_as_the_stages_do(
    project: Project,
    in_bf16: dict[str, Products],  # noqa: ARG001
) -> None:
    workspace = Workspace.find()
    params = workspace.load_params()
    with Products() as products:
        attack_model(workspace, params, open_prepared(workspace, params), Inference.of(params.runtime.evaluate))
    assert products.types == {torch.bfloat16}
    with Products() as products:
        answer = CliRunner().invoke(cli.app, ["sweep", "sample.guidance.scale_texture=1.0"])
    assert answer.exit_code == 0, answer.output
    assert products.seen["convolution"] == {torch.bfloat16}
    with Products() as products:
        generate(project.folder / "made", GenerateOptions(2, "1", 0, None, False), Upstream.load(workspace))
    assert products.seen["convolution"] == {torch.bfloat16, torch.float32}, "the version was drawn and scored in fp32"
    command = json.loads(next((project.folder / "made").glob(".*/command.json")).read_text())
    assert (command["precision"], command["judge precision"]) == ("fp32", "bf16")


def test_features_of_two_precisions_are_not_compared(
    project: Project,
    in_bf16: dict[str, Products],  # noqa: ARG001
    capsys: pytest.CaptureFixture[str],
) -> None:
    set_precision(project, "fp32")
    with pytest.raises(SystemExit):
        run("evaluate")
    assert "runtime.evaluate.precision to bf16, or run `dvc repro -f -s reference`" in capsys.readouterr().err
    set_precision(project, "bf16")
    run("evaluate")


def test_work_of_an_interrupted_run_in_another_precision_is_made_anew(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(value: str) -> bool:
        """Begins stage `sample`; whether the work of before is still there."""
        set_precision(project, value)
        with pytest.raises(ZeroDivisionError), stage("sample") as s:
            start_inference(s, "sample")
            kept = (s.out / "half.png").is_file()
            (s.out / "half.png").touch()
            raise ZeroDivisionError
        return kept

    assert not interrupted("fp32") and interrupted("fp32") and not interrupted("bf16") and interrupted("bf16")
    said = capsys.readouterr().err
    assert said.count("computed in another precision (sample fp32), so it starts from the beginning (sample bf16)") == 1


def test_a_version_is_registered_loaded_and_served_in_the_precision_of_its_samples(
    project: Project,
    in_bf16: dict[str, Products],  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_precision(project, "bf16")
    run("sample")
    with stage("register") as s:
        register_results(s)
    workspace = Workspace.find()
    name = workspace.model_name(workspace.load_params().register_)
    for has_it, expected in ((precision.Probe(2.0, 1.0), "bf16"), (None, "fp32")):
        monkeypatch.setattr(precision, "cpu_flags", lambda: frozenset({"avx512_bf16"}))
        monkeypatch.setattr(precision, "probe_cpu", lambda has_it=has_it: has_it)
        loaded = load_registered(workspace, name, "candidate")
        assert loaded.sample.precision == "bf16" and loaded.images.inference.computed_in == expected
    assert load_registered(workspace, name, "1").images.inference.computed_in == "fp32"
    shown = CliRunner().invoke(cli.app, ["models", "show", "candidate"])
    assert shown.exit_code == 0 and ", bf16" in shown.output
