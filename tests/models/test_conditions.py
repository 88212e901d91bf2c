"""What a model is told about an image: its values in networks, tables and requests."""

import pytest
import torch

from sfd.errors import UserError
from sfd.models.conditions import ClassCondition, Condition, NoCondition, read_condition
from sfd.models.lightningdit import LightningDiT, LightningDiTConfig

LETTERS = ClassCondition(("a", "1"))


@pytest.mark.parametrize(
    "condition",
    [LETTERS, ClassCondition(("x",), has_null=False), ClassCondition(("a", "b"), counts=(3, 0)), NoCondition()],
)
def test_a_condition_survives_its_record(condition: Condition) -> None:
    assert read_condition(condition.kind, condition.to_config()) == condition


def test_a_condition_that_does_not_exist_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="nearest: `class`"):
        read_condition("clas", {})


def test_a_class_is_found_by_name_and_by_index() -> None:
    assert LETTERS.from_request("1") == 1 and LETTERS.from_request(0) == 0


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [("c", "classes are a, 1$"), (2, r"not in 0\.\.1"), (-1, r"not in 0\.\.1"), (None, "`class` is missing")],
)
def test_a_class_that_does_not_exist_is_refused_with_the_ones_that_do(wanted: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        LETTERS.from_request(wanted)


def test_of_a_thousand_classes_fifty_are_named() -> None:
    with pytest.raises(ValueError, match=r"0, 1, .*, 49 and 950 more$"):
        ClassCondition.numbered(1000).from_request("x")


def test_a_single_class_needs_not_be_asked_for() -> None:
    assert ClassCondition(("only",)).from_request(None) == ClassCondition(("only",)).from_request("only") == 0


def test_without_a_condition_nothing_is_asked_for_and_a_class_is_refused() -> None:
    assert NoCondition().from_request(None) is None
    with pytest.raises(ValueError, match="without a class; leave the class out"):
        NoCondition().from_request("a")


def test_samples_are_balanced_and_tables_name_their_classes() -> None:
    assert LETTERS.plan(5) == [0, 1, 0, 1, 0]
    assert LETTERS.columns([1, 0]) == {"class_index": [1, 0], "class": ["1", "a"]}
    assert NoCondition().plan(2) == [None, None] and NoCondition().columns([None, None]) == {}


def test_natural_samples_have_the_proportions_of_the_training_images() -> None:
    trained = ClassCondition.from_data(["a", "1"], [30, 10])
    assert trained.plan(8, "natural") == [0, 0, 1, 0, 0, 0, 1, 0]
    assert trained.plan(4) == trained.plan(4, "balanced") == [0, 1, 0, 1]
    assert NoCondition.from_data(["a"], [4]).plan(2, "natural") == [None, None]


def test_natural_samples_of_a_model_without_the_record_are_refused_and_balanced_ones_are_not() -> None:
    old = read_condition("class", {"names": ["a", "1"], "has_null": True})
    with pytest.raises(UserError, match="no record of how many training images each class had: set it to `balanced`"):
        old.plan(4, "natural")
    assert old.plan(4) == [0, 1, 0, 1]


@pytest.mark.parametrize("counts", [[1], [0, 0], [-1, 2]])
def test_counts_that_do_not_fit_the_classes_are_refused(counts: list[int]) -> None:
    with pytest.raises(ValueError, match="2 classes are named, but their counts are"):
        read_condition("class", {"names": ["a", "b"], "has_null": True, "counts": counts})


def test_the_null_class_lies_behind_the_last_and_is_refused_where_there_is_none() -> None:
    assert LETTERS.null(2).tolist() == LETTERS.batch([None, None]).tolist() == [2, 2]
    for condition in (ClassCondition(("a",), has_null=False), NoCondition()):
        with pytest.raises(UserError, match="set sample.guidance.kind to none"):
            condition.null(1)


def test_a_network_that_is_told_nothing_has_no_table_and_is_moved_by_its_times_alone() -> None:
    config = LightningDiTConfig(4, 6, 32, 2, 2, NoCondition(), semantic_channels=2, two_times=True)
    network = LightningDiT(config).initialise(torch.Generator().manual_seed(0))
    torch.nn.init.normal_(network.output_layer().weight, generator=torch.Generator().manual_seed(1))
    assert not any(name.startswith("y_embedder") for name in network.state_dict())
    x, half = torch.randn(2, 6, 4, 4), torch.full((2,), 0.5)
    assert network(x, half, half, config.condition.batch([None, None])).velocity.shape == x.shape
