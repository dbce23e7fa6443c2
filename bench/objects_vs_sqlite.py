"""Whole objects in the storage engine against rows of SQLite (WAL, synchronous=FULL).

    python -m bench.objects_vs_sqlite [--objects N] [--gets N]

The engine alone, no HTTP and no catalog, both through Python: a million objects of 120 bytes under
random keys of 24 bytes, written in batches of 64, each batch synced. An object is written as a
small PUT writes it: sealed with a key of its own, its frame and the entry that names it in one
batch of the log, a row (key, reference to the stream) applied to the index. A get reads that row,
looks up where the frame lies, reads it, checks its BLAKE3 and unseals it; all merges and
compactions are over by then (their time counts as puts), and each key was asked for once before.
SQLite's value lies in its row, neither sealed nor checked. `bench.large_store` measures it with
the catalog on top.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
from pathlib import Path

from o3storage.crypto import StreamRef
from o3storage.runtime import SystemEntropy, tune_memory
from o3storage.storage import Miss, SealedFrame
from o3storage.storage._rows import RowChange

from ._result import Result
from .rows_vs_sqlite import BATCH, KEY, ROW, VALUE_BYTES, Engine, Meter, SqliteStore

OBJECTS = 1_000_000
GETS = 100_000
GOAL = 0.25
"""Of SQLite's rate, for gets."""


def key_of(number: int) -> bytes:
    return random.Random(number).randbytes(24)


def value_of(number: int) -> bytes:
    return b"%08d" % number * (VALUE_BYTES // 8)


class Objects(Engine):
    """A store with objects in it, and nothing above it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._entropy = SystemEntropy()

    async def write(self, batch: list[tuple[bytes, bytes]]) -> None:
        commands: list[bytes] = []
        frames: list[SealedFrame] = []
        outcomes: list[list[RowChange]] = []
        for key, value in batch:
            random_bytes = self._entropy.random_bytes(48)
            ref = StreamRef(random_bytes[:16], random_bytes[16:], 1, len(value))
            data = ref.sealer(KEY).seal_frame(0, value, True)
            packed = ref.pack()
            commands.append(key + packed)
            frames.append(SealedFrame(ref.stream, 0, True, len(value), data))
            outcomes.append([(ROW + key, packed)])
        await self.commit(commands, frames, outcomes)

    async def get(self, key: bytes) -> tuple[bytes, bool]:
        """(the value, whether the disk was waited for)."""
        waited = False
        row = self.store.get_now(ROW + key)
        if isinstance(row, Miss):
            waited = True
            row = await self.store.get(ROW + key)
        assert row is not None
        ref = StreamRef.unpack(row)
        sealed = self.store.read_frame_now(ref.stream, 0)
        if sealed is None:
            waited = True
            sealed = await self.store.read_frame(ref.stream, 0)
        return ref.sealer(KEY).unseal_frame(0, sealed, True), waited


async def ours(root: Path, objects: int, numbers: list[int]) -> tuple[Meter, Meter, int]:
    """(meter of the puts, of the gets, how many gets waited for the disk)."""
    engine = Objects(root)
    await engine.open()
    puts, gets = Meter(), Meter()
    for at in range(0, objects, BATCH):
        batch = [(key_of(n), value_of(n)) for n in range(at, min(at + BATCH, objects))]
        with puts:
            await engine.write(batch)
    with puts:
        await engine.finish()
        await engine.compact()
    keys = [key_of(number) for number in numbers]
    for number, key in zip(numbers[::-1], keys[::-1], strict=True):
        assert (await engine.get(key))[0] == value_of(number)
    waits = 0
    with gets:
        for key in keys:
            _, waited = await engine.get(key)
            waits += waited
    await engine.close()
    return puts, gets, waits


def theirs(root: Path, objects: int, numbers: list[int]) -> tuple[Meter, Meter]:
    sqlite = SqliteStore(root)
    puts, gets = Meter(), Meter()
    for at in range(0, objects, BATCH):
        batch = [(key_of(n), value_of(n)) for n in range(at, min(at + BATCH, objects))]
        with puts:
            sqlite.write(batch)
    keys = [key_of(number) for number in numbers]
    for number, key in zip(numbers[::-1], keys[::-1], strict=True):
        assert sqlite.get(key) == value_of(number)
    with gets:
        for key in keys:
            sqlite.get(key)
    sqlite.close()
    return puts, gets


def run(root: Path, objects: int, gets: int) -> list[Result]:
    numbers = random.Random(4).sample(range(objects), min(gets, objects))
    our_puts, our_gets, waits = asyncio.run(ours(root / "engine", objects, numbers))
    their_puts, their_gets = theirs(root / "sqlite", objects, numbers)
    print(f"{objects:,} objects of {VALUE_BYTES} bytes, batches of {BATCH}, each synced")
    results = []
    for what, count, mine, other, goal in (
        ("put", objects, our_puts, their_puts, None),
        (f"random get, {waits:,} waited", len(numbers), our_gets, their_gets, GOAL),
    ):
        ratio = other.wall_s / mine.wall_s
        print(
            f"{what:<28} engine {count / mine.wall_s:>9,.0f}/s {mine.cpu_s / count * 1e6:>6.1f} us "
            f"CPU   sqlite {count / other.wall_s:>9,.0f}/s {other.cpu_s / count * 1e6:>6.1f} us CPU"
            f"   ratio {ratio:.2f}",
            flush=True,
        )
        if goal is not None:
            results.append(Result("objects: get, of SQLite's rate", ratio, goal, at_least=True))
    return results


def main(seconds: float | None = None) -> list[Result]:
    """With `seconds` (a brief try) on fewer objects."""
    objects, gets = (OBJECTS, GETS) if seconds is None else (50_000, 20_000)
    tune_memory()
    with tempfile.TemporaryDirectory(prefix="o3bench") as root:
        return run(Path(root), objects, gets)


def command() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--objects", type=int, default=OBJECTS)
    parser.add_argument("--gets", type=int, default=GETS)
    options = parser.parse_args()
    tune_memory()
    with tempfile.TemporaryDirectory(prefix="o3bench") as root:
        run(Path(root), options.objects, options.gets)
    return 0


if __name__ == "__main__":
    sys.exit(command())
