"""``sfd preset use``: a preset in a project that has parameters already. What belongs to its images and its name stays."""

import os
from pathlib import Path
from typing import Any

from ruamel.yaml.comments import CommentedMap

from sfd.errors import UserError
from sfd.names import INCEPTION, distance_name
from sfd.params import Params, load_params, parse_params, parse_yaml, to_tree, with_values
from sfd.params.yaml import merge
from sfd.preset import as_text, document, load_preset, names, render, top_comments
from sfd.text_file import replace_text

Tree = dict[str, Any]


def use(name: str, file: Path, force: bool) -> str:
    """Writes a preset to ``file``, in one rename; says what was done.

    Of parameters that are there, these are kept where they are no preset's own: ``data`` but for the size of images, the names, and the
    gates. The old file stays beside the new one, unless it is an unchanged preset.

    Raises:
        UserError: ``file`` differs from every preset in other keys, too, and ``force`` is not given; or it cannot be written.
    """
    text, said = render(name), ""
    try:
        if file.exists():
            found = file.read_bytes()
            if not any(found == render(other).encode() for other in names()):
                text, said = _adopt(name, file, force)
            if found == text.encode():
                return f"{file} is preset {name} already"
            if said:
                said += f"; the old one is {_keep(file)}"
        replace_text(file.resolve(), text)
    except OSError as error:
        raise UserError(
            f"{file} cannot be written: {error.strerror}; make it a file in a folder that you may write to"
        ) from None
    return f"{file} is now preset {name}{said}"


def _adopt(name: str, file: Path, force: bool) -> tuple[str, str]:
    """The text of a preset with what is kept of a file, and a clause that says so."""
    presets = [load_preset(other) for other in names()]
    try:
        old = load_params(file)
    except UserError as error:
        if not force:
            raise UserError(
                f"{error}; correct it, or give --force to replace the file, which keeps the old one beside it"
            ) from None
        return render(name), "; nothing is kept of the old one, which is no valid params file"
    if not force and not any(_rest(old) == _rest(preset) for preset in presets):
        raise UserError(
            f"{file} differs from every preset in more than `data`, names and gates, which would be kept, so it may hold your own work; give "
            "--force to replace it, which keeps the old one beside it"
        )
    new = load_preset(name)
    changes = [change(old, new, presets) for change in (_data, _names, _gates)]
    kept = ", ".join(said for _, said in changes if said)
    text = with_changes(render(name), *(change for change, _ in changes))
    parse_params(parse_yaml(text, name), f"preset {name} with the old {kept}")
    return text, f"; kept of the old one: {kept or 'nothing, for it has no data, names or gates of its own'}"


WHOLE = (("register", "gates"), ("tune", "space"))
"""Tables whose keys are the user's own choice: a new table leaves nothing of an old one."""


def with_changes(text: str, *changes: Tree) -> str:
    """A params file with trees of values put in, and its comments. Tables of :data:`WHOLE` are replaced as a whole."""
    tree = document(text)
    for change in changes:
        for section, key in WHOLE:
            table = change.get(section, {}).get(key)
            if table is not None:
                for name in tree[section][key].keys() - table.keys():
                    del tree[section][key][name]
        merge(tree, change)
    for metric, gate in tree["register"]["gates"].items():
        tree["register"]["gates"][metric] = CommentedMap(gate)
        tree["register"]["gates"][metric].fa.set_flow_style()
    return as_text(tree, top_comments(text))


def with_own_data(new: Params, own: Params) -> Params:
    """A preset's parameters with the ``data`` of a project that :func:`use` would keep. Raises :class:`UserError` if they do not fit."""
    changes, _ = _data(own, new, [load_preset(name) for name in names()])
    return with_values(new, {f"data.{key}": value for key, value in changes.get("data", {}).items()})


def _data(old: Params, new: Params, presets: list[Params]) -> tuple[Tree, str]:
    """All of ``data`` but the size of images, which belongs to the preset's networks, and captions where the preset alone reads them."""
    own = old.data.model_dump(exclude={"image_size"})
    if any(own == preset.data.model_dump(exclude={"image_size"}) for preset in presets):
        return {}, ""
    if new.diffusion.model.condition == "text" and own["captions"] is None:
        return {
            "data": own | {"captions": "auto"}
        }, "data (but image_size, and captions: auto, which this preset needs)"
    return {"data": own}, "data (but image_size)"


def _names(old: Params, new: Params, presets: list[Params]) -> tuple[Tree, str]:
    """The names that no preset has. Inception keeps the name that it alone may have."""
    changes: Tree = {}
    if old.register_.name not in {preset.register_.name for preset in presets}:
        changes["register"] = {"name": old.register_.name}
    if old.tracking.experiment not in {preset.tracking.experiment for preset in presets}:
        changes["tracking"] = {"experiment": old.tracking.experiment}
    said = [f"{section}.{key}" for section, values in changes.items() for key in values]
    name = old.first_judge.name
    taken = {preset.first_judge.name for preset in presets} | {judge.name for judge in new.judges[1:]}
    if INCEPTION != new.first_judge.name and name not in taken:
        changes["judges"] = [{"name": name}, *({} for _ in new.judges[1:])]
        said.append("judges.0.name")
    return changes, ", ".join(said)


def _gates(old: Params, new: Params, presets: list[Params]) -> tuple[Tree, str]:
    """The gates, if no preset has the same, that the new judge's metrics allow; the distance has its name."""
    if any(_gates_of(old) == _gates_of(preset) for preset in presets):
        return {}, ""
    tree = to_tree(new)
    merge(tree, {"judges": _names(old, new, presets)[0].get("judges", [{} for _ in new.judges])})
    gates = _gates_of(old, distance_name(tree["judges"][0]["name"]))
    fitting = {metric: gate for metric, gate in gates.items() if _is_valid(tree, metric, gate)}
    left_out = ", ".join(sorted(gates.keys() - fitting.keys()))
    said = f"register.gates (without {left_out}, which this preset's evaluation does not give)"
    return {"register": {"gates": fitting}}, said if left_out else "register.gates"


def _gates_of(params: Params, distance: str = "") -> Tree:
    """The gates, with ``distance`` for the name of the first judge's Frechet distance."""
    own = distance_name(params.first_judge.name)
    gates = to_tree(params)["register"]["gates"].items()
    return {distance if metric == own else metric: gate for metric, gate in gates}


def _is_valid(tree: Tree, metric: str, gate: object) -> bool:
    try:
        parse_params(tree | {"register": tree["register"] | {"gates": {metric: gate}}})
    except UserError:
        return False
    return True


def _rest(params: Params) -> Tree:
    """All that is not kept."""
    tree = to_tree(params)
    del tree["register"]["name"], tree["register"]["gates"], tree["tracking"]["experiment"], tree["judges"][0]["name"]
    return tree | {"data": tree["data"]["image_size"]}


def _keep(file: Path) -> Path:
    """A second name for the file, one that nothing has yet."""
    number = 1
    while True:
        kept = file.with_name(f"{file.name}.old-{number}")
        try:
            os.link(file.resolve(), kept)
        except FileExistsError:
            number += 1
        else:
            return kept
