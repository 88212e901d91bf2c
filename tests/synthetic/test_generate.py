"""``sfd generate``: balanced, as asked for, with the same bytes however often it is interrupted, and never over anything else."""

import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from support import Project, finished_project, wait_until
from torch import Tensor
from typer.testing import CliRunner

from sfd import cli
from sfd.data.images import png_bytes
from sfd.data.prepare import prepare
from sfd.encoders.judges.judge import Judge
from sfd.errors import UserError
from sfd.generation.generated import read_table
from sfd.models.conditions import ClassCondition, NoCondition
from sfd.params import DataParams
from sfd.pipeline.work import lock
from sfd.registry.load import load_registered
from sfd.seeding import derive_seed
from sfd.synthetic import generate as generation
from sfd.synthetic.generate import ENOUGH_TRIES, ClassCounts, GenerateOptions, Upstream
from sfd.workspace import Workspace

HERE = Workspace(Path())

pytestmark = pytest.mark.long

SFD = ["sfd"]
CLASSES = ["hoch ü", "quer"]
PER_CLASS = 4


@pytest.fixture(scope="module", autouse=True)
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A copy of the finished project, in which this process works."""
    with finished_project(tmp_path_factory).copy_to(tmp_path_factory.mktemp("generate") / "project").entered() as made:
        yield made


@pytest.fixture(scope="module")
def out() -> Path:
    """A finished folder."""
    return generate("finished", per_class=PER_CLASS)


@pytest.fixture(scope="module")
def everything() -> pd.DataFrame:
    """The table of a folder in which nothing was left out."""
    return read_table(generate("everything", per_class=40))


@pytest.fixture(scope="module")
def limit(everything: pd.DataFrame) -> str:
    """A confidence that half of the images of one class have; the judge, hardly trained, favours the other one."""
    return str(everything.groupby("class")["confidence"].median().min())


def generate(name: str, *options: str, per_class: int = PER_CLASS) -> Path:
    """The command, in this process, which must succeed; returns the folder."""
    run = CliRunner().invoke(cli.app, ["generate", name, "--per-class", str(per_class), *options])
    if run.exception is not None:
        raise run.exception
    assert f"{2 * per_class} images, {per_class} in each of 2 classes, by sfd-digits version 1" in run.output
    return Path(name)


def contents(out: Path) -> dict[str, str]:
    """Digests of all files but the hidden ones."""
    files = (path for path in out.rglob("*") if path.is_file() and ".sfd" not in path.parts)
    return {path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_every_class_has_its_images_and_the_table_says_where_each_comes_from(out: Path, project: Project) -> None:
    table = read_table(out)
    assert table["class"].value_counts().to_dict() == dict.fromkeys(CLASSES, PER_CLASS)
    assert sorted([*table["file"], "samples.parquet"]) == sorted(contents(out))
    assert set(table["model"]) == {"sfd-digits"} and set(table["model_version"]) == {"1"}
    assert table["confidence"].between(0.0, 1.0).all() and (table["nearest_distance"] > 0.0).all()
    assert all((project.folder / "images" / path).is_file() for path in table["nearest_file"])
    digests = contents(out)
    assert table["sha256"].tolist() == [digests[file] for file in table["file"]]


def test_class_and_seed_of_a_row_give_its_image_again(out: Path) -> None:
    table = read_table(out).sample(frac=1.0, random_state=0)
    model = load_registered(HERE, "sfd-digits", "champion")
    images = model.images.sample(
        table["class_index"].tolist(), table["seed"].tolist(), model.sample, model.sample.batch_size, fill=True
    )
    drawn = [hashlib.sha256(png_bytes(image)).hexdigest() for batch in images for image in batch]
    assert drawn == table["sha256"].tolist()
    row = table[table["file"] == "hoch ü/000002.png"].iloc[0]
    assert row["seed"] == derive_seed(0, "generate/hoch ü", 2)


def test_a_larger_folder_begins_with_the_images_of_a_smaller_one(out: Path) -> None:
    small, large = (read_table(folder).set_index("file") for folder in (generate("small", per_class=2), out))
    assert sorted(small.index) == [f"{name}/{number:06d}.png" for name in CLASSES for number in (0, 1)]
    pd.testing.assert_frame_equal(small, large.loc[small.index])
    assert generate("other seed", "--seed", "1", per_class=2) and contents(Path("other seed")) != contents(
        Path("small")
    )


def test_the_same_command_again_changes_nothing(out: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if ".sfd" not in path.parts}
    generate(out.name)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if ".sfd" not in path.parts} == before


def test_prepare_takes_the_folder_as_a_data_set_and_refuses_nothing(out: Path, tmp_path: Path) -> None:
    fields = {"source": "folder", "root": str(out), "image_size": 16, "max_rejected_fraction": 0.0}
    summary = prepare(DataParams.model_validate(fields), 0, tmp_path)
    assert (summary.num_images, summary.num_rejected, summary.classes) == (2 * PER_CLASS, 0, CLASSES)


def test_killed_and_started_again_it_ends_with_the_same_bytes(project: Project, limit: str, tmp_path: Path) -> None:
    number = 40
    command = [*SFD, "generate", "killed", "--per-class", str(number), "--min-confidence", limit]
    process = project.start(*command, OMP_NUM_THREADS=str(torch.get_num_threads()))
    killed = project.folder / "killed"
    done = killed / ".sfd" / "work" / "batch-000003.parquet"
    wait_until(lambda: done.is_file() or process.poll() is not None, 200)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (killed / "samples.parquet").exists(), "it was killed before its end"
    fields = {"source": "folder", "root": "killed", "image_size": 16}
    with pytest.raises(UserError, match="data.root killed is being made by `sfd generate`"):
        prepare(DataParams.model_validate(fields), 0, tmp_path)
    generate("killed", "--min-confidence", limit, per_class=number)
    generate("whole", "--min-confidence", limit, per_class=number)
    assert contents(killed) == contents(project.folder / "whole")


def test_whichever_write_it_dies_at_it_ends_with_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    number = 3
    expected = contents(generate("not killed", per_class=number))
    rename = Path.replace
    for fatal in range(1, 100):
        remaining = fatal

        def dying(path: Path, target: Path) -> Path:
            nonlocal remaining
            remaining -= 1
            if remaining == 0:
                raise KeyboardInterrupt
            return rename(path, target)

        folder = Path(f"dies {fatal}")
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", dying)
            run = CliRunner().invoke(cli.app, ["generate", str(folder), "--per-class", str(number)])
        if run.exit_code == 0:
            break
        generate(folder.name, per_class=number)
        assert contents(folder) == expected, f"killed at write {fatal}"
        shutil.rmtree(folder)
    assert fatal - 1 == 2 + 2 * number + 2 + 1, "writes: marker, command, each image, each of two batches, table"


def test_only_images_that_the_judge_is_sure_of_are_kept_and_they_are_the_first_ones(
    everything: pd.DataFrame, limit: str
) -> None:
    kept = read_table(generate("sure", "--min-confidence", limit, per_class=15))
    sure = everything[everything["confidence"] >= float(limit)]
    for name in CLASSES:
        expected = sure[sure["class"] == name]["file"].tolist()[:15]
        assert kept[kept["class"] == name]["file"].tolist() == expected
    assert not set(kept["file"]) <= {f"{name}/{number:06d}.png" for name in CLASSES for number in range(15)}


def test_memorised_images_are_left_out_on_demand(everything: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = float(everything.groupby("class")["nearest_distance"].median().min())
    monkeypatch.setattr(generation, "copy_limit", lambda distances: limit * (len(distances) > 0))
    kept = read_table(generate("original", "--drop-memorised", per_class=5))
    assert kept["nearest_distance"].min() >= limit > everything["nearest_distance"].min()


def test_a_limit_that_hardly_any_image_passes_ends_with_the_class_the_share_and_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for _ in range(2):
        with pytest.raises(UserError, match=r"class 'hoch ü' keeps only 0 of \d+ candidates \(0.0%.*--min-confidence"):
            generate("impossible", "--min-confidence", "1.0")
        monkeypatch.setattr(generation, "CandidateScorer", None)  # the second time it draws nothing, and says the same
    rows = pd.concat(map(pd.read_parquet, Path("impossible/.sfd/work").glob("batch-*.parquet")))
    assert len(rows[rows["class"] == "hoch ü"]) >= ENOUGH_TRIES


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--seed", "1"], "seed 0 there and 1 now"),
        (["--per-class", "5"], "per_class 4 there and 5 now"),
        (["--min-confidence", "0.1"], "min_confidence None there and 0.1 now"),
        (["--drop-memorised"], "drop_memorised False there and True now"),
    ],
)
def test_a_folder_of_another_command_is_refused_and_stays(out: Path, options: list[str], what: str) -> None:
    before = contents(out)
    with pytest.raises(UserError, match=f"finished is made by another command .{what}.*choose a new folder"):
        generate(out.name, *options)
    assert contents(out) == before


@pytest.mark.parametrize("fact", ["version", "weights", "judge", "data set"])
def test_a_folder_of_another_version_is_refused_and_an_alias_of_the_same_one_is_not(fact: str, out: Path) -> None:
    generate(out.name, "--version", "1")
    command = out / ".sfd" / "command.json"
    original = command.read_text()
    command.write_text(json.dumps(json.loads(original) | {fact: "7"}))
    with pytest.raises(UserError, match=f"{fact} '7' there and '.*' now"):
        generate(out.name)
    command.write_text(original)


def test_a_version_that_does_not_exist_is_refused(out: Path) -> None:
    with pytest.raises(UserError, match="no version 9 of model `sfd-digits`"):
        generate(out.name, "--version", "9")


@pytest.mark.parametrize("name", ["notes.txt", "quer/1.png", "samples.parquet", "other class/000000.png"])
def test_a_folder_that_holds_anything_else_is_refused_and_stays(name: str, tmp_path: Path) -> None:
    file = tmp_path / "mine" / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    with pytest.raises(UserError, match="was not made by `sfd generate`, which overwrites nothing"):
        generate(str(tmp_path / "mine"))
    assert contents(tmp_path / "mine") == {name: hashlib.sha256(b"mine").hexdigest()}


def test_a_stranger_among_finished_images_is_found_and_an_empty_folder_is_taken(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    generate(str(folder), per_class=1)
    (folder / "quer" / "cat.png").touch()
    with pytest.raises(UserError, match="cat.png was not made by"):
        generate(str(folder), per_class=1)


def test_files_that_vanish_or_appear_while_it_was_away_are_found_before_the_table_is_written() -> None:
    Path("meddled").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation, "finish", lambda *_: sys.exit(1))
        CliRunner().invoke(cli.app, ["generate", "meddled", "--per-class", "4"])
    (Path("meddled") / "quer" / "000000.png").unlink()
    with pytest.raises(UserError, match="quer holds 3 files instead of the 4 that were made"):
        generate("meddled")


def test_a_second_process_at_the_same_folder_is_turned_away_with_the_pid_of_the_first(out: Path) -> None:
    with lock(out / ".sfd" / "work"):
        with pytest.raises(UserError, match=rf"another process works on finished \(pid {os.getpid()}"):
            generate(out.name)
    generate(out.name)


def test_a_file_and_a_place_among_the_training_images_are_refused(project: Project, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        generate(str(tmp_path / "file"))
    with pytest.raises(UserError, match="lies in images, where"):
        generate("images/new class")
    assert not (project.folder / "images" / "new class").exists()


@pytest.mark.parametrize("stage", ["prepare", "judge"])
def test_a_missing_result_is_named_before_anything_is_made(stage: str, project: Project, tmp_path: Path) -> None:
    project.result(stage).rename(tmp_path / stage)
    try:
        with pytest.raises(UserError, match=f"the result of stage `{stage}` is missing .*dvc repro {stage}"):
            generate("nothing")
    finally:
        (tmp_path / stage).rename(project.result(stage))
    assert not Path("nothing").exists()


def model(classes: list[str] | None, input_size: int = 4) -> Any:
    """As much of a registered model as the check of its fit looks at."""
    condition = NoCondition() if classes is None else ClassCondition(tuple(classes))
    network = SimpleNamespace(config=SimpleNamespace(input_size=input_size))
    images = SimpleNamespace(
        model=SimpleNamespace(condition=condition, network=network), decoder=SimpleNamespace(factor=4)
    )
    return SimpleNamespace(name="m", version="3", images=images)


def project_of(classes: list[str] | None) -> Any:
    """As much of a project."""
    condition = NoCondition() if classes is None else ClassCondition(tuple(classes))
    return SimpleNamespace(
        condition=condition,
        classes=generation.folders_of(condition),
        params=SimpleNamespace(data=SimpleNamespace(image_size=16)),
    )


@pytest.mark.parametrize("name", ["..", "a/b", ".hidden", "samples.parquet", "report.json", "nul\0"])
def test_a_class_that_is_no_folder_name_never_reaches_the_disk(name: str) -> None:
    with pytest.raises(UserError, match="cannot be the name of a folder"):
        generation._check_model(model([name]), project_of([name]))


def test_odd_but_honest_class_names_are_fine() -> None:
    names = ["a b", "ü", "...x".lstrip("."), "-", "猫"]
    generation._check_model(model(names), project_of(names))


def test_a_model_of_other_classes_or_of_another_size_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"version 3 of model `m` knows 2 classes \(a, c\), but .* know 2 classes \(a, b\)"
    ):
        generation._check_model(model(["a", "c"]), project_of(["a", "b"]))
    with pytest.raises(UserError, match=r"knows no classes, but models of this project know 1 classes \(a\)"):
        generation._check_model(model(None), project_of(["a"]))
    generation._check_model(model(None), project_of(None))
    with pytest.raises(UserError, match="draws images of 32 pixels, but data.image_size is 16"):
        generation._check_model(model(["a"], input_size=8), project_of(["a"]))


class BlindJudge(Judge):
    """Features without classes, as Inception's are."""

    name, digest, num_features, classes = "blind", "0" * 64, 3, None

    def __init__(self) -> None:
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images.float().mean(dim=(2, 3)), torch.zeros(len(images), 1008)


