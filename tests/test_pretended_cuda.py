"""The pretended GPU itself: what it refuses, what it counts, and that its values are those of the CPU."""

import copy
from pathlib import Path

import pytest
import torch
from pretended_cuda import CudaTensor, pretended_cuda
from torch import Tensor, nn
from torch.utils.data import DataLoader


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.SiLU(), nn.Linear(8, 2))


def trained(device: str, steps: int = 3) -> list[Tensor]:
    """Weights after some steps of AdamW in float32."""
    made = network().to(device)
    optimizer = torch.optim.AdamW(made.parameters(), lr=0.1, fused=True)
    data = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)).to(device)
    for _ in range(steps):
        made(data).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [parameter.detach().cpu() for parameter in made.parameters()]


def test_values_and_gradients_are_those_of_the_cpu() -> None:
    expected = trained("cpu")
    with pretended_cuda():
        found = trained("cuda")
    for mine, theirs in zip(found, expected, strict=True):
        assert type(mine) is Tensor and torch.equal(mine, theirs)


def test_tensors_say_that_they_are_on_the_gpu_and_modules_keep_their_parameters() -> None:
    with pretended_cuda():
        assert torch.cuda.is_available() and torch.cuda.get_device_name() == "pretended"
        made = network().to("cuda:0")
        weight = made[0].weight
        assert isinstance(weight, nn.Parameter) and weight.is_cuda and weight.device == torch.device("cuda", 0)
        assert made.to("cuda")[0].weight is weight, "what is there already does not move"
        assert made.to(torch.bfloat16)[0].weight is weight and weight.dtype == torch.bfloat16
        assert isinstance(copy.deepcopy(made)[0].weight, CudaTensor)
        made.cpu()
        assert type(made[0].weight) is nn.Parameter and not made[0].weight.is_cuda
    assert not torch.cuda.is_available() or torch.cuda.get_device_name() != "pretended"


def test_two_devices_in_one_operation_are_refused_but_for_scalars_and_indices() -> None:
    with pretended_cuda():
        x = torch.ones(3, 2, device="cuda")
        for strange in (
            lambda: x + torch.ones(3, 2),
            lambda: torch.cat([x, torch.ones(1, 2)]),
            lambda: torch.ones(2, 3) @ x,
        ):
            with pytest.raises(RuntimeError, match="same device"):
                strange()
        with pytest.raises(RuntimeError, match="same device"):
            nn.Linear(2, 2)(x)
        assert (x + torch.tensor(1.0)).sum().item() == 12.0
        assert x[torch.tensor([0, 2])].shape == (2, 2)


def test_a_generator_of_the_other_device_and_numpy_are_refused() -> None:
    with pretended_cuda():
        with pytest.raises(RuntimeError, match="Expected a 'cuda' device type for generator"):
            torch.randn(2, generator=torch.Generator().manual_seed(0), device="cuda")
        with pytest.raises(RuntimeError, match="Expected a 'cpu' device type for generator"):
            torch.randn(2, generator=torch.Generator("cuda").manual_seed(0))
        with pytest.raises(TypeError, match="can't convert cuda"):
            torch.ones(2, device="cuda").numpy()
        drawn = torch.randn(2, generator=torch.Generator("cuda").manual_seed(0), device="cuda")
    assert torch.equal(drawn.inner, torch.randn(2, generator=torch.Generator().manual_seed(0)))


def test_autocast_multiplies_in_bf16_and_normalises_in_float32_as_a_gpu_does() -> None:
    with pretended_cuda() as seen:
        made, data = network().to("cuda"), torch.ones(5, 4, device="cuda")
        with torch.autocast("cuda", torch.bfloat16):
            assert torch.is_autocast_enabled("cuda")
            hidden = made[0](data)
            assert hidden.dtype == torch.bfloat16 and made[1](hidden).dtype == torch.float32
            assert made(data).dtype == torch.bfloat16
        assert not torch.is_autocast_enabled("cuda") and seen.dtypes() == {"bfloat16"}
        made(data)
        assert seen.dtypes() == {"bfloat16", "float32"}


@pytest.mark.parametrize(
    ("wait", "named"),
    [
        (lambda x: x.sum().item(), "_local_scalar_dense"),
        (lambda x: bool(x.sum() > 0), "_local_scalar_dense"),
        (lambda x: x.tolist(), "tolist"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: x[x > 0], "index"),
        (lambda x: x.cpu(), "copy to the host"),
        (lambda x: x.to("cpu"), "copy to the host"),
        (lambda x: x.copy_(torch.zeros(3)), "copy of memory that is not pinned"),
        (lambda x: x.new_tensor([1.0]), "copy of memory that is not pinned"),
        (lambda x: torch.tensor([1.0], device=x.device), "copy of memory that is not pinned"),
        (lambda _: torch.zeros(3).to("cuda", non_blocking=True), "copy of memory that is not pinned"),
        (lambda _: torch.zeros(3).pin_memory().to("cuda"), "blocking copy"),
        (lambda _: torch.cuda.synchronize(), "synchronize"),
    ],
)
def test_what_makes_the_host_wait_is_counted_once(wait, named: str) -> None:  # type: ignore[no-untyped-def]
    with pretended_cuda() as seen:
        x = torch.zeros(3, device="cuda")
        assert not seen.syncs
        wait(x)
        assert [(what.split(" at ")[0], count) for what, count in seen.syncs.items()] == [(named, 1)]


def test_pinned_memory_travels_without_a_wait_and_bytes_are_counted_each_way() -> None:
    with pretended_cuda() as seen:
        pinned = torch.zeros(8).pin_memory()
        assert pinned.is_pinned() and pinned[2:].is_pinned() and not torch.zeros(8).is_pinned()
        x = pinned[2:].to("cuda", non_blocking=True)
        assert not seen.syncs and (seen.bytes_to_device, seen.bytes_to_host) == (24, 0)
        (x + 1).to("cpu", non_blocking=True)
        assert not seen.syncs and seen.bytes_to_host == 24


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_loader_pins_its_batches(workers: int) -> None:
    with pretended_cuda() as seen:
        loader = DataLoader(list(torch.arange(4.0)), batch_size=2, num_workers=workers, pin_memory=True)
        batches = [batch.to("cuda", non_blocking=True) for batch in loader]
        assert not seen.syncs and seen.bytes_to_device == 16
        assert [batch.tolist() for batch in batches] == [[0.0, 1.0], [2.0, 3.0]]


def test_a_checkpoint_of_the_gpu_is_read_on_the_cpu(tmp_path: Path) -> None:
    with pretended_cuda():
        torch.save({"x": torch.arange(3, device="cuda"), "w": network().to("cuda").state_dict()}, tmp_path / "c.pt")
    read = torch.load(tmp_path / "c.pt", weights_only=True)
    assert torch.equal(read["x"], torch.arange(3)) and torch.equal(read["w"]["0.weight"], network()[0].weight)


def test_the_line_of_ours_that_waited_is_named() -> None:
    from sfd.evaluation.balanced import balanced_accuracy

    with pretended_cuda() as seen:
        logits = torch.eye(2, device="cuda")
        assert balanced_accuracy(logits, torch.tensor([0, 1])) == 1.0
    assert any("evaluation/balanced.py:" in what for what in seen.syncs)
