"""Entries that rotted and came back from another node take their places, and nothing else goes."""

from __future__ import annotations

import asyncio

import pytest

from o3storage.storage import _records as records
from o3storage.storage._rebuild import remove_index

from .outcome_support import rot
from .support import SimDisk, entry, hard, open_store, run, store_on
from .test_faults import places, three_batches


async def read(store, low, high):
    found = store.entries(1, low, high, 1 << 20)
    return found if isinstance(found, list) else await found


@pytest.mark.parametrize("lost", [[2], [4], [2, 4], [3, 4], [2, 3, 4]])
def test_lost_entries_are_put_back(lost):
    async def main():
        disk = await three_batches(SimDisk(1))
        entries = places(disk, records.ENTRY)
        for number in lost:
            rot(disk, entries[number - 1])
        store = await open_store(disk)
        before = store.log_state(1)
        gone = [i for lo, hi in before.missing for i in range(lo, hi + 1)]
        assert gone == lost
        # One alone is durable without the others being forgotten.
        await store.fill(1, [entry(lost[0])])
        disk = disk.crash()
        await store.close()
        store = await open_store(disk)
        gone = [i for lo, hi in store.log_state(1).missing for i in range(lo, hi + 1)]
        assert gone == lost[1:]
        if lost[1:]:
            await store.fill(1, [entry(i) for i in lost[1:]])
        await store.append(1, None, [entry(5)])
        state = store.log_state(1)
        assert (state.missing, state.last_index, state.durable_index) == ([], 5, 5)
        assert state.hard_state == before.hard_state
        assert await read(store, 1, 6) == [entry(i) for i in range(1, 6)]
        for index in range(state.applied_index + 1, 6):
            store.apply(1, index, [])
        await store.append(1, None, [entry(6)])  # the outcomes ride with it
        disk = disk.crash()
        await store.close()
        async with store_on(disk) as store:
            assert store.log_state(1).missing == []
            assert store.log_state(1).applied_index == 5
            assert await read(store, 2, 6) == [entry(i) for i in range(2, 6)]

    run(main(), 1)


def test_a_tail_that_nobody_holds_is_cut():
    async def main():
        disk = await three_batches(SimDisk(1))
        rot(disk, places(disk, records.ENTRY)[3])
        store = await open_store(disk)
        store.drop_missing(1, 4)
        state = store.log_state(1)
        assert (state.missing, state.last_index, state.durable_index) == ([], 3, 3)
        other = entry(4, 7, b"another")
        await store.append(1, None, [other])
        await store.close()
        async with store_on(disk) as store:
            assert store.log_state(1).missing == []
            assert await read(store, 4, 5) == [other]

    run(main(), 1)


@pytest.mark.parametrize("lost", [[4], [3, 4], [2, 3, 4]])
@pytest.mark.parametrize("cut", [3, 4])
def test_what_came_back_and_is_replaced_at_once_stays_replaced(lost, cut):
    """Another member answers with entries of an old leader, and the new one's are here before what
    came back is on the disk."""

    async def main():
        disk = await three_batches(SimDisk(1))
        entries = places(disk, records.ENTRY)
        for number in lost:
            rot(disk, entries[number - 1])
        store = await open_store(disk)
        new = entry(cut, 7, b"another")
        await asyncio.gather(store.fill(1, [entry(i) for i in lost]), store.append(1, None, [new]))
        for _ in range(2):
            state = store.log_state(1)
            assert (state.last_index, state.durable_index, state.missing) == (cut, cut, [])
            assert await read(store, 2, cut + 1) == [*(entry(i) for i in range(2, cut)), new]
            disk = disk.crash()
            await store.close()
            store = await open_store(disk)
        await store.close()

    run(main(), 1)


