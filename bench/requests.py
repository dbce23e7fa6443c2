"""Server CPU per signed request at 64 connections, warm; user and system, all threads.

Everything is synced, sealed and verified as always. The reference is the HTTP layer alone with a
trivial handler (bench.http_floor): what any answer costs at least.
"""

from __future__ import annotations

from o3storage.cli._text import table

from ._store import load, peak_rss_mib, running_store

LIMITS_US = {"get": 120, "put": 250, "head": 100, "list": 8000}


def main() -> None:
    rows = []
    with running_store() as (data_dir, pid):
        for operation in ("put", "get", "head", "list"):
            seen = load(data_dir, pid, operation, seconds=5.0)
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
