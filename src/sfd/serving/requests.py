"""What a client may ask of ``POST /generate``, and what it gets."""

import base64
import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

from pydantic import Field, StrictBool, field_validator, model_validator
from starlette.responses import JSONResponse, Response

from sfd.generation.word_maps import WordMap, word_maps
from sfd.models.attention import AttentionSum
from sfd.models.conditions import Condition, Value
from sfd.params import Fraction, Positive, SampleParams, Scale, Section
from sfd.registry.load import RegisteredModel
from sfd.registry.requests import apply_request

MAX_SEED = 2**63 - 1
"""The largest seed, as of the registered model's column ``seed`` (a 64-bit integer with a sign)."""

MAX_STEPS = 200
"""Steps that a client may ask for, unless the version was registered with more: a sampler call cannot be interrupted, and others wait."""


class PartScales(Section):
    """Guidance of the two parts."""

    texture: Scale | None = None
    semantic: Scale | None = None


class GenerateRequest(Section):
    """The body of ``POST /generate``. What is absent is as the version was registered; image k has seed ``seed + k``.

    ``class_``: what a model that knows classes must be given, and another must not. ``prompt``: the same of a model that is told words, where the
    empty string is no words. ``negative_prompt``: what such a model's images are guided away from. ``attention``: whether the answer says where each
    word of the prompt looks.
    """

    class_: str | int | None = Field(None, alias="class")
    prompt: str | None = None
    negative_prompt: str | None = None
    count: Positive = 1
    seed: int = Field(0, ge=0, le=MAX_SEED)
    steps: Positive | None = None
    guidance: PartScales | None = None
    tau: Fraction | None = None
    format: Literal["png", "zip", "json"] = "png"
    attention: StrictBool = False

    @field_validator("class_", mode="plain")
    @classmethod
    def _check_class(cls, value: object) -> str | int | None:
        if isinstance(value, bool) or not isinstance(value, str | int | None):
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

    @model_validator(mode="after")
    def _check_attention(self) -> "GenerateRequest":
        if self.attention and self.format != "json":
            raise ValueError(
                f"attention comes with an answer in JSON, but format is `{self.format}`: set format to `json`"
            )
        return self


HEADER_CHARACTERS = 200
"""Characters of a class or a prompt that a header repeats."""


@dataclass(frozen=True)
class Order:
    """A request that a version can fulfil. ``settings`` has the request's values in place of the registered ones. ``note``: what its answer
    says besides. ``attention``: what notes where each image looks at the prompt; empty if that is not asked for."""

    model: RegisteredModel
    value: Value
    seeds: Sequence[int]
    settings: SampleParams
    format: Literal["png", "zip", "json"]
    note: str | None = None
    attention: Sequence[AttentionSum] = ()

    @property
    def condition(self) -> Condition:
        """What ``value`` is a value of."""
        return self.model.images.model.condition


def shows_attention(model: RegisteredModel) -> bool:
    """Whether a version can say where the words of a prompt look."""
    return model.images.network.has_word_attention and model.images.words is not None


def step_limit(model: RegisteredModel) -> int:
    """The most steps that a client may ask for."""
    return max(MAX_STEPS, model.sample.num_steps)


def place_order(request: GenerateRequest, model: RegisteredModel, max_images: int) -> Order:
    """Checks a request against a version and the server's limits.

    Raises:
        ValueError: an unknown or superfluous class, more images or steps than allowed, settings that the version cannot be sampled with, or
            attention of a version that has none to words.
    """
    if request.count > max_images:
        raise ValueError(
            f"count is {request.count}, but this server draws at most {max_images} images per request; send several requests"
        )
    if request.steps is not None and request.steps > step_limit(model):
        raise ValueError(
            f"steps is {request.steps}, but this server takes at most {step_limit(model)}, so that no request holds it up for long"
        )
    if request.attention and not shows_attention(model):
        raise ValueError(
            "`attention` is for models that look at words by cross-attention (LightningDiT with text_attention `cross`), and this one does not; "
            "leave it out"
        )
    guidance = request.guidance or PartScales()
    given = {
        "num_steps": request.steps,
        "scale_texture": guidance.texture,
        "scale_semantic": guidance.semantic,
        "tau": request.tau,
        "negative_prompt": request.negative_prompt,
    }
    settings = apply_request(
        model.sample, model.images.model, {key: value for key, value in given.items() if value is not None}
    )
    value = _asked_value(request, model.images.model.condition)
    note = describe_cuts(model, {"prompt": value, "negative_prompt": request.negative_prompt})
    seeds = range(request.seed, request.seed + request.count)
    attention = [AttentionSum() for _ in seeds] if request.attention else ()
    return Order(model, value, seeds, settings, request.format, note, attention)


