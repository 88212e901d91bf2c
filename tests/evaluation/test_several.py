"""Distances on several judges, and their mean in units of what real images reach."""

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from mixes import OPTIONS, Copies, Stripes, condition_of, draw
from torch import Tensor, nn

from sfd.data.images import ManifestImages
from sfd.data.manifest import TRAIN
from sfd.data.prepared import Prepared
from sfd.encoders.judges.judge import Judge
from sfd.errors import UserError
from sfd.evaluation.comparison import Comparison
from sfd.evaluation.enough import count_images, least_images
from sfd.evaluation.extraction import FeatureStore
from sfd.evaluation.fidelity import FeatureStatistics
from sfd.evaluation.originals import Originals
from sfd.evaluation.protocol import Evaluation
from sfd.evaluation.several import ratios
from sfd.evaluation.views import NUM_CLOSEST
from sfd.params import EvaluateParams

SPREADS = {"eye": torch.tensor([1.0, 2.0, 3.0]), "ear": torch.tensor([8.0, 6.0, 4.0])}
METRICS = {"fd_eye": 2.0, "fd_heldout": 0.5, "fd_ear": 6.0, "fd_ear_heldout": 2.0}


def test_the_mean_ratio_has_the_error_of_the_mean_and_not_of_one_judge() -> None:
    found = ratios(METRICS, SPREADS, ["eye", "ear"])
    assert (found["fdr_eye"], found["fdr_ear"], found["fdr"]) == (4.0, 3.0, 3.5)
    assert (found["se_fdr_eye"], found["se_fdr_ear"]) == (2.0, 1.0)
    # Resample by resample: (2 + 4) / 2, (4 + 3) / 2, (6 + 2) / 2.
    assert found["se_fdr"] == pytest.approx(statistics.stdev([3.0, 3.5, 4.0]))


def test_a_judge_that_does_not_count_has_a_ratio_of_its_own_alone_and_one_judge_makes_no_mean() -> None:
    found = ratios(METRICS, SPREADS, ["eye"])
    assert found["fdr_ear"] == 3.0 and "fdr" not in found and "se_fdr" not in found


def test_a_floor_of_zero_gives_no_ratio_and_no_mean() -> None:
    found = ratios(METRICS | {"fd_ear_heldout": 0.0}, SPREADS, ["eye", "ear"])
    assert set(found) == {"fdr_eye", "se_fdr_eye"}


class Colours(Judge):
    """Sees mean and spread of each colour."""

    def __init__(self, name: str = "colours") -> None:
        super().__init__()
        self.name, self.digest, self.classes, self.num_features = name, "1" * 64, None, 6
        self.scale = nn.Parameter(torch.tensor(0.1))

    def forward(self, images: Tensor) -> tuple[Tensor, None]:
        pixels = images.float().flatten(2) * self.scale
        return torch.cat([pixels.mean(dim=2), pixels.std(dim=2)], dim=1), None


JUDGES = (Stripes, Colours)


def stores(folder: Path, size: int = 16) -> list[FeatureStore]:
    return [FeatureStore(folder / kind().name, kind(), size, 0, 1) for kind in JUDGES]


def evaluation(data: Prepared, samples: Path, kept: Any = None, **options: Any) -> Evaluation:
    params = EvaluateParams.model_validate(OPTIONS | options)
    vae: Any = Copies()
    return Evaluation.open(params, data, vae, samples, 0, stores(samples / "features"), kept)


def keep(data: Prepared, folder: Path, number: int, **options: Any) -> list[FeatureStore]:
    """What stage `reference` leaves for so many balanced samples."""
    params, vae = EvaluateParams.model_validate(OPTIONS | options), Copies()
    asked = condition_of(data).columns(condition_of(data).plan(number, "balanced"))["class_index"]
    filled: Any = stores(folder, size=7)
    Originals.of(params, vae, Comparison(data, number, asked, 0)).fill(filled, [None, None])  # type: ignore[arg-type]
    for store in filled:
        store.finish()
    return [FeatureStore.opened(store.root, store.judge) for store in filled]


def measure(opened: Evaluation) -> dict[str, float]:
    opened.extract()
    return opened.measure(opened.samples)[0]


