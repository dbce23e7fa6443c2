"""Faults (promise P6): failed writes and syncs, full disks, rot; each is met as DESIGN says."""

from __future__ import annotations

import asyncio
import contextlib
import errno

import pytest

from o3storage.runtime.disk import DiskError
from o3storage.simulation import Fault
from o3storage.storage import (
    EntriesGone,
    FrameBad,
    FrameMissing,
    FrameUnread,
    StoreFull,
    StoreOutOfService,
)
from o3storage.storage import _records as records
from o3storage.storage._log import LogWriter

from .support import SimDisk, entry, frame, hard, open_store, run, store_on, stream_id

KIB = 1024
MIB = 1024 * KIB


@pytest.mark.parametrize("operation", ["write", "sync"])
@pytest.mark.parametrize("kind", [".log", ".bulk"])
def test_a_failed_write_or_sync_ends_the_service(operation, kind):
    async def main():
        disk = SimDisk(1)
        store = await open_store(disk)
        await store.append(1, hard(1), [entry(1)], [frame(1)])
        writer = store.open_stream(stream_id(5))
        await writer.write(frame(5, 0, 5000))
        await writer.sync()
        path = next(n for n in disk.image.names if n.endswith(kind))
        disk.inject(Fault(operation, path_prefix=path))
        with pytest.raises(StoreOutOfService):
            if kind == ".log":
                queued = [store.append(1, None, [entry(2)]), store.append(1, None, [entry(3)])]
                await queued[0]
            else:
                await writer.write(frame(5, 1, 5000))
                await writer.sync()
        if kind == ".log":
            with pytest.raises(StoreOutOfService):
                await queued[1]
        for attempt in (
            lambda: store.append(1, None, [entry(2)]),
            lambda: store.apply(1, 1, []),
            lambda: store.open_stream(stream_id(6)),
        ):
            with pytest.raises(StoreOutOfService):
                attempt()
        with pytest.raises(StoreOutOfService):
            await store.flush()
        # what was durable is still read
        assert bytes(await store.read_frame(stream_id(1), 0)) == frame(1).data
        assert store.stats().out_of_service
        await store.close()
        assert "OUT_OF_SERVICE" in await disk.list_dir("")
        with pytest.raises(StoreOutOfService, match="return-disk"):
            await open_store(disk)
        # nothing that failed is served after the file was removed either
        await disk.unlink("OUT_OF_SERVICE")
        await disk.sync_dir("")
        async with store_on(disk.crash()) as store:
            assert store.log_state(1).last_index == 1

    run(main(), 1)


def test_a_failed_sync_leaves_no_trace_in_the_page_cache():
    async def main():
        disk = SimDisk(3)
        store = await open_store(disk)
        await store.append(1, hard(1), [entry(1)])
        path = next(n for n in disk.image.names if n.endswith(".log"))
        disk.inject(Fault("sync", path_prefix=path))
        with pytest.raises(StoreOutOfService):
            await store.append(1, hard(2, 9), [entry(2)])
        await store.close()
        await disk.unlink("OUT_OF_SERVICE")
        # the cache shows the failed batch, the medium does not have it: it must not be believed
        async with store_on(disk.kill()) as store:
            assert store.log_state(1).last_index == 1
            assert store.log_state(1).hard_state == hard(1)

    run(main(), 3)


def test_a_full_disk_refuses_data_takes_deletes_and_recovers():
    async def main():
        disk = SimDisk(1, capacity_bytes=700 * KIB)
        # reserve: 2 % of so small a disk is nothing, so take all of the limit
        store = await open_store(disk, reserve_bytes=300 * KIB, reserve_ratio=1.0)
        await store._space.refresh()
        index = 0
        with pytest.raises(StoreFull):
            while True:
                index += 1
                await store.append(1, hard(1), [entry(index)], [frame(index, size=20_000)])
                store.apply(1, index, [(b"\x10k%d" % index, b"v")])
                await store._space.refresh()
        with pytest.raises(StoreFull):
            store.open_stream(stream_id(99))
        assert store.space().full
        # deletes carry no frames
        await store.append(1, None, [entry(index)])
        store.apply(1, index, [(b"\x10k1", None)], [stream_id(1)])
        assert bytes(await store.read_frame(stream_id(2), 0)) == frame(2, size=20_000).data
        disk.capacity_bytes *= 4
        await store._space.refresh()
        await store.append(1, None, [entry(index + 1)], [frame(500)])
        await store.close()

    run(main(), 1)


