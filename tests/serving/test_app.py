"""Every rule of the HTTP interface, over real connections to a server in this process whose sampler waits at a gate."""

import base64
import io
import json
import logging
import socket
import struct
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import uvicorn
from PIL import Image
from served import RANGE, SMALL_SERVER, Gate, Running, gated, running, untrained
from support import wait_until

from sfd.pictures import PHASE_COLOURS, SEMANTIC_COLOUR, TEXTURE_COLOUR
from sfd.serving.address import bind
from sfd.serving.app import MAX_BODY_BYTES
from sfd.serving.metrics import Metrics
from sfd.serving.options import ServerOptions
from sfd.serving.protocol import protocol_of

MODEL = untrained()
FREE = untrained(schedule=RANGE, sample={"schedule": {"kind": "offset", "tau": 0.2}})


@pytest.fixture(scope="module")
def plain() -> Iterator[Running]:
    with running(MODEL) as server:
        yield server


@pytest.fixture(scope="module")
def free() -> Iterator[Running]:
    with running(FREE) as server:
        yield server


def pixels(png: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(png)))


# What a request may say


@pytest.mark.parametrize(
    "body",
    [
        {"class": "lying"},
        {"class": 1, "seed": 2**63 - 1},
        {"class": "upright", "steps": 200, "guidance": 1},
        {"class": "lying", "guidance": {"texture": 20.0}, "tau": None, "count": 1, "format": "png"},
    ],
)
def test_a_request_within_the_rules_gets_an_image(plain: Running, body: dict[str, Any]) -> None:
    answer = plain.ask("/generate", body)
    assert answer.status == 200 and answer.headers["content-type"] == "image/png"
    assert pixels(answer.content).shape == (16, 16, 3)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "Invalid JSON"),
        (b'{"class": ', 400, "Invalid JSON"),
        (b"\xff", 400, "Invalid JSON"),
        (b"[" * 5000, 400, "Invalid JSON"),
        ([], 422, "object"),
        ({}, 422, "`class` is missing"),
        ({"class": "sitting"}, 422, "its classes are lying, upright"),
        ({"class": 2}, 422, "0..1"),
        ({"class": -1}, 422, "0..1"),
        ({"class": True}, 422, "name of a class"),
        ({"class": None}, 422, "name of a class"),
        ({"class": 1.0}, 422, "name of a class"),
        ({"class": 0, "seeds": 3}, 422, "nearest valid key: `seed`"),
        ({"class": 0, "seed": -1}, 422, "`seed`"),
        ({"class": 0, "seed": "1"}, 422, "`seed`"),
        ({"class": 0, "seed": 1.5}, 422, "`seed`"),
        ({"class": 0, "seed": 2**63}, 422, "`seed`"),
        ({"class": 0, "seed": 2**70}, 422, "`seed`"),
        ({"class": 0, "count": 2**70, "format": "zip"}, 422, "lower seed"),
        ({"class": 2**70}, 422, "0..1"),
        ({"class": 0, "steps": 2**70}, 422, "at most 200"),
        ({"class": 0, "guidance": 2**70}, 422, "`guidance.texture`"),
        (b'{"class": 0, "tau": 1e999}', 422, "`tau`"),
        (b'\xef\xbb\xbf{"class": 0}', 400, "Invalid JSON"),
        (b'{"class": "\\ud800"}', 400, "Invalid JSON"),
        ({"class": "x" * 9000}, 422, "its classes are lying, upright"),
        ({"class": 0, "x" * 9000: 1}, 422, "unknown key"),
        ({"class": 0} | {f"k{number}": number for number in range(900)}, 422, "and 897 more"),
        (b'{"class": 0, "seed": 1' + b"0" * 5000 + b"}", 400, "Invalid JSON"),
        ({"class": 0, "seed": 2**63 - 1, "count": 2, "format": "zip"}, 422, "lower seed"),
        ({"class": 0, "count": 0}, 422, "`count`"),
        ({"class": 0, "count": 5, "format": "zip"}, 422, "at most 4 images"),
        ({"class": 0, "count": 2}, 422, "set format to `zip` or `json`"),
        ({"class": 0, "format": "gif"}, 422, "`format`"),
        ({"class": 0, "steps": 0}, 422, "`steps`"),
        ({"class": 0, "steps": 201}, 422, "at most 200"),
        ({"class": 0, "steps": True}, 422, "`steps`"),
        ({"class": 0, "guidance": 0.9}, 422, "`guidance.texture`"),
        ({"class": 0, "guidance": {"texture": 21}}, 422, "`guidance.texture`"),
        ({"class": 0, "guidance": {"textur": 2}}, 422, "nearest valid key: `guidance.texture`"),
        ({"class": 0, "guidance": "strong"}, 422, "`guidance`"),
        (b'{"class": 0, "guidance": NaN}', 422, "`guidance"),
        ({"class": 0, "tau": 1.5}, 422, "`tau`"),
        ({"class": 0, "tau": 0.3}, 422, "one schedule alone"),
    ],
)
def test_a_request_that_breaks_a_rule_is_refused_in_one_sentence(
    plain: Running, body: Any, status: int, words: str
) -> None:
    answer = plain.ask("/generate", body, "POST")
    assert answer.status == status and words in answer.error
    assert len(answer.error) < 300 and "\n" not in answer.error


