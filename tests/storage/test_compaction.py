"""Compaction frees garbage and loses nothing; scrub finds what is bad."""

from __future__ import annotations

import asyncio

import pytest

from o3storage.simulation import SimDisk, run
from o3storage.storage import PREFIX_BYTES, FrameBad, FrameMissing, FrameReader, StoreFull, _core
from o3storage.storage._frames import frame_place
from o3storage.storage._records import HASH_BYTES, STATE
from o3storage.storage._rows import placement_bounds, run_bytes
from o3storage.storage._volume import VolumeKind
from o3storage.storage.index import Miss

from .support import entry, frame, hard, open_store, store_on, stream_id
from .test_faults import places
from .test_rebuild import lose_index

BULK = {"bulk_volume_bytes": 128 * 1024, "bulk_allocate_bytes": 32 * 1024}


async def upload(store, stream, frames, size=20_000):
    writer = store.open_stream(stream_id(stream))
    for n in range(frames):
        await writer.write(frame(stream, n, size, last=n == frames - 1))
    await writer.sync()


async def release(store, index, streams):
    await store.append(1, hard(1), [entry(index)])
    store.apply(1, index, [], [stream_id(s) for s in streams])


async def compact_all(store):
    rounds = 0
    await store.flush()
    while await store.compact():
        rounds += 1
        await store.flush()
    return rounds


def volumes(disk, suffix=".bulk"):
    return [n for n, node in disk.image.names.items() if node and n.endswith(suffix)]


def test_dead_bulk_volumes_are_freed_without_reading_bodies():
    async def main():
        disk = SimDisk(1)
        async with store_on(disk, **BULK) as store:
            await upload(store, 1, 12)
            await upload(store, 2, 12)
            before = len(volumes(disk))
            await release(store, 1, [1, 2])
            reads = disk.operations.get("read", 0)
            assert await compact_all(store) >= before - 1
            assert len(volumes(disk)) <= 1
            assert disk.operations["read"] - reads < 40 + 12

    run(main(), 1)


def test_a_small_frame_behind_another_keeps_its_volume_whatever_the_account_says():
    """A frame that was stored again counts twice when its stream is released: where it was first,
    less seems to be placed than is."""

    async def main():
        disk = SimDisk(1)
        async with store_on(disk, **BULK) as store:

            async def apart(stream, frames):
                writer = store.open_stream(stream_id(stream))
                for n in range(frames):
                    await writer.write(frame(stream, n, 20_000, last=n == frames - 1))
                    await store._bulk.sync()
                await writer.sync()

            await apart(1, 3)
            small = [store.open_stream(stream_id(n)) for n in (2, 3)]
            for n, writer in enumerate(small, 2):
                await writer.write(frame(n, 0, 300))
            for writer in small:
                await writer.sync()
            volume = store._bulk.volume
            await apart(4, 6)
            assert volume.sealed
            again = store.open_stream(stream_id(1))
            await again.write(frame(1, 1, 20_000, last=False))
            await again.sync()
            await release(store, 1, [1, 2, 4])
            assert volume.placed_bytes < 0
            await compact_all(store)
            assert volume.unlinked
            assert bytes(await store.read_frame(stream_id(3), 0)) == frame(3, 0, 300).data

    run(main(), 1)


def test_live_frames_move_and_stay_readable():
    async def main():
        disk = SimDisk(1)
        async with store_on(disk, **BULK) as store:
            for s in range(1, 7):
                await upload(store, s, 3 + s % 3, 9_000 if s % 2 else 300)
            await upload(store, 50, 8)  # seals what came before
            await release(store, 1, [1, 3, 5])
            assert await compact_all(store)
            for s in (2, 4, 6):
                for n in range(3 + s % 3):
                    data = await store.read_frame(stream_id(s), n)
                    assert bytes(data) == frame(s, n, 9_000 if s % 2 else 300).data
            for s in (1, 3, 5):
                with pytest.raises(FrameMissing):
                    await store.read_frame(stream_id(s), 0)
        async with store_on(disk, **BULK) as store:
            for n in range(8):
                data = await store.read_frame(stream_id(50), n)
                assert bytes(data) == frame(50, n, 20_000).data

    run(main(), 2)


