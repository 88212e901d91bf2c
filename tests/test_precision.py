"""In which type networks compute: the decision, the trial of a CPU, and how networks are called."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sfd import precision
from sfd.errors import UserError
from sfd.params import InferenceRuntime, Precision
from sfd.precision import Inference, InferenceNetwork, Probe, bf16_pays, computing_type, cpu_flags, probe_cpu

SOURCE = Path(precision.__file__).parent
TRAINED_HERE = {
    "bench/workloads.py",
    "pipeline/diffusion.py",
    "pipeline/schedule.py",
    "pipeline/semantic.py",
    "pipeline/text_encoder.py",
    "pipeline/texture_vae.py",
    "planning/timing.py",
    "training/loop.py",
}
"""Modules that put networks onto a device in another way: those that are trained, or take part in a training or in its own measurements."""

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
BF16 = Inference(CPU, torch.bfloat16, exact=False)
FASTER, SLOWER = Probe(fp32=2.0, bf16=1.0), Probe(fp32=1.0, bf16=2.0)


@pytest.fixture(autouse=True)
def unknown_machine() -> Iterator[None]:
    """What one test finds out about the machine is not known to the next."""
    probe_cpu.cache_clear()
    yield
    probe_cpu.cache_clear()


def machine(patch: pytest.MonkeyPatch, flags: str, found: Probe | None) -> list[None]:
    """A CPU that announces ``flags`` and whose trial ends with ``found``; returns a list that grows with every trial."""
    tried: list[None] = []

    def probe() -> Probe | None:
        tried.append(None)
        return found

    patch.setattr(precision, "cpu_flags", lambda: frozenset(flags.split()))
    patch.setattr(precision, "probe_cpu", probe)
    return tried


def test_fp32_is_float32_everywhere_and_auto_on_a_cpu_is_float32_without_a_trial(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = machine(monkeypatch, "amx_bf16 avx512_bf16", FASTER)
    choices: tuple[tuple[Precision, torch.device], ...] = (("fp32", CPU), ("fp32", CUDA), ("auto", CPU))
    assert [computing_type(*choice) for choice in choices] == [torch.float32] * 3 and not tried


@pytest.mark.parametrize(
    ("flags", "found", "chosen"),
    [
        ("avx512_bf16", FASTER, True),
        ("amx_bf16", FASTER, True),
        ("avx512_bf16", SLOWER, False),
        ("amx_bf16", None, False),
        ("", FASTER, False),
    ],
)
def test_bf16_pays_on_a_cpu_that_announces_it_survives_it_and_is_faster_in_it(
    monkeypatch: pytest.MonkeyPatch, flags: str, found: Probe | None, chosen: bool
) -> None:
    tried = machine(monkeypatch, flags, found)
    assert bf16_pays() == chosen and len(tried) == bool(flags)


def test_bf16_is_obeyed_on_a_cpu_and_refused_in_words_where_a_trial_died_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, found in (("", None), ("avx512_bf16", None), ("amx_bf16", SLOWER)):
        machine(monkeypatch, flags, found)
        assert computing_type("bf16", CPU) == torch.bfloat16
    machine(monkeypatch, "amx_bf16 avx512_bf16", None)
    with pytest.raises(
        UserError, match="ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 in the environment, or write precision: fp32"
    ):
        computing_type("bf16", CPU)


def test_auto_on_a_gpu_is_bf16_where_the_gpu_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for has_it, chosen in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has_it=has_it, **_options: has_it)
        assert computing_type("auto", CUDA) == chosen and computing_type("bf16", CUDA) == torch.bfloat16


@pytest.mark.parametrize(
    ("program", "found"),
    [
        (f"import os; os.kill(os.getpid(), {signal.SIGILL.value})", None),
        ("raise SystemExit(1)", None),
        ("import time; time.sleep(60)", None),
        ("""print('a warning\\n{"fp32": 2.0, "bf16": 1.0}')""", FASTER),
    ],
)
def test_a_trial_that_dies_fails_or_hangs_is_survived_and_means_float32(
    monkeypatch: pytest.MonkeyPatch, program: str, found: Probe | None
) -> None:
    monkeypatch.setattr(precision, "PROBE", program)
    monkeypatch.setattr(precision, "PROBE_LIMIT_S", 5.0)
    monkeypatch.setattr(precision, "cpu_flags", lambda: frozenset({"amx_bf16"}))
    assert probe_cpu() == found and bf16_pays() == (found is not None)
    monkeypatch.setattr(precision, "PROBE", "raise SystemExit(2)")
    assert probe_cpu() == found, "the machine is tried once per process"


@pytest.mark.long
def test_the_trial_measures_this_machine_in_both_types_unless_it_dies_of_bf16() -> None:
    found = probe_cpu()
    assert found is None or (found.fp32 > 0.0 and found.bf16 > 0.0)
    assert found is not None or "amx_bf16" in cpu_flags()


def test_flags_are_read_where_linux_says_them_and_there_are_none_elsewhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    facts = tmp_path / "cpuinfo"
    monkeypatch.setattr(precision, "CPU_FACTS", facts)
    assert cpu_flags() == frozenset()
    facts.write_text("processor\t: 0\nflags\t\t: fpu avx512_bf16 avx512f\nbugs\t\t: x\n")
    assert cpu_flags() == {"avx512_bf16"}
    facts.write_text("processor\t: 0\nFeatures\t: fp asimd\n")
    assert cpu_flags() == frozenset()


class Doubler(InferenceNetwork):
    """Twice the images, and their mean; notes the types and shapes that its products see."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4, bias=False)
        nn.init.eye_(self.linear.weight)
        self.seen: list[tuple[torch.dtype, int]] = []

    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * self.run(self.product, x)

    def product(self, x: Tensor) -> Tensor:
        found: Tensor = self.linear(x)
        self.seen.append((found.dtype, len(found)))
        return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_placed_network_computes_in_the_type_and_gives_float32(dtype: torch.dtype) -> None:
    network, x = Doubler(), torch.tensor([[1.0, 1.0 + 2**-12, 3.0, 4.0]])
    found = Inference(CPU, dtype).place(network)(x)
    assert network.seen == [(dtype, 1)] and found.dtype == torch.float32
    rounded = dtype == torch.bfloat16
    assert torch.equal(found, 2.0 * (x.bfloat16().float() if rounded else x))
    assert network.computed_in == ("bf16" if rounded else "fp32") and network.linear.weight.dtype == torch.float32


