"""``sfd init --images`` and ``sfd plan``: reads, times, chooses, and says what was chosen and why."""

import difflib
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sfd.data.detect import detect
from sfd.data.prepare import look
from sfd.data.report import DataReport
from sfd.errors import UserError
from sfd.params import DataParams, Params, check_study, describe_mistakes, parse_params, parse_yaml, to_tree
from sfd.params.yaml import merge
from sfd.planning.choice import Plan, Problem, choose
from sfd.planning.draft import Tree, draft
from sfd.planning.machine import Machine, read_machine
from sfd.planning.timing import time_networks
from sfd.preset import render, top_comments
from sfd.preset_use import WHOLE, with_changes
from sfd.scaffold import judge_name
from sfd.tables import as_text
from sfd.text_file import replace_text
from sfd.workspace import Workspace

PRESET = "photos64"
"""What a plan changes."""
CPU_SIZES, GPU_SIZES = ("tiny", "XS", "S"), ("XS", "S", "B")
PLAN_NAME, COSTS_NAME = "plan.md", "plan.json"
"""What a project keeps of its plan: the page, and the seconds and GB per stage."""
SETTABLE = (
    "layout",
    "labels",
    "image_column",
    "label_column",
    "caption_column",
    "uncaptioned",
    "split",
    "revision",
    "max_rejected_fraction",
    "max_pixels",
)
"""Options of section `data` that a plan takes as they are; it chooses the others itself."""
PLANNED = ("encoder", "text", "texture_vae", "features", "semantic", "latents", "schedule", "evaluate")
"""Sections that a plan sets as a whole."""

Say = Callable[[str], object]


@dataclass(frozen=True)
class Planned:
    """A plan with what it was made from. ``params``: the whole parameters. ``hours``: that were asked for."""

    report: DataReport
    machine: Machine
    plan: Plan
    params: Tree
    hours: float

    def text(self) -> str:
        """The plan for a reader: what was found, what was chosen and why, and what it costs."""
        rows = [["stage", "what", "hours", "GB"]]
        rows += [[cost.stage, cost.what, f"{cost.seconds / 3600:.2f}", f"{cost.gb:.2f}"] for cost in self.plan.costs]
        rows.append(["all", "", f"{self.plan.hours:.2f}", f"{self.plan.gb:.2f}"])
        found = "\n".join(self.report.lines())
        why = "\n".join(f"{topic}: {reason}" for topic, reason in self.plan.reasons.items())
        return (
            f"images\n{_indented(found)}\nmachine\n{_indented(str(self.machine))}\nchosen for {self.hours:g} h\n{_indented(why)}\n"
            f"cost\n{_indented(as_text(rows))}\nto expect\n{_indented(self.plan.quality)}\n"
        )

    def files(self, project: str) -> dict[str, str]:
        """The page of the plan, and its costs as JSON, by name."""
        costs = {cost.stage: {"seconds": round(cost.seconds, 1), "gb": round(cost.gb, 3)} for cost in self.plan.costs}
        page = f"# The plan of {project}\n\n```text\n{self.text()}```\n"
        return {PLAN_NAME: page, COSTS_NAME: json.dumps({"hours": self.hours, "costs": costs}, indent=2) + "\n"}


def plan(
    data: Tree, project: str, judge: str, hours: float, folder: Path, say: Say, kept: Tree | None = None
) -> Planned:
    """Reads the images and the machine, times networks, and chooses.

    Args:
        data: values of section `data`; its paths can be opened as they are.
        project: for messages.
        judge: the judge's name.
        hours: for the whole graph.
        folder: the project's, for its disk.
        say: takes what is being done.
        kept: values of other sections that the plan takes as they are.

    Raises:
        UserError: the images cannot be read or are too few, or the hours or the disk are.
    """
    base: Tree = parse_yaml(render(PRESET), PRESET)
    merge(base, {"data": data} | (kept or {}))
    say(f"reading {base['data']['root']} ...")
    first = dict(base["data"])
    report, read = _look(first)
    machine = read_machine(folder)
    made = draft(report, machine, judge)
    put(base, made.changes)
    if base["data"] != first:  # the split and the size of images are other ones
        report, read = _look(base["data"])
    params = parse_params(base, f"the plan of {project}")
    say("timing networks, about a minute ...")
    timings = time_networks(params, GPU_SIZES if machine.gpu else CPU_SIZES, read)
    chosen = choose(Problem(made, params, timings, machine.gpu is not None), hours)
    if chosen.gb > machine.disk_gb and params.diffusion.model.condition == "text":
        words = next(cost.gb for cost in chosen.costs if cost.stage == "text")
        reason = f"not stored, for they would take {words:.2g} GB: the text encoder reads each batch's captions in the training"
        made.choose("tokens", reason, text={"store_tokens": False})
        put(base, made.changes)
        params = parse_params(base, f"the plan of {project}")
        chosen = choose(Problem(made, params, timings, machine.gpu is not None), hours)
    if chosen.gb > machine.disk_gb:
        raise UserError(
            f"the plan takes {chosen.gb:.2g} GB, but the disk has {machine.disk_gb:.2g} GB left: free some, or name a folder on another disk"
        )
    put(base, chosen.changes)
    planned = parse_params(base, f"the plan of {project}")
    check_study(planned)
    return Planned(report, machine, chosen, to_tree(planned), hours)


def put(tree: Tree, changes: Tree) -> None:
    """Puts the changes of a plan into parameters; its gates, and what may be tuned, are all that there is."""
    for section, key in WHOLE:
        tree[section][key] = {}
    merge(tree, changes)


