"""Looks whether the images, or the model to start from, changed. Runs at every `dvc repro`, so it imports nothing heavy."""

import sys
from pathlib import Path

from sfd.data.listing import write_listing
from sfd.errors import UserError
from sfd.params import load_params
from sfd.registry.source import write_init_from

try:
    params = load_params(Path("params.yaml"))
    write_listing(params.data, Path("results/scan/listing.json"))
    write_init_from(params.diffusion.init_from)
except UserError as error:
    sys.exit(f"error: scan: {error}")