def test_a_network_that_was_not_placed_computes_as_its_caller_does() -> None:
    network = Doubler()
    network(torch.ones(1, 4))
    with torch.autocast("cpu", torch.bfloat16):
        network(torch.ones(1, 4))
    assert [dtype for dtype, _ in network.seen] == [torch.float32, torch.bfloat16] and network.computed_in == "fp32"


def test_options_say_how_networks_are_called_and_records_by_what_they_were_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(precision, "inference_device", lambda: CPU)
    machine(monkeypatch, "avx512_bf16", FASTER)
    runtime = InferenceRuntime(precision="bf16", compile="reduce-overhead")
    assert Inference.of(runtime) == Inference(CPU, torch.bfloat16, exact=False, mode="reduce-overhead")
    assert Inference.of(InferenceRuntime()) == Inference(CPU, exact=False)
    assert Inference.of(InferenceRuntime(precision="fp32")) == Inference.float32() == Inference(CPU, exact=True)
    assert Inference.recorded("fp32") == Inference(CPU) and Inference.recorded("bf16") == BF16
    machine(monkeypatch, "amx_bf16", None)
    assert Inference.recorded("bf16").dtype == torch.float32, "a model of another machine is drawn from all the same"


def test_tf32_is_allowed_within_a_call_unless_fp32_is_asked_for_and_the_process_is_left_as_it_was() -> None:
    settings = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [each.allow_tf32 for each in settings]
    for allowed in (True, False):
        with precision.tf32(allowed, CUDA):
            assert [each.allow_tf32 for each in settings] == [allowed, allowed]
        with precision.tf32(allowed, CPU):
            assert [each.allow_tf32 for each in settings] == before
    assert [each.allow_tf32 for each in settings] == before


def compiled_by(patch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """Replaces compilation by nothing; returns a list of how functions were to be compiled."""
    asked: list[dict[str, object]] = []

    def compile_nothing(function: Callable[..., object], **options: object) -> Callable[..., object]:
        asked.append(options)
        return function

    patch.setattr(torch, "compile", compile_nothing)
    return asked


def test_compiled_networks_see_one_size_of_batch_and_an_image_does_not_depend_on_its_company(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = compiled_by(monkeypatch)
    network, x = Doubler(), torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    Inference(CPU, mode="max-autotune").place(network)
    batches = [network(part) for part in x.split(3)]
    assert [size for _, size in network.seen] == [3, 3, 3] and [len(each) for each in batches] == [3, 3, 2]
    assert asked == [{"mode": "max-autotune", "dynamic": False}], "it is compiled once"
    assert torch.equal(torch.cat(batches), 2.0 * x)
    assert torch.equal(network(x[7:]), batches[2][1:]) and network.seen[-1][1] == 3
    network(x)
    assert network.seen[-1][1] == 8, "a larger batch is another size"


def test_what_a_compiled_network_gave_stays_when_it_is_called_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA graph writes what it gives into the same memory each time."""
    compiled_by(monkeypatch)
    memory = torch.zeros(2, 1)
    function = Inference(CPU, mode="reduce-overhead").function(lambda x: memory.copy_(x))
    first = function(torch.ones(2, 1))
    function(torch.full((2, 1), 5.0))
    assert torch.equal(first, torch.ones(2, 1))


def test_without_a_mode_nothing_is_compiled_or_filled_up(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, network = compiled_by(monkeypatch), Doubler()
    Inference(CPU).place(network)
    for part in torch.ones(5, 4).split(3):
        network(part)
    assert not asked and [size for _, size in network.seen] == [3, 2]


@pytest.mark.long
def test_the_last_smaller_batch_is_not_compiled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.utils import counters

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **_: real(function, backend="eager", dynamic=False))
    torch._dynamo.reset()
    counters.clear()
    linear = nn.Linear(4, 4)
    function = Inference(CPU, torch.bfloat16, exact=False, mode="default").function(linear)
    with torch.no_grad():
        found = torch.cat([function(part) for part in torch.ones(8, 4).split(3)])
    assert counters["stats"]["unique_graphs"] == 1 and found.shape == (8, 4) and found.dtype == torch.float32


def test_networks_are_placed_for_inference_in_no_other_way() -> None:
    users = {
        file.relative_to(SOURCE).as_posix() for file in SOURCE.rglob("*.py") if "inference_device" in file.read_text()
    }
    assert users == TRAINED_HERE | {"precision.py", "processes.py"}
