"""`sfd tune` as users run it: on a trained project, with real DVC, MLflow, Optuna and processes."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from postgres import postgres_server
from support import Project, finished_project, run_stages, small_params, wait_until

from sfd.errors import UserError
from sfd.generation.model import DiffusionModel
from sfd.params import Params, with_values
from sfd.tuning.evaluator import CandidateEvaluator, halves
from sfd.tuning.halving import WarmStarts
from sfd.tuning.storage import expand
from sfd.tuning.study import signature, tune
from sfd.workspace import Workspace

pytestmark = pytest.mark.long


def shared_params() -> dict[str, Any]:
    """A model for all offsets, and a small study of the offset and of guidance."""
    params = small_params()
    params["data"] |= {"source": "folder", "root": "images", "mirror": True}
    params["schedule"]["tau"] = {"low": 0.0, "high": 1.0}
    params["sample"]["schedule"] = {"kind": "offset", "tau": 0.5}
    params["tune"]["pruner"] = "none"
    params["tune"]["space"] = {
        "sample.schedule.tau": {"low": 0.0, "high": 1.0},
        "sample.guidance.scale_texture": {"low": 1.0, "high": 3.0},
    }
    return params


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose model is trained, and where nothing was tuned yet."""
    project = finished_project(tmp_path_factory).copy_to(tmp_path_factory.mktemp("trained") / "project")
    project.write_params(shared_params())
    run_stages(project, "scan", "schedule", "diffusion", "reference")
    return project


@pytest.fixture
def project(trained: Project, tmp_path: Path) -> Iterator[Project]:
    """A copy of it, in which this process works."""
    with trained.copy_to(tmp_path / "project").entered() as copy:
        yield copy


def change(project: Project, **sections: Any) -> None:
    params = shared_params()
    for name, values in sections.items():
        if isinstance(values, list):
            params[name][0] |= values[0]
        else:
            params[name] |= values
    project.write_params(params)


def load(project: Project, name: str = "guidance") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=f"sqlite:///{project.folder}/mlruns/optuna.db")


def runs_of(project: Project) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{project.folder}/mlruns/mlflow.db")
    experiment = client.get_experiment_by_name("sfd")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], "tags.`sfd.study` != ''"))


CHAMPION = ([("sfd-digits", {"candidate": "1", "champion": "1"})], [("sfd-digits", "1")])
"""What the finished project had registered."""


def registered(project: Project) -> tuple[list[tuple[str, dict[str, str]]], list[tuple[str, str]]]:
    """Names and aliases of the registered models, and their versions."""
    from mlflow import MlflowClient

    store = MlflowClient(registry_uri=f"sqlite:///{project.folder}/mlruns/mlflow.db")
    models = [
        (found.name, {alias: str(held) for alias, held in found.aliases.items()})
        for found in store.search_registered_models()
    ]
    return models, [(found.name, str(found.version)) for found in store.search_model_versions()]


def test_a_study_ends_in_a_report_in_runs_that_name_their_trials_and_in_values_that_dvc_takes_up(
    project: Project,
) -> None:
    tune(Workspace.find())
    study = load(project)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 4
    runs = {run.info.run_id: run for run in runs_of(project)}
    parent = runs[study.user_attrs["mlflow_run_id"]]
    assert parent.info.run_name == "tune guidance" and parent.info.status == "FINISHED"
    for trial in study.trials:
        run = runs[trial.user_attrs["mlflow_run_id"]]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["sfd.trial"] == str(trial.number) and run.data.tags["sfd.trial_state"] == "COMPLETE"
        assert float(run.data.params["sample.schedule.tau"]) == trial.params["sample.schedule.tau"]
        assert run.data.metrics["objective/fd"] == pytest.approx(trial.values[0])
        assert len(trial.user_attrs["values"]["fd"]) == 2
    assert len(runs) == 5
    names = set(study.user_attrs["confirmation"])
    assert {"params.yaml", "tau = 0.3", "tau = 0"} < names and len(names) == 4
    assert all(len(scores["values"]["fd"]) == 2 for scores in study.user_attrs["confirmation"].values())
    assert registered(project) == CHAMPION, "no trial ever shadows a candidate or champion"
    report = project.result("tune") / "report.html"
    assert "tau = 0.3" in report.read_text() and (project.result("tune") / "best.yaml").is_file()

    status, output = project.run("sfd", "tune", "apply", "guidance")
    assert status == 0, output
    changed = [line for line in output.splitlines() if line.startswith(("+ ", "- "))]
    assert len(changed) == 4 and "scale_texture" in output and "tau" in output
    status, output = project.run("sfd", "params")
    assert status == 0 and str(study.best_params["sample.schedule.tau"]) in output
    assert project.run("sfd", "tune", "apply", "guidance", "--trial", "99")[0] == 2
    assert project.run("sfd", "tune", "report", "nosuch")[0] == 2


