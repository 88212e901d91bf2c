"""The processes of one job, started by torchrun or a scheduler: who they are, how they wait, and how they end together."""

import hashlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

WAIT = timedelta(hours=2)
"""How long a process waits for the others in a collective.

Process 0 alone hashes inputs, draws previews, writes checkpoints and publishes, which may outlast torch's own 10 to 30 minutes. A process
that dies is noticed in seconds all the same: by its launcher, which ends the others, or by its closed connection.
"""

RESEND_S = 0.05
"""Until a SIGTERM that arrived in a destructor is sent again."""


def rank() -> int:
    """This process's number in its job; 0 when alone."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Processes of the job; 1 when alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def processes_here() -> int:
    """Processes of the job on this machine; 1 when alone."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def cores() -> int:
    """Processor cores that this process may use: an equal share of those that are open to the job on this machine, at least 1."""
    # Not everywhere can a process be bound to cores.
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, found // processes_here())


def inference_device() -> "torch.device":
    """The device of this process: its GPU on its machine, or the CPU."""
    import torch

    return (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if torch.cuda.is_available()
        else torch.device("cpu")
    )


def form_group() -> None:
    """Makes the processes of the job known to one another, once; nothing when alone."""
    if world_size() > 1:
        import torch
        from accelerate import PartialState

        # Left to itself, accelerate forms no group of processes where there is no GPU, and says nothing.
        PartialState(cpu=not torch.cuda.is_available(), timeout=WAIT)


def barrier() -> None:
    """Waits for all processes; nothing when alone."""
    if world_size() > 1:
        from accelerate import PartialState

        form_group()
        PartialState().wait_for_everyone()


def claim_message(message: str) -> bool:
    """True in exactly one process per message, so that a shared error prints once."""
    if world_size() == 1:
        return True
    from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]  # it is public, and not declared so

    digest = hashlib.sha256(message.encode()).hexdigest()
    try:
        store = TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timedelta(seconds=5)
        )
        return bool(store.add(f"sfd/said/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{digest}", 1) == 1)
    except DistError:  # the process that keeps the store has ended: two prints are better than none
        return True


def is_lost_peer(error: RuntimeError) -> bool:
    """Whether a collective failed because another process of the job has ended. Gloo's errors have no type of their own."""
    if world_size() == 1:
        return False
    from torch.distributed import DistError

    return isinstance(error, DistError) or "gloo" in str(error).lower()


SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""What ends a program in an orderly way: a scheduler's signal, and Ctrl-C."""


_ending = threading.Event()
"""Set while a :class:`Terminated` unwinds the stack."""


class Terminated(SystemExit):
    """SIGTERM or Ctrl-C came: unwinds the stack, so that locks are released and work is kept. The status is 143 or 130."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__(128 + number)
        self.number = number
        _ending.set()


class _Held(threading.local):
    """Of each thread, though only the main one gets signals: how many blocks of :func:`in_one_piece` it is in, and the first signal since."""

    blocks = 0
    number: int | None = None


_held = _Held()


@contextmanager
def in_one_piece() -> Iterator[None]:
    """A signal within the block raises :class:`Terminated` at its end instead: for what must not be left halfway, as a transaction."""
    _held.blocks += 1
    try:
        yield
    finally:
        _held.blocks -= 1
        if not _held.blocks and _held.number is not None:
            number, _held.number = _held.number, None
            raise Terminated(number)


def say_at_once(line: str) -> None:
    """Prints a line on stderr from a signal's handler, which may have come in the middle of another print; in process 0 alone."""
    if rank() == 0:
        with suppress(OSError):  # nobody reads it
            # On a terminal, the cursor stands behind `^C` or a progress bar.
            os.write(2, f"{os.linesep * os.isatty(2)}{line}\n".encode())


@contextmanager
def handled(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """The handler of SIGTERM and of Ctrl-C in the block; what a shell has ignored, as it does in the background, stays so."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)


@contextmanager
def terminable(said: str = "interrupted") -> Iterator[None]:
    """SIGTERM and Ctrl-C raise :class:`Terminated` in the block, once; later signals are ignored. Ctrl-C prints ``said``.

    Within :func:`in_one_piece` they wait for its end.

    After the block the previous handlers are back. By default the process then ends at once and prints nothing, even if the interpreter
    is shutting down. Python may run a handler inside a destructor, which cannot pass an exception on and would print it: then the
    signal is sent again a moment later.
    """
    hook, lines = sys.unraisablehook, [said]
    _ending.clear()
    _held.number = None

    def terminate(number: int, _frame: object) -> None:
        if _ending.is_set():
            return
        if number == signal.SIGINT and lines:
            say_at_once(lines.pop())
        if not _held.blocks:
            raise Terminated(number)
        _held.number = number

    def send(number: int) -> None:
        _ending.clear()
        os.kill(os.getpid(), number)

    def send_again(unraisable: "sys.UnraisableHookArgs") -> None:
        ending = unraisable.exc_value
        if not isinstance(ending, Terminated):
            hook(unraisable)
            return
        threading.Timer(RESEND_S, send, (ending.number,)).start()

    with handled(terminate):
        sys.unraisablehook = send_again
        try:
            yield
        finally:
            sys.unraisablehook = hook


@contextmanager
def undisturbed_end() -> Iterator[None]:
    """From the end of the block to the end of :func:`terminable`, signals are ignored: locks are released and errors are printed."""
    try:
        yield
    finally:
        for number in SIGNALS:
            signal.signal(number, _ignore)


def _ignore(_signal: int, _frame: object) -> None:
    """A handler that does nothing. Unlike ``SIG_IGN`` it is not inherited by the programs that this process starts."""


def is_alive(pid: int) -> bool:
    """Whether a process with this number runs on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives, and is another user's
        pass
    return True