def test_a_further_judge_gives_its_distance_floors_and_ratio_and_changes_no_metric_of_the_first(
    data: Prepared,
    tmp_path: Path,
) -> None:
    samples = draw(data, tmp_path / "s", condition_of(data), 80, "natural")
    both, vae = measure(evaluation(data, samples)), Copies()
    store = FeatureStore(tmp_path / "alone", Stripes(), 16, 0, 1)
    alone = measure(Evaluation.open(EvaluateParams.model_validate(OPTIONS), data, vae, samples, 0, [store]))  # type: ignore[arg-type]
    assert {key: both[key] for key in alone} == alone
    assert set(both) - set(alone) == {
        *("fd_colours", "fd_colours_heldout", "fd_colours_reconstruction", "se_fd_colours", "fdr_colours"),
        *("se_fdr_colours", "fdr", "se_fdr", "too_few_fdr", "too_few_fdr_colours"),
        *(f"too_few_fd_colours{floor}" for floor in ("", "_heldout", "_reconstruction")),
    }
    assert both["fdr_stripes"] == both["fd_stripes"] / both["fd_heldout"]
    assert both["fdr"] == pytest.approx((both["fdr_stripes"] + both["fdr_colours"]) / 2)
    pixels = torch.stack([each[0] for each in _pixels(data, samples)])
    seen = Colours()(pixels)[0].detach()
    real = data.images("heldout").__getitems__(list(range(80))).images
    expected = FeatureStatistics.of(seen).distance(FeatureStatistics.of(Colours()(real)[0].detach()))
    assert both["fd_colours"] == pytest.approx(expected, rel=1e-4)


def _pixels(data: Prepared, samples: Path) -> list[Tensor]:
    from sfd.generation.samples import read_images, read_table

    files = read_table(samples)["file"].tolist()
    assert len(files) == 80 and data.num_classes == 2
    return list(read_images(samples, files).split(1))