@pytest.mark.parametrize("after", ["nothing", "the file was made"])
def test_too_many_open_files_are_no_fault_of_the_disk(monkeypatch, after):
    async def main():
        disk = SimDisk(1)
        store = await open_store(disk)
        names = set(disk.image.names)

        async def exhausted(*_args, **_kwargs):
            raise DiskError(errno.EMFILE, "open: Too many open files")

        monkeypatch.setattr(disk, "open" if after == "nothing" else "sync_dir", exhausted)
        writer = store.open_stream(stream_id(1))
        with pytest.raises(StoreFull, match="too many files"):
            await writer.write(frame(1, 0, 30_000))
            await writer.sync()
        assert not store.stats().out_of_service
        assert set(disk.image.names) == names
        monkeypatch.undo()
        other = store.open_stream(stream_id(2))
        await other.write(frame(2, 0, 30_000))
        await other.sync()
        assert bytes(await store.read_frame(stream_id(2), 0)) == frame(2, 0, 30_000).data
        await store.close()

    run(main(), 1)


def test_a_disk_that_fills_inside_a_stream():
    async def main():
        disk = SimDisk(1, capacity_bytes=600 * KIB)
        store = await open_store(disk, reserve_bytes=1)
        writer = store.open_stream(stream_id(1))
        with pytest.raises(StoreFull):
            for i in range(100):
                await writer.write(frame(1, i, 30_000, last=False))
                await writer.sync()
        with pytest.raises(StoreFull):
            await writer.sync()
        # the log goes on, and so does the bulk when there is room again
        await store.append(1, hard(1), [entry(1)])
        disk.capacity_bytes *= 4
        other = store.open_stream(stream_id(2))
        await other.write(frame(2, 0, 30_000))
        await other.sync()
        assert bytes(await store.read_frame(stream_id(2), 0)) == frame(2, 0, 30_000).data
        assert bytes(await store.read_frame(stream_id(1), 0)) == frame(1, 0, 30_000).data
        await store.close()

    run(main(), 1)


def test_the_log_waits_for_space_and_goes_on():
    async def main():
        disk = SimDisk(1, capacity_bytes=180 * KIB)
        store = await open_store(disk, reserve_bytes=1)
        done = 0
        with pytest.raises(StoreFull):
            for i in range(1, 200):
                await store.append(1, hard(1), [entry(i, data=b"x" * 2000)])
                done = i
        assert done > 5
        disk.capacity_bytes *= 8
        with pytest.raises(StoreFull):
            store.append(1, None, [entry(done + 1)])
        await asyncio.sleep(5)
        with contextlib.suppress(StoreFull):  # the first to ask makes it try again
            store.append(1, None, [])
        await asyncio.sleep(1)
        await store.append(1, None, [entry(done + 1, data=b"x" * 2000)])
        await store.close()
        async with store_on(disk) as store:
            assert store.log_state(1).last_index == done + 1

    run(main(), 1)


