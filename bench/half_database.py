"""PUT and GET of 4 KiB: latency against the same HTTP front storing into SQLite (WAL, FULL).

Both arms parse, authenticate and answer with the same code, and both are durable before the
answer; ours also seals, checksums and goes through the log. Interleaved in one run.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
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
        secret_file=secret_file,
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


def main(seconds: float | None = None) -> list[Result]:
    rows = []
    results = []
    with running_store() as (data_dir, _pid), TemporaryDirectory(prefix="o3bench") as other:
        key, found = read_root_key(data_dir), read_running(data_dir)
        assert key is not None and found is not None
        secret_file = f"{other}/secret"
        with open(secret_file, "w") as file:
            file.write(key.secret)
        front = subprocess.Popen(
            [sys.executable, "-m", "bench.sqlite_front", other, key.key_id, key.secret],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert front.stdout is not None
        peer = f"http://127.0.0.1:{front.stdout.readline().strip()}"
        try:
            for connections in (1, 64):
                for operation in ("put", "get"):
                    arms: dict[str, list[float]] = {found.url: [], peer: []}
                    for _ in range(2):
                        for endpoint, seen in arms.items():
                            seen.append(
                                measure(
                                    endpoint,
                                    key.key_id,
                                    secret_file,
                                    operation,
                                    connections,
                                    seconds or SECONDS,
                                )
                            )
                    ours, theirs = min(arms[found.url]), min(arms[peer])
                    what = f"{operation}, {connections} connections"
                    results.append(Result(f"half_database: {what}", ours / theirs, GOAL))
                    rows.append(
                        [
                            what,
                            f"{ours:.2f}",
                            f"{theirs:.2f}",
                            f"{ours / theirs:.2f}",
                            f"<= {GOAL}",
                        ]
                    )
        finally:
            front.terminate()
            front.wait()
            front.stdout.close()
    print(table(["4 KiB p50", "store ms", "SQLite ms", "ratio", "goal"], rows))
    return results
