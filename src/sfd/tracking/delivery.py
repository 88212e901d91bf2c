"""From the journal to MLflow: exactly once, in batches, and never in the way of training.

MLflow's SQL store keys a metric by (run, name, time, step, value), and params, tags, inputs and artifacts by name, so a
batch that is sent twice because a kill or a time-out hid its answer is stored once. A run is found again by a tag, its
journal's id.
"""

import json
import ssl
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from filelock import Timeout

from sfd.errors import UserError, redact, warn
from sfd.tracking.address import artifacts_of, sqlite_file, tracking_uri
from sfd.tracking.client import client, import_mlflow
from sfd.tracking.journal import Journal, Record, State, find_journals
from sfd.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

METRICS_PER_BATCH, VALUES_PER_BATCH = 1000, 100  # MLflow's limits

POLL_S = 1.0
LONGEST_BACKOFF_S = 10.0
PROBE_S = 3.0
EXIT_WAIT_S = 10.0  # at the end of a stage, for a server that answers
EXIT_WAIT_LOCAL_S = 60.0  # for a local store, which may have to create its tables first
EXIT_WAIT_AWAY_S = 2.0


def check_reachable(workspace: Workspace) -> None:
    """Asks the store one question.

    Raises:
        UserError: it is away, or refuses (e.g. a wrong password).
    """
    store = Store(workspace)
    try:
        store.probe()
        store.connect().search_experiments(max_results=1)
    except Exception as error:  # whatever the store's driver raises: the user needs the reason and the remedy
        raise UserError(
            f"tracking.required is true, but MLflow at {store.name} cannot be used ({store.describe(error)}); "
            "start it, correct MLFLOW_TRACKING_URI, or set tracking.required to false"
        ) from None


def sync(workspace: Workspace) -> int:
    """Delivers what all journals of the project still hold, oldest first; returns the number of records.

    Raises:
        UserError: the server is away, or refuses some records; the other journals are delivered all the same.
    """
    store = Store(workspace)
    problems = []
    count = 0
    for journal in find_journals(workspace):
        if not journal.count_pending(store.name):
            continue
        try:
            count += store.deliver(journal)
        except StoreAway as error:
            raise UserError(f"MLflow at {store.name} is away ({error}); start it, then run `sfd sync` again") from None
        except Timeout:
            problems.append(f"{journal.path.name}: another process is delivering it")
        except Exception as error:  # one journal's trouble must not keep the others back
            problems.append(f"{journal.path.name}: {store.describe(error)}")
    if problems:
        raise UserError(f"{len(problems)} journals are not delivered to MLflow at {store.name}: " + "; ".join(problems))
    return count


class StoreAway(Exception):
    """The server does not answer; the message says how."""


