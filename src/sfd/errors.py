"""What users are told: the one exception that they meet, and warnings. Neither holds a password."""

import errno
import io
import os
import re
import shutil
import sys
import traceback
from pathlib import Path
from types import TracebackType

SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "PGPASSWORD", "SFD_TOKEN", "AWS_SECRET_ACCESS_KEY")
"""Variables of the environment whose values are never printed or stored."""
SHORTEST_SECRET = 6
"""Characters. A shorter value could be part of any text."""
HIDDEN = "***"

_secrets: set[str] = set()
_USER = re.compile(r"(://[^\s:@/]*):(?!\$\{\w+\}@)\S*@")  # the name of a variable is no secret
_OPTION = re.compile(r"([?&][^\s=&]*(?:password|token|secret)[^\s=&]*=)[^\s&]*", re.IGNORECASE)


def keep_secret(value: str) -> None:
    """Hides a password that came from elsewhere than :data:`SECRETS` in all that is printed or stored from now on."""
    if len(value) >= SHORTEST_SECRET:
        _secrets.add(value)


def redact(text: str) -> str:
    """``text`` with ``***`` in place of passwords: those in addresses, those of :data:`SECRETS`, those that :func:`keep_secret` knows."""
    text = _OPTION.sub(rf"\1{HIDDEN}", _USER.sub(rf"\1:{HIDDEN}@", text))
    for secret in (*_secrets, *(os.environ.get(name, "") for name in SECRETS)):
        if len(secret) >= SHORTEST_SECRET:
            text = text.replace(secret, HIDDEN)
    return text


class UserError(Exception):
    """A mistake that the user can correct. Its message names the rule, the value and the remedy, in one line, and no password.

    Entry points (CLI and stages) print it as ``error: MESSAGE`` and exit with status 2; nobody sees a traceback.
    """

    def __init__(self, message: str) -> None:
        super().__init__(redact(message))


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
    print(f"warning: {redact(message)}", file=sys.stderr, flush=True)


def hide_in_tracebacks() -> None:
    """From now on a traceback that this process prints shows no password either."""
    sys.excepthook = _print_redacted


def _print_redacted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))
