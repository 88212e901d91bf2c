"""In which type networks compute: one decision for training, sampling, encoding, judging and serving.

| ``precision`` | on a GPU | on a CPU |
|---|---|---|
| ``auto`` | bf16 where the GPU has it, else float32 | float32 |
| ``bf16`` | bf16 | bf16 |
| ``fp32`` | float32 without TF32 | float32 |

bf16 means autocast: weights stay float32, products and convolutions are computed in bf16, and sums of norms and softmax in float32. Only the
call of a network is in it. What comes out is float32 again: the state of a sampler, its solver, guidance, statistics of latents and features
and all distances are computed in float32 or float64. What a GPU still multiplies in float32 within such a call may use TF32.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Generic, ParamSpec, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from sfd.errors import UserError
from sfd.params import CompileMode, ComputedIn, InferenceRuntime, Precision
from sfd.processes import inference_device

HAS_BF16 = frozenset({"avx512_bf16", "amx_bf16"})
"""Flags of a processor that multiplies in bf16, as Linux names them. ``amx_bf16`` is the one that some virtual machines announce wrongly."""
CPU_FACTS = Path("/proc/cpuinfo")
PROBE_LIMIT_S = 120.0
PROBE = """
import json, time, torch
torch.set_num_threads(1)
convolution = torch.nn.Conv2d(64, 64, 3, padding=1)
seconds = {"fp32": [], "bf16": []}
with torch.no_grad():
    for _ in range(7):
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            matrix, images = torch.ones(768, 768, dtype=dtype), torch.ones(8, 64, 32, 32, dtype=dtype)
            convolution.to(dtype)
            started = time.thread_time()
            matrix @ matrix
            convolution(images)
            seconds[name].append(time.thread_time() - started)
print(json.dumps({name: min(values) for name, values in seconds.items()}))
"""
"""A product and a convolution in both types, in turns. The time is that of the thread, so that other programs on the machine do not decide."""

P = ParamSpec("P")
T = TypeVar("T")
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Probe:
    """Seconds of processor time of the same work in both types."""

    fp32: float
    bf16: float


@cache  # of a fact about this machine, for as long as this process lives
def probe_cpu() -> Probe | None:
    """Tries bf16 in a process of its own; None if that died, as with SIGILL where a virtual machine announces what it does not have."""
    try:
        done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=PROBE_LIMIT_S)
    except subprocess.TimeoutExpired:
        return None
    return Probe(**json.loads(done.stdout.splitlines()[-1])) if done.returncode == 0 else None


def cpu_flags() -> frozenset[str]:
    """The :data:`HAS_BF16` that this processor announces; none where that cannot be read, as on other systems than Linux."""
    if not CPU_FACTS.is_file():
        return frozenset()
    lines = CPU_FACTS.read_text(encoding="utf-8").splitlines()
    flags = next((line.partition(":")[2] for line in lines if line.startswith("flags")), "")
    return HAS_BF16 & frozenset(flags.split())


def bf16_pays() -> bool:
    """Whether this CPU announces bf16, survives it, and is faster in it than in float32: in products of large matrices, if not in a training."""
    found = probe_cpu() if cpu_flags() else None
    return found is not None and found.bf16 < found.fp32


def dies_of_bf16(device: torch.device) -> bool:
    """Whether this is a CPU that announces AMX and does not have it, so that a product in bf16 would end the process."""
    return device.type == "cpu" and "amx_bf16" in cpu_flags() and probe_cpu() is None


def computing_type(precision: Precision, device: torch.device) -> torch.dtype:
    """The type of products and convolutions on this device: ``torch.float32`` or ``torch.bfloat16``.

    Raises:
        UserError: bf16 is asked for on a CPU that dies of it.
    """
    if precision == "fp32":
        return torch.float32
    if precision == "bf16":
        if dies_of_bf16(device):
            raise UserError(
                "precision is `bf16`, and a trial product in bf16 ended with an error: this machine announces AMX, but does not have it. Set "
                "ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 in the environment, or write precision: fp32"
            )
        return torch.bfloat16
    has_bf16 = device.type != "cpu" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_bf16 else torch.float32


@contextmanager
def tf32(allowed: bool, device: torch.device) -> Iterator[None]:
    """Whether a GPU may round the factors of float32 products and convolutions to TF32 (10 bits) in the block; nothing on a CPU.

    Set per block and not once per process, because a process may hold networks of several precisions, such as a sampler and a judge.
    """
    if device.type != "cuda":
        yield
        return
    settings: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [each.allow_tf32 for each in settings]
    for each in settings:
        each.allow_tf32 = allowed
    try:
        yield
    finally:
        for each, value in zip(settings, before, strict=True):
            each.allow_tf32 = value


@dataclass(frozen=True)
class Inference:
    """How networks are called where nothing is trained.

    Attributes:
        device: where they are.
        dtype: the type of products and convolutions.
        exact: whether float32 is computed without TF32.
        mode: of ``torch.compile``; None: not compiled.
    """

    device: torch.device
    dtype: torch.dtype = torch.float32
    exact: bool = True
    mode: CompileMode | None = None

    @classmethod
    def of(cls, runtime: InferenceRuntime) -> Self:
        """As the parameters say, on this process's device. Raises :class:`UserError` as :func:`computing_type` does."""
        device = inference_device()
        dtype = computing_type(runtime.precision, device)
        return cls(device, dtype, runtime.precision == "fp32", runtime.compile)

    @classmethod
    def float32(cls) -> Self:
        """Without bf16, TF32 and compilation: for what becomes part of weights, and for a look at a network in training."""
        return cls(inference_device())

    @classmethod
    def recorded(cls, computed_in: ComputedIn) -> Self:
        """As a registered model was sampled: in bf16 if it was and this device has bf16, else in float32."""
        device = inference_device()
        if computed_in == "fp32":
            return cls(device)
        if device.type == "cpu":
            dtype = torch.bfloat16 if cpu_flags() and probe_cpu() is not None else torch.float32
        else:
            dtype = computing_type("auto", device)
        return cls(device, dtype, exact=False)

    @property
    def computed_in(self) -> ComputedIn:
        """The type, as records say it."""
        return "bf16" if self.dtype == torch.bfloat16 else "fp32"

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """In the block, networks compute in this type."""
        is_bf16 = self.dtype == torch.bfloat16
        with (
            tf32(not self.exact, self.device),
            torch.autocast(self.device.type, torch.bfloat16) if is_bf16 else nullcontext(),
        ):
            yield

    def function(self, function: Callable[P, T]) -> Callable[P, T]:
        """``function`` of tensors with the images along the first dimension, computed in this type; what it gives in bf16 becomes float32.

        Compiled, it has one shape: see :class:`_OneSize`.
        """
        compiled: Callable[P, T] = function if self.mode is None else _OneSize(function, self.mode)

        def call(*inputs: P.args, **named: P.kwargs) -> T:
            with self.arithmetic():
                found = compiled(*inputs, **named)
            result: T = tree_map_only(Tensor, _float32, found)
            return result

        return call

    def place(self, network: Network) -> Network:
        """Puts a network onto the device; an :class:`InferenceNetwork` is called as this says from then on.

        On a GPU its convolutions get their weights with the channels last, the order in which tensor cores read them.
        """
        network.to(self.device)
        if isinstance(network, InferenceNetwork):
            network.follow(self)
            if self.device.type == "cuda":
                network.to(memory_format=torch.channels_last)
        return network


