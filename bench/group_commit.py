"""PUT of 4 KiB: what syncing costs, and that writers share a sync.

Three arms in one run, the same build: the real fdatasync; one that does nothing (an upper bound
that no honest store may reach); one that takes 10 ms longer, with 64 writers and with one.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from o3storage.cli._text import table

from ._store import load, running_store

CONNECTIONS = 64
SECONDS = 5.0
SLOW_US = 10_000
GOAL_OF_NO_SYNC = 0.85
GOAL_OVER_LONE = 24


def build(directory: str) -> str:
    library = f"{directory}/slow_sync.so"
    source = Path(__file__).with_name("slow_sync.c")
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-O2", "-o", library, str(source), "-ldl"], check=True
    )
    return library


def rate(environment: dict[str, str], connections: int, seconds: float = SECONDS) -> float:
    with running_store(environment=environment) as (data_dir, pid):
        load(data_dir, pid, "put", connections=connections, seconds=1.0)
        return load(data_dir, pid, "put", connections=connections, seconds=seconds)[
            "requests_per_s"
        ]


def main() -> None:
    with TemporaryDirectory() as directory:
        library = build(directory)
        none = {"LD_PRELOAD": library, "O3_SYNC_US": "0"}
        slow = {"LD_PRELOAD": library, "O3_SYNC_US": str(SLOW_US)}
        # Interleaved twice, so that a drift of the machine does not favour one arm.
        real_rates, none_rates = [], []
        for _ in range(2):
            real_rates.append(rate({}, CONNECTIONS))
            none_rates.append(rate(none, CONNECTIONS))
        real, without = sum(real_rates) / 2, sum(none_rates) / 2
        slow_many = rate(slow, CONNECTIONS)
        slow_lone = rate(slow, 1)
    rows = [
        ["fdatasync as it is, 64 writers", f"{real:,.0f}", ""],
        ["fdatasync does nothing, 64 writers", f"{without:,.0f}", ""],
        ["ratio", f"{real / without:.2f}", f">= {GOAL_OF_NO_SYNC}"],
        ["fdatasync +10 ms, 64 writers", f"{slow_many:,.0f}", ""],
        ["fdatasync +10 ms, one writer", f"{slow_lone:,.0f}", ""],
        ["ratio", f"{slow_many / slow_lone:.1f}", f">= {GOAL_OVER_LONE}"],
    ]
    print(table(["PUT 4 KiB", "/s", "goal"], rows))
