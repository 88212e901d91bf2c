"""How fast devices compute: their data sheets, and the share of that which our jobs reached where it was measured."""

import os
import re
from dataclasses import dataclass

from sfd.errors import UserError

BF16, FLOAT32 = "bf16", "float32"


@dataclass(frozen=True)
class Device:
    """One device.

    Attributes:
        name: as :data:`DEVICES` has it.
        bf16, float32: dense matrix products, floating-point operations per second, by the data sheet. float32 is without TF32.
        memory_gb: its memory.
        cores: CPU cores beside it that read images; by judgement where it is a GPU.
        source: of the numbers.
    """

    name: str
    bf16: float
    float32: float
    memory_gb: float
    cores: int
    source: str

    @property
    def is_gpu(self) -> bool:
        """Whether it is no CPU."""
        return self.name != CPU

    def flops(self, dtype: str, job: str) -> float:
        """Floating-point operations per second that a job (:data:`REACHED`) is taken to reach in ``bf16`` or ``float32``."""
        peak = self.bf16 if dtype == BF16 else self.float32
        return peak * REACHED[self.is_gpu][job, dtype]


CPU = "cpu"
GPUS = {
    "H200": Device("H200", 989e12, 67e12, 141, 16, "NVIDIA H200 data sheet (SXM, dense)"),
    "H100": Device("H100", 989e12, 67e12, 80, 16, "NVIDIA H100 data sheet (SXM, dense)"),
    "A100": Device("A100", 312e12, 19.5e12, 80, 16, "NVIDIA A100 80 GB data sheet (dense)"),
    "L40S": Device("L40S", 362e12, 91.6e12, 48, 16, "NVIDIA L40S data sheet (dense)"),
    "4090": Device(
        "4090", 165e12, 82.6e12, 24, 16, "NVIDIA Ada GPU architecture whitepaper (GeForce RTX 4090, float32 sums)"
    ),
}
"""By name. bf16 and float32 of the tensor cores and of the ordinary ones."""
CORE_BF16, CORE_FLOAT32 = 190e9, 85e9
"""Of one CPU core with AVX512-BF16: large matrix products, measured with one thread (`sfd bench` prints the ceiling)."""

REACHED = {
    True: {
        ("training", BF16): 0.145,
        ("compiled training", BF16): 0.315,
        ("training", FLOAT32): 0.50,
        ("compiled training", FLOAT32): 0.50,
        ("inference", BF16): 0.30,
        ("inference", FLOAT32): 0.51,
    },
    False: {
        ("training", BF16): 0.40,
        ("compiled training", BF16): 0.40,
        ("training", FLOAT32): 0.45,
        ("compiled training", FLOAT32): 0.45,
        ("inference", BF16): 0.40,
        ("inference", FLOAT32): 0.45,
    },
}
"""Share of the data sheet's number that a job reaches, by whether the device is a GPU.

On GPUs: from the H200 of docs/benchmarks.md: SFD-XL with 64 images in bf16, 439 images per second compiled and 203 not, and 2.19 images per
second of 66 evaluations in float32. Inference in bf16 and training in float32 were not measured on a GPU: by judgement. On CPUs: from the two
cores of the same page, 33 to 56 % of the ceiling in training, 47 % in sampling, 35 % in encoding.
"""
READ_PER_CORE = 90.0
"""JPEG files of 500 x 375 pixels that one CPU core reads and cuts to 256 x 256 per second (docs/distributed.md, `python benchmarks/reading.py`)."""


def device_named(name: str | None) -> Device:
    """The device of this name; None: the one at hand. `cpu` is this machine's.

    Raises:
        UserError: the table does not have it.
    """
    wanted = at_hand() if name is None else name
    if wanted.lower() == CPU:
        return _cpu()
    found = GPUS.get(wanted.upper())
    if found is None and name is None:
        raise UserError(
            f"the GPU here is {wanted}, which is none of {', '.join(GPUS)}; name the nearest one with --device"
        )
    if found is None:
        raise UserError(f"--device {name} is none of {', '.join([*GPUS, CPU])}")
    return found


def at_hand() -> str:
    """The name of the device that stages would use here; of a GPU that the table does not have, the one that torch says."""
    import torch

    if not torch.cuda.is_available():
        return CPU
    full = torch.cuda.get_device_name()
    return next((name for name in GPUS if re.search(rf"\b{name}\b", full)), full)


def _cpu() -> Device:
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return Device(CPU, cores * CORE_BF16, cores * CORE_FLOAT32, memory, cores, "one core with AVX512-BF16, measured")
