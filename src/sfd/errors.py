"""What users are told: the one exception that they meet, and warnings."""

import errno
import io
import os
import shutil
import sys
from pathlib import Path


class UserError(Exception):
    """A mistake that the user can correct. Its message names the rule, the value and the remedy, in one line.

    Entry points (CLI and stages) print it as ``error: MESSAGE`` and exit with status 2; nobody sees a traceback.
    """


FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FULL_TEXTS = (*map(os.strerror, FULL), "database or disk is full")


def full_disk(error: BaseException | None) -> str | None:
    """Why a file could not be written, if a full disk (or a quota, or a limit on files) is behind the error; else None.

    Libraries raise errors of their own: some have the system's error as their cause, others quote it.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return os.strerror(error.errno)
        for text in FULL_TEXTS:
            if text in str(error):
                return text
        error = error.__cause__ or error.__context__
    return None


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


def in_one_line(error: Exception, folder: Path) -> str | None:
    """What entry points print of an error that is no fault of the code; None for others. ``folder``: where files are written."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, UnicodeEncodeError):
        return foreign_name(error)
    full = full_disk(error)
    if full is None:
        return None
    if isinstance(error.__context__, UserError):  # it has said why; then not even the end could be recorded
        return str(error.__context__)
    named = error.filename if isinstance(error, OSError) and error.filename else f"a file below {folder.absolute()}"
    return f"{named} cannot be written ({full}): {describe_free(folder)} are free there; make room, and the same command continues"


def describe_free(folder: Path) -> str:
    """How much of a folder's disk is free."""
    return f"{shutil.disk_usage(folder).free / 2**30:.2f} GiB"


def warn(message: str) -> None:
    """Prints one line ``warning: MESSAGE`` on stderr."""
    print(f"warning: {message}", file=sys.stderr, flush=True)
