"""Several writers, flushes, merges and compaction at once; the power goes, the process is killed or
the index is lost; bits of frames and of the index flip. Held against what was proposed: no entry
that was acknowledged is lost, every row and byte of what stands is right, and of what does not
stand nothing is placed in the end."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest

from o3storage.simulation import SimDisk, run
from o3storage.storage import BadBlock, FrameBad, FrameMissing, SealedFrame, StoreError
from o3storage.storage._frames import frame_place

from .support import entry, hard, open_store, stream_id
from .test_rebuild import lose_index

OPTIONS = {
    "log_volume_bytes": 48 * 1024,
    "first_log_volume_bytes": 48 * 1024,
    "bulk_volume_bytes": 160 * 1024,
    "flush_memtable_bytes": 1 << 30,
    "index": None,
}


def sealed(stream, number, sizes):
    size = sizes[number]
    data = random.Random(stream * 1000 + number).randbytes(size + 16)
    return SealedFrame(stream_id(stream), number, number == len(sizes) - 1, size, data)


def row(stream):
    return b"%d " % stream * (1 + stream % 40)


class World:
    def __init__(self, seed):
        self.dice = random.Random(seed)
        self.disk = SimDisk(seed)
        self.store = None
        self.entries = {}
        self.acknowledged = self.applied = self.term = 0
        self.states = {0: {}}
        """By applied index: key -> the stream that it names."""
        self.sizes = {}
        """Of the frames of each stream."""
        self.rotted = set()
        self.defects = []

    # --- the state machine

    def effect(self, index):
        what, *args = self.entries[index].data.decode().split()
        rows = dict(self.states[index - 1])
        changes, released = [], []
        if what == "put":
            key, stream = args[0], int(args[1])
            released.append(rows.get(key))
            rows[key] = stream
            changes.append((b"\x10" + key.encode(), row(stream)))
        elif what == "delete":
            released.append(rows.pop(args[0], None))
            changes.append((b"\x10" + args[0].encode(), None))
        else:
            released.append(int(args[0]))
        self.states[index] = rows
        return changes, [stream_id(stream) for stream in released if stream is not None]

    async def submit(self, text, frames=()):
        index = self.store.log_state(1).last_index + 1
        self.entries[index] = entry(index, self.term, text.encode())
        await self.store.append(
            1, hard(self.term, 1, self.applied), [self.entries[index]], frames, use_reserve=True
        )
        self.acknowledged = max(self.acknowledged, index)
        self.apply()

    def apply(self):
        while self.applied < self.store.log_state(1).durable_index:
            rows, released = self.effect(self.applied + 1)
            self.store.apply(1, self.applied + 1, rows, released)
            self.applied += 1

    # --- what goes on

    async def work(self):
        try:
            while True:
                await self.step()
        except Exception as error:
            self.defects.append(error)

    async def step(self):
        dice, store = self.dice, self.store
        (what,) = dice.choices(
            ("small", "large", "delete", "flush", "compact", "merge"), range(9, 3, -1)
        )
        key = f"k{dice.randrange(30):02}"
        if what == "small":
            stream = self.new_stream([dice.choice((10, 900, 5000))])
            await self.submit(f"put {key} {stream}", [sealed(stream, 0, self.sizes[stream])])
        elif what == "large":
            await self.upload(key)
        elif what == "delete":
            await self.submit(f"delete {key}")
        elif what == "flush":
            await store.flush()
        else:
            try:
                await (store.compact() if what == "compact" else store._core.index.merge())
            except BadBlock as bad:
                store._spans.wanted(bad)

    def new_stream(self, sizes):
        stream = len(self.sizes) + 1
        self.sizes[stream] = sizes
        return stream

    async def upload(self, key):
        dice = self.dice
        sizes = [dice.choice((40, 3000, 20_000))] * dice.randrange(1, 6)
        sizes[-1] = dice.randrange(1, sizes[-1] + 1)
        stream = self.new_stream(sizes)
        writer = self.store.open_stream(stream_id(stream))
        gives_up = dice.random() < 0.2
        for number in range(len(sizes) - (gives_up and len(sizes) > 1)):
            await writer.write(sealed(stream, number, sizes))
        if gives_up:
            writer.discard()
            await self.submit(f"abandon {stream}")
        else:
            await writer.sync(wait_placement=dice.random() < 0.5)
            await self.submit(f"put {key} {stream}")

    async def rot(self):
        """A frame that stands, and a block of the index."""
        dice, core = self.dice, self.store._core
        stream = dice.choice(sorted(self.states[self.applied].values()))
        first, found = dice.choice(await self.store._frames.runs(stream_id(stream)))
        number = dice.randrange(found.frames)
        offset, size = frame_place(found, number)
        self.rotted.add((stream, first + number))
        flipped = offset + dice.randrange(80, size)
        self.disk.rot(core.volumes[found.volume].path, flipped, 1 << dice.randrange(8))
        files = sorted(self.disk.image.names)
        tables = [n for n in files if n.endswith(".table") and self.disk.image.names[n]]
        if tables:
            path = dice.choice(tables)
            size = len(self.disk.image.lookup(path).cached)
            self.disk.rot(path, dice.randrange(size), 1 << dice.randrange(8))

    # --- what must hold

    async def mended(self, read, *args):
        for _ in range(60):
            try:
                return await read(*args)
            except BadBlock:
                await self.store.repair_index()
        raise AssertionError("it is never good again")

    async def check_frame(self, stream, number):
        wanted = sealed(stream, number, self.sizes[stream])
        try:
            data = await self.mended(self.store.read_frame, stream_id(stream), number)
        except (FrameBad, FrameMissing):
            assert (stream, number) in self.rotted
            writer = self.store.open_stream(stream_id(stream))
            await writer.write(wanted)
            await self.mended(writer.sync)
            data = await self.mended(self.store.read_frame, stream_id(stream), number)
        assert bytes(data) == wanted.data, (stream, number)

    async def check(self):
        standing = self.states[self.applied]
        found = await self.mended(self.store.scan, b"\x10", b"\x11", 10_000)
        assert dict(found) == {b"\x10" + k.encode(): row(s) for k, s in standing.items()}
        for stream in standing.values():
            for number in range(len(self.sizes[stream])):
                await self.check_frame(stream, number)

    async def check_space(self):
        """What a crash left of uploads is given up; then nothing is placed that does not stand."""
        standing = set(self.states[self.applied].values())
        for stream in sorted(await self.mended(self.placed) - standing):
            await self.submit(f"abandon {stream}")
            self.store.release_again(stream_id(stream))
        await self.store._frames.close()
        await self.store._log.settle()
        assert await self.mended(self.placed) <= standing
        core = self.store._core
        await self.store._bulk._seal_volume()
        for _ in range(80):
            await self.store.flush()
            if not await self.mended(self.store.compact):
                break
        held = [volume for volume in core.volumes.values() if volume.holds or volume.unplaced_bytes]
        assert not held

    async def placed(self):
        rows = await self.store.scan(b"\x01", b"\x02", 100_000)
        return {int.from_bytes(key[1:17], "big") for key, _ in rows}

    # --- lives

    async def start(self):
        self.store = await open_store(self.disk, seed=self.dice.random(), **OPTIONS)
        state = self.store.log_state(1)
        assert not state.missing and not state.uncertain
        assert state.last_index >= self.acknowledged
        for index in range(state.first_index, state.last_index + 1):
            found = self.store.entries(1, index, index + 1, 1)
            assert (found if isinstance(found, list) else await found) == [self.entries[index]]
        self.acknowledged = state.last_index
        for index in range(1, state.applied_index + 1):
            if index not in self.states:
                self.effect(index)
        self.applied = state.applied_index
        self.states = {at: rows for at, rows in self.states.items() if at <= self.applied}
        self.apply()
        self.term += 1

    async def live(self):
        dice = self.dice
        tasks = [asyncio.ensure_future(self.work()) for _ in range(dice.choice((1, 3, 8)))]
        await asyncio.sleep(dice.random() * dice.choice((0.05, 0.3)))
        assert not self.defects
        old = self.store
        if dice.random() < 0.4 and self.states[self.applied]:
            await self.rot()
        self.disk = self.disk.crash(dice) if dice.random() < 0.7 else self.disk.kill()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.defects.clear()
        with contextlib.suppress(StoreError, OSError):
            await old.close()
        if dice.random() < 0.3:
            await lose_index(self.disk)


@pytest.mark.parametrize("seed", range(5))
def test_whatever_happens_what_was_acknowledged_stands_and_nothing_else_stays(seed):
    async def main():
        world = World(seed)
        await world.start()
        for _ in range(3):
            await world.live()
            await world.start()
            await world.check()
            await world.check_space()
            await world.check()
        await world.store.close()
        assert len(world.entries) > 10

    run(main(), seed)
