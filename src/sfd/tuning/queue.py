"""The work queue of a study. It does not know what the trials do.

The budget of a study is a queue of *slots*: one WAITING trial each, which workers take one by one. So however many workers there
are, they run neither too many trials nor too few. The values proposed for a slot depend on the seed, the slot and the history, not on
the worker.

A trial's user attributes: ``slot``; ``attempt``, 1, or 2 after its worker was lost; ``after``, the number of the trial that it
repeats; ``worker``, "host:pid"; ``heartbeat``, a counter; ``seconds``; ``reason``, why it was pruned or failed (without meaning in
a COMPLETE trial). Trials without a slot, for example from a dashboard, are not touched.

Optuna is imported inside the functions, so that importing this module is quick.
"""

import itertools
import math
import os
import socket
import threading
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from sfd.errors import UserError, redact
from sfd.params import TuneParams
from sfd.tuning.storage import one_line, open_storage

if TYPE_CHECKING:
    from optuna import Study
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial, Trial, TrialState

Values = Sequence[float]
"""One finite number for each of the study's objectives."""

Direction = Literal["minimize", "maximize"]

INTERRUPTED = "interrupted"
LOST = "its worker was killed or lost"
WITHDRAWN = "withdrawn: "

STARTUP_TRIALS = 10  # random trials, until TPE has enough of them to divide into good and poor ones
SILENT_BEATS = 4
POLL_S = 1.0


