"""A self-contained model version in the MLflow registry, with an alias."""

from pathlib import Path

from sfd.pipeline import stage
from sfd.registry.register import describe, register

with stage("register") as s:
    s.log_artifacts(Path("params.yaml"))
    version = register(
        s.params.register_,
        s.params.sample,
        folders={name: s.upstream(name) / "model" for name in ("diffusion", "texture_vae")},
        tags=describe(s.upstream("evaluate"), s.upstream("prepare")),
        run_id=s.require_run_id(),
        out=s.out,
    )