def test_the_record_names_the_judges_of_the_mean_and_is_the_same_for_the_first_as_without_others(
    data: Prepared,
    tmp_path: Path,
) -> None:
    samples = draw(data, tmp_path / "s", condition_of(data), 80, "natural")
    measure(evaluation(data, samples))
    record = json.loads((samples / "measurement.json").read_text())
    assert record["fdr"] == "stripes, colours" and record["judge_digest.colours"] == "1" * 64
    assert (record["judge"], record["judge_digest"]) == ("stripes", "0" * 64)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of images that are decoded."""
    seen: list[str] = []
    crop = ManifestImages._crop

    def counted(self: ManifestImages, index: int) -> Any:
        seen.append(self.paths[index])
        return crop(self, index)

    monkeypatch.setattr(ManifestImages, "_crop", counted)
    return seen


@pytest.mark.parametrize("memorisation", [True, False])
def test_a_second_evaluation_with_other_samples_decodes_no_training_image_but_those_of_the_picture(
    data: Prepared,
    tmp_path: Path,
    decoded: list[str],
    memorisation: bool,
) -> None:
    kept = keep(data, tmp_path / "kept", 40, memorisation=memorisation)
    train, once = set(data.images(TRAIN).paths), list(decoded)
    assert len(train & set(once)) == (len(train) if memorisation else 40)
    for name in ("first", "second"):
        samples = draw(data, tmp_path / name, condition_of(data), 40, "balanced")
        decoded.clear()
        found = measure(evaluation(data, samples, kept, memorisation=memorisation))
        assert len(decoded) <= (NUM_CLOSEST if memorisation else 0)
        assert ("memorised_fraction" in found) == (samples / "nearest.png").is_file() == memorisation
    decoded.clear()
    own = measure(
        evaluation(data, draw(data, tmp_path / "own", condition_of(data), 40, "balanced"), memorisation=memorisation)
    )
    assert train & set(decoded), "without what is kept, it extracts everything itself"
    assert own == pytest.approx(found, rel=1e-4, abs=1e-6)


def test_what_is_kept_for_other_samples_is_completed_and_gives_the_same_numbers(
    data: Prepared,
    tmp_path: Path,
) -> None:
    kept = keep(data, tmp_path / "kept", 20, memorisation=False)
    samples = draw(data, tmp_path / "s", condition_of(data), 40, "balanced")
    with_kept = measure(evaluation(data, samples, kept, memorisation=False))
    again = draw(data, tmp_path / "again", condition_of(data), 40, "balanced")
    assert with_kept == pytest.approx(measure(evaluation(data, again, memorisation=False)), rel=1e-4, abs=1e-6)
    assert with_kept["num_images"] == 40


def test_what_is_the_same_as_before_is_taken_over_and_the_rest_is_extracted(
    data: Prepared, tmp_path: Path, decoded: list[str]
) -> None:
    params, vae, asked = EvaluateParams.model_validate(OPTIONS), Copies(), [0, 1] * 20
    originals = Originals.of(params, vae, Comparison(data, 40, asked, 0))  # type: ignore[arg-type]

    def extract(name: str, before: Path | None, vae: str, size: int = 7) -> list[FeatureStore]:
        made = stores(tmp_path / name, size)
        for store in made:
            store.before = None if before is None else FeatureStore.opened(before / store.judge.name, store.judge)
        decoded.clear()
        originals.fill(made, [None, None], "images", vae)
        for store in made:
            store.finish()
        return made

    first = extract("first", None, "a VAE")
    assert len(decoded) == 80 + 40 + 240 + 40  # held out, reconstructions, all and some training images
    for name, vae_name, size, expected in (
        ("same", "a VAE", 7, 0),
        ("vae", "another", 7, 40),
        ("size", "a VAE", 8, 80 + 40 + 240 + 40),
    ):
        found = extract(name, tmp_path / "first", vae_name, size)
        assert len(decoded) == expected, name
        for mine, theirs in zip(found, first, strict=True):
            for key in theirs.rows:
                torch.testing.assert_close(mine.read(key).features, theirs.read(key).features)


def test_what_another_judge_saw_is_not_taken(data: Prepared, tmp_path: Path) -> None:
    kept = keep(data, tmp_path / "kept", 20)
    with pytest.raises(UserError, match="holds no features of judge `stripes`; run `dvc repro reference`"):
        FeatureStore.opened(kept[1].root, kept[0].judge)
    with pytest.raises(UserError, match="holds no features of judge `stripes`; run `dvc repro reference`"):
        FeatureStore.opened(tmp_path / "nowhere", kept[0].judge)


def test_the_mean_needs_more_images_than_the_features_of_any_of_its_judges() -> None:
    class Few:
        name, num_features, num_spatial_features = "few", 16, 0

    class Many:
        name, num_features, num_spatial_features = "many", 1280, 0

    few, many, params = Few(), Many(), EvaluateParams()
    values = dict.fromkeys(["fd_few", "fd_heldout", "fdr_few", "fd_many", "fd_many_heldout", "fdr_many", "fdr"], 1.0)
    found = count_images(values | {"num_images": 500.0}, {}, params, few, [many])  # type: ignore[arg-type, list-item]
    assert found == dict.fromkeys(
        ("too_few_fd_many", "too_few_fd_many_heldout", "too_few_fdr_many", "too_few_fdr"), 1281.0
    )
    assert least_images("cmmd", params, few) == least_images("kid", params, few) == 200  # type: ignore[arg-type]
    assert least_images("coverage_heldout", params, few) == 200  # type: ignore[arg-type]


def test_density_coverage_and_the_kernel_distance_of_a_named_judge_are_there_by_option(
    data: Prepared,
    tmp_path: Path,
) -> None:
    samples = draw(data, tmp_path / "s", condition_of(data), 80, "natural")
    plain = measure(evaluation(data, samples))
    more = measure(evaluation(data, samples, density=True, cmmd="colours"))
    keys = {"density", "coverage", "cmmd"}
    wanted = {f"{key}{floor}" for key in keys for floor in ("", "_heldout", "_reconstruction")}
    assert {key for key in set(more) - set(plain) if not key.startswith("too_few_")} == wanted
    assert more["coverage_heldout"] > 0.5 and more["cmmd_heldout"] >= 0
    assert json.loads((samples / "measurement.json").read_text())["cmmd"] == "colours"


def test_each_class_has_a_row_and_a_distance_where_its_images_are_more_than_the_features(
    data: Prepared,
    tmp_path: Path,
) -> None:
    import pandas as pd

    samples = draw(data, tmp_path / "s", condition_of(data), 80, "natural")
    metrics = measure(evaluation(data, samples))
    table = pd.read_csv(samples / "classes.csv").set_index("class")
    assert table.index.tolist() == ["lying", "upright"] and table["num_samples"].tolist() == [60, 20]
    assert table["accuracy"].mean() == pytest.approx(metrics["class_accuracy"])
    assert table["accuracy_heldout"].mean() == pytest.approx(metrics["class_accuracy_heldout"])
    assert (table["fd"] > 0).all() and table["too_few"].tolist() == ["kid fd"] * 2
    few = draw(data, tmp_path / "few", condition_of(data), 24, "natural")
    measure(evaluation(data, few))
    table = pd.read_csv(few / "classes.csv").set_index("class")
    assert table["num_samples"].tolist() == [18, 6] and table["fd"].isna().tolist() == [False, True]
    assert table["kid"].notna().all() and table.loc["upright", "too_few"] == "kid"
