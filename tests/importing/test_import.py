"""`sfd import`: files in the published layouts become our folders, and broken ones are refused by what is wrong with them."""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sfd import cli
from sfd.data.latents import STATISTICS
from sfd.encoders.semantic.encoder import load_semantic, save_semantic
from sfd.encoders.semantic.semvae import SemVae, SemVaeConfig
from sfd.encoders.texture_vae import KlVae, TrainableAutoencoder, load_texture_vae
from sfd.encoders.vision import TrainableEncoder, freeze, save_encoder
from sfd.generation.model import DiffusionModel
from sfd.network_files import network_digest
from sfd.params import EncoderParams, TextureVaeParams
from sfd.pixels import to_uint8

VECTORS = Path(__file__).parents[1] / "data/conformance"
YAML = "model:\n  arch: transformer\n  transformer_heads: 4\ntraining:\n  lr: 1.0e-4\n"


def vector(name: str) -> dict[str, Tensor]:
    return load_file(VECTORS / f"{name}.safetensors")


def weights(name: str) -> dict[str, Tensor]:
    return {key.removeprefix("state."): value for key, value in vector(name).items() if key.startswith("state.")}


def stored(path: Path, content: Any, **options: Any) -> str:
    torch.save(content, path, **options)
    return str(path)


@pytest.fixture
def statistics(tmp_path: Path) -> list[str]:
    """Of 8 texture and 4 semantic channels, shaped as published."""
    options = []
    for name, channels in (("latents_stats.pt", 8), ("latents_sv_stats.pt", 4)):
        mean, std = torch.arange(channels).float(), torch.arange(channels).float() + 1.0
        options += [
            "--statistics",
            stored(tmp_path / name, {"mean": mean[None, :, None, None], "std": std[None, :, None, None]}),
        ]
    return options