def test_what_is_left_out_is_as_registered_and_what_is_given_changes_the_image(plain: Running) -> None:
    default = plain.generate(seed=5).content
    assert plain.generate(seed=5, steps=3, guidance={"texture": 1.5, "semantic": 1.0}).content == default
    others = [
        plain.generate(seed=5, **given).content for given in ({"steps": 5}, {"guidance": 3.0}, {"class": "upright"})
    ]
    assert len({default, plain.generate(seed=6).content, *others}) == 5


def test_headers_name_model_version_class_and_seed_whatever_letters_they_have() -> None:
    with running(replace(untrained(classes=["hoch ü\n<b>", "b"]), name="sfd test")) as server:
        headers = server.ask("/generate", {"class": 0, "seed": 7}).headers
    assert headers["X-SFD-Class"] == "hoch%20%C3%BC%0A%3Cb%3E" and headers["X-SFD-Model"] == "sfd%20test"
    assert (headers["X-SFD-Version"], headers["X-SFD-Seed"]) == ("1", "7")


def test_image_k_has_seed_plus_k_in_every_format_with_the_same_bytes(plain: Running) -> None:
    singles = [plain.generate(seed=seed).content for seed in (8, 9, 10)]
    as_json = plain.generate(seed=8, count=3, format="json").json
    assert [base64.b64decode(image["png"]) for image in as_json["images"]] == singles
    assert [image["seed"] for image in as_json["images"]] == [8, 9, 10]
    assert (as_json["class"], as_json["class_index"], as_json["model"]) == ("lying", 0, "sfd-test")
    packed = plain.generate(seed=8, count=3, format="zip")
    with zipfile.ZipFile(io.BytesIO(packed.content)) as archive:
        assert archive.namelist() == ["0-8.png", "0-9.png", "0-10.png"]
        assert [archive.read(name) for name in archive.namelist()] == singles
    assert plain.generate(seed=8, count=3, format="zip").content == packed.content


def test_tau_is_free_where_the_model_was_trained_for_a_range_and_refused_outside_it(free: Running) -> None:
    assert free.generate(tau=0.2).content == free.generate().content != free.generate(tau=0.5).content
    refused = free.generate(tau=0.6)
    assert refused.status == 422 and "0 to 0.5" in refused.error


def test_steps_are_refused_where_dopri5_chooses_them() -> None:
    with running(untrained(sample={"sampler": "dopri5"})) as server:
        assert server.generate(steps=3).status == 422 and server.ask("/model").json["defaults"]["steps"] is None
        together = server.generate(count=2, seed=3, format="json").json["images"]
        assert base64.b64decode(together[1]["png"]) == server.generate(seed=4).content


# What else is asked


def test_the_model_says_what_can_be_asked(plain: Running, free: Running) -> None:
    facts = plain.ask("/model").json
    assert facts["classes"] == ["lying", "upright"] and facts["tau"] == {"free": False}
    assert facts["defaults"] == {"steps": 3, "guidance": {"texture": 1.5, "semantic": 1.0}, "tau": 0.3}
    assert facts["limits"] == {"images": 4, "steps": 200, "guidance": [1.0, 20.0], "seed": str(2**63 - 1)}
    assert free.ask("/model").json["tau"] == {"free": True, "low": 0.0, "high": 0.5}


