"""Stage ``prepare``: images in, a checked manifest out; and how later stages open it."""

from sfd.data.manifest import read_manifest
from sfd.data.prepare import prepare
from sfd.data.prepared import Prepared
from sfd.data.report import DataReport
from sfd.data.sources.source import open_source
from sfd.params import Params
from sfd.pipeline.quality import check_gates, check_quality, count_images
from sfd.pipeline.stage import Stage
from sfd.workspace import Workspace


def make_manifest(stage: Stage) -> None:
    """Writes the manifest, the list of refused files, the summary and the report."""
    summary = prepare(stage.workspace.resolve_paths(stage.params.data), stage.params.seed, stage.out)
    stage.content.append(summary.digest)
    counts = {"num_images": summary.num_images, "num_train": summary.num_train, "num_heldout": summary.num_heldout}
    stage.log(counts | {"num_classes": len(summary.classes), "num_rejected": summary.num_rejected})
    stage.log_input(
        stage.params.data.source,
        summary.digest,
        open_source(stage.params.data, stage.out).root,
        "prepare",
        dict(counts),
    )
    stage.log_artifacts(*sorted(path for path in stage.out.iterdir() if path.is_file()))
    print("\n".join(DataReport.read(stage.out).lines()))
    check_gates(stage.params, len(summary.classes))
    check_quality(stage, count_images(stage.params, read_manifest(stage.out)))


def open_prepared(workspace: Workspace, params: Params) -> Prepared:
    """The result of stage ``prepare``. Raises :class:`UserError` if the manifest is missing or breaks its schema."""
    return Prepared.load(workspace.resolve_paths(params.data), workspace.result("prepare"))