@pytest.fixture
def sfd_import(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command; returns what it says, which after a refusal is one line on stderr."""

    def run(*arguments: str, refused: bool = False) -> str:
        monkeypatch.setattr(sys, "argv", ["sfd", "import", *arguments])
        with pytest.raises(SystemExit) as ending:
            cli.main()
        said = capsys.readouterr()
        assert ending.value.code == (2 if refused else 0), said.err
        if refused:
            assert said.err.startswith("error: ") and said.err.count("\n") == 1
        return said.err if refused else said.out

    return run


@pytest.fixture
def networks(tmp_path: Path) -> dict[str, Path]:
    """Folders of a texture VAE of 8 channels, an encoder of 768 features and a SemVAE of 4 channels, by option."""
    fields = {"source": "train", "channels": (8, 8), "layers_per_block": 1, "latent_channels": 8}
    KlVae(TrainableAutoencoder(TextureVaeParams.model_validate(fields), 0).autoencoder).save(tmp_path / "vae")
    sizes = {"input_size": 8, "patch_size": 4, "width": 768, "depth": 1, "num_heads": 12}
    small = EncoderParams.model_validate({"source": "train"} | sizes)
    save_encoder(tmp_path / "encoder", freeze(small, TrainableEncoder(small, 2, 0)))
    save_semantic(tmp_path / "semvae", SemVae(SemVaeConfig(768, 8, 2, 1, 4)))
    names = {"--texture-vae": "vae", "--encoder": "encoder", "--semantic-vae": "semvae"}
    return {option: tmp_path / name for option, name in names.items()}


# --- what is read ---


def test_the_averaged_weights_of_a_checkpoint_compute_the_published_numbers(
    tmp_path: Path, sfd_import: Callable[..., str], statistics: list[str]
) -> None:
    state, tensors = weights("sfd_tiny"), vector("sfd_tiny")
    wrapped = {f"module._orig_mod.{key}": value for key, value in state.items()}
    other = {key: torch.zeros_like(value) for key, value in state.items()}
    file = stored(tmp_path / "sfd.pt", {"model": other, "ema": wrapped, "opt": {"state": {}}, "steps": 5})
    said = sfd_import(file, str(tmp_path / "new" / "out"), "--kind", "diffusion", *statistics)
    model = DiffusionModel.load(tmp_path / "new" / "out")
    velocity = model.network(tensors["xt"], tensors["t_tex"], tensors["t_sem"], tensors["y"]).velocity
    assert (velocity - tensors["velocity"]).abs().max() < 1e-5
    assert model.schedule_params.tau == 0.3 and model.condition.choices == [str(n) for n in range(10)]
    assert model.network.config.semantic_channels == 4
    assert model.statistics.mean.tolist() == [*range(8), *range(4)]
    assert f"{sum(p.numel() for p in model.network.parameters()):,} parameters" in said
    assert "unused: beside the weights: model, opt, steps" in said
    assert "unused: the prefix module." in said and "unused: the prefix _orig_mod." in said


def test_files_of_any_format_with_the_same_weights_become_the_same_folder(
    tmp_path: Path, sfd_import: Callable[..., str], statistics: list[str]
) -> None:
    state = weights("sfd_tiny")
    save_file(state, tmp_path / "a.safetensors")
    flat = torch.cat([value.flatten() for value in state.values()])
    views = dict(
        zip(
            state,
            (
                part.view(state[k].shape)
                for k, part in zip(state, flat.split([v.numel() for v in state.values()]), strict=True)
            ),
            strict=True,
        )
    )
    files = [
        str(tmp_path / "a.safetensors"),
        stored(tmp_path / "plain.pt", state),
        stored(tmp_path / "model.pt", {"model": {key: value.double() for key, value in state.items()}}),
        stored(tmp_path / "old.pt", {"ema": state}, _use_new_zipfile_serialization=False),
        stored(tmp_path / "views.pt", {"ema": views}),
    ]
    made = []
    for number, file in enumerate(files):
        sfd_import(file, str(tmp_path / str(number)), "--kind", "diffusion", *statistics)
        made.append({path.name: path.read_bytes() for path in sorted((tmp_path / str(number)).iterdir())})
    assert set(made[0]) == {"config.json", "model.safetensors", STATISTICS}
    assert all(other == made[0] for other in made)


def wrapped(state: dict[str, Tensor], wrapper: str) -> dict[str, Any]:
    """The state as a wrapper of torch's names it."""
    prefix = {"AveragedModel": "module.", "AveragedModel of DDP": "module.module.", "FSDP": "_fsdp_wrapped_module."}
    if wrapper in prefix:
        counter = {"n_averaged": torch.tensor(5)} if wrapper.startswith("AveragedModel") else {}
        return {prefix[wrapper] + key: value for key, value in state.items()} | counter
    parts = {
        "compiled blocks": "_orig_mod.",
        "FSDP of blocks": "_fsdp_wrapped_module._checkpoint_wrapped_module.",
        "DDP of blocks": "module.",
    }
    return {re.sub(r"^(blocks\.\d+\.)", rf"\1{parts[wrapper]}", key): value for key, value in state.items()}


@pytest.mark.parametrize(
    "wrapper", ["AveragedModel", "AveragedModel of DDP", "FSDP", "compiled blocks", "FSDP of blocks", "DDP of blocks"]
)
def test_what_wrappers_put_into_names_is_left_out_and_said(
    tmp_path: Path, sfd_import: Callable[..., str], statistics: list[str], wrapper: str
) -> None:
    state = weights("sfd_tiny")
    given = ["--kind", "diffusion", *statistics]
    sfd_import(stored(tmp_path / "plain.pt", state), str(tmp_path / "plain"), *given)
    said = sfd_import(stored(tmp_path / "a.pt", {"ema": wrapped(state, wrapper)}), str(tmp_path / "a"), *given)
    for file in (tmp_path / "plain").iterdir():
        assert (tmp_path / "a" / file.name).read_bytes() == file.read_bytes()
    assert "unused: the prefix " in said
    assert ("unused: n_averaged" in said) == wrapper.startswith("AveragedModel")


def test_a_name_that_two_weights_have_without_wrappers_is_refused(
    tmp_path: Path, sfd_import: Callable[..., str], statistics: list[str]
) -> None:
    state = weights("sfd_tiny")
    file = stored(tmp_path / "a.pt", state | {f"module.{key}": value for key, value in state.items()})
    refused = sfd_import(file, str(tmp_path / "out"), "--kind", "diffusion", *statistics, refused=True)
    assert "holds weights twice" in refused


def test_the_content_and_not_the_name_says_what_a_file_is(
    tmp_path: Path, sfd_import: Callable[..., str], statistics: list[str]
) -> None:
    given = ["--kind", "diffusion", *statistics]
    save_file(weights("sfd_tiny"), tmp_path / "a.SafeTensors")
    sfd_import(str(tmp_path / "a.SafeTensors"), str(tmp_path / "out"), *given)
    torch.save(weights("sfd_tiny"), stream := (tmp_path / "b.safetensors").open("wb"))
    stream.close()
    assert "call it .pt" in sfd_import(str(tmp_path / "b.safetensors"), str(tmp_path / "b"), *given, refused=True)


def test_a_model_of_one_time_is_synchronous_and_without_semantics_unless_said(
    tmp_path: Path, sfd_import: Callable[..., str]
) -> None:
    state = weights("lightningdit_sync")
    channels = state["x_embedder.proj.weight"].shape[1]
    file = stored(tmp_path / "sync.pt", {"ema": state})
    numbers = stored(tmp_path / "stats.pt", {"mean": torch.zeros(channels), "std": torch.ones(channels)})
    given = ["--kind", "diffusion", "--statistics", numbers]
    sfd_import(file, str(tmp_path / "plain"), *given)
    model = DiffusionModel.load(tmp_path / "plain")
    assert model.schedule_params.kind == "sync" and model.network.config.semantic_channels == 0
    sfd_import(file, str(tmp_path / "redi"), *given, "--semantic-channels", "3")
    assert DiffusionModel.load(tmp_path / "redi").network.config.semantic_channels == 3
    assert "--tau is 0.3, but the model has one time" in sfd_import(file, "x", *given, "--tau", "0.3", refused=True)
    assert "--knots is given, but the model has one time" in sfd_import(
        file, "x", *given, "--knots", "0,1", refused=True
    )
    assert "cannot be the semantic ones" in sfd_import(
        file, "x", *given, "--semantic-channels", str(channels), refused=True
    )


def test_weights_of_a_learnt_schedule_come_with_their_curve_and_sample_along_it(
    tmp_path: Path, sfd_import: Callable[..., str], statistics: list[str]
) -> None:
    """The layout of the published LWD weights: `{"ema": state}`, the network of SFD, and a curve that no file holds."""
    file = stored(tmp_path / "xl_400k.pt", {"ema": weights("sfd_tiny")})
    given = [file, str(tmp_path / "lwd"), "--kind", "diffusion", *statistics, "--knots", "0,0.5,0.25,0,0.25"]
    assert "two times, the curve of knots 0, 0.5, 0.25, 0, 0.25" in sfd_import(*given)
    model, tensors = DiffusionModel.load(tmp_path / "lwd"), vector("sfd_tiny")
    assert (model.schedule_params.kind, model.schedule_params.knots) == ("curve", (0.0, 0.5, 0.25, 0.0, 0.25))
    velocity = model.network(tensors["xt"], tensors["t_tex"], tensors["t_sem"], tensors["y"]).velocity
    assert (velocity - tensors["velocity"]).abs().max() < 1e-5
    t_tex, t_sem = model.schedule.times(torch.tensor([0.0, 1.0]))
    assert (t_tex.tolist(), t_sem.tolist()) == ([0.0, 1.0], [0.0, 1.0])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--knots", "0,x"], "--knots is '0,x', but a curve has 2 to 33 numbers"),
        (["--knots", "0,0"], "not all 0"),
        (["--knots", "1"], "2 to 33 numbers"),
        (["--knots", "-1,2"], "of 0 or more"),
        (["--knots", "0,1", "--tau", "0.3"], "--tau 0.3 and --knots name two schedules"),
    ],
)
def test_a_curve_that_is_none_or_one_too_many_is_refused(
    tmp_path: Path, sfd_import: Callable[..., str], statistics: list[str], options: list[str], reason: str
) -> None:
    file = stored(tmp_path / "a.pt", {"ema": weights("sfd_tiny")})
    assert reason in sfd_import(file, "x", "--kind", "diffusion", *statistics, *options, refused=True)


