"""Server CPU per signed GET of 4 KiB whose body is not in the page cache, beside one that is.

The objects are written, then the pages of all volumes are dropped (posix_fadvise DONTNEED: they
are synced, so all of them go), and each object is asked for once, in an order that has nothing to
do with where it lies. Rows are in memory, or in blocks of the index, whose files stay cached: what
is cold is the body. How much the server read from the disk per request is stated (/proc/PID/io);
a frame of 4 KiB lies on two pages, and neighbours share one.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from pathlib import Path

from o3storage.cli._bench import Load, percentile
from o3storage.cli._text import Progress, parse_size, table

from ._result import Result
from ._store import cpu_s, running_store

OBJECTS = 30_000
"""Each is read once in an arm: some seconds."""
CONNECTIONS = 64
STRIDE = 7_919
"""Prime, and no divisor of OBJECTS: all objects are met, none after its neighbour."""
GOALS_US = {"cold": 160.0, "warm": 120.0}


def drop_cached(data_dir: Path) -> None:
    """Drop the pages of all volumes, and nothing else of the machine."""
    for path in sorted((data_dir / "volumes").iterdir()):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def disk_bytes(pid: int) -> int:
    """Bytes that the process had to fetch from the disk so far."""
    for line in Path(f"/proc/{pid}/io").read_text().splitlines():
        if line.startswith("read_bytes:"):
            return int(line.split()[1])
    return 0


async def read_all(load: Load) -> float:
    """Ask for each object once; seconds."""
    numbers = iter(range(load.objects))
    began = time.perf_counter()

    async def worker() -> None:
        client = load.client()
        for number in numbers:
            await load.one(client, "get", number * STRIDE)
        await client.close()

    await asyncio.gather(*[worker() for _ in range(CONNECTIONS)])
    return time.perf_counter() - began


async def run(data_dir: Path, pid: int, objects: int) -> list[Result]:
    options = argparse.Namespace(
        data_dir=str(data_dir), endpoint=None, bucket="bench", operation="get",
        connections=CONNECTIONS, seconds=0.0, objects=objects, ca_file=None, key_id=None,
        secret_file=None, region=None,
    )  # fmt: skip
    load = Load(options, parse_size("4K"))
    with open(os.devnull, "w") as quiet:
        await load.prepare(Progress("", 1, quiet))
    rows = []
    results = []
    for arm in ("cold", "warm"):
        if arm == "cold":
            drop_cached(data_dir)
        load.samples.clear()
        cpu_before, read_before = cpu_s(pid), disk_bytes(pid)
        length_s = await read_all(load)
        cpu_us = (cpu_s(pid) - cpu_before) / objects * 1e6
        read_bytes = (disk_bytes(pid) - read_before) / objects
        samples = load.samples["get"]
        assert not samples.errors, samples.errors
        p50_ms = percentile(sorted(samples.latencies_s), 0.5) * 1e3
        results.append(Result(f"cold_get: {arm} GET CPU", cpu_us, GOALS_US[arm], "us"))
        rows.append(
            [
                arm,
                f"{objects / length_s:,.0f}",
                f"{cpu_us:,.0f}",
                f"{GOALS_US[arm]:,.0f}",
                f"{p50_ms:.2f}",
                f"{read_bytes / 1024:.1f}",
            ]
        )
    print(
        table(["GET 4 KiB", "/s", "CPU us", "goal us", "p50 ms", "KiB from disk per GET"], rows),
        flush=True,
    )
    return results


def main(seconds: float | None = None) -> list[Result]:
    objects = OBJECTS if seconds is None else OBJECTS // 10
    with running_store() as (data_dir, pid):
        return asyncio.run(run(data_dir, pid, objects))