def test_who_waits_for_the_log_is_told_when_another_program_took_the_last_block():
    async def main():
        disk = SimDisk(1)
        store = await open_store(disk)
        told = []
        store.on_no_space(told.append)
        await store.append(1, hard(1), [entry(1)])
        used = await disk.space()
        disk.capacity_bytes = used.total_bytes - used.free_bytes  # from here on nothing is free
        began_s = asyncio.get_running_loop().time()
        # Taken at once, but more than what the volume has room for.
        ends = [store.append(1, None, [entry(index, data=b"x" * 20_000)]) for index in range(2, 12)]
        stream = store.open_stream(stream_id(1))
        while not store.log_full:
            await asyncio.sleep(0.1)
        with pytest.raises(StoreFull):
            store.append(1, None, [entry(12)])
        with pytest.raises(StoreFull):
            await asyncio.wait_for(stream.sync(), 1)
        with pytest.raises(StoreFull):
            await asyncio.wait_for(store.flush(), 1)
        while not told:
            await asyncio.sleep(0.1)
        assert asyncio.get_running_loop().time() - began_s < 10
        assert not ends[-1].done()
        # Space returns: what was taken is written, and writing goes on.
        disk.capacity_bytes = 1 << 30
        await asyncio.gather(*ends)
        assert not store.log_full
        await store.append(1, None, [entry(12)])
        await store.flush()
        await store.close()
        async with store_on(disk) as store:
            assert store.log_state(1).last_index == 12

    run(main(), 1)


def test_a_store_closes_while_its_log_waits_for_space():
    async def main():
        disk = SimDisk(1)
        store = await open_store(disk)
        await store.append(1, hard(1), [entry(1)])
        used = await disk.space()
        disk.capacity_bytes = used.total_bytes - used.free_bytes
        ends = [store.append(1, None, [entry(i, data=b"x" * 20_000)]) for i in range(2, 12)]
        while not store.log_full:
            await asyncio.sleep(0.1)
        await asyncio.wait_for(store.close(), 30)
        assert all(end.done() for end in ends)
        disk.capacity_bytes = 1 << 30
        async with store_on(disk) as store:
            assert 1 <= store.log_state(1).last_index <= 11

    run(main(), 1)


def test_a_short_log_is_flushed_so_that_deletes_free_what_lies_in_it():
    """Small objects lie in log volumes, and these go only when a flush is past them."""

    async def main():
        disk = SimDisk(1, capacity_bytes=2 * MIB)
        store = await open_store(disk, reserve_bytes=700 * KIB, reserve_ratio=1.0)
        index = 0
        with pytest.raises(StoreFull):
            while True:
                index += 1
                await store.append(1, hard(1), [entry(index)], [frame(index, size=20_000)])
                store.apply(1, index, [(b"\x10k%d" % index, b"v")])
                await store._space.refresh()
        for stream in range(1, index):
            number = index + stream - 1
            await store.append(1, None, [entry(number)])
            store.apply(1, number, [(b"\x10k%d" % stream, None)], [stream_id(stream)])
        freed = 0
        while part := await store.compact():
            freed += part
        assert freed > 500 * KIB
        await store._space.refresh()
        await store.append(1, None, [entry(2 * index - 1)], [frame(999, size=20_000)])
        await store.close()

    run(main(), 1)


# --- rot ---------------------------------------------------------------------------------------


async def three_batches(disk):
    """Batches: hard state; entries 1-2 with a frame; 3 with a frame; 4."""
    store = await open_store(disk)
    await store.append(1, hard(1, 1, 0), [])
    await store.append(1, None, [entry(1), entry(2)], [frame(1)])
    store.apply(1, 1, [(b"\x10a", b"1")])
    await store.append(1, None, [entry(3)], [frame(3)])
    await store.append(1, None, [entry(4)])
    return disk.kill()


def places(disk, kind, suffix=".log"):
    """(path, offset of the record, its size) of all records of a kind, in the log volumes."""
    found = []
    for path, node in sorted(disk.image.names.items()):
        if not path.endswith(suffix):
            continue
        data = bytes(node.cached)
        at = data.find(records.RECORD_MAGIC)
        while at >= 0:
            header = records.check_record(data, at - 32)
            if header.kind == kind:
                found.append((path, at - 32, header.size_bytes))
            at = data.find(records.RECORD_MAGIC, at + 1)
    return found