def test_class_names_say_whether_the_last_row_is_the_null_class(
    tmp_path: Path, sfd_import: Callable[..., str], statistics: list[str]
) -> None:
    file = stored(tmp_path / "sfd.pt", {"ema": weights("sfd_tiny")})
    for count, has_null in ((10, True), (11, False)):
        names = [f"n{index}" for index in range(count)]
        names[0] = "a\u2028b\x0bc"  # no ends of lines
        text = "\r\n".join(names) + "\r\n"
        (tmp_path / "names.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())  # as Windows writes it
        out = tmp_path / str(count)
        sfd_import(file, str(out), "--kind", "diffusion", *statistics, "--classes", str(tmp_path / "names.txt"))
        model = DiffusionModel.load(out)
        assert model.condition.choices == names and model.condition.has_null == has_null
    for text, reason in (("a\nb\n", "names 2 classes, but the class table has 11 rows"), ("a\na\n", "names 'a' twice")):
        (tmp_path / "names.txt").write_text(text)
        given = [*statistics, "--classes", str(tmp_path / "names.txt")]
        assert reason in sfd_import(file, "x", "--kind", "diffusion", *given, refused=True)


def test_a_semantic_vae_computes_the_published_numbers_with_the_heads_of_its_config(
    tmp_path: Path, sfd_import: Callable[..., str]
) -> None:
    content = {"model_state_dict": weights("semvae_tiny"), "config": YAML, "global_step": 3}
    said = sfd_import(stored(tmp_path / "vae.pt", content), str(tmp_path / "out"), "--kind", "semantic-vae")
    tensors, network = vector("semvae_tiny"), load_semantic(tmp_path / "out")
    expected = json.loads((VECTORS / "semvae_tiny.json").read_text())
    assert (network.shape.heads, network.shape.blocks) == (expected["heads"], expected["blocks"])
    assert (network.encode(tensors["features"]) - tensors["mean"]).abs().max() < 1e-5
    assert "2 + 2 blocks, 32 wide, 4 heads; features of 24 to 5 channels" in said


def test_the_number_of_heads_is_given_where_the_file_does_not_say_it(
    tmp_path: Path, sfd_import: Callable[..., str]
) -> None:
    file = stored(tmp_path / "vae.pt", {"model_state_dict": weights("semvae_tiny"), "iteration": 1_000_000})
    said = sfd_import(file, str(tmp_path / "out"), "--kind", "semantic-vae", "--heads", "4")
    tensors, network = vector("semvae_tiny"), load_semantic(tmp_path / "out")
    assert (network.encode(tensors["features"]) - tensors["mean"]).abs().max() < 1e-5
    assert "unused: beside the weights: iteration" in said
    for heads, reason in (("5", "5 heads do not divide the width 32"), (None, "give it as --heads")):
        given = [] if heads is None else ["--heads", heads]
        assert reason in sfd_import(file, "x", "--kind", "semantic-vae", *given, refused=True)
    file = stored(tmp_path / "told.pt", {"model_state_dict": weights("semvae_tiny"), "config": YAML})
    sfd_import(file, str(tmp_path / "told"), "--kind", "semantic-vae", "--heads", "4")
    said = sfd_import(file, "x", "--kind", "semantic-vae", "--heads", "8", refused=True)
    assert "`config` says 4 heads, but --heads is 8; leave the option out" in said


def test_a_texture_vae_computes_the_published_pixels_and_loses_what_only_its_training_needs(
    tmp_path: Path, sfd_import: Callable[..., str]
) -> None:
    tensors = vector("texture_vae_tiny")
    clutter = {"loss.logvar": torch.zeros(1), "loss.discriminator.num_batches_tracked": torch.tensor(3)}
    content = {"state_dict": weights("texture_vae_tiny") | clutter, "epoch": 1}
    said = sfd_import(stored(tmp_path / "vae.ckpt", content), str(tmp_path / "out"), "--kind", "texture-vae")
    vae = load_texture_vae(tmp_path / "out")
    assert (vae.decode(tensors["mean"]).int() - to_uint8(tensors["reconstruction_of_mean"]).int()).abs().max() <= 1
    assert "unused: 2 keys loss.*" in said


def test_what_a_user_names_is_left_out_and_a_name_that_fits_nothing_is_refused(
    tmp_path: Path, sfd_import: Callable[..., str]
) -> None:
    file = stored(
        tmp_path / "vae.ckpt", {"state_dict": weights("texture_vae_tiny") | {"linear_proj.weight": torch.ones(2)}}
    )
    assert "1 extra (linear_proj.weight)" in sfd_import(file, "x", "--kind", "texture-vae", refused=True)
    assert "no key of" in sfd_import(file, "x", "--kind", "texture-vae", "--drop", "foundation.", refused=True)
    said = sfd_import(file, str(tmp_path / "out"), "--kind", "texture-vae", "--drop", "linear_proj.")
    assert "unused: 1 keys linear_proj.*" in said


# --- what is refused ---


def changed(name: str, **changes: Tensor | None) -> dict[str, Tensor]:
    """Weights with some replaced, added, or (None) taken away."""
    state: dict[str, Any] = weights(name) | changes
    return {key: value for key, value in state.items() if value is not None}


QKV = "blocks.1.attn.qkv.weight"
NAN = torch.full((192, 64), float("nan"))
DIFFUSION = {
    "no known key": ({"params": weights("sfd_tiny")}, "holds params, but a diffusion file holds its weights under ema or"),
    "a list": ([torch.ones(1)], "holds list, but a diffusion file"),
    "an empty mapping under its key": ({"ema": {}}, "x_embedder.proj.weight is missing"),
    "averages without names": ({"ema": [*weights("sfd_tiny").values()], "model": weights("sfd_tiny")}, "holds under ema no weights by"),
    "shapes alone": ({"ema": changed("sfd_tiny", **{QKV: NAN.to("meta")})}, f"holds shapes and no numbers (device meta) of {QKV}"),
    "a missing key": ({"ema": changed("sfd_tiny", **{QKV: None})}, f"1 missing ({QKV})"),
    "an extra key": ({"ema": changed("sfd_tiny", more=torch.ones(1))}, "1 extra (more); give the whole published file; drop"),
    "a misshapen key": ({"ema": changed("sfd_tiny", **{QKV: NAN[:3]})}, f"1 misshapen ({QKV} [3, 64] instead of [192, 64])"),
    "NaN": ({"ema": changed("sfd_tiny", **{QKV: NAN})}, f"1 weights hold NaN or infinity ({QKV})"),
    "whole numbers": ({"ema": changed("sfd_tiny", **{QKV: NAN.bool()})}, f"floating-point numbers, but these are not: {QKV}"),
    "a foreign object": ({"ema": weights("sfd_tiny"), "args": argparse.Namespace(lr=1)}, "the objects argparse.Namespace, and"),
    "another kind": ({"state_dict": weights("texture_vae_tiny")}, "looks like a texture-vae, not like a diffusion: give --kind"),
    "yet another kind": ({"model_state_dict": weights("semvae_tiny"), "config": YAML}, "looks like a semantic-vae"),
    "no square": ({"ema": changed("sfd_tiny", pos_embed=torch.ones(1, 63, 64))}, "pos_embed has 63 tokens, which is not a square number"),
}  # fmt: skip


@pytest.mark.parametrize("fault", DIFFUSION)
def test_a_broken_diffusion_file_is_refused_by_what_is_wrong_with_it(
    tmp_path: Path, sfd_import: Callable[..., str], statistics: list[str], fault: str
) -> None:
    content, reason = DIFFUSION[fault]
    file = stored(tmp_path / "broken.pt", content)
    said = sfd_import(file, str(tmp_path / "out"), "--kind", "diffusion", *statistics, refused=True)
    assert reason in said and file in said
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_many_wrong_keys_are_listed_up_to_a_limit_and_counted(
    tmp_path: Path, sfd_import: Callable[..., str], statistics: list[str]
) -> None:
    state = {key: value for key, value in weights("sfd_tiny").items() if not key.startswith("blocks.1")}
    said = sfd_import(stored(tmp_path / "a.pt", state), "x", "--kind", "diffusion", *statistics, refused=True)
    assert "14 missing (blocks.1.norm1.weight, " in said and " and 9 more)" in said


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("a.pt", Path.unlink, "is missing; give the published file itself"),
        ("a.pt", lambda file: (file.unlink(), file.mkdir()), "is a folder"),
        ("a.pt", lambda file: file.write_bytes(b""), "is empty"),
        (
            "a.pt",
            lambda file: file.write_text("version https://git-lfs"),
            "no torch file, it begins with b'version https",
        ),
        ("a.pt", cut_off, "its end is missing after"),
        ("a.pt", lambda file: file.write_bytes(b"\x80\x02junk"), "cannot be read as a torch file"),
        ("a.safetensors", cut_off, "is no whole safetensors file"),
    ],
)
def test_a_file_that_is_no_whole_checkpoint_is_refused(
    tmp_path: Path,
    sfd_import: Callable[..., str],
    statistics: list[str],
    name: str,
    damage: Callable[[Path], object],
    reason: str,
) -> None:
    file = tmp_path / name
    if name == "a.pt":
        stored(file, {"ema": weights("sfd_tiny")})
    else:
        save_file(weights("sfd_tiny"), file)
    damage(file)
    assert reason in sfd_import(str(file), "x", "--kind", "diffusion", *statistics, refused=True)


