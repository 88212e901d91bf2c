"""An evaluation of samples that were drawn for prompts, with a judge that sees stripes; without a text encoder."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from mixes import OPTIONS, Copies, Stripes
from PIL import Image

from sfd.data.manifest import HELDOUT, TRAIN
from sfd.data.prepared import Prepared
from sfd.evaluation.extraction import FeatureStore
from sfd.evaluation.protocol import Evaluation
from sfd.evaluation.words import Prompts, captions_of, clip_scores
from sfd.generation.samples import read_table
from sfd.params import EvaluateParams


def with_captions(data: Prepared, captions: dict[str, list[list[str]]]) -> Prepared:
    """The images with captions, by split."""
    rows = data.manifest.copy()
    rows["captions"] = [[] for _ in range(len(rows))]
    for split, texts in captions.items():
        for row, text in zip(rows.index[rows["split"] == split], texts, strict=True):
            rows.at[row, "captions"] = text
    return replace(data, manifest=rows)


@pytest.fixture(scope="module")
def captioned(data: Prepared) -> Prepared:
    """Two held-out images, and two to train on, share each caption; the 80 held-out images have 40 captions."""
    return with_captions(
        data,
        {
            HELDOUT: [[f"stripe {place // 2}"] for place in range(80)],
            TRAIN: [[f"stripe {place // 2}", "a picture"] if place < 80 else [] for place in range(240)],
        },
    )


def write(folder: Path, data: Prepared, split: str, rows: list[int], prompts: list[str]) -> Path:
    """Samples that are these real images, as if they were drawn for the prompts."""
    (folder / "images").mkdir(parents=True)
    files = [f"{place:06d}.png" for place in range(len(rows))]
    for file, picture in zip(files, data.images(split).__getitems__(rows).images, strict=True):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / "images" / file)
    pd.DataFrame({"file": files, "prompt": prompts, "seed": range(len(rows))}).to_csv(
        folder / "samples.csv", index=False
    )
    return folder


def evaluate(data: Prepared, samples: Path, judges: Any = (Stripes,), **options: Any) -> dict[str, float]:
    params = EvaluateParams.model_validate(OPTIONS | options)
    stores = [FeatureStore(samples / "features" / kind().name, kind(), 16, 0, 1) for kind in judges]
    vae: Any = Copies()
    opened = Evaluation.open(params, data, vae, samples, 0, stores)
    opened.extract()
    metrics, files = opened.measure(samples)
    assert all(file.is_file() for file in files)
    return metrics


def own_prompts(data: Prepared, rows: list[int], split: str = HELDOUT) -> list[str]:
    return [captions_of(data, split)[row][0] for row in rows]


def test_samples_that_show_their_prompts_reach_one_and_shuffled_ones_chance(
    captioned: Prepared, tmp_path: Path
) -> None:
    rows = list(range(0, 80, 2))
    good = evaluate(captioned, write(tmp_path / "good", captioned, HELDOUT, rows, own_prompts(captioned, rows)))
    assert good["text_recall_1"] == 1.0 and good["text_rank"] == 1.0 and good["se_text_recall_1"] == 0.0
    assert good["text_recall_5_chance"] < 0.5 and good["text_rank_chance"] > 5
    turned = own_prompts(captioned, [(row + 40) % 80 for row in rows])
    poor = evaluate(captioned, write(tmp_path / "poor", captioned, HELDOUT, rows, turned))
    assert poor["text_recall_1"] == 0.0 and poor["text_rank"] > 5
    assert poor["text_recall_5"] == pytest.approx(good["text_recall_5_chance"], abs=3 * poor["se_text_recall_5"])
    # Real images do not depend on the samples, but on which prompts are asked.
    assert poor["text_recall_5_heldout"] == pytest.approx(good["text_recall_5_heldout"], abs=0.3)


def test_the_report_and_the_table_say_which_images_were_scored(captioned: Prepared, tmp_path: Path) -> None:
    rows = list(range(40))
    prompts = [*own_prompts(captioned, rows[:30]), *["never seen"] * 10]
    metrics = evaluate(captioned, write(tmp_path / "s", captioned, HELDOUT, rows, prompts))
    report = json.loads((tmp_path / "s/text.json").read_text())
    assert report["images"] == {
        "samples": 40,
        "scored": 30,
        "prompts": 15,
        "candidates": 80,
        "with_a_training_image_of_their_prompt": 30,
    }
    assert metrics["n_text_recall_5"] == 30 and metrics["too_few_text_recall_5"] == 100
    found = report["text_recall_5"]
    assert found["value"] == metrics["text_recall_5"] and found["error"] == metrics["se_text_recall_5"]
    assert found["interval"][0] <= found["value"] <= found["interval"][1] and found["above_chance"][0] > 0.0
    assert {found[each] for each in ("chance", "heldout", "mirrored")} == {
        metrics[f"text_recall_5_{each}"] for each in ("chance", "heldout", "mirrored")
    }
    table = pd.read_csv(tmp_path / "s/text.csv")
    assert list(table) == ["file", "prompt", "rank", "nearest_file"] and len(table) == 30
    assert (table["rank"] == 1).mean() == metrics["text_recall_1"]
    paths = captioned.images(HELDOUT).paths
    assert table["nearest_file"].tolist() == [paths[row] for row in rows[:30]]
    record = json.loads((tmp_path / "s/measurement.json").read_text())
    assert len(record["prompts"]) == 64 and "swaps" not in record and "clip_score" not in record


def test_the_ceiling_is_that_of_training_images_with_the_same_caption(captioned: Prepared, tmp_path: Path) -> None:
    # The training image of each caption is put among the held-out ones' prompts at random: they have nothing in common but the text.
    rows = list(range(80))
    metrics = evaluate(captioned, write(tmp_path / "s", captioned, HELDOUT, rows, own_prompts(captioned, rows)))
    assert metrics["text_recall_1_heldout"] < 0.5 < metrics["text_recall_1"]
    # Stripes looks at a flipped image as another one, but at least at its own class.
    assert metrics["text_recall_10_mirrored"] >= metrics["text_recall_1_mirrored"]


def test_the_class_of_a_prompt_is_that_of_the_images_that_carry_it(captioned: Prepared, tmp_path: Path) -> None:
    labels = captioned.images(HELDOUT).class_indices
    mixed = {place // 2 for place in range(80) if labels[place] != labels[place - place % 2]}
    rows = [row for row in range(80) if row // 2 not in mixed]
    metrics = evaluate(captioned, write(tmp_path / "s", captioned, HELDOUT, rows, own_prompts(captioned, rows)))
    logits = Stripes()(captioned.images(HELDOUT).__getitems__(rows).images)[1]
    right = logits.argmax(dim=1) == labels[rows]
    shares = [float(right[labels[rows] == label].float().mean()) for label in labels[rows].unique().tolist()]
    assert metrics["class_accuracy"] == pytest.approx(sum(shares) / len(shares))
    assert "se_class_accuracy" in metrics and not (tmp_path / "s/classes.csv").exists()


def test_copies_of_training_images_count_as_pairs_only_with_their_own_captions(
    captioned: Prepared, tmp_path: Path
) -> None:
    rows = list(range(60))
    own = evaluate(captioned, write(tmp_path / "own", captioned, TRAIN, rows, own_prompts(captioned, rows, TRAIN)))
    assert own["memorised_fraction"] == own["memorised_pairs"] == 1.0
    assert own["memorised_pairs_chance"] == pytest.approx(1 / 30) and own["too_few_memorised_pairs"] == 100
    turned = own_prompts(captioned, [(row + 30) % 60 for row in rows], TRAIN)
    other = evaluate(captioned, write(tmp_path / "other", captioned, TRAIN, rows, turned))
    assert other["memorised_fraction"] == 1.0 and other["memorised_pairs"] == 0.0
    without = evaluate(captioned, write(tmp_path / "not", captioned, TRAIN, rows, turned), memorisation=False)
    assert "memorised_pairs" not in without and "text_recall_5_heldout" in without


def test_images_without_captions_leave_the_other_metrics_as_they_are(data: Prepared, tmp_path: Path) -> None:
    rows = list(range(40))
    samples = write(tmp_path / "s", data, HELDOUT, rows, ["a stripe"] * 40)
    words = Prompts.of(read_table(samples), data, 0)
    assert words is not None and words.note is not None and words.note.startswith("40 of 40 samples have a prompt")
    metrics = evaluate(data, samples)
    assert {"fd_stripes", "precision", "memorised_fraction", "class_accuracy_heldout"} <= set(metrics)
    assert not any(key.startswith("text_") for key in metrics)
    assert not {"class_accuracy", "memorised_pairs"} & set(metrics)


def test_samples_of_classes_have_no_scores_of_words(data: Prepared) -> None:
    assert Prompts.of(pd.DataFrame({"file": ["a.png"], "class_index": [0]}), data, 0) is None


def test_the_clip_score_is_the_cosine_in_percent_and_never_negative() -> None:
    images = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
    texts = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    own, chance = clip_scores(images, texts, torch.tensor([0, 1, 0]))
    half = 100.0 / 2**0.5
    assert own.tolist() == pytest.approx([100.0, half, 0.0])
    # The others of the first and the third sample ask for text 1, those of the second for text 0.
    assert chance is not None and chance.tolist() == pytest.approx([half, 0.0, 0.0])
    assert clip_scores(images, texts[:1], torch.zeros(3, dtype=torch.int64))[1] is None
