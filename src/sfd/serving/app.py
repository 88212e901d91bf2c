"""The routes: what is asked over HTTP, and every answer in words."""

import asyncio
import base64
import hashlib
import importlib.resources
import re
import secrets
from concurrent.futures import Future
from http import HTTPStatus
from typing import Annotated, Any

import torch
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import ValidationError
from starlette.requests import ClientDisconnect

from sfd.errors import UserError
from sfd.generation.schedules import build_schedule
from sfd.models.conditions import Condition, Value
from sfd.names import SAMPLERS
from sfd.params import GuidanceParams, ScheduleParams, describe_mistakes
from sfd.pictures import PHASE_COLOURS, SEMANTIC_COLOUR, TEXTURE_COLOUR, phase_borders
from sfd.registry.load import RegisteredModel
from sfd.registry.requests import apply_request
from sfd.serving.batcher import DynamicBatcher, QueueFull
from sfd.serving.follow import Follower
from sfd.serving.metrics import CountRequests, Metrics
from sfd.serving.options import ServerOptions
from sfd.serving.requests import (
    MAX_SEED,
    GenerateRequest,
    Order,
    answer,
    place_order,
    shows_attention,
    step_limit,
)
from sfd.workspace import Workspace

MAX_BODY_BYTES = 16 * 1024
MAX_MISTAKES, MAX_MISTAKE_LENGTH = 3, 250
"""Mistakes of a request that its answer lists, and their length in characters: clients choose the keys."""

READ = ["GET", "HEAD"]
CURVE_POINTS = 101
"""Points of the schedule's curves, besides its borders."""

EXAMPLES = 12
"""Prompts that the page offers."""

CLIENT_GONE = 499
"""Status of a request whose client has gone, as nginx counts it. Only the metrics show it."""


