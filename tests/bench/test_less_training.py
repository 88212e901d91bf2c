"""benchmarks/less_training.py: what is kept of a comparison that is stopped, and what is made of its points."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support import REPOSITORY, benchmark

from sfd.errors import UserError

SETUP = {"minutes": 10.0, "seeds": 2, "num_images": 60}


@pytest.fixture(scope="module")
def module() -> ModuleType:
    return benchmark("less_training")


class Trainings:
    """Counts what it is asked to train. Muon is best, then TREAD; a training ends with an error after ``limit`` others."""

    def __init__(self, limit: int = 100) -> None:
        self.limit = limit
        self.ran: list[tuple[str, int]] = []

    def seconds_per_step(self, changes: dict[str, Any]) -> float:
        return 2.0 if "diffusion.training.optimizer" in changes else 1.0

    def run(self, changes: dict[str, Any], seed: int, steps: int) -> list[dict[str, float]]:
        if len(self.ran) == self.limit:
            raise KeyboardInterrupt
        self.ran.append((" ".join(changes), seed))
        gain = ("optimizer" in str(changes)) * 3 + ("token_routing" in str(changes)) * 2 + ("conv" in str(changes))
        looks = [steps * share // 4 for share in (1, 2, 3, 4)]
        return [
            {"step": step, "images": 8 * step, "seconds": 1.0 * step, "fd": 20.0 + seed - gain - step / steps}
            for step in looks
        ]


def test_what_is_finished_is_kept_and_the_same_command_goes_on_with_the_next_one(
    module: ModuleType, tmp_path: Path
) -> None:
    file, first, second = tmp_path / "deep" / "points.json", Trainings(limit=3), Trainings()
    kept = module.Kept(file, SETUP)
    module.time_all(first, kept)
    with pytest.raises(KeyboardInterrupt):
        module.train_all(first, kept, module.METHODS)
    again = module.Kept(file, SETUP)
    assert again.seconds == kept.seconds and len(again.points) == 3
    module.train_all(second, again, module.METHODS)
    assert len(first.ran) == 3 and len(second.ran) == 2 * len(module.METHODS) - 3
    assert not set(first.ran) & set(second.ran) and not list(file.parent.glob("*.part"))


def test_trainings_of_another_setup_are_refused(module: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "points.json"
    module.Kept(file, SETUP).save()
    assert module.Kept(file, json.loads(json.dumps(SETUP))).points == {}
    with pytest.raises(UserError, match=r"another setup \(seeds\): name another file with --points"):
        module.Kept(file, SETUP | {"seeds": 3})


def test_every_method_trains_as_many_steps_as_the_wall_time_allows(module: ModuleType, tmp_path: Path) -> None:
    kept = module.Kept(tmp_path / "points.json", SETUP)
    module.time_all(Trainings(), kept)
    assert kept.steps("base") == 600 and kept.steps("Muon") == 300 and kept.steps("TREAD + Muon") == 300


def test_the_best_two_go_together_and_the_table_compares_within_a_seed(module: ModuleType, tmp_path: Path) -> None:
    kept, trainings = module.Kept(tmp_path / "points.json", SETUP), Trainings()
    module.time_all(trainings, kept)
    module.train_all(trainings, kept, module.METHODS)
    assert module.best_pair(kept) == "TREAD + Muon"
    rows = [line.split(" | ") for line in module.table(kept, list(module.METHODS)).splitlines()]
    assert [row[0].strip("| ") for row in rows[2:]] == list(module.METHODS)
    base, muon = rows[2], rows[5]
    # Seeds differ by 1, and so the mean has a standard error of 0.5; the difference within a seed has none.
    assert base[6] == "19.50 ± 0.50" and muon[6] == "16.50 ± 0.50" and muon[7] == "-3.00 ± 0.00"
    module.draw(kept, list(module.METHODS), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_every_method_and_pair_is_accepted_by_the_rules_of_the_parameters(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sfd.workspace import Workspace

    monkeypatch.setattr(module, "PROJECT", Workspace(REPOSITORY))
    for name, changes in (module.METHODS | module.PAIRS).items():
        assert module.options(changes, 40, 10, 60).diffusion.training.num_steps == 40, name
