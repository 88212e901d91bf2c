"""The page of published results and values: every value of the presets of published runs beside the published one, and why it differs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sfd.params import Params, to_tree
from sfd.params.yaml import as_yaml
from sfd.preset import base_of, load_preset
from sfd.published.results import RESULTS, Result
from sfd.published.values import RUNS, SFD_XL, SOURCES, WITHOUT, Published

MISSING = "-"
UNKNOWN = "not published for this run"


@dataclass(frozen=True)
class Row:
    """One key of a preset. ``published``: None if nothing comparable is published; then ``note`` says why."""

    key: str
    value: object
    published: Published | None
    note: str

    @property
    def differs(self) -> bool:
        """Whether the preset has another value than the publication."""
        return self.published is not None and self.published.value != self.value

    @property
    def mistake(self) -> str | None:
        """What is missing in the table of published values; None if nothing is."""
        if self.published is None:
            return None if self.note else f"{self.key} has neither a published value nor a word on why not"
        if self.differs and not self.published.reason:
            return f"{self.key} is {self.value!r}, published {self.published.value!r}, and no reason is given"
        if not self.differs and self.published.reason:
            return f"{self.key} is {self.value!r} as published, but a reason is given for a difference"
        return None


def published_values(name: str) -> dict[str, Published]:
    """Key to published value of the run that a preset stands for, those of its base included where it inherits them."""
    run, base = RUNS[name], base_of(name)
    inherited = published_values(base) if run.inherits and base is not None else {}
    return {**inherited, **run.values}


def rows(name: str, params: Params) -> list[Row]:
    """A row for every key of a preset, in the order of the file. ``params``: its parameters."""
    values = published_values(name)
    return [
        Row(key, value, values.get(key), "" if key in values else _without(name, key))
        for key, value in _leaves(to_tree(params))
    ]


def mistakes(name: str, params: Params) -> list[str]:
    """What the table of published values lacks for a preset with these parameters."""
    found = [mistake for row in rows(name, params) if (mistake := row.mistake) is not None]
    known = {key for key, _ in _leaves(to_tree(params))}
    found += [f"{key} is no key of the preset" for key in RUNS[name].values if key not in known]
    return [f"{name}: {mistake}" for mistake in found]


def page() -> str:
    """The whole page as Markdown."""
    parts = [_HEAD, _results(), "## Sources", _sources()]
    for name in RUNS:
        parts += [f"## {name}", _introduction(name), _table(_shown(name))]
    return "\n\n".join(parts)


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Dotted keys and values; the sections in a list are counted from 0."""
    for key, value in tree.items():
        is_list = isinstance(value, list) and any(isinstance(item, dict) for item in value)
        inner = {str(number): item for number, item in enumerate(value)} if is_list else value
        if isinstance(inner, dict) and inner:
            yield from _leaves(inner, f"{prefix}{key}.")
        else:
            yield prefix + key, inner


def _without(name: str, key: str) -> str:
    """What is said of a key without a published value: that of its longest beginning."""
    if not RUNS[name].inherits and key in SFD_XL.values:
        return UNKNOWN
    parts = key.split(".")
    beginnings = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((WITHOUT[beginning] for beginning in beginnings if beginning in WITHOUT), "")


def _shown(name: str) -> list[Row]:
    """All rows of a complete preset; of an overlay those of which its base's table says something else."""
    found, base, run = rows(name, load_preset(name)), base_of(name), RUNS[name]
    if base is None:
        return found
    before = {row.key: row for row in rows(base, load_preset(base))}

    def is_new(row: Row) -> bool:
        old = before.get(row.key)
        if row.key in run.values or old is None or row.value != old.value:
            return True
        return run.inherits and row != old

    return [row for row in found if is_new(row)]


def _introduction(name: str) -> str:
    base, run = base_of(name), RUNS[name]
    said = [f"Published run: {run.name}."]
    if base is not None:
        said.append(
            f"The keys that are not listed have the values of [{base}](#{base})"
            + (", and what is said of them there." if run.inherits else "; for this run nothing is published of them.")
        )
    return " ".join(said)


def _table(shown: list[Row]) -> str:
    lines = ["| key | preset | published | source, or why it differs |", "|---|---|---|---|"]
    for row in shown:
        published, note = MISSING, row.note
        if row.published is not None:
            published = _text(row.published.value)
            note = f"**{row.published.reason}** ({row.published.source})" if row.differs else row.published.source
        lines.append(f"| `{row.key}` | {_text(row.value)} | {published} | {note} |")
    return "\n".join(lines)


def _text(value: object) -> str:
    """A value as in YAML; a text as it is, because several published ones are words."""
    return f"`{value if isinstance(value, str) else as_yaml(value)}`"


def _sources() -> str:
    lines = [f"| {source} | {what} |" for source, what in SOURCES.items()]
    return "\n".join(["| source | what |", "|---|---|", *lines])


def _results() -> str:
    head = "| model | preset | epochs | FID unguided | FID with AutoGuidance | weak model, scale | machines | source |"
    return "\n".join(
        ["## Results", "", _ABOUT_RESULTS, "", head, "|---|---|---|---|---|---|---|---|", *map(_result, RESULTS)]
    )


def _result(result: Result) -> str:
    preset = MISSING if result.preset is None else f"`{result.preset}`"
    machines = " / ".join(machine for machine in result.machines if machine)
    cells = [
        result.model,
        preset,
        str(result.epochs),
        _pair(result.unguided),
        _pair(result.guided),
        result.weak or MISSING,
        machines,
        result.source,
    ]
    return f"| {' | '.join(cells)} |"


def _pair(values: tuple[float | None, float | None]) -> str:
    shown = [f"{value:.2f}" for value in values if value is not None]
    return " / ".join(shown) or MISSING


_HEAD = (
    "# Presets beside the publications\n\n"
    "Every value of every ImageNet preset, and of SeFi-Image's, beside the published one. `sfd preset published` prints this page from "
    "`src/sfd/published/`, which holds each published value once, with its source. **Bold** text says why a preset differs. Where nothing "
    "comparable is published, the "
    "last column says what the value is."
)

_ABOUT_RESULTS = (
    "50,000 balanced samples by dopri5 (atol 1e-6, rtol 1e-3) in float32 with TF32, in batches of 4, scored by ADM's evaluator against its "
    "reference batch. Two numbers are of two machines. We have not run any of these to its end."
)
