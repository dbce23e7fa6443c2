"""70 % of the peak rate for 10 minutes, with flushes, merges and compactions inside.

First the peak: a closed loop of the same mix. What its PUTs leave behind (flushes, merges,
compaction) is done minutes later, so a peak that is measured on a fresh store does only a part of
that work, and 70 % of it may be more than there is. So the closed loop runs for WARM_SECONDS first,
which fills the backlog, and what is measured then pays for the PUTs before it; compactions for each
100,000 PUTs are printed for the peak and for the ten minutes, and should agree.

Then an open loop: each request has a time at which it is due, and its latency counts from there, so
that a stall is seen by all that it delays. It has as many connections as it takes
(OPEN_CONNECTIONS, opened beforehand): with 64 a sync that takes 60 ms would hold all of them, and
GETs that are due would wait for a connection rather than for the store. How often none was free is
printed. Everything is synced, sealed and verified as always. The longest steps of the event loop
are the server's own metric, read every few seconds (reading it sets it back). This client makes no
garbage collections while it measures, and its timers are late by up to 1 ms (epoll's clock).

Every TIMELINE_S a line tells what was seen, so that an episode can be matched with its cause.
Beside the load a process of its own measures what one small durable write takes on the raw disk.
Afterwards the same client asks a dict behind the same HTTP front for as much: what the machine and
the client leave of the goal.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import resource
import time
import urllib.request
from collections import deque
from pathlib import Path

from o3storage.cli._bench import Load, percentile
from o3storage.cli._client import Client
from o3storage.cli._text import Progress, parse_size, table
from o3storage.server import read_root_key, read_running

from ._disk import WRITE_BYTES, DiskProbe
from ._result import Result
from ._store import TICKS_PER_S, cpu_s, peak_rss_mib, running_store
from .half_database import reference_front

SECONDS = 600.0
WARM_SECONDS = 120.0
"""A flush comes every 100 thousand PUTs, some 70 s at the peak, and compactions behind it."""
PEAK_SECONDS = 120.0
BURST_SECONDS = 10.0
"""The first part of it, which holds no background work."""
SHARE_OF_PEAK = 0.7
CONNECTIONS = 64
"""Of the closed loop."""
OPEN_CONNECTIONS = 512
"""Of the open loop: a tenth of a second of requests."""
OBJECTS = 10_000
MIX = ("put", "get", "get", "head", "get", "put", "get", "head", "get", "get") * 5 + ("list",)
"""One PUT to five others, and a listing of 1,000 keys among fifty-one requests."""
SCRAPE_S = 5.0
TIMELINE_S = 30.0
PROBES_PER_S = 10.0
"""Raw writes beside the load: few enough to be no load themselves."""
REFERENCE_S = 20.0
"""The same loop against a dict."""
PROBE_ALONE_S = 10.0
"""The same at the rate of the load's batches, with the server idle."""
TABLE_S = 0.5
"""How often the index's directory is looked at: a table that goes was merged."""
GOAL_P99_OVER_P50 = 5.0
GOAL_STALL_MS = 20.0


