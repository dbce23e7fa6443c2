"""Reading frames through the placement table; pins; taking released streams out of it.

Interface: `FrameReader`, `Frames.read_now`, `read`, `pin`, `unpin`, `release`, `runs`.

Invariants
- No byte is returned before its record's BLAKE3 and ids were checked (promise P3), but for
  `FrameReader`, whose records are opened by jobs that check them.
- A record is live if and only if placement points at exactly it. A mismatch is looked up again
  once: compaction may have moved the frame between look-up and read.
- A released stream keeps its placement while it is pinned; rows of table 0x03 remember it over a
  restart, which drops pins.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from o3storage._native import FileHandle, blake3
from o3storage.runtime.disk import DiskError, File
from o3storage.storage._core import Core
from o3storage.storage._records import (
    FRAME,
    HASH_BYTES,
    KEY_STREAM,
    PREFIX_BYTES,
    RECORD_MAGIC,
)
from o3storage.storage._rows import (
    RELEASED_TABLE,
    InSight,
    RowChange,
    Run,
    decode_run,
    placement_bounds,
    placement_key,
    released_key,
    split_placement_key,
)
from o3storage.storage._types import (
    STREAM_ID_BYTES,
    FrameBad,
    FrameMissing,
    FrameUnread,
    StoreOutOfService,
)
from o3storage.storage._volume import align
from o3storage.storage.index import BadBlock, Miss

if TYPE_CHECKING:
    from o3storage.storage._store import Store

RUNS_PER_STEP = 256
"""Runs of a stream that are taken out of the placement table in one step."""
RELEASED_ROWS = 1000
"""Runs that the entry which releases their streams takes out itself: one step on the loop handles
no more rows (DESIGN 6), and the index takes a batch of some thousands. The rest is reaped later."""
READ_TRIES = 3

FrameSpot = tuple[int, int]
"""(offset in its file, record bytes)."""

_FRAME_START = RECORD_MAGIC + bytes((FRAME, KEY_STREAM))
_KIND_END = HASH_BYTES + len(_FRAME_START)
_STREAM_AT = HASH_BYTES + 16
_NUMBER_AT = _STREAM_AT + STREAM_ID_BYTES
_unpack_number = struct.Struct("<Q").unpack_from


class Frames:
    """The read side of streams on one disk."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.moving: set[bytes] | None = None
        """While compaction moves frames: streams that were reaped meanwhile."""
        self.on_bad_block: Callable[[BadBlock], None] = _ignore
        self._pins: dict[bytes, int] = {}
        self._waiting: set[bytes] = set()
        """Released streams whose pins hold them."""
        self._reap_queue: deque[bytes] = deque()
        self._reaper: asyncio.Task[None] | None = None

    # --- reading

    def read_now(self, stream: bytes, number: int) -> memoryview | None:
        run_at = self._find_now(stream, number)
        if run_at is None:
            return None
        run, first = run_at
        volume = self.core.volumes.get(run.volume)
        if volume is None or volume.file is None:
            return None
        offset, size = frame_place(run, number - first)
        data = volume.file.read_now(offset, size)
        if data is None:
            return None
        return check_frame_record(data, stream, number)

    def _find_now(self, stream: bytes, number: int) -> tuple[Run, int] | None:
        """(run, its first frame) or None if the disk must be asked. Raises FrameMissing."""
        index = self.core.index
        key = placement_key(stream, number)
        if number == 0:
            value = index.get_now(key)
            if value is Miss.MISS:
                return None
            if value is None:
                raise FrameMissing(f"frame 0 of stream {stream.hex()} is not on this disk")
            return decode_run(value), 0
        rows = index.scan_now(key, placement_bounds(stream)[1], 1)
        if rows is Miss.MISS:
            return None
        return _run_of(rows, stream, number)

    async def find(self, stream: bytes, number: int) -> tuple[Run, int]:
        """(run that holds the frame, the run's first frame). Raises FrameMissing."""
        found = self._find_now(stream, number)
        if found is not None:
            return found
        key = placement_key(stream, number)
        rows = await self.core.index.scan(key, placement_bounds(stream)[1], 1)
        return _run_of(rows, stream, number)

    async def read(self, stream: bytes, number: int) -> memoryview:
        """Raises FrameMissing, FrameBad, FrameUnread."""
        problem: FrameBad | FrameMissing | FrameUnread | None = None
        seen: Run | None = None
        for _ in range(READ_TRIES):
            run, first = await self.find(stream, number)
            if not self.is_here(run):
                run, first = await self._find_here(stream, number) or (run, first)
            if run == seen and problem is not None:
                if isinstance(problem, FrameMissing):
                    # It is placed, but its volume is not here: `verify --repair` set it aside.
                    raise FrameBad(f"frame {number} of stream {stream.hex()}: {problem}")
                raise problem
            seen = run
            offset, size = frame_place(run, number - first)
            try:
                volume = await self.core.open_for_read(run.volume)
            except FrameMissing as error:
                problem = error
                continue
            file = volume.file
            if file is None:
                # The store closes, or so many others were opened since.
                where = f"frame {number} of stream {stream.hex()}"
                problem = FrameUnread(f"{where} cannot be read: its file is closed")
                continue
            volume.in_use += 1
            try:
                data = await file.read(offset, size)
                return check_frame_record(data, stream, number)
            except FrameBad as error:
                problem = error
            except DiskError as error:
                problem = FrameUnread(
                    f"frame {number} of stream {stream.hex()} cannot be read: {error}"
                )
            finally:
                volume.in_use -= 1
                await self.core.release(volume)
        assert problem is not None
        raise problem

    async def runs(self, stream: bytes) -> list[tuple[int, Run]]:
        """(first frame, run) of everything placed, ascending. The stream's table rows are read in
        steps."""
        low, high = placement_bounds(stream)
        found: list[tuple[int, Run]] = []
        while True:
            rows = await self.core.index.scan(low, high, RUNS_PER_STEP)
            found += [(split_placement_key(key)[1], decode_run(value)) for key, value in rows]
            if len(rows) < RUNS_PER_STEP:
                return found[::-1]
            low = rows[-1][0] + b"\0"

    def held_now(self, stream: bytes) -> int | None:
        """Frames of the stream that are placed; None: the disk must be asked, or runs are many."""
        rows = self.core.index.scan_now(*placement_bounds(stream), RUNS_PER_STEP)
        if rows is Miss.MISS or len(rows) == RUNS_PER_STEP:
            return None
        in_sight = InSight()
        held = 0
        for key, value in rows:
            run = decode_run(value)
            if self.is_here(run):
                held += in_sight.frames(stream, split_placement_key(key)[1], run)
        return held

    async def _find_here(self, stream: bytes, number: int) -> tuple[Run, int] | None:
        """As `find`, past rows of volumes that are gone: what was stored again may be in a longer
        run, which does not take the place of their rows."""
        for first, run in reversed(await self.runs(stream)):
            if first <= number < first + run.frames and self.is_here(run):
                return run, first
        return None

    def is_here(self, run: Run) -> bool:
        """Whether its volume is: rot may take the record of a move, and the row tells of a volume
        that was freed since; and `verify --repair` sets volumes aside."""
        return run.volume in self.core.volumes

    # --- pins and release

    def pin(self, stream: bytes) -> None:
        self._pins[stream] = self._pins.get(stream, 0) + 1

    def unpin(self, stream: bytes) -> None:
        count = self._pins[stream] - 1
        if count:
            self._pins[stream] = count
            return
        del self._pins[stream]
        if stream in self._waiting:
            self._waiting.discard(stream)
            self._reap(stream)

    def is_pinned(self, stream: bytes) -> bool:
        return stream in self._pins

    def released(self, streams: Iterable[bytes]) -> list[RowChange]:
        """Rows to write with the entry that releases `streams`: their placement goes, or, where
        that has to wait, a row of table 0x03 remembers them."""
        changes: list[RowChange] = []
        for stream in streams:
            if stream in self._pins:
                self._waiting.add(stream)
                rows = None
            else:
                rows = self._placed_now(stream) if len(changes) < RELEASED_ROWS else None
                if rows is None:
                    self._reap_soon(stream)
            if rows is None:
                changes.append((released_key(stream), b""))
            else:
                self._take_out(stream, rows)
                changes += [(key, None) for key, _ in rows]
        return changes

    async def reap_left_over(self) -> None:
        """What was released before this open, or could not be reaped when it was."""
        low, high = RELEASED_TABLE, bytes([RELEASED_TABLE[0] + 1])
        while True:
            try:
                rows = await self.core.index.scan(low, high, RUNS_PER_STEP)
                for key, _ in rows:
                    if key[1:] not in self._pins:
                        await self._reap_slowly(key[1:])
                await asyncio.sleep(0)
            except BadBlock as bad:
                self.on_bad_block(bad)
                return
            if len(rows) < RUNS_PER_STEP:
                return
            low = rows[-1][0] + b"\0"

    def _placed_now(self, stream: bytes) -> list[tuple[bytes, bytes]] | None:
        """All rows of a stream's placement, or None: the disk must be asked, or they are many."""
        low, high = placement_bounds(stream)
        index = self.core.index
        try:
            row = index.first_now(low)
            if row is None:
                return []
            # The key of frame 0 is the last one of its stream: most have no other.
            if row is not Miss.MISS and row[0] == placement_key(stream, 0):
                return [row]
            rows = index.scan_now(low, high, RUNS_PER_STEP)
        except BadBlock:
            return None  # the slow way meets it again
        return None if rows is Miss.MISS or len(rows) == RUNS_PER_STEP else rows

    def _reap(self, stream: bytes) -> None:
        rows = self._placed_now(stream)
        if rows is None:
            self._reap_soon(stream)
        else:
            self._drop(stream, rows, last=True)

    def _reap_soon(self, stream: bytes) -> None:
        self._reap_queue.append(stream)
        if self._reaper is None or self._reaper.done():
            self._reaper = asyncio.get_running_loop().create_task(self._reap_all())

    async def _reap_all(self) -> None:
        while self._reap_queue and not self.core.out_of_service:
            try:
                await self._reap_slowly(self._reap_queue.popleft())
            except StoreOutOfService:
                return
            except BadBlock as bad:  # its row of table 0x03 stays: reaped after the repair
                self.on_bad_block(bad)

    async def _reap_slowly(self, stream: bytes) -> None:
        low, high = placement_bounds(stream)
        while True:
            rows = await self.core.index.scan(low, high, RUNS_PER_STEP)
            rows = [self._as_now(row) for row in rows]
            # Until none is found: compaction may have placed a run while the table was read. What
            # it places from here on leaves out a stream of which something was dropped.
            self._drop(stream, rows, last=not rows)
            if not rows:
                return

    def _as_now(self, row: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
        """A row that was read a while ago: compaction may have written it since."""
        value = self.core.index.get_now(row[0])
        return (row[0], value) if isinstance(value, bytes) else row

    def _drop(self, stream: bytes, rows: list[tuple[bytes, bytes]], *, last: bool) -> None:
        changes: list[RowChange] = [(key, None) for key, _ in rows]
        if last:
            changes.append((released_key(stream), None))
        self.core.write_rows(changes)
        self._take_out(stream, rows)

    def _take_out(self, stream: bytes, rows: list[tuple[bytes, bytes]]) -> None:
        """Account for placement that goes."""
        if self.moving is not None:
            self.moving.add(stream)
        for _, value in rows:
            self.core.count_garbage(decode_run(value))

    async def close(self) -> None:
        task, self._reaper = self._reaper, None
        if task is not None:
            await task


class FrameReader:
    """Reads the frames of one stream, which the caller pins, one after the other: one look-up for
    each run. Nothing here waits, and nothing is checked but the ids: see `record_now`.

    A run that was looked up stays good while its volume is there: what compaction moved stands in
    both places, and a record that is not the one asked for shows by its ids."""

    __slots__ = ("_first", "_frames", "_run", "_stream")

    def __init__(self, store: Store, stream: bytes) -> None:
        self._frames = store._frames
        self._stream = stream
        self._run: Run | None = None
        self._first = 0

    def record_now(self, number: int) -> bytes | None:
        """The frame's record as it stands on the disk, ids as asked, BLAKE3 *not* checked: what
        takes it (`StreamSealer.open_record_job`) does that. Its ciphertext begins at
        PREFIX_BYTES. None: read it by `Store.read_frame`, which finds out what is wrong.
        """
        placed = self._placed_now(number)
        if placed is None:
            return None
        run, file = placed
        offset, size = frame_place(run, number - self._first)
        data = file.read_now(offset, size)
        if data is None or not _is_frame(data, self._stream, number):
            self._run = None
            return None
        return data

    def places_now(self, number: int, count: int) -> tuple[FileHandle, list[FrameSpot]] | None:
        """Where at most `count` frames from `number` on stand, all of them in one file and not
        checked in any way; None: read them by `Store.read_frame`. What is looked up stays right as
        long as the file is open, which the handle sees to."""
        placed = self._placed_now(number)
        if placed is None:
            return None
        run, file = placed
        handle = file.native_handle()
        if handle is None:
            return None
        at = number - self._first
        return handle, [frame_place(run, n) for n in range(at, min(run.frames, at + count))]

    def _placed_now(self, number: int) -> tuple[Run, File] | None:
        run = self._run
        if run is None or not 0 <= number - self._first < run.frames:
            try:
                found = self._frames._find_now(self._stream, number)
            except FrameMissing:
                return None
            if found is None:
                return None
            run, self._first = found
            self._run = run
        volume = self._frames.core.volumes.get(run.volume)
        if volume is None or volume.file is None:
            return None
        return run, volume.file


def _ignore(_: BadBlock) -> None:
    pass


def frame_place(run: Run, at: int) -> FrameSpot:
    """Of the run's frame number `at`."""
    if at == run.frames - 1:
        return run.offset + at * align(run.record_bytes), run.last_bytes
    return run.offset + at * align(run.record_bytes), run.record_bytes


def _run_of(rows: list[tuple[bytes, bytes]], stream: bytes, number: int) -> tuple[Run, int]:
    if rows:
        _, first = split_placement_key(rows[0][0])
        run = decode_run(rows[0][1])
        if number < first + run.frames:
            return run, first
    raise FrameMissing(f"frame {number} of stream {stream.hex()} is not on this disk")


def _is_frame(data: bytes, stream: bytes, number: int) -> bool:
    """The record's header says that it is this frame."""
    return (
        len(data) > PREFIX_BYTES
        and data[_STREAM_AT:_NUMBER_AT] == stream
        and _unpack_number(data, _NUMBER_AT)[0] == number
        and data[HASH_BYTES:_KIND_END] == _FRAME_START
    )


def check_frame_record(data: bytes, stream: bytes, number: int) -> memoryview:
    """The ciphertext in a frame's record. Raises FrameBad."""
    view = memoryview(data)
    if not _is_frame(data, stream, number):
        raise FrameBad(f"frame {number} of stream {stream.hex()}: another record stands there")
    if blake3(view[HASH_BYTES:]) != data[:HASH_BYTES]:
        raise FrameBad(f"frame {number} of stream {stream.hex()}: its BLAKE3 does not match")
    return view[PREFIX_BYTES:]
