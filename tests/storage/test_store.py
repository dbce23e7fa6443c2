"""The store's face on a simulated disk."""

from __future__ import annotations

import asyncio

import pytest

from o3storage.storage import EntriesGone, FrameMissing, StoreFull, StoreKeyWrong, StoreLocked, _log  # noqa: F401

from .support import SimDisk, entry, frame, hard, open_store, run, store_on, stream_id


def test_append_apply_reopen():
    async def main():
        disk = SimDisk(1)
        async with store_on(disk) as store:
            done = store.append(1, hard(3, 2, 0), [entry(1), entry(2)], [frame(1)])
            assert [e.index for e in store.entries(1, 1, 3, 1000)] == [1, 2]
            await done
            store.apply(1, 1, [(b"\x10a", b"A"), (b"\x10b", b"B")])
            store.apply(1, 2, [(b"\x10a", None)])
            assert store.get_now(b"\x10a") is None and store.get_now(b"\x10b") == b"B"
            assert bytes(store.read_frame_now(stream_id(1), 0)) == frame(1).data
            state = store.log_state(1)
            assert (state.last_index, state.applied_index, state.durable_index) == (2, 2, 2)
        async with store_on(disk) as store:
            state = store.log_state(1)
            assert (state.first_index, state.last_index, state.last_term) == (1, 2, 1)
            assert state.applied_index == 2 and state.hard_state == hard(3, 2, 0)
            assert store.get_now(b"\x10b") == b"B"
            assert bytes(await store.read_frame(stream_id(1), 0)) == frame(1).data
            assert store.groups() == [1]

    run(main(), 1)


def test_kill_keeps_what_was_acknowledged():
    async def main():
        disk = SimDisk(1)
        store = await open_store(disk)
        await store.append(1, hard(1), [entry(1)], [frame(1)])
        store.apply(1, 1, [(b"\x10a", b"A")])
        await store.append(1, None, [entry(2)])
        store.apply(1, 2, [(b"\x10b", b"B")])  # its outcome is in memory only
        await store.append(2, hard(4), [entry(1, 4)])
        for after in (disk.kill(), disk.crash()):
            store = await open_store(after)
            state = store.log_state(1)
            assert (state.first_index, state.last_index, state.applied_index) == (1, 2, 2)
            found = await store.entries(1, 1, 3, 1 << 20)
            assert [(e.index, e.data) for e in found] == [(1, b"entry 1"), (2, b"entry 2")]
            assert store.log_state(2).hard_state == hard(4)
            assert store.term(1, 2) == 1 and store.term(1, 0) == 0
            assert bytes(store.read_frame_now(stream_id(1), 0) or b"") in (b"", frame(1).data)
            assert bytes(await store.read_frame(stream_id(1), 0)) == frame(1).data

    run(main(), 2)


def test_group_commit_shares_a_sync():
    async def main():
        disk = SimDisk(1)
        async with store_on(disk) as store:
            await store.append(1, hard(1), [entry(1)])
            syncs = disk.operations["sync"]
            futures = [store.append(1, None, [entry(i)], [frame(i, size=64)]) for i in range(2, 60)]
            await asyncio.gather(*futures)
            assert disk.operations["sync"] - syncs <= 3

    run(main(), 3)


