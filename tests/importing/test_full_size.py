"""Files as large as the published ones, and every published shape."""

import json
import math
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from sfd.importing.checkpoints import Weights, load_strictly
from sfd.models.lightningdit import LightningDiT
from sfd.models.published import config_from_weights
from sfd.sizes import SIZES

RELEASED = json.loads((Path(__file__).parents[1] / "data/conformance/released_checkpoint_shapes.json").read_text())
MAX_MEMORY_GIB = 4.0
"""The weights take 2.5 GiB: there is no room for a second copy."""


@pytest.fixture
def xl_file(tmp_path: Path) -> Iterator[Path]:
    """SFD-XL in the published layout with random weights: all of them views of one block, so that the file is small and quickly made."""
    shapes = RELEASED["sfd_xl"]["state_dict"]
    block = torch.randn(max(map(math.prod, shapes.values())), generator=torch.Generator().manual_seed(0))
    file = tmp_path / "sfd_xl.pt"
    torch.save({"ema": {key: block[: math.prod(shape)].view(shape) for key, shape in shapes.items()}}, file)
    yield file
    (tmp_path / "out" / "model.safetensors").unlink(missing_ok=True)  # 2.7 GB, and pytest keeps the folder


@pytest.mark.long
def test_a_model_of_full_xl_size_is_imported_strictly_in_little_more_memory_than_it_is_large(xl_file: Path) -> None:
    out, numbers = xl_file.parent / "out", xl_file.parent / "latents_stats.pt"
    torch.save({"mean": torch.zeros(1, 48, 1, 1), "std": torch.ones(1, 48, 1, 1)}, numbers)
    command = ["import", str(xl_file), str(out), "--kind", "diffusion", "--statistics", str(numbers)]
    run = subprocess.run([Path(sys.executable).with_name("sfd"), *command], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "diffusion: 682,765,424 parameters" in run.stdout
    assert "28 blocks, 1152 wide, 16 heads, patch 1, qknorm, swiglu, rope, rmsnorm, shift" in run.stdout
    assert "1000 classes and the null class" in run.stdout
    assert "latents 48 x 16 x 16, the last 16 semantic; two times, tau 0.3" in run.stdout
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20 < MAX_MEMORY_GIB
    with safe_open(out / "model.safetensors", "pt") as stored:
        shapes = {key: stored.get_slice(key).get_shape() for key in stored.keys()}  # noqa: SIM118  # not a mapping
        first, last = stored.get_tensor("x_embedder.proj.bias"), stored.get_tensor("blocks.27.mlp.w3.bias")
    assert shapes == RELEASED["sfd_xl"]["state_dict"]
    assert torch.equal(first, last) and first.std() > 0.9


@pytest.mark.parametrize(("name", "size"), [("sfd_xl", "XL"), ("sfd_1p0", "1p0B"), ("sfd_autoguidance_b", "B")])
def test_every_width_of_a_published_model_is_read_from_its_weights(name: str, size: str) -> None:
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in RELEASED[name]["state_dict"].items()}
        config = config_from_weights(state, semantic_channels=16, has_null_class=True)
        network = LightningDiT(config)
    assert (config.hidden_size, config.depth, config.num_heads) == SIZES[size]
    assert (config.input_size, config.in_channels, config.feature_dim) == (16, 48, 768)
    assert len(config.condition.choices or []) == 1000 and config.condition.has_null
    assert sum(parameter.numel() for parameter in network.parameters()) == RELEASED[name]["parameters"]
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    assert shapes == {key: tuple(shape) for key, shape in RELEASED[name]["state_dict"].items()}


def test_loading_copies_no_weight() -> None:
    with torch.device("meta"):
        network = torch.nn.Linear(3, 4)
    state = {"weight": torch.ones(4, 3), "bias": torch.ones(4)}
    load_strictly(network, Weights(Path("file"), state), "a layer")
    assert network.weight.data_ptr() == state["weight"].data_ptr() and network.weight.requires_grad