def test_the_same_command_continues_a_study_and_one_of_other_parameters_is_refused(project: Project) -> None:
    change(project, tune={"trials": 1})
    tune(Workspace.find())
    first = load(project).trials[0]
    change(project, tune={"trials": 3})
    tune(Workspace.find())
    trials = load(project).trials
    assert len(trials) == 3 and trials[0].params == first.params
    parents = {run.data.tags.get("mlflow.parentRunId") for run in runs_of(project) if "sfd.trial" in run.data.tags}
    assert parents == {load(project).user_attrs["mlflow_run_id"]}, "all trials are below the newest parent"
    change(project, tune={"trials": 3, "num_images": 14})
    with pytest.raises(SystemExit):
        tune(Workspace.find())
    assert len(load(project).trials) == 3


def test_refined_candidates_differ_from_plain_ones_and_repeat_to_the_last_digit(project: Project) -> None:
    found = {}
    for name, steps in (("plain", 0), ("refined", 3), ("again", 3)):
        change(project, tune={"study": name, "trials": 1, "refine_steps": steps})
        tune(Workspace.find())
        found[name] = load(project, name).trials[0].user_attrs["values"]["fd"]
    assert found["refined"] == found["again"] != found["plain"]
    assert not list((project.folder / ".sfd" / "tune").iterdir()), "passing work is removed"


def test_trials_that_train_reuse_the_latents_and_poor_ones_are_pruned(project: Project) -> None:
    space = {"schedule.tau": {"low": 0.0, "high": 1.0}, "schedule.kind": {"choices": ["offset", "curve", "power"]}}
    change(
        project,
        tune={"kind": "training", "trials": 5, "pruner": "hyperband", "report_every": 1, "space": space},
        schedule={"tau": 0.3},
        sample={"schedule": None},
    )
    shutil.rmtree(project.result("diffusion"))
    tune(Workspace.find())
    study = load(project)
    states = [trial.state.name for trial in study.trials]
    assert len(states) == 5 and set(states) <= {"COMPLETE", "PRUNED"} and "COMPLETE" in states
    for trial in study.trials:
        assert trial.intermediate_values
        run = next(run for run in runs_of(project) if run.data.tags.get("sfd.trial") == str(trial.number))
        assert run.info.status == ("FINISHED" if trial.state.name == "COMPLETE" else "KILLED")
        assert "intermediate/fd" in run.data.metrics
    assert registered(project) == CHAMPION
    confirmed = study.user_attrs["confirmation"]
    assert confirmed["params.yaml"]["values"] == confirmed["tau = 0.3"]["values"], "the same parameters, measured once"


def test_a_poor_trial_is_pruned_after_its_first_repeat_and_is_killed_in_mlflow(project: Project) -> None:
    change(project, tune={"trials": 6, "pruner": "hyperband", "sampler": "random"})
    tune(Workspace.find())
    trials = load(project).trials
    pruned = [trial for trial in trials if trial.state.name == "PRUNED"]
    assert pruned and len(pruned) < 6
    assert all(
        len(trial.user_attrs["values"]["fd"]) == 1 and "repeat 1 of 2" in trial.user_attrs["reason"] for trial in pruned
    )
    runs = {run.data.tags.get("sfd.trial"): run for run in runs_of(project)}
    for trial in pruned:
        run = runs[str(trial.number)]
        assert (run.info.status, run.data.tags["sfd.trial_state"]) == ("KILLED", "PRUNED")


