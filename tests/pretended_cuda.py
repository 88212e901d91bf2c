"""A GPU for machines without one: tensors that say `cuda:0` and compute on the CPU, so that the GPU's path runs with real values.

    with pretended_cuda() as seen:    # torch.cuda.is_available() is true inside
        ...
    seen.syncs, seen.bytes_to_host, seen.products

What CUDA would refuse is refused: tensors of two devices in one operation (scalars and indices may be on the CPU), a generator of
another device, ``numpy`` of a tensor on the GPU. What makes the host wait is counted with the line of ours that did it. It does not show
missing kernels, cuDNN, memory, streams or speed.

torch has two doors, and both are watched. Python's functions and methods (``TorchFunctionMode``): ``Tensor.to`` and its like, because torch's
own C++ would ask a driver about `cuda`. Operations below autograd (``__torch_dispatch__``): devices, waits, dtypes. To C++ the tensors are
ordinary CPU tensors, so autograd, optimizers and autocast work.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import accelerate
import torch
import torch._dynamo  # imported before anything is replaced: it looks at devices and at torch.Generator
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
SOURCE = f"{Path(__file__).parents[1] / 'src' / 'sfd'}/"
HALF = (torch.bfloat16, torch.float16)
CPU_INDICES = (
    "aten.index.Tensor",
    "aten.index_put_.default",
    "aten.index_put.default",
    "aten._index_put_impl_.default",
)
COPIES = ("aten._to_copy.default", "aten.copy_.default")
WAITS = {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "bincount", "unique_dim"}
WAITS |= {"_unique", "_unique2", "unique_consecutive", "repeat_interleave", "_linalg_eigh", "_linalg_svd", "linalg_eig"}
WAITS |= {"linalg_cholesky_ex", "linalg_inv_ex", "_linalg_det", "_linalg_solve_ex"}
"""Operations whose result's size or value the host must know before it goes on."""
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "convolution"}
IN_FLOAT32 = {
    "layer_norm",
    "group_norm",
    "softmax",
    "log_softmax",
    "cosine_similarity",
    "mse_loss",
    "norm",
    "sum",
    "prod",
}
IN_FLOAT32 |= {"cumsum", "exp", "log", "pow", "cdist", "l1_loss", "nll_loss", "renorm", "rsqrt", "softplus"}
"""What autocast computes in float32 on a GPU, while on a CPU most of it stays in bf16 (torch.amp, "CUDA ops that autocast to float32")."""


@dataclass
class Seen:
    """What happened on the pretended GPU.

    Attributes:
        syncs: what made the host wait, as "operation at file:line", and how often. Lines are those of `sfd`, or "elsewhere".
        bytes_to_host: copied from the GPU.
        bytes_to_device: copied to it.
        products: matrix products, convolutions and attentions, by name and dtype.
    """

    syncs: Counter[str] = field(default_factory=Counter)
    bytes_to_host: int = 0
    bytes_to_device: int = 0
    products: Counter[tuple[str, str]] = field(default_factory=Counter)

    def wait(self, what: str) -> None:
        """Counts one wait of the host."""
        self.syncs[f"{what} at {_caller()}"] += 1

    def dtypes(self) -> set[str]:
        """Of all products."""
        return {dtype for _, dtype in self.products}