def test_the_schedule_has_three_phases_in_the_colours_of_the_pictures(free: Running) -> None:
    schedule = free.ask("/schedule?tau=0.5").json
    assert [(phase["name"], phase["colour"]) for phase in schedule["phases"]] == list(PHASE_COLOURS.items())
    assert [phase["start"] for phase in schedule["phases"]] == pytest.approx([0.0, 1 / 3, 2 / 3])
    assert schedule["colours"] == {"texture": TEXTURE_COLOUR, "semantic": SEMANTIC_COLOUR}
    u, t_tex, t_sem = (np.array(schedule[name]) for name in ("u", "t_tex", "t_sem"))
    assert np.allclose(t_sem, np.minimum(1.0, 1.5 * u), atol=2e-6)
    assert np.allclose(t_tex, np.maximum(0.0, 1.5 * u - 0.5), atol=2e-6)
    assert free.ask("/schedule").json["phases"][0]["end"] == pytest.approx(1 / 6), "the registered tau is 0.2"


def test_without_an_offset_texture_and_semantics_move_together(free: Running) -> None:
    phases = free.ask("/schedule?tau=0").json["phases"]
    assert [(phase["start"], phase["end"]) for phase in phases] == [(0.0, 0.0), (0.0, 1.0), (1.0, 1.0)]


@pytest.mark.parametrize("tau", ["0.6", "nan", "-1", "much"])
def test_a_schedule_that_does_not_exist_is_refused(free: Running, tau: str) -> None:
    answer = free.ask(f"/schedule?tau={tau}")
    assert answer.status == 422 and "tau" in answer.error


@pytest.mark.parametrize(
    ("path", "method", "status", "words"),
    [
        ("/nothing", "GET", 404, "no path `/nothing`"),
        ("/generate/", "POST", 404, "no path"),
        ("/docs", "GET", 404, "no path"),
        ("/generate", "GET", 405, "use POST"),
        ("/model", "DELETE", 405, "use GET"),
        ("/model", "BREW", 405, "use GET"),
        ("/none", "OPTIONS", 404, "no path `/none`"),
    ],
)
def test_an_unknown_path_and_a_wrong_method_are_answered_in_words(
    plain: Running, path: str, method: str, status: int, words: str
) -> None:
    answer = plain.ask(path, method=method)
    assert answer.status == status and words in answer.error


def test_head_gets_the_headers_of_get_and_no_body(plain: Running) -> None:
    for path in ("/", "/healthz", "/readyz", "/model", "/schedule", "/metrics"):
        head, get = plain.ask(path, method="HEAD"), plain.ask(path)
        assert (head.status, head.content) == (200, b"")
        assert head.headers["Content-Type"] == get.headers["Content-Type"]
    assert plain.ask("/generate", method="HEAD").status == 405


def test_the_page_may_load_nothing_from_elsewhere(plain: Running) -> None:
    answer = plain.ask("/")
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "unsafe" not in policy
    assert "http://" not in answer.text.replace("http://www.w3.org/2000/svg", "") and "https://" not in answer.text


def counted(server: Running, path: str, status: int) -> float:
    labels = {"path": path, "status": str(status)}
    return server.service.metrics.registry.get_sample_value("sfd_requests_total", labels) or 0.0


def test_requests_are_counted_by_path_and_status_and_unknown_paths_share_one_label(plain: Running) -> None:
    def counts() -> list[float]:
        return [counted(plain, *labels) for labels in (("other", 404), ("/generate", 200), ("/generate", 422))]

    before = counts()
    plain.ask("/a"), plain.ask("/b"), plain.generate(), plain.generate(count=0)
    after = counts()
    assert [new - old for old, new in zip(before, after, strict=True)] == [2, 1, 1]
    text = plain.ask("/metrics").text
    for name in (
        "sfd_images_total",
        "sfd_queue_images",
        "sfd_batch_images_bucket",
        "sfd_sampling_seconds_sum",
        "sfd_reloads",
    ):
        assert name in text


# Limits


def send(server: Running, *parts: bytes) -> socket.socket:
    connection = connect(server)
    connection.sendall(b"POST /generate HTTP/1.1\r\nHost: test\r\n" + b"".join(parts))
    return connection


def body_of(**wanted: Any) -> bytes:
    body = json.dumps({"class": 0} | wanted).encode()
    return f"Content-Length: {len(body)}\r\n\r\n".encode() + body


def test_a_body_that_is_too_large_is_refused_announced_or_not(plain: Running) -> None:
    spaces = b'{"class": 0}' + b" " * MAX_BODY_BYTES
    assert plain.ask("/generate", spaces[:MAX_BODY_BYTES]).status == 200
    announced = plain.ask("/generate", spaces)
    assert announced.status == 413 and str(MAX_BODY_BYTES) in announced.error
    chunk = f"{len(spaces):x}\r\n".encode() + spaces + b"\r\n"
    with send(plain, b"Transfer-Encoding: chunked\r\n\r\n", chunk) as connection:  # it never ends
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_a_body_that_does_not_arrive_is_not_waited_for() -> None:
    with (
        running(MODEL, replace(SMALL_SERVER, timeout_seconds=0.2)) as server,
        send(server, b"Content-Length: 9\r\n\r\n{") as slow,
    ):
        assert slow.recv(100).startswith(b"HTTP/1.1 408")


