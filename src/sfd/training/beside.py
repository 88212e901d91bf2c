"""Work beside the steps of a training, in a thread of its own."""

import threading
from collections.abc import Callable
from concurrent.futures import Future


def beside(work: Callable[[], None]) -> "Future[None]":
    """Runs ``work`` in a thread. The result, when it is asked for, waits for the end and raises the error of the work.

    The thread does not hold up the end of the process. Start it after the processes that read batches: a process that is forked has no
    other threads, and would wait for ever for a lock that one of them held.
    """
    future: Future[None] = Future()

    def run() -> None:
        try:
            work()
            future.set_result(None)
        except BaseException as error:  # whatever it is, it is raised where the result is asked for
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
