"""How a stage calls the networks that it does not train, and what becomes of work that an interrupted run did in another precision."""

import json
import shutil
import sys
from typing import Literal

from sfd.pipeline.stage import Stage
from sfd.pipeline.work import COMPUTED_IN, has_work
from sfd.precision import Inference
from sfd.processes import barrier, rank
from sfd.text_file import replace_text


def start_inference(stage: Stage, *sections: Literal["features", "latents", "sample", "evaluate"]) -> list[Inference]:
    """As these sections of ``runtime`` say. A result is of one precision, so what an interrupted run has left of another one is made anew.

    Raises:
        UserError: as :func:`sfd.precision.computing_type` does.
    """
    found = [Inference.of(getattr(stage.params.runtime, section)) for section in sections]
    if rank() == 0:
        _begin(stage, {section: each.computed_in for section, each in zip(sections, found, strict=True)})
    barrier()
    return found


def _begin(stage: Stage, now: dict[str, str]) -> None:
    file = stage.work / COMPUTED_IN
    # Work without the record is older, and of float32.
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else dict.fromkeys(now, "fp32")
    if before != now and has_work(stage.work):
        for path in stage.work.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
        stage.out.mkdir(parents=True)
        there, here = (", ".join(f"{key} {value}" for key, value in each.items()) for each in (before, now))
        print(
            f"{stage.name}: the interrupted run computed in another precision ({there}), so it starts from the beginning ({here})",
            file=sys.stderr,
        )
    replace_text(file, json.dumps(now))
