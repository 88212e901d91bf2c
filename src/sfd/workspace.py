"""A project: the folder of ``params.yaml``, and the places below it.

Commands work from any folder of a project, as those of git and dvc do. The process never changes its working folder: a place is the
project's root, as seen from the working folder, and the name below it. So every path that is printed can be used where the user stands.

`dvc exp run` may work in a copy of the project, ``.dvc/tmp/exps/NAME``, which holds what git and DVC know and is deleted afterwards. What
must outlive it goes to the project, and what git does not know is read there.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from sfd.errors import UserError
from sfd.params import (
    LOCK_ENDING,
    MAX_MODEL_NAME,
    DataParams,
    Params,
    RegisterParams,
    SampleParams,
    TrackingParams,
    load_params,
    registered_model,
)

PARAMS_NAME = "params.yaml"
ADDRESSES = ("root", "init_from")
"""Options that hold a path or a name elsewhere: of a data set on the hub, or of a registered model. All other paths are typed."""

Section = TypeVar("Section", bound=BaseModel)


def plain_name(text: str) -> str:
    """A name that MLflow's models and experiments can have: a hyphen in place of what their names cannot hold."""
    plain = re.sub(r"[^\w .@+()-]+", "-", text)[:MAX_MODEL_NAME].strip(" .@+()-")
    return f"{plain}-" if plain.endswith(LOCK_ENDING) else plain or "sfd"


def average_name(decay: float) -> str:
    """The folder of a further average of the weights, in the result of stage ``diffusion``."""
    return f"averages/ema-{decay!r}"


@dataclass(frozen=True)
class Experiment:
    """A run of `dvc exp run`. ``name``: DVC's name for it. ``project``: the folder of the project that it is a variant of."""

    name: str
    project: Path

    @classmethod
    def find(cls, root: Path) -> "Experiment | None":
        """The experiment that runs this process in the project at ``root``; None outside of `dvc exp run`.

        DVC names the experiment and the project in the environment. A program that an experiment starts inherits both, even if it works
        on another project: there they do not count.
        """
        name, home = os.environ.get("DVC_EXP_NAME"), os.environ.get("DVC_ROOT")
        if not name or not home:
            return None
        resolved = root.resolve()
        own = next((folder for folder in (resolved, *resolved.parents) if (folder / ".dvc").is_dir()), None)
        copies = (Path(home) / ".dvc" / "tmp" / "exps").resolve()
        if own is None or not (own == Path(home).resolve() or own.is_relative_to(copies)):
            return None
        return cls(name, Path(os.path.relpath(Path(home).resolve() / resolved.relative_to(own))))


