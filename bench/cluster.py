"""What a cluster costs: three local nodes against one, in the same run.

CPU (user and system, all threads, summed over the nodes) per request at 64 connections that are
spread over the nodes: PUT of 4 KiB, PUT of 64 MiB, GET of 4 KiB. Then what the nodes do by
themselves after that load, and catching up: one node is stopped, objects of 4 KiB are put, it is
started again, and foreground PUTs go on until it lacks nothing. At last the CPU of three nodes that
have nothing to do, before and after the keys are cut into many ranges. Everything is synced on a
majority.

All nodes and the clients share the cores of this machine, so rates are lower than those of one
node; CPU for each operation is what is compared.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from o3storage.cli._bench import Load, report
from o3storage.cli._client import Client
from o3storage.cli._text import Progress, parse_size, table

from ._result import Result
from ._store import cpu_s, running_store

NODES = 3
SECRET = "9d0c7b61f2a3584e9d0c7b61f2a3584e"
CONNECTIONS = 64
SECONDS = 16.0
ROUNDS = 8
"""By turns: a virtual machine that gives free memory back pays five times as much for each page
that is written once what it had at hand is used up; with one round of each, one side paid that."""
LARGE_CONNECTIONS = 8
"""64 of 64 MiB would be 4 GiB at a time, and more than half a minute for each request."""
AFTER_LOAD_S = 20.0
RANGES = 1000
QUIET_S = 15.0
"""Groups that were busy are quiescent after 5 s; what the last cuts left is done by then."""
IDLE_S = 40.0
"""Twice the interval in which the store looks into every range."""
MISSED_OBJECTS = 100_000
ALONE_S = 20.0
"""PUTs with all nodes, before one is stopped and when it lacks nothing."""
GOALS = {"put 4K": 2.7, "put 64M": 2.7, "get 4K": 1.25}
GOAL_IDLE_SHARE = 0.03
GOAL_CATCH_UP_S = 60.0
GOAL_FOREGROUND = 0.7
WAIT_S = 120.0


class LocalCluster:
    """NODES nodes on loopback."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ports = [_free_port_pair() for _ in range(NODES)]
        self.processes: dict[int, subprocess.Popen[str]] = {}

    def data_dir(self, number: int) -> Path:
        return self.directory / f"n{number}"

    def start(self, number: int) -> None:
        command = [sys.executable, "-m", "o3storage", "serve", "--port", str(self.ports[number])]
        command += ["--data-dir", str(self.data_dir(number))]
        if number:
            others = (f"127.0.0.1:{port + 1}" for port in self.ports)
            command += ["--peers", ",".join(others)]
        log = (self.directory / f"{number}.log").open("a")
        with log:
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "O3_CLUSTER_SECRET": SECRET, "PYTHONUNBUFFERED": "1"},
            )
        self.processes[number] = process
        assert process.stdout is not None
        for line in process.stdout:
            if line.lstrip().startswith("stop "):
                return
        raise AssertionError(f"node {number} did not start: see {log.name}")

    def stop(self, number: int) -> None:
        process = self.processes.pop(number)
        process.send_signal(signal.SIGTERM)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()

    def cpu_s(self) -> float:
        return sum(cpu_s(process.pid) for process in self.processes.values())

    def load(
        self,
        operation: str,
        size: str,
        connections: int,
        seconds: float,
        objects: int,
        *,
        nodes: int = NODES,
    ) -> SpreadLoad:
        """A load on the first `nodes` of them."""
        options = argparse.Namespace(
            data_dir=str(self.data_dir(0)), endpoint=None, bucket="bench", operation=operation,
            connections=connections, seconds=seconds, objects=objects, ca_file=None, key_id=None,
            secret_file=None, region=None,
        )  # fmt: skip
        return SpreadLoad(options, parse_size(size), self.ports[:nodes])

    async def terms(self) -> dict[int, int]:
        """The term of each range's leader: it grows by one with each election."""
        client = self.load("put", "4K", 1, 1.0, 1).client()
        answer = await client.request("GET", "/-/admin/v1/nodes")
        await client.close()
        return {group["group"]: group["term"] for group in json.loads(answer.body)["groups"]}

    async def settled(self) -> None:
        """All vote in all ranges, and lack nothing."""
        load = self.load("put", "4K", 1, 1.0, 1)
        client = load.client()
        end_s = time.monotonic() + WAIT_S
        while time.monotonic() < end_s:
            answer = await client.request("GET", "/-/admin/v1/nodes")
            if answer.status == 200 and self._agree(json.loads(answer.body)["groups"]):
                await client.close()
                return
            await asyncio.sleep(0.1)
        raise AssertionError(f"the nodes are not settled after {WAIT_S:.0f} s: {answer.body!r}")

    def _agree(self, groups: list[dict[str, object]]) -> bool:
        return len(groups) >= 2 and all(
            len(group["voters"]) == NODES  # type: ignore[arg-type]
            and not group["joint"]
            and not any(group["behind"].values())  # type: ignore[attr-defined]
            and not any(group["debt"].values())  # type: ignore[attr-defined]
            for group in groups
        )


