"""Plays a closed loop over HTTP against `taygeta serve`, and compares what the client measures with the simulator.

    python tests/endpoint/closed_loop.py llama-3.1-70b --chip maia-100:8 --concurrency 1,16,64,256

It starts a server as a process of its own, sends the requests that `taygeta.simulate` gets too, and prints both. One
connection for each stream, opened before the clock starts; the times are those of the client.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

import taygeta as tg
from taygeta.serving.fleet import fleet as one
from taygeta.serving.live import live_fleet
from taygeta.serving.metrics import report
from taygeta.serving.run import run
from taygeta.serving.setup import prepare
from taygeta.serving.traffic import make_traffic
from taygeta.spec.deployment import Deployment


@dataclass
class Measured:
    """What a client saw of one request: seconds. arrived: as the server says, the fleet's time."""

    sent: float
    isl: int = 0
    osl: int = 0
    arrived: float = 0.0
    chunks: list[float] = field(default_factory=list)
    tokens: int = 0
    whole: bool = False


@contextlib.contextmanager
def server(words: list[str]) -> Iterator[tuple[str, int, int]]:
    """Start `taygeta serve` on a free port; yields its host, port and process."""
    command = [sys.executable, "-m", "taygeta.app.cli", "serve", *words, "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        found = re.search(r"http://([\d.]+):(\d+)/v1", line)
        assert found, line + process.stderr.read()
        yield found[1], int(found[2]), process.pid
    finally:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        sys.stdout.write("".join(f"server: {line}\n" for line in said.splitlines()))


def requests(count: int, isl: int, osl: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    return draw.integers(isl // 2, isl + 1, count), draw.integers(osl // 2, osl + 1, count)


async def play(host: str, port: int, model: str, isl: np.ndarray, osl: np.ndarray, streams: int) -> list[Measured]:
    """Send all requests in their order, so many at once; each stream keeps its connection."""
    out: list[Measured] = []
    numbers = iter(range(len(isl)))
    connections = [await asyncio.open_connection(host, port, limit=1 << 20) for _ in range(streams)]

    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for i in numbers:
            prompt = np.random.default_rng([streams, i]).integers(0, 1 << 30, isl[i]).tolist()  # in no cache yet
            body = json.dumps({
                "model": model, "prompt": prompt,
                "max_tokens": int(osl[i]), "ignore_eos": True, "stream": True,
                "stream_options": {"include_usage": True},
            }).encode()  # fmt: skip
            head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            found = await take(reader)
            found.isl, found.osl = int(isl[i]), int(osl[i])
            out.append(found)

    await asyncio.gather(*(stream(*connection) for connection in connections))
    for _, writer in connections:
        writer.close()
    return out


async def take(reader: asyncio.StreamReader) -> Measured:
    """Read one response of events."""
    found = Measured(time.perf_counter())
    status = await reader.readline()
    assert status.split()[1] == b"200", status + await reader.read(1000)
    while line := (await reader.readline()).strip():
        name, _, value = line.partition(b": ")
        if name == b"x-taygeta-arrived":
            found.arrived = float(value)
    while True:
        size = int(await reader.readline(), 16)
        part = (await reader.readexactly(size + 2))[:-2]
        if not size:
            return found
        now = time.perf_counter()
        for event in part.split(b"\n\n"):
            if event.startswith(b"data: {"):
                if b'"choices": []' in event:
                    found.tokens = json.loads(event[6:])["usage"]["completion_tokens"]
                else:
                    found.chunks.append(now)
            elif event == b"data: [DONE]":
                found.whole = True


def gaps(found: list[Measured]) -> np.ndarray:
    return np.concatenate([np.diff(x.chunks) for x in found])


def compare(found: list[Measured], fleet: Deployment, streams: int, speed: float, seconds: float) -> None:
    """Print the medians that the client saw over the simulator's: for the arrivals that the server stamped, and for
    a closed loop in which an end lets the next request in at once.
    """
    ttft = float(np.median([x.chunks[0] - x.sent for x in found])) * speed
    itl = float(np.median(gaps(found))) * speed
    tpot = float(np.median([(x.chunks[-1] - x.chunks[0]) / (x.osl - 1) for x in found])) * speed
    rate = sum(x.tokens for x in found) / (seconds * speed)
    order = sorted(found, key=lambda x: x.arrived)
    isl, osl = np.array([x.isl for x in order]), np.array([x.osl for x in order])
    arrival = np.array([x.arrived - order[0].arrived for x in order])
    loops = {"same arrivals": make_traffic("same", isl=isl, osl=osl, arrival=arrival),
             "closed loop": make_traffic("loop", isl=isl, osl=osl, concurrency=streams)}  # fmt: skip
    priced = live_fleet(one(fleet), fleet.model.max_context).setup.kinds[0].tables  # as the server prices its steps
    for name, traffic in loops.items():
        setup = prepare(one(fleet), traffic)
        r = report(run(replace(setup, kinds=(replace(setup.kinds[0], tables=priced),))))
        pairs = (("ttft", ttft, r.ttft.p50), ("itl", itl, r.itl.p50), ("tpot", tpot, r.tpot.p50),
                 ("tokens/s", rate, r.output_tokens_per_s))  # fmt: skip
        shown = ", ".join(f"{n} {a:.4g}/{b:.4g} ({a / b - 1:+.1%})" for n, a, b in pairs)
        sys.stdout.write(f"{streams:4} streams, client/simulator, {name}: {shown}\n")


def memory(pid: int) -> float:
    """Return the resident memory of a process, MB."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def late(host: str, port: int) -> str:
    text = urllib.request.urlopen(f"http://{host}:{port}/metrics").read().decode()
    names = ("taygeta:lag_seconds{", "taygeta:late_tokens_total{", "taygeta:emitted_tokens_total{")
    found = [line for line in text.splitlines() if line.startswith(names)]
    return ", ".join(f"{line.partition('{')[0]} {float(line.split()[-1]):.4g}" for line in found)


def main() -> None:
    ask = argparse.ArgumentParser()
    ask.add_argument("model")
    ask.add_argument("--chip", required=True)
    ask.add_argument("--concurrency", default="1,16,64,256")
    ask.add_argument("--rounds", type=int, default=4)
    ask.add_argument("--requests", type=int)
    ask.add_argument("--isl", type=int, default=256)
    ask.add_argument("--osl", type=int, default=96)
    ask.add_argument("--speed", type=float, default=1.0)
    a = ask.parse_args()
    fleet = tg.deploy(a.model, on=a.chip)
    with server([a.model, "--chip", a.chip, "--speed", str(a.speed)]) as (host, port, pid):
        asyncio.run(play(host, port, a.model, *requests(1, 64, 8, 1), 2))  # everything is read and compiled
        for streams in map(int, a.concurrency.split(",")):
            isl, osl = requests(a.requests or max(4, a.rounds * streams), a.isl, a.osl, streams)
            began, before = time.perf_counter(), time.process_time()
            found = asyncio.run(play(host, port, a.model, isl, osl, streams))
            seconds = time.perf_counter() - began
            lost = len(isl) - sum(x.whole for x in found) + int(sum(x.tokens for x in found) != osl.sum())
            compare(found, fleet, streams, a.speed, seconds)
            sys.stdout.write(
                f"     {len(found)} requests in {seconds:.1f} s, {lost} lost, {memory(pid):.0f} MB, {late(host, port)};"
                f" client CPU {(time.process_time() - before) / seconds:.0%}, load {os.getloadavg()[0]:.1f}\n"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