@dataclass(frozen=True)
class Workspace:
    """The places of one project. ``root``: its folder, relative to the working folder. ``dvc_experiment``: that it is run for, if any."""

    root: Path
    dvc_experiment: Experiment | None = None

    @classmethod
    def find(cls, start: Path = Path()) -> "Workspace":
        """The project that ``start`` lies in: the nearest folder upwards that holds ``params.yaml``.

        Raises:
            UserError: ``start`` is no folder, or neither it nor a folder above it holds the file.
        """
        if not start.is_dir():
            raise UserError(f"{start} is not a folder; name the folder of a project, which holds {PARAMS_NAME}")
        resolved = start.resolve()
        for folder in (resolved, *resolved.parents):
            if (folder / PARAMS_NAME).is_file():
                return cls(Path(os.path.relpath(folder)), Experiment.find(folder))
        raise UserError(
            f"there is no {PARAMS_NAME} in {resolved} or a folder above it; run in the project's folder, name it with "
            "`sfd --project DIR`, or make one with `sfd init DIR`"
        )

    @property
    def name(self) -> str:
        """The project's name: that of its folder, as far as MLflow takes it."""
        return plain_name(self.home.resolve().name)

    def model_name(self, register: RegisterParams) -> str:
        """The registered model: ``register.name``, or the project's name."""
        return register.name or self.name

    def experiment(self, tracking: TrackingParams) -> str:
        """The MLflow experiment: ``tracking.experiment``, or the project's name."""
        return tracking.experiment or self.name

    @property
    def home(self) -> Path:
        """The folder of what lasts: that of the project, also while an experiment runs in a copy of it."""
        return self.root if self.dvc_experiment is None else self.dvc_experiment.project

    @property
    def params_file(self) -> Path:
        """The parameters."""
        return self.root / PARAMS_NAME

    @property
    def results(self) -> Path:
        """One folder per finished stage."""
        return self.root / "results"

    @property
    def listing(self) -> Path:
        """The names, sizes and times of the images that stage ``scan`` found."""
        return self.results / "scan" / "listing.json"

    @property
    def init_from(self) -> Path:
        """What stage ``scan`` found ``diffusion.init_from`` to be."""
        return self.results / "scan" / "init_from.json"

    @property
    def experiment_file(self) -> Path:
        """Whether stage ``scan`` ran for an experiment, whose version of the model takes no alias."""
        return self.results / "scan" / "experiment.json"

    def code(self, stage: str) -> Path:
        """What stage ``scan`` found the code of a stage to be."""
        return self.results / "scan" / "code" / stage

    @property
    def dvc_lock(self) -> Path:
        """What DVC knows of the last results."""
        return self.root / "dvc.lock"

    @property
    def mlruns(self) -> Path:
        """The embedded MLflow store."""
        return self.home / "mlruns"

    @property
    def journals(self) -> Path:
        """The records of runs, until MLflow has them and after."""
        return self.home / ".sfd" / "journal"

    def result(self, stage: str) -> Path:
        """The folder of a finished stage."""
        return self.results / stage

    def finished(self, stage: str) -> Path:
        """What a stage's last training left, so that a longer one can go on from there."""
        return self.root / ".sfd" / "finished" / stage

    def model(self, step: int | None = None, decay: float | None = None) -> Path:
        """The folder of the trained diffusion model, or of the weights that it had after ``step`` steps, where these are kept.

        ``decay``: of a further average of the weights; None: the average of ``diffusion.training.ema_decay``.
        """
        result = self.result("diffusion")
        result = result if decay is None else result / average_name(decay)
        return result / "model" if step is None else result / "steps" / f"step-{step:07d}"

    def sampled_model(self, params: Params) -> Path:
        """The folder of the weights that section ``sample`` draws from."""
        decay = params.sample.ema_decay
        return self.model(params.sample.step, None if decay == params.diffusion.training.ema_decay else decay)

    @property
    def text_encoder(self) -> Path:
        """The folder of the text encoder that stage ``text`` left, where a model is told words."""
        return self.result("text") / "model"

    def resolve_sample(self, params: Params) -> SampleParams:
        """Section ``sample`` with its paths resolved."""
        resolved = self.resolve_paths(params.sample)
        assert isinstance(resolved, SampleParams)
        return resolved

    def judge(self, name: str) -> Path:
        """The folder of a judge that stage ``judge`` made."""
        return self.result("judge") / name / "model"

    def kept_steps(self) -> list[int]:
        """The steps of training whose weights the result of stage ``diffusion`` holds, in order."""
        return sorted(int(path.name.removeprefix("step-")) for path in self.result("diffusion").glob("steps/step-*"))

    @property
    def preview(self) -> Path:
        """The newest sample grid, while the diffusion model is trained. No stage's result, so DVC lets it be."""
        return self.results / "preview.png"

    def work(self, stage: str) -> Path:
        """The folder in which a stage works. DVC does not know it; a killed stage continues there.

        That of an experiment's copy lies in the project, so that it outlives the copy.
        """
        if self.home == self.root or self.dvc_experiment is None or self.home.stat().st_dev != self.root.stat().st_dev:
            return self.root / ".sfd" / "work" / stage
        return self.home / ".sfd" / "work" / f"{stage}@{self.dvc_experiment.name}"

    @property
    def old(self) -> Path:
        """Work that was set aside because parameters, inputs or code have changed; the newest of each stage."""
        return self.home / ".sfd" / "old"

    def trials(self, study_id: str) -> Path:
        """The temporary folders of a study's trials."""
        return self.root / ".sfd" / "tune" / study_id

    def checked(self, stage: str) -> Path:
        """Notes of which shards of a stage's result were found whole, so that each is read once for that."""
        return self.home / ".sfd" / "checked" / stage

    @property
    def scores(self) -> Path:
        """The scores of all settings that `sfd sweep` has drawn, by digest: of no use to a stage, and small, so they stay."""
        return self.home / ".sfd" / "sweep"

    def load_params(self) -> Params:
        """The parameters, checked. Paths in them stay as they are written, relative to the root.

        Raises:
            UserError: the file is missing, not valid YAML, or breaks a rule.
        """
        return load_params(self.params_file)

    def resolve(self, path: str | Path) -> Path:
        """A path that ``params.yaml`` names, which is relative to the root, as seen from the working folder; `~` is the home folder.

        The copy of an experiment lacks what git and DVC do not know, such as a folder of images: that is read in the project itself.
        """
        path = os.path.expanduser(path)
        here = self.root / path
        return here if here.exists() else self.home / path

    def resolve_paths(self, section: Section) -> Section:
        """A section of the parameters, or all of them, with every path resolved: what code that opens files gets.

        Fingerprints, records and results take the section as it is written, so that they do not depend on the working folder.
        """
        changes: dict[str, object] = {}
        for name in type(section).model_fields:
            value = getattr(section, name)
            if isinstance(value, BaseModel):
                changes[name] = self.resolve_paths(value)
            elif isinstance(value, tuple):
                changes[name] = tuple(
                    self.resolve_paths(each) if isinstance(each, BaseModel) else each for each in value
                )
            elif isinstance(value, Path):
                changes[name] = self.resolve(value)
            elif name in ADDRESSES and isinstance(value, str) and registered_model(value) is None:
                changes[name] = str(self.resolve(value))
        if (
            isinstance(section, DataParams)
            and section.source == "huggingface"
            and not self.resolve(section.root).exists()
        ):
            del changes["root"]  # the name of a data set on the hub
        return section.model_copy(update=changes)

    def name_of(self, path: Path) -> str:
        """A path as records and results name it: relative to the root if it lies below it."""
        return str(path.relative_to(self.root) if path.is_relative_to(self.root) else path)
