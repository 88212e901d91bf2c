"""A self-contained model version in the MLflow registry, with an alias."""

import sfd.quiet  # noqa: F401
from sfd.generation.settings import Settings
from sfd.pipeline.stage import stage
from sfd.registry.register import describe, register

with stage("register") as s:
    s.log_artifacts(s.workspace.params_file)
    folders = {"diffusion": s.workspace.model(s.params.sample.step), "texture_vae": s.upstream("texture_vae") / "model"}
    if s.params.sample.guidance.weak_model is not None:
        folders["weak_model"] = s.workspace.resolve(s.params.sample.guidance.weak_model)
    version = register(
        s.workspace,
        s.params.register_,
        Settings.of(s.params.sample, s.params.runtime.sample.batch_size),
        folders=folders,
        tags=describe(s.upstream("evaluate"), s.upstream("prepare")),
        run_id=s.require_run_id(),
        out=s.out,
    )