class Service:
    """What the routes share.

    Attributes:
        stopping: set when the process is asked to end; what is admitted is still answered.
    """

    def __init__(self, workspace: Workspace, options: ServerOptions, token: str | None) -> None:
        self.options, self.token = options, token
        self.metrics = Metrics()
        self.batcher = DynamicBatcher(options.batch_size, options.max_queue, self.metrics)
        self.follower = Follower(workspace, options.model, options.alias, self.batcher.try_out, self.metrics)
        self.stopping = False

    def require_model(self) -> RegisteredModel:
        """The version for a new request. Raises ``HTTPException`` (503) while there is none, and when the server stops."""
        if self.stopping:
            raise HTTPException(503, "the server is stopping; ask again when it is back", {"Connection": "close"})
        if self.follower.current is None or not self.batcher.works:
            raise HTTPException(503, "the model is being loaded; ask again in some seconds", {"Retry-After": "2"})
        return self.follower.current

    async def draw(self, request: Request, order: Order) -> list[bytes]:
        """The PNG files of an order.

        Raises:
            HTTPException: the queue is full (429), the time is up (503), or the client has gone (499). Images that still
                wait then leave the queue.
        """
        try:
            futures = self.batcher.submit(order.model, order.settings, order.value, order.seeds, order.attention)
        except QueueFull as full:
            raise HTTPException(
                429,
                f"{self.options.max_queue} images may wait, and these would be more; ask again in {full.retry_after} s",
                {"Retry-After": str(full.retry_after)},
            ) from None
        images = asyncio.gather(*map(asyncio.wrap_future, futures))
        gone = asyncio.ensure_future(_disconnection(request))
        try:
            either: set[asyncio.Future[Any]] = {images, gone}
            await asyncio.wait(either, timeout=self.options.timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
            if images.done():
                return images.result()
            if gone.done():
                raise HTTPException(CLIENT_GONE, "the client has gone")
            raise self._too_late(futures)
        finally:
            gone.cancel()
            for future in futures:
                future.cancel()

    def _too_late(self, futures: list[Future[bytes]]) -> HTTPException:
        done = sum(future.done() for future in futures)
        wait = self.batcher.seconds_for(len(futures))
        return HTTPException(
            503,
            f"{done} of {len(futures)} images were drawn within the time limit of {self.options.timeout_seconds:g} s; ask for fewer "
            "images or steps, or later",
            {"Retry-After": str(wait)},
        )


async def _disconnection(request: Request) -> None:
    """Returns when the client has gone; the body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _read_body(request: Request, timeout_seconds: float) -> bytes:
    """Raises ``HTTPException`` for a body that is too large (413), announced or not, or too slow (408)."""
    too_large = HTTPException(413, f"the body is larger than {MAX_BODY_BYTES} bytes, and no request needs that many")
    if int(request.headers.get("content-length", 0)) > MAX_BODY_BYTES:
        raise too_large
    body = b""
    try:
        async with asyncio.timeout(timeout_seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise too_large
    except ClientDisconnect:
        raise HTTPException(CLIENT_GONE, "the client has gone") from None
    except TimeoutError:
        raise HTTPException(408, f"the body did not arrive within {timeout_seconds:g} s; send it again") from None
    return body


def _parse(body: bytes) -> GenerateRequest:
    try:
        return GenerateRequest.model_validate_json(body)
    except ValidationError as error:
        is_json = error.errors()[0]["type"] != "json_invalid"
        raise HTTPException(422 if is_json else 400, _sentence(error, GenerateRequest)) from None


def _sentence(error: ValidationError, section: Any) -> str:
    mistakes = describe_mistakes(error, section)
    more = [f"and {len(mistakes) - MAX_MISTAKES} more"] if len(mistakes) > MAX_MISTAKES else []
    return "; ".join([mistake[:MAX_MISTAKE_LENGTH] for mistake in mistakes[:MAX_MISTAKES]] + more)


def describe_model(service: Service, model: RegisteredModel) -> dict[str, Any]:
    """The answer of ``/model``: what a client may ask of a version, with limits and defaults."""
    trained, sample = model.images.model.schedule_params, model.sample
    scale = GuidanceParams.model_json_schema()["properties"]["scale_texture"]
    free = trained.tau_range
    chosen = sample.schedule or trained
    condition = model.images.model.condition
    return {
        "name": model.name,
        "version": model.version,
        "alias": service.options.alias,
        "classes": condition.choices,
        **({} if condition.words is None else _words_of(model)),
        "sampler": sample.sampler,
        "defaults": {
            "steps": None if SAMPLERS[sample.sampler].adaptive else sample.num_steps,
            "guidance": {"texture": sample.guidance.scale_texture, "semantic": sample.guidance.scale_semantic},
            "tau": {"offset": chosen.tau, "sync": 0.0}.get(chosen.kind),
        },
        "limits": {
            "images": service.options.max_images,
            "steps": step_limit(model),
            "guidance": [scale["minimum"], scale["maximum"] if condition.has_null else scale["minimum"]],
            "seed": str(MAX_SEED),  # as text: JavaScript's numbers are not exact that far
        },
        "tau": {"free": True, "low": free.low, "high": free.high} if free else {"free": False},
    }


def _words_of(model: RegisteredModel) -> dict[str, Any]:
    """What ``/model`` says of a version that is told words: prompts to begin with, and whether ``attention`` can be asked for."""
    prompts = [str(value) for value in _examples(model.images.model.condition)]
    return {"prompts": prompts, "attention": shows_attention(model)}


def _examples(condition: Condition) -> list[Value]:
    """Captions of held-out images for a client to begin with; none where the model's record holds none."""
    try:
        return list(dict.fromkeys(condition.plan(EXAMPLES)))
    except UserError:
        return []


def describe_schedule(params: ScheduleParams) -> dict[str, Any]:
    """The answer of ``/schedule``: the curves of both parts over progress u, and the three phases, with the project's colours."""
    schedule = build_schedule(params)
    even = torch.linspace(0.0, 1.0, CURVE_POINTS, dtype=torch.float64)
    u = torch.cat([even, torch.tensor(schedule.borders, dtype=torch.float64)]).sort().values
    t_tex, t_sem = schedule.times(u)
    borders = phase_borders(u, t_tex, t_sem)
    phases = [
        {"name": name, "start": start, "end": end, "colour": colour}
        for (name, colour), start, end in zip(PHASE_COLOURS.items(), borders[:-1], borders[1:], strict=True)
    ]
    colours = {"texture": TEXTURE_COLOUR, "semantic": SEMANTIC_COLOUR}
    curves = {"u": u, "t_tex": t_tex, "t_sem": t_sem}
    rounded = {name: values.round(decimals=6).tolist() for name, values in curves.items()}
    return rounded | {"phases": phases, "colours": colours}


def build_app(service: Service) -> FastAPI:
    """The application. It answers from the start; what needs a model is refused until there is one."""
    # No /docs: that page loads its scripts from other hosts.
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.add_middleware(CountRequests, metrics=service.metrics)
    _answer_errors_in_words(app)
    bearer = HTTPBearer(auto_error=False)

    def check_token(credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> None:
        # HTTP carries header text as Latin-1, so this is what was sent, byte by byte.
        given = credentials.credentials.encode("latin-1") if credentials else b""
        if service.token is not None and not secrets.compare_digest(given, service.token.encode()):
            raise HTTPException(
                401,
                "this server wants its token: send the header `Authorization: Bearer TOKEN`",
                {"WWW-Authenticate": "Bearer"},
            )

    _add_open_routes(app, service)
    _add_routes(app, service, [Depends(check_token)])
    return app


def _add_open_routes(app: FastAPI, service: Service) -> None:
    page = importlib.resources.files("sfd.serving").joinpath("page.html").read_text(encoding="utf-8")
    policy = _content_policy(page)

    @app.api_route("/", methods=READ)
    async def show_page() -> Response:
        headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}
        return HTMLResponse(page, headers=headers)

    @app.api_route("/healthz", methods=READ)
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.api_route("/readyz", methods=READ)
    async def readyz() -> dict[str, str]:
        return {"status": "ready", "version": service.require_model().version}


def _content_policy(page: str) -> str:
    """Nothing but this page's own style and script, this server's answers, and images that the page made of them."""
    hashes = {
        tag: " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
            for text in re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        )
        for tag in ("style", "script")
    }
    return (
        f"default-src 'none'; style-src {hashes['style']}; script-src {hashes['script']}; connect-src 'self'; "
        "img-src blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _add_routes(app: FastAPI, service: Service, guards: list[Any]) -> None:
    @app.post("/generate", dependencies=guards)
    async def generate(request: Request) -> Response:
        model = service.require_model()
        wanted = _parse(await _read_body(request, service.options.timeout_seconds))
        try:
            order = place_order(wanted, model, service.options.max_images)
        except ValueError as error:
            raise HTTPException(422, str(error)) from None
        pngs = await service.draw(request, order)
        service.metrics.images.inc(len(pngs))
        return await asyncio.to_thread(answer, order, pngs)  # heat maps are drawn in it

    @app.api_route("/model", methods=READ, dependencies=guards)
    async def show_model() -> dict[str, Any]:
        return describe_model(service, service.require_model())

    @app.api_route("/schedule", methods=READ, dependencies=guards)
    async def show_schedule(tau: float | None = None) -> dict[str, Any]:
        model = service.require_model()
        given = {} if tau is None else {"tau": tau}
        try:
            sample = apply_request(model.sample, model.images.model, given)
        except ValidationError as error:
            raise HTTPException(422, _sentence(error, type(model.sample))) from None
        except ValueError as error:
            raise HTTPException(422, str(error)) from None
        return describe_schedule(sample.schedule or model.images.model.schedule_params)

    @app.api_route("/metrics", methods=READ, dependencies=guards)
    async def show_metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _answer_errors_in_words(app: FastAPI) -> None:
    """Every error is ``{"error": SENTENCE}``, also those that FastAPI raises itself."""

    @app.exception_handler(404)
    async def no_path(request: Request, _: HTTPException) -> Response:
        return _error(
            404, f"there is no path `{request.url.path[:100]}`; the page at `/` and POST /generate draw images"
        )

    @app.exception_handler(405)
    async def wrong_method(request: Request, error: HTTPException) -> Response:
        allowed = ", ".join(sorted((error.headers or {}).get("Allow", "").split(", ")))
        return _error(405, f"`{request.url.path}` does not take {request.method}; use {allowed}", {"Allow": allowed})

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> Response:
        return _error(error.status_code, error.detail, error.headers)

    @app.exception_handler(RequestValidationError)
    async def wrong_query(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return _error(422, f"`{first['loc'][-1]}` is {first['input']!r:.80}, but: {first['msg']}")

    @app.exception_handler(Exception)
    async def fault(_: Request, error: Exception) -> Response:
        return _error(500, f"the server failed ({type(error).__name__}); its log says where")


def _error(status: int, sentence: str, headers: Any = None) -> Response:
    return JSONResponse({"error": sentence or HTTPStatus(status).phrase}, status, headers)
