"""Options that hold a name of an open table: an entry that is added counts at once, and a misspelt name is refused."""

from typing import Any

import pytest
from changed_params import changed, refusal

from sfd import names
from sfd.names import Entry, SamplerEntry
from sfd.params import current_value, describe_params, parse_params

TABLES: list[tuple[str, dict[str, Any], type[Entry], str, str]] = [
    ("sample.sampler", names.SAMPLERS, SamplerEntry, "eulr", "euler"),
    ("diffusion.model.backbone", names.BACKBONES, Entry, "lightningdir", "lightningdit"),
    ("diffusion.model.condition", names.CONDITIONS, Entry, "clas", "class"),
    ("data.source", names.DATA_SOURCES, Entry, "foldr", "folder"),
    ("semantic.kind", names.SEMANTIC_ENCODERS, Entry, "pac", "pca"),
    ("judges.0.kind", names.JUDGES, Entry, "resnt", "resnet"),
]
every_table = pytest.mark.parametrize(
    ("key", "table", "entry", "misspelt", "nearest"), TABLES, ids=[table[0] for table in TABLES]
)


@every_table
def test_a_misspelt_name_is_refused_with_the_nearest(
    key: str, table: dict[str, Any], entry: type[Entry], misspelt: str, nearest: str
) -> None:
    message = refusal({key: misspelt})
    assert f"`{key}` is '{misspelt}', but: choose " in message and f"nearest: '{nearest}'" in message
    assert all(f"'{name}'" in message for name in table) and entry is type(table[nearest])


@every_table
def test_an_entry_that_is_added_to_the_table_is_accepted_and_described(
    key: str, table: dict[str, Any], entry: type[Entry], misspelt: str, nearest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert f"`{misspelt}`" not in describe_params()
    monkeypatch.setitem(table, misspelt, entry("toys:Toy", "a toy of the tests"))
    row = next(line for line in describe_params().splitlines() if line.startswith(f"| `{key.replace('.0.', '.N.')}`"))
    assert f"`{misspelt}`: a toy of the tests" in row and nearest in row
    assert current_value(parse_params(changed({key: misspelt})), key) == misspelt


def test_a_term_of_the_loss_is_no_name_in_params_but_a_weight_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(names.LOSS_TERMS, "toy", Entry("toys:Toy", "a toy of the tests"))
    weights = parse_params(changed({})).diffusion.loss.weights()
    assert weights == {"velocity": 1.0, "cosine": 1.0, "repa": 1.0, "toy": 1.0}
