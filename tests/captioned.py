"""Stripes with captions beside them, and a project whose model is told words, run on them to the end."""

from pathlib import Path
from typing import Any

import pytest
from support import STAGES, Project, draw_images, made_once, run_stages, small_params
from tiny_clip import write_clip

NAMES = ("lying", "upright")


def captioned_params() -> dict[str, Any]:
    """Small parameters of a model that is told words, with a CLIP among its judges, swaps and a negative prompt."""
    params = small_params()
    params["data"] |= {"source": "folder", "root": "images", "captions": "auto"}
    params["text"] |= {"width": 16, "depth": 1, "num_heads": 2, "vocabulary": 300, "max_tokens": 8, "shard_size": 20}
    params["text"]["training"] = params["encoder"]["training"] | {"num_steps": 4, "batch_size": 8}
    params["diffusion"]["model"]["condition"] = "text"
    params["judges"].append({"kind": "clip", "source": "file", "name": "clip", "file": "clip", "training": None})
    params["evaluate"] |= {"swaps": ["a {red, blue} bar"], "swap_images": 3}
    params["sample"]["guidance"]["negative_prompt"] = "grey"
    params["register"]["gates"] = {
        "text_recall_5": {"limit": 0.0, "improve": True},
        "memorised_pairs": {"limit": 1.0},
        "swap_accuracy": {"limit": 0.0},
        "class_accuracy": {"limit": 0.0},
    }
    return params


def captioned_project(factory: pytest.TempPathFactory) -> Project:
    """40 images of each of two kinds with two captions each; some images share them. As :func:`support.made_once`."""
    return made_once(factory, "captioned project", _captioned_project)


def _captioned_project(folder: Path) -> Project:
    made = Project(folder, captioned_params())
    for seed, name in enumerate(NAMES, start=1):
        draw_images(folder / "images" / name, 40, seed, vertical=name == "upright")
        for file in (folder / "images" / name).glob("*.png"):
            file.with_suffix(".txt").write_text(f"a {name} stripe\n{name} bar number {file.stem[-1]}\n")
    write_clip(folder / "clip")
    run_stages(made, *STAGES)
    return made
