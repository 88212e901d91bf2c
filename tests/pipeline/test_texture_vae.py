"""Stage `texture_vae`: every source writes a model, its quality beside the linear yardstick, and a picture; and the graph works with it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support import Project, draw_images, run_stages, small_params

from sfd.encoders.texture_vae import load_texture_vae
from sfd.encoders.tokenizers.pca import PcaTokenizer

PCA = {"source": "pca", "block_size": 4, "latent_channels": 3, "training": None}


def params_with(texture_vae: dict[str, Any]) -> dict[str, Any]:
    params = small_params()
    params["data"] |= {"source": "folder", "root": "images", "mirror": True}
    params["texture_vae"] |= texture_vae
    return params


def make_project(folder: Path, params: dict[str, Any]) -> Project:
    folder.mkdir()
    project = Project(folder, params)
    draw_images(folder / "images" / "quer", 20, 1, vertical=False)
    draw_images(folder / "images" / "hoch", 20, 2, vertical=True)
    return project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """With prepared images."""
    made = make_project(tmp_path_factory.mktemp("texture vae") / "project", params_with({}))
    run_stages(made, "scan", "prepare")
    return made


def with_texture_vae(project: Project, texture_vae: dict[str, Any]) -> tuple[dict[str, float], str]:
    """The quality that the stage writes, and what it prints."""
    project.write_params(params_with(texture_vae))
    output = run_stages(project, "texture_vae")
    return json.loads((project.result("texture_vae") / "quality.json").read_text()), output


def test_a_trained_vae_is_compared_with_the_linear_yardstick(project: Project) -> None:
    quality, output = with_texture_vae(project, {})
    assert quality["images"] == 10 and quality["linear_psnr"] > quality["psnr"] + 3.0, "4 steps teach it nothing"
    assert quality["linear_ssim"] > quality["ssim"]
    said = f"10 held-out images: PSNR {quality['psnr']:.1f} dB (linear: {quality['linear_psnr']:.1f})"
    assert said in output
    picture = Image.open(project.result("texture_vae") / "reconstructions.png")
    assert picture.width > 3 * 72 and picture.height > 8 * 72


def test_principal_components_are_their_own_yardstick(project: Project) -> None:
    quality, _ = with_texture_vae(project, PCA)
    assert (quality["psnr"], quality["ssim"]) == (quality["linear_psnr"], quality["linear_ssim"])
    assert quality["psnr"] > 15.0
    model = load_texture_vae(project.result("texture_vae") / "model")
    assert (model.factor, model.latent_channels) == (4, 3)
    more, _ = with_texture_vae(project, PCA | {"latent_channels": 12})
    assert more["psnr"] > quality["psnr"]


@pytest.mark.long
def test_what_is_trained_on_top_sees_the_encoder_and_a_discriminator_where_they_have_a_weight(project: Project) -> None:
    training = small_params()["texture_vae"]["training"]
    plain, _ = with_texture_vae(project, PCA)
    changes = PCA | {"training": training, "residual_width": 8, "adversarial_weight": 0.1}
    quality, _ = with_texture_vae(project, changes)
    assert quality["linear_psnr"] == plain["linear_psnr"] and quality["psnr"] != plain["psnr"]
    project.write_params(params_with(changes | {"perceptual_weight": 0.5}))
    status, output = project.run("python", "stages/texture_vae.py")
    assert status == 2 and "the result of stage `encoder` is missing" in output and "dvc repro encoder" in output
    run_stages(project, "encoder", "texture_vae")
    curves = (project.result("texture_vae") / "curves.csv").read_text().splitlines()
    assert curves[0] == "step,mse,l1,perceptual,adversarial,discriminator,total"
    model = load_texture_vae(project.result("texture_vae") / "model")
    assert isinstance(model, PcaTokenizer) and model.residual is not None and model.residual.width == 8


def test_a_vae_aligned_with_the_encoder_needs_it_and_shows_how_near_it_comes(project: Project) -> None:
    project.write_params(params_with({"alignment": {"weight": 0.1}}))
    shutil.rmtree(project.result("encoder"), ignore_errors=True)
    status, output = project.run("python", "stages/texture_vae.py")
    assert status == 2 and "the result of stage `encoder` is missing" in output
    run_stages(project, "encoder", "texture_vae")
    curves = (project.result("texture_vae") / "curves.csv").read_text().splitlines()
    assert curves[0] == "step,mse,l1,kl,alignment,alignment_cosine,alignment_distance,total"
    model = load_texture_vae(project.result("texture_vae") / "model")
    assert model.latent_channels == 4 and not [name for name in model.state_dict() if "alignment" in name]


@pytest.mark.long
def test_the_graph_goes_from_principal_components_to_a_registered_model(tmp_path: Path) -> None:
    params = params_with(PCA)
    params["diffusion"]["loss"]["channel_weights"] = "energy"
    project = make_project(tmp_path / "project", params)
    before = ("scan", "prepare", "encoder", "texture_vae", "judge", "features", "semantic", "latents")
    run_stages(project, *before, "schedule", "diffusion", "sample", "reference", "evaluate", "register")
    assert len(list((project.result("sample") / "images").glob("*.png"))) == 12
    drawn = "import mlflow; m = mlflow.pyfunc.load_model('models:/sfd-digits/1'); print(len(m.predict({'label': ['quer'], 'seed': [1]})))"
    status, output = project.run(
        "python", "-c", drawn, MLFLOW_TRACKING_URI=f"sqlite:///{project.folder}/mlruns/mlflow.db"
    )
    assert status == 0 and output.splitlines()[-1] == "1", output