def test_readers_never_notice():
    async def main():
        disk = SimDisk(1)
        async with store_on(disk, **BULK) as store:
            index = 0
            for s in range(1, 41):
                index += 1
                await store.append(1, hard(1), [entry(index)], [frame(s, size=3000)])
                store.apply(1, index, [])
            reading = True
            reads = 0

            async def reader():
                nonlocal reads
                while reading:
                    for s in range(2, 41, 2):
                        data = await store.read_frame(stream_id(s), 0)
                        assert bytes(data) == frame(s, size=3000).data
                        reads += 1

            tasks = [asyncio.ensure_future(reader()) for _ in range(3)]
            await release(store, index + 1, range(1, 41, 2))
            await store.flush()
            assert await compact_all(store)
            reading = False
            await asyncio.gather(*tasks)
            assert reads > 100

    run(main(), 3)


def test_a_reader_of_records_goes_on_over_compaction_and_gives_no_other_record():
    async def main():
        disk = SimDisk(1)
        async with store_on(disk, **BULK) as store:
            await upload(store, 1, 12)
            await upload(store, 2, 12)
            await upload(store, 3, 12)
            reader = FrameReader(store, stream_id(2))

            def read(number):
                record = reader.record_now(number)
                return None if record is None else record[PREFIX_BYTES:]

            for n in (0, 1, 11, 5):
                assert read(n) == frame(2, n, 20_000).data
            assert read(12) is None
            assert FrameReader(store, stream_id(9)).record_now(0) is None
            await release(store, 1, [1, 3])
            assert await compact_all(store)
            for n in range(12):
                assert read(n) in (None, frame(2, n, 20_000).data)
            assert [read(n) for n in range(12)] == [frame(2, n, 20_000).data for n in range(12)]
            # A header that is not the frame's: `Store.read_frame` finds out what is wrong.
            run, first = await store._frames.find(stream_id(2), 7)
            volume = store._core.volumes[run.volume]
            disk.rot(volume.file.path, frame_place(run, 7 - first)[0] + HASH_BYTES + 16)
            assert read(7) is None
            with pytest.raises(FrameBad):
                await store.read_frame(stream_id(2), 7)
            assert read(6) == frame(2, 6, 20_000).data

    run(main(), 21)


def test_a_pinned_stream_outlives_its_release():
    async def main():
        disk = SimDisk(1)
        async with store_on(disk, **BULK) as store:
            await upload(store, 1, 6)
            await upload(store, 2, 12)
            store.pin(stream_id(1))
            await release(store, 1, [1, 2])
            await compact_all(store)
            for n in range(6):
                assert bytes(await store.read_frame(stream_id(1), n)) == frame(1, n, 20_000).data
            store.unpin(stream_id(1))
            with pytest.raises(FrameMissing):
                await store.read_frame(stream_id(1), 0)
            await compact_all(store)

    run(main(), 4)


def test_frames_that_wait_for_their_placement_are_no_garbage():
    async def main():
        disk = SimDisk(1)
        async with store_on(disk, **BULK) as store:
            writer = store.open_stream(stream_id(1))
            for n in range(4):
                await writer.write(frame(1, n, 20_000, last=n == 3))
            await upload(store, 2, 12)
            await release(store, 1, [2])
            await compact_all(store)
            await writer.sync()
            for n in range(4):
                assert bytes(await store.read_frame(stream_id(1), n)) == frame(1, n, 20_000).data
            # given up instead: its volume can go
            other = store.open_stream(stream_id(3))
            await other.write(frame(3, 0, 20_000))
            await upload(store, 4, 12)
            other.discard()
            await release(store, 2, [1, 4])
            assert await compact_all(store)
            assert len(volumes(disk)) <= 1

    run(main(), 5)


