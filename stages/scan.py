"""Looks whether the images changed. Runs at every `dvc repro`, so it imports nothing heavy."""

import sys
from pathlib import Path

from sfd.data.listing import write_listing
from sfd.errors import UserError
from sfd.params import load_params

try:
    write_listing(load_params(Path("params.yaml")).data, Path("results/scan/listing.json"))
except UserError as error:
    sys.exit(f"error: scan: {error}")
