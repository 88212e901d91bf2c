"""``sfd preset check``: what is missing for a preset is listed with the need and what was found, before anything starts."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from support import draw_images
from typer.testing import CliRunner

from sfd import cli
from sfd.bench.networks import latent_shape
from sfd.encoders.text.small import TextTransformer
from sfd.params import Params, with_values
from sfd.planning import needs as module
from sfd.planning.machine import Machine
from sfd.planning.needs import Need, image_numbers, needs, result_bytes, text_encoder_gb
from sfd.preset import load_preset, names, render
from sfd.workspace import Workspace

LAPTOP = Machine(cores=2, memory_gb=16, disk_gb=50)
SERVER = Machine(64, 1000, 5000, gpu="H200", gpu_memory_gb=141, num_gpus=8, has_hub=True)
XL = "imagenet256-sfd-xl"
TEXT = {
    "text.width": 4096,
    "text.training": {"num_steps": 10, "batch_size": 8, "learning_rate": 1e-3, "ema_decay": 0.9},
}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No address answers and no hub has a copy here, unless a test says so."""
    monkeypatch.setattr(module, "url_answers", lambda _url: False)
    monkeypatch.setattr(module, "hub_copy", lambda _repository: None)


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "url_answers", lambda _url: True)


def found(params: Params, folder: Path, machine: Machine) -> dict[str, Need]:
    return {need.subject: need for need in needs(params, Workspace(folder), machine)}


def missing(params: Params, folder: Path, machine: Machine) -> set[str]:
    return {subject for subject, need in found(params, folder, machine).items() if need.remedy}


def ready(folder: Path) -> Path:
    """What the XL preset wants to find."""
    for split in ("train", "val"):
        (folder / "images" / split / "n01440764").mkdir(parents=True)
    (folder / "weights/texture_vae_f16d32").mkdir(parents=True)
    (folder / "weights/VIRTUAL_imagenet256_labeled.npz").touch()
    return folder


def test_a_bare_laptop_lacks_all_of_the_papers_run_with_needs_and_finds(tmp_path: Path) -> None:
    lines = found(load_preset(XL), tmp_path, LAPTOP)
    assert {subject for subject, need in lines.items() if need.remedy} == {
        "images",
        "texture_vae",
        "evaluate",
        "disk",
        "GPU",
        "encoder",
        "judges",
    }
    assert "train/ and val/" in lines["images"].needed and lines["texture_vae"].needed == "weights/texture_vae_f16d32"
    assert lines["evaluate"].needed.endswith("VIRTUAL_imagenet256_labeled.npz")
    assert "features" in lines["disk"].needed and "latents 1,071" in lines["disk"].needed
    assert lines["disk"].found == "50 GB free" and lines["GPU"].found.startswith("none; ")
    assert lines["encoder"].needed == "timm/vit_base_patch14_reg4_dinov2.lvd142m of the hub"
    assert "weights-inception" in lines["judges"].needed and lines["judges"].found == "does not answer"


@pytest.mark.usefixtures("connected")
def test_a_server_with_all_files_lacks_nothing(tmp_path: Path) -> None:
    lines = found(load_preset(XL), ready(tmp_path), SERVER)
    assert not [need for need in lines.values() if need.remedy]
    assert lines["images"].found == "1 class folders of training, 1 of held-out images"
    assert lines["GPU"].needed.startswith("26 GB each") and "with 32 images" in lines["GPU"].needed
    (tmp_path / "images/val/n01440764").rmdir()
    assert missing(load_preset(XL), tmp_path, SERVER) == {"images"}


@pytest.mark.usefixtures("connected")
@pytest.mark.parametrize(
    ("gpus", "memory", "remedy"),
    [(8, 141, ""), (8, 24, "accumulation_steps to 2"), (1, 80, "accumulation_steps to 2"), (8, 12, "fsdp")],
)
def test_a_step_that_does_not_fit_a_gpu_is_told_how_it_would(
    tmp_path: Path, gpus: int, memory: float, remedy: str
) -> None:
    machine = replace(SERVER, num_gpus=gpus, gpu_memory_gb=memory)
    said = found(load_preset(XL), ready(tmp_path), machine)["GPU"].remedy
    assert said == remedy if not remedy else remedy in said


