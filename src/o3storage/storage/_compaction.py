"""Compaction: what is still needed of a volume that is mostly garbage moves to the bulk, and the
volume is freed (DESIGN 4, "Compaction").

Interface: `Compactor.candidate`, `compact`.

What moves, and as what
- live frames (placement points at exactly them) as frames, placed anew through the log;
- rows that are still current as state records with the sequence of their change;
- deletions and released streams as state records, while another volume may hold an older change:
  one whose `born_sequence` is below theirs. (State records written into a volume after its birth
  are of rows that were current then, so a volume born after a deletion holds nothing it hides.)
- entries never move; a log volume goes only when the replay floor and every follower are past it.

Invariants
- A volume is dropped only after everything that moved is synced, placement included.
- A run of frames is replaced whole or not at all: all new runs of a stream go in one log record.
- A volume with bad records that are still placed is kept, and streams with such a frame stay in it
  whole. (Their placement is not touched: a frame that is stored again meanwhile has a row of its
  own, which nothing written later may take back.)
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from o3storage.storage._bulk import BulkWriter, RecordOwner, RunBuilder
from o3storage.storage._core import Core, Volume
from o3storage.storage._flush import Flusher
from o3storage.storage._frames import Frames, frame_place
from o3storage.storage._groups import unpack_place
from o3storage.storage._log import LogWriter
from o3storage.storage._log_batch import PlacedRun
from o3storage.storage._pace import Pace
from o3storage.storage._records import (
    FLAG_LAST,
    FRAME,
    LOCAL,
    OUTCOME,
    PREFIX_BYTES,
    STATE,
    RecordBad,
    StateRow,
    decode_rows,
    decode_state,
    encode_state,
    open_body,
    parse_header,
    stored_body,
)
from o3storage.storage._rows import (
    PLACEMENT_TABLE,
    RELEASED_TABLE,
    Run,
    decode_run,
    released_key,
)
from o3storage.storage._scan import Scanned, scan_records
from o3storage.storage._scrub import BadFrame, placed_bad_frames
from o3storage.storage._space import SpaceAccount
from o3storage.storage._types import KIB, FrameMissing, SealedFrame
from o3storage.storage._unreadable import read_around
from o3storage.storage._volume import HEADER_BYTES, PAD, VolumeKind, align
from o3storage.storage.index import Miss

STATE_BODY_BYTES = 48 * KIB
"""Rows of one state record: below the size that is aligned on its own."""
PIECE_S = 0.0005
"""Work on the loop between two rests. At 70 % of the peak most requests find the loop free and are
answered in 0.2 to 0.3 ms; with pieces of 2 ms, and a third of the time for compaction, every third
request waited for up to 2 ms."""
LOOK_RECORDS = 4
"""Between two looks at the time, which costs as much as a small record's header."""
LOOK_ROWS = 16
"""The same among the rows of one record, which may be hundreds."""
PLACE_RUNS = 100
"""Runs that one log record places: each is a row that one step on the loop writes, in some 5 us."""
SYNC_RUNS = 500
"""Streams of one frame that are gathered for a sync of the bulk."""
PAUSE_BYTES = 256 * KIB
"""After so much was read, if no piece of work was over before, the compaction rests to keep its
rate."""
MIN_GARBAGE_BYTES = 64 * KIB
"""A volume with less garbage is left alone whatever its ratio."""


class _Mover(RecordOwner):
    """Owner of what compaction writes."""

    __slots__ = ("rows_lost", "starts", "streams")

    def __init__(self) -> None:
        super().__init__()
        self.streams: dict[bytes, RunBuilder] = {}
        self.rows_lost = False
        """Something could not be read that may have said how rows changed."""
        self.starts: set[tuple[bytes, int]] = set()
        """(stream, frame) where a run began that is being moved. One begins there again, so that
        each placement row is replaced: one left over would point into the freed volume."""

    def placed(self, frame: SealedFrame, volume: Volume, offset: int, size: int) -> None:
        self.hold(volume, size)
        runs = self.streams.get(frame.stream)
        if runs is None:
            runs = self.streams[frame.stream] = RunBuilder()
        if (frame.stream, frame.number) in self.starts:
            runs.cut()
        runs.add(frame.number, volume.volume, offset, size)

    def leave(self, stream: bytes) -> None:
        """Its placement stays as it is, and what was written of it is garbage (see `discard`)."""
        self.streams.pop(stream, None)