@pytest.mark.parametrize("busy", [0.0, 0.5, 0.65, 0.8, 1.0])
def test_small_batches_of_a_busy_loop_are_put_off(monkeypatch, busy):
    """Appends that come one by one share batches on a busy loop; on others each has its own."""
    monkeypatch.setattr(_log, "busy_share", lambda: busy)
    spacing_s = _log.BATCH_SPACING_S * min(1.0, max(0.0, busy - 0.5) / 0.3)

    async def main():
        async with store_on(SimDisk(1), log_volume_bytes=8 << 20) as store:
            loop = asyncio.get_running_loop()
            last = 0

            async def append(count=1):
                nonlocal last
                since = loop.time()
                entries = [entry(last + i + 1) for i in range(count)]
                last += count
                await store.append(1, hard(1) if last == count else None, entries)
                return loop.time() - since

            took = [await append() for _ in range(50)]
            assert max(took) < 0.001  # one after the other is a lone writer
            took = [await append(_log.ENOUGH_ENTRIES) for _ in range(50)]
            assert max(took) < 0.001  # and nobody waits for more than these
            assert (await append() > 0.001) == bool(spacing_s)  # but a small one does
            before = store.stats().batches
            tasks = []
            for _ in range(100):
                tasks.append(loop.create_task(append()))
                await asyncio.sleep(0.001)
            took = await asyncio.gather(*tasks)
            assert max(took) < spacing_s + 0.002
            batches = store.stats().batches - before
            if spacing_s:
                assert 0.09 / (spacing_s + 0.002) <= batches <= 0.1 / spacing_s + 2
            else:
                assert batches == 100

    run(main(), 3)


def test_conflicting_suffix_is_replaced():
    async def main():
        disk = SimDisk(1)
        async with store_on(disk) as store:
            first = store.append(1, hard(1), [entry(i) for i in range(1, 6)])
            second = store.append(1, hard(2), [entry(3, 2, b"new")])
            assert store.log_state(1).last_index == 3
            await first
            assert store.log_state(1).durable_index == 2
            await second
            assert store.log_state(1).durable_index == 3
            with pytest.raises(ValueError):
                store.append(1, None, [entry(9)])
            with pytest.raises(ValueError):
                store.apply(1, 2, [])
        async with store_on(disk) as store:
            state = store.log_state(1)
            assert (state.last_index, state.last_term) == (3, 2)
            assert [e.data for e in await store.entries(1, 2, 9, 99)] == [b"entry 2", b"new"]

    run(main(), 4)


def test_streams_of_frames_through_the_bulk():
    async def main():
        disk = SimDisk(1)
        big = [frame(7, i, 40_000, last=i == 5) for i in range(6)]
        other = [frame(8, i, 40_000, last=False) for i in range(4)]
        async with store_on(disk) as store:
            a, b = store.open_stream(stream_id(7)), store.open_stream(stream_id(8))
            for i in range(6):
                await a.write(big[i])
                if i < 4:
                    await b.write(other[i])
            await asyncio.gather(a.sync(), b.sync())
            for i in range(6):
                assert bytes(await store.read_frame(stream_id(7), i)) == big[i].data
            runs = await store.stream_frames(stream_id(7))
            assert sum(count for _, count in runs) == 6 and runs[0][0] == 0
            with pytest.raises(FrameMissing):
                await store.read_frame(stream_id(7), 6)
            with pytest.raises(FrameMissing):
                store.read_frame_now(stream_id(9), 0)
        async with store_on(disk.crash()) as store:
            for i in range(4):
                assert bytes(await store.read_frame(stream_id(8), i)) == other[i].data

    run(main(), 5)


def test_lone_stream_is_one_run():
    async def main():
        async with store_on(SimDisk(1)) as store:
            writer = store.open_stream(stream_id(7))
            for i in range(5):
                await writer.write(frame(7, i, 30_000 if i < 4 else 100, last=i == 4))
                await writer.sync()
            assert await store.stream_frames(stream_id(7)) == [(0, 5)]
            assert bytes(await store.read_frame(stream_id(7), 4)) == frame(7, 4, 100).data

    run(main(), 6)


def test_pins_hold_released_streams():
    async def main():
        disk = SimDisk(1)
        async with store_on(disk) as store:
            await store.append(1, hard(1), [entry(1), entry(2)], [frame(1), frame(2)])
            store.pin(stream_id(1))
            store.pin(stream_id(1))
            store.apply(1, 1, [], [stream_id(1), stream_id(2)])
            assert store.read_frame_now(stream_id(1), 0) is not None
            with pytest.raises(FrameMissing):
                store.read_frame_now(stream_id(2), 0)
            store.unpin(stream_id(1))
            assert store.read_frame_now(stream_id(1), 0) is not None
            store.unpin(stream_id(1))
            with pytest.raises(FrameMissing):
                store.read_frame_now(stream_id(1), 0)
            assert store.scan_now(b"\x01", b"\x10", 99) == []
            await store.append(1, None, [entry(3)], [frame(3)])
            store.apply(1, 2, [])
            store.apply(1, 3, [], [stream_id(3)])
            store.pin(stream_id(3))  # too late for this one: it is gone
        async with store_on(disk) as store:
            assert store.scan_now(b"\x01", b"\x10", 99) == []

    run(main(), 7)