def _caller() -> str:
    """The innermost line of `sfd` on the stack."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(SOURCE):
            return f"{frame.f_code.co_filename.removeprefix(SOURCE)}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"


class CudaTensor(Tensor):
    """A tensor of the pretended GPU; ``inner`` has its values."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> "CudaTensor":
        made: CudaTensor = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=CPU,
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _pretended().run(func, args, kwargs or {})

    device = property(lambda _: CUDA)
    is_cuda = property(lambda _: True)
    is_cpu = property(lambda _: False)

    @property
    def data(self) -> Tensor:
        return Tensor.data.__get__(self)  # type: ignore[attr-defined,no-any-return]

    @data.setter
    def data(self, value: Tensor) -> None:
        """``Module.to`` keeps a parameter that is on the GPU, and changes its values and dtype."""
        assert isinstance(value, CudaTensor)
        self.inner = value.inner
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]

    def get_device(self) -> int:
        return 0

    def __repr__(self, **_: Any) -> str:
        return f"CudaTensor({self.inner})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """``torch.save`` keeps the values; here, checkpoints are always read to the CPU."""
        return self.inner.detach().__reduce_ex__(protocol)

    def __array__(self, *_: Any) -> Any:
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."
        )


_active: list["_Pretended"] = []


def _pretended() -> "_Pretended":
    assert _active, "a tensor of a pretended GPU outlived it"
    return _active[-1]


def _on_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


class Generator(torch.Generator):
    """A generator of the pretended GPU, or a real one."""

    def __new__(cls, device: Any = "cpu") -> "Generator":
        made: Generator = super().__new__(cls, "cpu")
        made.says = CUDA if _on_cuda(device) else CPU
        return made

    says: torch.device
    device = property(lambda self: self.says)


class _Pretended:
    """The GPU: what it has seen, and how it runs operations."""

    def __init__(self, seen: Seen) -> None:
        self.seen = seen
        self.pinned: dict[int, Tensor] = {}
        self.to_host = False
        """Whether a copy was asked for. To C++ all tensors are on the CPU, so its backward passes name that device, too."""

    # --- operations, below autograd ---

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Runs one operation on the values, after the checks that CUDA makes."""
        name = str(func)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        cuda = [tensor for tensor in tensors if isinstance(tensor, CudaTensor)]
        on_cuda = _on_cuda(kwargs.get("device")) or (bool(cuda) and not self.to_host)
        if name in COPIES:
            self._count_copy(name, tensors, on_cuda, _non_blocking(name, args, kwargs))
        elif cuda:
            self._check_devices(name, tensors)
        self._count(func, tensors, cuda)
        if kwargs.get("device") is not None:
            kwargs = kwargs | {"device": CPU}
        kwargs = {key: value for key, value in kwargs.items() if key != "pin_memory"}
        bare = tree_map(lambda value: value.inner if isinstance(value, CudaTensor) else value, (args, kwargs))
        out = func(*bare[0], **bare[1])
        if func._schema.is_mutable:
            return self._in_place(func, args, kwargs, out)
        return (
            tree_map(lambda value: CudaTensor(value) if isinstance(value, Tensor) else value, out) if on_cuda else out
        )

    def _in_place(self, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> Any:
        """An operation that changes a tensor gives back that tensor."""
        given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
        changed = [given.get(argument.name) for argument in func._schema.arguments if argument.is_write]
        if isinstance(out, Tensor):
            return changed[0]
        return out if out is None else tuple(changed)

    def _check_devices(self, name: str, tensors: list[Tensor]) -> None:
        if name in CPU_INDICES:
            tensors = tensors[:1] + tensors[-1:] if "put" in name else tensors[:1]
        strangers = [tuple(each.shape) for each in tensors if not isinstance(each, CudaTensor) and each.dim() > 0]
        if strangers:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! ({name}, on the CPU: {strangers})"
            )

    def _count_copy(self, name: str, tensors: list[Tensor], on_cuda: bool, non_blocking: bool) -> None:
        source = tensors[-1]
        from_cuda = isinstance(source, CudaTensor)
        to_cuda = isinstance(tensors[0], CudaTensor) if name == "aten.copy_.default" else on_cuda
        if from_cuda and not to_cuda:
            self.seen.bytes_to_host += source.nbytes
            if not non_blocking:
                self.seen.wait("copy to the host")
        elif to_cuda and not from_cuda:
            self.seen.bytes_to_device += source.nbytes
            if not (non_blocking and self.is_pinned(source)):
                self.seen.wait("copy of memory that is not pinned" if not self.is_pinned(source) else "blocking copy")

    def _count(self, func: Any, tensors: list[Tensor], cuda: list[CudaTensor]) -> None:
        if not cuda:
            return
        plain = func._schema.name.removeprefix("aten::")
        if plain in WAITS or (plain.startswith("index") and any(each.dtype == torch.bool for each in tensors[1:])):
            self.seen.wait(plain)
        if plain in PRODUCTS or "scaled_dot_product" in plain:
            self.seen.products[plain, str(cuda[0].dtype).removeprefix("torch.")] += 1

    # --- memory that copies need not wait for ---

    def pin(self, tensor: Tensor) -> Tensor:
        """A copy in memory that counts as pinned until the GPU is gone."""
        if isinstance(tensor, CudaTensor):
            raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")
        if self.is_pinned(tensor):
            return tensor
        made = tensor.clone()
        self.pinned[made.untyped_storage().data_ptr()] = made
        return made

    def is_pinned(self, tensor: Tensor) -> bool:
        """Whether the memory under a tensor came from :meth:`pin`."""
        return not isinstance(tensor, CudaTensor) and tensor.untyped_storage().data_ptr() in self.pinned

    # --- Python's functions and methods ---

    def to(self, tensor: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """``Tensor.to``: the same tensor, another dtype of it, or a copy on the other side."""
        if args and isinstance(args[0], Tensor):
            args, kwargs = (args[0].device, args[0].dtype, *args[1:]), kwargs
        if isinstance(kwargs.get("other"), Tensor):
            other = kwargs.pop("other")
            kwargs |= {"device": other.device, "dtype": other.dtype}
        copy = kwargs.pop("copy", False) or any(value is True for value in args[3:])
        device, dtype, non_blocking, layout = torch._C._nn._parse_to(*args, **kwargs)
        to_cuda = isinstance(tensor, CudaTensor) if device is None else _on_cuda(device)
        if to_cuda == isinstance(tensor, CudaTensor):
            if not copy and dtype in (None, tensor.dtype) and layout is None:
                return tensor
            return torch.ops.aten._to_copy(tensor, dtype=dtype or tensor.dtype, memory_format=layout)  # type: ignore[no-any-return]
        options = {"dtype": dtype or tensor.dtype, "device": CUDA if to_cuda else CPU, "non_blocking": non_blocking}
        self.to_host = not to_cuda
        try:
            return torch.ops.aten._to_copy(tensor, **options, memory_format=layout)  # type: ignore[no-any-return]
        finally:
            self.to_host = False

    def made(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Tensor:
        """``torch.tensor`` and ``torch.as_tensor`` on the GPU: values of the host, copied."""
        if args and isinstance(args[0], Tensor):
            return self.to(args[0], (), {"device": CUDA, "dtype": kwargs.get("dtype")})
        return self.to(func(*args, **{key: value for key, value in kwargs.items() if key != "device"}), (CUDA,), {})

    def function(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        """One function or method of torch, as Python calls it."""
        name = getattr(func, "__name__", "")
        if _on_cuda(kwargs.get("device")):
            kwargs = kwargs | {"device": CUDA}  # C++ would ask the driver which GPU `cuda` is
            if func in (torch.tensor, torch.as_tensor, torch.asarray):
                return self.made(func, args, kwargs)
        tensor = args[0] if args and isinstance(args[0], Tensor) else None
        _check_generator(
            name, kwargs.get("generator"), _on_cuda(kwargs.get("device")) or isinstance(tensor, CudaTensor)
        )
        if (
            isinstance(tensor, CudaTensor)
            and func is not Tensor.to
            and kwargs.get("device") is not None
            and not _on_cuda(kwargs["device"])
        ):
            args = (tensor.inner, *args[1:])  # such as zeros_like(tensor, device="cpu")
        elif tensor is not None:
            found = _METHODS.get(func)
            if found is not None:
                return found(self, func, tensor, args[1:], kwargs)
            if name in IN_FLOAT32 and torch.is_autocast_enabled("cpu") and any(_is_half_on_cuda(each) for each in args):
                args = [each.float() if _is_half_on_cuda(each) else each for each in args]
        return func(*args, **kwargs)


def _check_generator(name: str, generator: torch.Generator | None, on_cuda: bool) -> None:
    if generator is not None and _on_cuda(generator.device) != on_cuda:
        wanted = "cuda" if on_cuda else "cpu"
        raise RuntimeError(f"Expected a '{wanted}' device type for generator but found '{generator.device}' ({name})")


def _is_half_on_cuda(value: object) -> bool:
    return isinstance(value, CudaTensor) and value.dtype in HALF


def _non_blocking(name: str, args: Any, kwargs: dict[str, Any]) -> bool:
    return bool(kwargs.get("non_blocking", args[2] if name == "aten.copy_.default" and len(args) > 2 else False))


def _values(gpu: _Pretended, func: Any, tensor: Tensor, args: Any, kwargs: Any) -> Any:
    """``tolist`` reads memory, and would find none."""
    if not isinstance(tensor, CudaTensor):
        return func(tensor, *args, **kwargs)
    gpu.seen.wait("tolist")
    return func(tensor.inner)


def _numpy(_gpu: _Pretended, func: Any, tensor: Tensor, args: Any, kwargs: Any) -> Any:
    return tensor.__array__() if isinstance(tensor, CudaTensor) else func(tensor, *args, **kwargs)


def _new_tensor(gpu: _Pretended, func: Any, tensor: Tensor, args: Any, kwargs: Any) -> Any:
    if not isinstance(tensor, CudaTensor):
        return func(tensor, *args, **kwargs)
    return gpu.to(torch.tensor(*args, **{"dtype": tensor.dtype} | kwargs), (CUDA,), {})


_METHODS: dict[Any, Callable[[_Pretended, Any, Tensor, Any, Any], Any]] = {
    Tensor.to: lambda gpu, _func, tensor, args, kwargs: gpu.to(tensor, args, kwargs),
    Tensor.cuda: lambda gpu, _func, tensor, _args, kwargs: gpu.to(tensor, (CUDA,), kwargs),
    Tensor.cpu: lambda gpu, _func, tensor, _args, _kwargs: gpu.to(tensor, (CPU,), {}),
    Tensor.tolist: _values,
    Tensor.numpy: _numpy,
    Tensor.new_tensor: _new_tensor,
}


class _Functions(TorchFunctionMode):
    def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _pretended().function(func, args, kwargs or {})


class _Operations(TorchDispatchMode):
    """Finds what makes a tensor on the GPU from nothing; operations on tensors of the GPU come to their class by themselves."""

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _on_cuda(kwargs.get("device")) or any(isinstance(leaf, CudaTensor) for leaf in tree_leaves((args, kwargs))):
            return _pretended().run(func, args, kwargs)
        return func(*args, **kwargs)


class Autocast(torch.autocast):
    """Autocast of the GPU is that of the CPU, with float32 where a GPU has it (:data:`IN_FLOAT32`)."""

    def __init__(self, device_type: str, dtype: torch.dtype | None = None, *args: Any, **kwargs: Any) -> None:
        if device_type == "cuda":
            device_type, dtype = "cpu", dtype or torch.float16
        super().__init__(device_type, dtype, *args, **kwargs)


class _Stream:
    """Order is kept, so that nobody needs to wait for anything."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.device = CUDA

    def synchronize(self) -> None:
        _pretended().seen.wait("synchronize")

    def wait_stream(self, _other: object) -> None: ...

    def wait_event(self, _event: object) -> None: ...

    def record(self, _stream: object = None) -> None: ...

    def record_event(self, _event: object = None) -> "_Stream":
        return self

    def wait(self, _stream: object = None) -> None: ...

    def query(self) -> bool:
        return True

    def is_capturing(self) -> bool:
        return False


def _accelerator(seen: Seen) -> dict[str, Any]:
    """What `torch.accelerator` says of the GPU."""
    return {
        "is_available": lambda *_, **__: True,
        "current_accelerator": lambda *_, **__: CUDA,
        "current_device_index": lambda: 0,
        "set_device_index": lambda _device: None,
        "current_stream": _Stream,
        "synchronize": lambda *_: seen.wait("synchronize"),
    }


def _driver(seen: Seen) -> dict[str, Any]:
    """What `torch.cuda` says of the GPU."""
    properties = SimpleNamespace(name="pretended", total_memory=2**34, major=9, minor=0, multi_processor_count=1)
    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_is_in_bad_fork": lambda: False,
        "is_bf16_supported": lambda *_, **__: True,
        "current_device": lambda: 0,
        "device_count": lambda: 1,
        "set_device": lambda _device: None,
        "synchronize": lambda *_: seen.wait("synchronize"),
        "get_device_name": lambda *_: properties.name,
        "get_device_capability": lambda *_: (9, 0),
        "get_device_properties": lambda *_: properties,
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda *_: None,
        "max_memory_allocated": lambda *_: 0,
        "memory_allocated": lambda *_: 0,
        "get_rng_state": lambda *_: torch.zeros(1, dtype=torch.uint8),
        "set_rng_state": lambda *_: None,
        "manual_seed": lambda _seed: None,
        "manual_seed_all": lambda _seed: None,
        "Stream": _Stream,
        "Event": _Stream,
        "current_stream": _Stream,
        "default_stream": _Stream,
        "stream": lambda _stream: nullcontext(),
    }


def _of_cpu(real: Callable[..., Any]) -> Callable[..., Any]:
    """Questions about the GPU's autocast are answered by the CPU's."""
    return lambda device_type="cuda": real("cpu" if device_type == "cuda" else device_type)


def _same_side(tensor: Tensor, other: Tensor) -> bool:
    """Whether ``Module.to`` can keep a parameter: where it moves, its class changes, so it becomes another one."""
    return isinstance(tensor, CudaTensor) == isinstance(other, CudaTensor)


@contextmanager
def pretended_cuda() -> Iterator[Seen]:
    """A GPU for the block. Processes that are started in it do not see it; threads do as far as they use tensors that are there."""
    seen = Seen()
    gpu = _Pretended(seen)
    with ExitStack() as stack:
        for module, changes in (
            (torch.cuda, _driver(seen)),
            (torch, {"Generator": Generator, "autocast": Autocast}),
            # Not by the modes below, which the thread of a data loader does not have.
            (
                Tensor,
                {
                    "pin_memory": lambda tensor, *_: gpu.pin(tensor),
                    "is_pinned": lambda tensor, *_: gpu.is_pinned(tensor),
                },
            ),
            (torch, {"_has_compatible_shallow_copy_type": _same_side}),
            (torch, {name: _of_cpu(getattr(torch, name)) for name in ("is_autocast_enabled", "get_autocast_dtype")}),
            (torch.accelerator, _accelerator(seen)),
        ):
            for name, value in changes.items():
                stack.enter_context(mock.patch.object(module, name, value))
        stack.callback(_forget_processes)
        _forget_processes()
        _active.append(gpu)
        stack.callback(_active.pop)
        stack.enter_context(_Operations())
        stack.enter_context(_Functions())
        yield seen


def _forget_processes() -> None:
    """accelerate keeps the device that it found first."""
    assert accelerate is not None
    AcceleratorState._reset_state(True)
    PartialState._reset_state()
