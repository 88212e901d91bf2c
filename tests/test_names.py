"""Names of metrics, and which way they get better."""

import pytest

from sfd.names import (
    HELDOUT,
    distance_names,
    has_error,
    is_higher_better,
    main_distance,
    metric_names,
    reference_of,
    with_floors,
    word_metrics,
)


@pytest.mark.parametrize("judge", ["digits_judge", "inception", "my_heldout", "fd"])
def test_every_metric_of_every_judge_has_a_direction(judge: str) -> None:
    names = metric_names(judge, knows_classes=True)
    assert len(names) == len(set(names))
    higher = {name for name in names if is_higher_better(name)}
    assert {"precision", "recall_heldout", "class_accuracy", "num_images"} <= higher
    assert not {name for name in names if name.startswith(("fd_", "fid", "kid", "memorised"))} & higher


def test_the_metrics_of_further_judges_have_names_of_their_own_and_a_direction() -> None:
    names = metric_names("eye", knows_classes=True) + distance_names("eye", ["ear", "inception"], has_mean=True)
    names += with_floors("density", "coverage", "cmmd")
    assert len(names) == len(set(names))
    assert {"fd_ear", "fd_ear_heldout", "fid", "fid_reconstruction", "fdr_eye", "fdr_inception", "fdr"} <= set(names)
    assert not {name for name in names if name.startswith(("fd", "fid", "cmmd"))} & set(filter(is_higher_better, names))
    assert has_error("fd_ear") and has_error("fdr") and has_error("fdr_ear") and is_higher_better("coverage_heldout")
    assert not any(map(has_error, ("fd_ear_heldout", "fid_reconstruction", "density", "cmmd", "coverage_heldout")))
    assert main_distance(dict.fromkeys(sorted(names), 0.0), "eye") == "fd_eye"


def test_a_published_reference_is_that_of_the_first_judge_alone() -> None:
    file = "VIRTUAL.npz"
    for metric in ("fid", "kid", "coverage", "fd_heldout", "density_reconstruction", "fdr_inception", "fdr"):
        assert reference_of(metric, file) == file, metric
    for metric in ("fd_clip", "fd_clip_heldout", "fdr_clip", "cmmd", "cmmd_heldout"):
        assert reference_of(metric, file) == HELDOUT, metric
    assert reference_of("class_accuracy", file) is None


def test_a_name_that_is_no_metric_has_no_direction() -> None:
    with pytest.raises(KeyError):
        is_higher_better("colour")


def test_the_distance_of_samples_has_an_error_and_is_the_main_one_but_its_floors_are_not() -> None:
    names = metric_names("digits_judge", knows_classes=True)
    assert has_error("fd_digits_judge") and has_error("fid") and not has_error("fd_heldout") and not has_error("kid")
    assert main_distance(dict.fromkeys([*names[::-1], "se_fd_digits_judge"], 0.0)) == "fd_digits_judge"
    assert main_distance(dict.fromkeys(metric_names("inception", knows_classes=False), 0.0)) == "fid"


def test_metrics_of_words_have_a_direction_an_error_and_what_stands_beside_them_has_none() -> None:
    names = word_metrics(has_memorisation=True, has_clip=True, has_swaps=True)
    assert len(names) == len(set(names)) == 4 * 4 + 3 + 2 + 3
    higher = {name for name in names if is_higher_better(name)}
    assert {"text_recall_5", "text_recall_10_chance", "clip_score", "swap_accuracy_heldout"} <= higher
    assert not {"text_rank", "text_rank_mirrored", "memorised_pairs", "memorised_pairs_chance"} & higher
    assert {name for name in names if has_error(name)} == {
        *("text_recall_1", "text_recall_5", "text_recall_10", "text_rank"),
        *("clip_score", "memorised_pairs", "swap_accuracy"),
    }
    assert reference_of("text_recall_5", "VIRTUAL.npz") == reference_of("text_rank_chance", "VIRTUAL.npz") == HELDOUT
    assert reference_of("swap_accuracy", "VIRTUAL.npz") is reference_of("clip_score_heldout", "VIRTUAL.npz") is None
    assert main_distance(dict.fromkeys([*names, "fd_eye"], 0.0)) == "fd_eye"


def test_metrics_of_words_are_known_only_where_they_are_measured() -> None:
    names = word_metrics(has_memorisation=False)
    assert "text_recall_1_mirrored" in names
    assert not {name for name in names if name.startswith(("clip", "memorised", "swap"))}
