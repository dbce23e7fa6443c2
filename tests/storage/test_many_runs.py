"""Bodies whose frames stand apart: each may be a run of its own, and all of them are placed and
released in steps that neither the index nor the loop finds too long."""

from __future__ import annotations

import asyncio

import pytest

from o3storage.simulation import SimDisk, run
from o3storage.storage import _log
from o3storage.storage._frames import frame_place
from o3storage.storage._log_batch import Payload
from o3storage.storage._rows import Run, encode_run, placement_key
from o3storage.storage.index import MAX_BATCH_ROWS

from .support import entry, frame, hard, stream_id
from .test_verify import opened

LARGE = {"bulk_volume_bytes": 1 << 30, "log_volume_bytes": 8 << 20}


def counted_writes(store):
    """The sizes of all batches that the index takes."""
    sizes = []
    write = store._core.index.write
    store._core.index.write = lambda rows: (sizes.append(len(rows)), write(rows))[1]
    return sizes


async def rows_of(store, table):
    return len(await store.scan(table, bytes([table[0] + 1]), 100_000))


async def two_at_a_time(store, frames):
    """Two bodies whose frames alternate."""
    writers = [store.open_stream(stream_id(number)) for number in (1, 2)]
    for number in range(frames):
        for stream, writer in enumerate(writers, 1):
            await writer.write(frame(stream, number, 30, last=number == frames - 1))
    return writers


def test_two_large_uploads_at_once():
    frames = MAX_BATCH_ROWS + 600

    async def main():
        disk = SimDisk(1)
        store = await opened(disk, **LARGE)
        sizes = counted_writes(store)
        for writer in await two_at_a_time(store, frames):
            await writer.sync()
        assert await rows_of(store, b"\x01") == 2 * frames
        assert max(sizes) <= 1010  # (notes ride with them)
        disk = disk.crash()
        await store.close()
        store = await opened(disk, **LARGE)
        for number in (0, 1, 5000, frames - 1):
            for stream in (1, 2):
                data = await store.read_frame(stream_id(stream), number)
                assert bytes(data) == frame(stream, number, 30).data
        await store.close()

    run(main(), 1)


@pytest.mark.parametrize("waits", [False, True])
def test_what_many_writers_place_at_once_goes_in_several_batches(monkeypatch, waits):
    monkeypatch.setattr(_log, "RUNS_PER_BATCH", 50)

    async def main():
        disk = SimDisk(1)
        store = await opened(disk, **LARGE)
        sizes = counted_writes(store)
        pairs = [(2 * number + 10, 2 * number + 11) for number in range(20)]
        for pair in pairs:
            writers = [store.open_stream(stream_id(number)) for number in pair]
            for number in range(10):
                for stream, writer in zip(pair, writers, strict=True):
                    await writer.write(frame(stream, number, 30, last=number == 9))
            for writer in writers:
                await writer.sync(wait_placement=waits)
        held = [v for v in store._core.volumes.values() if v.holds]
        assert bool(held) == (not waits)
        await store.append(1, hard(1), [entry(1)])  # they are durable with it
        assert max(sizes) <= 60
        disk = disk.crash()
        assert not any(volume.holds for volume in store._core.volumes.values())
        await store.close()
        store = await opened(disk, **LARGE)
        assert await rows_of(store, b"\x01") == 400
        await store.close()

    run(main(), 1)


@pytest.mark.parametrize("crash", [False, True])
def test_one_entry_releases_many_streams_of_many_runs(crash):
    async def main():
        disk = SimDisk(1)
        store = await opened(disk)
        streams = [stream_id(number) for number in range(100)]
        for stream in streams:
            row = encode_run(Run(2, 8192, 1, 100, 100))
            rows = [(placement_key(stream, number), row) for number in range(200)]
            await store._log.write_rows(rows)
        await store.append(1, hard(1), [entry(1)])
        sizes = counted_writes(store)
        store.apply(1, 1, [(b"\x10key", b"value")], streams)
        assert max(sizes) <= 1500
        await store.append(1, None, [entry(2)])
        if crash:
            disk = disk.crash()
            await store.close()
            store = await opened(disk)
        else:
            await store._frames.close()
        assert await store.get(b"\x10key") == b"value"
        assert await rows_of(store, b"\x01") == await rows_of(store, b"\x03") == 0
        await store.close()

    run(main(), 1)


@pytest.mark.parametrize("misses", [0, 1, 2])
@pytest.mark.parametrize("numbers", [(4, 3), (3, 4), (5, 4, 3), (3, 6, 0)])
def test_frames_of_one_stream_that_are_stored_again_at_once(monkeypatch, numbers, misses):
    """Each by its own writer, in one batch, in any order; the rows that it takes may not be in
    memory. Who is told that its frame is placed finds it."""
    rest_of_cut = Payload._rest_of_cut
    left = [misses]

    def missing(self, stream, end):
        if left[0]:
            left[0] -= 1
            raise LookupError
        return rest_of_cut(self, stream, end)

    async def main():
        store = await opened(SimDisk(1))
        core, stream = store._core, stream_id(1)
        writer = store.open_stream(stream)
        for n in range(8):
            await writer.write(frame(1, n, 20_000, last=n == 7))
        await writer.sync()
        for first, run_ in await store._frames.runs(stream):
            for n in range(run_.frames):
                if first + n in numbers:
                    offset, size = frame_place(run_, n)
                    core.disk.rot(core.volumes[run_.volume].path, offset + size // 2)
        monkeypatch.setattr(Payload, "_rest_of_cut", missing)

        async def store_again(writer, n):
            await writer.sync()
            assert bytes(await store.read_frame(stream, n)) == frame(1, n, 20_000).data

        writers = {n: store.open_stream(stream) for n in numbers}
        for n, writer in writers.items():
            await writer.write(frame(1, n, 20_000, last=n == 7))
        await asyncio.gather(*(store_again(writer, n) for n, writer in writers.items()))
        for n in range(8):
            assert bytes(await store.read_frame(stream, n)) == frame(1, n, 20_000).data
        assert not any(volume.holds for volume in core.volumes.values())
        await store.close()

    run(main(), 1)
