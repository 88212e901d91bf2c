"""What users are told: the one exception that they meet, and warnings."""

import sys


class UserError(Exception):
    """A mistake that the user can correct. Its message names the rule, the value and the remedy, in one line.

    Entry points (CLI and stages) print it as ``error: MESSAGE`` and exit with status 2; nobody sees a traceback.
    """


def warn(message: str) -> None:
    """Prints one line ``warning: MESSAGE`` on stderr."""
    print(f"warning: {message}", file=sys.stderr, flush=True)
