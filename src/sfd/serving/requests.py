"""What a client may ask of ``POST /generate``, and what it gets."""

import base64
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

from pydantic import Field, field_validator, model_validator
from starlette.responses import JSONResponse, Response

from sfd.params import Fraction, Positive, SampleParams, Scale, Section
from sfd.registry.load import RegisteredModel
from sfd.registry.requests import apply_request, class_index

MAX_SEED = 2**63 - 1
"""The largest seed, as of the registered model's column ``seed`` (a 64-bit integer with a sign)."""

MAX_STEPS = 200
"""Steps that a client may ask for, unless the version was registered with more: a sampler call cannot be interrupted, and others wait."""


class PartScales(Section):
    """Guidance of the two parts."""

    texture: Scale | None = None
    semantic: Scale | None = None


class GenerateRequest(Section):
    """The body of ``POST /generate``. What is left out is as the version was registered; image k has seed ``seed + k``."""

    class_: str | int = Field(alias="class")
    count: Positive = 1
    seed: int = Field(0, ge=0, le=MAX_SEED)
    steps: Positive | None = None
    guidance: PartScales | None = None
    tau: Fraction | None = None
    format: Literal["png", "zip", "json"] = "png"

    @field_validator("class_", mode="plain")
    @classmethod
    def _check_class(cls, value: object) -> str | int:
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise ValueError("give the name of a class as a string, or its index as an integer")
        return value

    @field_validator("guidance", mode="before")
    @classmethod
    def _one_scale_for_both(cls, value: Any) -> Any:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return {"texture": value, "semantic": value} if is_number else value

    @model_validator(mode="after")
    def _check_count(self) -> "GenerateRequest":
        if self.format == "png" and self.count > 1:
            raise ValueError(f"format `png` holds one image, but count is {self.count}: set format to `zip` or `json`")
        if self.seed + self.count - 1 > MAX_SEED:
            raise ValueError(f"the last image's seed, {self.seed + self.count - 1}, is above {MAX_SEED}: lower seed")
        return self


@dataclass(frozen=True)
class Order:
    """A request that a version can fulfil. ``settings`` has the request's values in place of the registered ones."""

    model: RegisteredModel
    class_index: int
    seeds: Sequence[int]
    settings: SampleParams
    format: Literal["png", "zip", "json"]

    @property
    def class_name(self) -> str:
        """The name of the class."""
        return self.model.images.model.classes[self.class_index]


def step_limit(model: RegisteredModel) -> int:
    """The most steps that a client may ask for."""
    return max(MAX_STEPS, model.sample.num_steps)


def place_order(request: GenerateRequest, model: RegisteredModel, max_images: int) -> Order:
    """Checks a request against a version and the server's limits.

    Raises:
        ValueError: an unknown class, more images or steps than allowed, or settings that the version cannot be sampled with.
    """
    if request.count > max_images:
        raise ValueError(
            f"count is {request.count}, but this server draws at most {max_images} images per request; send several requests"
        )
    if request.steps is not None and request.steps > step_limit(model):
        raise ValueError(
            f"steps is {request.steps}, but this server takes at most {step_limit(model)}, so that no request holds it up for long"
        )
    guidance = request.guidance or PartScales()
    given = {
        "num_steps": request.steps,
        "scale_texture": guidance.texture,
        "scale_semantic": guidance.semantic,
        "tau": request.tau,
    }
    settings = apply_request(
        model.sample, model.images.model, {key: value for key, value in given.items() if value is not None}
    )
    index = class_index(model.images.model.classes, request.class_)
    return Order(model, index, range(request.seed, request.seed + request.count), settings, request.format)


def answer(order: Order, pngs: Sequence[bytes]) -> Response:
    """The images in the format that was asked for. The class's name is percent-encoded in its header, as headers hold no other text."""
    headers = {
        "X-SFD-Model": quote(order.model.name),
        "X-SFD-Version": order.model.version,
        "X-SFD-Class": quote(order.class_name),
        "X-SFD-Seed": str(order.seeds[0]),
    }
    if order.format == "png":
        return Response(pngs[0], media_type="image/png", headers=headers)
    if order.format == "zip":
        return Response(_zip(order, pngs), media_type="application/zip", headers=headers)
    images = [
        {"seed": seed, "png": base64.b64encode(png).decode()} for seed, png in zip(order.seeds, pngs, strict=True)
    ]
    facts = {"model": order.model.name, "version": order.model.version, "class": order.class_name}
    return JSONResponse(facts | {"class_index": order.class_index, "images": images}, headers=headers)


def _zip(order: Order, pngs: Sequence[bytes]) -> bytes:
    """Files ``CLASS INDEX-SEED.png``, without a time of day: equal images give equal bytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for seed, png in zip(order.seeds, pngs, strict=True):
            archive.writestr(zipfile.ZipInfo(f"{order.class_index}-{seed}.png"), png)
    return stream.getvalue()
