"""What users are told: the one exception that they meet, and warnings."""

import errno
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


def describe_free(folder: Path) -> str:
    """How much of a folder's disk is free."""
    return f"{shutil.disk_usage(folder).free / 2**30:.2f} GiB"


def warn(message: str) -> None:
    """Prints one line ``warning: MESSAGE`` on stderr."""
    print(f"warning: {message}", file=sys.stderr, flush=True)