def test_code_in_a_pickle_is_not_run(tmp_path: Path, sfd_import: Callable[..., str], statistics: list[str]) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "sprung",)

    for new in (True, False):
        file = stored(tmp_path / "trap.pt", {"ema": Trap()}, _use_new_zipfile_serialization=new)
        said = sfd_import(file, "x", "--kind", "diffusion", *statistics, refused=True)
        assert "getattr" in said and "can run any code, so it is not read" in said
    assert not (tmp_path / "sprung").exists()


SEMANTIC = {
    "no config": ({}, "no YAML text under `config` (missing)"),
    "a config that is no text": ({"config": {"heads": 4}}, "no YAML text under `config` (dict)"),
    "a config that is not YAML": ({"config": "model: ["}, "`config` is not valid YAML"),
    "a config without heads": ({"config": "model: {width: 32}"}, "must say one number of heads"),
    "a config with two numbers of heads": ({"config": "{a: {heads: 4}, b: {heads: 8}}"}, "but says [4, 8]"),
    "heads that do not divide": ({"config": "heads: 5"}, "5 heads do not divide the width 32"),
}


@pytest.mark.parametrize("fault", SEMANTIC)
def test_a_semantic_vae_without_a_usable_config_is_refused(
    tmp_path: Path, sfd_import: Callable[..., str], fault: str
) -> None:
    content, reason = SEMANTIC[fault]
    file = stored(tmp_path / "vae.pt", {"model_state_dict": weights("semvae_tiny")} | content)
    assert reason in sfd_import(file, "x", "--kind", "semantic-vae", refused=True)