class Queue:
    """The trials of one study, seen by one worker. Use :meth:`create` or :meth:`join`; ``study`` is Optuna's.

    Optuna's own heartbeat is not used: it does not exist for journal storages, works only within ``Study.optimize``, and
    compares clocks of different machines. Here the worker of a trial increments a counter. Other workers observe it, and fail the
    trial when the counter has not changed for four ``tune.heartbeat_seconds`` by their own clock.
    """

    def __init__(self, study: "Study", storage: "BaseStorage", tune: TuneParams, seed: int, max_resource: int) -> None:
        self.study, self.storage, self.tune, self.seed = study, storage, tune, seed
        self._study_id = storage.get_study_id_from_name(study.study_name)
        self._pruner = _build_pruner(tune, max_resource)
        self._seen: dict[int, tuple[int, float]] = {}  # running trial: its counter, and when this value was first seen

    @classmethod
    def create(cls, tune: TuneParams, seed: int, directions: Sequence[Direction], max_resource: int) -> "Queue":
        """Creates the study, or opens it if it exists.

        Args:
            seed: seed of the proposals.
            directions: ``minimize`` or ``maximize`` for each objective.
            max_resource: the most values that a trial reports, for the pruner `hyperband`.

        Raises:
            UserError: the storage cannot be used.
        """
        import optuna

        storage = open_storage(tune.storage)
        study = optuna.create_study(storage=storage, study_name=tune.study, directions=directions, load_if_exists=True)
        return cls(study, storage, tune, seed, max_resource)

    @classmethod
    def join(cls, tune: TuneParams, seed: int, max_resource: int) -> "Queue":
        """Opens the study that another process created; arguments as for :meth:`create`.

        Raises:
            UserError: the storage cannot be used, or has no such study.
        """
        import optuna

        storage = open_storage(tune.storage)
        try:
            study = optuna.load_study(storage=storage, study_name=tune.study)
        except KeyError:
            raise UserError(
                f"there is no study `{tune.study}` in {redact(tune.storage)}: start it with `sfd tune`"
            ) from None
        return cls(study, storage, tune, seed, max_resource)

    def trials(self) -> list["FrozenTrial"]:
        """The trials of the queue, by number. They must not be modified."""
        return [t for t in self.storage.get_all_trials(self._study_id, deepcopy=False) if "slot" in t.user_attrs]

    def counts(self) -> dict[str, int]:
        """Number of trials by state (``COMPLETE``, ``PRUNED``, ``FAIL``, ``RUNNING``, ``WAITING``), and ``WITHDRAWN`` ones."""
        return dict(Counter("WITHDRAWN" if _withdrawn(trial) else trial.state.name for trial in self.trials()))

    def fill(self, trials: int, starts: Sequence[Mapping[str, Any]] = ()) -> None:
        """Fills the queue with slots 0 to ``trials`` - 1, and withdraws waiting trials of higher slots.

        The first slots get the values of ``starts``; what these lack is proposed.

        A slot whose worker was interrupted is enqueued again, with the same params. A slot whose trial failed counts as done.
        """
        from optuna.trial import TrialState

        for trial in itertools.chain(*by_slot(self.trials()).values()):
            if trial.state == TrialState.WAITING and trial.user_attrs["slot"] >= trials and self._take(trial):
                self._finish(trial.number, TrialState.FAIL, reason=f"{WITHDRAWN}tune.trials is {trials} now")
        self.extend(trials, starts)

    def extend(self, trials: int, starts: Sequence[Mapping[str, Any]] = ()) -> None:
        """:meth:`fill`, which takes nothing away."""
        slots = by_slot(self.trials())
        for slot in range(trials):
            if slot not in slots:
                values = dict(starts[slot]) if slot < len(starts) else {}
                self.study.enqueue_trial(values, user_attrs={"slot": slot, "attempt": 1, "after": None})
            elif _last_reason(slots[slot]) == INTERRUPTED:
                self._repeat(slots[slot][-1], slots[slot][-1].user_attrs["attempt"])

    def _reap(self, trials: list["FrozenTrial"]) -> None:
        """Fails running trials whose worker is silent, and enqueues each of them again, once.

        A silent worker is found by the second of two calls that are more than four heartbeats apart.
        """
        from optuna.trial import TrialState

        now, dead = time.monotonic(), []
        for trial in trials:
            if trial.state != TrialState.RUNNING:
                continue
            count = trial.user_attrs.get("heartbeat", 0)
            seen, since = self._seen.get(trial.number, (None, now))
            if seen != count:
                self._seen[trial.number] = (count, now)
            elif now - since > SILENT_BEATS * self.tune.heartbeat_seconds:
                if self._finish(trial.number, TrialState.FAIL, reason=LOST):
                    dead.append(trial)
        # Also trials that an observer failed, if it was killed before it could enqueue the second attempt.
        ended = [slot[-1] for slot in by_slot(trials).values() if _last_reason(slot) == LOST]
        for trial in dead + ended:
            if trial.user_attrs["attempt"] == 1:
                self._repeat(trial, 2)

    def pop(self) -> "Trial | None":
        """Takes the waiting trial of the lowest slot and sets it to RUNNING; None if no trial waits.

        No storage prevents two processes from enqueuing the same slot, or the same second attempt. The trial with the higher number
        is withdrawn here.
        """
        import optuna
        from optuna.trial import TrialState

        trials = self.trials()
        self._reap(trials)
        waiting = [trial for trial in trials if trial.state == TrialState.WAITING]
        for trial in sorted(waiting, key=lambda trial: trial.user_attrs["slot"]):
            if not self._take(trial):
                continue
            twins = (
                t.number
                for t in trials
                if t.number < trial.number and _attempt_key(t) == _attempt_key(trial) and not _withdrawn(t)
            )
            first = next(twins, None)
            if first is not None:
                self._finish(trial.number, TrialState.FAIL, reason=f"{WITHDRAWN}the same work as trial {first}")
                continue
            # A new study object has its own sampler, and nothing that Optuna has cached for the previous trial.
            study = optuna.load_study(
                storage=self.storage,
                study_name=self.tune.study,
                sampler=self._build_sampler(trial.user_attrs["slot"]),
                pruner=self._pruner,
            )
            return optuna.trial.Trial(study, self._id(trial.number))
        return None

    def execute(self, trial: "Trial", objective: "Callable[[Trial], Values]") -> None:
        """Runs ``objective`` on a trial from :meth:`pop` and stores how it ends. Raises as :func:`run` does."""
        from optuna import TrialPruned
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        started = time.monotonic()

        def end(state: "TrialState", reason: str | None, values: Values | None = None) -> None:
            attributes: dict[str, float | str] = {"seconds": round(time.monotonic() - started, 3)}
            self._finish(trial.number, state, values, **attributes, **({} if reason is None else {"reason": reason}))

        try:
            with self.beating(trial):
                values = [float(value) for value in objective(trial)]
            if all(map(math.isfinite, values)):
                end(TrialState.COMPLETE, None, values)
            else:
                end(TrialState.FAIL, f"its objectives are not finite: {values}")
        except UpdateFinishedTrialError:
            pass  # this worker was silent for too long, and its trial was given to another worker
        except TrialPruned as error:
            end(TrialState.PRUNED, one_line(error) or "pruned")
        except UserError as error:
            end(TrialState.FAIL, one_line(error))
        except (KeyboardInterrupt, SystemExit):
            end(TrialState.FAIL, INTERRUPTED)
            raise
        except Exception as error:
            end(TrialState.FAIL, f"{type(error).__name__}: {one_line(error)}")
            if type(error).__name__ != "OutOfMemoryError":  # torch's: these params need too much memory, others may not
                raise

    @contextmanager
    def beating(self, trial: "Trial") -> Iterator[None]:
        """Increments the trial's ``heartbeat`` while the block runs."""
        from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError

        trial_id, stop = self._id(trial.number), threading.Event()

        def beat() -> None:
            for count in itertools.count(1):
                try:
                    self.storage.set_trial_user_attr(trial_id, "heartbeat", count)
                except UpdateFinishedTrialError:
                    return  # given to another worker; the main thread notices at its next write
                except (StorageInternalError, OSError):
                    pass  # a server may be restarting: the next beat tries again, and writing the result does not hide errors
                if stop.wait(self.tune.heartbeat_seconds):
                    return

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _repeat(self, trial: "FrozenTrial", attempt: int) -> None:
        # Including params that it was given but had not used when it ended.
        params = trial.system_attrs.get("fixed_params", {}) | trial.params
        attributes = {"slot": trial.user_attrs["slot"], "attempt": attempt, "after": trial.number}
        self.study.enqueue_trial(params, user_attrs=attributes)

    def _take(self, trial: "FrozenTrial") -> bool:
        """Takes a waiting trial for this worker; returns whether no other worker was faster."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        trial_id = self._id(trial.number)
        try:
            if not self.storage.set_trial_state_values(trial_id, TrialState.RUNNING):
                return False
        except UpdateFinishedTrialError:
            return False
        self.storage.set_trial_user_attr(trial_id, "worker", f"{socket.gethostname()}:{os.getpid()}")
        return True

    def _finish(
        self, number: int, state: "TrialState", values: Values | None = None, **attributes: float | str
    ) -> bool:
        """Ends a trial; returns whether it was still unfinished. Attributes come first, because a finished trial accepts none."""
        from optuna.exceptions import UpdateFinishedTrialError

        trial_id = self._id(number)
        try:
            for key, value in attributes.items():
                self.storage.set_trial_user_attr(trial_id, key, value)
            self.storage.set_trial_state_values(trial_id, state, values)
        except UpdateFinishedTrialError:
            return False
        return True

    def _id(self, number: int) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self._study_id, number)

    def _build_sampler(self, slot: int) -> "BaseSampler":
        from optuna.samplers import RandomSampler, TPESampler

        from sfd.seeding import derive_seed

        seed = derive_seed(self.seed, "tune/suggest", slot) % 2**32
        if self.tune.sampler == "random":
            return RandomSampler(seed=seed)
        return TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS, multivariate=True, constant_liar=True)


def _withdrawn(trial: "FrozenTrial") -> bool:
    return trial.state.name == "FAIL" and str(trial.user_attrs.get("reason", "")).startswith(WITHDRAWN)


def by_slot(trials: list["FrozenTrial"]) -> dict[int, list["FrozenTrial"]]:
    """The trials of each slot by number, without withdrawn ones."""
    slots = defaultdict(list)
    for trial in trials:
        if not _withdrawn(trial):
            slots[trial.user_attrs["slot"]].append(trial)
    return slots


def _attempt_key(trial: "FrozenTrial") -> tuple[int, int | None]:
    """Equal for two trials that do the same work, so that one of them is superfluous."""
    return trial.user_attrs["slot"], trial.user_attrs["after"]


def is_done(trials: list["FrozenTrial"]) -> bool:
    """Whether a slot with these trials is not run again, unless somebody interrupted it: one is complete, or the last failed for good."""
    if any(trial.state.name in ("COMPLETE", "PRUNED") for trial in trials):
        return True
    reason = _last_reason(trials)
    return reason is not None and reason != INTERRUPTED and (reason != LOST or trials[-1].user_attrs["attempt"] > 1)


def _last_reason(trials: list["FrozenTrial"]) -> str | None:
    """Why the last trial of a slot failed; None unless all trials of the slot have failed."""
    if any(trial.state.name != "FAIL" for trial in trials):
        return None
    return str(trials[-1].user_attrs.get("reason"))


def _build_pruner(tune: TuneParams, max_resource: int) -> "BasePruner":
    from optuna.exceptions import ExperimentalWarning
    from optuna.pruners import HyperbandPruner, NopPruner, WilcoxonPruner

    if tune.pruner == "hyperband":
        return HyperbandPruner(min_resource=1, max_resource=max_resource)
    if tune.pruner == "wilcoxon":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return WilcoxonPruner(p_threshold=0.1)
    return NopPruner()


def run(queue: Queue, objective: "Callable[[Trial], Values]", deadline: float) -> None:
    """Runs trials until the queue is empty or the deadline has passed.

    If no trial waits but other workers still run some, it waits too, because one of those trials may be lost and enqueued again.

    Args:
        objective: proposes params with ``trial.suggest_...`` and returns one value per objective. It may raise ``optuna.TrialPruned``
            (stored as PRUNED), :class:`UserError` or torch's ``OutOfMemoryError`` (stored as FAIL); the next trial follows. If this
            worker was silent for so long that its trial was given to another, the next write to the trial (``report``,
            ``set_user_attr``) raises ``optuna.exceptions.UpdateFinishedTrialError``. It must not be caught; nothing is stored then.
        deadline: value of ``time.monotonic()`` after which no trial is started. A running trial is not stopped.

    Raises:
        KeyboardInterrupt, SystemExit: the trial is stored as interrupted first; :meth:`Queue.fill` enqueues it again.
        Exception: any other error of ``objective``, which is a fault of the program; the trial is stored as FAIL first.
    """
    while time.monotonic() < deadline:
        trial = queue.pop()
        if trial is not None:
            queue.execute(trial, objective)
        elif queue.counts().keys() & {"WAITING", "RUNNING"}:
            time.sleep(POLL_S)
        else:
            return