def test_several_objectives_have_a_front_and_no_best(project: Project) -> None:
    change(project, tune={"objectives": ["fd", "seconds_per_image"]})
    tune(Workspace.find())
    study = load(project)
    assert all(len(trial.values) == 2 for trial in study.trials)
    status, output = project.run("sfd", "tune", "apply", "guidance")
    assert status == 2 and "--trial" in output and "Traceback" not in output
    number = study.best_trials[0].number
    assert project.run("sfd", "tune", "apply", "guidance", "--trial", str(number))[0] == 0


def test_places_of_few_steps_are_searched_from_even_ones_and_a_point_of_the_front_is_applied(project: Project) -> None:
    places = {"space": {"sample.times": {"low": 2, "high": 3}}, "start": ["even"], "objectives": ["fd", "evaluations"]}
    change(project, tune=places | {"trials": 4})
    tune(Workspace.find())
    study = load(project)
    assert [trial.user_attrs["settings"]["sample.times"] for trial in study.trials[:2]] == [[0, 0.5], [0, 1 / 3, 2 / 3]]
    for trial in study.trials:
        steps = trial.user_attrs["settings"]["sample.num_steps"]
        assert trial.values[1] == 2 * steps == 2 * trial.params["sample.times.steps"], "guided steps evaluate twice"
    front = {trial.number for trial in study.best_trials}
    confirmed = {name.partition(", even")[0] for name in study.user_attrs["confirmation"]}
    assert confirmed - {"params.yaml", "tau = 0.3", "tau = 0"} == {
        next(name for name in (f"best (trial {n})", f"trial {n}") if name in confirmed) for n in front
    }
    assert (project.result("tune") / "front_fd_evaluations.png").is_file()
    assert project.run("sfd", "tune", "apply", "guidance", "--within", "evaluations=1")[0] == 2
    status, output = project.run("sfd", "tune", "apply", "guidance", "--within", "evaluations=4")
    assert status == 0 and "num_steps: 2" in output, output
    applied = Workspace.find().load_params().sample
    assert applied.num_steps == 2 and applied.times is not None and len(applied.times) == 2


def test_the_learnt_curve_is_tried_first_and_then_its_neighbourhood(project: Project) -> None:
    learnt = {"kind": "learnt", "tau": 0.3, "learnt": {"probe_steps": 4, "pieces": 2}}
    loss = small_params()["diffusion"]["loss"] | {"timestep_sampling": "per_part"}
    near = {"kind": "training", "start": ["learnt"], "space": {"schedule.knots": {"low": -1.0, "high": 1.0}}}
    change(
        project,
        schedule=learnt,
        sample={"schedule": None},
        diffusion={"loss": loss},
        tune=near | {"trials": 2, "repeats": 1},
    )
    with pytest.raises(UserError, match="run `dvc repro schedule` first"):
        tune(Workspace.find())
    output = run_stages(project, "scan", "schedule")
    tune(Workspace.find())
    found = json.loads((project.result("schedule") / "schedule.json").read_text())["schedule"]["knots"]
    first, second = (trial.user_attrs["settings"] for trial in load(project).trials)
    assert first["schedule.knots"] == found and first["schedule.kind"] == "curve"
    assert sum(second["schedule.knots"]) == pytest.approx(1.0) and second["schedule.knots"] != found
    confirmed = load(project).user_attrs["confirmation"]
    assert {"params.yaml", "tau = 0.3", "tau = 0"} < set(confirmed)
    status, output = project.run("sfd", "tune", "apply", "guidance", "--trial", "0")
    assert status == 0, output
    applied = Workspace.find().load_params().schedule
    assert (applied.kind, list(applied.knots), applied.learnt) == ("curve", found, None)


def halve(project: Project, name: str = "halving", **tuned: Any) -> None:
    """Three offsets, halved from a start along the range of all."""
    halving = {
        "study": name,
        "kind": "training",
        "repeats": 1,
        "halving": {"base_steps": 2, "first_steps": 1},
        "space": {"schedule.tau": {"choices": [0.0, 0.3, 0.6]}},
    }
    change(project, tune=halving | tuned)


def scores(study: optuna.Study) -> dict[int, tuple[int, int, float]]:
    """By slot: round, candidate and distance."""
    complete = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    return {
        trial.user_attrs["slot"]: (trial.user_attrs["round"], trial.user_attrs["candidate"], trial.values[0])
        for trial in complete
    }