@pytest.mark.parametrize(
    ("name", "kind", "key", "change", "reason"),
    [
        ("semvae_tiny", "semantic-vae", "encoder.2.norm1.bias", None, "1 missing (encoder.2.norm1.bias)"),
        ("semvae_tiny", "semantic-vae", "decoder.0.weight", None, "decoder.0.weight is missing"),
        ("semvae_tiny", "semantic-vae", "decoder.9.bias", torch.ones(1), "1 extra (decoder.9.bias)"),
        ("texture_vae_tiny", "texture-vae", "encoder.norm_out.bias", None, "1 missing (encoder.conv_norm_out.bias)"),
        ("texture_vae_tiny", "texture-vae", "decoder.conv_in.weight", None, "decoder.conv_in.weight is missing"),
        ("texture_vae_tiny", "texture-vae", "quant_conv.bias", torch.ones(3), "1 misshapen (quant_conv.bias [3]"),
        ("texture_vae_tiny", "texture-vae", "quant_conv.bias", torch.full((8,), torch.inf), "NaN or infinity"),
    ],
)  # fmt: skip
def test_broken_weights_of_a_vae_are_refused_by_their_keys(
    tmp_path: Path,
    sfd_import: Callable[..., str],
    name: str,
    kind: str,
    key: str,
    change: Tensor | None,
    reason: str,
) -> None:
    if change is not None and key in weights(name) and change.numel() == 8:
        change = torch.full_like(weights(name)[key], torch.inf)
    place = "model_state_dict" if kind == "semantic-vae" else "state_dict"
    file = stored(tmp_path / "vae.pt", {place: changed(name, **{key: change}), "config": YAML})
    assert reason in sfd_import(file, "x", "--kind", kind, refused=True)


