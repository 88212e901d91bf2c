"""What users are told: the one exception that they meet, and warnings."""

import io
import sys


class UserError(Exception):
    """A mistake that the user can correct. Its message names the rule, the value and the remedy, in one line.

    Entry points (CLI and stages) print it as ``error: MESSAGE`` and exit with status 2; nobody sees a traceback.
    """


def foreign_name(error: UnicodeEncodeError) -> str:
    """The sentence for a name or a text that this Python cannot write. Entry points print it, as they print a :class:`UserError`."""
    encoding, text = sys.getfilesystemencoding(), ascii(error.object[max(error.start - 20, 0) : error.end + 20])
    if encoding != "utf-8":
        return f"this Python reads and writes names as {encoding}, which does not hold {text}; set PYTHONUTF8=1"
    return f"a name is not valid UTF-8, as in {text}; rename that file or folder"


def print_any_name() -> None:
    """Lets stdout replace what it cannot write, as stderr does: names that are not UTF-8, and others where the locale is ASCII."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def warn(message: str) -> None:
    """Prints one line ``warning: MESSAGE`` on stderr."""
    print(f"warning: {message}", file=sys.stderr, flush=True)