def _float32(value: Tensor) -> Tensor:
    return value.float() if value.dtype == torch.bfloat16 else value


class _OneSize(Generic[P, T]):
    """A compiled function that always sees as many images as in its largest batch so far: smaller ones are filled up with their first image.

    So the last batch of a set is not compiled again, and the bytes of an image do not depend on how many others were left for its batch.
    """

    def __init__(self, function: Callable[P, T], mode: CompileMode) -> None:
        self.compiled = torch.compile(function, mode=mode, dynamic=False)
        self.sizes: dict[tuple[torch.Size, ...], int] = {}

    def __call__(self, *inputs: P.args, **named: P.kwargs) -> T:
        tensors = [value for value in tree_leaves(inputs) if isinstance(value, Tensor)]
        shapes, count = tuple(tensor.shape[1:] for tensor in tensors), len(tensors[0])
        size = self.sizes[shapes] = max(count, self.sizes.get(shapes, 0))
        filled: Any = tree_map_only(Tensor, lambda value: _filled(value, size), inputs)
        torch.compiler.cudagraph_mark_step_begin()
        found = self.compiled(*filled, **named)
        # The next call of a CUDA graph writes over what this one gave.
        result: T = tree_map_only(Tensor, lambda value: value[:count].clone(), found)
        return result


def _filled(value: Tensor, size: int) -> Tensor:
    """``value`` with its first row again at the end, up to ``size`` rows."""
    missing = size - len(value)
    return torch.cat([value, value[:1].expand(missing, *value.shape[1:])]) if missing else value.contiguous()


class InferenceNetwork(nn.Module):
    """Base of the frozen networks: texture VAEs, vision encoders, semantic encoders and judges.

    What is heavy in it is called by :meth:`run`. Until :meth:`Inference.place`, it is called as it is: within a training it then computes as
    the training does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.inference: Inference | None = None
        self._functions: dict[Callable[..., Any], Callable[..., Any]] = {}

    @property
    def computed_in(self) -> ComputedIn:
        """The type that it computes in, as records say it."""
        return "fp32" if self.inference is None else self.inference.computed_in

    def follow(self, inference: Inference) -> None:
        """Makes :meth:`run` compute as this says."""
        if inference != self.inference:
            self.inference, self._functions = inference, {}

    def run(self, part: Callable[P, T], *inputs: P.args, **named: P.kwargs) -> T:
        """Calls a method or an inner module of this network, as :meth:`Inference.function` does."""
        if self.inference is None:
            return part(*inputs, **named)
        if part not in self._functions:
            self._functions[part] = self.inference.function(part)
        found: T = self._functions[part](*inputs, **named)
        return found