def test_entries_that_are_read_end_before_one_that_rots_while_the_store_runs():
    """What came behind it in one read, or stood in memory, was given as if it followed."""

    async def main():
        disk = SimDisk(1)
        async with store_on(disk) as store:
            await store.append(1, hard(1), [entry(index) for index in range(1, 5)])
        async with store_on(disk) as store:
            await store.append(1, None, [entry(5), entry(6)])
            path, offset, size = places(disk, records.ENTRY)[2]
            disk.rot(path, offset + size - 1, 1)
            for low, high in ((1, 3), (1, 5), (1, 7), (2, 7)):
                found = await store.entries(1, low, high, 1 << 20)
                assert [each.index for each in found] == list(range(low, 3))
            with pytest.raises(EntriesGone):
                await store.entries(1, 3, 7, 1 << 20)
            found = await store.entries(1, 4, 7, 1 << 20)
            assert [each.index for each in found] == [4, 5, 6]

    run(main(), 13)


@pytest.mark.parametrize("bit", [0, 300, 500, 700, 900])
def test_rot_in_an_entry_is_known_missing_not_a_torn_tail(bit):
    async def main():
        for number in range(4):
            disk = await three_batches(SimDisk(1))
            path, offset, size = places(disk, records.ENTRY)[number]
            disk.rot(path, offset + bit // 8 % size, 1 << bit % 8)
            store = await open_store(disk)
            state = store.log_state(1)
            assert state.missing == [(number + 1, number + 1)]
            assert not state.uncertain and state.hard_state == hard(1, 1, 0)
            assert state.last_index == (3 if number == 3 else 4)
            for index in range(1, 5):
                if index == number + 1:
                    with pytest.raises(EntriesGone):
                        store.entries(1, index, index + 1, 10)
                else:
                    (found,) = await store.entries(1, index, index + 1, 1)
                    assert found == entry(index)
            assert bytes(await store.read_frame(stream_id(3), 0)) == frame(3).data
            assert store.log_state(1).applied_index == 1
            # it stays known over flushes and opens, until it is refilled
            await store.flush()
            await store.close()
            store = await open_store(disk)
            assert store.log_state(1).missing == [(number + 1, number + 1)]
            if number:
                refill = [entry(i) for i in range(number + 1, 5)]
                await store.append(1, None, refill)
                assert store.log_state(1).missing == []
                await store.close()
                async with store_on(disk) as store:
                    assert store.log_state(1).missing == []
                    assert await store.entries(1, number + 1, 5, 1 << 20) == refill

    run(main(), 1)


async def entries_of(store, index):
    found = store.entries(1, index, index + 1, 1 << 20)
    return found if isinstance(found, list) else await found


def test_a_group_goes_on_behind_its_last_entry_that_rotted_after_it_was_applied():
    """Its outcome rode in a batch of another group, so nothing is lost but the entry itself."""

    async def main():
        disk = SimDisk(1)
        store = await open_store(disk)
        await store.append(1, hard(1, 1, 0), [entry(1)])
        await store.append(1, None, [entry(2)])
        store.apply(1, 1, [(b"\x10a", b"1")])
        store.apply(1, 2, [(b"\x10b", b"2")])
        await store.append(2, hard(1, 1, 0), [entry(1)])
        disk = disk.kill()
        path, offset, size = places(disk, records.ENTRY)[1]
        disk.rot(path, offset + size // 2)
        store = await open_store(disk)
        state = store.log_state(1)
        assert (state.applied_index, state.missing) == (2, [(2, 2)])
        assert store.get_now(b"\x10b") == b"2"
        await store.append(1, hard(2, 1, 2), [entry(state.last_index + 1)])
        await store.close()
        # the second open finds what the first wrote behind the hole
        async with store_on(disk) as store:
            assert store.log_state(1).last_index == 3
            assert store.get_now(b"\x10b") == b"2"
            assert await entries_of(store, 3) == [entry(3)]
            await store.append(1, None, [entry(4)])
        async with store_on(disk) as store:
            assert store.log_state(1).last_index == 4

    run(main(), 1)


def test_rot_in_a_frame_record_is_never_served():
    async def main():
        disk = await three_batches(SimDisk(1))
        (path, offset, size), other = places(disk, records.FRAME)
        disk.rot(path, offset + size // 2)
        async with store_on(disk) as store:
            with pytest.raises((FrameBad, FrameMissing)):
                await store.read_frame(stream_id(1), 0)
            assert bytes(await store.read_frame(stream_id(3), 0)) == frame(3).data
            assert store.log_state(1).missing == []
            # and rot that comes while the store is open
            disk.rot(other[0], other[1] + 70)
            with pytest.raises(FrameBad):
                store.read_frame_now(stream_id(3), 0)
            with pytest.raises(FrameBad):
                await store.read_frame(stream_id(3), 0)

    run(main(), 1)


def test_a_frame_that_the_disk_fails_to_read_is_not_bad():
    """It may be read later."""

    async def main():
        disk = await three_batches(SimDisk(1, cached_share=0.0))
        async with store_on(disk) as store:
            disk.inject(Fault("read", path_prefix="volumes/", count=99))
            with pytest.raises(FrameUnread):
                await store.read_frame(stream_id(1), 0)
            disk.faults.clear()
            assert bytes(await store.read_frame(stream_id(1), 0)) == frame(1).data

    run(main(), 1)


def test_rot_in_an_outcome_is_executed_again():
    async def main():
        disk = await three_batches(SimDisk(1))
        path, offset, size = places(disk, records.OUTCOME)[0]
        disk.rot(path, offset + size - 1)
        async with store_on(disk) as store:
            assert store.log_state(1).applied_index == 0
            assert store.get_now(b"\x10a") is None
            store.apply(1, 1, [(b"\x10a", b"1")])

    run(main(), 1)


def test_rot_in_an_outcome_is_not_hidden_by_a_later_restatement():
    """The next volume restates what was applied; that must not jump over the outcome that is gone
    (found by `o3storage simulate --seed 116`)."""

    async def main():
        disk = SimDisk(1)
        store = await open_store(disk)
        for index in range(1, 30):
            await store.append(1, hard(1), [entry(index, data=b"x" * 4000)])
            store.apply(1, index, [(b"\x10k%d" % index, b"v")])
        await store.append(1, None, [entry(30)])
        assert store.stats().log_volumes > 1
        disk = disk.kill()
        path, offset, size = places(disk, records.OUTCOME)[2]
        disk.rot(path, offset + size - 1)
        async with store_on(disk) as store:
            assert store.log_state(1).applied_index == 2
            for index in range(3, 30):
                store.apply(1, index, [(b"\x10k%d" % index, b"v")])
            assert store.get_now(b"\x10k3") == b"v"
        async with store_on(disk) as store:
            assert store.log_state(1).applied_index == 29
            assert store.get_now(b"\x10k3") == b"v"

    run(main(), 1)


def batch_starts(disk):
    found = []
    for path, node in sorted(disk.image.names.items()):
        if path.endswith(".log"):
            data = bytes(node.cached)
            found += [
                (path, at) for at in range(0, len(data), 4096) if data[at + 32 :][:8] == b"O3BATCHh"
            ]
    return found


def batch_end(disk, path, at):
    data = bytes(disk.image.lookup(path).cached)
    return at + int.from_bytes(data[at + 32 + 112 :][:4], "little")


@pytest.mark.parametrize("which", [-1, -2])
def test_a_lost_header_is_replaced_by_the_trailer(which):
    async def main():
        disk = await three_batches(SimDisk(1))
        path, at = batch_starts(disk)[which]
        disk.rot(path, at + 50)
        async with store_on(disk) as store:
            state = store.log_state(1)
            assert state.last_index == 4 and not state.uncertain and not state.missing

    run(main(), 1)


@pytest.mark.parametrize("which", [-1, -2])
def test_without_header_and_trailer_all_groups_are_uncertain(which):
    async def main():
        disk = await three_batches(SimDisk(1))
        path, at = batch_starts(disk)[which]
        end = batch_end(disk, path, at)
        disk.rot(path, at + 50)
        disk.rot(path, end - 50)
        store = await open_store(disk)
        assert store.log_state(1).uncertain
        await store.append(1, hard(2, 1), [])
        await store.flush()
        await store.close()
        store = await open_store(disk)  # it is not forgotten
        assert store.log_state(1).uncertain
        assert store.log_state(5).uncertain, "what told of this group may be what was lost"
        await store.append(5, hard(1, 0), [])
        await store.clear_uncertain(1)
        assert store.log_state(5).uncertain
        await store.clear_uncertain(5)
        assert not store.log_state(6).uncertain
        await store.close()
        async with store_on(disk) as store:
            assert not store.log_state(1).uncertain

    run(main(), 1)


def test_a_start_that_ends_before_it_says_that_groups_are_uncertain_leaves_what_tells_the_next(
    monkeypatch,
):
    async def main():
        disk = await three_batches(SimDisk(1))
        path, at = batch_starts(disk)[-1]
        end = batch_end(disk, path, at)
        disk.rot(path, at + 50)
        disk.rot(path, end - 50)

        async def full(_):
            raise StoreFull("no space for a new volume")

        with monkeypatch.context() as patch, pytest.raises(StoreFull):
            patch.setattr(LogWriter, "start", full)
            await open_store(disk)
        disk = disk.crash()
        for _ in range(2):
            store = await open_store(disk)
            assert store.log_state(1).uncertain
            await store.append(1, hard(2, 1), [])
            disk = disk.crash()
            await store.close()

    run(main(), 1)


def test_a_flipped_bit_anywhere_in_the_log_is_never_an_unnoticed_change():
    """Every 61st bit of the written part: what is read afterwards is right, or said to be lost."""

    async def main():
        base = await three_batches(SimDisk(1))
        path = next(n for n in base.image.names if n.endswith(".log"))
        size = batch_end(base, *batch_starts(base)[-1])
        for bit in range(0, size * 8, 2477):
            disk = await three_batches(SimDisk(1))
            disk.rot(path, bit // 8, 1 << bit % 8)
            async with store_on(disk) as store:
                state = store.log_state(1)
                lost = {i for lo, hi in state.missing for i in range(lo, hi + 1)}
                assert state.hard_state == hard(1, 1, 0) or state.uncertain
                assert state.last_index == 4 or state.uncertain or 4 in lost
                for index in set(range(1, state.last_index + 1)) - lost:
                    assert await store.entries(1, index, index + 1, 1) == [entry(index)]
                for stream in (1, 3):
                    try:
                        data = await store.read_frame(stream_id(stream), 0)
                    except (FrameBad, FrameMissing):
                        continue
                    assert bytes(data) == frame(stream).data

    run(main(), 1)


def test_a_defect_in_the_bulk_writer_lets_nobody_wait():
    async def main():
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        store = await open_store(SimDisk(1))
        told = []
        store.on_out_of_service(told.append)
        stream = store.open_stream(stream_id(1))
        store._bulk._encode = lambda *_: 1 // 0
        await stream.write(frame(1, 0, 30_000))
        with pytest.raises(StoreOutOfService, match="internal error"):
            await asyncio.wait_for(stream.sync(), 5)
        with pytest.raises(StoreOutOfService):
            await store.append(1, hard(1), [entry(1)])
        assert len(told) == 1 and "internal error" in store.stats().out_of_service
        assert "OUT_OF_SERVICE" not in await store._core.disk.list_dir("")
        await store.close()

    run(main(), 1)


def test_a_defect_in_the_writer_lets_nobody_wait():
    async def main():
        disk = SimDisk(1)
        store = await open_store(disk)
        await store.append(1, hard(1), [entry(1)])
        heard = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context))

        def broken():
            raise AssertionError("planted")

        store._log._gather = broken
        with pytest.raises(StoreOutOfService, match="planted"):
            await store.append(1, None, [entry(2)])
        with pytest.raises(StoreOutOfService):
            store.append(1, None, [entry(2)])
        assert len(heard) == 1
        await store.close()
        assert "OUT_OF_SERVICE" not in await disk.list_dir("")
        async with store_on(disk) as store:
            assert store.log_state(1).last_index == 1

    run(main(), 1)