def test_halving_goes_on_where_it_was_interrupted_and_the_last_two_are_confirmed_from_scratch(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    halve(project)
    tune(Workspace.find())
    whole = load(project, "halving")
    assert [(place, number) for place, number, _ in scores(whole).values()][:3] == [(0, 0), (0, 1), (0, 2)]
    assert len(scores(whole)) == 5 and {place for place, _, _ in scores(whole).values()} == {0, 1}
    confirmed = whole.user_attrs["confirmation"]
    assert [name.split(" (")[0] for name in confirmed] == ["best", "second"]
    assert all(len(found["values"]["fd"]) == 2 for found in confirmed.values())
    assert (project.result("tune") / "rounds.png").is_file()
    assert not list((project.folder / ".sfd" / "tune").iterdir()), "passing work is removed"

    halve(project, "stopped", minutes=1e-6)
    with pytest.raises(SystemExit):
        tune(Workspace.find())
    halve(project, "stopped")
    train, calls = WarmStarts.model, list[str]()

    def killed(self: WarmStarts, candidate: Params, name: str, steps: int) -> DiffusionModel:
        calls.append(name)
        if len(calls) == 4:  # in the second round, before the trained model is scored
            train(self, candidate, name, steps)
            raise KeyboardInterrupt
        return train(self, candidate, name, steps)

    with monkeypatch.context() as patch:
        patch.setattr(WarmStarts, "model", killed)
        with pytest.raises(KeyboardInterrupt):
            tune(Workspace.find())
    tune(Workspace.find())
    again = load(project, "stopped")
    assert scores(again) == scores(whole)
    best = [next(iter(study.user_attrs["confirmation"].values())) for study in (whole, again)]
    assert best[0] == best[1], "the same schedule, and the same fresh trainings"
    status, output = project.run("sfd", "tune", "apply", "stopped")
    assert status == 0, output
    applied = Workspace.find().load_params()
    assert (applied.schedule.tau, applied.sample.schedule) == (best[0]["params"]["schedule.tau"], None)


def test_a_candidate_that_goes_on_is_the_same_to_the_last_bit_as_one_that_was_longer_from_the_beginning(
    project: Project,
) -> None:
    halve(project)
    workspace = Workspace.find()
    params = workspace.load_params()
    starts = WarmStarts(params, CandidateEvaluator(workspace, params), project.folder / "warm")
    candidate = with_values(params, {"schedule.tau": 0.6, "sample.schedule": None})
    first = starts.model(candidate, "a", 1).network.state_dict()
    longer = starts.model(candidate, "a", 2).network.state_dict()
    whole = starts.model(candidate, "b", 2).network.state_dict()
    other = starts.model(with_values(candidate, {"schedule.tau": 0.0}), "c", 2).network.state_dict()
    assert all(torch.equal(longer[name], whole[name]) for name in whole)
    assert any(not torch.equal(first[name], longer[name]) for name in whole)
    assert any(not torch.equal(other[name], longer[name]) for name in whole)
    other_start = with_values(params, {"schedule.tau": {"low": 0.0, "high": 0.9}})
    assert signature(workspace, other_start) != signature(workspace, params), "the candidates would not be comparable"


def test_minutes_that_run_out_end_halving_with_the_place_and_a_worker_can_do_all_rounds(project: Project) -> None:
    tracking = {"MLFLOW_TRACKING_URI": os.environ["MLFLOW_TRACKING_URI"]}
    halve(project, minutes=1e-6)
    status, output = project.run("sfd", "tune", **tracking)
    assert status == 2 and "study `halving` is not over: round 1 (1 steps after 2 shared ones) has 0 of 3" in output
    assert "the same command continues" in output and "Traceback" not in output
    halve(project)
    status, output = project.run("sfd", "tune", "--worker", **tracking)
    assert status == 0 and "5 complete" in output, output
    status, output = project.run("sfd", "tune", **tracking)
    assert status == 0 and "Rounds:" in output and "from scratch" in output, output
    assert len(load(project, "halving").trials) == 5


def test_values_that_do_not_fit_together_fail_their_trial_and_not_the_study(project: Project) -> None:
    space = {
        "sample.guidance.kind": {"choices": ["none", "cfg"]},
        "sample.guidance.scale_texture": {"low": 1.0, "high": 2.0},
    }
    plain = small_params()["sample"]["guidance"] | {"scale_texture": 1.0, "scale_semantic": 1.0}
    change(project, tune={"space": space, "trials": 6, "sampler": "random"}, sample={"guidance": plain})
    tune(Workspace.find())
    states = {trial.state.name: trial.user_attrs.get("reason", "") for trial in load(project).trials}
    assert set(states) == {"COMPLETE", "FAIL"} and "sample.guidance.kind is `none`" in states["FAIL"]
    runs = [run for run in runs_of(project) if run.data.tags.get("sfd.trial_state") == "FAIL"]
    assert runs and all(run.info.status == "FAILED" for run in runs)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a misspelt key": ({"space": {"sample.num_step": {"low": 1, "high": 9}}}, "nearest valid key: `sample.num_steps`"),
    "a range outside the limits": (
        {"space": {"sample.guidance.scale_texture": {"low": 1.0, "high": 99.0}}},
        "less than or equal to 20",
    ),
    "an unreachable server": ({"storage": "postgresql://u@127.0.0.1:9/x"}, "127.0.0.1:9"),
    "a folder that cannot be": ({"storage": "sqlite:////proc/none/optuna.db"}, "/proc/none"),
}


