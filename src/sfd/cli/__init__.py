"""The command ``sfd``. Heavy imports happen inside the commands, so that ``sfd --help`` is quick."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from sfd.cli.models import models, store
from sfd.cli.presets import presets
from sfd.cli.project import ParamsFile
from sfd.cli.project import project_of as _workspace
from sfd.cli.speed import bench, estimate
from sfd.cli.sweep import sweep
from sfd.cli.synthetic import audit, generate
from sfd.errors import UserError, hide_in_tracebacks, in_one_line, print_any_name, redact
from sfd.serving.options import ServerOptions

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

app.add_typer(models, name="models")
app.add_typer(store, name="store")
app.add_typer(presets, name="preset")
app.command()(sweep)
app.command()(bench)
app.command()(estimate)
app.command()(generate)
app.command()(audit)


@app.callback()
def main_options(
    context: typer.Context,
    project: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="The folder of the project, or one below it; without it, the working folder. "
            "Paths in commands are relative to the working folder in any case.",
        ),
    ] = None,
) -> None:
    """Semantic-First Diffusion: params, verification, tracking, registry. The pipeline itself is run by `dvc repro`."""
    context.obj = project or Path()


Hours = Annotated[float, typer.Option(min=0.01, max=10_000, help="For the whole graph, on this machine.")]


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to make: a new or an empty one.")],
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Plan for these: a folder of images, a .tar, or a data set. Without it: the built-in digits.",
        ),
    ] = None,
    captions: Annotated[
        str | None,
        typer.Option(
            metavar="auto|FILE",
            help="A model that is told words: `auto` finds the captions with the images, or name a table (needs --images).",
        ),
    ] = None,
    hours: Hours = 2.0,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="An option of `data` that reads the images, such as data.layout=flat; more than once for more.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Of the model, the experiment and the judge; without it, the folder's name.")
    ] = None,
    git: Annotated[
        bool, typer.Option("--git/--no-git", help="Use git: the repository around DIR, else a new one in it.")
    ] = True,
) -> None:
    """Make a project: parameters, graph, stages; planned for your images, this machine and so many hours."""
    from sfd.scaffold import check_free, first_params, make_project, project_files, project_name

    project = project_name(folder, name)
    if images is None and captions is not None:
        raise UserError("--captions needs --images: the built-in digits have no captions")
    if images is None:
        typer.echo(make_project(folder, project, {"params.yaml": first_params(project)}, git))
        return
    from sfd.planning.plan import COSTS_NAME, PLAN_NAME, new_params, plan_new

    check_free(folder, [PLAN_NAME, COSTS_NAME, *project_files()])
    planned = plan_new(images, settings or [], project, hours, folder, _progress, captions)
    files = {"params.yaml": new_params(planned, project, folder)} | planned.files(project)
    typer.echo(f"{planned.text()}\n{make_project(folder, project, files, git)}")


def _progress(line: str) -> None:
    typer.echo(line, err=True)


@app.command()
def plan(
    context: typer.Context,
    hours: Hours = 2.0,
    apply: Annotated[bool, typer.Option("--apply", help="Write it into params.yaml, whose comments stay.")] = False,
) -> None:
    """Read the project's images and this machine again, and show what a plan for so many hours would change in params.yaml."""
    from sfd.planning.plan import plan_project

    typer.echo(plan_project(_workspace(context), hours, apply, _progress))


@app.command()
def params(
    context: typer.Context,
    file: ParamsFile = None,
    describe: Annotated[bool, typer.Option("--describe", help="Print the table of all options instead.")] = False,
) -> None:
    """Check params.yaml and print the resolved configuration."""
    from sfd.params import check_study, describe_params, dump_params, load_params

    if describe:
        typer.echo(describe_params())
        return
    found = load_params(file or _workspace(context).params_file)
    check_study(found)
    typer.echo(dump_params(found).rstrip())


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
def sync(context: typer.Context) -> None:
    """Deliver to MLflow what the stages recorded while its server was away."""
    from sfd import tracking

    workspace = _workspace(context)
    typer.echo(f"{tracking.sync(workspace)} records delivered to {redact(tracking.tracking_uri(workspace))}")


