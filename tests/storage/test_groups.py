"""The places and cached entries of one group's log."""

from __future__ import annotations

import pytest

from o3storage.storage import EntriesGone
from o3storage.storage._groups import (
    ENTRY_OVERHEAD_BYTES,
    UNCACHE_ENTRIES,
    EntryCache,
    GroupLog,
    unpack_place,
)

from .support import SimDisk, entry, hard, run, store_on


def cached_log(count):
    account = EntryCache(1 << 30)
    log = GroupLog(1, account)
    for index in range(1, count + 1):
        log.take_append([entry(index)])
    log.durable_index = log.applied_index = count
    return log, account


def used(log):
    return sum(len(e.data) + ENTRY_OVERHEAD_BYTES for e in log.cache)


def test_forgotten_entries_leave_the_cache_in_steps():
    count = 3 * UNCACHE_ENTRIES
    log, account = cached_log(count)
    log.forget_below(count - 9)
    assert len(log.cache) == count - UNCACHE_ENTRIES, "one step's worth"
    assert log.uncache()
    assert len(log.cache) == count - 2 * UNCACHE_ENTRIES
    assert not log.uncache()
    assert [e.index for e in log.cache] == list(range(count - 9, count + 1))
    assert account.used_bytes == used(log)


def test_what_is_still_cached_of_forgotten_entries_is_never_in_the_way():
    count = 2 * UNCACHE_ENTRIES + 5
    log, account = cached_log(count)
    log.forget_below(count + 1)  # all of it
    assert log.cache
    log.take_append([entry(count + 1), entry(count + 2)])
    assert [e.index for e in log.cached(count + 1, count + 9, 1 << 20)] == [count + 1, count + 2]
    log.truncate(count + 1)
    assert [e.index for e in log.cached(count + 1, count + 9, 1 << 20)] == [count + 1]
    assert account.used_bytes == used(log)
    log.reset(5 * count, 3)
    assert not log.cache
    assert account.used_bytes == 0
    log.take_append([entry(5 * count + 1, term=3)])
    assert [e.index for e in log.cached(5 * count + 1, 6 * count, 1 << 20)] == [5 * count + 1]


def test_a_log_goes_back_to_what_is_applied_and_misses_what_lies_between() -> None:
    log = GroupLog(1, EntryCache(1 << 20))
    log.first_index, log.previous_term = 9, 2
    log.missing = [(11, 11)]
    for index in range(9, 13):
        log.terms.append(3)
        log.places.append(0)
        log.sizes.append(0)
        log.place(index, 7, 4096 * index, 100)
    log.miss_below(5)
    assert (log.first_index, log.last_index) == (6, 12)
    assert log.missing == [(6, 8), (11, 11)]
    assert log.term(9) == 3 and log.term_before(9) == 2 and log.term(5) == 0
    with pytest.raises(EntriesGone):
        log.term(7)
    for index in range(6, 9):
        log.fill(index, 2, 8, 4096 * index, 90)
    assert log.missing == [(11, 11)] and log.term(7) == 2
    assert unpack_place(log.places[9 - 6]) == (7, 4096 * 9)


def test_a_volume_that_begins_before_a_log_does_says_nothing_of_it():
    """The power goes between what a new volume restates and the batch that begins the log."""

    async def main():
        disk = SimDisk(1)
        copies = []
        async with store_on(disk, log_volume_bytes=64 * 1024) as store:
            writer = store._log
            put = writer._put

            async def watch(data):
                if writer._gathered:
                    image = disk.image.crash(lambda *_: True)
                    copies.append((SimDisk(1, image=image), writer.volume.volume))
                await put(data)

            writer._put = watch
            for group in range(2, 12):
                store.create_group(group, 1, 1)
                await store.append(1, hard(1), [entry(group - 1, data=bytes(20_000))])
        assert len({volume for _, volume in copies}) > 2, "volumes began in between"
        for copy, _ in copies:
            async with store_on(copy) as again:
                for group in again.groups():
                    state = again.log_state(group)
                    assert (state.first_index, state.applied_index) == ((2, 1), (1, 0))[group == 1]
                begun = max(again.groups(), default=1)
                await again.append(1, hard(1, 1), [])
                again.create_group(begun + 1, 1, 1)
                assert again.log_state(begun + 1).last_index == 1

    run(main(), 1)


def test_a_log_that_holds_nothing_but_a_vote_is_begun_and_keeps_the_vote():
    async def main():
        async with store_on(SimDisk(2)) as store:
            await store.append(2, hard(5, 3), [])
            store.create_group(2, 1, 1)
            await store.append(1, hard(1), [entry(1)])
            disk = store._core.disk.crash()
        async with store_on(disk) as store:
            state = store.log_state(2)
            assert (state.first_index, state.last_index, state.last_term) == (2, 1, 1)
            assert state.hard_state == hard(5, 3, 1)
            await store.append(2, hard(5, 3, 1), [entry(2, 5)])
            store.create_group(2, 1, 1)
            assert store.log_state(2).last_index == 2, "one that has begun stays as it is"
            store.create_group(3, 1, 1)

    run(main(), 2)
