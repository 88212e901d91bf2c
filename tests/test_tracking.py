"""Runs, journals and delivery, against real sqlite stores, MLflow servers and killed processes."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import Server, environment, give_store, own_time, wait_until

from sfd.errors import UserError
from sfd.params import TrackingParams
from sfd.tracking import Run, client, delivery, journal, start_run, sync, tracking_uri
from sfd.tracking.journal import Journal, State, find_journals
from sfd.workspace import Workspace

PARAMS = TrackingParams(experiment="sfd")
FINGERPRINT = "0123456789abcdef" * 4
LONG_STAGE = """
import sys, time
from pathlib import Path
from sfd.params import TrackingParams
from sfd.tracking import start_run
from sfd.workspace import Workspace

first, last, pause_s = int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
with start_run(Workspace(Path(sys.argv[1])), "diffusion", "f" * 64, TrackingParams(experiment="sfd"), {}) as run:
    run.log_params({"diffusion.training.num_steps": last})
    for step in range(first, last):
        run.log_metrics({"loss": 1.0 / (step + 1), "seconds": time.time()}, step)
        time.sleep(pause_s)
"""

CHANGES_OF_ENVIRONMENT = """
import sys, threading

def tell(event, arguments):
    if event in ("os.putenv", "os.unsetenv"):
        sys.stderr.write(f"{arguments[0]} in {threading.current_thread().name}\\n")

sys.addaudithook(tell)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("server"))
    running.start()
    yield running
    running.kill()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A project with an embedded store."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    give_store(tmp_path / "mlruns" / "mlflow.db")
    return Workspace(tmp_path)


def runs_of(workspace: Workspace) -> list:
    mlflow = client(workspace)
    experiments = [e.experiment_id for e in mlflow.search_experiments() if e.name == "sfd"]
    return mlflow.search_runs(experiments, order_by=["attributes.start_time ASC"]) if experiments else []


def points_of(workspace: Workspace, run_id: str, key: str = "loss") -> list[tuple[int, float]]:
    return sorted((m.step, m.value) for m in client(workspace).get_metric_history(run_id, key))