# --- the networks that the latents of a diffusion model came from ---


def given(networks: dict[str, Path]) -> list[str]:
    return [text for option, folder in networks.items() for text in (option, str(folder))]


def test_an_imported_model_records_the_networks_that_are_named(
    tmp_path: Path, sfd_import: Callable[..., str], statistics: list[str], networks: dict[str, Path]
) -> None:
    file, digests = stored(tmp_path / "a.pt", weights("sfd_tiny")), [network_digest(each) for each in networks.values()]
    said = sfd_import(file, str(tmp_path / "out"), "--kind", "diffusion", *statistics, *given(networks))
    recorded = dict(zip(("texture_vae", "encoder", "semantic"), digests, strict=True))
    assert DiffusionModel.load(tmp_path / "out").networks == recorded
    words = ("texture VAE", "vision encoder", "semantic encoder")
    assert all(f"{word} {digest[:12]}" in said for word, digest in zip(words, digests, strict=True))
    assert "not recorded" not in said


def test_networks_that_are_not_named_are_not_recorded_and_that_is_said(
    tmp_path: Path, sfd_import: Callable[..., str], statistics: list[str], networks: dict[str, Path]
) -> None:
    file = stored(tmp_path / "a.pt", weights("sfd_tiny"))
    del networks["--encoder"]
    said = sfd_import(file, str(tmp_path / "out"), "--kind", "diffusion", *statistics, *given(networks))
    assert set(DiffusionModel.load(tmp_path / "out").networks) == {"texture_vae", "semantic"}
    assert "not recorded, so others will not be refused: vision encoder; name them with --encoder FOLDER" in said
    said = sfd_import(file, str(tmp_path / "none"), "--kind", "diffusion", *statistics)
    assert DiffusionModel.load(tmp_path / "none").networks == {}
    assert "--texture-vae FOLDER --encoder FOLDER --semantic-vae FOLDER" in said and "came from" not in said


