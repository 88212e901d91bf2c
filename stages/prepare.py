"""Images in: a checked manifest, and the list of refused files."""

from sfd.data.prepare import prepare
from sfd.data.sources.source import open_source
from sfd.pipeline.stage import stage

with stage("prepare") as s:
    summary = prepare(s.workspace.resolve_paths(s.params.data), s.params.seed, s.out)
    s.content.append(summary.digest)
    counts = {"num_images": summary.num_images, "num_train": summary.num_train, "num_heldout": summary.num_heldout}
    s.log(counts | {"num_classes": len(summary.classes), "num_rejected": summary.num_rejected})
    s.log_input(s.params.data.source, summary.digest, open_source(s.params.data, s.out).root, "prepare", dict(counts))
    s.log_artifacts(s.out / "manifest.parquet", s.out / "rejected.csv", s.out / "summary.json")
    print(f"{summary.num_images} images in {len(summary.classes)} classes, {summary.num_rejected} files refused")