def test_log_rotates_and_groups_are_restated():
    async def main():
        disk = SimDisk(1)
        async with store_on(disk) as store:
            await store.append(9, hard(7, 7, 7), [entry(1, 7)])
            for i in range(1, 60):
                await store.append(1, hard(1, 0, i - 1), [entry(i)], [frame(i, size=5000)])
                store.apply(1, i, [(b"\x10k%d" % i, b"v")])
            assert store.stats().log_volumes >= 4
            store.apply(9, 1, [])
        async with store_on(disk) as store:
            assert store.log_state(9).hard_state == hard(7, 7, 7)
            assert store.log_state(9).last_term == 7
            for i in range(1, 60):
                assert bytes(await store.read_frame(stream_id(i), 0)) == frame(i, size=5000).data

    run(main(), 8)


def test_wrong_key_changes_nothing():
    async def main():
        disk = SimDisk(1)
        async with store_on(disk) as store:
            await store.append(1, hard(1), [entry(1)])
        before = {n: bytes(i.cached) for n, i in disk.image.names.items() if i is not None}
        with pytest.raises(StoreKeyWrong):
            await open_store(disk, key=bytes(32))
        after = {n: bytes(i.cached) for n, i in disk.image.names.items() if i is not None}
        assert before == after

    run(main(), 9)


def test_reset_after_a_snapshot():
    async def main():
        disk = SimDisk(1)
        async with store_on(disk) as store:
            await store.append(1, hard(1), [entry(1), entry(2)])
            await store.reset_group(1, 100, 5)
            assert store.term(1, 100) == 5
            with pytest.raises(EntriesGone):
                store.entries(1, 2, 3, 10)
            await store.append(1, None, [entry(101, 6)])
        async with store_on(disk.crash()) as store:
            state = store.log_state(1)
            assert (state.first_index, state.last_index, state.applied_index) == (101, 101, 100)
            assert store.term(1, 100) == 5

    run(main(), 10)


def test_a_sync_does_not_starve_behind_other_streams():
    async def main():
        async with store_on(SimDisk(1), bulk_queue_bytes=200_000) as store:
            stop = False

            async def busy(number):
                writer = store.open_stream(stream_id(number))
                n = 0
                while not stop:
                    await writer.write(frame(number, n, 30_000, last=False))
                    n += 1
                return n

            others = [asyncio.ensure_future(busy(100 + i)) for i in range(8)]
            for n in range(5):
                writer = store.open_stream(stream_id(n))
                await writer.write(frame(n, 0, 1000))
                await asyncio.wait_for(writer.sync(), 1.0)  # virtual seconds
            stop = True
            counts = await asyncio.gather(*others)
            assert min(counts) > 0

    run(main(), 11)


def test_who_was_woken_in_vain_wakes_the_next_writer():
    """Its upload ended early while it waited: the others would wait until somebody writes again."""

    async def main():
        async with store_on(SimDisk(1), bulk_queue_bytes=20_000) as store:
            first, second, third = (store.open_stream(stream_id(n)) for n in range(3))
            await first.write(frame(0, 0, 30_000))
            ended = asyncio.ensure_future(second.write(frame(1, 0, 30_000)))
            waits = asyncio.ensure_future(third.write(frame(2, 0, 30_000)))
            await asyncio.sleep(0)
            second.error = StoreFull("what came before it found no room")
            await asyncio.wait_for(waits, 1.0)  # virtual seconds
            with pytest.raises(StoreFull):
                await ended

    run(main(), 12)
