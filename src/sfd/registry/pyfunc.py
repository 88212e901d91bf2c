"""The registered model, from code: MLflow runs this file to get it. Self-contained: weights, schedule, statistics and decoder."""

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import torch

from sfd.generation import ImageGenerator
from sfd.params import SampleParams
from sfd.registry.requests import apply_request, class_index, to_png


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
            classes = [class_index(self.images.model.classes, label) for label in model_input["label"]]
            seeds = [self._seed(seed) for seed in model_input["seed"]]
            given = {key: value for key, value in (params or {}).items() if value}
            sample = apply_request(self.defaults, self.images.model, given)
        except ValueError as error:
            raise mlflow.MlflowException.invalid_parameter_value(str(error)) from error
        batches = self.images.sample(classes, seeds, sample)
        return pd.DataFrame({"png": [to_png(image) for batch in batches for image in batch]})

    @staticmethod
    def _seed(seed: int) -> int:
        if int(seed) < 0:
            raise ValueError(f"seed must be 0 or more, but is {seed}")
        return int(seed)


mlflow.models.set_model(SfdModel())
