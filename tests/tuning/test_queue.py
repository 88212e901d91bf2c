"""The queue with real worker processes, on SQLite, on a journal file, and on a PostgreSQL server."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, Trial, TrialState
from postgres import postgres_server
from support import own_time, wait_until

import sfd.seeding  # noqa: F401  (with torch once, here, instead of in every child)
from sfd.errors import UserError, redact
from sfd.params import TuneParams
from sfd.processes import terminable
from sfd.tuning import queue as tuning_queue
from sfd.tuning.queue import INTERRUPTED, LOST, Queue, run
from sfd.tuning.storage import check_storage, expand, open_storage

# A fork has Optuna and torch imported already; a fresh interpreter would need seconds for them.
FORK = multiprocessing.get_context("fork")
FOREVER = float("inf")
Objective = Callable[[Trial], list[float]]


@pytest.fixture(autouse=True)
def poll_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning_queue, "POLL_S", 0.1)


@pytest.fixture(params=["sqlite", "journal"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/study.db" if request.param == "sqlite" else f"journal://{tmp_path}/study.log"


@pytest.fixture
def journal(tmp_path: Path) -> str:
    """Where the storage does not matter: the quicker one."""
    return f"journal://{tmp_path}/study.log"


@pytest.fixture
def database(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/study.db"


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with postgres_server() as url:
        yield url


def tune(storage: str, **changes: Any) -> TuneParams:
    values = {"study": "test", "kind": "sampling", "storage": storage, "heartbeat_seconds": 1}
    return TuneParams.model_validate(values | {"space": {"x": {"low": -1.0, "high": 1.0}}} | changes)


def create(storage: str, **changes: Any) -> Queue:
    return Queue.create(tune(storage, **changes), 7, ["minimize"], 8)


def join(storage: str) -> Queue:
    return Queue.join(tune(storage), 7, 8)


def hasty(storage: str) -> Queue:
    """An observer that gives a trial up after 2 s, where all running trials are dead anyway."""
    return Queue.join(tune(storage).model_copy(update={"heartbeat_seconds": 0.5}), 7, 8)


def prepared(storage: str, trials: int) -> None:
    create(storage).fill(trials)


def square(trial: Trial) -> list[float]:
    return [trial.suggest_float("x", -1.0, 1.0) ** 2]


def slow_square(trial: Trial) -> list[float]:
    time.sleep(0.05)
    return square(trial)


def stuck(trial: Trial) -> list[float]:
    values = square(trial)
    time.sleep(60)
    return values


def work(storage: str, objective: Objective) -> None:
    """What a worker process does."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a test run in the background
    run(join(storage), objective, FOREVER)


def start(storage: str, objective: Objective) -> BaseProcess:
    process = FORK.Process(target=work, args=(storage, objective), daemon=True)
    process.start()
    return process


def finish(*processes: BaseProcess) -> list[int | None]:
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def trials(storage: str) -> list[FrozenTrial]:
    return join(storage).trials()


def running(storage: str) -> list[FrozenTrial]:
    return [
        t for t in trials(storage) if t.state == TrialState.RUNNING and "x" in t.params and "heartbeat" in t.user_attrs
    ]


def slots(found: list[FrozenTrial], state: TrialState = TrialState.COMPLETE) -> list[int]:
    return sorted(trial.user_attrs["slot"] for trial in found if trial.state == state)


def kill_in_trial(storage: str) -> FrozenTrial:
    """Starts a worker, kills it in the middle of a trial, and gives that trial back as it was."""
    before = {trial.number for trial in running(storage)}
    process = start(storage, stuck)
    wait_until(lambda: len(running(storage)) > len(before), 60)
    (trial,) = (trial for trial in running(storage) if trial.number not in before)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return trial


def test_two_workers_share_the_budget_without_loss_or_double(storage: str) -> None:
    prepared(storage, 30)
    workers = [start(storage, slow_square), start(storage, slow_square)]
    assert finish(*workers) == [0, 0]
    found = trials(storage)
    assert slots(found) == list(range(30)) and len(found) == 30
    assert len({trial.user_attrs["worker"] for trial in found}) == 2
    assert all(trial.user_attrs["seconds"] > 0 and trial.user_attrs["heartbeat"] > 0 for trial in found)


