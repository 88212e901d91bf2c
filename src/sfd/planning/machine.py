"""What the machine has: cores, memory, disk, a GPU; and which trained networks can be had on it."""

import os
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.request import urlopen

from sfd.names import WEIGHT_PACKAGES

HUB_SECONDS = 5.0
"""After this time without an answer, the hub counts as out of reach."""
PROBED = "timm/vit_small_patch14_reg4_dinov2.lvd142m"
"""A repository on the hub that a plan would use."""


@dataclass(frozen=True)
class Machine:
    """A machine.

    Attributes:
        cores: processors that this process may use.
        memory_gb: main memory.
        disk_gb: free on the project's disk.
        gpu: name of the GPU; None without one.
        gpu_memory_gb: its memory; 0 without one.
        num_gpus: how many of it torch sees.
        packages: timm's names of the classifiers whose weights are installed as packages.
        has_hub: whether the model hub answers.
    """

    cores: int
    memory_gb: float
    disk_gb: float
    gpu: str | None = None
    gpu_memory_gb: float = 0.0
    num_gpus: int = 0
    packages: tuple[str, ...] = ()
    has_hub: bool = False

    def __str__(self) -> str:
        gpu = f"{self.gpu} with {self.gpu_memory_gb:.0f} GB" if self.gpu else "no GPU"
        weights = ", ".join(self.packages) or "none"
        hub = "answers" if self.has_hub else "does not answer"
        return (
            f"{self.cores} CPU cores, {self.memory_gb:.0f} GB of memory, {self.disk_gb:.0f} GB of free disk, {gpu}; trained networks from "
            f"packages: {weights}; the model hub {hub}"
        )


def read_machine(folder: Path) -> Machine:
    """This machine, with the disk that ``folder`` is or will be on."""
    import torch

    present = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    return Machine(
        cores=len(os.sched_getaffinity(0)),
        memory_gb=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
        disk_gb=shutil.disk_usage(present).free / 1e9,
        gpu=gpu.name if gpu else None,
        gpu_memory_gb=gpu.total_memory / 1e9 if gpu else 0.0,
        num_gpus=torch.cuda.device_count(),
        packages=tuple(name for name, package in WEIGHT_PACKAGES.items() if find_spec(package.module)),
        has_hub=_hub_answers(),
    )


def _hub_answers() -> bool:
    """Whether the hub tells about a model within :data:`HUB_SECONDS`."""
    from huggingface_hub import constants

    return not constants.HF_HUB_OFFLINE and url_answers(f"{constants.ENDPOINT}/api/models/{PROBED}")


def url_answers(url: str) -> bool:
    """Whether an address answers within :data:`HUB_SECONDS`; nothing of a file is read but its beginning."""
    try:
        urlopen(url, timeout=HUB_SECONDS).close()
    except OSError:
        return False
    return True


def hub_copy(repository: str) -> Path | None:
    """The copy of a repository in the hub's cache on this machine, such as ``timm/NAME`` or ``datasets/OWNER/NAME``; None without one."""
    from huggingface_hub import constants

    kind = "datasets" if repository.startswith("datasets/") else "models"
    name = repository.removeprefix("datasets/").replace("/", "--")
    folder = Path(constants.HF_HUB_CACHE) / f"{kind}--{name}"
    return folder if (folder / "snapshots").is_dir() else None
