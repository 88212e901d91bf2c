"""The lock of promotions on a real store: one winner among processes, dead owners, interruptions. As a script, this file takes it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import support

from sfd.errors import UserError
from sfd.registry import lock
from sfd.registry.load import open_registry
from sfd.registry.lock import promotion_lock
from sfd.workspace import Workspace

HERE = Workspace(Path())

NAME = "digits"
LOCK = "digits.promotion"


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty store with its tables, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    support.give_store(tmp_path / "mlflow.db")


def names() -> list[str]:
    with open_registry(HERE) as registry:
        return sorted(model.name for model in registry.search_registered_models())


def hold(**changes: str) -> None:
    """A lock that somebody left."""
    with open_registry(HERE) as registry:
        registry.create_registered_model(LOCK, tags=lock._describe_myself() | changes)


def dead_pid() -> str:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return str(process.pid)


def test_the_lock_is_there_for_the_block_alone_whatever_ends_it() -> None:
    with promotion_lock(HERE, NAME):
        assert names() == [LOCK]
    assert names() == []
    with pytest.raises(KeyboardInterrupt), promotion_lock(HERE, NAME):
        raise KeyboardInterrupt
    assert names() == []


def test_another_promotion_is_named_with_what_to_do_if_it_is_gone() -> None:
    hold(who="ada@far", machine="another host", since="2026-01-02T03:04:05Z", pid="77")
    with pytest.raises(UserError) as refused, promotion_lock(HERE, NAME):
        pytest.fail("two hold the lock")
    for part in ("ada@far", "process 77", "2026-01-02T03:04:05Z", f"delete the registered model `{LOCK}`"):
        assert part in str(refused.value)
    assert names() == [LOCK], "it stays its owner's"


def test_a_living_process_of_this_machine_keeps_its_lock() -> None:
    hold()
    with pytest.raises(UserError, match="another promotion is going on"), promotion_lock(HERE, NAME):
        pytest.fail("two hold the lock")


def test_the_lock_of_a_dead_process_of_this_machine_is_taken_over_and_of_another_machine_not() -> None:
    hold(pid=dead_pid())
    with promotion_lock(HERE, NAME):
        assert names() == [LOCK]
    assert names() == []
    hold(pid=dead_pid(), machine="another host")
    with pytest.raises(UserError, match="another promotion is going on"), promotion_lock(HERE, NAME):
        pytest.fail("two hold the lock")


def test_who_looked_too_late_does_not_remove_the_lock_of_a_quicker_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dead owner is read, then another process takes the lock over, then this one goes on."""
    stale = lock._describe_myself() | {"pid": dead_pid()}
    hold()
    answers = [stale]
    read = lock._read
    monkeypatch.setattr(lock, "_read", lambda registry, name: answers.pop() if answers else read(registry, name))
    with open_registry(HERE) as registry, pytest.raises(UserError, match="another promotion is going on"):
        lock._take_over(registry, LOCK, lock._describe_myself())
    assert names() == [LOCK]


@pytest.mark.parametrize(
    "is_left", [pytest.param(False, id="free", marks=pytest.mark.long), pytest.param(True, id="left by a dead process")]
)
def test_of_processes_that_start_together_exactly_one_gets_the_lock(is_left: bool) -> None:
    if is_left:
        hold(pid=dead_pid())
    given = support.script_environment() | {"MLFLOW_TRACKING_URI": os.environ["MLFLOW_TRACKING_URI"]}
    workers = [
        subprocess.Popen(["python", __file__], env=given, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for worker in workers:
        assert worker.stdout is not None and worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    said = [worker.stdout.readline().split(" (")[0].strip() for worker in workers if worker.stdout is not None]
    for worker in workers:
        worker.communicate("done\n")
    assert sorted(said) == ["another promotion is going on", "another promotion is going on", "won"]
    assert names() == []


def main() -> None:
    """Takes the lock when told to, says how that went, and holds it until told to stop."""
    with open_registry(HERE) as registry:
        registry.search_registered_models()
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        with promotion_lock(HERE, NAME):
            print("won", flush=True)
            sys.stdin.readline()
    except UserError as error:
        print(error, flush=True)
        sys.stdin.readline()


if __name__ == "__main__":
    main()
