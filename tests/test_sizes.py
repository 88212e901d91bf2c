"""The code stays readable: short files, short functions, and a docstring on everything public."""

import ast
from collections.abc import Iterator
from pathlib import Path

from support import REPOSITORY

MAX_FILE_LINES, MAX_FUNCTION_LINES = 450, 59
TREES = {file: ast.parse(file.read_text(encoding="utf-8")) for file in (REPOSITORY / "src" / "sfd").rglob("*.py")}
Function = ast.FunctionDef | ast.AsyncFunctionDef
NODES = [(file, node) for file, tree in TREES.items() for node in ast.walk(tree)]
CLASSES = {node.name: node for _, node in NODES if isinstance(node, ast.ClassDef)}


PROTOCOLS = [
    owner
    for owner in CLASSES.values()
    if any(isinstance(base, ast.Name) and base.id == "Protocol" for base in owner.bases)
]


def named(file: Path, node: Function | ast.ClassDef) -> str:
    return f"{file.relative_to(REPOSITORY)}:{node.lineno} {node.name}"


def public(body: list[ast.stmt]) -> list[Function | ast.ClassDef]:
    return [node for node in body if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_")]


def inherits_docstring(owner: ast.ClassDef, method: str) -> bool:
    """Whether a base class or a protocol of ours describes the method."""
    bases = [CLASSES[base.id] for base in owner.bases if isinstance(base, ast.Name) and base.id in CLASSES] or PROTOCOLS
    described = [node.name for base in bases for node in public(base.body) if ast.get_docstring(node)]
    return method in described or any(inherits_docstring(base, method) for base in bases if base not in PROTOCOLS)


def undescribed(file: Path, tree: ast.Module) -> Iterator[str]:
    for node in public(tree.body):
        if ast.get_docstring(node) is None:
            yield named(file, node)
        if isinstance(node, ast.ClassDef):
            for method in public(node.body):
                if ast.get_docstring(method) is None and not inherits_docstring(node, method.name):
                    yield named(file, method)


def test_no_file_is_longer_than_the_limit() -> None:
    lengths = {str(file): len(file.read_text(encoding="utf-8").splitlines()) for file in TREES}
    assert {file: length for file, length in lengths.items() if length > MAX_FILE_LINES} == {}


def test_no_function_has_sixty_lines_or_more() -> None:
    lengths = {
        named(file, node): (node.end_lineno or 0) - node.lineno + 1
        for file, node in NODES
        if isinstance(node, Function)
    }
    assert {name: length for name, length in lengths.items() if length > MAX_FUNCTION_LINES} == {}


def test_everything_public_has_a_docstring_or_that_of_its_base_class() -> None:
    assert [name for file, tree in TREES.items() for name in undescribed(file, tree)] == []
