"""``sfd generate`` and ``sfd audit``: generated data sets, and the search for copies in them."""

from pathlib import Path
from typing import Annotated

import typer

from sfd.cli.project import project_of


def generate(
    context: typer.Context,
    out: Annotated[
        Path, typer.Argument(help="The folder to make: a new or empty one, or one that this command has begun.")
    ],
    per_class: Annotated[
        int, typer.Option(min=1, help="Images of every class; without classes, of all prompts together.")
    ] = 100,
    version: Annotated[str, typer.Option(help="The registered model's version: its number or an alias.")] = "champion",
    seed: Annotated[int, typer.Option(min=0, help="Every image derives from it.")] = 0,
    min_confidence: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Keep images whose class the judge gives at least this probability."),
    ] = None,
    drop_memorised: Annotated[
        bool,
        typer.Option(
            "--drop-memorised", help="Reject images that are nearer to a training image than 99 % of held-out ones."
        ),
    ] = False,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="A text file with a prompt per line, for a model that is told words; else held-out captions."
        ),
    ] = None,
    with_report: Annotated[
        bool,
        typer.Option("--report", help="Then train the judge's network on real, generated and all images, and compare."),
    ] = False,
) -> None:
    """Write a balanced data set of generated images: class folders and samples.parquet. Interrupted, it continues."""
    from sfd.generation.prompts import read_prompts
    from sfd.synthetic.generate import GenerateOptions, Upstream
    from sfd.synthetic.generate import generate as make
    from sfd.synthetic.report import check_report, report

    upstream = Upstream.load(project_of(context))
    if with_report:
        check_report(upstream)
    told = None if prompts is None else tuple(read_prompts(prompts))
    typer.echo(make(out, GenerateOptions(per_class, version, seed, min_confidence, drop_memorised, told), upstream))
    if with_report:
        typer.echo(report(out, upstream))


def audit(
    context: typer.Context,
    samples: Annotated[
        Path, typer.Argument(help="results/sample, a folder of `sfd generate`, or any folder of images.")
    ],
) -> None:
    """Look for copies of training images among samples, and attack the model by its loss; writes results/audit."""
    from sfd.audit.audit import audit as run

    typer.echo(run(project_of(context), samples))
