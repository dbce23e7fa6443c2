"""The raw disk's own time for one small durable write, to set beside the store's.

`python -m bench._disk PATH RATE` writes 16 KiB with O_DIRECT and fdatasync, over and over inside a
file that was written before, RATE times a second, until its standard input ends; then it prints
the times in seconds as JSON. It is a process of its own: in a thread of the load generator it would
measure how long it waits for the interpreter lock.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import select
import sys
import time
from pathlib import Path

WRITE_BYTES = 16 * 1024
"""About what a batch of the log holds."""
FILE_BYTES = 16 << 20


def measure(path: str, rate: float) -> list[float]:
    """Times in seconds of the writes made until standard input ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600)
    try:
        whole = mmap.mmap(-1, 1 << 20)
        for at in range(0, FILE_BYTES, len(whole)):
            os.pwrite(descriptor, whole, at)
        os.fsync(descriptor)
        data = mmap.mmap(-1, WRITE_BYTES)
        took: list[float] = []
        began = time.perf_counter()
        while True:
            wait_s = max(0.0, began + len(took) / rate - time.perf_counter())
            if select.select([0], [], [], wait_s)[0]:
                return took
            started = time.perf_counter()
            os.pwrite(descriptor, data, len(took) * WRITE_BYTES % FILE_BYTES)
            os.fdatasync(descriptor)
            took.append(time.perf_counter() - started)
    finally:
        os.close(descriptor)
        os.unlink(path)


class DiskProbe:
    """Measures the disk below `directory` from `start` to `stop`."""

    def __init__(self, directory: Path, rate: float) -> None:
        self._path = directory / "bench-disk-probe"
        self._rate = rate

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bench._disk", str(self._path), str(self._rate)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )

    async def stop(self) -> list[float]:
        """The times in seconds, ascending; [] where it could not measure."""
        out, _ = await self._process.communicate(b"")
        return sorted(json.loads(out)) if self._process.returncode == 0 else []


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], float(sys.argv[2]))))