class SpreadLoad(Load):
    """A load whose connections are spread over nodes."""

    def __init__(self, options: argparse.Namespace, size_bytes: int, ports: list[int]) -> None:
        super().__init__(options, size_bytes)
        self._next = itertools.cycle([f"http://127.0.0.1:{port}" for port in ports])

    def client(self) -> Client:
        return Client(next(self._next), self.key, region=self.region)


def _free_port_pair() -> int:
    while True:
        port = random.randrange(10_000, 32_000, 2)
        with socket.socket() as one, socket.socket() as two:
            try:
                one.bind(("127.0.0.1", port))
                two.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


@contextmanager
def local_cluster() -> Iterator[LocalCluster]:
    with TemporaryDirectory(prefix="o3bench") as directory:
        cluster = LocalCluster(Path(directory))
        try:
            for number in range(NODES):
                cluster.start(number)
            asyncio.run(cluster.settled())
            yield cluster
        finally:
            for number in list(cluster.processes):
                cluster.stop(number)


class Side:
    """One of the two that are compared: its load, and the processes that serve it."""

    def __init__(self, load: Load, used: list[int]) -> None:
        self.load = load
        self.used = used
        self.length_s = 0.0
        self.cpu_s = 0.0
        self.own_s = 0.0

    async def prepare(self) -> None:
        with open(os.devnull, "w") as quiet:
            await self.load.prepare(Progress("", 1, quiet))

    async def round(self) -> None:
        before_s = sum(cpu_s(pid) for pid in self.used)
        own_before = resource.getrusage(resource.RUSAGE_SELF)
        with open(os.devnull, "w") as quiet:
            self.length_s += await self.load.run(Progress("", 1, quiet))
        # What replicas still do for these requests belongs to them.
        await asyncio.sleep(1.0)
        self.cpu_s += sum(cpu_s(pid) for pid in self.used) - before_s
        own = resource.getrusage(resource.RUSAGE_SELF)
        self.own_s += own.ru_utime + own.ru_stime - own_before.ru_utime - own_before.ru_stime

    def found(self) -> dict[str, float]:
        """The report of all rounds, with `cpu_us` of the processes for each request."""
        name = self.load.operation
        entry = report(self.load, self.length_s, self.own_s)["operations"][name]
        assert not entry["errors"], entry["errors"]
        return {
            **{k: v for k, v in entry.items() if isinstance(v, int | float)},
            "cpu_us": self.cpu_s / entry["requests"] * 1e6,
        }


LOADS = {
    "put 4K": ("put", "4K", CONNECTIONS, 1000),
    "get 4K": ("get", "4K", CONNECTIONS, 1000),
    "put 64M": ("put", "64M", LARGE_CONNECTIONS, 8),
}


