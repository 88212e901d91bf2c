"""The manifest's schema, its digest and the split by content."""

import hashlib
from pathlib import Path

import pandas as pd
import pytest

from sfd.data.manifest import digest, read_manifest, split_by_content, validate_manifest, write_manifest
from sfd.errors import UserError


def content(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def images(**num_images_of: int) -> pd.DataFrame:
    rows = [
        {"path": f"{label}/{number}.png", "label": label, "class_index": index, "split": "train"}
        for index, (label, count) in enumerate(sorted(num_images_of.items()))
        for number in range(count)
    ]
    table = pd.DataFrame(rows).assign(width=8, height=8, size_bytes=100)
    return table.assign(sha256=table["path"].map(content))


def test_a_valid_manifest_comes_back_unchanged_from_disk(tmp_path: Path) -> None:
    rows = images(cat=3, dog=2)
    write_manifest(rows, tmp_path)
    pd.testing.assert_frame_equal(read_manifest(tmp_path), rows)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.parquet"]


def test_the_same_manifest_gives_the_same_bytes(tmp_path: Path) -> None:
    write_manifest(images(cat=3), tmp_path)
    before = (tmp_path / "manifest.parquet").read_bytes()
    write_manifest(images(cat=3), tmp_path)
    assert (tmp_path / "manifest.parquet").read_bytes() == before


@pytest.mark.parametrize(
    "column, value, rule",
    [
        ("path", "cat/0.png", "uniqueness"),
        ("path", "/cat/1.png", "relative to the image root"),
        ("path", "../cat/1.png", "relative to the image root"),
        ("label", "", "str_length"),
        ("label", "dog", "place among the sorted labels"),
        ("class_index", 1, "place among the sorted labels"),
        ("class_index", -1, "greater_than_or_equal_to"),
        ("split", "test", "isin"),
        ("width", 0, "greater_than_or_equal_to"),
        ("height", -3, "greater_than_or_equal_to"),
        ("size_bytes", 0, "greater_than_or_equal_to"),
        ("sha256", "abc", "str_matches"),
        ("sha256", content("x").upper(), "str_matches"),
        ("sha256", content("x") + "\n", "str_matches"),
        ("path", None, "not_nullable"),
    ],
)
def test_a_bad_value_is_named_with_its_row_and_rule(column: str, value: object, rule: str) -> None:
    rows = images(cat=3, dog=2)
    validate_manifest(rows)
    rows.loc[1, column] = value
    with pytest.raises(UserError, match=rule) as caught:
        validate_manifest(rows)
    assert "row 1" in str(caught.value) and "\n" not in str(caught.value)


def test_columns_and_their_types_are_strict() -> None:
    rows = images(cat=3)
    for wrong in (rows.drop(columns="sha256"), rows.assign(extra=1), rows.astype({"class_index": "float64"}), rows[:0]):
        with pytest.raises(UserError, match="breaks its schema"):
            validate_manifest(wrong)


def test_one_content_in_two_splits_is_refused_and_in_one_split_accepted() -> None:
    rows = images(cat=3)
    rows.loc[1, "sha256"] = rows.loc[0, "sha256"]
    validate_manifest(rows)
    rows.loc[1, "split"] = "heldout"
    with pytest.raises(UserError, match=r"row 0 breaks: the same content .*; row 1 breaks"):
        validate_manifest(rows)


def test_many_failures_are_shortened() -> None:
    with pytest.raises(UserError, match="and 35 more") as caught:
        validate_manifest(images(cat=40).assign(width=0))
    assert len(str(caught.value)) < 500


def test_a_missing_or_foreign_file_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="manifest.parquet does not exist; run stage `prepare`"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.parquet").write_text("no parquet")
    with pytest.raises(UserError, match="is not a Parquet file"):
        read_manifest(tmp_path)


def test_the_digest_follows_the_data_and_not_the_order() -> None:
    rows = images(cat=3, dog=2)
    assert digest(rows) == digest(rows.sample(frac=1.0, random_state=0)) and len(digest(rows)) == 64
    assert digest(rows) != digest(rows.assign(split="heldout"))
    assert digest(rows) != digest(rows[1:])


def test_every_class_is_split_by_the_same_share() -> None:
    rows = images(cat=40, dog=10, eel=2, fox=3)
    split = split_by_content(rows, 0.2, seed=0)
    assert (split == "heldout").groupby(rows["label"]).sum().to_dict() == {"cat": 8, "dog": 2, "eel": 1, "fox": 1}
    nearly_all = split_by_content(rows, 0.99, seed=0)
    assert (nearly_all == "train").groupby(rows["label"]).sum().to_dict() == {"cat": 1, "dog": 1, "eel": 1, "fox": 1}


def test_the_split_depends_on_content_and_seed_but_not_on_order_or_names() -> None:
    rows = images(cat=40, dog=40)
    split = split_by_content(rows, 0.2, seed=0)
    shuffled = rows.sample(frac=1.0, random_state=0)
    renamed = rows.assign(path=rows["path"].str.replace("/", "/new "))
    pd.testing.assert_series_equal(split_by_content(shuffled, 0.2, 0).sort_index(), split)
    pd.testing.assert_series_equal(split_by_content(renamed, 0.2, 0), split)
    assert (split_by_content(rows, 0.2, seed=1) != split).any()


def test_files_added_to_other_classes_move_nothing() -> None:
    rows = images(cat=40, dog=40)
    split = split_by_content(rows, 0.2, seed=0)
    more = images(cat=40, dog=43, ant=10)
    after = split_by_content(more, 0.2, seed=0)
    cats, cats_after = (part[table["label"] == "cat"].tolist() for table, part in ((rows, split), (more, after)))
    assert cats == cats_after


def test_a_file_added_to_the_same_class_moves_at_most_one_other() -> None:
    before = split_by_content(images(cat=20), 0.2, seed=0)
    moved = []
    for count in range(21, 60):
        after = split_by_content(images(cat=count), 0.2, seed=0)
        moved.append(int((after[: count - 1].to_numpy() != before.to_numpy()).sum()))
        before = after
    assert max(moved) == 1


def test_copies_within_a_class_stay_in_one_split() -> None:
    rows = images(cat=40)
    copies = rows.assign(path=rows["path"].str.replace("cat/", "cat/copy of "))
    split = split_by_content(pd.concat([rows, copies], ignore_index=True), 0.2, seed=0)
    assert split[:40].tolist() == split[40:].tolist() == split_by_content(rows, 0.2, seed=0).tolist()


def test_a_class_with_fewer_than_two_distinct_images_is_explained() -> None:
    with pytest.raises(UserError, match=r"class 'dog' has 1 distinct image, but every class needs at least two.*add"):
        split_by_content(images(cat=2, dog=1), 0.2, seed=0)
    copies = images(cat=2, dog=2)
    copies.loc[3, "sha256"] = copies.loc[2, "sha256"]
    with pytest.raises(UserError, match="class 'dog' has 1 distinct image"):
        split_by_content(copies, 0.2, seed=0)
