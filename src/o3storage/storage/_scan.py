"""Reading a volume record by record, without the index, the key or the batches.

Interface: `scan_records`, `bulk_end`.

Invariant: memory is bounded by one window and one record, whatever the volume holds; any content
ends the scan or yields, it never loops.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import NamedTuple

from o3storage.storage._batches import (
    FLAG_ENTRIES,
    FOOTER_BYTES,
    MAX_BATCH_BYTES,
    SECTOR_BYTES,
    BatchInfo,
    SummaryBad,
    parse_summary,
    parse_trailer,
    summary_bytes,
)
from o3storage.storage._core import Core, Volume
from o3storage.storage._records import (
    ENTRY,
    FRAME,
    HASH_BYTES,
    PREFIX_BYTES,
    RECORD_MAGIC,
    RecordBad,
    RecordHeader,
    check_hash,
    parse_header,
)
from o3storage.storage._types import KIB, MIB
from o3storage.storage._unreadable import read_around
from o3storage.storage._volume import BLOCK_BYTES, HEADER_BYTES, PAD, VolumeKind, align
from o3storage.storage._walk import salvage

WINDOW_BYTES = 1 * MIB
"""Read at a time: what was read is copied in one step of the loop."""
SEARCH_BYTES = 8 * KIB
"""What is searched first for the next record: in a log it is the end of one batch and the start of
the next, every few records."""
MAX_SEARCH_BYTES = 256 * KIB
"""... and at most at a time, in a span that holds no record."""
SUMMARIES_BYTES = 64 * KIB
"""No more than this lies between the records of two batches."""


class Scanned(NamedTuple):
    """A record, or (header None) a span that is neither a record nor padding. `data` is the whole
    record; of a bad span the first bytes."""

    offset: int
    size_bytes: int
    header: RecordHeader | None
    data: memoryview
    may_hold_rows: bool = False
    """Of a bad span: what stood there may have said how rows changed."""


async def scan_records(
    core: Core,
    volume: Volume,
    *,
    start: int = HEADER_BYTES,
    limit: int | None = None,
    medium: bool = True,
) -> AsyncIterator[Scanned]:
    """All records whose checksum holds, in order, and the bad spans between them: what is neither
    padding nor, in a log volume, the headers and trailers of batches. `medium`: past the page
    cache. `limit`: look only below this offset. Raises DiskError."""
    end = volume.size_bytes if limit is None else min(limit, volume.size_bytes)
    window = _Window(core, volume, medium)
    at = start
    while at + PREFIX_BYTES <= end:
        view = window.now(at, PREFIX_BYTES) or await window.at(at, PREFIX_BYTES)
        try:
            header = parse_header(view)
            size = header.size_bytes
            if len(view) < size:
                view = await window.at(at, size)
            check_hash(view, size)
        except RecordBad:
            following = min(await _next_magic(window, at + 1, end), end)
            sound = await _is_padding(window, at, following) or (
                volume.kind is VolumeKind.LOG and await _is_between_batches(window, at, following)
            )
            if not sound:
                view = await window.at(at, 1)
                bad = view[: following - at]
                may_hold_rows = await _may_hold_rows(window, volume, at, following)
                yield Scanned(at, following - at, None, bad, may_hold_rows)
            at = following
            continue
        yield Scanned(at, size, header, view[:size])
        at += size


async def bulk_end(core: Core, volume: Volume, synced: int) -> int:
    """Where a bulk volume ends, at a 4 KiB boundary: behind its last good record, but before
    the first bad one that no sync had covered when the power went; small records that share a
    block with that one go with it. `synced`: the end of what is known to have been synced; nothing
    below it is cut off, bad or not."""
    end = least = max(HEADER_BYTES, align(synced))
    boundary = 0
    async for found in scan_records(core, volume):
        if found.header is not None:
            end = max(end, align(found.offset + found.size_bytes))
            if found.offset % BLOCK_BYTES == 0:
                boundary = found.offset
        elif await is_unsynced(core, volume, found, synced):
            if found.offset % BLOCK_BYTES and boundary >= least:
                end = boundary
            break
    return min(end, volume.size_bytes)


async def is_unsynced(core: Core, volume: Volume, found: Scanned, synced: int) -> bool:
    """Whether all that is bad in this span lies behind `synced`: nobody was promised any of it."""
    if found.offset >= synced:
        return True
    end = found.offset + found.size_bytes
    return end > synced and await _is_padding(_Window(core, volume, True), found.offset, synced)


class _Window:
    """A moving view of a file."""

    def __init__(self, core: Core, volume: Volume, medium: bool) -> None:
        self._core = core
        self._volume = volume
        self._medium = medium
        self._start = 0
        self._data = memoryview(b"")
        self.judged = (0, False)
        """Offset of the last batch that was asked whether it lacks entries alone, and the answer:
        it may hold many bad spans."""

    def now(self, offset: int, size: int) -> memoryview | None:
        """As `at`, if nothing must be read."""
        low = offset - self._start
        return self._data[low:] if 0 <= low <= len(self._data) - size else None

    async def at(self, offset: int, size: int) -> memoryview:
        """Bytes from `offset`, at least `size` unless the volume ends."""
        low = offset - self._start
        if low < 0 or low + size > len(self._data):
            length = min(max(WINDOW_BYTES, size), self._volume.size_bytes - offset)
            self._data = memoryview(await self._read(offset, length))
            self._start = offset
            low = 0
        return self._data[low:]

    def holds(self, info: BatchInfo, offset: int) -> bool:
        """Whether a batch that is found at `offset` was written there."""
        return info.volume == self._volume.volume and info.offset == offset

    async def _read(self, offset: int, size: int) -> bytes:
        if self._medium:
            direct = partial(self._core.disk.read_direct, self._volume.path)
            return await read_around(direct, offset, size)
        volume = await self._core.open_for_read(self._volume.volume)
        assert volume.file is not None
        volume.in_use += 1
        try:
            return await read_around(volume.file.read, offset, size)
        finally:
            volume.in_use -= 1
            await self._core.release(volume)


async def _may_hold_rows(window: _Window, volume: Volume, start: int, end: int) -> bool:
    """Unless a header still says that a frame or an entry stood in this bad span, and nothing else
    did, or the batches there lack entries alone. (Frames imply placement: one that is lost is
    missed.)"""
    in_log = volume.kind is VolumeKind.LOG
    view = await window.at(start, min(PREFIX_BYTES, end - start))
    try:
        header = parse_header(view)
    except RecordBad:
        header = None
    if header is not None and (
        header.kind == FRAME or (header.kind == ENTRY and not header.sequence)
    ):
        rest = min(start + header.size_bytes, end)
        if await _is_padding(window, rest, end):
            return False
        if in_log and await _is_between_batches(window, rest, end):
            return False
    return not (in_log and await _lack_entries_alone(window, volume, start, end))


async def _lack_entries_alone(window: _Window, volume: Volume, start: int, end: int) -> bool:
    """Whether each batch with a part in this span names all of its records that are bad: what a
    batch names are its entries. (Of a bad record the header may be what is bad.)"""
    at = start
    while at < end:
        info = await _batch_of(window, volume, at)
        if info is None:  # (what else may follow is the unwritten rest of the volume)
            return at > start and await _is_padding(window, at, end)
        if window.judged[0] != info.offset:
            view = (await window.at(info.offset, info.size_bytes))[: info.size_bytes]
            window.judged = (info.offset, _lacks_entries_alone(view, info))
        if not window.judged[1]:
            return False
        at = info.offset + info.size_bytes
    return True


def _lacks_entries_alone(batch: memoryview, info: BatchInfo) -> bool:
    named = [group for group in info.groups if group.flags & FLAG_ENTRIES]
    missing = sum([group.last_index - group.first_index + 1 for group in named])
    found = salvage(batch, 0, len(batch), info)
    for _, header in found:
        missing -= header.kind == ENTRY and any(
            group.group == header.group and group.first_index <= header.b <= group.last_index
            for group in named
        )
    return info.records - len(found) == missing


async def _batch_of(window: _Window, volume: Volume, offset: int) -> BatchInfo | None:
    """The batch that a byte of a log volume belongs to, if its header or trailer can be read."""
    end = align(offset + 1)
    while end <= min(offset + MAX_BATCH_BYTES, volume.size_bytes):
        view = await window.at(end - BLOCK_BYTES, BLOCK_BYTES)
        try:
            info = parse_trailer(view, BLOCK_BYTES)
        except SummaryBad:
            end += BLOCK_BYTES
            continue
        if window.holds(info, end - info.size_bytes) and info.offset <= offset:
            return info
        break  # of one that lies behind
    start = offset - offset % BLOCK_BYTES
    least = max(HEADER_BYTES, offset - MAX_BATCH_BYTES)
    while start >= least:
        low = max(HEADER_BYTES, start + BLOCK_BYTES - WINDOW_BYTES)
        view = await window.at(low, start + BLOCK_BYTES - low)
        for at in range(start, low - 1, -BLOCK_BYTES):
            try:
                info = parse_summary(view, at - low)
            except SummaryBad:
                continue
            end = at + info.size_bytes
            held = window.holds(info, at) and offset < end <= volume.size_bytes
            return info if held else None
        start = low - BLOCK_BYTES
    return None


async def _next_magic(window: _Window, at: int, end: int) -> int:
    """Where the next record may begin, `end` if nowhere."""
    step = SEARCH_BYTES
    while at + PREFIX_BYTES <= end:
        view = await window.at(at, PREFIX_BYTES)
        content = bytes(view[:step])
        step = min(2 * step, MAX_SEARCH_BYTES)
        found = content.find(RECORD_MAGIC, HASH_BYTES)
        while found >= 0:
            try:
                parse_header(content, found - HASH_BYTES)
            except RecordBad:
                if found - HASH_BYTES + PREFIX_BYTES > len(content):
                    break  # cut off by the window: look again from here
                found = content.find(RECORD_MAGIC, found + 1)
                continue
            return at + found - HASH_BYTES
        at = at + found - HASH_BYTES if found >= 0 else at + max(1, len(content) - PREFIX_BYTES)
    return end


async def _is_between_batches(window: _Window, start: int, end: int) -> bool:
    """The end of a batch (padding and trailer), empty batches, the header of the next: all of
    batches that were written just here."""
    size = min(end - start, SUMMARIES_BYTES)
    view = (await window.at(start, size))[:size]
    at = 0
    if start % BLOCK_BYTES == 0:
        at = _header_end(view, 0, window, start)
    while at < len(view):
        boundary = align(start + at + 1) - start
        while boundary <= len(view):
            try:
                info = parse_trailer(view, boundary)
                break
            except SummaryBad:
                boundary += BLOCK_BYTES
        else:
            return False
        trailer = boundary - summary_bytes(len(info.groups)) - FOOTER_BYTES
        if trailer < at or bytes(view[at:trailer]).strip(b"\xff"):
            return False
        if not window.holds(info, start + boundary - info.size_bytes):
            return False
        at = _header_end(view, boundary, window, start + boundary)
        if at == boundary:  # no header: the last batch of the volume
            return await _is_padding(window, start + at, end)
    return start + at == end


def _header_end(view: memoryview, at: int, window: _Window, offset: int) -> int:
    try:
        info = parse_summary(view, at)
    except SummaryBad:
        return at
    return at + summary_bytes(len(info.groups)) if window.holds(info, offset) else at


async def _is_padding(window: _Window, start: int, end: int) -> bool:
    """Padding (0xFF) up to a 4 KiB boundary, then nothing (0) or nothing at all. A sector of the
    padding may be 0, too: a power cut before the sync of the last record kept the others."""
    written = min(align(start), end)
    view = await window.at(start, written - start)
    while start < written:
        sector_end = min(start - start % SECTOR_BYTES + SECTOR_BYTES, written)
        size = sector_end - start
        if bytes(view[:size]) not in (PAD * size, bytes(size)):
            return False
        view, start = view[size:], sector_end
    while start < end:
        view = await window.at(start, 1)
        part = bytes(view[: end - start])
        if part.strip(b"\0"):
            return False
        start += len(part)
    return True