def test_no_trial_is_taken_twice_however_fast_they_are(storage: str) -> None:
    prepared(storage, 40)
    taken = FORK.SimpleQueue()

    def take_all() -> None:
        queue = join(storage)
        waiting = [trial for trial in queue.trials() if trial.state == TrialState.WAITING]
        for number in [trial.number for trial in waiting if queue._take(trial)]:
            taken.put(number)

    processes = [FORK.Process(target=take_all) for _ in range(3)]
    for process in processes:
        process.start()
    assert finish(*processes) == [0, 0, 0]
    assert sorted(taken.get() for _ in range(40)) == list(range(40)) and taken.empty()


def test_workers_may_create_a_storage_at_the_same_time(storage: str) -> None:
    processes = [FORK.Process(target=prepared, args=(storage, 3)) for _ in range(4)]
    for process in processes:
        process.start()
    assert finish(*processes) == [0] * 4
    run(join(storage), square, FOREVER)
    assert slots(trials(storage)) == [0, 1, 2]


def check_kills(storage: str) -> None:
    prepared(storage, 3)
    first = kill_in_trial(storage)
    second = kill_in_trial(storage)  # takes slot 1, and is killed too, before the death of the first can be seen
    assert [first.user_attrs["slot"], second.user_attrs["slot"]] == [0, 1]
    run(hasty(storage), square, FOREVER)
    found = trials(storage)
    assert slots(found) == [0, 1, 2]
    for killed in (first, second):
        failed, repeated = (trial for trial in found if trial.user_attrs["slot"] == killed.user_attrs["slot"])
        assert failed.state == TrialState.FAIL and failed.user_attrs["reason"] == LOST
        assert repeated.params == failed.params == killed.params
        assert [repeated.user_attrs[key] for key in ("attempt", "after")] == [2, failed.number]


def test_a_killed_workers_trial_is_repeated_once_with_the_same_params(storage: str) -> None:
    check_kills(storage)


@pytest.mark.long
def test_a_killed_workers_trial_is_repeated_on_postgresql(postgres: str) -> None:
    check_kills(postgres)


def test_two_workers_share_the_budget_on_postgresql(postgres: str) -> None:
    work = tune(postgres, study="shared")
    Queue.create(work, 7, ["minimize"], 8).fill(12)
    processes = [FORK.Process(target=lambda: run(Queue.join(work, 7, 8), square, FOREVER)) for _ in range(2)]
    for process in processes:
        process.start()
    assert finish(*processes) == [0, 0]
    found = Queue.join(work, 7, 8).trials()
    assert slots(found) == list(range(12)) and len(found) == 12


def test_a_second_attempt_that_is_killed_is_not_repeated(journal: str) -> None:
    prepared(journal, 1)
    kill_in_trial(journal)
    observer = hasty(journal)
    wait_until(lambda: observer.pop() is None and len(trials(journal)) == 2, 60)
    assert [trial.user_attrs["attempt"] for trial in trials(journal)] == [1, 2]
    kill_in_trial(journal)
    run(observer, square, FOREVER)
    observer.fill(1)
    assert observer.counts() == {"FAIL": 2}


def test_a_lost_trial_is_repeated_even_if_its_observer_died_before_enqueuing(journal: str) -> None:
    prepared(journal, 1)
    worker = join(journal)
    trial = worker.pop()
    assert trial is not None
    square(trial)
    worker._finish(trial.number, TrialState.FAIL, reason=LOST)
    assert join(journal).pop() is None
    lost, repeated = trials(journal)
    assert [(t.state.name, t.user_attrs["attempt"]) for t in (lost, repeated)] == [("FAIL", 1), ("WAITING", 2)]
    assert repeated.system_attrs["fixed_params"] == lost.params != {}


def test_a_repetition_that_two_observers_enqueued_is_done_once(journal: str) -> None:
    prepared(journal, 1)
    worker = join(journal)
    trial = worker.pop()
    assert trial is not None
    worker._finish(trial.number, TrialState.FAIL, reason=LOST)
    lost = worker.trials()[0]
    for _ in range(2):
        worker._repeat(lost, 2)
    run(worker, square, FOREVER)
    assert [t.state.name for t in trials(journal)] == ["FAIL", "COMPLETE", "FAIL"]
    assert trials(journal)[2].user_attrs["reason"] == "withdrawn: the same work as trial 1"
    assert worker.counts() == {"FAIL": 1, "COMPLETE": 1, "WITHDRAWN": 1}


def test_a_slow_worker_that_beats_is_not_given_up(database: str) -> None:
    prepared(database, 1)
    process = start(database, lambda trial: (time.sleep(5), square(trial))[1])
    wait_until(lambda: slots(trials(database), TrialState.RUNNING) == [0], 60)
    run(join(database), square, FOREVER)
    assert finish(process) == [0]
    assert join(database).counts() == {"COMPLETE": 1}