@pytest.mark.parametrize("ends", ["discard", "close", "crash"])
def test_what_was_stored_of_uploads_that_ended_early_is_garbage(ends):
    """Nobody placed it, so nobody releases it. What is flushed meanwhile does not count it."""

    async def main():
        disk = SimDisk(1)
        store = await open_store(disk, **BULK)
        writers = []
        for number in range(1, 6):
            writers.append(store.open_stream(stream_id(number)))
            for n in range(8):
                await writers[-1].write(frame(number, n, 20_000))
        await store._bulk.sync()
        await upload(store, 9, 4)
        await store.append(1, hard(1), [entry(1)])
        await store.flush()
        assert not await compact_all(store)  # the uploads go on
        if ends == "crash":
            disk = disk.crash()
            await store.close()
            store = await open_store(disk, **BULK)
        else:
            for writer in writers:
                writer.discard()
            if ends == "close":
                await store.close()
                store = await open_store(disk, **BULK)
        await compact_all(store)
        bulk = [v for v in store._core.volumes.values() if v.kind is VolumeKind.BULK]
        assert sum(volume.size_bytes for volume in bulk) < 250_000
        assert sum(volume.placed_bytes for volume in bulk) == 4 * (20_000 + 96)
        assert not any(volume.unplaced_bytes or volume.holds for volume in bulk)
        for n in range(4):
            assert bytes(await store.read_frame(stream_id(9), n)) == frame(9, n, 20_000).data
        await store.close()

    run(main(), 1)