@pytest.mark.parametrize(
    ("option", "folder", "reason"),
    [
        ("--texture-vae", "absent", "--texture-vae: "),
        ("--texture-vae", "semvae", "kind is 'semvae', but must be one of"),
        ("--texture-vae", "model", "model holds no texture VAE"),
        ("--semantic-vae", "vae", "kind is None, but must be one of"),
        ("--semantic-vae", "wide", "wide has 5 channels, but the model was trained with 4"),
        ("--encoder", "semvae", "semvae/config.json lacks "),
        ("--encoder", "absent", "holds no network: config.json is missing"),
    ],
)
def test_a_folder_of_something_else_is_refused_by_its_option(
    tmp_path: Path,
    sfd_import: Callable[..., str],
    statistics: list[str],
    networks: dict[str, Path],
    option: str,
    folder: str,
    reason: str,
) -> None:
    file = stored(tmp_path / "a.pt", weights("sfd_tiny"))
    sfd_import(file, str(tmp_path / "model"), "--kind", "diffusion", *statistics)
    save_semantic(tmp_path / "wide", SemVae(SemVaeConfig(768, 8, 2, 1, 5)))
    wrong = given(networks | {option: tmp_path / folder})
    said = sfd_import(file, str(tmp_path / "out"), "--kind", "diffusion", *statistics, *wrong, refused=True)
    assert reason in said and option in said and not (tmp_path / "out").exists()


