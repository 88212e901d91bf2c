"""The run of one `dvc repro`, the parent of its stages' runs; and what a stage says of a store that does not take its records."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from sfd.errors import UserError
from sfd.params import TrackingParams
from sfd.registry.versions import find_versions
from sfd.tracking import begin_repro, client, current_repro, end_repro, machine, start_run
from sfd.workspace import Workspace

PARAMS = TrackingParams(experiment="sfd")
FLAT = {"schedule.tau": 0.3, "seed": 0, "data.root": "images"}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Workspace(tmp_path)


def runs_of(workspace: Workspace) -> list[Any]:
    mlflow = client(workspace)
    return list(mlflow.search_runs([mlflow.get_experiment_by_name("sfd").experiment_id]))


def run_stage(workspace: Workspace, stage: str, params: dict[str, Any], result: dict[str, float] | None = None) -> None:
    begin = current_repro(workspace, params)
    with start_run(workspace, stage, stage[0] * 64, PARAMS, {}, begin) as run:
        if result is not None:
            run.log_result(result)


def test_the_stages_of_a_repro_have_one_parent_with_all_params_and_the_result(project: Workspace) -> None:
    for tau, distance in ((0.3, 1.5), (0.0, 2.5)):
        params = FLAT | {"schedule.tau": tau}
        begin_repro(project, params)
        run_stage(project, "diffusion", params)
        run_stage(project, "evaluate", params, {"fd_judge": distance})
        end_repro(project, current_repro(project, params))
    runs = runs_of(project)
    parents = {run.data.params["schedule.tau"]: run for run in runs if run.data.tags["sfd.stage"] == "repro"}
    assert {tau: run.data.metrics for tau, run in parents.items()} == {
        "0.3": {"fd_judge": 1.5},
        "0.0": {"fd_judge": 2.5},
    }
    for run in parents.values():
        assert run.info.status == "FINISHED" and run.info.run_name == "dvc repro" and len(run.data.params) == 3
        assert {"mlflow.user", "sfd.host", "sfd.project", "sfd.torch"} <= run.data.tags.keys()
        children = [each for each in runs if each.data.tags.get("mlflow.parentRunId") == run.info.run_id]
        assert sorted(each.info.run_name for each in children) == ["diffusion", "evaluate"]


def test_a_stage_that_fails_or_is_killed_leaves_the_parent_so_and_the_next_one_goes_on(project: Workspace) -> None:
    def parent() -> Any:
        (run,) = (run for run in runs_of(project) if run.data.tags["sfd.stage"] == "repro")
        return run

    begin_repro(project, FLAT)
    with pytest.raises(KeyError), start_run(project, "diffusion", "a" * 64, PARAMS, {}, current_repro(project, FLAT)):
        raise KeyError("boom")
    assert parent().info.status == "FAILED"
    with (
        pytest.raises(KeyboardInterrupt),
        start_run(project, "diffusion", "b" * 64, PARAMS, {}, current_repro(project, FLAT)),
    ):
        raise KeyboardInterrupt
    assert parent().info.status == "RUNNING"
    begin_repro(project, FLAT)
    with start_run(project, "diffusion", "b" * 64, PARAMS, {}, current_repro(project, FLAT)):
        pass
    assert parent().info.status == "FINISHED" and len(runs_of(project)) == 3


def test_a_killed_stage_that_goes_on_in_another_repro_gives_that_one_its_params(project: Workspace) -> None:
    other = FLAT | {"schedule.tau": 0.5}
    for params in (FLAT, other):
        with (
            pytest.raises(KeyboardInterrupt),
            start_run(project, "encoder", "c" * 64, PARAMS, {}, current_repro(project, params)),
        ):
            raise KeyboardInterrupt
    parents = [run.data.params for run in runs_of(project) if run.data.tags["sfd.stage"] == "repro"]
    assert sorted(params["schedule.tau"] for params in parents) == ["0.3", "0.5"]
    assert all(len(params) == 3 for params in parents)


def test_a_repro_lasts_until_its_last_stage_or_until_params_change(project: Workspace) -> None:
    begin_repro(project, FLAT)
    first = current_repro(project, FLAT).id
    begin_repro(project, FLAT)
    assert current_repro(project, FLAT).id == first
    end_repro(project, current_repro(project, FLAT))
    assert (
        current_repro(project, FLAT).id == first
    )  # `register` follows `evaluate`; a stage by itself belongs to the last repro
    begin_repro(project, FLAT)
    second = current_repro(project, FLAT).id
    begin_repro(project, FLAT | {"seed": 1})
    assert len({first, second, current_repro(project, FLAT | {"seed": 1}).id}) == 3


def test_a_stage_that_lasts_has_metrics_of_the_machine_and_a_short_one_has_none(
    project: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with start_run(project, "scan", "1" * 64, PARAMS, {}):
        pass
    monkeypatch.setattr(machine, "INTERVAL_S", 0.1)
    client(project)  # with all that this imports
    with start_run(project, "long", "2" * 64, PARAMS, {}):
        time.sleep(2.0)
    long, short = runs_of(project)
    assert (
        "system/cpu_utilization_percentage" in long.data.metrics
        and "system/system_memory_usage_percentage" in long.data.metrics
    )
    assert not short.data.metrics


@contextmanager
def refusing_server(status: int) -> Iterator[str]:
    """A server that is healthy and answers everything else with this status."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path.endswith("/health") else status)
            self.send_header("Content-Length", "3")
            self.end_headers()
            self.wfile.write(b"no!")

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "said"), [(401, "does not accept the name and password"), (403, "this user may not do this")]
)
def test_a_server_that_does_not_let_us_in_says_so_at_once(
    project: Workspace, monkeypatch: pytest.MonkeyPatch, status: int, said: str
) -> None:
    with refusing_server(status) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(UserError, match=said):
            find_versions(project, "model")
        begin = time.monotonic()
        with start_run(project, "register", "d" * 64, PARAMS, {}) as run:
            assert run.wait_for_run_id() is None and said in str(run.trouble)
        assert time.monotonic() - begin < 20


def test_a_deleted_experiment_is_named_with_what_restores_it(project: Workspace) -> None:
    with start_run(project, "prepare", "e" * 64, PARAMS, {}):
        pass
    client(project).delete_experiment(client(project).get_experiment_by_name("sfd").experiment_id)
    begin = time.monotonic()
    with start_run(project, "register", "f" * 64, PARAMS, {}) as run:
        assert run.wait_for_run_id() is None
    assert "experiment `sfd` of MLflow" in str(run.trouble) and "mlflow experiments restore" in str(run.trouble)
    assert time.monotonic() - begin < 20


def test_a_database_that_does_not_answer_is_away_and_not_after_a_minute(
    project: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("psycopg2")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:hidden-word@127.0.0.1:9/mlflow")
    begin = time.monotonic()
    with pytest.raises(UserError, match=r"MLflow at postgresql://me:\*\*\*@127.0.0.1:9/mlflow is away") as error:
        find_versions(project, "model")
    assert time.monotonic() - begin < 10 and "hidden-word" not in str(error.value)
