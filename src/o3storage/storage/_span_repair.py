"""Repair of a span of index rows that cannot be trusted, while the rest serves (DESIGN 4, "Index").

A read that met a bad block told its key span. The rows of the span are gathered from the volumes,
as a rebuild would, and put in place of the bad ones in steps of STEP_ROWS rows.

Where a record that may have said what belongs there cannot be read, the rows that are left are
not those that stood there. If nobody else has them the span is refused until an operator decides.
Where `Others` have them (the disk is a cluster member's), the groups with rows there count as
`LogState.rows_lost`, and what is left takes the place of the span: it serves nobody, and the
snapshot that such a group gets writes all of its rows (`_install`).

A frame of the log is its own placement, and one that rotted says where it was no more. Nothing
else depends on it, so the span is put right without it: but it has no place then, and no scrub
meets what is bad. A note (`PLACES_LOST`) says so, and `Others` hear of it.

Interface: `SpanRepair.wanted`, `repair`, `close`; `Others`.

Invariants
- What is written to the span while the volumes are read is seen too (`Core.write_rows` tells), and
  counts more than anything that is read.
- Each step drops a part of the span and writes its rows at once: a reader meets the bad block, or
  what is right, never a row that is missing for a while.
- Compaction rests meanwhile: no change is on its way from one volume to another.
- No row of what is left is read or applied onto: `Others.lost` comes before the first is written,
  and so is it durable that the rows are lost.
- A snapshot is being installed before or after a span is filled with what is left, never meanwhile
  (`Core.replacing`).
- The note that places may be lost is durable before the first of them is.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from o3storage.runtime.disk import DiskError
from o3storage.storage._compaction import Compactor
from o3storage.storage._core import Core
from o3storage.storage._frames import Frames
from o3storage.storage._log import LogWriter
from o3storage.storage._records import (
    FRAME,
    LOCAL,
    OUTCOME,
    STATE,
    RecordBad,
    StateRow,
    decode_rows,
    decode_state,
    open_body,
)
from o3storage.storage._rows import (
    NOTE_TABLE,
    PLACEMENT_TABLE,
    PLACES_LOST,
    RELEASED_TABLE,
    RESTATED_KEY,
    RowChange,
    Run,
    decode_u64,
    encode_holes,
    encode_run,
    placement_key,
    released_key,
    rows_lost_key,
)
from o3storage.storage._scan import Scanned, scan_records
from o3storage.storage._types import MIB, GroupId, StoreError, StoreFull
from o3storage.storage._volume import VolumeKind
from o3storage.storage.index import MAX_BATCH_ROWS, BadBlock

PAUSE_BYTES = 1 * MIB
STEP_ROWS = 1000
"""Rows that one step on the event loop handles (DESIGN 6)."""
MAX_SPAN_ROWS = 400_000
"""Rows of one span in memory, with what is written to it meanwhile: a whole table of small rows.
Beyond it only a rebuild helps."""
RETRY_S = 5.0
MAX_RETRY_S = 600.0
"""Each try reads all volumes, and what is in its way may stay."""


class Others(Protocol):
    """Who has the rows of this disk's groups besides it."""

    async def may_lose(self, low: bytes, high: bytes | None, /) -> Sequence[GroupId]:
        """The groups with rows in the span (None: to the end), if others can give all of them
        back; it may wait until they can. Raises StoreError if they cannot, or cannot yet."""
        ...

    def lost(self, groups: Sequence[GroupId], /) -> None:
        """Their rows are: from here on nothing of them is read or applied until a snapshot of
        each was installed. Called in the turn of the loop in which `may_lose` returned."""
        ...

    def places_lost(self) -> None:
        """Frames that rows name may have no place on this disk. Called before it is so, and once
        more when the places are those that are left."""
        ...


