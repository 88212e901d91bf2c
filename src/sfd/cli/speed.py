"""``sfd bench`` and ``sfd estimate``: how fast, how large, how long."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sfd.cli.project import ParamsFile, project_of
from sfd.errors import UserError
from sfd.planning.devices import CPU, GPUS


def bench(
    context: typer.Context,
    job: Annotated[
        Literal["train", "sample", "latents", "load"],
        typer.Argument(help="Training steps, sampler calls, encoder calls, or batches from shards."),
    ],
    file: ParamsFile = None,
    preset: Annotated[str | None, typer.Option(metavar="NAME", help="A preset instead of a params file.")] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where; `auto`: the GPU if any.")] = "auto",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images per step; without it, that of the params file.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Measured steps, after some to warm up.")] = 20,
    json_file: Annotated[Path | None, typer.Option("--json", help="A new file for all numbers.")] = None,
    without_decoder: Annotated[
        bool, typer.Option("--without-decoder", help="`sample` stops at the latents, and needs no diffusers.")
    ] = False,
) -> None:
    """Measure speed, memory and utilisation on synthetic data and random weights."""
    from sfd.bench.report import BenchOptions
    from sfd.bench.report import bench as run

    if preset is not None and file is not None:
        raise UserError(f"--file {file} and --preset {preset} name two sets of parameters; give one of them")
    if preset is None and file is None:
        file = project_of(context).params_file
    typer.echo(run(BenchOptions(job, file, device, batch_size, steps, not without_decoder, preset), json_file))


def estimate(
    context: typer.Context,
    preset: Annotated[
        str | None, typer.Option(metavar="NAME", help="A preset instead of the project's params.")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME", help=f"{', '.join(GPUS)} or {CPU}; without it, the device at hand."),
    ] = None,
    devices: Annotated[int, typer.Option(min=1, help="How many of them.")] = 1,
    check: Annotated[bool, typer.Option("--check", help="Time a few steps here, too: a column compares them.")] = False,
) -> None:
    """Count parameters, operations, memory, disk and hours of every stage from the networks' shapes; nothing is started."""
    from sfd.planning.estimate import estimate as run
    from sfd.preset import load_preset
    from sfd.workspace import Workspace

    if preset is None:
        workspace = project_of(context)
        params = workspace.load_params()
    else:
        workspace, params = Workspace(context.obj), load_preset(preset)
    typer.echo(run(params, workspace, device, devices, check))
