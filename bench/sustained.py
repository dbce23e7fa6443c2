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
printed. Everything is synced, sealed and verified as always, and each body that is read is compared
with what was written. The load comes from a program in C (`open_loop.c`): one in Python took most
of the second core, and both cores were busy then. How late it sent a request, which counts as
latency too, is printed. The longest steps of the event loop are the server's own metric, read every
few seconds (reading it sets it back).

Every TIMELINE_S a line tells what was seen, so that an episode can be matched with its cause.
Beside the load a process of its own measures what one small durable write takes on the raw disk.
Afterwards the same generator asks a dict behind the same HTTP front for as much: what the machine
leaves of the goal.
"""

from __future__ import annotations

import asyncio
import os
import time
import urllib.request
from pathlib import Path
from tempfile import TemporaryDirectory

from o3storage.cli._bench import percentile
from o3storage.cli._client import Credentials
from o3storage.cli._text import table
from o3storage.server import read_root_key, read_running

from ._disk import WRITE_BYTES, DiskProbe
from ._open_loop import CONNECTIONS, OPEN_CONNECTIONS, Latencies, Report, Workload
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
MAX_LATE_MS = 1.0
"""A generator that is later than this for one request in a hundred had no core: the latencies are
its own."""
GOAL_P99_OVER_P50 = 5.0
GOAL_STALL_MS = 20.0


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

    def __init__(self, watch: Watch, pid: int) -> None:
        self._watch = watch
        self._pid = pid
        self._before = self._now()

    def line(self, report: Report) -> None:
        now = self._now()
        length_s, cpu, loop_cpu, waited, *counts = (
            b - a for a, b in zip(self._before, now, strict=True)
        )
        self._before = now
        took = ", ".join(
            f"{name} {found.ms(0.5):.1f}/{found.ms(0.99):.0f}/{found.max_ns / 1e6:.0f}"
            for name, found in report.took.items()
            if len(found)
        )
        batches, flushes, compactions, merged, slow = counts
        print(
            f"  {report.at_s:4.0f} s: server {cpu / length_s * 100:.0f} %, loop "
            f"{loop_cpu / length_s * 100:.0f} % and {waited / length_s * 100:.0f} % without a "
            f"core; {batches:.0f} batches, {flushes:.0f} flushes, "
            f"{compactions:.0f} compactions, {merged:.0f} tables merged, {slow:.0f} slow "
            f"steps; p50/p99/max ms: {took}",
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


async def reference(directory: Path, key: Credentials, rate: float) -> None:
    """What the machine leaves of the goal: the same open loop of GETs, as many each second, from a
    dict behind the same HTTP front, which has neither a disk nor work to put off."""
    with reference_front("memory", key.key_id, key.secret) as endpoint:
        load = Workload(directory, endpoint, key)
        await load.prepare()
        found = await load.run(("get",), REFERENCE_S, rate=rate)
    assert not found.errors, found.errors
    p50, p99 = (found.took["get"].ms(part) for part in (0.5, 0.99))
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


async def peak(load: Workload, data_dir: Path, pid: int, url: str, seconds: float | None) -> float:
    """Requests per second of a closed loop of MIX."""
    warm_s = min(WARM_SECONDS, seconds or WARM_SECONDS)
    peak_s = min(PEAK_SECONDS, seconds or PEAK_SECONDS)
    burst: list[float] = []
    warm = await load.run(
        MIX,
        warm_s,
        period_s=BURST_SECONDS,
        on_period=lambda report: burst.append(report.requests() / BURST_SECONDS),
    )
    assert not warm.errors, warm.errors
    watch = Watch(url, data_dir, pid)
    watching = asyncio.create_task(watch.run())
    await asyncio.sleep(0.5)
    loop_before = loop_cpu_s(pid)
    found = await load.run(MIX, peak_s)
    loop_s = loop_cpu_s(pid) - loop_before
    await stopped(watching)
    await watch.look()
    assert not found.errors, found.errors
    rate = found.requests() / found.at_s
    print(
        f"peak {rate:,.0f} requests/s (closed loop, {CONNECTIONS} connections, {peak_s:.0f} s "
        f"after {warm_s:.0f} s of the same; inside: {watch.inside(len(found.took['put']))}; loop's "
        f"thread {loop_s / found.at_s * 100:.0f} % of a core, the generator "
        f"{found.cpu_s / found.at_s * 100:.0f} %)"
        + (f"; the fresh store's first {BURST_SECONDS:.0f} s: {burst[0]:,.0f}/s" if burst else ""),
        flush=True,
    )
    return rate


async def run(data_dir: Path, pid: int, seconds: float | None, directory: Path) -> list[Result]:
    found, key = read_running(data_dir), read_root_key(data_dir)
    assert found is not None and key is not None
    credentials = Credentials(key.key_id, key.secret)
    load = Workload(directory, found.url, credentials, region=found.region)
    await load.prepare()
    rate = SHARE_OF_PEAK * await peak(load, data_dir, pid, found.url, seconds)
    watch = Watch(found.url, data_dir, pid)
    watching = asyncio.create_task(watch.run())
    probe = DiskProbe(data_dir.parent, PROBES_PER_S)
    await probe.start()
    await asyncio.sleep(0.5)
    timeline = Timeline(watch, pid)
    cpu_before = cpu_s(pid)
    loop_before = loop_cpu_s(pid)
    seen = await load.run(
        MIX, seconds or SECONDS, rate=rate, period_s=TIMELINE_S, on_period=timeline.line
    )
    server_s = cpu_s(pid) - cpu_before
    loop_s = loop_cpu_s(pid) - loop_before
    await stopped(watching)
    await watch.look()
    beside = await probe.stop()
    assert not seen.errors, seen.errors

    length_s = seen.at_s
    print(
        f"then {rate:,.0f}/s for {length_s:.0f} s: server {server_s / length_s * 100:.0f} % of a "
        f"core ({server_s / seen.requests() * 1e6:.0f} us a request), its event loop's thread "
        f"{loop_s / length_s * 100:.0f} %, server's peak memory {peak_rss_mib(pid):.0f} MiB; the "
        f"generator {seen.cpu_s / length_s * 100:.0f} %, late by p50 {seen.late.ms(0.5):.3f}, p99 "
        f"{seen.late.ms(0.99):.2f}, max {seen.late.max_ns / 1e6:.1f} ms"
    )
    if seen.late.ms(0.99) > MAX_LATE_MS:
        print("The generator was late: these latencies are the machine's, not the server's.")
    batches = watch.grown("o3_batches_total")
    print(
        f"inside: {watch.inside(len(seen.took['put']))}, {batches:,.0f} batches, "
        f"{watch.grown('o3_loop_slow_steps_total'):.0f} steps of the loop over 20 ms; "
        f"{seen.crowded:,} requests found none of {OPEN_CONNECTIONS} connections free"
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
    await reference(directory, credentials, rate)
    return goals(seen.took, watch)


def goals(took: dict[str, Latencies], watch: Watch) -> list[Result]:
    rows = []
    results = []
    for operation, found in took.items():
        p50, p99, p999 = (found.ms(part) for part in (0.5, 0.99, 0.999))
        rows.append(
            [operation, f"{len(found):,}"]
            + [f"{value:.2f}" for value in (p50, p99, p999, found.max_ns / 1e6, p99 / p50)]
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
    with running_store() as (data_dir, pid), TemporaryDirectory(prefix="o3bench") as directory:
        return asyncio.run(run(data_dir, pid, seconds, Path(directory)))
