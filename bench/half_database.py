"""PUT and GET of 4 KiB: latency against the same HTTP front storing into SQLite (WAL, FULL).

All arms parse, authenticate and answer with the same code. The store and SQLite are durable before
the answer; ours also seals, checksums and goes through the log. Two more arms show what the goal
leaves for a store (`bench.reference_front`): a dict in place of one, and for PUT that dict behind
one write of 4 KiB and one fdatasync. Interleaved in one run.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from tempfile import TemporaryDirectory

from o3storage.cli._bench import Load, report
from o3storage.cli._text import Progress, parse_size, table
from o3storage.server import read_root_key, read_running

from ._result import Result
from ._store import running_store

GOAL = 0.5
SECONDS = 4.0
OBJECTS = 1000


def measure(  # noqa: PLR0917
    endpoint: str,
    key_id: str,
    secret_file: str,
    operation: str,
    connections: int,
    seconds: float,
) -> float:
    """p50 in milliseconds."""
    options = argparse.Namespace(
        data_dir="/nonexistent", endpoint=endpoint, bucket="bench", operation=operation,
        connections=connections, seconds=seconds, objects=OBJECTS, ca_file=None, key_id=key_id,
        secret_file=secret_file, region="us-east-1",
    )  # fmt: skip

    async def run() -> float:
        load = Load(options, parse_size("4K"))
        with open(os.devnull, "w") as quiet:
            progress = Progress("", 1, quiet)
            await load.prepare(progress)
            length_s = await load.run(progress)
        entry = report(load, length_s, 0.0)["operations"][operation]
        assert not entry["errors"], entry["errors"]
        return float(entry["p50_ms"])

    return asyncio.run(run())


@contextmanager
def reference_front(kind: str, key_id: str, secret: str) -> Iterator[str]:
    """The endpoint of a `bench.reference_front`, in a process of its own."""
    with TemporaryDirectory(prefix="o3bench") as directory:
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.reference_front", kind, directory, key_id, secret],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.terminate()
            process.wait()
            process.stdout.close()


def main(seconds: float | None = None) -> list[Result]:
    rows = []
    results = []
    with ExitStack() as stack:
        data_dir, _pid = stack.enter_context(running_store())
        other = stack.enter_context(TemporaryDirectory(prefix="o3bench"))
        key, found = read_root_key(data_dir), read_running(data_dir)
        assert key is not None and found is not None
        secret_file = f"{other}/secret"
        with open(secret_file, "w") as file:
            file.write(key.secret)
        endpoints = {"store": found.url}
        for kind in ("sqlite", "memory", "raw"):
            front = reference_front(kind, key.key_id, key.secret)
            endpoints[kind] = stack.enter_context(front)
        for connections in (1, 64):
            for operation in ("put", "get"):
                # Nothing is synced for a GET: behind it both are the same dict.
                arms = [arm for arm in endpoints if operation == "put" or arm != "raw"]
                seen: dict[str, list[float]] = {arm: [] for arm in arms}
                for _ in range(2):
                    for arm in arms:
                        p50_ms = measure(
                            endpoints[arm],
                            key.key_id,
                            secret_file,
                            operation,
                            connections,
                            seconds or SECONDS,
                        )
                        seen[arm].append(p50_ms)
                best = {arm: min(figures) for arm, figures in seen.items()}
                what = f"{operation}, {connections} connections"
                ratio = best["store"] / best["sqlite"]
                results.append(Result(f"half_database: {what}", ratio, GOAL))
                rows.append(
                    [
                        what,
                        *(f"{best[arm]:.2f}" if arm in best else "" for arm in endpoints),
                        f"{ratio:.2f}",
                        f"{best['memory'] / best['sqlite']:.2f}",
                        f"{best['raw'] / best['sqlite']:.2f}" if "raw" in best else "",
                        f"<= {GOAL}",
                    ]
                )
    heads = ["store", "SQLite", "dict", "dict, synced"]
    of_sqlite = ["store / SQLite", "dict / SQLite", "synced / SQLite", "goal"]
    print(table(["4 KiB p50, ms", *heads, *of_sqlite], rows))
    return results
