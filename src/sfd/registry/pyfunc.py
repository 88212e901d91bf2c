"""The registered model, from code: MLflow runs this file to get it. Self-contained: weights, schedule, statistics and decoder."""

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import torch

from sfd.data.images import png_bytes
from sfd.generation import ImageGenerator
from sfd.params import SampleParams


class SfdModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]  # mlflow is not typed
    """Rows of class and seed in, PNG bytes out."""

    def load_context(self, context: Any) -> None:
        """Reads the artifacts."""
        torch.set_grad_enabled(False)
        self.images = ImageGenerator.load(Path(context.artifacts["diffusion"]), Path(context.artifacts["texture_vae"]))
        self.defaults = SampleParams.model_validate_json(Path(context.artifacts["sample"]).read_text())

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:  # noqa: ARG002
        """One PNG a row.

        Args:
            model_input: columns ``label`` (class name) and ``seed`` (0 or more; the seeds of ``samples.csv`` give those images).
            params: ``num_steps``, ``scale_texture``, ``scale_semantic``; a value of 0 means the default of the model.

        Raises:
            mlflow.MlflowException: an unknown class, a negative seed or an impossible parameter (HTTP 400).
        """
        try:
            classes = [self._class_index(label) for label in model_input["label"]]
            seeds = [self._seed(seed) for seed in model_input["seed"]]
            sample = self._settings(params or {})
        except ValueError as error:
            raise mlflow.MlflowException.invalid_parameter_value(str(error)) from error
        batches = self.images.sample(classes, seeds, sample)
        return pd.DataFrame({"png": [png_bytes(image) for batch in batches for image in batch]})

    def _class_index(self, label: str) -> int:
        names = self.images.model.classes
        if label not in names:
            raise ValueError(f"label {label!r} is no class of this model; its classes are {', '.join(names[:50])}")
        return names.index(label)

    @staticmethod
    def _seed(seed: int) -> int:
        if int(seed) < 0:
            raise ValueError(f"seed must be 0 or more, but is {seed}")
        return int(seed)

    def _settings(self, params: dict[str, Any]) -> SampleParams:
        """The model's own settings with the request's values in their place; checked by the same rules."""
        given = {key: value for key, value in params.items() if value}
        tree = self.defaults.model_dump()
        tree |= {"num_steps": given.pop("num_steps", self.defaults.num_steps)}
        if given:
            kind = "cfg" if self.defaults.guidance.kind == "none" else self.defaults.guidance.kind
            tree["guidance"] |= {"kind": kind, **given}
        return SampleParams.model_validate(tree)


mlflow.models.set_model(SfdModel())