def new_params(planned: Planned, project: str, folder: Path) -> str:
    """The text of the params.yaml of a new project in ``folder``. Images that lie in it are named relative to it."""
    text, home = render(PRESET), folder.resolve()
    data = planned.params["data"]
    inside = {
        key: Path(data[key])
        for key in ("root", "labels", "captions")
        if data[key] and Path(data[key]).is_relative_to(home)
    }
    places = {"data": {key: str(path.relative_to(home)) for key, path in inside.items()}}
    names = {
        "register": {"name": project},
        "tracking": {"experiment": project},
        "tune": {"study": "guidance"},
    }
    body = with_changes(text, planned.params, names, places)
    parse_params(parse_yaml(body, PLAN_NAME), PLAN_NAME)
    head = (
        f"# Project {project}, planned by `sfd init` for {planned.hours:g} hours on {planned.machine.gpu or f'{planned.machine.cores} CPU cores'}: "
        f"{PLAN_NAME} says why.\n# `sfd params --describe` explains every key.\n"
    )
    return head + body.removeprefix(top_comments(body))


def changed_params(planned: Planned, workspace: Workspace) -> tuple[str, str]:
    """The project's params.yaml with the plan's values and its own comments; and the difference as a unified diff."""
    file = workspace.params_file
    old = file.read_text(encoding="utf-8")
    tree = planned.params
    keys: Tree = {section: tree[section] for section in PLANNED}
    keys["data"] = {key: tree["data"][key] for key in ("image_size", "holdout_fraction", "duplicates")}
    keys["judges"] = tree["judges"]
    keys["diffusion"] = {key: tree["diffusion"][key] for key in ("model", "loss", "training")}
    keys["sample"] = {key: value for key, value in tree["sample"].items() if key not in ("step", "schedule")}
    keys["register"] = {"gates": tree["register"]["gates"]}
    keys["quality"] = planned.plan.changes["quality"]
    keys["runtime"] = {"diffusion": planned.plan.changes["runtime"]["diffusion"]}
    new = with_changes(old, keys)
    parse_params(parse_yaml(new, str(file)), f"{file} with the plan")
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), str(file), "the plan", lineterm="")
    return new, "\n".join(lines)


def plan_project(workspace: Workspace, hours: float, apply: bool, say: Say) -> str:
    """The plan for an existing project and the difference to its params.yaml, which ``apply`` writes with the page of the plan.

    Raises:
        UserError: as :func:`plan`.
    """
    params = workspace.load_params()
    name = workspace.model_name(params.register_)
    data = workspace.resolve_paths(params.data).model_dump(mode="json")
    planned = plan(data, name, params.first_judge.name, hours, workspace.root, say, _kept(params))
    new, difference = changed_params(planned, workspace)
    if not difference:
        return f"{planned.text()}\nparams.yaml has these values already"
    if not apply:
        return f"{planned.text()}\n{difference}\n\nnothing was written; `sfd plan --apply` writes it"
    replace_text(workspace.params_file.resolve(), new)
    for kept, text in planned.files(name).items():
        replace_text(workspace.root / kept, text)
    return f"{planned.text()}\n{difference}\n\nwritten to {workspace.params_file}"


def _kept(params: Params) -> Tree:
    """A schedule that is to be learnt, with the option that it needs: no plan chooses one, so none takes it back."""
    if params.schedule.kind != "learnt":
        return {}
    loss = {"timestep_sampling": params.diffusion.loss.timestep_sampling}
    return {"schedule": to_tree(params)["schedule"], "diffusion": {"loss": loss}}


def plan_new(
    images: Path,
    settings: Sequence[str],
    project: str,
    hours: float,
    folder: Path,
    say: Say,
    captions: str | None = None,
) -> Planned:
    """The plan of a new project for a folder, an archive or a data set of images.

    ``settings``: options of section `data` as ``data.KEY=VALUE``, in place of what the path seems to need. ``captions``: `auto` or a table, for
    a model that is told words; None: none.

    Raises:
        UserError: as :func:`plan`; or a setting is none.
    """
    data = detect(images) | read_settings(settings)
    if captions is not None:
        data["captions"] = captions if captions == "auto" else str(Path(captions).expanduser().resolve())
    try:
        DataParams.model_validate({"image_size": 32} | data)
    except ValidationError as error:
        raise UserError("; ".join(f"section `data`: {text}" for text in describe_mistakes(error, DataParams))) from None
    try:
        return plan(data, project, judge_name(project), hours, folder, say)
    except UserError as error:
        named = sorted({key for key in SETTABLE if re.search(rf"\bdata\.{key}\b", str(error))})
        if not named:
            raise
        raise UserError(f"{error} (before there is a project: `sfd init ... --set data.{named[0]}=VALUE`)") from None


def read_settings(settings: Sequence[str]) -> Tree:
    """Options of section `data` from ``data.KEY=VALUE``, where VALUE is YAML. Raises :class:`UserError` for others."""
    found: Tree = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        key = name.removeprefix("data.")
        if not equals or key == name or key not in SETTABLE:
            raise UserError(
                f"--set {setting!r} must be data.KEY=VALUE, where KEY is one of {', '.join(SETTABLE)}; params.yaml has all other options "
                "once the project is made"
            )
        found[key] = parse_yaml(f"value: {value}", f"--set {name}")["value"]
        if key == "labels" and found[key] is not None:
            found[key] = os.path.abspath(os.path.expanduser(str(found[key])))
    return found


def _look(data: dict[str, Any]) -> tuple[DataReport, float]:
    """The report, and the seconds per image."""
    started = time.perf_counter()
    report = look(DataParams.model_validate(data))
    return report, (time.perf_counter() - started) / report.num_images


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
