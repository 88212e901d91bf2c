"""A self-contained model version in the MLflow registry, with an alias."""

from sfd.pipeline import stage
from sfd.registry.register import register

with stage("register") as s:
    version = register(
        s.params.register_,
        s.params.sample,
        folders={name: s.upstream(name) / "model" for name in ("diffusion", "texture_vae")},
        metrics=s.upstream("evaluate") / "metrics.json",
        run_id=s.require_run_id(),
        out=s.out,
    )
