"""The model that training starts from (``diffusion.init_from``): a folder, or a version of the model registry.

An alias can move. So stage ``scan`` looks it up at every ``dvc repro`` and writes its version to a file. DVC reruns stage ``diffusion``
when that file changes, and the stage reads the version from it.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sfd.params import registered_model
from sfd.pipeline.inputs import digest_path, resolve_registered
from sfd.registry.load import download_version, find_version
from sfd.workspace import Workspace


def write_init_from(workspace: Workspace, init_from: str | None) -> None:
    """Writes what the model to start from is now: its content's digest, or the version that an address means.

    Raises:
        UserError: the folder does not exist, or the store does not answer or has no such version.
    """
    facts = {"init_from": init_from}
    registered = None if init_from is None else registered_model(init_from)
    if registered is not None:
        found = find_version(workspace, *registered)
        facts |= {"version": str(found.version), "run_id": found.run_id}
    elif init_from is not None:
        facts["sha256"] = digest_path(workspace.resolve(init_from))
    file = workspace.init_from
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


@contextmanager
def open_source(workspace: Workspace, init_from: str | None) -> Iterator[Path | None]:
    """The folder of the model to start from, for the block; None if training starts from nothing.

    Raises:
        UserError: the store does not answer, has no such version, or not one of ours; or stage ``scan`` has not looked it up.
    """
    if init_from is None or registered_model(init_from) is None:
        yield None if init_from is None else workspace.resolve(init_from)
        return
    facts = resolve_registered(workspace, init_from)
    with download_version(workspace, facts["name"], facts["version"]) as folders:
        yield folders["diffusion"]
