"""Imported first by a program: until it can clean up (:func:`sfd.processes.terminable`), Ctrl-C ends it at once, without a traceback.

Imports of torch may take a minute on a shared disk, and Python shows where in them it was interrupted.
"""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a shell has it ignored, in the background
    signal.signal(signal.SIGINT, signal.SIG_DFL)
