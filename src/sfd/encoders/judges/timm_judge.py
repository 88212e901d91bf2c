"""A network of timm as the judge: features that others trained, and a linear classifier of the data set's classes, fitted here."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfd.encoders.judges.judge import Judge
from sfd.encoders.timm_networks import Preprocessing, in_slices, judge_network, load_network, rebuild
from sfd.errors import UserError
from sfd.network_files import load_weights, read_config, save_network, weights_digest
from sfd.params import JudgeParams

INVERSE_REGULARISATION = 0.01
"""Of the logistic regression, on standardised features (scikit-learn's ``C``). With 3,900 images of eight classes, 0.1 and 0.001 told fewer
held-out images right."""
MAX_ITERATIONS = 1000


class TimmJudge(Judge):
    """Features are what the network's own classifier saw; those of a CLIP are its embeddings of images.

    ``classes`` is None until :meth:`fit_classes`, and with a single class.
    """

    kind = "timm"
    fits_classes = True

    def __init__(self, config: dict[str, Any], digest: str) -> None:
        super().__init__()
        self.name, self.digest = config["name"], digest
        self.num_features, self.classes = config["num_features"], config["classes"]
        self.network = rebuild(config["network"])
        self.preprocessing = Preprocessing(config["network"], antialias=True)
        self.head = nn.Linear(self.num_features, self.classes) if self.classes is not None else None

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """As :class:`Judge` says."""
        features = in_slices(self._features, images, self.preprocessing.input_size)
        return features, self.head(features) if self.head is not None else None

    def _features(self, images: Tensor) -> Tensor:
        # Pooled in float32, as in ResnetJudge.
        maps = self.run(self._maps, self.preprocessing(images.float() / 255.0))
        return pooled(self.network, maps)

    def _maps(self, inputs: Tensor) -> Tensor:
        maps: Tensor = self.network.forward_features(inputs)  # type: ignore[operator]  # of every timm model
        return maps

    @classmethod
    def save_pretrained(cls, folder: Path, params: JudgeParams) -> None:
        """As :class:`Judge` says.

        Raises:
            UserError: the network is unknown, its weights cannot be had or do not fit, or it does not take images of this size.
        """
        network, description = load_network(judge_network(params))
        size = params.input_size
        try:
            with torch.no_grad():
                features = pooled_features(network, torch.zeros(1, 3, size, size))
        except (RuntimeError, ValueError, AssertionError) as error:
            raise UserError(
                f"judge `{params.name}`: model {params.model} gives no features of an image of input_size {size}: "
                f"{' '.join(str(error).split())[:300]}; choose another size, or another network"
            ) from error
        config = {"kind": cls.kind, "name": params.name, "num_features": features.shape[1], "classes": None}
        save_network(folder, nn.ModuleDict({"network": network}), config | {"network": description})

    @classmethod
    def fit_classes(cls, folder: Path, features: Tensor, labels: Tensor, classes: int) -> None:
        """As :class:`Judge` says: multinomial logistic regression on standardised features, in which all classes weigh the same."""
        judge = cls.load(folder)
        judge.head = fit_linear(features, labels)
        save_network(folder, judge, read_config(folder) | {"classes": classes})

    @classmethod
    def load(cls, folder: Path) -> "TimmJudge":
        """As :class:`Judge` says."""
        judge = cls(read_config(folder), weights_digest(folder))
        load_weights(folder, judge)
        return judge


def pooled_features(network: nn.Module, inputs: Tensor) -> Tensor:
    """What the network's classifier sees, or the embedding of a CLIP: ``(B, 3, S, S)`` -> ``(B, D)``.

    Raises:
        ValueError: the network gives something else.
    """
    return pooled(network, network.forward_features(inputs))  # type: ignore[operator]  # of every timm model


def pooled(network: nn.Module, maps: Tensor) -> Tensor:
    """As :func:`pooled_features`, of what the network's ``forward_features`` gave."""
    is_embedding = bool(getattr(network, "num_classes", 0))
    features = network.forward_head(maps, pre_logits=not is_embedding)  # type: ignore[operator]  # of every timm model
    if not isinstance(features, Tensor) or features.ndim != 2:
        raise ValueError("its pooled features are not one vector per image")
    return features


def fit_linear(features: Tensor, labels: Tensor) -> nn.Linear:
    """A linear classifier of features ``(N, D)`` by scikit-learn's L-BFGS, the same in every run.

    The standardisation is folded into its weights. A feature that is the same for all images is left out.
    """
    from sklearn.linear_model import LogisticRegression

    values = features.double().cpu()
    mean, std = values.mean(dim=0), values.std(dim=0, unbiased=False)
    scale = torch.where(std > 0, 1.0 / std, 0.0)
    regression = LogisticRegression(C=INVERSE_REGULARISATION, class_weight="balanced", max_iter=MAX_ITERATIONS)
    regression.fit(((values - mean) * scale).numpy(), labels.numpy())
    weight, bias = _logits(torch.from_numpy(regression.coef_), torch.from_numpy(regression.intercept_))
    head = nn.Linear(features.shape[1], len(weight))
    with torch.no_grad():
        head.weight.copy_(weight * scale)
        head.bias.copy_(bias - (weight * scale) @ mean)
    return head


def _logits(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """One row per class. scikit-learn has a single row for two classes: the log-odds of the second."""
    if len(weight) > 1:
        return weight, bias
    return torch.cat([torch.zeros_like(weight), weight]), torch.cat([torch.zeros_like(bias), bias])