def costs(cluster: LocalCluster, seconds: float) -> list[Result]:
    """Each load in ROUNDS rounds, one node and three by turns."""
    rows, results = [], []
    with running_store() as (data_dir, pid):
        for name, (operation, size, connections, objects) in LOADS.items():
            options = argparse.Namespace(
                data_dir=str(data_dir), endpoint=None, bucket="bench", operation=operation,
                connections=connections, seconds=seconds / ROUNDS, objects=objects, ca_file=None,
                key_id=None, secret_file=None, region=None,
            )  # fmt: skip
            load = cluster.load(operation, size, connections, seconds / ROUNDS, objects)
            pids = [process.pid for process in cluster.processes.values()]
            sides = [Side(Load(options, parse_size(size)), [pid]), Side(load, pids)]
            for side in sides:
                asyncio.run(side.prepare())
            for number in range(ROUNDS):
                for side in sides if number % 2 == 0 else reversed(sides):
                    asyncio.run(side.round())
            one, three = (side.found() for side in sides)
            ratio = three["cpu_us"] / one["cpu_us"]
            results.append(Result(f"cluster: {name} CPU of three / one", ratio, GOALS[name]))
            rows.append(
                [name]
                + [f"{found['requests_per_s']:,.1f}" for found in (one, three)]
                + [f"{found['cpu_us']:,.0f}" for found in (one, three)]
                + [f"{ratio:.2f}", f"{GOALS[name]:g}"]
                + [f"{found['p50_ms']:.1f}" for found in (one, three)]
            )
    print(f"one node against {NODES}; {CONNECTIONS} connections, {LARGE_CONNECTIONS} of 64 MiB")
    heads = ["", "one /s", "three /s", "one CPU us", "three CPU us", "ratio", "goal"]
    print(table([*heads, "one p50 ms", "three p50 ms"], rows))
    return results


def after_load(cluster: LocalCluster, seconds: float) -> None:
    """Not idle: compaction brings back the space of the large bodies that were overwritten."""
    before_s = cluster.cpu_s()
    time.sleep(seconds)
    share = (cluster.cpu_s() - before_s) / seconds / NODES
    print(f"after the load: {share * 100:.2f} % of a core for each node, over {seconds:.0f} s")


def idle_ranges(cluster: LocalCluster, cuts: int, seconds: float) -> list[Result]:
    """Idle CPU with many ranges. The bucket is there."""

    async def cut() -> None:
        client = cluster.load("put", "4K", 1, 1.0, 1).client()
        # From the top, so that no cut waits for the range that the one before it made.
        for number in reversed(range(cuts)):
            body = json.dumps({"bucket": "bench", "key": f"cut-{number:05d}"}).encode()
            answer = await client.request("POST", "/-/admin/v1/ranges", body=body)
            assert answer.status == 200, answer.body
        await client.close()

    def shares() -> list[float]:
        before_s = [cpu_s(process.pid) for process in cluster.processes.values()]
        time.sleep(seconds)
        after_s = [cpu_s(process.pid) for process in cluster.processes.values()]
        return [(b - a) / seconds for a, b in zip(before_s, after_s, strict=True)]

    few = shares()
    began_s = time.monotonic()
    asyncio.run(cut())
    took_s = time.monotonic() - began_s
    time.sleep(QUIET_S)
    many = shares()
    print(
        f"idle: {_percent(few)} % of a core for each node; with {cuts:,} more ranges, cut in "
        f"{took_s:.0f} s, {_percent(many)} %"
    )
    # (One node leads them all: what it takes is what must be below the goal.)
    return [Result(f"cluster: idle CPU of a node with {cuts:,} ranges", max(many), GOAL_IDLE_SHARE)]


def _percent(shares: list[float]) -> str:
    return ", ".join(f"{share * 100:.2f}" for share in shares)


