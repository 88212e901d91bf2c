"""What the documentation shows: blocks of code, and the simple commands in a block of bash."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

REFUSED = "Refused, with exit status 1"
"""The title of a block whose command must fail."""

_OPERATORS = {"&&", "||", "|", ";", "(", ")"}


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    page: Path
    language: str
    title: str
    text: str

    @property
    def is_refused(self) -> bool:
        """Whether the page says that the block's command fails."""
        return self.title == REFUSED


def tokens(page: Path) -> list[Token]:
    """A page as a Markdown parser sees it."""
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def blocks(page: Path, language: str) -> list[Block]:
    """The fenced blocks of one language, in order."""
    found = []
    for token in tokens(page):
        name, _, rest = token.info.partition(" ")
        if token.type == "fence" and name == language:
            title = re.search(r'title="([^"]*)"', rest)
            found.append(Block(page, name, title[1] if title else "", token.content))
    return found


def commands_of(page: Path, title: str) -> list[list[str]]:
    """The words of each command in the blocks of bash with one title. Raises :class:`ValueError` if there is no such block."""
    titled = [block for block in blocks(page, "bash") if block.title == title]
    if not titled:
        raise ValueError(f"{page} has no block `{title}`")
    return [words for block in titled for words in simple_commands(block.text)]


def spans(page: Path) -> list[str]:
    """The texts in backticks."""
    inline = [child for token in tokens(page) for child in token.children or []]
    return [child.content for child in inline if child.type == "code_inline"]


def simple_commands(script: str) -> Iterator[list[str]]:
    """The words of each simple command, without comments, redirections and assignments before it."""
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        command: list[str] = []
        for word in [*lexer, ";"]:
            if word not in _OPERATORS:
                command.append(word)
                continue
            command = _without_redirections(command)
            while command and re.match(r"^[A-Z_]+=", command[0]):
                del command[0]
            if command:
                yield command
            command = []


def _without_redirections(words: list[str]) -> list[str]:
    kept, is_target = [], False
    for word in words:
        if not is_target and word not in (">", ">>", "<"):
            kept.append(word)
        is_target = word in (">", ">>", "<")
    return kept