def closed_port_uri() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@contextmanager
def silent_server() -> Iterator[str]:
    """A server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_the_embedded_store_is_the_default_and_the_environment_overrides_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(Workspace(Path())) == "sqlite:///mlruns/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking_uri(Workspace(Path())) == "http://127.0.0.1:5000"


def test_a_run_arrives_with_params_metrics_tags_data_and_artifacts(project: Workspace) -> None:
    (project.root / "grid.png").write_bytes(b"first")
    (project.root / "curves").mkdir()
    (project.root / "curves" / "loss.csv").write_text("1")
    (project.root / "dvc.lock").write_text("stages: {prepare: {deps: [{path: images, md5: abc.dir}]}}")
    with start_run(project, "prepare", FINGERPRINT, PARAMS, {}) as run:
        run.log_params({f"data.p{index}": index for index in range(150)} | {"data.root": "images"})
        run.log_metrics({f"m{index}": index for index in range(1500)}, step=7)
        run.log_metrics({"odd": float("nan"), "large": float("inf")})
        run.log_tags({"note": "one"})
        run.log_tags({"note": "two"})
        run.log_input("digits", "d" * 64, "images", "training", {"images": 1797})
        run.log_artifact(project.root / "grid.png", "pictures")
        (project.root / "grid.png").write_bytes(b"later")
        run.log_artifact(project.root / "curves")
    (found,) = runs_of(project)
    assert found.info.run_id == run.run_id()
    assert (found.info.run_name, found.info.status) == ("prepare", "FINISHED")
    assert found.data.params == {f"data.p{index}": str(index) for index in range(150)} | {"data.root": "images"}
    assert {f"m{index}": float(index) for index in range(1500)}.items() <= found.data.metrics.items()
    assert found.data.metrics["odd"] != found.data.metrics["odd"] and found.data.metrics["large"] > 1e308
    tags = found.data.tags
    assert (tags["note"], tags["sfd.stage"], tags["sfd.fingerprint"]) == ("two", "prepare", FINGERPRINT)
    assert json.loads(tags["sfd.dvc_lock"]) == {"images": "abc.dir"}
    assert {"sfd.python", "sfd.torch", "sfd.platform", "sfd.cpu_count", "sfd.device"} <= tags.keys()
    (data,) = found.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest, data.tags[0].value) == ("digits", "d" * 36, "training")
    assert json.loads(data.dataset.profile) == {"images": 1797}
    artifacts = project.mlruns / "artifacts" / found.info.run_id / "artifacts"
    assert (artifacts / "pictures" / "grid.png").read_bytes() == b"first"
    assert (artifacts / "curves" / "loss.csv").exists()
    assert not list((project.root / ".sfd" / "journal" / "artifacts").iterdir())
    assert sync(project) == 0


def test_a_run_names_the_commit_and_whether_more_than_params_and_dvc_lock_was_changed(project: Workspace) -> None:
    files = ("code.py", "params.yaml", "dvc.lock")
    for file in files:
        (project.root / file).write_text("")
    name = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", *files], [*name, "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", str(project.root), *command], check=True)
    for file in files[1:]:
        (project.root / file).write_text("seed: 1\n")
    with start_run(project, "prepare", "a" * 64, PARAMS, {}):
        (project.root / "code.py").write_text("changed")
    with start_run(project, "prepare", "b" * 64, PARAMS, {}):
        pass
    clean, dirty = (run.data.tags for run in runs_of(project))
    assert clean["mlflow.source.git.commit"] == dirty["mlflow.source.git.commit"]
    assert (clean["sfd.git_dirty"], dirty["sfd.git_dirty"]) == ("false", "true")


def test_a_run_points_to_its_upstream_run_or_to_the_fingerprint_of_an_unknown_one(project: Workspace) -> None:
    with start_run(project, "prepare", "a" * 64, PARAMS, {}) as upstream:
        pass
    with start_run(project, "features", "b" * 64, PARAMS, {"prepare": "a" * 64, "encoder": "e" * 64}):
        pass
    tags = runs_of(project)[1].data.tags
    assert tags["sfd.parent.prepare"] == upstream.run_id()
    assert tags["sfd.parent.encoder"] == "fingerprint:" + "e" * 64


def test_a_stage_that_fails_is_a_failed_run_and_its_error_stays(project: Workspace) -> None:
    with pytest.raises(KeyError, match="boom"), start_run(project, "prepare", FINGERPRINT, PARAMS, {}):
        raise KeyError("boom")
    assert [run.info.status for run in runs_of(project)] == ["FAILED"]


def test_an_interrupted_stage_continues_its_run_and_an_ended_one_begins_a_new_run(project: Workspace) -> None:
    with pytest.raises(KeyboardInterrupt), start_run(project, "prepare", FINGERPRINT, PARAMS, {}) as run:
        run.log_metrics({"loss": 1.0}, 1)
        raise KeyboardInterrupt
    for _ in range(2):
        with start_run(project, "prepare", FINGERPRINT, PARAMS, {}) as run:
            run.log_metrics({"loss": 1.0}, 1)
            run.log_metrics({"loss": 2.0}, 2)
    runs = runs_of(project)
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"]
    assert [points_of(project, run.info.run_id) for run in runs] == [[(1, 1.0), (2, 2.0)]] * 2


def test_a_torn_last_line_is_dropped_and_a_damaged_one_is_refused(project: Workspace) -> None:
    with pytest.raises(KeyboardInterrupt), start_run(project, "prepare", FINGERPRINT, PARAMS, {}) as run:
        run.log_metrics({"loss": 1.0}, 1)
        raise KeyboardInterrupt
    (held,) = find_journals(project)
    with held.path.open("a") as file:
        file.write('{"kind": "metrics", "ste')
    with start_run(project, "prepare", FINGERPRINT, PARAMS, {}) as run:
        run.log_metrics({"loss": 2.0}, 2)
    assert points_of(project, str(run.run_id())) == [(1, 1.0), (2, 2.0)]
    held.path.write_text(held.path.read_text().splitlines()[0] + "\nnonsense\n")
    with pytest.raises(UserError, match="damaged at byte"), start_run(project, "prepare", FINGERPRINT, PARAMS, {}):
        pass


def test_the_same_stage_cannot_run_twice_at_once_but_another_can(
    project: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "WRITER_WAIT_S", 0.2)
    with start_run(project, "prepare", FINGERPRINT, PARAMS, {}):
        with pytest.raises(UserError, match="runs already"), start_run(project, "prepare", FINGERPRINT, PARAMS, {}):
            pass
        with start_run(project, "encoder", FINGERPRINT, PARAMS, {}):
            pass


def test_a_crash_between_delivery_and_its_note_doubles_nothing(project: Workspace) -> None:
    with start_run(project, "prepare", FINGERPRINT, PARAMS, {}) as run:
        run.log_params({"a": 1})
        run.log_input("digits", "d", "images", "training")
        for step in range(50):
            run.log_metrics({"loss": step, "odd": float("nan")}, step)
    (held,) = find_journals(project)
    held.write_state(State(tracking_uri(project)))
    assert sync(project) == sum(1 for _ in held.read())
    (found,) = runs_of(project)
    assert len(points_of(project, found.info.run_id)) == len(points_of(project, found.info.run_id, "odd")) == 50
    assert len(found.inputs.dataset_inputs) == 1


def test_names_that_mlflow_would_refuse_are_refused_at_once(project: Workspace) -> None:
    with start_run(project, "prepare", FINGERPRINT, PARAMS, {}) as run:
        for name in ("a//b", "/a", "a/../b", "loss(%)", "", "k" * 251):
            with pytest.raises(ValueError, match="MLflow takes names"):
                run.log_metrics({name: 1.0})
        run.log_metrics({"fid/texture part: a-b_c.d": 1.0})
    assert runs_of(project)[0].data.metrics == {"fid/texture part: a-b_c.d": 1.0}


def test_a_long_param_is_cut_loudly_and_a_changed_one_keeps_its_first_value(
    project: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    with start_run(project, "prepare", FINGERPRINT, PARAMS, {}) as run:
        run.log_params({"long": "x" * 7000, "a": 1})
        run.log_params({"a": 2})
    assert runs_of(project)[0].data.params == {"long": "x" * 6000, "a": "1"}
    errors = capfd.readouterr().err
    assert "param long is cut to 6000 of its 7000 characters" in errors and "param a stays '1'" in errors


def test_a_refused_record_is_told_once_kept_and_does_not_hold_up_other_journals(
    project: Workspace, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "POLL_S", 0.1)
    with start_run(project, "prepare", "a" * 64, PARAMS, {}) as run:
        run.log_input("x" * 501, "d", "images", "training")  # MLflow takes 500 characters
        time.sleep(1.5)
    assert run.run_id() is not None
    errors = capfd.readouterr().err
    assert errors.count("did not take the records") == 1 and "not in MLflow yet" in errors
    with pytest.raises(UserError, match="1 journals are not delivered"):
        sync(project)
    with start_run(project, "features", "b" * 64, PARAMS, {"prepare": "a" * 64}):
        pass
    assert [run.info.status for run in runs_of(project)] == ["RUNNING", "FINISHED"]


@pytest.mark.long
def test_a_killed_process_that_is_continued_gives_one_run_with_every_point_once(project: Workspace) -> None:
    def start_stage(first: int, pause_s: float) -> subprocess.Popen[bytes]:
        arguments = [str(project.root), str(first), "2000", str(pause_s)]
        return subprocess.Popen([sys.executable, "-c", LONG_STAGE, *arguments])

    def delivered_bytes() -> int:
        held = find_journals(project)
        return held[0].state(tracking_uri(project)).offset if held else 0

    for first in (0, 10):
        before = delivered_bytes()
        process = start_stage(first, pause_s=0.02)
        wait_until(lambda: delivered_bytes() > before + 1000, 60)  # noqa: B023
        process.kill()
        process.wait()
    assert start_stage(20, pause_s=0.0).wait() == 0
    (found,) = runs_of(project)
    assert found.info.status == "FINISHED"
    assert points_of(project, found.info.run_id) == [(step, 1.0 / (step + 1)) for step in range(2000)]
    assert len(points_of(project, found.info.run_id, "seconds")) == 2000


@pytest.mark.long
def test_no_thread_beside_the_main_one_changes_the_environment(project: Workspace) -> None:
    command = [sys.executable, "-c", CHANGES_OF_ENVIRONMENT + LONG_STAGE, str(project.root), "0", "1", "0"]
    told = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=True, env=environment(forked=False)).stderr
    changes = [line for line in told.splitlines() if " in " in line]
    assert any("MLFLOW_DISABLE_TELEMETRY" in line for line in changes)
    assert [line for line in changes if not line.endswith("in MainThread")] == []


@pytest.mark.long
def test_training_goes_on_while_the_server_is_killed_and_every_point_arrives_once(
    project: Workspace, server: Server, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setattr(delivery, "LONGEST_BACKOFF_S", 1.0)
    slowest_s = 0.0
    (project.root / "grid.png").write_bytes(b"x" * 1000)

    def log(run: Run, steps: range) -> None:
        nonlocal slowest_s
        for step in steps:
            start = own_time()
            run.log_metrics({"loss": step / 3, "lr": 0.1}, step)
            slowest_s = max(slowest_s, own_time() - start)
            time.sleep(0.002)

    with start_run(project, "diffusion", "1" * 64, PARAMS, {}) as run:
        log(run, range(500))
        wait_until(lambda: run.run_id() is not None, 20)
        server.kill()
        run.log_artifact(project.root / "grid.png")
        log(run, range(500, 1500))
        server.start()
        log(run, range(1500, 2000))
        wait_until(lambda: len(points_of(project, str(run.run_id()))) == 2000, 30)
    assert slowest_s < 0.5
    (found,) = [found for found in runs_of(project) if found.data.tags["sfd.fingerprint"] == "1" * 64]
    assert found.info.status == "FINISHED"
    assert points_of(project, found.info.run_id) == [(step, step / 3) for step in range(2000)]
    assert [item.path for item in client(project).list_artifacts(found.info.run_id)] == ["grid.png"]
    errors = capfd.readouterr().err
    assert errors.count("is away") == 1 and errors.count("takes records again") == 1


def test_what_a_stage_could_not_deliver_is_delivered_by_sync(
    project: Workspace, server: Server, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", closed_port_uri())
    for stage, fingerprint, parents in (("prepare", "2" * 64, {}), ("encoder", "3" * 64, {"prepare": "2" * 64})):
        with start_run(project, stage, fingerprint, PARAMS, parents) as run:
            for step in range(10):
                run.log_metrics({"loss": step}, step)
            ended = time.monotonic()
        assert time.monotonic() - ended < 5
    errors = capfd.readouterr().err
    assert errors.count("is away") == 2 and errors.count("run `sfd sync`") == 2
    with pytest.raises(UserError, match="is away"):
        sync(project)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    records = sum(1 for held in find_journals(project) for _ in held.read())
    assert sync(project) == records and sync(project) == 0
    upstream, downstream = (found for found in runs_of(project) if found.data.tags["sfd.fingerprint"][0] in "23")
    assert downstream.data.tags["sfd.parent.prepare"] == upstream.info.run_id
    assert points_of(project, downstream.info.run_id) == [(step, step) for step in range(10)]


def test_a_required_store_that_is_away_stops_the_stage_before_its_work(
    project: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    required = TrackingParams(experiment="sfd", required=True)
    with silent_server() as silent:
        for uri in (closed_port_uri(), silent):
            monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
            start = time.monotonic()
            with pytest.raises(UserError, match="cannot be used"), start_run(project, "a", "4" * 64, required, {}):
                raise AssertionError("the stage's work began")
            assert time.monotonic() - start < 5
    assert not (project.root / ".sfd").exists()


def test_a_required_store_that_hangs_fails_the_stage_at_its_end_only_and_sync_delivers(
    project: Workspace, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    with pytest.raises(UserError, match="lacks [0-9]+ records of stage prepare"):
        with start_run(project, "prepare", "5" * 64, TrackingParams(experiment="sfd", required=True), {}) as run:
            wait_until(lambda: find_journals(project)[0].count_pending(server.uri) == 0, 20)
            server.signal(signal.SIGSTOP)
            run.log_metrics({"loss": 1.0}, 3)
            ended = time.monotonic()
    server.signal(signal.SIGCONT)
    assert time.monotonic() - ended < 12
    sync(project)
    assert points_of(project, str(run.run_id())) == [(3, 1.0)]
    assert client(project).get_run(run.run_id()).info.status == "FINISHED"


def test_a_server_that_never_answers_delays_neither_training_nor_the_end(
    project: Workspace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with silent_server() as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with start_run(project, "prepare", "6" * 64, PARAMS, {}) as run:
            start = own_time()
            for step in range(1000):
                run.log_metrics({"loss": 1.0}, step)
            assert own_time() - start < 1
            ended = time.monotonic()
        assert time.monotonic() - ended < 10
    assert capfd.readouterr().err.count("is away") == 1


def test_credentials_of_the_store_are_neither_printed_nor_kept(
    project: Workspace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")  # so that it is taken back at the end
    monkeypatch.setenv("MLFLOW_TRACKING_URI", closed_port_uri().replace("//", "//user:secret@"))
    with start_run(project, "prepare", "7" * 64, PARAMS, {}):
        pass
    assert "secret" not in capfd.readouterr().err
    kept = [path for path in (project.root / ".sfd").rglob("*") if path.is_file()]
    assert kept and not any("secret" in path.read_text() for path in kept)


def test_two_deliveries_at_once_double_nothing(project: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "POLL_S", 0.02)
    with start_run(project, "prepare", "8" * 64, PARAMS, {}) as run:
        stop, taken = threading.Event(), []

        def sync_often() -> None:
            while not stop.is_set():
                taken.append(sync(project))

        thread = threading.Thread(target=sync_often)
        thread.start()
        for step in range(300):
            run.log_metrics({"loss": step}, step)
            time.sleep(0.003)
        stop.set()
        thread.join()
    (found,) = runs_of(project)
    assert sum(taken) > 0 and points_of(project, found.info.run_id) == [(step, step) for step in range(300)]


def test_a_large_file_is_linked_and_a_small_one_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "LINK_ABOVE_BYTES", 10)
    with journal.open_journal(Workspace(tmp_path), "prepare", FINGERPRINT, "sfd") as writer:
        for name in ("large", "small"):
            (tmp_path / name).write_bytes(b"x" * (100 if name == "large" else 5))
            writer.add_artifact(tmp_path / name, "")
    kept = {path.name: path for path in Journal(writer.journal.path).artifacts.rglob("*") if path.is_file()}
    assert kept["large"].samefile(tmp_path / "large") and not kept["small"].samefile(tmp_path / "small")