def connect(server: Running) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def everything(connection: socket.socket) -> bytes:
    """What the server sends until it closes the connection."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


def is_alive(connection: socket.socket) -> bool:
    """Asks on a connection that stays open."""
    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = b""
    while not answer.endswith(b"}"):
        answer += connection.recv(1000)
    return answer.endswith(b'{"status":"alive"}')


@pytest.fixture
def no_traceback() -> Iterator[None]:
    """None is logged while the test runs. Servers set up logging anew, so records are caught where they are made."""
    make, seen = logging.getLogRecordFactory(), []

    def keep(*args: Any, **kwargs: Any) -> logging.LogRecord:
        seen.append(make(*args, **kwargs))
        return seen[-1]

    logging.setLogRecordFactory(keep)
    yield
    logging.setLogRecordFactory(make)
    assert not [record.getMessage() for record in seen if record.levelno >= logging.ERROR]


@pytest.mark.usefixtures("no_traceback")
@pytest.mark.parametrize("is_reset", [False, True])
def test_a_client_that_leaves_within_its_body_is_counted_and_the_server_goes_on(plain: Running, is_reset: bool) -> None:
    before = counted(plain, "/generate", 499)
    leaver = send(plain, b"Content-Length: 99\r\n\r\n{")
    if is_reset:
        leaver.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    leaver.close()
    wait_until(lambda: counted(plain, "/generate", 499) == before + 1, 60)
    assert plain.generate().status == 200


@pytest.mark.usefixtures("no_traceback")
@pytest.mark.parametrize(
    "junk",
    [
        b"\x16\x03\x01\x00\xff\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        "GET /ü HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000,
        b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 30 + b"\r\n\r\n",
    ],
)
def test_what_is_no_http_is_answered_in_words_and_counted(plain: Running, junk: bytes) -> None:
    before = counted(plain, "other", 400)
    with connect(plain) as connection:
        connection.sendall(junk)
        assert connection.recv(1000).startswith(b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\n")
    assert counted(plain, "other", 400) == before + 1
    assert plain.ask("/healthz").status == 200


@pytest.mark.usefixtures("no_traceback")
def test_a_body_that_turns_into_junk_ends_its_connection_alone(plain: Running) -> None:
    with send(plain, b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n") as connection:
        assert everything(connection).startswith(b"HTTP/1.1 400")
    with send(plain, b"Content-Length: 99999\r\n\r\n") as connection:  # answered 413 before it is sent
        assert connection.recv(1000).startswith(b"HTTP/1.1 413")
        connection.sendall(b"\0" * 99999 + b"junk\r\n\r\n")
        everything(connection)
    assert plain.ask("/healthz").status == 200


@pytest.mark.usefixtures("no_traceback")
def test_headers_that_do_not_arrive_are_not_waited_for() -> None:
    with running(MODEL, replace(SMALL_SERVER, timeout_seconds=0.3)) as server:
        with connect(server) as silent, connect(server) as slow, connect(server) as second:
            slow.sendall(b"GET / HTTP/1.1\r\nHost:")
            assert is_alive(second)
            second.sendall(b"GET /healthz HTTP/1.1\r\n")
            assert everything(silent) == b""
            assert everything(slow).startswith(b"HTTP/1.1 408") and everything(second).startswith(b"HTTP/1.1 408")
        assert counted(server, "other", 408) == 2
        with connect(server) as patient:  # each request has its own time
            for _ in range(3):
                time.sleep(0.15)
                assert is_alive(patient)


@pytest.mark.usefixtures("no_traceback")
def test_an_answer_that_is_not_read_is_not_kept_for_ever() -> None:
    ended = threading.Event()

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(50):
            await send({"type": "http.response.body", "body": bytes(2**20), "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        ended.set()

    with bind("127.0.0.1", 0) as listener:
        server = uvicorn.Server(
            uvicorn.Config(app, http=protocol_of(Metrics(), 0.5), lifespan="off", log_level="error")
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        wait_until(lambda: server.started, 60)
        for reads in (False, True):
            with socket.create_connection(listener.getsockname(), timeout=60) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                assert not reads or len(everything(client)) > 50 * 2**20
                assert ended.wait(60)
                ended.clear()
        server.should_exit = True
        thread.join()


@contextmanager
def occupied(options: ServerOptions = SMALL_SERVER) -> Iterator[tuple[Running, Gate, ThreadPoolExecutor]]:
    """A server whose sampler holds one image until the gate opens, and threads to send more."""
    model, gate = gated(MODEL)
    with running(model, options) as server, ThreadPoolExecutor(8) as clients:
        first = clients.submit(server.generate)
        assert gate.entered.wait(60)
        try:
            yield server, gate, clients
        finally:
            gate.open.set()
        assert first.result().status in (200, 503)


def test_a_full_queue_answers_429_with_the_time_to_wait_and_the_admitted_are_served() -> None:
    with occupied() as (server, gate, clients):
        admitted = [clients.submit(server.generate, seed=seed, count=3, format="zip") for seed in (1, 4)]
        wait_until(lambda: server.queued() == 6, 60)
        refused = server.generate()
        assert refused.status == 429 and int(refused.headers["Retry-After"]) >= 1
        assert "6 images may wait" in refused.error
        gate.open.set()
        assert [answer.result().status for answer in admitted] == [200, 200]
        assert server.generate().status == 200, "there is room again"


def test_a_request_that_takes_too_long_is_refused_and_leaves_the_queue() -> None:
    with occupied(replace(SMALL_SERVER, timeout_seconds=0.3)) as (server, _, _):
        late = server.generate(count=4, format="zip")
        assert late.status == 503 and "0 of 4 images" in late.error and int(late.headers["Retry-After"]) >= 1
        assert server.queued() == 0


def test_a_client_that_leaves_frees_its_place_in_the_queue() -> None:
    with occupied() as (server, gate, _):
        leaver = send(server, body_of(count=4, format="zip"))
        wait_until(lambda: server.queued() == 4, 60)
        leaver.close()
        wait_until(lambda: server.queued() == 0, 60)
        reset = send(server, body_of(count=4, format="zip"))
        wait_until(lambda: server.queued() == 4, 60)
        reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        reset.close()
        wait_until(lambda: server.queued() == 0, 60)
        gate.open.set()
        assert server.generate().status == 200
        assert len(gate.calls) == 2, "nothing was drawn for those who left"


def test_a_sampler_that_fails_is_told_without_a_traceback_and_the_server_goes_on() -> None:
    model, gate = gated(MODEL)
    gate.open.set()
    with running(model) as server:
        gate.failure = RuntimeError("CUDA out of memory")
        failed = server.generate()
        assert failed.status == 500 and "RuntimeError" in failed.error
        gate.failure = None
        assert server.generate().status == 200


# Ready or not


def test_without_a_model_the_process_lives_but_is_not_ready() -> None:
    with running(None) as server:
        assert server.ask("/healthz").status == 200
        for path in ("/readyz", "/model", "/schedule"):
            assert server.ask(path).status == 503
        refused = server.generate()
        assert refused.status == 503 and "loaded" in refused.error and refused.headers["Retry-After"]
        server.service.follower.current = MODEL
        assert server.ask("/readyz").status == 200 and server.generate().status == 200


def test_a_server_that_stops_is_not_ready_and_admits_nothing_more() -> None:
    with occupied() as (server, gate, clients):
        admitted = clients.submit(server.generate, seed=1)
        wait_until(lambda: server.queued() == 1, 60)
        server.service.stopping = True
        assert server.ask("/readyz").status == server.generate().status == 503
        assert server.ask("/healthz").status == 200
        gate.open.set()
        assert admitted.result().status == 200


def test_without_its_worker_a_server_is_not_ready() -> None:
    with running(MODEL) as server:
        server.service.batcher.stop(60)
        assert server.ask("/readyz").status == 503


# Token


def test_with_a_token_all_but_health_and_page_want_it() -> None:
    with running(MODEL, token="s3cret ü") as server:
        for path in ("/healthz", "/readyz", "/"):
            assert server.ask(path).status == 200
        right = "Bearer " + "s3cret ü".encode().decode("latin-1")
        for path in ("/model", "/schedule", "/metrics"):
            for headers in (
                {},
                {"Authorization": "Bearer s3cret"},
                {"Authorization": "Basic abc"},
                {"Authorization": "Bearer"},
            ):
                refused = server.ask(path, **headers)
                assert refused.status == 401 and "token" in refused.error
                assert refused.headers["WWW-Authenticate"] == "Bearer"
            assert server.ask(path, Authorization=right).status == 200
        assert server.ask("/generate", b"not even JSON").status == 401
        assert server.ask("/generate", {"class": 0}, Authorization=right).status == 200