@pytest.mark.parametrize("lost", [[4], [3, 4]])
def test_a_last_entry_that_came_back_is_in_what_the_next_volume_restates(lost):
    """Nothing is appended behind it, and other groups go on."""

    async def main():
        disk = await three_batches(SimDisk(1))
        entries = places(disk, records.ENTRY)
        for number in lost:
            rot(disk, entries[number - 1])
        store = await open_store(disk)
        await store.fill(1, [entry(i) for i in lost])
        volume, index = store._log.volume, 0
        while store._log.volume is volume:
            index += 1
            await store.append(2, hard(1), [entry(index, data=b"e" * 9000)])
        for _ in range(2):
            disk = disk.crash()
            await store.close()
            store = await open_store(disk)
            state = store.log_state(1)
            assert (state.last_index, state.missing) == (4, [])
            assert await read(store, 2, 5) == [entry(i) for i in range(2, 5)]
        await store.close()

    run(main(), 1)


def test_what_replaces_an_entry_that_came_back_is_not_durable_with_it():
    async def main():
        disk = await three_batches(SimDisk(1))
        rot(disk, places(disk, records.ENTRY)[3])
        async with store_on(disk) as store:
            filled = store.fill(1, [entry(4)])
            replaced = store.append(1, None, [entry(4, 7, b"another")])
            await filled
            assert not replaced.done()
            assert store.log_state(1).durable_index == 3
            await replaced
            assert store.log_state(1).durable_index == 4

    run(main(), 1)


@pytest.mark.parametrize(
    ("lost", "applied", "rebuilt"),
    [
        (6, 5, False),
        (7, 5, False),
        (20, 5, False),
        (11, 10, False),  # the last of its volume: the floor is behind that
        (22, 21, False),
        (16, 15, True),
        (22, 21, True),
    ],
)
def test_an_entry_that_came_back_hides_none_from_the_replay_floor(lost, applied, rebuilt):
    """It stands in a later volume than those behind it, and none of them is applied yet."""
    count = 60

    def long(index):
        return entry(index, data=b"%d" % index * 1500)

    async def main():
        disk = SimDisk(1)
        store = await open_store(disk)
        for index in range(1, count + 1):
            await store.append(1, hard(1), [long(index)])
        for index in range(1, applied + 1):
            store.apply(1, index, [(b"\x10k%d" % index, b"v")])
        await store.note(b"x", b"")  # the outcomes ride with it
        disk = disk.crash()
        await store.close()
        rot(disk, places(disk, records.ENTRY)[lost - 1])
        store = await open_store(disk)
        assert store.log_state(1).missing == [(lost, lost)]
        await store.fill(1, [long(lost)])
        await store.flush()
        while await store.compact():
            await store.flush()
        disk = disk.crash()
        await store.close()
        if rebuilt:
            await remove_index(disk, "index")
        async with store_on(disk) as store:
            assert store.stats().index_rebuilt == rebuilt
            state = store.log_state(1)
            assert (state.last_index, state.missing) == (count, [])
            for index in range(applied + 1, count + 1):
                assert await read(store, index, index + 1) == [long(index)]

    run(main(), 1)


def test_what_follows_dropped_entries_is_not_durable_with_them():
    async def main():
        disk = await three_batches(SimDisk(1))
        rot(disk, places(disk, records.ENTRY)[3])
        async with store_on(disk) as store:
            filled = store.fill(1, [entry(4)])
            await asyncio.sleep(0)
            store.drop_missing(1, 4)
            replaced = store.append(1, None, [entry(4, 7, b"another")])
            await filled
            assert not replaced.done()
            assert store.log_state(1).durable_index == 3
            await replaced
            assert store.log_state(1).durable_index == 4
            old = store.append(1, None, [entry(5, 7), entry(6, 7)])
            await asyncio.sleep(0)
            store.reset_group(1, 4, 7)
            new = store.append(1, None, [entry(5, 8, b"another")])
            await old
            assert not new.done()
            assert store.log_state(1).durable_index == 4
            await new
            assert store.log_state(1).durable_index == 5

    run(main(), 1)
