"""The processes of one job, started by torchrun or a scheduler: who they are, how they wait, and how they end together."""

import hashlib
import os
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

WAIT = timedelta(hours=2)
"""How long a process waits for the others in a collective.

Process 0 alone hashes inputs, draws previews, writes checkpoints and publishes, which may outlast torch's own 10 to 30 minutes. A process
that dies is noticed in seconds all the same: by its launcher, which ends the others, or by its closed connection.
"""


def rank() -> int:
    """This process's number in its job; 0 when alone."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Processes of the job; 1 when alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


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


def is_first_to_say(message: str) -> bool:
    """Whether no other process of the job has asked this of the same message: what all find wrong is printed once."""
    if world_size() == 1:
        return True
    from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]  # it is public, and not declared so

    digest = hashlib.sha256(message.encode()).hexdigest()
    try:
        store = TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timedelta(seconds=5)
        )
        return bool(store.add(f"sfd/said/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{digest}", 1) == 1)
    except DistError:  # the process that keeps the store has ended: rather twice than never
        return True


def is_lost_peer(error: RuntimeError) -> bool:
    """Whether a collective failed because another process of the job has ended. Gloo's errors have no type of their own."""
    if world_size() == 1:
        return False
    from torch.distributed import DistError

    return isinstance(error, DistError) or "gloo" in str(error).lower()
