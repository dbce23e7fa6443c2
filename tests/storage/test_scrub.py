"""Scrub goes on over restarts, and says what it finds."""

from __future__ import annotations

import asyncio

import pytest

from o3storage.simulation import SimDisk, run
from o3storage.storage._frames import frame_place
from o3storage.storage._scrub import ScrubState
from o3storage.storage._volume import align

from .support import entry, frame, hard, stream_id
from .test_verify import opened

EVERY_S = 100.0


async def life(disk, seconds, found, clock):
    """A run of the store with its background work; what its scrub finds goes to `found`."""
    store = await opened(disk, background=True, scrub_every_s=EVERY_S, scrub_bytes_per_s=20_000)
    store._core.clock = clock
    store.on_bad_frame(found.append)
    await asyncio.sleep(seconds)
    read = store.stats().scrubbed_bytes
    await store.close()
    return read


class Wall:
    """A wall clock that goes on over restarts."""

    def wall_ns(self):
        return int(asyncio.get_running_loop().time() * 1e9) + (1 << 60)

    def boot_s(self):
        return asyncio.get_running_loop().time()


async def filled(disk, size=20_000):
    store = await opened(disk)
    await store.append(1, hard(1), [entry(1)])
    for stream in range(1, 9):
        writer = store.open_stream(stream_id(stream))
        for n in range(8):
            await writer.write(frame(stream, n, size, last=n == 7))
        await writer.sync()
    held, first = await store._frames.find(stream_id(8), 7)
    await store.close()
    return f"volumes/{held.volume:010d}.bulk", frame_place(held, 7 - first)[0] + 300


def test_a_store_that_is_restarted_often_is_scrubbed_all_the_same():
    async def main():
        disk = SimDisk(1)
        path, offset = await filled(disk)
        disk.rot(path, offset)
        found, reads, clock = [], [], Wall()
        for _ in range(30):  # none of these lives is as long as the interval, or as a whole pass
            reads.append(await life(disk, 20, found, clock))
        assert reads[0] == 0, "not before it is due"
        assert {(bad.stream, bad.number) for bad in found} == {(stream_id(8), 7)}
        assert sum(read > 0 for read in reads) > 3, "a pass takes several lives"

    run(main(), 1)


def test_when_a_pass_is_due():
    day_s = 86_400.0
    now = 1_000_000 * 10**9
    assert not ScrubState(0, now).due(now, day_s)
    assert not ScrubState(0, now).due(now + int(day_s * 1e9) - 1, day_s)
    assert ScrubState(0, now).due(now + int(day_s * 1e9), day_s)
    assert ScrubState(7, now).due(now, day_s), "one is under way"
    assert ScrubState(0, now).due(now - 1, day_s), "the clock was set back"
    assert ScrubState.decode(ScrubState(7, now).encode()) == ScrubState(7, now)


@pytest.mark.parametrize("over", ["another", "none"])
def test_a_write_of_the_bulk_that_went_astray_is_seen(over):
    """All that stands in the volume is whole: a frame where another one should be, or none."""

    async def main():
        disk = SimDisk(2)
        await filled(disk, 100_000)
        store = await opened(disk)
        places = {}
        for number in (6, 7):
            held, first = await store._frames.find(stream_id(8), number)
            places[number] = frame_place(held, number - first)
        path = f"volumes/{held.volume:010d}.bulk"
        node = disk.image.lookup(path)
        for data in (node.cached, node.durable):
            (to, size), (source, _) = places[7], places[6]
            assert to % 4096 == source % 4096 == 0
            written = bytes(data[source : source + align(size)])
            data[source : source + align(size)] = bytes(align(size))
            if over == "another":
                data[to : to + align(size)] = written
        found = []
        await store.scrub(found.append)
        bad = [(one.stream, one.number) for one in found]
        wanted = (6, 7) if over == "another" else (6,)
        assert bad == [(stream_id(8), number) for number in wanted]
        await store.close()

    run(main(), 2)


def test_blocks_that_hold_nothing_and_that_nobody_misses_are_not_bad():
    """A power cut leaves such, in the middle of what no sync had covered."""

    async def main():
        disk = SimDisk(3)
        await filled(disk, 100_000)
        store = await opened(disk)
        held, first = await store._frames.find(stream_id(4), 3)
        store.apply(1, 1, [], [stream_id(4)])
        await store.append(1, hard(1), [entry(2)])
        offset, size = frame_place(held, 3 - first)
        node = disk.image.lookup(f"volumes/{held.volume:010d}.bulk")
        for data in (node.cached, node.durable):
            data[offset : offset + align(size)] = bytes(align(size))
        assert await store.scrub() == 0
        await store.close()

    run(main(), 3)


def test_a_batch_of_the_log_that_went_astray_is_seen():
    async def main():
        disk = SimDisk(4)
        store = await opened(disk)
        for n in range(1, 9):
            small = frame(n, 0, 900)
            await store.append(1, hard(1), [entry(n)], [small])
        runs = [(await store._frames.find(stream_id(n), 0))[0] for n in (3, 6)]
        await store.close()
        to, source = (run.offset - run.offset % 4096 for run in runs)
        node = disk.image.lookup(f"volumes/{runs[0].volume:010d}.log")
        for data in (node.cached, node.durable):
            data[to : to + 4096] = data[source : source + 4096]
        store = await opened(disk)
        found = []
        await store.scrub(found.append)
        assert (stream_id(3), 0) in [(bad.stream, bad.number) for bad in found]
        await store.close()

    run(main(), 4)


@pytest.mark.parametrize("freed", [True, False])
def test_a_volume_that_goes_while_it_is_read_does_not_end_the_scrub(freed):
    async def main():
        disk = SimDisk(4)
        path, offset = await filled(disk)
        store = await opened(disk)
        core = store._core
        read, found, gone = core.disk.read_direct, [], []

        async def read_direct(where, *place):
            if not gone:
                gone.append(where)
                volume = next(v for v in core.volumes.values() if v.path == where)
                if freed:
                    await core.drop_volume(volume)
                else:
                    await core.disk.unlink(where)
            return await read(where, *place)

        core.disk.read_direct = read_direct
        disk.rot(path, offset)
        await store.scrub(found.append)
        assert gone and gone != [path]
        assert (stream_id(8), 7) in [(one.stream, one.number) for one in found], "it goes on"
        assert any("not there" in one.reason for one in found) is not freed
        await store.close()

    run(main(), 4)
