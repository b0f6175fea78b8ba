"""Requests a second and latencies of `datapipe serve` against infinity, same weights, same machine, same clients.

    python -m benchmarks.serving --infinity VENV/bin/infinity_emb
    python -m benchmarks.serving --table

infinity-emb has an environment of its own (`pip install torch==2.13.0 'infinity-emb[torch,server]==0.0.78'`). Both
servers run as they come, each also in the other precision, on the embedded model's weights multiplied out to float32.
`--clients` clients hold one connection each and send one text a request, the next as soon as the answer is there: real
texts of mixed lengths, the same in the same order for each server. The client is one process with plain sockets, so
that it costs both sides the same and little. The servers are up at the same time and measured in turns; a ratio is the
median over the rounds. Answers are compared: the least cosine between the two servers' vectors is in the row.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np

from benchmarks.common import Row, finished, record, table
from benchmarks.embedding import data_sets, dtypes, plain_copy

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NAME = "serving"
OURS, THEIRS = "secateur", "infinity"
START_SECONDS = 120
COLUMNS = [
    *("server", "dtype", "clients", "requests", "requests_per_s", "p50_ms", "p95_ms", "p99_ms"),
    *("times_infinity", "p99_of_infinity", "least_cosine"),
]


@dataclass(frozen=True)
class Server:
    """A server that is up."""

    name: str
    dtype: str
    port: int
    path: str
    model: str


def free_port() -> int:
    """A port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def started(name: str, dtype: str, folder: Path, infinity: Path) -> Iterator[Server]:
    """Start a server on the folder's weights and wait until it answers."""
    port = free_port()
    where = ["--host", "127.0.0.1", "--port", str(port)]
    if name == OURS:
        command = [sys.executable, "-m", "datapipe.cli", "serve", "--model", f"bench={folder},dtype={dtype}", *where]
        command += ["--log-level", "warning"]
        server = Server(name, dtype, port, "/v1/embeddings", "bench")
    else:
        command = [str(infinity), "v2", "--model-id", str(folder), "--engine", "torch", "--device", "cpu", *where]
        command += ["--dtype", dtype, "--served-model-name", "bench", "--log-level", "error"]
        server = Server(name, dtype, port, "/embeddings", "bench")
    environment = {**os.environ, "INFINITY_ANONYMOUS_USAGE_STATS": "0", "DO_NOT_TRACK": "1"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            _wait(server, process, log)
            yield server
        finally:
            process.terminate()
            process.wait(30)


def _wait(server: Server, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise SystemExit(
                f"{server.name} {server.dtype} ended with {process.returncode} before it answered{_said(log)}"
            )
        try:
            asyncio.run(run(server, ["ready?"], clients=1))
        except (OSError, ValueError, asyncio.IncompleteReadError):
            time.sleep(0.5)
        else:
            return
    raise SystemExit(f"{server.name} {server.dtype} did not answer within {START_SECONDS} s{_said(log)}")


def _said(log: IO[bytes]) -> str:
    log.seek(0)
    return f":\n{log.read()[-2000:].decode(errors='replace')}"


async def run(server: Server, texts: Sequence[str], *, clients: int) -> tuple[list[float], float, list[bytes]]:
    """Send every text once; seconds of each request, seconds of all, and the bodies in the order of the texts."""
    latencies = [0.0] * len(texts)
    bodies = [b""] * len(texts)
    places = iter(range(len(texts)))

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        for place in places:
            body = json.dumps({"model": server.model, "input": texts[place]}).encode()
            head = f"POST {server.path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
            begun = time.perf_counter()
            writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", answer, re.IGNORECASE)
            if length is None or not answer.startswith(b"HTTP/1.1 200"):
                raise ValueError(answer.decode())
            bodies[place] = await reader.readexactly(int(length[1]))
            latencies[place] = time.perf_counter() - begun
        writer.close()

    begun = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return latencies, time.perf_counter() - begun, bodies


def vectors(bodies: Sequence[bytes]) -> np.ndarray:
    """The vector of each answer, (texts, dim), of unit length."""
    found = np.array([json.loads(body)["data"][0]["embedding"] for body in bodies])
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def measure(infinity: Path, *, clients: int, requests: int, rounds: int) -> None:
    """Run all servers in turns and record a row for each."""
    config = {"clients": clients, "requests": requests, "rounds": rounds, "data": "mixed", "device": "cpu"}
    kinds = [(name, dtype) for name in (OURS, THEIRS) for dtype in dtypes("cpu")]
    if all(finished(NAME, {**config, "server": name, "dtype": dtype}) for name, dtype in kinds):
        print("measured already")
        return
    texts = data_sets(requests)["mixed"]
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary) / "bench"
        plain_copy(folder)
        servers = [stack.enter_context(started(name, dtype, folder, infinity)) for name, dtype in kinds]
        first = [asyncio.run(run(server, texts[:200], clients=clients))[2] for server in servers]
        turns = [[asyncio.run(run(server, texts, clients=clients))[:2] for server in servers] for _ in range(rounds)]
    reference = vectors(first[kinds.index((THEIRS, "float32"))])
    p99 = [[float(np.percentile(latencies, 99)) for latencies, _ in turn] for turn in turns]
    for place, (name, dtype) in enumerate(kinds):
        whole = [latency for turn in turns for latency in turn[place][0]]
        rates = [requests / turn[place][1] for turn in turns]
        theirs = [index for index, (other, _) in enumerate(kinds) if other == THEIRS]
        best = [max(requests / turn[index][1] for index in theirs) for turn in turns]
        row: Row = {
            "requests_per_s": statistics.median(rates),
            **{f"p{part}_ms": 1e3 * float(np.percentile(whole, part)) for part in (50, 95, 99)},
            "times_infinity": statistics.median(rate / other for rate, other in zip(rates, best, strict=True)),
            "p99_of_infinity": statistics.median(turn[place] / min(turn[index] for index in theirs) for turn in p99),
            "least_cosine": float((vectors(first[place]) * reference).sum(axis=1).min()),
        }
        record(NAME, row, {**config, "server": name, "dtype": dtype})


def main() -> None:
    """Measure, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--infinity", type=Path, help="the infinity_emb command of its own environment")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if not arguments.table:
        if arguments.infinity is None:
            parser.error("--infinity is needed to measure")
        measure(arguments.infinity, clients=arguments.clients, requests=arguments.requests, rounds=arguments.rounds)
    print(table(NAME, COLUMNS))


if __name__ == "__main__":
    main()
