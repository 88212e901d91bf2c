"""Training in which some blocks see a part of the tokens: what is drawn, what blocks see, resuming, several processes.

As a script, this file is what the processes run.
"""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sfd.data.latents import LatentBatch
from sfd.diffusion.schedule import OffsetSchedule
from sfd.errors import UserError
from sfd.models.conditions import ClassCondition
from sfd.models.embeddings import Rotation
from sfd.models.lightningdit import LightningDiT, LightningDiTConfig
from sfd.models.tokens import Route, TokenRouting
from sfd.names import BACKBONES, Entry
from sfd.params import DiffusionParams, LossParams, Sharding, TrainingParams, TrainingRuntime
from sfd.seeding import generator
from sfd.training.backbone import token_routing
from sfd.training.diffusion import DiffusionTask
from sfd.training.heldout import HeldoutLoss
from sfd.training.loop import Trained, train

CPU = torch.device("cpu")
ROUTING = TokenRouting(16, 0.5, 1, 1)


class RandomLatents:
    """Random latents, classes and features of 16 tokens."""

    def __init__(self, num_samples: int = 37) -> None:
        random = generator(0, "test/latents")
        latents = torch.randn(num_samples, 6, 4, 4, generator=random)
        features = torch.randn(num_samples, 16, 8, generator=random)
        self.all = LatentBatch(latents, torch.arange(num_samples) % 3, features)

    def __len__(self) -> int:
        return len(self.all.latents)

    def __getitems__(self, indices: list[int]) -> LatentBatch:
        return LatentBatch(*(tensor[indices] for tensor in self.all if tensor is not None))


def network(**changes: Any) -> LightningDiT:
    """Four blocks 32 wide, every trainable weight non-zero."""
    parts = {"semantic_channels": 2, "two_times": True, "repa_depth": 1, "repa_width": 16, "feature_dim": 8}
    config = LightningDiTConfig(4, 6, 32, 4, 2, condition=ClassCondition.numbered(3), **parts | changes)
    made, random = LightningDiT(config), generator(0, "test/initialisation")
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=random))
    return made


def routed_task(routing: TokenRouting | None = ROUTING, **changes: Any) -> DiffusionTask:
    return DiffusionTask(
        network(**changes), RandomLatents(), LossParams(), OffsetSchedule(0.3), 0.1, 0, routing=routing
    )


