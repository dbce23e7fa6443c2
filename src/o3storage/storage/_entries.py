"""Entries that left the cache, read back from the log volumes.

Invariant: an entry is returned only if its record's checksum, seal, group, index and term hold.
"""

from __future__ import annotations

from o3storage.runtime.disk import DiskError
from o3storage.storage._core import Core
from o3storage.storage._groups import GroupLog, unpack_place
from o3storage.storage._records import ENTRY, RecordBad, check_record, open_body
from o3storage.storage._types import MIB, EntriesGone, EntriesUnread, Entry, FrameMissing
from o3storage.storage._unreadable import read_around

SPAN_BYTES = 1 * MIB
"""Entries that stand within so many bytes are read at once (other groups' records between them)."""


async def read_entries(core: Core, log: GroupLog, lo: int, hi: int, max_bytes: int) -> list[Entry]:
    """Entries lo <= index < hi without a gap, at least one. Raises EntriesGone, EntriesUnread."""
    found: list[Entry] = []
    size = 0
    index = lo
    stop = min(hi, log.last_index + 1)
    while index < stop and size < max_bytes:
        cached = log.cached(index, stop, max_bytes - size) if found else None
        if cached is not None:
            found += cached
            break
        span = _span(log, index, stop)
        if not span:
            break
        read = await _read_span(core, log, index, span)
        for entry in read:
            size += len(entry.data)
            if found and size > max_bytes:
                return found
            found.append(entry)
        if len(read) < len(span):
            break  # what comes behind a bad record does not continue these
        index += len(span)
    if not found:
        raise EntriesGone(f"group {log.group}: entry {lo} is not in this log")
    return found


def _span(log: GroupLog, index: int, stop: int) -> list[tuple[int, int, int]]:
    """(volume, offset, size) of consecutive entries that one read covers."""
    span: list[tuple[int, int, int]] = []
    while index < stop:
        at = index - log.first_index
        if not 0 <= at < len(log.places) or not log.places[at]:
            break
        volume, offset = unpack_place(log.places[at])
        size = log.sizes[at]
        if span and (volume != span[0][0] or offset + size - span[0][1] > SPAN_BYTES):
            break
        if span and offset < span[-1][1]:
            break
        span.append((volume, offset, size))
        index += 1
    return span


async def _read_span(
    core: Core, log: GroupLog, index: int, span: list[tuple[int, int, int]]
) -> list[Entry]:
    """Those of the span up to the first bad record, at least one. Raises EntriesGone,
    EntriesUnread."""
    number, start, _ = span[0]
    length = span[-1][1] + span[-1][2] - start
    try:
        volume = await core.open_for_read(number)
        sealer = await core.sealer_of(volume)
        assert volume.file is not None
        volume.in_use += 1
        try:
            data = await read_around(volume.file.read, start, length)
        finally:
            volume.in_use -= 1
            await core.release(volume)
    except FrameMissing as error:
        raise EntriesGone(f"group {log.group}: entry {index}: {error}") from error
    except DiskError as error:
        raise EntriesUnread(f"group {log.group}: entry {index}: {error}") from error
    entries: list[Entry] = []
    for _, offset, _ in span:
        at = offset - start
        try:
            header = check_record(data, at)
            if header.kind != ENTRY or header.group != log.group or header.b != index:
                raise RecordBad("another record stands there")
            body = open_body(data, header, sealer, offset, at)
        except RecordBad as error:
            if entries:
                break
            raise EntriesGone(f"group {log.group}: entry {index}: {error}") from error
        entries.append(Entry(index, header.term, header.flags, body))
        index += 1
    return entries