def test_a_stalled_worker_stores_nothing_after_its_trial_was_given_up(database: str) -> None:
    prepared(database, 1)

    def stalling(trial: Trial) -> list[float]:
        square(trial)
        time.sleep(0.5)  # between two heartbeats, so that it holds no lock
        os.kill(os.getpid(), signal.SIGSTOP)
        trial.set_user_attr("alive", True)  # raises, for the trial is another's
        return [1.0]

    process = start(database, stalling)
    wait_until(lambda: bool(running(database)), 60)
    run(hasty(database), square, FOREVER)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGCONT)
    assert finish(process) == [0]
    assert [t.state.name for t in trials(database)] == ["FAIL", "COMPLETE"]
    assert trials(database)[0].user_attrs["reason"] == LOST
    assert "alive" not in trials(database)[0].user_attrs


def interrupted_in(slot: int) -> Objective:
    return lambda trial: stuck(trial) if trial.user_attrs["slot"] == slot else square(trial)


def interrupt_in_trial(storage: str, slot: int) -> None:
    process = start(storage, interrupted_in(slot))
    wait_until(lambda: slots(running(storage), TrialState.RUNNING) == [slot], 60)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    assert finish(process) == [1]


def test_ctrl_c_keeps_finished_trials_and_the_same_command_completes_the_budget(storage: str) -> None:
    prepared(storage, 5)
    interrupt_in_trial(storage, 2)
    before = trials(storage)
    assert slots(before) == [0, 1]
    assert before[2].state == TrialState.FAIL and before[2].user_attrs["reason"] == INTERRUPTED
    prepared(storage, 5)
    assert finish(start(storage, square)) == [0]
    found = trials(storage)
    assert slots(found) == list(range(5)) and found[:2] == before[:2]
    again = found[5]
    assert [again.user_attrs[key] for key in ("slot", "attempt", "after")] == [2, 1, 2]
    assert again.params == before[2].params
    assert again.datetime_start is not None and found[3].datetime_start is not None
    assert again.datetime_start < found[3].datetime_start  # slots in order, so that the history is the same


def proposals(storage: str) -> dict[int, float]:
    return {t.user_attrs["slot"]: t.params["x"] for t in trials(storage) if t.state == TrialState.COMPLETE}


def test_proposals_depend_on_the_seed_and_the_history_alone(tmp_path: Path) -> None:
    whole, again, parts, other = (f"journal://{tmp_path}/{name}.log" for name in ("whole", "again", "parts", "other"))
    for url, seed in ((whole, 7), (again, 7), (other, 8)):
        queue = Queue.create(tune(url), seed, ["minimize"], 8)
        queue.fill(16)
        run(queue, square, FOREVER)
    for trials_done in (4, 11, 16):  # several runs, each of which completes a smaller budget
        queue = create(parts)
        queue.fill(trials_done)
        run(queue, square, FOREVER)
    assert len(proposals(whole)) == 16
    assert proposals(again) == proposals(whole)
    assert proposals(parts) == proposals(whole)
    assert proposals(other) != proposals(whole)


def test_an_interruption_changes_no_proposal_with_the_same_history(tmp_path: Path) -> None:
    whole, parts = f"journal://{tmp_path}/whole.log", f"journal://{tmp_path}/parts.log"
    for url in (whole, parts):
        prepared(url, 12)
    interrupt_in_trial(parts, 10)  # the first that TPE proposes
    prepared(parts, 12)
    for url in (whole, parts):
        run(join(url), square, FOREVER)
    repeated, original = proposals(parts), proposals(whole)
    assert {slot: repeated[slot] for slot in range(11)} == {slot: original[slot] for slot in range(11)}
    assert sorted(repeated) == list(range(12))


def ending(error: BaseException) -> Objective:
    def objective(trial: Trial) -> list[float]:
        if trial.user_attrs["slot"] == 0:
            raise error
        return square(trial)

    return objective


class OutOfMemoryError(RuntimeError):
    """Named like torch's."""


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (UserError("the loss is not\nfinite"), "FAIL", "the loss is not finite"),
        (OutOfMemoryError("12 GiB"), "FAIL", "OutOfMemoryError: 12 GiB"),
        (optuna.TrialPruned("worse than trial 3"), "PRUNED", "worse than trial 3"),
    ],
)
def test_a_trials_own_failure_is_stored_and_the_next_one_runs(
    journal: str, error: Exception, state: str, reason: str
) -> None:
    queue = create(journal)
    queue.fill(2)
    run(queue, ending(error), FOREVER)
    queue.fill(2)
    first, second = queue.trials()
    assert (first.state.name, first.user_attrs["reason"]) == (state, reason)
    assert second.state == TrialState.COMPLETE