@app.command("import")
def import_weights(
    source: Annotated[
        Path, typer.Argument(help="A published .pt, .ckpt or .safetensors file, or a folder of SeFi-Image (diffusion).")
    ],
    out: Annotated[Path, typer.Argument(help="The folder to make: a new or empty one.")],
    kind: Annotated[Literal["diffusion", "semantic-vae", "texture-vae"], typer.Option(help="What the file holds.")],
    statistics: Annotated[
        list[Path] | None,
        typer.Option(
            help="Mean and std of the latents' channels (diffusion, which needs it). Twice: of texture, then of semantics."
        ),
    ] = None,
    semantic_channels: Annotated[
        int | None,
        typer.Option(
            help="Semantic ones of the channels; else of the second statistics, or 16 with two times and 0 with one."
        ),
    ] = None,
    tau: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="The offset of its training; else 0.3 with two times (SeFi-Image: 0.1), and none with one.",
        ),
    ] = None,
    knots: Annotated[
        str | None,
        typer.Option(metavar="NUMBERS", help="The curve of its training (LWD), as `schedule.knots`: 0,0.75,0,0,0.25"),
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="A file with one class name per line; else classes are called 0, 1, ...")
    ] = None,
    texture_vae: Annotated[
        Path | None, typer.Option(help="Folder of the VAE that its latents came from (diffusion): others are refused.")
    ] = None,
    encoder: Annotated[
        Path | None, typer.Option(help="The same for the encoder, such as results/encoder/model.")
    ] = None,
    semantic_vae: Annotated[Path | None, typer.Option(help="The same for the SemVAE, of --kind semantic-vae.")] = None,
    heads: Annotated[
        int | None, typer.Option(min=1, help="Attention heads (semantic-vae), if the file does not say them.")
    ] = None,
    drop: Annotated[list[str] | None, typer.Option(help="Drop the keys that begin with this; may be repeated.")] = None,
) -> None:
    """Read published weights strictly, without running code of theirs, and write them in our layout."""
    from sfd.importing.networks import DiffusionFacts, parse_knots
    from sfd.importing.networks import import_weights as run

    curve = None if knots is None else parse_knots(knots)
    networks = {"texture_vae": texture_vae, "encoder": encoder, "semantic_vae": semantic_vae}
    facts = DiffusionFacts(tuple(statistics or ()), semantic_channels, tau, classes, **networks, knots=curve)
    typer.echo(run(source, kind, out, facts, tuple(drop or ()), heads))


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
        study.run_worker(_workspace(context)) if worker else study.tune(_workspace(context))


@tuning.command()
def report(context: typer.Context, name: StudyName) -> None:
    """Print the table of a study, and write its page with pictures to results/reports/STUDY."""
    from sfd.tuning.study import report_study

    typer.echo(report_study(_workspace(context), name))


@tuning.command()
def apply(
    context: typer.Context,
    name: StudyName,
    trial: Annotated[int | None, typer.Option(help="The trial's number; without it, the best one.")] = None,
    within: Annotated[
        str | None,
        typer.Option(
            metavar="OBJECTIVE=LIMIT",
            help="Of several objectives: the point of the front that is best in the first other one within this limit, e.g. evaluations=4.",
        ),
    ] = None,
) -> None:
    """Write the values of a study's best trial into params.yaml and show what changed."""
    from sfd.tuning.study import apply_study

    typer.echo(apply_study(_workspace(context), name, trial, within))


@app.command()
def register(context: typer.Context) -> None:
    """Register the results in the store that is in use now, if it has no version of them; then `register.alias` means it."""
    from sfd.registry.register import register_again

    typer.echo(register_again(_workspace(context)))