@pytest.mark.parametrize("wrong", [*WRONG, "a missing upstream output", "an upstream output of other parameters"])
def test_a_mistake_stops_the_command_in_under_three_seconds_with_one_line(project: Project, wrong: str) -> None:
    changes, message = WRONG.get(wrong, ({}, "dvc repro judge"))
    change(project, tune=changes)
    if wrong == "a missing upstream output":
        shutil.rmtree(project.result("judge"))
    if wrong == "an upstream output of other parameters":
        change(project, judges=[{"channels": [8, 8, 8, 16]}])
    status, output, seconds = project.run_alone("sfd", "tune")
    assert seconds < 3.0
    assert status == 2 and output.startswith("error: ") and output.count("\n") == 1, output
    assert message in output and "secret" not in output


def test_an_objective_that_would_rest_on_too_few_held_out_images_is_refused_before_the_first_trial(
    project: Project,
) -> None:
    limits = {"fd": 11, "kid": None, "precision": None, "class_accuracy": None, "memorised_fraction": None}
    change(project, evaluate={"min_images": limits | {"inception_score": None}})
    status, output = project.run("sfd", "tune")
    assert status == 2 and "`fd` needs 11 images, but a repeat compares 12 samples with 10 held-out images" in output


def test_a_worker_needs_a_study(project: Project) -> None:
    status, output = project.run("sfd", "tune", "--worker")
    assert status == 2 and "start it with `sfd tune`" in output and output.count("\n") == 1


def kill_a_worker_in_mid_trial(project: Project, storage: str, url: str) -> None:
    """A worker is killed while it runs a trial; the main process then does that trial again, and the others."""
    tracking = {"MLFLOW_TRACKING_URI": os.environ["MLFLOW_TRACKING_URI"]}
    budget = {"trials": 4, "storage": storage}
    # A main process without time leaves the study to the worker, however long that one takes to start.
    change(project, tune=budget | {"minutes": 1e-6}, sample={"num_steps": 20})
    status, output = project.run("sfd", "tune", **tracking)
    assert status == 2 and "no trial of study" in output, output
    change(project, tune=budget, sample={"num_steps": 20})
    worker = project.start("sfd", "tune", "--worker", **tracking)

    def study() -> optuna.Study:
        return optuna.load_study(study_name="guidance", storage=url)

    def busy() -> bool:
        names = shared_params()["tune"]["space"].keys()  # a trial gets its values one after the other
        return any(trial.state.name == "RUNNING" and trial.params.keys() == names for trial in study().trials)

    wait_until(busy, 180)
    os.kill(worker.pid, signal.SIGKILL)
    worker.communicate()
    status, output = project.run("sfd", "tune", **tracking)
    assert status == 0, output
    trials = study().trials
    lost = [trial for trial in trials if "killed or lost" in trial.user_attrs.get("reason", "")]
    assert len(lost) == 1 and lost[0].state.name == "FAIL"
    assert lost[0].user_attrs["worker"].endswith(f":{worker.pid}")
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    assert sorted(trial.user_attrs["slot"] for trial in complete) == list(range(4)), "none is missing, none done twice"
    retry = next(trial for trial in complete if trial.user_attrs["slot"] == lost[0].user_attrs["slot"])
    assert retry.params == lost[0].params and retry.user_attrs["attempt"] == 2
    statuses = {run.data.tags.get("sfd.trial"): run.info.status for run in runs_of(project)}
    assert statuses.get(str(lost[0].number), "FAILED") == "FAILED"
    assert "RUNNING" not in statuses.values()