def test_values_that_are_not_finite_are_a_failure(journal: str) -> None:
    queue = create(journal)
    queue.fill(1)
    run(queue, lambda _: [float("nan")], FOREVER)
    assert queue.trials()[0].user_attrs["reason"] == "its objectives are not finite: [nan]"


@pytest.mark.parametrize("error", [ZeroDivisionError("fault"), SystemExit(3)])
def test_a_fault_of_the_program_is_stored_and_loud(journal: str, error: BaseException) -> None:
    queue = create(journal)
    queue.fill(2)
    with pytest.raises(type(error)):
        run(queue, ending(error), FOREVER)
    reason = queue.trials()[0].user_attrs["reason"]
    assert reason == ("ZeroDivisionError: fault" if isinstance(error, ZeroDivisionError) else INTERRUPTED)
    assert queue.counts() == {"FAIL": 1, "WAITING": 1}


def test_a_smaller_budget_withdraws_waiting_trials_and_a_larger_one_brings_them_back(journal: str) -> None:
    queue = create(journal)
    for trials_wanted in (4, 2, 3):
        queue.fill(trials_wanted)
    assert queue.counts() == {"WAITING": 3, "WITHDRAWN": 2}
    run(queue, square, FOREVER)
    assert slots(queue.trials()) == [0, 1, 2]


def test_no_trial_starts_after_the_deadline(journal: str) -> None:
    queue = create(journal)
    queue.fill(3)
    run(queue, square, time.monotonic() - 1.0)
    assert queue.counts() == {"WAITING": 3}


def test_trials_that_a_dashboard_enqueued_are_left_alone(journal: str) -> None:
    queue = create(journal)
    queue.fill(1)
    queue.study.enqueue_trial({"x": 0.5})
    run(queue, square, FOREVER)
    assert queue.counts() == {"COMPLETE": 1}


@pytest.mark.parametrize("pruner", ["wilcoxon", "hyperband"])
def test_pruners_end_poor_trials_and_spare_good_ones(journal: str, pruner: str) -> None:
    queue = create(journal, pruner=pruner)
    queue.fill(12)

    def objective(trial: Trial) -> list[float]:
        trial.suggest_float("x", -1.0, 1.0)
        level = float(trial.user_attrs["slot"])
        for step in range(8):
            trial.report(level + 0.01 * step, step + 1)
            if trial.should_prune():
                raise optuna.TrialPruned
        return [level]

    run(queue, objective, FOREVER)
    states = Counter(trial.state.name for trial in queue.trials())
    assert queue.trials()[0].state == TrialState.COMPLETE
    assert states["PRUNED"] >= 3 and states["PRUNED"] + states["COMPLETE"] == 12


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_several_objectives_have_several_best_trials(journal: str, sampler: str) -> None:
    queue = Queue.create(tune(journal, sampler=sampler), 7, ["minimize", "maximize"], 1)
    queue.fill(15)
    run(queue, lambda trial: [square(trial)[0], trial.params["x"]], FOREVER)
    assert len(queue.study.best_trials) > 1


def test_joining_needs_a_study(storage: str) -> None:
    with pytest.raises(UserError, match="no study `test` in .*start it with `sfd tune`"):
        join(storage)
    create(storage)
    join(storage)


def refusal(url: str) -> str:
    """The one line with which a storage is refused, in under 3 s."""
    started = own_time()
    with pytest.raises(UserError) as refused:
        check_storage(url)
    assert own_time() - started < 3.0
    message = str(refused.value)
    assert "\n" not in message and "tune.storage" in message
    return message