class Mixed(Load):
    """A load of `mix`; `took` by operation. With `endpoint`, the id of a key and the file of its
    secret: of that server."""

    def __init__(self, data_dir: Path, mix: tuple[str, ...] = MIX, *signed: str) -> None:
        endpoint, key_id, secret_file = signed or (None, None, None)
        options = argparse.Namespace(
            data_dir=str(data_dir), endpoint=endpoint, bucket="bench", operation="mixed",
            connections=CONNECTIONS, seconds=0.0, objects=OBJECTS, ca_file=None, key_id=key_id,
            secret_file=secret_file,
        )  # fmt: skip
        super().__init__(options, parse_size("4K"))
        self.mix = mix
        self.took: dict[str, list[float]] = {name: [] for name in dict.fromkeys(mix)}
        """What `open` measured so far."""
        self.crowded = 0
        """Requests of `open` that found no connection free."""

    async def closed(self, seconds: float) -> tuple[float, float]:
        """Requests per second of a closed loop, and of its first BURST_SECONDS."""
        began = time.perf_counter()
        end = began + seconds
        burst_s = min(BURST_SECONDS, seconds)
        count = 0
        early = 0

        async def worker(number: int) -> None:
            nonlocal count, early
            client = self.client()
            while time.perf_counter() < end:
                # As in `open`: keys are spread, and each operation meets all of them.
                await self.one(client, self.mix[number % len(self.mix)], number * 7_919)
                number += CONNECTIONS
                count += 1
                if time.perf_counter() < began + burst_s:
                    early = count
            await client.close()

        await asyncio.gather(*[worker(n) for n in range(CONNECTIONS)])
        return count / seconds, early / burst_s

    async def open(
        self, rate: float, seconds: float, connections: int = OPEN_CONNECTIONS
    ) -> dict[str, list[float]]:
        """Latencies in seconds from the time at which each request was due."""
        took = self.took
        loop = asyncio.get_running_loop()
        idle: deque[asyncio.Future[tuple[int, float] | None]] = deque()
        overdue: deque[tuple[int, float]] = deque()
        """Requests that found no connection free."""
        ended = False

        async def opened() -> Client:
            client = self.client()
            await client.request("HEAD", self.path(0), keep_body=False)
            return client

        async def worker(client: Client) -> None:
            while overdue or not ended:
                if overdue:
                    given: tuple[int, float] | None = overdue.popleft()
                else:
                    job: asyncio.Future[tuple[int, float] | None] = loop.create_future()
                    idle.append(job)
                    given = await job
                if given is None:
                    break
                number, due = given
                operation = self.mix[number % len(self.mix)]
                # 7,919 is prime: keys are spread, and each operation meets all of them.
                await self.one(client, operation, number * 7_919)
                took[operation].append(time.perf_counter() - due)
            await client.close()

        clients = [await opened() for _ in range(connections)]
        workers = [asyncio.ensure_future(worker(client)) for client in clients]
        await asyncio.sleep(0)
        began = time.perf_counter()
        for number in range(int(rate * seconds)):
            due = began + number / rate
            ahead = due - time.perf_counter()
            if ahead > 0:
                await asyncio.sleep(ahead)
            if idle:
                idle.popleft().set_result((number, due))
            else:
                overdue.append((number, due))
                self.crowded += 1
        ended = True
        for job in idle:
            job.set_result(None)
        await asyncio.gather(*workers)
        return took

    def errors(self) -> dict[str, int]:
        return {text: n for found in self.samples.values() for text, n in found.errors.items()}