def _asked_value(request: GenerateRequest, condition: Condition) -> Value:
    """What to draw. Raises ``ValueError`` if it is asked for under the key of another kind of model, or is no value."""
    asked = {"class": request.class_, "prompt": request.prompt}
    given = asked.pop(condition.asked_as)
    for key, value in asked.items():
        if value is not None:
            known = "draws images for prompts" if condition.words is not None else "is told no words"
            raise ValueError(f"this model {known}; leave `{key}` out")
    return condition.from_request(given)


def describe_cuts(model: RegisteredModel, prompts: Mapping[str, Value]) -> str | None:
    """Which prompts are longer than the model reads, in words; None if none is."""
    encoder, said = model.images.words, []
    for name, prompt in prompts.items():
        if encoder is None or not isinstance(prompt, str):
            continue
        number = encoder.num_tokens(prompt)
        if number > encoder.max_tokens:
            said.append(
                f"`{name}` is {number} tokens long, but the model reads {encoder.max_tokens}: the end had no effect"
            )
    return "; ".join(said) or None


def answer(order: Order, pngs: Sequence[bytes]) -> Response:
    """The images in the format that was asked for. Names are percent-encoded in headers, which hold no other text."""
    given = order.condition.to_request(order.value)
    headers = {
        "X-SFD-Model": quote(order.model.name),
        "X-SFD-Version": order.model.version,
        **({} if given is None else {f"X-SFD-{order.condition.asked_as.title()}": quote(given[:HEADER_CHARACTERS])}),
        **({} if order.note is None else {"X-SFD-Note": quote(order.note, safe=" `,;:")}),
        "X-SFD-Seed": str(order.seeds[0]),
    }
    if order.format == "png":
        return Response(pngs[0], media_type="image/png", headers=headers)
    if order.format == "zip":
        return Response(_zip(order, pngs), media_type="application/zip", headers=headers)
    images: list[dict[str, Any]] = [
        {"seed": seed, "png": _base64(png)} for seed, png in zip(order.seeds, pngs, strict=True)
    ]
    for image, words in zip(images, _attention(order), strict=False):
        image["attention"] = words
    facts = {"model": order.model.name, "version": order.model.version}
    facts |= {} if order.note is None else {"note": order.note}
    # Columns of a table of one image, of which there is one per answer.
    told = {name: column[0] for name, column in reversed(order.condition.columns([order.value]).items())}
    return JSONResponse(facts | told | {"images": images}, headers=headers)


def _attention(order: Order) -> list[list[dict[str, Any]]]:
    """For each image, where each word of the prompt looks, as JSON holds it; empty if that is not asked for."""
    encoder, prompt = order.model.images.words, order.condition.to_request(order.value)
    if encoder is None or prompt is None:
        return []
    placed = encoder.place_words(prompt) if order.attention else []
    return [[_described(found) for found in word_maps(placed, each.mean())] for each in order.attention]


def _described(found: WordMap) -> dict[str, Any]:
    shares = {name: round(getattr(found, name), 6) for name in ("share", "low", "high")}
    return {"word": found.word, "png": _base64(found.png())} | shares


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _zip(order: Order, pngs: Sequence[bytes]) -> bytes:
    """Files named as :meth:`Condition.file_stem` says, without a time of day: equal images give equal bytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for seed, png in zip(order.seeds, pngs, strict=True):
            archive.writestr(zipfile.ZipInfo(f"{order.condition.file_stem(order.value, seed)}.png"), png)
    return stream.getvalue()