@pytest.mark.parametrize("scheme", ["sqlite:///", "journal://"])
def test_file_storages_that_cannot_be_used_are_refused(scheme: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database, and no journal either" * 100)
    assert "No such file" in refusal(f"{scheme}{tmp_path}/missing/study")
    assert "Not a directory" in refusal(f"{scheme}{tmp_path}/text/study")
    assert "/proc" in refusal(f"{scheme}/proc/study")  # which not even root may write to
    assert "not a" in refusal(f"{scheme}{tmp_path}/text")
    refusal(f"{scheme}{tmp_path}")
    check_storage(f"{scheme}{tmp_path}/study")


@pytest.mark.parametrize("url", ["sqlite:///mlruns/optuna.db", "journal://mlruns/optuna.log"])
def test_a_relative_folder_is_created_and_outlives_a_change_of_folder(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    queue = create(url)
    monkeypatch.chdir("/")
    queue.fill(1)
    assert queue.counts() == {"WAITING": 1}
    assert (tmp_path / "mlruns" / url.rpartition("/")[2]).is_file()


def test_another_programs_database_is_refused_untouched(tmp_path: Path) -> None:
    import sqlite3

    path = tmp_path / "mlflow.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
    before = path.read_bytes()
    assert "another program's database" in refusal(f"sqlite:///{path}")
    assert path.read_bytes() == before


def test_a_storage_of_another_optuna_is_refused(database: str) -> None:
    storage = open_storage(database)
    with storage._backend.engine.connect() as connection:  # type: ignore[attr-defined]
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'v9.9.9.a'")
        connection.commit()
    with pytest.raises(UserError, match="another Optuna version"):
        open_storage(database)


def test_storages_within_memory_are_refused() -> None:
    refusal("sqlite:///:memory:")


def test_servers_that_do_not_answer_are_refused_in_time() -> None:
    pytest.importorskip("psycopg2")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert "sfd:***@127.0.0.1" in refusal(f"postgresql://sfd:s3cret@127.0.0.1:{port}/study")
    assert "refused" in (message := refusal(f"postgresql://sfd:s3cret@127.0.0.1:{port}/study"))
    assert "s3cret" not in message
    assert "s3cret" not in refusal("postgresql://sfd:s3cret@no-such-host.invalid/study")


@pytest.mark.parametrize("password", ["s3@cret", "s3/cret", "s3#cret", "s3%cret", "s3:cret", "s3?cret"])
def test_a_password_with_unescaped_characters_is_refused_unseen(password: str) -> None:
    message = refusal(f"postgresql://sfd:{password}@127.0.0.1:1/study")
    assert "cret" not in message and "s3" not in message and "%40" in message


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    message = refusal("postgresql://sfd:s3cret@127.0.0.1:1/study")
    assert "pip install -e '.[postgres]'" in message and "s3cret" not in message


def test_a_server_refuses_strangers_and_serves_its_user(postgres: str) -> None:
    check_storage(postgres)
    wrong = postgres.replace("${SFD_TEST_STORAGE_PASSWORD}", "another%40word")
    assert "password authentication failed" in (message := refusal(wrong))
    assert "another" not in message and "sfd:***@" in message
    assert "does not exist" in (message := refusal(postgres.replace("/postgres", "/nothing")))
    assert "s3cret" not in message


def test_printed_addresses_hide_the_password() -> None:
    assert (
        redact("postgresql://me:pa%40ss@host:5432/db?sslpassword=x")
        == "postgresql://me:***@host:5432/db?sslpassword=***"
    )
    assert redact("postgresql://me:pa?s@s@host/db") == "postgresql://me:***@host/db"
    assert redact("postgresql://me@host:5432/db") == "postgresql://me@host:5432/db"
    assert redact("sqlite:///mlruns/optuna.db") == "sqlite:///mlruns/optuna.db"


def test_a_storage_takes_its_password_from_the_variable_that_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    address = "postgresql://me:${SFD_TEST_WORD}@host/db"
    monkeypatch.delenv("SFD_TEST_WORD", raising=False)
    with pytest.raises(UserError, match="names the variable SFD_TEST_WORD, which is not set"):
        expand(address)
    monkeypatch.setenv("SFD_TEST_WORD", "pa@s/word")
    assert expand(address) == "postgresql://me:pa%40s%2Fword@host/db"
    assert redact("it said pa@s/word and pa%40s%2Fword") == "it said *** and ***"


def test_storages_are_checked_before_optuna_is_imported(tmp_path: Path) -> None:
    script = (
        "import sys; from sfd.tuning.storage import open_storage\n"
        f"try: open_storage('journal://{tmp_path}/missing/log')\n"
        "except Exception as error: print(type(error).__name__, 'optuna' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["UserError", "False", "False"]


def test_a_signal_in_a_transaction_waits_for_its_end(database: str) -> None:
    import sqlalchemy

    queue = create(database)

    def end_program(_connection: sqlalchemy.Connection) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    study_id = queue.study._study_id
    sqlalchemy.event.listen(sqlalchemy.Engine, "begin", end_program)
    try:
        with pytest.raises(SystemExit), terminable():
            queue.storage.set_study_user_attr(study_id, "said", "whole")
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "begin", end_program)
    queue.storage.set_study_user_attr(study_id, "then", "more")
    assert open_storage(database).get_study_user_attrs(study_id).items() >= {"said": "whole", "then": "more"}.items()