def test_captions_that_are_encoded_in_training_take_memory_in_place_of_disk(tmp_path: Path) -> None:
    told = with_values(load_preset("photos64"), {"data.captions": "auto", "diffusion.model.condition": "text", **TEXT})
    shape, sizes, memory = latent_shape(told), [], []
    for is_stored in (True, False):
        params = with_values(told, {"text.store_tokens": is_stored})
        sizes.append(result_bytes(params, shape, 1000, 1).get("text", 0))
        memory.append(text_encoder_gb(params))
    assert sizes == [2 * 1000 * 32 * 4096, 0]
    encoder = sum(p.numel() for p in TextTransformer(2000, 32, 4096, 3, 4).parameters())
    assert memory == [0.0, pytest.approx(4e-9 * encoder)]
    others = with_values(told, {"text.store_tokens": False, "text.source": "pretrained", "text.name": "t5"})
    assert text_encoder_gb(others) == 0.0
    images = with_values(others, {"data.root": str(tmp_path)})
    assert found(images, tmp_path, SERVER)["GPU"].needed.endswith("images at a time, and the text encoder")


def test_a_text_encoder_of_the_hub_is_needed_where_the_model_is_told_words(tmp_path: Path) -> None:
    told = load_preset("sefi-1b")
    assert found(told, tmp_path, SERVER)["text"].needed == "Qwen/Qwen3-VL-2B-Instruct of the hub"
    assert "text" in missing(told, tmp_path, LAPTOP) and "text" not in missing(load_preset(XL), tmp_path, LAPTOP)


def test_a_copy_in_the_hubs_cache_does_without_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "encoder" in missing(load_preset(XL), tmp_path, LAPTOP)
    monkeypatch.setattr(module, "hub_copy", lambda repository: tmp_path / repository)
    assert "encoder" not in missing(load_preset(XL), tmp_path, LAPTOP)


def test_the_digits_need_nothing_but_a_laptop(tmp_path: Path) -> None:
    assert missing(load_preset("digits"), tmp_path, LAPTOP) == set()
    assert missing(load_preset("digits"), tmp_path, replace(LAPTOP, memory_gb=0.5)) == {"memory"}
    assert missing(load_preset("digits"), tmp_path, replace(LAPTOP, disk_gb=0.0)) == {"disk"}


def test_images_of_ones_own_are_counted_and_their_number_decides_the_disk(tmp_path: Path) -> None:
    photos = load_preset("photos64")
    assert found(photos, tmp_path, LAPTOP)["disk"].needed == "depends on the number of images"
    draw_images(tmp_path / "images" / "a", 12, 1, vertical=False)
    lines = found(photos, tmp_path, LAPTOP)
    assert lines["images"].found == "12 files" and not lines["images"].remedy and "GB" in lines["disk"].needed
    nowhere = with_values(photos, {"data.root": "elsewhere"})
    assert missing(nowhere, tmp_path, LAPTOP) == {"images"}


def test_images_are_divided_as_the_folders_or_the_parameters_say_and_archives_are_not_counted(tmp_path: Path) -> None:
    photos = load_preset("photos64")
    draw_images(tmp_path / "images" / "train" / "a", 5, 1, vertical=False)
    draw_images(tmp_path / "images" / "val" / "a", 2, 2, vertical=False)
    splits = with_values(photos, {"data.layout": "splits"})
    assert image_numbers(splits, Workspace(tmp_path)) == (5, 2)
    by_share = with_values(photos, {"data.layout": "classes", "data.holdout_fraction": 0.25})
    assert image_numbers(by_share, Workspace(tmp_path)) == (5, 2)
    (tmp_path / "all.tar").touch()
    archive = with_values(photos, {"data.source": "tar", "data.root": "all.tar", "data.layout": None})
    assert image_numbers(archive, Workspace(tmp_path)) is None
    assert found(archive, tmp_path, LAPTOP)["disk"].needed == "depends on the number of images"


@pytest.mark.parametrize("name", names())
def test_every_preset_can_be_checked(name: str, tmp_path: Path) -> None:
    subjects = found(load_preset(name), tmp_path, LAPTOP)
    assert {"disk", "memory", "GPU"} <= subjects.keys() and all(need.found for need in subjects.values())


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli.app, ["--project", str(folder), "preset", "check", *arguments])
    return done.exit_code, done.output


def test_the_command_ends_with_status_1_if_anything_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "read_machine", lambda _folder: LAPTOP)
    status, said = run(tmp_path, XL)
    assert status == 1 and "missing: images, texture_vae, evaluate, disk, GPU, encoder, judges" in said
    status, said = run(tmp_path, "digits")
    assert status == 0 and said.endswith("nothing is missing\n")
    assert list(tmp_path.iterdir()) == []


def test_in_a_project_the_images_are_those_that_the_preset_would_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "read_machine", lambda _folder: SERVER)
    tree = yaml.safe_load(render("digits"))
    tree["data"] |= {"source": "folder", "root": "mine", "layout": "classes"}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    draw_images(tmp_path / "mine" / "a", 3, 1, vertical=False)
    _, said = run(tmp_path, XL)
    assert "3 files" in said and "missing: texture_vae, evaluate, judges" in said
