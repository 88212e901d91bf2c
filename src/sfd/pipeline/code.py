"""What code a stage's result depends on: the modules of sfd that its body imports, and the versions of the libraries that decide numbers."""

import ast
import hashlib
import json
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path

from sfd import names
from sfd.errors import UserError

PACKAGE = "sfd"
WITHOUT_EFFECT = (
    "sfd.errors",
    "sfd.names",
    "sfd.params",
    "sfd.pipeline.code",
    "sfd.pipeline.inputs",
    "sfd.pipeline.quality",
    "sfd.pipeline.stage",
    "sfd.pipeline.work",
    "sfd.tracking",
)
"""Packages and modules that no stage is made again for. They word messages, record what was done, say when a stage runs and where, and say
which options and names there are. Options count by their values, and a table of names by the modules that it names."""
LIBRARIES = {
    "PIL": "pillow",
    "accelerate": "accelerate",
    "diffusers": "diffusers",
    "numpy": "numpy",
    "peft": "peft",
    "scipy": "scipy",
    "simplejpeg": "simplejpeg",
    "sklearn": "scikit-learn",
    "timm": "timm",
    "tokenizers": "tokenizers",
    "torch": "torch",
    "torch_fidelity": "torch-fidelity",
    "torchdiffeq": "torchdiffeq",
    "torchvision": "torchvision",
    "transformers": "transformers",
}
"""The libraries that decide numbers, by the name that is imported."""

Code = dict[str, str]
"""Module to the sha256 of its source, and library to its version."""


def write_code(file: Path, code: Code) -> None:
    """Writes the record that DVC watches, one line per module."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(code, indent=2) + "\n", encoding="utf-8")


def scanned_code(file: Path) -> Code | None:
    """What :func:`write_code` wrote; None if nothing was written."""
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


class Imports:
    """Who imports whom, from the source: nothing is run."""

    def __init__(self) -> None:
        """Raises :class:`UserError` if a module is not valid Python."""
        import grimp
        from grimp.exceptions import SourceSyntaxError

        try:
            self.graph = grimp.build_graph(
                PACKAGE, include_external_packages=True, exclude_type_checking_imports=True, cache_dir=None
            )
        except SourceSyntaxError as error:
            raise UserError(f"{error.filename}, line {error.lineno}: this is not Python; correct it") from None
        self.imported: dict[str, list[str]] = {}
        self.versions: dict[str, str] = {}
        tables = {name: table for name, table in vars(names).items() if isinstance(table, dict)}
        self.tables = {
            name: [entry.path.partition(":")[0] for entry in table.values()]
            for name, table in tables.items()
            if table and all(isinstance(entry, names.Entry) for entry in table.values())
        }

    def code(self, roots: Iterable[str]) -> Code:
        """The modules that these ones import, however indirectly, and the libraries.

        Imports within functions count, those for types alone do not.

        Raises:
            UserError: a table of names has an entry without a module.
        """
        modules, waiting = set[str](), list(roots)
        while waiting:
            module = waiting.pop()
            if module not in modules:
                modules.add(module)
                if module not in self.imported:
                    self.imported[module] = self._imported_by(module)
                waiting += self.imported[module]
        own = {module: _digest(module) for module in sorted(modules - LIBRARIES.keys())}
        return own | {name: self._version(name) for name in sorted(modules & LIBRARIES.keys())}

    def _version(self, name: str) -> str:
        """Looked up once: a lookup costs as much as digests of hundreds of modules."""
        if name not in self.versions:
            self.versions[name] = version(LIBRARIES[name])
        return self.versions[name]

    def _imported_by(self, module: str) -> list[str]:
        """What a module imports, the packages that it lies in, and what the tables name that it uses; nothing without effect."""
        if module in LIBRARIES:
            return []
        found = [*self.graph.find_modules_directly_imported_by(module), *_packages(module)]
        if names.__name__ in found:
            found += [implementation for table in self._tables_in(module) for implementation in self.tables[table]]
        counting = [name for name in found if self._counts(name)]
        for name in counting:
            if name not in self.graph.modules:
                raise UserError(
                    f"there is no module {name}, but a table in {names.__file__} names it; correct the entry"
                )
        return counting

    def _counts(self, module: str) -> bool:
        if module.partition(".")[0] != PACKAGE:
            return module in LIBRARIES
        return not f"{module}.".startswith(tuple(f"{name}." for name in WITHOUT_EFFECT))

    def _tables_in(self, module: str) -> Iterator[str]:
        """The tables of names that a module's code mentions."""
        for node in ast.walk(ast.parse(_source(module))):
            name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
            if name in self.tables:
                yield name


def code_now(code: Code) -> Code:
    """The same modules and libraries as they are now.

    Which ones belong to a stage follows from the sources of those that do. So this finds each change since ``code`` was found in this process,
    in a small part of the time.

    Raises:
        UserError: a module is not there any more.
    """
    try:
        return {name: version(LIBRARIES[name]) if name in LIBRARIES else _digest(name) for name in code}
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from None


def _digest(module: str) -> str:
    return hashlib.sha256(_source(module)).hexdigest()


def _source(module: str) -> bytes:
    place = Path(__file__).parents[1].joinpath(*module.split(".")[1:])
    return (place / "__init__.py" if place.is_dir() else place.with_suffix(".py")).read_bytes()


def _packages(module: str) -> list[str]:
    """The packages around a module, whose code is run when it is imported."""
    parts = module.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]
