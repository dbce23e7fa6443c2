"""PUT of 4 KiB: what syncing costs, and that writers share a sync.

Three arms in one run, the same build: the real fdatasync; one that does nothing (an upper bound
that no honest store may reach); one that takes 10 ms longer, with 64 writers and with one.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

from o3storage.cli._text import table

from ._result import Result
from ._store import load, running_store

CONNECTIONS = 64
SECONDS = 5.0
ROUNDS = 3
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


Arm = tuple[list[float], list[float], list[float]]
"""Rates, and the shares of a core that server and client took."""


def measure(arm: Arm, environment: dict[str, str], connections: int, seconds: float) -> None:
    with running_store(environment=environment) as (data_dir, pid):
        load(data_dir, pid, "put", connections=connections, seconds=min(1.0, seconds))
        seen = load(data_dir, pid, "put", connections=connections, seconds=seconds)
    for values, name in zip(arm, ("requests_per_s", "server_share", "client_share"), strict=True):
        values.append(seen[name])


def main(seconds: float | None = None) -> list[Result]:
    seconds = seconds or SECONDS
    real: Arm = ([], [], [])
    without: Arm = ([], [], [])
    many: Arm = ([], [], [])
    lone: Arm = ([], [], [])
    with TemporaryDirectory() as directory:
        library = build(directory)
        none = {"LD_PRELOAD": library, "O3_SYNC_US": "0"}
        slow = {"LD_PRELOAD": library, "O3_SYNC_US": str(SLOW_US)}
        # Interleaved, so that a drift of the machine does not favour one arm.
        for _ in range(ROUNDS):
            measure(real, {}, CONNECTIONS, seconds)
            measure(without, none, CONNECTIONS, seconds)
        measure(many, slow, CONNECTIONS, seconds)
        measure(lone, slow, 1, seconds)
    unsynced = mean(real[0]) / mean(without[0])
    shared = mean(many[0]) / mean(lone[0])
    rows = [
        [what, *(f"{mean(values):,.0f}" for values in arm[:1])]
        + [f"{mean(values) * 100:.0f} %" for values in arm[1:]]
        for what, arm in (
            ("fdatasync as it is, 64 writers", real),
            ("fdatasync does nothing, 64 writers", without),
            ("fdatasync +10 ms, 64 writers", many),
            ("fdatasync +10 ms, one writer", lone),
        )
    ]
    print(table(["PUT 4 KiB", "/s", "server, of a core", "client"], rows))
    return [
        Result("group_commit: of the rate without sync", unsynced, GOAL_OF_NO_SYNC, at_least=True),
        Result("group_commit: 64 writers over one", shared, GOAL_OVER_LONE, at_least=True),
    ]