def test_a_volume_whose_rows_cannot_be_read_is_kept_and_told_of():
    """The index alone has them: who rebuilds it has to find out."""

    async def main():
        disk = SimDisk(1)
        store = await open_store(disk, **BULK)
        for i in range(1, 60):
            await store.append(1, hard(1), [entry(i)], [frame(i, size=4000)])
            store.apply(1, i, [(b"\x10key%d" % i, b"value")], [stream_id(i)])
        await compact_all(store)
        await store.close()
        path, offset, size = places(disk, STATE, ".bulk")[0]
        disk.rot(path, offset + size // 2)
        store = await open_store(disk, **BULK)
        volume = next(v for v in store._core.volumes.values() if v.path == path)
        assert await store._compactor.compact(volume) == 0
        assert volume.keep and path in volumes(disk)
        assert not store.stats().rotted_records
        await store.close()
        await lose_index(disk)
        async with store_on(disk, **BULK) as store:
            assert store.stats().index_rebuilt and store.stats().rotted_records

    run(main(), 1)


def test_entries_that_a_follower_needs_are_kept():
    async def main():
        disk = SimDisk(1)
        async with store_on(disk, reload_log_bytes=0) as store:
            for i in range(1, 60):
                await store.append(1, hard(1), [entry(i)], [frame(i, size=4000)])
                store.apply(1, i, [], [stream_id(i)])
            store.keep_entries_from(1, 5)
            await compact_all(store)
            assert store.log_state(1).first_index <= 5
            found = store.entries(1, 5, 60, 1 << 20)
            assert len(found if isinstance(found, list) else await found) == 55
            store.keep_entries_from(1, None)
            await compact_all(store)
            assert store.log_state(1).first_index > 5
            assert store.term(1, store.log_state(1).first_index - 1) == 1

    run(main(), 6)


def test_a_volume_with_a_bad_live_frame_is_kept_and_scrub_tells():
    async def main():
        disk = SimDisk(1)
        store = await open_store(disk, **BULK)
        await upload(store, 1, 3)
        await upload(store, 2, 12)
        (path,) = volumes(disk)[:1]
        disk.rot(path, 8192 + 5000)
        await release(store, 1, [2])
        await compact_all(store)
        assert path in volumes(disk)
        found = []
        assert await store.scrub(found.append) == 1
        assert (found[0].stream, found[0].number) == (stream_id(1), 0)
        with pytest.raises(FrameBad):
            await store.read_frame(stream_id(1), 0)
        assert bytes(await store.read_frame(stream_id(1), 2)) == frame(1, 2, 20_000).data
        await store_again(store)
        assert bytes(await store.read_frame(stream_id(1), 0)) == frame(1, 0, 20_000).data
        for n in (1, 2):
            assert bytes(await store.read_frame(stream_id(1), n)) == frame(1, n, 20_000).data
        await store.close()

    run(main(), 7)


@pytest.mark.parametrize("wait_us", range(0, 1000, 25))
def test_a_frame_that_is_stored_again_while_its_volume_is_compacted_stays_so(wait_us):
    """The repair comes so long after the compaction began, which takes 0.7 ms."""

    async def main():
        disk = SimDisk(1)
        store = await open_store(disk, **BULK)
        await upload(store, 1, 3)
        await upload(store, 2, 12)
        (path,) = volumes(disk)[:1]
        disk.rot(path, 8192 + 5000)
        await release(store, 1, [2])
        volume = next(v for v in store._core.volumes.values() if v.path == path)
        compaction = asyncio.get_running_loop().create_task(store._compactor.compact(volume))
        await asyncio.sleep(wait_us / 1e6)
        await store_again(store)
        await compaction
        for _ in range(2):
            for n in range(3):
                assert bytes(await store.read_frame(stream_id(1), n)) == frame(1, n, 20_000).data
            await store.close()
            store = await open_store(disk, **BULK)
        placed = [run for _, run in await store._frames.runs(stream_id(1))]
        for volume in store._core.volumes.values():
            runs = [run_bytes(run) for run in placed if run.volume == volume.volume]
            assert abs(volume.placed_bytes - sum(runs)) <= 20_100, "the bad frame may be counted"
        await store.close()

    run(main(), wait_us)


async def store_again(store):
    """Frame 0 of stream 1, which rotted."""
    writer = store.open_stream(stream_id(1))
    await writer.write(frame(1, 0, 20_000, last=False))
    await writer.sync()


@pytest.mark.parametrize("misses", [1, 3])
def test_a_repair_that_cannot_see_what_it_cuts_into_reads_it_and_tries_again(misses):
    async def main():
        disk = SimDisk(1)
        async with store_on(disk, **BULK) as store:
            await upload(store, 1, 5)
            disk.rot(volumes(disk)[0], 8192 + 5000)
            index = store._core.index
            scan_now, left = index.scan_now, [misses]

            def flushed_meanwhile(*args, **kwargs):
                if left[0]:
                    left[0] -= 1
                    return Miss.MISS
                return scan_now(*args, **kwargs)

            index.scan_now = flushed_meanwhile
            await store_again(store)
            assert not left[0]
            for n in range(5):
                assert bytes(await store.read_frame(stream_id(1), n)) == frame(1, n, 20_000).data

    run(main(), 7)


def test_what_a_compaction_placed_that_broke_off_is_not_placed_after_its_release():
    """The log waits for space when the compaction asks for its placements; so these come later."""

    async def main():
        disk = SimDisk(1)
        async with store_on(disk, **BULK) as store:
            await upload(store, 1, 3)
            await upload(store, 2, 9)
            await upload(store, 3, 3)
            await release(store, 1, [2])
            await store.append(1, hard(1), [entry(2)])
            volume = max(store._core.volumes.values(), key=lambda v: v.placed_bytes + v.dead_bytes)
            settle = store._log.settle

            def full():
                raise StoreFull("no space for the log")

            store._log.settle = full
            with pytest.raises(StoreFull):
                await store._compactor.compact(volume)
            assert store._log._runs
            store.apply(1, 2, [], [stream_id(1)])
            with pytest.raises(StoreFull):
                await store._compactor.compact(volume)
            store._log.settle = settle
            await store.append(1, hard(1), [entry(3)])
            assert await store._frames.runs(stream_id(1)) == []
            for n in range(3):
                assert bytes(await store.read_frame(stream_id(3), n)) == frame(3, n, 20_000).data
            await compact_all(store)
            assert store._compactor._broken_off is None
            assert not any(volume.holds for volume in store._core.volumes.values())

    run(main(), 9)


def test_frames_that_compaction_moved_between_two_syncs_of_their_writer_stay_placed():
    """The run that was open at the first sync is not placed once more by the second."""

    async def main():
        disk = SimDisk(1)
        async with store_on(disk, **BULK) as store:
            await upload(store, 1, 5)
            writer = store.open_stream(stream_id(2))
            await writer.write(frame(2, 0, 20_000, last=False))
            await writer.sync()
            before = await store._frames.runs(stream_id(2))
            await upload(store, 3, 5)
            await release(store, 1, [1, 3])
            assert await compact_all(store)
            moved = await store._frames.runs(stream_id(2))
            assert moved != before
            await writer.sync()
            assert await store._frames.runs(stream_id(2)) == moved
            await writer.write(frame(2, 1, 20_000))
            await writer.sync()
            for n in range(2):
                data = await store.read_frame(stream_id(2), n)
                assert bytes(data) == frame(2, n, 20_000, last=n == 1).data

    run(main(), 9)


def test_scrub_of_a_good_store_finds_nothing():
    async def main():
        disk = SimDisk(1)
        async with store_on(disk, **BULK) as store:
            await upload(store, 1, 12)
            for i in range(1, 40):
                await store.append(1, hard(1), [entry(i)], [frame(i + 10, size=4000)])
                store.apply(1, i, [(b"\x10a", b"b")])
            assert await store.scrub() == 0
            assert store.stats().scrubbed_bytes > 200_000

    run(main(), 8)


def test_a_stream_that_moves_while_it_is_reaped_leaves_no_run():
    """Where it moves to, a run is cut in two: one begins where none did when the table was read."""

    async def main():
        disk = SimDisk(1)
        async with store_on(disk, **BULK) as store:
            await upload(store, 1, 5)
            await upload(store, 2, 1)
            await upload(store, 3, 2)
            volume = store._core.volumes[2]
            assert volume.sealed
            low, high = placement_bounds(stream_id(1))
            scan = store._core.index.scan
            read = []

            async def slow(start, end, limit):
                rows = await scan(start, end, limit)
                if start == low and not read:
                    read.append(rows)
                    assert await store._compactor.compact(volume)
                return rows

            store._core.index.scan = slow
            store._frames._placed_now = lambda _: None
            await release(store, 1, [1])
            await store._frames.close()
            store._core.index.scan = scan
            assert read
            assert await scan(low, high, 10) == []
            assert sum(v.placed_bytes for v in store._core.volumes.values()) < 4 * 20_480

    run(main(), 1)


def test_a_file_is_not_closed_under_who_reads_it_and_is_later(monkeypatch):
    monkeypatch.setattr(_core, "OPEN_FILES_MAX", 2)

    async def main():
        disk = SimDisk(1)
        async with store_on(disk, **BULK) as store:
            await upload(store, 1, 16)
            await upload(store, 2, 12)
            await release(store, 1, [1, 2])
            core, find = store._core, store._frames.find

            async def find_slowly(stream, number):
                for volume in list(core.volumes.values()):
                    if volume.sealed:
                        await core.open_for_read(volume.volume)
                return await find(stream, number)

            store._frames.find = find_slowly
            bulk = [v for v in core.volumes.values() if v.sealed and v.kind == VolumeKind.BULK]
            assert len(bulk) == 4
            bulk[0].in_use += 1
            for volume in bulk:
                await core.open_for_read(volume.volume)
            bulk[0].in_use -= 1
            for volume in bulk[1:]:
                await core.open_for_read(volume.volume)
            assert sum(volume.file is not None for volume in bulk) == 2
            assert await compact_all(store) >= 3

    run(main(), 1)


def test_a_file_is_not_closed_while_its_key_is_found(monkeypatch):
    monkeypatch.setattr(_core, "OPEN_FILES_MAX", 2)

    async def main():
        disk = SimDisk(1)
        async with store_on(disk, **BULK) as store:
            await upload(store, 1, 16)
        async with store_on(disk, **BULK) as store:
            core = store._core
            first, *others = [v for v in core.volumes.values() if v.kind is VolumeKind.BULK]
            assert len(others) >= 2 and first.sealer is None
            await core.open_for_read(first.volume)
            read, closed = first.file.read, []

            async def read_slowly(offset, size):
                data = await read(offset, size)
                for volume in others:
                    await core.open_for_read(volume.volume)
                closed.append(first.file is None)
                return data

            first.file.read = read_slowly
            await core.sealer_of(first)
            assert closed == [False] and not first.in_use

    run(main(), 1)


def test_the_id_of_a_freed_volume_is_not_used_again_after_a_crash():
    """The flush mark tells of it: what is said there would be taken for the new one's."""

    async def main():
        disk = SimDisk(1)
        store = await open_store(disk, **BULK)
        while store._log._spare is None:
            await store.append(1, hard(1), [])
        await store._log._spare
        await upload(store, 1, 12)
        await store._bulk._seal_volume()
        last = max(store._core.volumes)
        assert store._core.volumes[last].kind is VolumeKind.BULK
        await store.flush()
        await release(store, 1, [1])
        while await store.compact():
            pass
        assert last not in store._core.volumes
        disk = disk.crash()
        await store.close()
        async with store_on(disk, **BULK) as store:
            assert store._log.volume.volume > last

    run(main(), 1)
