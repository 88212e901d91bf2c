"""A lock for promotions that holds across machines.

MLflow moves an alias without comparing its old value, but the name of a registered model is unique. So a promotion creates a registered
model ``NAME.promotion`` and deletes it at its end: of two processes that create it, exactly one succeeds.
"""

import os
import platform
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from sfd.errors import UserError
from sfd.params import LOCK_ENDING
from sfd.processes import is_alive, terminable, undisturbed_end
from sfd.registry.load import open_registry
from sfd.tracking.run import user_name
from sfd.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient

Owner = dict[str, str]


def who() -> str:
    """User and host, for records."""
    return f"{user_name()}@{platform.node()}"


def now() -> str:
    """The time for records, UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@contextmanager
def promotion_lock(workspace: Workspace, name: str) -> Iterator[None]:
    """Holds the lock of a model for the block. Ctrl-C and SIGTERM release it. The lock of a dead process of this machine is taken over.

    Raises:
        UserError: another promotion holds it, or the store does not answer.
    """
    lock, owner = name + LOCK_ENDING, _describe_myself()
    with terminable():
        try:
            with undisturbed_end():
                with open_registry(workspace) as registry:
                    if not _create(registry, lock, owner):
                        _take_over(registry, lock, owner)
                yield
        finally:
            with open_registry(workspace) as registry:
                if _read(registry, lock).get("token") == owner["token"]:
                    registry.delete_registered_model(lock)


def _describe_myself() -> Owner:
    return {"token": uuid.uuid4().hex, "who": who(), "since": now(), "machine": _machine(), "pid": str(os.getpid())}


def _machine() -> str:
    """Where a process id is valid: host, boot and PID namespace. Containers may share the name of a host."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    parts = [platform.node()]
    if boot.is_file():
        parts += [boot.read_text(encoding="ascii").strip(), os.readlink(namespace)]
    return " ".join(parts)


def _create(registry: "MlflowClient", lock: str, owner: Owner) -> bool:
    """Creates the registered model. True also if an earlier try of this process, whose answer was lost, created it."""
    from mlflow import MlflowException

    try:
        registry.create_registered_model(lock, tags=owner, description="Held while `sfd models promote` runs.")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # another process deleted it before MLflow could describe it
            return _create(registry, lock, owner)
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return _read(registry, lock).get("token") == owner["token"]
    return True


def _read(registry: "MlflowClient", lock: str) -> Owner:
    """Who holds the lock; empty if nobody does."""
    from mlflow import MlflowException

    try:
        return dict(registry.get_registered_model(lock).tags)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return {}


def _take_over(registry: "MlflowClient", lock: str, owner: Owner) -> None:
    """Removes the lock of a dead process and takes it. Raises :class:`UserError` if the owner lives or another process was quicker.

    Only the holder of a second lock, named after the dead owner, may remove the owner's lock, and it checks the owner again before.
    So no process removes a lock that was taken in the meantime.
    """
    other = _read(registry, lock)
    if other and (other.get("machine") != owner["machine"] or is_alive(int(other["pid"]))):
        raise UserError(_describe_refusal(lock, other))
    if other:
        removal = f"{lock}.{other['token'][:8]}"
        if not _create(registry, removal, owner):
            raise UserError(_describe_refusal(lock, other))
        try:
            if _read(registry, lock).get("token") == other["token"]:
                registry.delete_registered_model(lock)
        finally:
            registry.delete_registered_model(removal)
    if not _create(registry, lock, owner):
        raise UserError(_describe_refusal(lock, _read(registry, lock)))


def _describe_refusal(lock: str, other: Owner) -> str:
    holder = (
        f"{other.get('who', 'somebody')}, process {other.get('pid', 'unknown')}, since {other.get('since', 'just now')}"
    )
    return (
        f"another promotion is going on ({holder}); wait for it. If that process is gone, delete the registered model `{lock}` "
        "in MLflow (`mlflow ui`, Models), then try again"
    )