def test_a_model_without_semantics_records_that_there_are_none(
    tmp_path: Path, sfd_import: Callable[..., str], networks: dict[str, Path]
) -> None:
    file = stored(tmp_path / "plain.pt", weights("lightningdit_sync"))
    channels = weights("lightningdit_sync")["x_embedder.proj.weight"].shape[1]
    numbers = stored(tmp_path / "stats.pt", {"mean": torch.zeros(channels), "std": torch.ones(channels)})
    known = ["--kind", "diffusion", "--statistics", numbers]
    sfd_import(file, str(tmp_path / "out"), *known)
    assert DiffusionModel.load(tmp_path / "out").networks == {"encoder": None, "semantic": None}
    said = sfd_import(file, "x", *known, "--encoder", str(networks["--encoder"]), refused=True)
    assert "which this one does not have: leave them out" in said


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"mean": torch.ones(12)}, "holds no statistics"),
        ({"mean": torch.ones(12), "std": torch.ones(11)}, "holds no statistics"),
        ({"mean": torch.ones(12), "std": torch.zeros(12)}, "standard deviations above 0"),
        ({"mean": torch.full((12,), torch.nan), "std": torch.ones(12)}, "means must be finite"),
        ({"mean": torch.ones(16), "std": torch.ones(16)}, "are of 16 channels"),
    ],
)
def test_statistics_that_do_not_fit_are_refused(
    tmp_path: Path, sfd_import: Callable[..., str], content: dict[str, Tensor], reason: str
) -> None:
    file, numbers = stored(tmp_path / "a.pt", weights("sfd_tiny")), stored(tmp_path / "stats.pt", content)
    given = ["--kind", "diffusion", "--statistics", numbers, "--semantic-channels", "4"]
    assert reason in sfd_import(file, "x", *given, refused=True)


def test_options_that_are_needed_or_contradict_are_refused_before_the_file_is_read(
    tmp_path: Path, sfd_import: Callable[..., str], statistics: list[str]
) -> None:
    absent = str(tmp_path / "absent.pt")
    assert "the statistics that restore them" in sfd_import(absent, "x", "--kind", "diffusion", refused=True)
    said = sfd_import(absent, "x", "--kind", "texture-vae", *statistics, refused=True)
    assert "are of kind diffusion, not of texture-vae" in said
    file = stored(tmp_path / "a.pt", weights("sfd_tiny"))
    given = [*statistics, "--semantic-channels", "5"]
    assert "--semantic-channels is 5, but" in sfd_import(file, "x", "--kind", "diffusion", *given, refused=True)


def test_nothing_is_overwritten_and_an_empty_folder_is_filled(
    tmp_path: Path, sfd_import: Callable[..., str], statistics: list[str]
) -> None:
    file = stored(tmp_path / "a.pt", weights("sfd_tiny"))
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    said = sfd_import(file, str(out), "--kind", "diffusion", *statistics, refused=True)
    assert "exists and is not an empty folder" in said and [path.name for path in out.iterdir()] == ["notes.txt"]
    (out / "notes.txt").unlink()
    sfd_import(file, str(out), "--kind", "diffusion", *statistics)
    assert (out / "model.safetensors").is_file()
    assert "exists" in sfd_import(file, file, "--kind", "diffusion", *statistics, refused=True)
