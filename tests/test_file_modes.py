"""Files have the permissions that the umask gives, so that colleagues can read, and where it allows write, a shared folder."""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from served import untrained
from support import finished_project
from torch import Tensor

from sfd.data.latents import ChannelStatistics
from sfd.data.shards import write_shards
from sfd.evaluation.extraction import FeatureStore, Source
from sfd.network_files import save_network

TENSOR = torch.zeros(3)


class Black:
    """Two images."""

    def __len__(self) -> int:
        return 2

    def __getitems__(self, indices: list[int]) -> torch.Tensor:
        return torch.zeros(len(indices), 3, 4, 4, dtype=torch.uint8)


class NoJudge:
    """Features of nothing."""

    device, name, computed_in = torch.device("cpu"), "none", "fp32"

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images.flatten(1).float(), images.flatten(1).float()


def extract_features(folder: Path) -> None:
    judge: Any = NoJudge()
    FeatureStore(folder, judge, 2, 0, 1).fill(["x"], range(2), Source(Black()))


WRITERS: dict[str, Callable[[Path], object]] = {
    "network": lambda folder: save_network(folder, torch.nn.Linear(2, 2), {}),
    "statistics": lambda folder: ChannelStatistics(TENSOR, TENSOR.clone()).save(folder / "statistics.safetensors"),
    "shards": lambda folder: write_shards(folder, [(0, 3)], lambda _start, _end: {"x": TENSOR}, [0]),
    "texture VAE": lambda folder: untrained().images.decoder.save(folder),
    "diffusion model": lambda folder: untrained().images.model.save(folder),
    "features": extract_features,
}


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def wrong_modes(folder: Path, umask: int) -> dict[str, str]:
    """The files below a folder that are not as a plain `open` would have made them; scripts may be executed."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert files
    modes = {str(file.relative_to(folder)): stat.S_IMODE(file.stat().st_mode) for file in files}
    wanted = {file: 0o777 if file.endswith((".sh", ".sbatch")) else 0o666 for file in modes}
    return {file: oct(mode) for file, mode in modes.items() if mode != wanted[file] & ~umask}


@pytest.mark.parametrize("umask", [0o002, 0o077], indirect=True, ids=oct)
@pytest.mark.parametrize("name", WRITERS)
def test_every_file_of_tensors_follows_the_umask_also_in_place_of_another_one(
    name: str, umask: int, tmp_path: Path
) -> None:
    for _ in range(2):
        WRITERS[name](tmp_path)
        assert wrong_modes(tmp_path, umask) == {}


def test_every_result_and_record_of_a_project_follows_the_umask(tmp_path_factory: pytest.TempPathFactory) -> None:
    umask = os.umask(0)
    os.umask(umask)
    project = finished_project(tmp_path_factory)
    for folder in ("results", ".sfd", "mlruns"):
        assert wrong_modes(project.folder / folder, umask) == {}
