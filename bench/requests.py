"""Server CPU per signed request at 64 connections, warm; user and system, all threads.

Everything is synced, sealed and verified as always. The reference is the HTTP layer alone with a
trivial handler (bench.http_floor): what any answer costs at least.
"""

from __future__ import annotations

from o3storage.cli._text import table

from ._result import Result
from ._store import load, peak_rss_mib, running_store

LIMITS_US = {"get": 120, "put": 250, "head": 100, "list": 8000}


SECONDS = 5.0


def main(seconds: float | None = None) -> list[Result]:
    rows = []
    results = []
    with running_store() as (data_dir, pid):
        for operation in ("put", "get", "head", "list"):
            seen = load(data_dir, pid, operation, seconds=seconds or SECONDS)
            results.append(
                Result(f"requests: {operation} CPU", seen["cpu_us"], LIMITS_US[operation], "us")
            )
            rows.append(
                [
                    operation,
                    f"{seen['requests_per_s']:,.0f}",
                    f"{seen['cpu_us']:,.0f}",
                    f"{LIMITS_US[operation]:,}",
                    f"{seen['p50_ms']:.2f}",
                    f"{seen['p99_ms']:.2f}",
                    f"{seen['server_share'] * 100:.0f} %",
                    f"{seen['client_share'] * 100:.0f} %",
                ]
            )
        print(
            table(
                ["4 KiB", "/s", "CPU us", "goal us", "p50 ms", "p99 ms", "server", "client"], rows
            )
        )
        print(f"peak memory {peak_rss_mib(pid):.0f} MiB; server and client in shares of one core")
    return results
