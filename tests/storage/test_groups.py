"""The places and cached entries of one group's log."""

from __future__ import annotations

from o3storage.storage._groups import ENTRY_OVERHEAD_BYTES, UNCACHE_ENTRIES, EntryCache, GroupLog

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