def catch_up(cluster: LocalCluster, objects: int) -> list[Result]:
    """The last node misses `objects` objects of 4 KiB; the load is on the others throughout."""

    async def put(seconds: float, count: int) -> tuple[float, float]:
        """(PUTs a second, seconds) of 64 connections for so long or until `count` were put."""
        load = cluster.load("put", "4K", CONNECTIONS, seconds, 10 * MISSED_OBJECTS, nodes=NODES - 1)
        began_s = time.monotonic()
        numbers = iter(range(count))

        async def worker() -> None:
            client = load.client()
            for number in numbers:
                await load.one(client, "put", number)
                if time.monotonic() - began_s > seconds:
                    break
            await client.close()

        await asyncio.gather(*(worker() for _ in range(CONNECTIONS)))
        took_s = time.monotonic() - began_s
        samples = load.samples["put"]
        for text, times in samples.errors.items():
            refused[text] = refused.get(text, 0) + times
        return len(samples.latencies_s) / took_s, took_s

    async def prepare() -> None:
        with open(os.devnull, "w") as quiet:
            await cluster.load("put", "4K", 1, 1.0, 1).prepare(Progress("", 1, quiet))

    refused: dict[str, int] = {}
    asyncio.run(prepare())
    before, _ = asyncio.run(put(ALONE_S, 10**9))
    cluster.stop(NODES - 1)
    asyncio.run(put(3600.0, objects))
    cluster.start(NODES - 1)
    came_s = time.monotonic()

    async def beside() -> tuple[float, float]:
        waiting = asyncio.create_task(_caught_up(cluster, came_s))
        rates: list[tuple[float, float]] = []
        while not waiting.done():
            rates.append(await put(2.0, 10**9))
        total_s = sum(took for _, took in rates)
        return await waiting, sum(rate * took for rate, took in rates) / total_s

    caught_s, rate = asyncio.run(beside())
    after, _ = asyncio.run(put(ALONE_S, 10**9))
    alone = (before + after) / 2
    print(
        f"catching up: a node that missed {objects:,} objects of 4 KiB lacks nothing after "
        f"{caught_s:.1f} s; meanwhile {rate:,.0f} PUTs a second, {before:,.0f} before and "
        f"{after:,.0f} after it; not taken, from the stop of that node on: {refused or 'none'}"
    )
    return [
        Result("cluster: catching up", caught_s, GOAL_CATCH_UP_S, "s"),
        Result("cluster: PUTs beside it", rate / alone, GOAL_FOREGROUND, at_least=True),
    ]


async def _caught_up(cluster: LocalCluster, since_s: float) -> float:
    """While puts go on the last few entries are always missing: up to one batch counts as none."""
    load = cluster.load("put", "4K", 1, 1.0, 1)
    client = load.client()
    while True:
        answer = await client.request("GET", "/-/admin/v1/nodes")
        if answer.status == 200:
            groups = json.loads(answer.body)["groups"]
            lacks = [n for g in groups for part in ("behind", "debt") for n in g[part].values()]
            if len(groups) >= 2 and max(lacks, default=0) < 1024:
                await client.close()
                return time.monotonic() - since_s
        assert time.monotonic() < since_s + 5 * WAIT_S, "it does not catch up"
        await asyncio.sleep(0.2)


def main(seconds: float | None = None) -> list[Result]:
    with local_cluster() as cluster:
        terms = asyncio.run(cluster.terms())
        results = costs(cluster, seconds or SECONDS)
        later = asyncio.run(cluster.terms())
        elections = sum(later[group] - term for group, term in terms.items())
        print(f"elections meanwhile, though nobody died: {elections}")
        results.append(Result("cluster: false elections under load", elections, 0))
        after_load(cluster, min(AFTER_LOAD_S, 2 * seconds) if seconds else AFTER_LOAD_S)
        asyncio.run(cluster.settled())
        objects = int(MISSED_OBJECTS * min(1.0, seconds / SECONDS)) if seconds else MISSED_OBJECTS
        results += catch_up(cluster, objects)
        time.sleep(QUIET_S)
        results += idle_ranges(cluster, RANGES, IDLE_S)
    return results
