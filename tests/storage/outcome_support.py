"""Outcomes that tests damage: entries of group 1, and the rows that they write."""

from __future__ import annotations

from .support import entry, hard, open_store

OPTIONS = {"log_volume_bytes": 64 * 1024}
SPAN = (b"\x20", b"\x21")


def row(index):
    """(key, value) that the entry of that index writes, where nothing else is said."""
    return b"\x20row%d" % index, b"of entry %d" % index


async def begin(disk, entries, **options):
    """A store with that many entries of group 1, none of which is executed yet."""
    store = await open_store(disk, **{**OPTIONS, **options})
    await store.append(1, hard(1), [entry(index) for index in range(1, entries + 1)])
    return store


async def execute(store, changes):
    """Entries from the first, one for each change; each outcome rides in a batch of its own."""
    for index, change in enumerate(changes, start=1):
        store.apply(1, index, [change])
        await store.append(1, hard(1, 0, index), [])


async def rows_of(store):
    return dict(await store.scan(*SPAN, 100))


def rot(disk, place):
    path, offset, size = place
    disk.rot(path, offset + size // 2, 4)
