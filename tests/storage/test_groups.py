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

from .support import entry


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