@app.command()
def serve(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Option(help="The registered model; else `register.name` of params.yaml.")
    ] = None,
    alias: Annotated[str, typer.Option(help="The alias to follow, or a version's number.")] = ServerOptions.alias,
    host: Annotated[str, typer.Option(help="The address; with another one than this, set SFD_TOKEN.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0: a free one, which is printed.")] = 8000,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per sampler call.")] = ServerOptions.batch_size,
    max_images: Annotated[int, typer.Option(min=1, help="Images per request.")] = ServerOptions.max_images,
    max_queue: Annotated[int, typer.Option(min=1, help="Images that may wait.")] = ServerOptions.max_queue,
    timeout_seconds: Annotated[
        float, typer.Option(min=1.0, help="A request is refused after this time.")
    ] = ServerOptions.timeout_seconds,
    poll_seconds: Annotated[
        float, typer.Option(min=0.1, help="Time between two look-ups of the alias.")
    ] = ServerOptions.poll_seconds,
) -> None:
    """Serve a registered model over HTTP, with a page to try it out."""
    from sfd.serving.address import bind, is_local, read_token
    from sfd.workspace import Workspace

    try:
        workspace = _workspace(context)
        name = model or workspace.model_name(workspace.load_params().register_)
    except UserError as error:
        if model is None:
            raise UserError(f"{error}; or name the model with --model") from None
        workspace, name = Workspace(context.obj), model  # a store on a server needs no project
    options = ServerOptions(name, alias, batch_size, max_images, max_queue, timeout_seconds, poll_seconds)
    token = read_token()
    with bind(host, port) as listener:
        if token is None and not is_local(listener):
            typer.echo(
                f"warning: everybody who reaches {host} can use this server; set SFD_TOKEN to ask for a token", err=True
            )
        from sfd.serving.server import serve as run_server

        run_server(workspace, options, token, listener)


export = typer.Typer(no_args_is_help=True, help="Hand results to other programs.")
app.add_typer(export, name="export")


@export.command("npz")
def export_npz(
    samples: Annotated[Path, typer.Argument(help="The folder of stage `sample`: results/sample.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.npz", help="The file to make.")],
) -> None:
    """Write samples as the one file that ADM's evaluator reads: `arr_0`, uint8 (N, H, W, 3)."""
    from sfd.generation.export import export_npz as write

    shape = write(samples, out)
    typer.echo(f"{out}: {shape[0]} images of {shape[1]} x {shape[2]} pixels")


@app.command("evaluate-steps")
def evaluate_steps(
    context: typer.Context,
    metric: Annotated[
        str | None, typer.Option(help="Decides which weights are best; without it, the Frechet distance.")
    ] = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="Draw nothing: write the best weights of the last curve into params.yaml.")
    ] = False,
) -> None:
    """Sample and score all weights that diffusion.training.keep_every kept: metrics over the steps of training."""
    from sfd.pipeline.evaluate_steps import best_weights
    from sfd.pipeline.evaluate_steps import evaluate_steps as run
    from sfd.tuning.apply import apply_values

    workspace = _workspace(context)
    if not apply:
        typer.echo(run(workspace, metric))
        return
    file, values = workspace.params_file, best_weights(workspace, metric)
    typer.echo(apply_values(file, values) or f"{file} draws from the best weights already\n", nl=False)


@app.command()
def accept(
    context: typer.Context,
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="The stage that stopped.")],
) -> None:
    """Let a stage that stopped at a quality check publish the work it has done; then `dvc repro` goes on."""
    from sfd.pipeline.quality import accept as run

    typer.echo(run(_workspace(context), stage))


@app.command()
def show(context: typer.Context) -> None:
    """Say where the results of the last `dvc repro` are, with their main numbers."""
    from sfd.registry.summary import summarise

    typer.echo(summarise(_workspace(context)))


@app.command()
def doctor(
    context: typer.Context,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="End with status 1 if anything is not up to date.")
    ] = False,
) -> None:
    """Say what is stale, missing, unreachable or unsynced, and what to type; changes nothing."""
    from sfd.doctor.doctor import examine, report

    findings = examine(_workspace(context))
    typer.echo(report(findings))
    if exit_code and any(finding.is_stale for finding in findings):
        raise typer.Exit(1)


def main() -> None:
    """Entry point: a mistake of the user ends in one line and exit status 2, Ctrl-C in one line and 130."""
    import sfd.quiet  # noqa: F401  Ctrl-C after the end of `terminable`, too
    from sfd.processes import terminable

    hide_in_tracebacks()
    print_any_name()
    try:
        " ".join(sys.argv).encode()  # torch, safetensors and pyarrow cannot open what is not UTF-8
        with terminable():
            app()
    except Exception as error:
        reason = in_one_line(error, Path())
        if reason is None:
            raise
        typer.echo(f"error: {reason}", err=True)
        sys.exit(2)