def inputs(size: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    random = generator(1, "test/inputs")
    return (
        torch.randn(size, 6, 4, 4, generator=random),
        torch.rand(size, generator=random),
        torch.rand(size, generator=random),
        torch.arange(size) % 3,
    )


class Interrupted(Exception):
    """Ends a training from outside."""


def run(task: DiffusionTask, work: Path, stop_at: int = 0, sharding: Sharding = "ddp", **options: Any) -> Trained:
    """12 steps of batch 8; ``stop_at`` interrupts when that step is logged."""
    work.mkdir(parents=True, exist_ok=True)
    params = TrainingParams(num_steps=12, batch_size=8, learning_rate=1e-3, ema_decay=0.9, precision="fp32", **options)
    runtime = TrainingRuntime(checkpoint_every=4, log_every=1)

    def log(_row: dict[str, float], step: int) -> None:
        if step == stop_at:
            raise Interrupted

    return train(task, params, 0, work, "a", log, runtime, sharding=sharding)


# --- token routing (TREAD): draws ---


def test_the_tokens_that_stay_are_distinct_in_order_and_others_for_each_image_and_step() -> None:
    kept = routed_task().noise(3, 200, CPU).kept
    assert kept is not None and kept.shape == (200, 8)
    assert bool((kept.diff(dim=1) > 0).all()) and (int(kept.min()), int(kept.max())) == (0, 15)
    assert len(torch.unique(kept, dim=0)) > 150
    counts = torch.bincount(kept.flatten(), minlength=16)
    assert float(counts.min()) > 70 and float(counts.max()) < 130, "all tokens stay equally often"
    again, other = routed_task().noise(3, 200, CPU).kept, routed_task().noise(4, 200, CPU).kept
    assert torch.equal(kept, again) and not torch.equal(kept, other)


def test_routing_changes_no_other_draw() -> None:
    routed, plain = routed_task().noise(5, 8, CPU), routed_task(None).noise(5, 8, CPU)
    assert plain.kept is None
    assert all(torch.equal(getattr(routed, name), getattr(plain, name)) for name in plain._fields if name != "kept")


@pytest.mark.parametrize(("share", "num_kept"), [(0.5, 8), (0.75, 4), (0.1, 15), (0.99, 1)])
def test_the_share_is_of_the_tokens_and_at_least_one_stays(share: float, num_kept: int) -> None:
    assert TokenRouting(16, share, 1, 1).draw(2, generator(0, "test")).shape == (2, num_kept)


def test_held_out_losses_show_every_block_all_tokens_as_sampling_does() -> None:
    assert routed_task().heldout_noise(0, 8).kept is None
    values = [
        HeldoutLoss(task, task.dataset, 20)(task.network, 0)  # type: ignore[arg-type]  # what it uses of a LatentDataset
        for task in (routed_task(), routed_task(None))
    ]
    assert values[0] == values[1]


# --- what blocks see ---


def test_blocks_between_see_the_tokens_that_stay_at_their_own_positions_and_the_others_come_back_unchanged() -> None:
    model, kept = network().eval(), ROUTING.draw(3, generator(0, "test"))
    seen: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    for number, block in enumerate(model.blocks, start=1):
        block.register_forward_hook(lambda _block, args, output, n=number: seen.update({n: (args[0], args[1], output)}))
    with torch.no_grad():
        model(*inputs(), route=Route(kept, 1, 1))
        assert [seen[number][0].shape[1] for number in (1, 2, 3, 4)] == [16, 8, 8, 16]
        rope, modulation = model.feat_rope, seen[1][1]
        assert rope is not None
        for image in range(3):
            rows = kept[image]
            tokens = seen[1][2][image : image + 1]
            expected = tokens.clone()
            part = tokens[:, rows]
            for number in (2, 3):
                turned = Rotation(rope.freqs_cos[rows], rope.freqs_sin[rows])
                part = model.blocks[number - 1](part, modulation[image : image + 1], turned)
            expected[:, rows] = part
            torch.testing.assert_close(seen[4][0][image : image + 1], expected)
            others = [position for position in range(16) if position not in rows.tolist()]
            assert torch.equal(seen[4][0][image, others], tokens[0, others])


@pytest.mark.parametrize("use_rope", [True, False])
def test_a_route_that_all_tokens_take_changes_nothing(use_rope: bool) -> None:
    model, everyone = network(use_rope=use_rope).eval(), torch.arange(16).expand(3, 16)
    with torch.no_grad():
        plain, routed = model(*inputs()), model(*inputs(), route=Route(everyone, 1, 1))
    torch.testing.assert_close(plain.velocity, routed.velocity)


def test_routing_adds_no_weights_and_every_weight_gets_a_gradient() -> None:
    task, plain = routed_task(), routed_task(None)
    assert list(task.network.state_dict()) == list(plain.network.state_dict())
    draws = task.noise(0, 8, CPU)
    sum(task.losses(task.network, task.dataset.__getitems__(list(range(8))), draws).values()).backward()  # type: ignore[union-attr]
    assert [name for name, p in task.network.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize(("repa_depth", "tokens"), [(1, 16), (2, 8), (3, 8), (4, 16)])
def test_repa_compares_the_tokens_that_its_block_sees_with_their_own_features(repa_depth: int, tokens: int) -> None:
    task = routed_task(repa_depth=repa_depth)
    data, draws = task.dataset.__getitems__(list(range(8))), task.noise(0, 8, CPU)
    assert draws.kept is not None and data.features is not None
    features = data.features

    class Knowing(nn.Module):
        """Projects to the very features of the tokens that the block sees."""

        def forward(self, *arguments: Any, **options: Any) -> Any:
            output = task.network(*arguments, **options)
            own = features if tokens == 16 else torch.stack([f[k] for f, k in zip(features, draws.kept, strict=True)])
            assert output.projection.shape == own.shape
            return output._replace(projection=own)

    assert float(task.losses(Knowing(), data, draws)["repa"]) == pytest.approx(0.0, abs=1e-6)


# --- who can route ---


def params(**routing: Any) -> DiffusionParams:
    return DiffusionParams.model_validate(
        {"model": {"size": "S"}, "loss": {}, "training": {"num_steps": 1, "batch_size": 1}, "token_routing": routing}
    )


def test_the_routing_follows_from_the_options_and_the_latents() -> None:
    assert token_routing(params(), 16) == TokenRouting(256, 0.5, 2, 4)
    assert token_routing(params().model_copy(update={"token_routing": None}), 16) is None


def test_a_share_of_less_than_one_token_is_refused() -> None:
    with pytest.raises(UserError, match="share 0.05 of 16 tokens is less than one token: raise it"):
        token_routing(params(share=0.05), 4)


def test_a_backbone_that_cannot_route_tokens_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKBONES, "plain", Entry(f"{__name__}:Plain", "no tokens"))
    monkeypatch.setitem(sys.modules, __name__, SimpleNamespace(Plain=Plain))
    chosen = params()
    chosen = chosen.model_copy(update={"model": chosen.model.model_copy(update={"backbone": "plain"})})
    with pytest.raises(UserError, match="backbone `plain` cannot route tokens: set token_routing to null"):
        token_routing(chosen, 16)


class Plain:
    routes_tokens = False


# --- resuming and several processes ---


def test_a_training_that_routes_tokens_resumes_with_the_same_bytes(tmp_path: Path) -> None:
    whole = run(routed_task(), tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(routed_task(), tmp_path / "resumed", stop_at=7)
    resumed = run(routed_task(), tmp_path / "resumed")
    assert whole.curve == resumed.curve
    state = resumed.network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in whole.network.state_dict().items())
    plain = run(routed_task(None), tmp_path / "plain")
    assert plain.curve != whole.curve


def train_side_by_side(folder: Path) -> None:
    """Under torchrun: both kinds of sharding, with micro-batches."""
    for sharding in ("ddp", "fsdp"):
        trained = run(routed_task(), folder / sharding, sharding=sharding, accumulation_steps=2)
        if int(torch.distributed.get_rank()) == 0:
            save_file(trained.network.state_dict(), folder / f"{sharding}.safetensors")
            (folder / f"{sharding}.json").write_text(json.dumps(trained.curve))


@pytest.mark.long
def test_two_processes_train_the_network_of_one(tmp_path: Path) -> None:
    import support  # not in the processes that run this file as a script

    command = ["torchrun", "--standalone", "--nproc_per_node", "2", __file__, str(tmp_path)]
    environment = support.environment() | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    alone = run(routed_task(), tmp_path / "alone", accumulation_steps=2)
    for sharding in ("ddp", "fsdp"):
        together = load_file(tmp_path / f"{sharding}.safetensors")
        for name, value in alone.network.state_dict().items():
            torch.testing.assert_close(together[name], value, rtol=1e-4, atol=1e-5)
        curve = json.loads((tmp_path / f"{sharding}.json").read_text())
        assert [row["total"] for row in curve] == pytest.approx([row["total"] for row in alone.curve], rel=1e-5)


if __name__ == "__main__":
    import sfd.quiet  # noqa: F401

    train_side_by_side(Path(sys.argv[1]))