class Compactor:
    """One volume at a time."""

    def __init__(
        self, core: Core, log: LogWriter, bulk: BulkWriter, frames: Frames, flusher: Flusher
    ) -> None:
        self.core = core
        self.log = log
        self.bulk = bulk
        self.frames = frames
        self.flusher = flusher
        self.pace = Pace(PIECE_S, makes_up=True)
        self._busy = asyncio.Lock()
        self._broken_off: _Mover | None = None
        """Of a compaction that an error ended: what it placed may wait for space in the log."""

    def rest(self) -> asyncio.Lock:
        """Held while something else must see the volumes at rest."""
        return self._busy

    # --- choosing

    def candidate(self, *, ratio: float | None = None) -> Volume | None:
        """The volume with the largest part of garbage that may be freed, if any is worth it.
        With a `ratio` of the caller's space is short: compaction need not give way to requests."""
        least = self.core.options.compaction_garbage_ratio if ratio is None else ratio
        best: Volume | None = None
        best_ratio = 0.0
        waiting_bytes = 0
        changes = sum(volume.change_bytes for volume in self.core.volumes.values())
        # what part of all recorded changes still stands: about what the index's tables take
        standing = min(1.0, (self.core.index.disk_bytes + 1) / (changes + 1))
        for volume in self.core.volumes.values():
            live = volume.placed_bytes + int(volume.change_bytes * standing)
            garbage = volume.size_bytes - HEADER_BYTES - live
            if not self._may_free(volume) or garbage < min(
                MIN_GARBAGE_BYTES, self.core.options.log_volume_bytes // 8
            ):
                continue
            found = garbage / max(1, volume.size_bytes)
            if found >= least:
                waiting_bytes += volume.size_bytes
                if found > best_ratio:
                    best, best_ratio = volume, found
        self.pace.ask(waiting_bytes, urgent=ratio is not None)
        return best

    def is_worth_it(self, volume: Volume | None, ratio: float) -> bool:
        """Whether the volume that is being written holds so much garbage."""
        if volume is None:
            return False
        garbage = volume.size_bytes - HEADER_BYTES - volume.placed_bytes - volume.change_bytes
        return garbage >= max(MIN_GARBAGE_BYTES, int(ratio * volume.size_bytes))

    def _may_free(self, volume: Volume) -> bool:
        if not volume.sealed or volume.holds or volume.keep or volume is self.bulk.volume:
            return False
        if volume.kind is VolumeKind.BULK:
            return True
        return volume.volume < min(
            self.flusher.mark.floor_volume, self.flusher.needed_by_followers()
        )

    # --- one volume

    async def compact(self, volume: Volume) -> int:
        """Move what is needed, free the volume; returns the bytes freed (0: it was kept).
        Raises StoreFull, StoreOutOfService, DiskError."""
        async with self._busy:
            if volume.volume not in self.core.volumes or not self._may_free(volume):
                return 0
            async with self._moving() as (mover, reaped):
                return await self._compact(volume, mover, reaped)

    @contextlib.asynccontextmanager
    async def _moving(self) -> AsyncIterator[tuple[_Mover, set[bytes]]]:
        """While frames move: what owns them, and the streams that are reaped meanwhile, which the
        log does not place. After an error it goes on until the log has written what was placed:
        else streams that were released would be placed again, and volumes freed that others of
        these frames are in. Raises StoreFull as long as the log waits for space."""
        if self._broken_off is not None:
            await self.log.settle()
            self._end(self._broken_off)
        else:
            self.core.moving_since = self.core.sequence
        reaped: set[bytes] = set()
        self.frames.moving = reaped
        mover = _Mover()
        try:
            yield mover, reaped
        except BaseException:
            self._broken_off = mover
            raise
        self._end(mover)
        self.core.moving_since = None

    def _end(self, mover: _Mover) -> None:
        self._broken_off = None
        mover.discard()
        self.frames.moving = None
        self.log.place_runs([], [], unless=())

    async def _compact(self, volume: Volume, mover: _Mover, reaped: set[bytes]) -> int:
        before = self.bulk.written_bytes
        if await self._is_dead(volume):
            # The outcome of whatever released its frames is durable first: an offline check
            # cannot apply entries, and would miss the frames.
            await self.log.settle()
            freed = volume.size_bytes
            await self._drop(volume)
            self.core.stats.compactions += 1
            return freed
        cuts = self.log.cuts
        bad = await self._copy(volume, mover, reaped)
        if bad:
            for damaged in await placed_bad_frames(self.core, volume.volume):
                mover.leave(damaged.stream)
        await self._place(mover, reaped, whole=True)
        # Rows that were lost here are in the index alone: who rebuilds it has to find that out.
        # (`verify --repair` writes them anew and sets the volume aside.)
        if mover.rows_lost or ((bad or self.log.cuts != cuts) and await self._placed_in(volume)):
            volume.keep = True
            return 0
        freed = volume.size_bytes - (self.bulk.written_bytes - before)
        self._forget_entries(volume)
        await self._drop(volume)
        self.core.stats.compactions += 1
        self.core.stats.compacted_bytes += volume.size_bytes
        return freed

    async def set_aside(self, volume: Volume, directory: str) -> tuple[str, int] | None:
        """Move what can be read out of a volume in which something cannot, and the file itself to
        `directory`. Frames that are lost keep a placement, which says where they stood. Returns
        where the file is and how many these are; None if the volume cannot be spared. Nothing may
        be stored meanwhile. Raises StoreFull, StoreOutOfService, DiskError."""
        self.pace.ask(0, urgent=True)  # somebody waits for it
        async with self._busy:
            volume.keep = False
            if volume.volume not in self.core.volumes or not self._may_free(volume):
                return None
            lost = await placed_bad_frames(self.core, volume.volume)
            async with self._moving() as (mover, reaped):
                await self._copy(volume, mover, reaped)
                await self._place(mover, reaped, whole=True)
                await self._place_lost(lost, volume, reaped)
                if await self._placed_in(volume) > len(lost):
                    volume.keep = True
                    return None
                self._forget_entries(volume)
                path = await self.core.set_aside(volume, directory)
                if volume.kind is VolumeKind.BULK:
                    self.log.note_bulk(volume.volume, None)
                await self.log.settle()
                return path, len(lost)

    async def _drop(self, volume: Volume) -> None:
        await self.core.drop_volume(volume)
        if volume.kind is VolumeKind.BULK:
            self.log.note_bulk(volume.volume, None)

    async def _is_dead(self, volume: Volume) -> bool:
        """The account says that nothing of a bulk volume is placed, and the headers of its records
        agree: bodies need not be read, so space comes back as fast as it was overwritten."""
        if volume.kind is not VolumeKind.BULK or volume.placed_bytes > 0 or volume.change_bytes:
            return False
        volume = await self.core.open_for_read(volume.volume)
        volume.in_use += 1
        try:
            return await self._is_all_dead(volume)
        finally:
            volume.in_use -= 1

    async def _is_all_dead(self, volume: Volume) -> bool:
        assert volume.file is not None
        at = HEADER_BYTES
        self.pace.begin()
        while at + PREFIX_BYTES <= volume.size_bytes:
            if self.pace.is_long():
                await self.pace.rest()
            gap = align(at) - at
            data = await read_around(volume.file.read, at, gap + PREFIX_BYTES)
            if data[:gap].strip(PAD):
                return False  # a packed record: the slow way looks closer
            at += gap
            if at >= volume.size_bytes:
                break
            try:
                header = parse_header(data[gap:])
            except RecordBad:
                return False  # damage, as well
            if header.kind != FRAME:
                return False
            try:
                run, _ = await self.frames.find(header.a, header.b)
            except FrameMissing:
                run = None
            if run is not None and run.volume == volume.volume:
                return False
            at += header.size_bytes
        return True

    async def _copy(self, volume: Volume, mover: _Mover, reaped: set[bytes]) -> bool:
        """What is needed, to the bulk; streams of one frame are placed there at once, all others
        by the caller. Returns whether anything in the volume could not be read."""
        bad = False
        rows: list[StateRow] = []
        rows_bytes = 0
        since = 0
        singles = 0
        records = 0
        self.pace.begin()
        async for found in scan_records(self.core, volume):
            since += found.size_bytes
            records += 1
            if since >= PAUSE_BYTES or (records % LOOK_RECORDS == 0 and self.pace.is_long()):
                await self.pace.rest(since / self.core.options.compaction_bytes_per_s)
                since = 0
            if found.header is None:
                bad = True
                mover.rows_lost |= found.may_hold_rows
            elif found.header.kind == FRAME:
                singles += await self._copy_frame(volume, found, mover)
                if singles >= SYNC_RUNS:
                    singles = 0
                    await self._place(mover, reaped, whole=False)
            elif found.header.kind in (OUTCOME, LOCAL, STATE):
                for row in await self._needed_rows(volume, found):
                    rows.append(row)
                    rows_bytes += 14 + len(row[1]) + len(row[2] or b"")
                    if rows_bytes >= STATE_BODY_BYTES:
                        await self.bulk.write(mover, None, encode_state(rows))
                        rows, rows_bytes = [], 0
        if rows:
            await self.bulk.write(mover, None, encode_state(rows))
        return bad

    async def _place_lost(self, lost: list[BadFrame], volume: Volume, reaped: set[bytes]) -> None:
        """What could not be read keeps a placement, which says where it stood: it is damaged, and
        to be repaired, and not as if it had never been."""
        for at in range(0, len(lost), PLACE_RUNS):
            runs: list[PlacedRun] = []
            for bad in lost[at : at + PLACE_RUNS]:
                size = bad.record_bytes
                run = Run(volume.volume, bad.offset, 1, size, size)
                runs.append((bad.stream, bad.number, run, False))
            self.log.place_runs(runs, [], unless=reaped)
            await self.log.settle()

    # --- frames

    async def _copy_frame(self, volume: Volume, found: Scanned, mover: _Mover) -> int:
        """1 if it was a live frame that is its whole stream."""
        header = found.header
        assert header is not None
        try:
            run, first = await self.frames.find(header.a, header.b)
        except FrameMissing:
            return 0
        offset, size = frame_place(run, header.b - first)
        if (run.volume, offset, size) != (volume.volume, found.offset, found.size_bytes):
            return 0
        last = bool(header.flags & FLAG_LAST)
        data = bytes(stored_body(found.data, header))
        frame = SealedFrame(header.a, header.b, last, header.plain_bytes, data)
        if first and header.b == first:
            mover.starts.add((header.a, first))
        await self.bulk.write(mover, frame)
        return int(last and header.b == 0)

    async def _place(self, mover: _Mover, reaped: set[bytes], *, whole: bool) -> None:
        """Sync what was written and place it: streams of one frame, at the end all others."""
        await self.bulk.sync()
        if mover.error is not None:
            raise mover.error
        runs: list[PlacedRun] = []
        rest: dict[bytes, RunBuilder] = {}
        for stream, builder in mover.streams.items():
            if not whole and not builder.single():
                rest[stream] = builder
                continue
            taken = builder.take()
            runs += [(stream, first, run, False) for first, run in taken]
            mover.hand_over([run for _, run in taken])
            if len(runs) >= PLACE_RUNS:
                self.log.place_runs(runs, [], unless=reaped)
                await self.log.settle()
                runs = []
        mover.streams = rest
        self.log.place_runs(runs, mover.take_held() if whole else [], unless=reaped)
        await self.log.settle()

    async def _placed_in(self, volume: Volume) -> int:
        """Runs whose placement still points into the volume (all of the table is read)."""
        low, high = PLACEMENT_TABLE, bytes([PLACEMENT_TABLE[0] + 1])
        count = 0
        while True:
            rows = await self.core.index.scan(low, high, 1000)
            count += sum(decode_run(value).volume == volume.volume for _, value in rows)
            if len(rows) < 1000:
                return count
            low = rows[-1][0] + b"\0"
            await asyncio.sleep(0)

    # --- rows

    async def _needed_rows(self, volume: Volume, found: Scanned) -> list[StateRow]:
        """Of the changes in one record, those that a rebuild will still need."""
        header = found.header
        assert header is not None
        sealer = await self.core.sealer_of(volume)
        try:
            body = open_body(found.data, header, sealer, found.offset)
            if header.kind == STATE:
                changes = decode_state(body)
            else:
                rows, released = decode_rows(body)
                changes = [(header.sequence, key, value) for key, value in rows]
                changes += [(header.sequence, released_key(s), b"") for s in released]
        except RecordBad:
            return []  # its checksum held, so this is a wrong key: nothing of it can be used
        index = self.core.index
        needed: list[StateRow] = []
        for number, (sequence, key, value) in enumerate(changes, 1):
            if number % LOOK_ROWS == 0 and self.pace.is_long():
                await self.pace.rest()
            if key[:1] == RELEASED_TABLE:
                if self._hides_something(volume, sequence):
                    needed.append((sequence, key, value))
                continue
            current = index.get_now(key)
            if isinstance(current, Miss):
                current = await index.get(key)
            if current == value and (value is not None or self._hides_something(volume, sequence)):
                needed.append((sequence, key, value))
        return needed

    def _hides_something(self, volume: Volume, sequence: int) -> bool:
        """Another volume may hold an older change of the same key."""
        return any(
            other.header.born_sequence < sequence
            for other in self.core.volumes.values()
            if other is not volume
        )

    def _forget_entries(self, volume: Volume) -> None:
        """The entries of a log volume can no longer be read, nor what lies before them."""
        if volume.kind is not VolumeKind.LOG:
            return
        for group in self.core.groups.values():
            at = 0
            for i, place in enumerate(group.places):
                number = unpack_place(place)[0] if place else 0
                if number > volume.volume:
                    break
                if number == volume.volume:
                    at = i + 1
            group.forget_below(group.first_index + at)


def free_wanted(space: SpaceAccount) -> bool:
    """Little space is left: smaller parts of garbage become worth moving."""
    return space.free_bytes < 2 * space.reserve_bytes
