"""Looks whether the images, the model to start from, or the code changed. Runs at every `dvc repro`, so it imports nothing heavy."""

import sys

import sfd.quiet  # noqa: F401
from sfd.data.listing import write_listing
from sfd.errors import UserError
from sfd.pipeline.scan import check_packages, check_stages, write_experiment, write_stage_codes
from sfd.pipeline.stage import graph_params
from sfd.registry.source import write_init_from
from sfd.tracking import begin_repro
from sfd.workspace import Workspace

try:
    workspace = Workspace.find()
    params = workspace.load_params()
    check_stages(workspace, params)
    check_packages(params)
    write_listing(workspace.resolve_paths(params.data), workspace.listing)
    write_init_from(workspace, params.diffusion.init_from)
    write_stage_codes(workspace)
    write_experiment(workspace)
    begin_repro(workspace, graph_params(params))
except UserError as error:
    sys.exit(f"error: scan: {error}")
