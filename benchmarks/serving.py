"""The cost of `sfd serve`: seconds until it is ready, eight requests at once or one after another, growth of memory over 500 requests.

python benchmarks/serving.py ALIAS      # in a project's folder with a registered model, e.g. after `make repro`: candidate
"""

import json
import os
import statistics
import subprocess
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import typer

STARTS, ROUNDS, CLIENTS, REQUESTS = 3, 7, 8, 500
BAD: list[dict[str, Any]] = [
    {"class": "no such class"},
    {"seed": -1},
    {"count": 10**6},
    {"steps": 10**6},
    {"nonsense": [1] * 1000},
    {"class": 0, "padding": "x" * 20_000},
]


class Server:
    """A running `sfd serve`."""

    def __init__(self, alias: str) -> None:
        started = time.perf_counter()
        command = ["sfd", "serve", "--alias", alias, "--port", "0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.ready_seconds = time.perf_counter() - started
        if not line:
            raise SystemExit("the server did not start")
        self.url = line.split()[-1]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()

    def generate(self, **body: Any) -> tuple[int, bytes]:
        """Status and content of the answer to one request."""
        request = urllib.request.Request(f"{self.url}/generate", json.dumps({"class": 0} | body).encode())
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def memory_mb(self) -> float:
        """Resident memory of the server, MB."""
        with urllib.request.urlopen(f"{self.url}/metrics") as response:
            (value,) = (line for line in response.read().decode().splitlines() if line.startswith("process_resident"))
        return float(value.split()[-1]) / 1e6


def compare(server: Server) -> tuple[float, float]:
    """Seconds of the same requests, sent one after another and at once; both ways must give the same bytes."""
    seeds = range(CLIENTS)
    started = time.perf_counter()
    alone = [server.generate(seed=seed) for seed in seeds]
    between = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as clients:
        together = list(clients.map(lambda seed: server.generate(seed=seed), seeds))
    ended = time.perf_counter()
    assert alone == together and {status for status, _ in alone} == {200} and len(set(alone)) == CLIENTS
    return between - started, ended - between


def mixed(server: Server, number: int) -> int:
    """Sends request ``number`` and returns its status. Every second request is invalid; valid ones ask for one to four images."""
    if number % 2:
        return server.generate(**BAD[number // 2 % len(BAD)])[0]
    return server.generate(seed=number, count=1 + number // 2 % 4, format="zip")[0]


def main(alias: str) -> None:
    """Measures the server and prints the table."""
    ready = []
    for _ in range(STARTS):
        server = Server(alias)
        ready.append(server.ready_seconds)
        if len(ready) < STARTS:
            server.stop()
    rounds = [compare(server) for _ in range(ROUNDS)]
    before = server.memory_mb()
    with ThreadPoolExecutor(CLIENTS) as clients:
        statuses = list(clients.map(lambda number: mixed(server, number), range(REQUESTS)))
    growth = server.memory_mb() - before
    server.stop()
    serial, parallel = (statistics.median(column) for column in zip(*rounds, strict=True))
    ratio = statistics.median(parallel / serial for serial, parallel in rounds)
    counts = ", ".join(f"{statuses.count(status)} x {status}" for status in sorted(set(statuses)))
    print(f"| `sfd serve`, {os.cpu_count()} CPU cores | measured | limit |")
    print("|---|---|---|")
    print(f"| seconds from the command to ready (median of {STARTS}) | {statistics.median(ready):.1f} | 15 |")
    print(f"| {CLIENTS} requests one after another, seconds (median of {ROUNDS}) | {serial:.2f} | |")
    print(f"| the same {CLIENTS} at once, equal bytes, seconds | {parallel:.2f} | |")
    print(f"| ratio (median of {ROUNDS}) | {ratio:.2f} | 0.6 |")
    print(f"| answers to {REQUESTS} mixed requests | {counts} | no 5xx |")
    print(f"| growth of memory over them, MB (from {before:.0f}) | {growth:+.1f} | 50 |")


if __name__ == "__main__":
    typer.run(main)
