"""Training in which some blocks see a part of the tokens: what is drawn, what blocks see, resuming, several processes.

As a script, this file is what the processes run.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from two_processes import assert_kept_losses, assert_like_one, keep, torchrun

from sfd.data.latents import LatentBatch
from sfd.diffusion.schedule import OffsetSchedule
from sfd.errors import UserError
from sfd.models.conditions import ClassCondition
from sfd.models.embeddings import Rotation
from sfd.models.lightningdit import LightningDiT, LightningDiTConfig
from sfd.models.tokens import Route, Routing, SparseDeep, TokenRouting
from sfd.names import BACKBONES, Entry
from sfd.params import DiffusionParams, LossParams, ScheduleParams, Sharding, TrainingParams, TrainingRuntime
from sfd.seeding import generator
from sfd.training.backbone import backbone_config, build_routing
from sfd.training.diffusion import DiffusionTask
from sfd.training.heldout import HeldoutLoss
from sfd.training.loop import Trained, train

CPU = torch.device("cpu")
ROUTING = TokenRouting(16, 0.5, 1, 1)
SPARSE = SparseDeep(4, 1, 0.25, 8, 1, 1)
"""The first 8 steps see a quarter of the tokens."""
TWO_PATHS = {"first_blocks": 1, "last_blocks": 1}


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
        if made.has_deep_path:
            made.mask_token.normal_(generator=random)
    return made


def routed_task(routing: Routing | None = ROUTING, **changes: Any) -> DiffusionTask:
    return DiffusionTask(
        network(**changes), RandomLatents(), LossParams(), OffsetSchedule(0.3), 0.1, 0, routing=routing
    )


def sparse_task(**changes: Any) -> DiffusionTask:
    return routed_task(SPARSE, **TWO_PATHS | changes)


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


def run(
    task: DiffusionTask,
    work: Path,
    stop_at: int = 0,
    sharding: Sharding = "ddp",
    compile: bool = False,  # noqa: A002
    **options: Any,
) -> Trained:
    """12 steps of batch 8; ``stop_at`` interrupts when that step is logged."""
    work.mkdir(parents=True, exist_ok=True)
    params = TrainingParams(num_steps=12, batch_size=8, learning_rate=1e-3, ema_decay=0.9, precision="fp32", **options)
    runtime = TrainingRuntime(checkpoint_every=4, log_every=1, compile=compile)

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
    names = set(plain._fields) - {"kept", "without_deep"}
    assert all(torch.equal(getattr(routed, name), getattr(plain, name)) for name in names)


@pytest.mark.parametrize(("share", "num_kept"), [(0.5, 8), (0.75, 4), (0.1, 15), (0.99, 1)])
def test_the_share_is_of_the_tokens_and_at_least_one_stays(share: float, num_kept: int) -> None:
    kept = TokenRouting(16, share, 1, 1).draw(0, 2, generator(0, "test")).kept
    assert kept is not None and kept.shape == (2, num_kept)


@pytest.mark.parametrize("changes", [{}, TWO_PATHS], ids=["routed", "sparse"])
def test_held_out_losses_show_every_block_all_tokens_as_sampling_does(changes: dict[str, Any]) -> None:
    task = routed_task(SPARSE if changes else ROUTING, **changes)
    draws = task.heldout_noise(0, 8)
    assert draws.kept is None and draws.without_deep is None
    values = [
        HeldoutLoss(each, each.dataset, 20)(each.network, 0)  # type: ignore[arg-type]  # what it uses of a LatentDataset
        for each in (task, routed_task(None, **changes))
    ]
    assert values[0] == values[1]


# --- what blocks see ---


def test_blocks_between_see_the_tokens_that_stay_at_their_own_positions_and_the_others_come_back_unchanged() -> None:
    model, kept = network().eval(), ROUTING.draw(0, 3, generator(0, "test")).kept
    assert kept is not None
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


@pytest.mark.parametrize("changes", [{}, {"use_rope": False}, TWO_PATHS], ids=["routed", "no rotation", "sparse"])
def test_a_route_that_all_tokens_take_changes_nothing(changes: dict[str, Any]) -> None:
    model, everyone = network(**changes).eval(), torch.arange(16).expand(3, 16)
    with torch.no_grad():
        plain, routed = model(*inputs()), model(*inputs(), route=Route(everyone, 1, 1))
    torch.testing.assert_close(plain.velocity, routed.velocity)


def test_routing_adds_no_weights_and_every_weight_gets_a_gradient() -> None:
    task, plain = routed_task(), routed_task(None)
    assert list(task.network.state_dict()) == list(plain.network.state_dict())
    draws = task.noise(0, 8, CPU)
    sum(task.losses(task.network, task.dataset.__getitems__(list(range(8))), draws).values()).backward()  # type: ignore[union-attr]
    assert [name for name, p in task.network.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("sparse", [False, True], ids=["routed", "sparse"])
@pytest.mark.parametrize("repa_depth", [1, 2, 3, 4])
def test_repa_compares_the_tokens_that_its_block_sees_with_their_own_features(repa_depth: int, sparse: bool) -> None:
    task = sparse_task(repa_depth=repa_depth) if sparse else routed_task(repa_depth=repa_depth)
    data, draws = task.dataset.__getitems__(list(range(8))), task.noise(0, 8, CPU)
    assert draws.kept is not None and data.features is not None
    features, kept = data.features, draws.kept

    class Knowing(nn.Module):
        """Projects to the very features of the tokens that the block sees."""

        def forward(self, *arguments: Any, **options: Any) -> Any:
            output = task.network(*arguments, **options)
            part = torch.stack([f[k] for f, k in zip(features, kept, strict=True)])
            own = part if repa_depth in (2, 3) else features
            assert output.projection.shape == own.shape
            return output._replace(projection=own)

    assert float(task.losses(Knowing(), data, draws)["repa"]) == pytest.approx(0.0, abs=1e-6)


# --- a sparse deep path (SPRINT) ---


def test_one_token_of_each_group_stays_and_all_of_a_group_equally_often() -> None:
    kept = sparse_task().noise(0, 400, CPU).kept
    assert kept is not None and kept.shape == (400, 4)
    groups = 2 * (kept // 4 // 2) + kept % 4 // 2
    assert all(sorted(row) == [0, 1, 2, 3] for row in groups.tolist())
    counts = torch.bincount(kept.flatten(), minlength=16)
    assert float(counts.min()) > 70 and float(counts.max()) < 130


@pytest.mark.parametrize(("kept_per_group", "num_kept"), [(1, 9), (2, 18), (3, 27)])
def test_of_each_group_as_many_tokens_stay_as_the_share_says(kept_per_group: int, num_kept: int) -> None:
    kept = SparseDeep(6, kept_per_group, 0.0, 1, 1, 1).draw(0, 5, generator(0, "test")).kept
    assert kept is not None and kept.shape == (5, num_kept) and bool((kept.diff(dim=1) > 0).all())
    rows, columns = kept // 6 // 2, kept % 6 // 2
    assert bool(
        (torch.stack([torch.bincount(3 * r + c) for r, c in zip(rows, columns, strict=True)]) == kept_per_group).all()
    )


def test_the_last_steps_show_all_tokens_and_still_drop_paths() -> None:
    task = sparse_task()
    assert task.noise(7, 8, CPU).kept is not None
    last = task.noise(8, 4000, CPU)
    assert last.kept is None and last.without_deep is not None
    assert float(last.without_deep.float().mean()) == pytest.approx(0.25, abs=0.03)


def test_a_sparse_step_changes_no_other_draw() -> None:
    sparse, plain = sparse_task().noise(5, 8, CPU), routed_task(None).noise(5, 8, CPU)
    names = set(plain._fields) - {"kept", "without_deep"}
    assert all(torch.equal(getattr(sparse, name), getattr(plain, name)) for name in names)


def test_the_last_blocks_read_both_paths_joined_with_the_mask_token_for_what_was_left_out() -> None:
    model, without = network(**TWO_PATHS).eval(), torch.tensor([False, True, False])
    kept = SPARSE.draw(0, 3, generator(0, "test")).kept
    assert kept is not None
    seen: dict[int, tuple[Tensor, Tensor]] = {}
    for number, block in enumerate(model.blocks, start=1):
        block.register_forward_hook(lambda _block, args, output, n=number: seen.update({n: (args[0], output)}))
    with torch.no_grad():
        model(*inputs(), route=Route(kept, 1, 1, without))
        assert [seen[number][0].shape[1] for number in (1, 2, 3, 4)] == [16, 4, 4, 16]
        for image in range(3):
            shallow = seen[1][1][image]
            assert torch.equal(seen[2][0][image], shallow[kept[image]])
            deep = model.mask_token[0].expand(16, -1).clone()
            if not without[image]:
                deep[kept[image]] = seen[3][1][image]
            torch.testing.assert_close(seen[4][0][image], model.fusion(torch.cat([deep, shallow], dim=-1)))


def test_in_sampling_all_blocks_see_all_tokens_and_the_paths_are_joined() -> None:
    model = network(**TWO_PATHS).eval()
    inputs_of: dict[int, Tensor] = {}
    for number, block in enumerate(model.blocks, start=1):
        block.register_forward_hook(lambda _block, args, _output, n=number: inputs_of.update({n: args[0]}))
    outputs: list[Tensor] = []
    model.fusion.register_forward_hook(lambda _module, _args, output: outputs.append(output))
    with torch.no_grad():
        model(*inputs())
    assert [value.shape[1] for value in inputs_of.values()] == [16] * 4
    assert len(outputs) == 1 and torch.equal(inputs_of[4], outputs[0])


def test_without_its_deep_path_a_network_does_not_run_it_and_says_what_it_was_trained_to_say_then() -> None:
    model = network(**TWO_PATHS).eval()
    everyone = torch.ones(3, dtype=torch.bool)
    with torch.no_grad():
        expected = model(*inputs(), route=Route(None, 1, 1, everyone)).velocity
        for block in model.blocks[1:3]:
            block.register_forward_hook(lambda *_call: pytest.fail("a block of the deep path was run"))
        found = model(*inputs(), skip_deep=True).velocity
    assert torch.equal(found, expected)


def test_two_paths_add_a_fixed_mask_token_and_a_fusion_and_nothing_else() -> None:
    plain, both = network(), network(**TWO_PATHS)
    added = set(both.state_dict()) - set(plain.state_dict())
    assert added == {"mask_token", "fusion.weight", "fusion.bias"}
    assert not both.mask_token.requires_grad
    made = LightningDiT(both.config).initialise(generator(0, "test"))
    assert 0.01 < float(made.mask_token.detach().std()) < 0.03
    assert float(made.fusion.weight.detach().abs().max()) == pytest.approx((6 / (64 + 32)) ** 0.5, rel=0.02)


def test_every_trained_weight_of_both_paths_gets_a_gradient() -> None:
    task = sparse_task()
    draws = task.noise(0, 8, CPU)
    sum(task.losses(task.network, task.dataset.__getitems__(list(range(8))), draws).values()).backward()  # type: ignore[union-attr]
    assert [name for name, p in task.network.named_parameters() if p.requires_grad and p.grad is None] == []


def test_a_record_without_the_keys_has_one_path_and_one_with_them_two() -> None:
    plain, both = network().config, network(**TWO_PATHS).config
    assert "first_blocks" not in plain.to_dict() and both.to_dict()["last_blocks"] == 1
    for config in (plain, both):
        assert LightningDiTConfig.from_dict(json.loads(json.dumps(config.to_dict())), config.condition) == config


def test_under_autocast_the_sum_over_the_blocks_is_float32_also_after_the_paths_are_joined() -> None:
    model = network(**TWO_PATHS).to(torch.bfloat16)
    types: list[torch.dtype] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _block, args, _output: types.append(args[0].dtype))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model(*inputs(), route=Route(SPARSE.draw(0, 3, generator(0, "test")).kept, 1, 1))
    assert types == [torch.float32] * 4


# --- who can route ---


def params(size: str = "S", **options: Any) -> DiffusionParams:
    training = {"num_steps": 100, "batch_size": 1}
    return DiffusionParams.model_validate({"model": {"size": size}, "loss": {}, "training": training} | options)


def test_what_blocks_see_follows_from_the_options_and_the_latents() -> None:
    assert build_routing(params(), 16) is None
    assert build_routing(params(token_routing={}), 16) == TokenRouting(256, 0.5, 2, 4)
    sparse = params(sparse_deep={"full_token_steps": 10})
    assert build_routing(sparse, 16) == SparseDeep(16, 1, 0.1, 90, 2, 2)
    half = params(sparse_deep={"full_token_steps": 100, "share": 0.5, "path_drop": 0.0})
    assert build_routing(half, 16) == SparseDeep(16, 2, 0.0, 0, 2, 2)


def config(chosen: DiffusionParams, grid: int) -> Any:
    channels = {"texture_channels": 4, "semantic_channels": 2, "feature_dim": 8}
    return backbone_config(chosen, ScheduleParams(), ClassCondition.numbered(3), grid=grid, **channels)


def test_the_network_has_two_paths_with_a_sparse_deep_path_alone() -> None:
    sparse = config(params(sparse_deep={"full_token_steps": 10, "first_blocks": 3}), 4)
    assert (sparse.first_blocks, sparse.last_blocks) == (3, 2)
    assert not config(params(token_routing={}), 4).has_deep_path


def test_a_share_of_less_than_one_token_is_refused() -> None:
    with pytest.raises(UserError, match="share 0.05 of 16 tokens is less than one token: raise it"):
        build_routing(params(token_routing={"share": 0.05}), 4)


def test_an_odd_grid_has_no_groups_and_is_refused() -> None:
    with pytest.raises(UserError, match="groups of 2 x 2, but there are 5 along one side .* which is odd"):
        config(params(sparse_deep={"full_token_steps": 0}), 5)


@pytest.mark.parametrize(
    "options", [{"token_routing": {}}, {"sparse_deep": {"full_token_steps": 0}}], ids=lambda o: next(iter(o))
)
def test_a_backbone_that_cannot_leave_tokens_out_is_refused(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BACKBONES, "plain", Entry(f"{__name__}:Plain", "no tokens"))
    monkeypatch.setitem(sys.modules, __name__, SimpleNamespace(Plain=Plain))
    chosen = params(**options)
    chosen = chosen.model_copy(update={"model": chosen.model.model_copy(update={"backbone": "plain"})})
    (name,) = options
    with pytest.raises(
        UserError, match=f"diffusion.{name}: backbone `plain` cannot leave tokens out: set {name} to null"
    ):
        config(chosen, 16)


class Plain:
    routes_tokens = False


# --- resuming and several processes ---


TASKS = {"routed": routed_task, "sparse": sparse_task}


@pytest.mark.parametrize(("name", "stop_at"), [("routed", 7), ("sparse", 7), ("sparse", 10)])
def test_a_training_that_leaves_tokens_out_resumes_with_the_same_bytes(name: str, stop_at: int, tmp_path: Path) -> None:
    whole = run(TASKS[name](), tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(TASKS[name](), tmp_path / "resumed", stop_at=stop_at)
    resumed = run(TASKS[name](), tmp_path / "resumed")
    assert whole.curve == resumed.curve
    state = resumed.network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in whole.network.state_dict().items())


def test_the_weights_depend_on_the_tokens_that_were_left_out_and_the_mask_token_stays(tmp_path: Path) -> None:
    plain, routed = run(routed_task(None), tmp_path / "plain"), run(routed_task(), tmp_path / "routed")
    assert plain.curve != routed.curve
    before, after = network(**TWO_PATHS), run(sparse_task(), tmp_path / "sparse").network
    assert torch.equal(after.get_parameter("mask_token"), before.mask_token)
    assert not torch.equal(after.get_parameter("fusion.weight"), before.fusion.weight)


def train_side_by_side(folder: Path) -> None:
    """Under torchrun: both ways to leave tokens out with both kinds of sharding, with micro-batches; one with checkpointing."""
    for name, make in TASKS.items():
        for sharding in ("ddp", "fsdp"):
            task = make()
            task.network.checkpoint_activations("none" if sharding == "ddp" else "block")
            place = folder / f"{name}-{sharding}"
            keep(run(task, place, sharding=sharding, accumulation_steps=2), place)


COMPILED = ("none", "block", "selective")


def train_compiled(folder: Path) -> None:
    """Under torchrun: sharded weights, each block compiled, with each kind of checkpointing."""
    for kind in COMPILED:
        task = routed_task()
        task.network.checkpoint_activations(kind)
        keep(run(task, folder / kind, sharding="fsdp", compile=True), folder / kind)


@pytest.mark.long
def test_two_processes_train_the_network_of_one(tmp_path: Path) -> None:
    torchrun(__file__, "side_by_side", str(tmp_path))
    for name, make in TASKS.items():
        alone = run(make(), tmp_path / "alone" / name, accumulation_steps=2)
        for sharding in ("ddp", "fsdp"):
            assert_like_one(tmp_path / f"{name}-{sharding}", alone, rtol=1e-4, atol=1e-5, rel=1e-5)


@pytest.mark.long
def test_sharded_weights_whose_blocks_are_compiled_have_the_losses_of_one_process(tmp_path: Path) -> None:
    torchrun(__file__, "compiled", str(tmp_path))
    expected = [row["total"] for row in run(routed_task(), tmp_path / "alone").curve]
    for kind in COMPILED:
        assert_kept_losses(tmp_path / kind, expected, rel=1e-4)


if __name__ == "__main__":
    import sfd.quiet  # noqa: F401

    {"side_by_side": train_side_by_side, "compiled": train_compiled}[sys.argv[1]](Path(sys.argv[2]))
