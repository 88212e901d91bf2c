"""``sfd sweep``: what each value of a sampling option does."""

from typing import Annotated

import typer

from sfd.cli.project import project_of
from sfd.errors import UserError


def sweep(
    context: typer.Context,
    axes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE,VALUE,...",
            help="Keys of section `sample` with their values; all combinations are scored. KEY+KEY=... gives two keys the same value.",
        ),
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=2, help="Images of every setting; without it, `sample.num_images`.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="Decides which setting is best; without it, the Frechet distance.")
    ] = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="Write the best setting into params.yaml: of this grid, or of the last one.")
    ] = False,
) -> None:
    """Draw and score every setting of a grid over guidance, its intervals and the sampler. Interrupted, it continues."""
    from sfd.tuning.sweep import apply_sweep
    from sfd.tuning.sweep import sweep as run

    if not axes and not apply:
        raise UserError(
            "there is no grid: name keys and values, for instance sample.guidance.scale_texture=1.0,1.25,1.5"
        )
    workspace = project_of(context)
    if axes:
        typer.echo(run(workspace, axes, images, metric))
    if apply:
        typer.echo(apply_sweep(workspace), nl=False)