def loop_cpu_s(pid: int) -> float:
    """As `cpu_s`, of the event loop's thread alone: the process's first."""
    fields = Path(f"/proc/{pid}/task/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def loop_waited_s(pid: int) -> float:
    """How long that thread was ready to run and had no core, so far; 0.0 where the kernel does not
    say. A step of the loop that was long for this is not the server's doing."""
    try:
        return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


def scrape(url: str) -> dict[str, float]:
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
    return {name: float(value) for name, value in pairs}


class Watch:
    """What happens in the server meanwhile."""

    def __init__(self, url: str, data_dir: Path, pid: int) -> None:
        self._url = url
        self._pid = pid
        self._index = data_dir / "index"
        self.stalls_s: list[tuple[float, float]] = []
        """The longest step in each SCRAPE_S, and how long the loop's thread had no core in it."""
        self._waited_s = loop_waited_s(pid)
        self.merged_tables = 0
        self.first: dict[str, float] = {}
        self.last: dict[str, float] = {}

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        self.first = self.last = await loop.run_in_executor(None, scrape, self._url)
        tables: set[str] = set()
        next_scrape = loop.time() + SCRAPE_S
        while True:
            await asyncio.sleep(TABLE_S)
            now = {name for name in os.listdir(self._index) if name.endswith(".table")}
            self.merged_tables += len(tables - now)
            tables = now
            if loop.time() >= next_scrape:
                next_scrape += SCRAPE_S
                await self.look()

    async def look(self) -> None:
        loop = asyncio.get_running_loop()
        self.last = await loop.run_in_executor(None, scrape, self._url)
        waited_s = loop_waited_s(self._pid)
        self.stalls_s.append((self.last["o3_loop_longest_step_seconds"], waited_s - self._waited_s))
        self._waited_s = waited_s

    def grown(self, name: str) -> float:
        return self.last[name] - self.first[name]

    def inside(self, puts: int) -> str:
        compactions = self.grown("o3_compactions_total")
        return (
            f"{self.grown('o3_flushes_total'):.0f} flushes, {self.merged_tables} tables merged "
            f"away, {compactions:.0f} compactions, which is {compactions / puts * 1e5:.1f} for "
            f"100,000 PUTs"
        )


class Timeline:
    """A line every TIMELINE_S: what was asked, what it took, and what ran beside it."""

    def __init__(self, load: Mixed, watch: Watch, pid: int) -> None:
        self._load = load
        self._watch = watch
        self._pid = pid

    async def run(self) -> None:
        began = time.perf_counter()
        seen = {name: len(times) for name, times in self._load.took.items()}
        before = self._now()
        while True:
            await asyncio.sleep(TIMELINE_S)
            now = self._now()
            length_s, cpu, loop_cpu, waited, *counts = (
                b - a for a, b in zip(before, now, strict=True)
            )
            before = now
            parts = []
            for name, times in self._load.took.items():
                ordered = sorted(times[seen[name] :])
                seen[name] = len(times)
                if ordered:
                    p50, p99 = (percentile(ordered, part) * 1e3 for part in (0.5, 0.99))
                    parts.append(f"{name} {p50:.1f}/{p99:.0f}/{ordered[-1] * 1e3:.0f}")
            batches, flushes, compactions, merged, slow = counts
            print(
                f"  {now[0] - began:4.0f} s: server {cpu / length_s * 100:.0f} %, loop "
                f"{loop_cpu / length_s * 100:.0f} % and {waited / length_s * 100:.0f} % without a "
                f"core; {batches:.0f} batches, {flushes:.0f} flushes, "
                f"{compactions:.0f} compactions, {merged:.0f} tables merged, {slow:.0f} slow "
                f"steps; p50/p99/max ms: {', '.join(parts)}",
                flush=True,
            )

    def _now(self) -> tuple[float, ...]:
        last = self._watch.last
        return (
            time.perf_counter(),
            cpu_s(self._pid),
            loop_cpu_s(self._pid),
            loop_waited_s(self._pid),
            last["o3_batches_total"],
            last["o3_flushes_total"],
            last["o3_compactions_total"],
            self._watch.merged_tables,
            last["o3_loop_slow_steps_total"],
        )


async def reference(data_dir: Path, rate: float) -> None:
    """What the machine and this client leave of the goal: the same open loop of GETs, as many each
    second, from a dict behind the same HTTP front, which has neither a disk nor work to put off."""
    key = read_root_key(data_dir)
    assert key is not None
    secret_file = data_dir.parent / "reference.secret"
    secret_file.write_text(key.secret)
    with reference_front("memory", key.key_id, key.secret) as endpoint:
        load = Mixed(data_dir, ("get",), endpoint, key.key_id, str(secret_file))
        with open(os.devnull, "w") as quiet:
            await load.prepare(Progress("", 1, quiet))
        gc.collect()
        gc.disable()
        took = await load.open(rate, REFERENCE_S)
        gc.enable()
    assert not load.errors(), load.errors()
    ordered = sorted(took["get"])
    p50, p99 = (percentile(ordered, part) * 1e3 for part in (0.5, 0.99))
    print(
        f"as many GETs each second from a dict behind the same front: p50 {p50:.2f}, p99 {p99:.2f} "
        f"ms, which is {p99 / p50:.1f} times",
        flush=True,
    )


def _disk(times_s: list[float]) -> str:
    if not times_s:
        return "not measured"
    p50, p99 = (percentile(times_s, part) * 1e3 for part in (0.5, 0.99))
    return f"p50 {p50:.2f}, p99 {p99:.2f}, max {times_s[-1] * 1e3:.1f} ms"


async def stopped(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def run(data_dir: Path, pid: int, seconds: float | None) -> list[Result]:
    found = read_running(data_dir)
    assert found is not None
    load = Mixed(data_dir)
    with open(os.devnull, "w") as quiet:
        await load.prepare(Progress("", 1, quiet))
    warm_s = min(WARM_SECONDS, seconds or WARM_SECONDS)
    peak_s = min(PEAK_SECONDS, seconds or PEAK_SECONDS)
    _, burst = await load.closed(warm_s)
    load.samples.clear()
    watch = Watch(found.url, data_dir, pid)
    watching = asyncio.create_task(watch.run())
    await asyncio.sleep(0.5)
    peak, _ = await load.closed(peak_s)
    await stopped(watching)
    await watch.look()
    puts = len(load.samples["put"].latencies_s)
    print(
        f"peak {peak:,.0f} requests/s (closed loop, {CONNECTIONS} connections, {peak_s:.0f} s "
        f"after {warm_s:.0f} s of the same; inside: {watch.inside(puts)}); the fresh store's first "
        f"{min(BURST_SECONDS, warm_s):.0f} s: {burst:,.0f}/s",
        flush=True,
    )
    load.samples.clear()
    gc.collect()
    gc.disable()
    rate = SHARE_OF_PEAK * peak
    watch = Watch(found.url, data_dir, pid)
    watching = asyncio.create_task(watch.run())
    probe = DiskProbe(data_dir.parent, PROBES_PER_S)
    await probe.start()
    await asyncio.sleep(0.5)
    timeline = asyncio.create_task(Timeline(load, watch, pid).run())
    cpu_before = cpu_s(pid)
    loop_before = loop_cpu_s(pid)
    own_before = resource.getrusage(resource.RUSAGE_SELF)
    began = time.perf_counter()
    took = await load.open(rate, seconds or SECONDS)
    length_s = time.perf_counter() - began
    own = resource.getrusage(resource.RUSAGE_SELF)
    own_s = own.ru_utime + own.ru_stime - own_before.ru_utime - own_before.ru_stime
    server_s = cpu_s(pid) - cpu_before
    loop_s = loop_cpu_s(pid) - loop_before
    await stopped(timeline)
    await stopped(watching)
    await watch.look()
    beside = await probe.stop()
    gc.enable()
    errors = load.errors()
    assert not errors, errors

    print(
        f"then {rate:,.0f}/s for {length_s:.0f} s: server {server_s / length_s * 100:.0f} % of a "
        f"core, its event loop's thread {loop_s / length_s * 100:.0f} %, this client "
        f"{own_s / length_s * 100:.0f} %, server's peak memory {peak_rss_mib(pid):.0f} MiB"
    )
    batches = watch.grown("o3_batches_total")
    puts = len(load.samples["put"].latencies_s)
    print(
        f"inside: {watch.inside(puts)}, {watch.grown('o3_batches_total'):,.0f} batches, "
        f"{watch.grown('o3_loop_slow_steps_total'):.0f} steps of the loop over 20 ms; "
        f"{load.crowded:,} requests found none of {OPEN_CONNECTIONS} connections free"
    )
    probe = DiskProbe(data_dir.parent, batches / length_s)
    await probe.start()
    await asyncio.sleep(min(PROBE_ALONE_S, length_s))
    alone = await probe.stop()
    print(f"raw disk, {WRITE_BYTES // 1024} KiB and fdatasync: {_disk(beside)} beside the load; ")
    print(f"  {_disk(alone)} alone, as often as the load wrote batches")
    longest = ", ".join(
        f"{stall * 1e3:.1f} ({waited * 1e3:.0f})"
        for stall, waited in sorted(watch.stalls_s)[-8:][::-1]
    )
    print(
        f"longest step of the loop in each {SCRAPE_S:.0f} s, the worst of them in ms (and for how "
        f"many ms of these {SCRAPE_S:.0f} s its thread was ready and had no core): {longest}"
    )
    await reference(data_dir, rate)
    rows = []
    results = []
    for operation, latencies in took.items():
        ordered = sorted(latencies)
        p50, p99, p999 = (percentile(ordered, f) * 1e3 for f in (0.5, 0.99, 0.999))
        rows.append(
            [operation, f"{len(ordered):,}"]
            + [f"{value:.2f}" for value in (p50, p99, p999, ordered[-1] * 1e3, p99 / p50)]
        )
        results.append(Result(f"sustained: {operation} p99 / p50", p99 / p50, GOAL_P99_OVER_P50))
    print(table(["4 KiB", "requests", "p50 ms", "p99 ms", "p99.9 ms", "max ms", "p99 / p50"], rows))
    results.append(
        Result(
            "sustained: longest step of the loop", max(watch.stalls_s)[0] * 1e3, GOAL_STALL_MS, "ms"
        )
    )
    for name, value in (
        ("flushes", watch.grown("o3_flushes_total")),
        ("tables merged away", watch.merged_tables),
        ("compactions", watch.grown("o3_compactions_total")),
    ):
        results.append(Result(f"sustained: {name} inside", value, 1, at_least=True))
    return results


def main(seconds: float | None = None) -> list[Result]:
    with running_store() as (data_dir, pid):
        return asyncio.run(run(data_dir, pid, seconds))
