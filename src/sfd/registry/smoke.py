"""The smoke test: a version must answer in a fresh process, with its own code, and with the pixels of its registration."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sfd.errors import UserError
from sfd.tracking import registry_uri, tracking_uri
from sfd.workspace import Workspace

if TYPE_CHECKING:
    from sfd.models.conditions import Condition

NUM_IMAGES = 8
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""The number of threads decides how sums are rounded. With one thread, machines with different numbers of cores agree."""


@dataclass(frozen=True)
class Smoke:
    """Images of some labels (None: without one), with seeds 0, 1, ...: the digest of their pixels, and what they were made on.

    ``column``: see :func:`column_of`; a record without it, as all older ones, has that of labels.
    """

    labels: tuple[str | None, ...]
    sha256: str
    device: str
    column: str = "label"

    def to_tag(self) -> str:
        """As JSON."""
        facts = asdict(self)
        return json.dumps(facts if self.column != "label" else {key: facts[key] for key in facts if key != "column"})

    @classmethod
    def from_tag(cls, tag: str) -> "Smoke":
        """Inverse of :meth:`to_tag`."""
        tree = json.loads(tag)
        return cls(tuple(tree["labels"]), tree["sha256"], tree["device"], tree.get("column", "label"))


def choose_labels(condition: "Condition") -> tuple[str | None, ...]:
    """Labels of the smoke's images: the condition's values in turn."""
    return tuple(condition.to_request(value) for value in condition.plan(NUM_IMAGES))


def column_of(condition: "Condition") -> str:
    """The column of a registered model's rows that says what to draw."""
    return "label" if condition.words is None else condition.asked_as


def as_rows(labels: Sequence[str | None], column: str = "label") -> list[dict[str, str | int]]:
    """Rows to ask a registered model for: label and seed, or the seed alone. ``column``: of the labels."""
    return [{"seed": seed} if label is None else {column: label, "seed": seed} for seed, label in enumerate(labels)]


def run_smoke(workspace: Workspace, uri: str, what: str, labels: Sequence[str | None], column: str = "label") -> Smoke:
    """Draws the images from a logged or registered artifact, with its own settings and code, in a fresh process.

    ``uri``: its address. ``what``: what messages call it. ``column``: of the labels, see :func:`column_of`.

    Raises:
        UserError: it cannot be loaded, does not answer with one image per row, or needs code that it does not carry.
    """
    request = json.dumps({"model": uri, "rows": as_rows(labels, column)})
    process = subprocess.run(
        # -P keeps this folder off the path of the script, which lies in it.
        [sys.executable, "-P", str(Path(__file__).with_name("smoke_process.py"))],
        input=request,
        capture_output=True,
        text=True,
        env=os.environ
        | ONE_THREAD
        | {"MLFLOW_TRACKING_URI": tracking_uri(workspace), "MLFLOW_REGISTRY_URI": registry_uri(workspace)},
    )
    if process.returncode != 0:
        reason = (process.stderr.strip().splitlines() or ["it left no message"])[-1][:300]
        raise UserError(f"{what} does not answer in a process of its own: {reason}")
    found = json.loads(process.stdout.splitlines()[-1])
    if found["images"] != len(labels):
        raise UserError(f"{what} answers {len(labels)} rows with {found['images']} images")
    if Path(found["code"]).is_relative_to(Path(__file__).parents[1]):
        raise UserError(f"{what} does not carry its code: it ran with {found['code']}, so it would not run elsewhere")
    return Smoke(tuple(labels), found["sha256"], found["device"], column)


def check_smoke(recorded: Smoke, found: Smoke) -> str:
    """What the smoke says, in words.

    Raises:
        UserError: pixels differ on a device of the same kind.
    """
    if found.device != recorded.device:
        return (
            f"{NUM_IMAGES} images; they were registered on another kind of device, where sums are rounded in another way, "
            f"so their pixels are not compared ({recorded.device}; here: {found.device})"
        )
    if found.sha256 != recorded.sha256:
        raise UserError(
            f"its pixels differ from those of its registration (sha256 {found.sha256[:12]}, registered {recorded.sha256[:12]}) on the "
            f"same kind of device ({found.device}): the artifact, or a library it needs, was changed since; register it again"
        )
    return f"{NUM_IMAGES} images, the same pixels as at registration"