class AllGroups:
    """At the open: nothing is read or applied yet, and whose the rows are is not known."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def may_lose(self, _low: bytes, _high: bytes | None, /) -> Sequence[GroupId]:
        return sorted(self._core.groups)

    def lost(self, _groups: Sequence[GroupId], /) -> None:
        return

    def places_lost(self) -> None:
        return


class SpanRepair:
    """One span at a time."""

    def __init__(self, core: Core, log: LogWriter, frames: Frames, compactor: Compactor) -> None:
        self.core = core
        self.log = log
        self.frames = frames
        self.compactor = compactor
        self.others: Others | None = None
        """None: nobody else has what is lost here."""
        self._wanted: list[tuple[bytes, bytes | None]] = []
        self._task: asyncio.Task[None] | None = None
        self._mending = asyncio.Lock()
        self._closed = False

    def wanted(self, bad: BadBlock) -> None:
        """A read met this block. Returns at once."""
        span = (bad.key_low, bad.key_high)
        if span not in self._wanted:
            self._wanted.append(span)
        if self._closed or not self.core.options.background:
            return
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        self._closed = True
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        retry_s = RETRY_S
        while self._wanted and not self.core.out_of_service:
            try:
                await self.repair()
                retry_s = RETRY_S
            except StoreFull:
                await asyncio.sleep(RETRY_S)
            except (StoreError, DiskError, BadBlock):
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, MAX_RETRY_S)

    async def repair(self) -> int:
        """Repair the first wanted span (after the one under way); returns its rows.
        Raises StoreError, DiskError."""
        async with self._mending:
            return await self._repair_first() if self._wanted else 0

    async def _repair_first(self) -> int:
        low, high = self._wanted[0]
        overlay: dict[bytes, bytes | None] = {}
        async with self.compactor.rest():
            self.core.watch = (low, high, overlay)
            try:
                await self.log.settle()  # outcomes that wait in memory are not in a volume yet
                gather = _Span(low, high)
                for number in sorted(self.core.volumes):
                    await self._gather(number, gather, overlay)
                if gather.lacks:
                    async with self.core.replacing:
                        await self._lose(gather)
                        written = await self._put_right(gather, overlay)
                else:
                    written = await self._put_right(gather, overlay)
            finally:
                self.core.watch = None
        self._wanted.pop(0)
        self.core.stats.spans_repaired += 1
        # streams whose release was met by the bad span, too
        await self.frames.reap_left_over()
        return written

    async def _lose(self, gather: _Span) -> None:
        """The span is going to hold what is left of it. Raises StoreError."""
        others, core = self.others, self.core
        if others is None:  # (who had them is gone meanwhile)
            raise StoreError(gather.lacks)
        groups = await others.may_lose(gather.low, gather.high)
        core.rows_lost.update(dict.fromkeys(groups))
        core.stats.spans_lost += 1
        others.lost(groups)
        known = encode_holes(core.holes)
        await self.log.write_rows([(rows_lost_key(group), known) for group in groups])

    async def _put_right(self, gather: _Span, overlay: dict[bytes, bytes | None]) -> int:
        if not gather.lacks_places:
            return await self._replace(gather, overlay)
        await self.log.write_rows([(NOTE_TABLE + PLACES_LOST, b"")])
        if self.others is not None:
            self.others.places_lost()
        written = await self._replace(gather, overlay)
        if self.others is not None:
            self.others.places_lost()
        return written

    async def _replace(self, gather: _Span, overlay: dict[bytes, bytes | None]) -> int:
        """Put what was gathered in place of the span, part by part; returns the rows written."""
        fresh: dict[bytes, bytes | None] = {}
        self.core.watch = (gather.low, gather.high, fresh)
        written = 0
        low = gather.low
        changed = (key for key in overlay if key not in gather.rows)
        keys = await _sorted(itertools.chain(gather.rows, changed))
        part = list(itertools.islice(keys, STEP_ROWS))
        while True:
            following = list(itertools.islice(keys, STEP_ROWS))
            high = following[0] if following else gather.high
            # from here to the write nothing waits: no reader comes in between
            rows: dict[bytes, bytes] = {}
            for key in part:
                value = overlay[key] if key in overlay else self._standing(gather, key)
                if value is not None:
                    rows[key] = value
            for key in [k for k in fresh if k >= low and (high is None or k < high)]:
                value = fresh.pop(key)
                if value is None:
                    rows.pop(key, None)
                else:
                    rows[key] = value
            self.core.index.drop_range(low, high)
            changes: list[RowChange] = sorted(rows.items())
            for at in range(0, len(changes), MAX_BATCH_ROWS):
                self.core.index.write(changes[at : at + MAX_BATCH_ROWS])
            written += len(rows)
            if not following:
                return written
            part, low = following, following[0]
            await asyncio.sleep(0)

    async def _gather(self, number: int, gather: _Span, overlay: dict[bytes, bytes | None]) -> None:
        volume = self.core.volumes.get(number)
        if volume is None:
            return
        sealer = await self.core.sealer_of(volume)
        since = 0
        async for found in scan_records(self.core, volume, medium=False):
            since += found.size_bytes
            if since >= PAUSE_BYTES:
                await asyncio.sleep(0)
                since = 0
            header = found.header
            if found.may_hold_rows:
                # An older row in the place of the one that was lost would be served as if right.
                gather.lacks = (
                    f"the index cannot be mended: {volume.path} cannot be read at {found.offset}, "
                    "and may say what belongs there; stop the store and run `o3storage verify "
                    "--repair`, or empty this node's data directory and let it join again"
                )
                if self.others is None:
                    raise StoreError(gather.lacks)
            if header is None:
                # (Where frames of bulk volumes are is said in the log.)
                if volume.kind is VolumeKind.LOG or found.may_hold_rows:
                    gather.lacks_places |= gather.low[:1] <= PLACEMENT_TABLE
                continue
            if header.kind == FRAME:
                gather.take_frame(number, found)
                continue
            if header.kind not in (OUTCOME, LOCAL, STATE):
                continue
            try:
                body = open_body(found.data, header, sealer, found.offset)
                if header.kind == STATE:
                    gather.take(decode_state(body))
                else:
                    rows, released = decode_rows(body)
                    rows += [(released_key(stream), b"") for stream in released]
                    gather.take([(header.sequence, key, value) for key, value in rows])
            except RecordBad:
                continue
            if len(gather.rows) + len(overlay) > MAX_SPAN_ROWS:
                raise StoreError(
                    "too much of the index is damaged to mend it in place: stop the store, remove "
                    "its index directory, start it"
                )

    def _standing(self, gather: _Span, key: bytes) -> bytes | None:
        """The row, if it counts: deleted ones and runs of released streams are gone."""
        sequence, value = gather.rows[key]
        if sequence < gather.void_below:
            return None
        released = key[:1] == PLACEMENT_TABLE and key[1:17] in gather.released
        if released and not self.frames.is_pinned(key[1:17]):  # (else it is not reaped yet)
            return None
        return value


async def _sorted(keys: Iterable[bytes]) -> Iterator[bytes]:
    """In order, sorted in steps."""
    parts: list[list[bytes]] = []
    every = iter(keys)
    while part := sorted(itertools.islice(every, STEP_ROWS)):
        parts.append(part)
        await asyncio.sleep(0)
    return heapq.merge(*parts)


class _Span:
    """The changes of a span, the last of each key."""

    def __init__(self, low: bytes, high: bytes | None) -> None:
        self.low = low
        self.high = high
        self.rows: dict[bytes, tuple[int, bytes | None]] = {}
        self.released: set[bytes] = set()
        self.void_below = 0
        """Changes with a lower sequence were restated by a repair."""
        self.lacks = ""
        """Why this may not be all that belongs there; empty if it is, but for places of frames."""
        self.lacks_places = False
        """A frame may be bad whose place belongs there."""

    def covers(self, key: bytes) -> bool:
        return key >= self.low and (self.high is None or key < self.high)

    def take(self, changes: Sequence[StateRow]) -> None:
        for sequence, key, value in changes:
            if key[:1] == RELEASED_TABLE:
                self._note_release(key)
            elif key == RESTATED_KEY and value is not None:
                self.void_below = max(self.void_below, decode_u64(value))
            if not self.covers(key):
                continue
            old = self.rows.get(key)
            if old is None or old[0] <= sequence:  # (of a key that comes twice the last counts)
                self.rows[key] = (sequence, value)

    def _note_release(self, key: bytes) -> None:
        low = PLACEMENT_TABLE + key[1:]
        if self.low <= low + b"\xff\xff\xff\xff" and (self.high is None or low < self.high):
            self.released.add(key[1:])

    def take_frame(self, volume: int, found: Scanned) -> None:
        header = found.header
        assert header is not None
        if header.sequence:
            size = header.size_bytes
            run = encode_run(Run(volume, found.offset, 1, size, size))
            self.take([(header.sequence, placement_key(header.a, header.b), run)])