def test_a_judge_without_classes_gives_no_confidence_and_cannot_be_asked_for_it() -> None:
    blind = replace(Upstream.load(HERE), judge=BlindJudge())
    with pytest.raises(UserError, match="--min-confidence needs a judge that knows the classes"):
        generation.generate(Path("blind"), GenerateOptions(2, "champion", 0, 0.5, False), blind)
    generation.generate(Path("blind"), GenerateOptions(2, "champion", 0, None, False), blind)
    assert read_table(Path("blind"))["confidence"].isna().all()


@pytest.fixture
def counts() -> Callable[..., ClassCounts]:
    return lambda **fields: ClassCounts(["a", "b", "c"], 5, **({"tried": [0, 0, 0], "kept": [0, 0, 0]} | fields))


def test_a_batch_asks_for_what_is_lacking_class_by_class(counts: Callable[..., ClassCounts]) -> None:
    assert counts().next_batch(7) == [("a b".index("a"), k) for k in range(5)] + [(1, 0), (1, 1)]
    assert counts(tried=[9, 6, 0], kept=[5, 3, 0]).next_batch(4) == [(1, 6), (1, 7), (2, 0), (2, 1)]


def test_room_that_is_left_in_a_batch_goes_to_the_classes_that_lack_most_of_all_in_turn(
    counts: Callable[..., ClassCounts],
) -> None:
    batch = counts(tried=[9, 6, 8], kept=[5, 4, 4]).next_batch(6)
    assert batch == [(1, 6), (2, 8), (1, 7), (2, 9), (1, 8), (2, 10)]


@pytest.mark.parametrize(
    ("tried", "kept", "stops"), [(200, 19, True), (200, 20, False), (199, 0, False), (900, 100, False)]
)
def test_a_class_may_keep_one_in_ten_but_not_less(tried: int, kept: int, stops: bool) -> None:
    counts = ClassCounts(["a"], 100, [tried], [kept])
    if stops:
        with pytest.raises(UserError, match="class 'a' keeps only 19 of 200"):
            counts.check_shares()
    else:
        counts.check_shares()
