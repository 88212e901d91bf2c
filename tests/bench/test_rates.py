"""benchmarks/rates.py: what is asked for, and what each training is told."""

from types import ModuleType

import pytest
from support import benchmark

from sfd.errors import UserError
from sfd.params import Params, with_values
from sfd.preset import load_preset


@pytest.fixture(scope="module")
def module() -> ModuleType:
    return benchmark("rates")


@pytest.fixture(scope="module")
def project() -> Params:
    return load_preset("digits")


def test_a_pair_is_a_batch_size_and_a_learning_rate(module: ModuleType) -> None:
    assert module.parse("16:0.004") == module.parse("16:4e-3") == (16, 0.004)


@pytest.mark.parametrize("pair", ["16", "16:", ":0.004", "0.004:16", "16-0.004", "0:0.004"])
def test_what_is_no_pair_is_refused_in_words(module: ModuleType, pair: str) -> None:
    with pytest.raises(UserError, match="is no batch size with a learning rate; write it as in 16:0.004"):
        module.parse(pair)


def test_a_training_has_its_batch_and_rate_and_is_guided_only_where_the_project_is(
    module: ModuleType, project: Params
) -> None:
    given = module.options(project, "XS", 16, 0.004, 800, 100)
    training = given.diffusion.training
    assert (given.diffusion.model.size, training.batch_size, training.learning_rate) == ("XS", 16, 0.004)
    assert (training.num_steps, training.warmup_steps, training.decay) == (800, 100, "cosine")
    assert given.sample.guidance.scale_texture == module.GUIDANCE
    free = module.options(with_values(project, {"sample.guidance": {"kind": "none"}}), "XS", 16, 0.004, 800, 100)
    assert free.sample.guidance.kind == "none"


def test_the_table_has_a_row_per_training(module: ModuleType) -> None:
    point = {"step": 2400, "seconds": 540.0, "fd": 735.6, "kid": 0.666}
    last = module.table({"16:0.004": point}).splitlines()[-1]
    assert last.split() == ["16:0.004", "2,400", "9.0", "735.6", "0.666", "-"]
