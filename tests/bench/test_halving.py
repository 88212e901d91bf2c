"""benchmarks/halving.py: what is kept of a comparison that is stopped, and what its tables say."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from support import REPOSITORY

from sfd.errors import UserError
from sfd.params import HalvingParams

SETUP = {"taus": [0.0, 0.2, 0.4, 0.8], "steps": 16}


@pytest.fixture(scope="module")
def module() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("halving", REPOSITORY / "benchmarks" / "halving.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    yield made


class Trainings:
    """Says how far an offset is from 0.2, and ends with an error after ``limit`` trainings."""

    halving = HalvingParams(base_steps=4, first_steps=2)

    def __init__(self, work: Path, limit: int = 100) -> None:
        self.work, self.limit = work, limit
        self.ran: list[tuple[float, int]] = []
        self.params = self.tune = self  # what is read of the parameters is `params.tune.halving`

    def goes_on(self, tau: float, _seed: int, before: int, until: int) -> dict[str, float]:
        if len(self.ran) == self.limit:
            raise KeyboardInterrupt
        self.ran.append((tau, until))
        return {"fd": abs(tau - 0.2) + 1 / until, "steps": until - before, "seconds": 1.0}


def test_the_better_half_goes_on_and_what_came_further_ranks_first(module: ModuleType, tmp_path: Path) -> None:
    trainings, kept = Trainings(tmp_path), module.Kept(tmp_path / "points.json", SETUP)
    assert module.halve(trainings, kept, SETUP["taus"], 0) == [0.2, 0.0, 0.4, 0.8]
    assert trainings.ran == [(0.0, 2), (0.2, 2), (0.4, 2), (0.8, 2), (0.2, 4), (0.0, 4)]


def test_what_is_finished_is_kept_and_the_same_command_goes_on(module: ModuleType, tmp_path: Path) -> None:
    first, second, file = Trainings(tmp_path, limit=5), Trainings(tmp_path), tmp_path / "deep" / "points.json"
    with pytest.raises(KeyboardInterrupt):
        module.halve(first, module.Kept(file, SETUP), SETUP["taus"], 0)
    assert module.halve(second, module.Kept(file, SETUP), SETUP["taus"], 0)[0] == 0.2
    assert len(first.ran) == 5 and len(second.ran) == 1
    with pytest.raises(UserError, match="points of another setup"):
        module.Kept(file, SETUP | {"steps": 32})


def test_the_tables_say_how_well_ranks_agree_and_at_what_cost(module: ModuleType, tmp_path: Path) -> None:
    kept, taus = module.Kept(tmp_path / "points.json", SETUP), [0.0, 0.2, 0.4, 0.8]
    rankings = [module.halve(Trainings(tmp_path), kept, taus, seed) for seed in range(2)]
    for seed in range(2):
        for tau in taus:
            point = {"fd": abs(tau - 0.21) + 0.1 * seed, "steps": 16.0, "seconds": 10.0}
            kept.point(f"separate tau {tau:g} seed {seed}", lambda point=point: point)
    text = module.report(kept, taus, 2, rankings, 4)
    assert "| rank correlation with separate trainings: mean ranks over the seeds | 0.80 |" in text
    assert "| winner of each seed | 0.2, 0.2 |" in text and "| each seed | 0.80, 0.80 |" in text
    assert "| cost, as a share of the steps of separate trainings | 0.25 |" in text  # (4 + 4 * 2 + 2 * 2) of 4 * 16
    assert "| cost, as a share of their training time | 0.15 |" in text
