"""The record of the type in which a stage's networks compute."""

import errno
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from sfd.pipeline.inference import _begin
from sfd.pipeline.work import COMPUTED_IN


def test_a_disk_that_is_full_leaves_the_record_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage: Any = SimpleNamespace(name="sample", work=tmp_path, out=tmp_path / "out")
    stage.out.mkdir()
    _begin(stage, {"sample": "fp32"})

    def full(file: Path, *_: object, **__: object) -> NoReturn:
        file.open("w").close()
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(Path, "write_text", full)
        _begin(stage, {"sample": "bf16"})
    assert json.loads((tmp_path / COMPUTED_IN).read_text()) == {"sample": "fp32"}
    (stage.out / "half.png").touch()
    _begin(stage, {"sample": "fp32"})
    assert (stage.out / "half.png").is_file()