class Store:
    """One MLflow store, as a place to deliver journals to.

    Attributes:
        name: its URI without a password.
        file: its database, if it is a file.
        last_progress: :func:`time.monotonic` of the last thing that worked.
    """

    def __init__(self, workspace: Workspace) -> None:
        uri = tracking_uri(workspace)
        self.file = sqlite_file(uri)
        self.name = redact(uri)
        self.last_progress = time.monotonic()
        self._workspace = workspace
        self._client: MlflowClient | None = None
        self._experiments: dict[str, str] = {}
        self._repros: dict[str, str] = {}

    def probe(self) -> None:
        """Raises :class:`StoreAway` when a server does not answer within 3 s; of a web server any answer below HTTP 500 will do."""
        if self.file is not None:
            return
        if not self.name.startswith(("http://", "https://")):
            self._probe_database()
            return
        try:
            urllib.request.urlopen(f"{self.name.rstrip('/')}/health", timeout=PROBE_S).close()
        except urllib.error.HTTPError as error:
            if error.code >= 500:
                raise StoreAway(f"HTTP {error.code}") from None
        except OSError as error:
            reason = getattr(error, "reason", error)
            if not isinstance(reason, ssl.SSLError):  # somebody answers; MLflow may trust another certificate than we
                raise StoreAway(str(reason) or type(reason).__name__) from None

    def _probe_database(self) -> None:
        """MLflow itself tries for more than a minute, whatever the database answers."""
        import sqlalchemy

        try:
            url = sqlalchemy.make_url(tracking_uri(self._workspace))
            if url.get_backend_name() in ("postgresql", "mysql"):
                url = url.update_query_dict({"connect_timeout": str(round(PROBE_S))})
            sqlalchemy.create_engine(url).connect().close()
        except (sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
            raise StoreAway(redact(" ".join(str(error).split())[:300])) from None

    def connect(self) -> "MlflowClient":
        """The client, made at the first call: MLflow's import and a new store's tables take seconds."""
        if self._client is None:
            self._client = client(self._workspace)
            self.last_progress = time.monotonic()
        return self._client

    def describe(self, error: Exception) -> str:
        """What went wrong and what helps, in one line without passwords."""
        lines = str(error).strip().splitlines() or [""]
        text = redact(lines[0])[:300]
        if isinstance(error, UserError | StoreAway):
            return text
        from mlflow import MlflowException

        status = error.get_http_status_code() if isinstance(error, MlflowException) else None
        if status == HTTPStatus.UNAUTHORIZED:
            return "it does not accept the name and password: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        if status == HTTPStatus.FORBIDDEN:
            return f"this user may not do this, ask the owner of the server: {text}"
        return f"{type(error).__name__}: {text}"

    def deliver(self, journal: Journal) -> int:
        """Sends what the journal holds beyond its delivery state; returns the number of records.

        Raises:
            StoreAway: the server does not answer, or stopped to. What was taken before is counted as delivered.
            filelock.Timeout: another process is delivering this journal.
            Exception: the server refused a record, a file is gone, or whatever else went wrong.
        """
        count = 0
        with journal.delivery_lock():
            state = journal.state(self.name)
            try:
                for batch, end in _batches(journal.read(state.offset)):
                    if count == 0:
                        self.probe()
                        journal.flush_to_disk()
                    state = self._send(journal, state, batch)
                    state = replace(state, offset=end)
                    journal.write_state(state)
                    self.last_progress = time.monotonic()
                    count += len(batch)
            except StoreAway:
                raise
            except Exception:
                self.probe()  # raises StoreAway instead, if that is the reason
                raise
        return count

    def _send(self, journal: Journal, state: State, batch: list[Record]) -> State:
        """Sends one batch of one kind; returns the state with the run's id."""
        import_mlflow()
        from mlflow.entities import Metric, Param, RunTag

        mlflow, record, run_id = self.connect(), batch[0], state.run_id
        if record["kind"] == "header":
            return replace(state, run_id=self._find_or_create_run(record))
        match record["kind"]:
            case "metrics":
                points = [Metric(key, value, r["time"], r["step"]) for r in batch for key, value in r["values"].items()]
                for start in range(0, len(points), METRICS_PER_BATCH):
                    mlflow.log_batch(run_id, metrics=points[start : start + METRICS_PER_BATCH])
            case "params":
                for chunk in _chunks(record["values"]):
                    mlflow.log_batch(run_id, params=[Param(key, value) for key, value in chunk])
            case "tags":
                for chunk in _chunks(record["values"]):
                    mlflow.log_batch(run_id, tags=[RunTag(key, value) for key, value in chunk])
            case "parents":
                for stage, fingerprint in record["values"].items():
                    parent = self._find_parent(journal, stage, fingerprint) or f"fingerprint:{fingerprint}"
                    mlflow.set_tag(run_id, f"sfd.parent.{stage}", parent)
            case "repro" | "repro_params" | "repro_tags" | "repro_metrics":
                self._send_repro(journal, state, record)
            case "input":
                mlflow.log_inputs(run_id, datasets=[_dataset_input(record)])
            case "artifact":
                mlflow.log_artifact(run_id, str(journal.path.parent / record["file"]), record["artifact_path"] or None)
            case "finish":
                self._finish(journal, state, record)
        return state

    def _send_repro(self, journal: Journal, state: State, record: Record) -> None:
        """Sends what a stage knows of the `dvc repro` that it belongs to: params, tags and metrics of the parent run."""
        from mlflow.entities import Metric, Param, RunTag

        mlflow, parent = self.connect(), self._find_or_create_repro(journal.read_header(), record["repro"])
        match record["kind"]:
            case "repro":
                mlflow.set_tag(state.run_id, "mlflow.parentRunId", parent)
                mlflow.update_run(parent, status="RUNNING")
            case "repro_params":
                for chunk in _chunks(record["values"]):
                    mlflow.log_batch(parent, params=[Param(key, value) for key, value in chunk])
            case "repro_tags":
                mlflow.log_batch(parent, tags=[RunTag(key, value) for key, value in record["values"].items()])
            case "repro_metrics":
                points = [Metric(key, value, record["time"], 0) for key, value in record["values"].items()]
                mlflow.log_batch(parent, metrics=points)

    def _find_or_create_repro(self, header: Record, repro_id: str) -> str:
        if repro_id not in self._repros:
            tags = {"sfd.repro": repro_id, "sfd.stage": "repro"}
            found = self._search(header["experiment"], {"sfd.repro": repro_id})
            if not found:
                experiment = self._experiment_id(header["experiment"])
                found = [self.connect().create_run(experiment, header["time"], tags, run_name="dvc repro")]
            self._repros[repro_id] = str(found[0].info.run_id)
        return self._repros[repro_id]

    def _finish(self, journal: Journal, state: State, record: Record) -> None:
        header = journal.read_header()
        for run in self._search(header["experiment"], {"sfd.journal": header["id"]}):
            if run.info.run_id != state.run_id:  # left by a "create" whose answer was lost in a time-out
                self.connect().delete_run(run.info.run_id)
        self.connect().set_terminated(state.run_id, record["status"], record["time"])
        if record.get("repro") is not None:  # until the next stage begins, if there is one
            parent = self._find_or_create_repro(header, record["repro"])
            self.connect().set_terminated(parent, record["status"], record["time"])
        journal.remove_artifacts()

    def _find_or_create_run(self, header: Record) -> str:
        found = self._search(header["experiment"], {"sfd.journal": header["id"]})
        if not found:
            tags = {"sfd.journal": header["id"], "sfd.stage": header["stage"], "sfd.fingerprint": header["fingerprint"]}
            experiment = self._experiment_id(header["experiment"])
            found = [self.connect().create_run(experiment, header["time"], tags, run_name=header["stage"])]
        return str(found[0].info.run_id)

    def _find_parent(self, child: Journal, stage: str, fingerprint: str) -> str | None:
        """The id of the newest run of an upstream stage, whose journals are delivered first where they are here."""
        for journal in find_journals(self._workspace):
            if journal.read_header()["stage"] != stage:
                continue
            try:
                self.deliver(journal)
            except StoreAway:
                raise
            except Exception as error:  # the upstream's trouble is not this run's
                warn(f"run of upstream stage {stage} is not delivered to MLflow: {self.describe(error)}")
        found = self._search(child.read_header()["experiment"], {"sfd.stage": stage, "sfd.fingerprint": fingerprint})
        return str(found[0].info.run_id) if found else None

    def _search(self, experiment: str, tags: Mapping[str, str]) -> "list[MlflowRun]":
        """The newest runs of an experiment that carry these tags."""
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        return list(
            self.connect().search_runs(
                [self._experiment_id(experiment)], query, max_results=10, order_by=["attributes.start_time DESC"]
            )
        )

    def _experiment_id(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        if name not in self._experiments:
            mlflow = self.connect()
            found = mlflow.get_experiment_by_name(name)
            if found is None:
                location = artifacts_of(self.file).as_uri() if self.file else None
                try:
                    mlflow.create_experiment(name, artifact_location=location)
                except MlflowException as error:
                    if error.error_code != "RESOURCE_ALREADY_EXISTS":  # two stages at once: one of them creates it
                        raise
                found = mlflow.get_experiment_by_name(name)
            if found.lifecycle_stage == "deleted":
                raise UserError(
                    f"experiment `{name}` of MLflow at {self.name} is deleted; restore it with "
                    f"`mlflow experiments restore --experiment-id {found.experiment_id}`, or set tracking.experiment to another name"
                )
            self._experiments[name] = found.experiment_id
        return self._experiments[name]


class Deliverer(threading.Thread):
    """Delivers a live journal, about once a second, until it is closed. A hung server cannot hold the process.

    Attributes:
        trouble: why the last try failed; None if it did not.
    """

    def __init__(self, workspace: Workspace, journal: Journal) -> None:
        super().__init__(name="sfd-delivery", daemon=True)
        self.store = Store(workspace)
        self._journal = journal
        self._closing = threading.Event()
        self.trouble: str | None = None
        self._told: set[str] = set()  # troubles since the last success that the user knows of

    def run(self) -> None:
        """Delivers; says once that delivery fails, and once that it works again."""
        delay = 0.0
        while True:
            closing = self._closing.wait(delay)
            try:
                self.store.deliver(self._journal)
            except Timeout:
                continue  # `sfd sync` is delivering it
            except Exception as error:  # nothing may end training; the records stay in the journal
                delay = min(2 * delay, LONGEST_BACKOFF_S) if self._told else POLL_S
                self._warn_once(error)
            else:
                delay, self.trouble = POLL_S, None
                if self._told:
                    print(f"MLflow at {self.store.name} takes records again", file=sys.stderr, flush=True)
                self._told.clear()
            if closing:
                return

    def close(self) -> int:
        """Delivers the rest, as long as the store takes records; returns how many it does not have.

        Waits 2 s for a server that is away, and 10 s without progress for one that answered before.
        """
        self._closing.set()
        patient = EXIT_WAIT_LOCAL_S if self.store.file else EXIT_WAIT_S
        start = time.monotonic()
        while self.is_alive():
            quiet = time.monotonic() - max(start, self.store.last_progress)
            if quiet > (EXIT_WAIT_AWAY_S if self._told else patient):
                break
            self.join(0.05)
        return self._journal.count_pending(self.store.name)

    def _warn_once(self, error: Exception) -> None:
        trouble = "is away" if isinstance(error, StoreAway) else "did not take the records"
        self.trouble = f"MLflow at {self.store.name} {trouble} ({self.store.describe(error)})"
        if trouble in self._told:
            return
        self._told.add(trouble)
        warn(f"{self.trouble}; the stage goes on, its records are kept in {self._journal.path} and delivered later")


def _batches(records: Iterator[tuple[Record, int]]) -> Iterator[tuple[list[Record], int]]:
    """Groups metrics up to 1,000 points, and leaves every other record alone; yields each group and where it ends."""
    batch: list[Record] = []
    points = batch_end = 0
    for record, end in records:
        size = len(record["values"]) if record["kind"] == "metrics" else METRICS_PER_BATCH
        if batch and points + size > METRICS_PER_BATCH:
            yield batch, batch_end
            batch, points = [], 0
        batch.append(record)
        points += size
        batch_end = end
    if batch:
        yield batch, batch_end


def _chunks(values: Mapping[str, str]) -> Iterator[list[tuple[str, str]]]:
    items = list(values.items())
    for start in range(0, len(items), VALUES_PER_BATCH):
        yield items[start : start + VALUES_PER_BATCH]


def _dataset_input(record: Record) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    profile = None if record["profile"] is None else json.dumps(record["profile"])
    source = json.dumps({"uri": record["source"]})
    dataset = Dataset(record["name"], record["digest"], "local", source, profile=profile)
    return DatasetInput(dataset, tags=[InputTag("mlflow.data.context", record["context"])])
