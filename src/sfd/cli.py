"""The command ``sfd``. Heavy imports happen inside the commands, so that ``sfd --help`` is quick."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from sfd.errors import UserError
from sfd.serving.options import ServerOptions

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Semantic-First Diffusion: params, verification, tracking. The pipeline itself is run by `dvc repro`.",
)

ParamsFile = Annotated[Path, typer.Option("--file", help="The params file to read.")]


@app.command()
def params(
    file: ParamsFile = Path("params.yaml"),
    describe: Annotated[bool, typer.Option("--describe", help="Print the table of all options instead.")] = False,
) -> None:
    """Check params.yaml and print the resolved configuration."""
    from sfd.params import describe_params, dump_params, load_params

    typer.echo(describe_params() if describe else dump_params(load_params(file)).rstrip())


@app.command()
def verify(
    stems: Annotated[
        list[Path], typer.Argument(help="Vectors: STEM.json and STEM.safetensors, named without the ending.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Recompute recorded numbers of the published implementation; exit 1 if any differs."""
    from sfd import verify as verification

    results = {str(stem): verification.verify(stem) for stem in stems}
    typer.echo(verification.as_json(results) if as_json else verification.report(results))
    if not all(check.ok for checks in results.values() for check in checks.values()):
        raise typer.Exit(1)


@app.command()
def sync() -> None:
    """Deliver to MLflow what the stages recorded while its server was away."""
    from sfd import tracking

    typer.echo(f"{tracking.sync()} records delivered to {tracking.tracking_uri()}")


tuning = typer.Typer(help="Search for better parameters: the Optuna study that params.yaml describes.")
app.add_typer(tuning, name="tune")
StudyName = Annotated[str, typer.Argument(metavar="STUDY", help="The study's name, `tune.study`.")]


@tuning.callback(invoke_without_command=True)
def tune(
    context: typer.Context,
    worker: Annotated[
        bool, typer.Option("--worker", help="Join the study that another process, here or elsewhere, has started.")
    ] = False,
) -> None:
    """Run the study of params.yaml, or continue it; the report goes to results/tune."""
    from sfd.tuning import study

    if context.invoked_subcommand is None:
        study.work() if worker else study.tune()


@tuning.command()
def report(name: StudyName) -> None:
    """Print the table of a study, and write its page with pictures to results/reports/STUDY."""
    from sfd.tuning.study import report_study

    typer.echo(report_study(name))


@tuning.command()
def apply(
    name: StudyName,
    trial: Annotated[int | None, typer.Option(help="The trial's number; without it, the best one.")] = None,
) -> None:
    """Write the values of a study's best trial into params.yaml and show what changed."""
    from sfd.tuning.study import apply_study

    typer.echo(apply_study(name, trial))


@app.command()
def serve(
    model: Annotated[
        str | None, typer.Option(help="The registered model; else `register.name` of params.yaml.")
    ] = None,
    alias: Annotated[str, typer.Option(help="The alias to follow, or a version's number.")] = ServerOptions.alias,
    host: Annotated[str, typer.Option(help="The address; with another one than this, set SFD_TOKEN.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0: a free one, which is printed.")] = 8000,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a sampler call.")] = ServerOptions.batch_size,
    max_images: Annotated[int, typer.Option(min=1, help="Images a request.")] = ServerOptions.max_images,
    max_queue: Annotated[int, typer.Option(min=1, help="Images that may wait.")] = ServerOptions.max_queue,
    timeout_seconds: Annotated[
        float, typer.Option(min=1.0, help="A request is refused after this time.")
    ] = ServerOptions.timeout_seconds,
    poll_seconds: Annotated[
        float, typer.Option(min=0.1, help="Time between looks at the alias.")
    ] = ServerOptions.poll_seconds,
) -> None:
    """Serve a registered model over HTTP, with a page to try it out."""
    from sfd.params import load_params
    from sfd.serving.address import bind, is_local, read_token

    try:
        name = model or load_params(Path("params.yaml")).register_.name
    except UserError as error:
        raise UserError(f"{error}; or name the model with --model") from None
    options = ServerOptions(name, alias, batch_size, max_images, max_queue, timeout_seconds, poll_seconds)
    token = read_token()
    with bind(host, port) as listener:
        if token is None and not is_local(listener):
            typer.echo(
                f"warning: whoever reaches {host} can use this server; set SFD_TOKEN to ask for a token", err=True
            )
        from sfd.serving.server import serve as run_server

        run_server(options, token, listener)


@app.command()
def show() -> None:
    """Say where the results of the last `dvc repro` are, with their main numbers."""
    from sfd.summary import summarise

    typer.echo(summarise(Path("results")))


def main() -> None:
    """Entry point: a mistake of the user ends in one line and exit status 2."""
    try:
        app()
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
