"""The one exception that users meet."""


class UserError(Exception):
    """A mistake that the user can mend. Its message names the rule, the value and the remedy, in one line.

    Entry points (CLI and stages) print it as ``error: MESSAGE`` and exit with status 2; nobody sees a traceback.
    """
