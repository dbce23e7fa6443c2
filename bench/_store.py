"""A store in a process of its own, its CPU time, and a load on it."""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from o3storage.cli._bench import Load, report
from o3storage.cli._text import Progress

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@contextmanager
def running_store(
    *arguments: str,
    environment: dict[str, str] | None = None,
    parent: str | None = None,
    existing: Path | None = None,
) -> Iterator[tuple[Path, int]]:
    """(data directory, pid) of a fresh store on a free port, stopped and removed at the end; or of
    one over an `existing` data directory, which stays."""
    with TemporaryDirectory(prefix="o3bench", dir=parent) as directory:
        data_dir = existing or Path(directory) / "data"
        command = [sys.executable, "-m", "o3storage", "serve", "--port", "0"]
        process = subprocess.Popen(
            [*command, "--data-dir", str(data_dir), *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {}), "PYTHONUNBUFFERED": "1"},
        )
        assert process.stdout is not None
        for line in process.stdout:
            if line.lstrip().startswith("stop "):
                break
        try:
            yield data_dir, process.pid
        finally:
            process.terminate()
            process.wait()
            process.stdout.close()


def cpu_s(pid: int) -> float:
    """User and system time of the whole process so far, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def peak_rss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0.0


def load(
    data_dir: Path,
    pid: int,
    operation: str,
    *,
    size: str = "4K",
    connections: int = 64,
    seconds: float = 5.0,
    objects: int = 1000,
) -> dict[str, float]:
    """Run one load; the report of its operation with `cpu_us` (server CPU per request)."""
    options = argparse.Namespace(
        data_dir=str(data_dir), endpoint=None, bucket="bench", operation=operation,
        connections=connections, seconds=seconds, objects=objects, ca_file=None, key_id=None,
        secret_file=None, region=None,
    )  # fmt: skip
    from o3storage.cli._text import parse_size

    async def run() -> dict[str, float]:
        made = Load(options, parse_size(size))
        with open(os.devnull, "w") as quiet:
            progress = Progress("", 1, quiet)
            await made.prepare(progress)
            cpu_before = cpu_s(pid)
            own_before = resource.getrusage(resource.RUSAGE_SELF)
            length_s = await made.run(progress)
            own = resource.getrusage(resource.RUSAGE_SELF)
            used_s = cpu_s(pid) - cpu_before
        own_s = own.ru_utime + own.ru_stime - own_before.ru_utime - own_before.ru_stime
        result = report(made, length_s, own_s)
        entry = result["operations"][operation]
        assert not entry["errors"], entry["errors"]
        return {
            **{k: v for k, v in entry.items() if isinstance(v, int | float)},
            "cpu_us": used_s / entry["requests"] * 1e6,
            "server_share": used_s / length_s,
            "client_share": result["client_cpu_share"],
        }

    return asyncio.run(run())
