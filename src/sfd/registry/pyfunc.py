"""The registered model, from code: MLflow runs this file to get it. Self-contained: weights, schedule, statistics and decoder."""

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd

from sfd.data.images import png_bytes
from sfd.generation.images import ImageGenerator
from sfd.generation.settings import read_settings
from sfd.precision import Inference
from sfd.registry.requests import MODELS_OWN_PROMPT, MODELS_OWN_TAU, apply_request
from sfd.registry.smoke import column_of


class SfdModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]  # mlflow is not typed
    """Rows of condition and seed in, PNG bytes out."""

    def load_context(self, context: Any) -> None:
        """Reads the artifacts."""
        folders = {name: Path(path) for name, path in context.artifacts.items()}
        self.defaults = read_settings(folders["sample"])
        self.images = ImageGenerator.load(
            folders["diffusion"],
            folders["texture_vae"],
            folders.get("weak_model"),
            self.defaults.other_networks,
            Inference.recorded(self.defaults.precision),
            folders.get("text_encoder"),
        )

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:  # noqa: ARG002
        """One PNG per row.

        Args:
            model_input: columns ``label`` (class name; only of a model that knows classes) and ``seed`` (0 or more; the seeds of
                ``samples.csv`` give those images). A model that is told words has ``prompt`` in the label's place.
            params: ``num_steps``, ``scale_texture``, ``scale_semantic``, where 0 means the default of the model, and ``tau``, the
                offset of a model that was trained for a range of them, where -1 means the default. Of a model that is told words,
                ``negative_prompt``, where "" means the default.

        Raises:
            mlflow.MlflowException: an unknown class, a class where the model knows none, a negative seed or an impossible parameter (HTTP 400).
        """
        try:
            values = [self.images.model.condition.from_request(label) for label in self._labels(model_input)]
            seeds = [self._seed(seed) for seed in model_input["seed"]]
            sample = apply_request(self.defaults, self.images.model, self._given(params or {}))
        except ValueError as error:
            raise mlflow.MlflowException.invalid_parameter_value(str(error)) from error
        batches = self.images.sample(values, seeds, sample, sample.batch_size)
        return pd.DataFrame({"png": [png_bytes(image) for batch in batches for image in batch]})

    def _labels(self, model_input: pd.DataFrame) -> list[str | None]:
        """The column ``label``, or ``prompt``; None where it is absent or empty."""
        column = column_of(self.images.model.condition)
        if column not in model_input:
            return [None] * len(model_input)
        return [None if pd.isna(label) else label for label in model_input[column]]

    @staticmethod
    def _given(params: dict[str, Any]) -> dict[str, float | str]:
        """What a request chooses: MLflow fills in the signature's defaults, which mean the model's own."""
        own = {"tau": MODELS_OWN_TAU, "negative_prompt": MODELS_OWN_PROMPT}
        return {key: value for key, value in params.items() if value != own.get(key, 0)}

    @staticmethod
    def _seed(seed: int) -> int:
        if int(seed) < 0:
            raise ValueError(f"seed must be 0 or more, but is {seed}")
        return int(seed)


mlflow.models.set_model(SfdModel())