def test_a_killed_workers_trial_is_done_by_another_once(project: Project) -> None:
    storage = "sqlite:///mlruns/optuna.db"
    kill_a_worker_in_mid_trial(project, storage, f"sqlite:///{project.folder}/mlruns/optuna.db")


def test_a_killed_workers_trial_is_done_by_another_once_on_postgresql(project: Project) -> None:
    with postgres_server() as url:
        kill_a_worker_in_mid_trial(project, url, expand(url).replace("://", "+psycopg2://", 1))


def test_the_dvc_stage_runs_the_study_and_the_default_graph_leaves_it_alone(project: Project) -> None:
    status, listed = project.run("dvc", "stage", "list", "--name-only")
    assert status == 0 and "evaluate" in listed and "tune" not in listed
    output = project.repro("--single-item", "tune/dvc.yaml:tune")
    assert "sfd tune" in output and (project.result("tune") / "report.html").is_file()
    again = project.repro("--single-item", "tune/dvc.yaml:tune")
    assert "Running" not in again


def test_a_trial_that_is_interrupted_before_its_run_is_open_waits_again(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(project, tune={"trials": 1})

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sfd.tuning.trials.start_run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tune(Workspace.find())
    assert [trial.user_attrs["reason"] for trial in load(project).trials] == ["interrupted"]
    tune(Workspace.find())
    assert [trial.state.name for trial in load(project).trials] == ["FAIL", "COMPLETE"]


def test_ctrl_c_keeps_what_is_done_and_the_same_command_finishes(project: Project) -> None:
    change(project, tune={"trials": 4}, sample={"num_steps": 40})
    main = project.start("sfd", "tune", forked=True, MLFLOW_TRACKING_URI=os.environ["MLFLOW_TRACKING_URI"])

    def one_is_done_and_another_under_way() -> bool:
        try:
            trials = load(project).trials
        except KeyError:
            return False
        return {"COMPLETE", "RUNNING"} <= {trial.state.name for trial in trials if "values" in trial.user_attrs}

    wait_until(one_is_done_and_another_under_way, 180)
    main.send_signal(signal.SIGINT)
    output, _ = main.communicate()
    assert main.returncode != 0 and "the same command continues" in output and "Traceback" not in output, output
    done = [trial.number for trial in load(project).trials if trial.state.name == "COMPLETE"]
    status, output = project.run("sfd", "tune", MLFLOW_TRACKING_URI=os.environ["MLFLOW_TRACKING_URI"])
    assert status == 0, output
    complete = [trial for trial in load(project).trials if trial.state.name == "COMPLETE"]
    assert done and set(done) <= {trial.number for trial in complete}
    assert sorted(trial.user_attrs["slot"] for trial in complete) == [0, 1, 2, 3]
    (interrupted,) = (trial for trial in load(project).trials if trial.user_attrs.get("reason") == "interrupted")
    statuses = {run.data.tags.get("sfd.trial"): run.info.status for run in runs_of(project)}
    assert statuses[str(interrupted.number)] == "KILLED"


def test_both_halves_of_the_held_out_images_have_the_same_classes() -> None:
    labels = [0] * 30 + [1] * 7 + [2] * 5
    found = halves(labels, seed=0)
    assert sorted(sum(found.values(), [])) == list(range(42)) and {len(rows) for rows in found.values()} == {21}
    for rows in found.values():
        assert [sum(labels[row] == label for row in rows) for label in (0, 1, 2)] in ([15, 3, 3], [15, 4, 2])
    assert halves(labels, seed=0) == found != halves(labels, seed=1)
