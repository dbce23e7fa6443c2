"""Installing a snapshot of a group: its pieces are staged, and become the group's rows in one step
that a crash cannot divide (DESIGN 5, "A snapshot ships plain rows").

Interface: `Installer.stage`, `install`, `redo`; `encode_piece`, `Span`.

    0x05 | group u32 | number u32       a staged piece: rows as in a LOCAL record
    0x05 | group u32 | 2^32-1           the decision to install: see `_MARK`

1. Pieces are written to rows of table 0x05 through the log, each durable before it is answered.
2. The decision is one such row. From its sync on the snapshot is this disk's state of the group:
   an open that finds it goes on from here before anything else is done.
3. What differs between the pieces and the rows that stand in the group's spans is written, in
   steps; rows that are in no piece are deleted. Repeating this changes nothing. (Where rows of the
   group are lost, every row is written: a rebuild must not depend on any record before.) A bad
   block of the index ends it; once the block is put right it is begun anew.
4. One batch holds the end: the log's new beginning, the hard state, the caller's own rows, and the
   decision's deletion, with that of the row that says that rows are lost. Then the pieces go.
5. Frames that rows of before 3 named, and none of the pieces does, are released (`Unnamed`).

Invariants
- Between 2 and 4 nobody reads or applies in the spans (the replica waits for 4).
- Rows that are lost by the repair of a span (`_span_repair`) are lost before 3 begins, and then all
  is written, or after 4, and then they are lost anew (`Core.replacing`).
- Where a piece is lost, the snapshot is: the group's rows count as lost, and nothing is staged.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

from o3storage.storage._core import Core
from o3storage.storage._frames import Frames
from o3storage.storage._groups import GroupLog
from o3storage.storage._log import LogWriter
from o3storage.storage._records import RecordBad, decode_rows, encode_rows
from o3storage.storage._rows import Row, RowChange, encode_holes, rows_lost_key
from o3storage.storage._types import KIB, GroupId, HardState, SnapshotLost, StoreDamaged

STAGING_TABLE = b"\x05"
DECISION = 0xFFFFFFFF
MAX_PIECE_BYTES = 1000 * KIB
"""A piece is the value of one row of the index."""
STEP_ROWS = 500
STEP_BYTES = 256 * KIB
"""Changes of one record, and of one turn of the loop."""
MAX_UNNAMED = 65_536
"""Streams that one install releases: some 10 MB of memory."""
STEP_STREAMS = 100
"""Of them, in one record."""

Span = tuple[bytes, bytes]
"""Row keys low <= key < high."""

_KEY = struct.Struct(">II")
_MARK = struct.Struct("<QQQQQBIHH")
"""index, term, hard term, vote, commit, keep, pieces, spans, rows; then (size u16, bytes) for low
and high of each span, then the caller's rows as in a LOCAL record."""
_U16 = struct.Struct("<H")


def encode_piece(rows: Sequence[Row]) -> bytes:
    """Rows, ascending by key, as `Installer.stage` takes them."""
    return encode_rows(list(rows))


def decode_piece(piece: bytes) -> list[Row]:
    """What `encode_piece` was given. Raises ValueError."""
    try:
        rows, _ = decode_rows(piece)
    except RecordBad as error:
        raise ValueError(str(error)) from error
    return [(key, value) for key, value in rows if value is not None]


def _key(group: GroupId, number: int) -> bytes:
    return STAGING_TABLE + _KEY.pack(group, number)


def decided_group(key: bytes) -> int | None:
    """The group whose decision to install has this key."""
    if key[:1] != STAGING_TABLE or len(key) != 1 + _KEY.size:
        return None
    group, number = _KEY.unpack_from(key, 1)
    return group if number == DECISION else None


class Unnamed:
    """Streams that an install leaves without a name: rows of before it named them, or entries that
    it takes the place of did, and no row of the snapshot does.

    A stream has one life: it is opened or comes with its entry, a row names it, it is released.
    So what had a name at one committed entry, and has none at a later one, was released by an entry
    between them, which this member skipped: nothing will name it again. The caller answers for that
    order: on a disk that lost records, rows may be later than its applied index says; nothing is
    collected there. What had no name before is left alone: its entries may be yet to come. So is
    what an entry above the snapshot names (`stays`): it was counted as here."""

    __slots__ = ("_most", "_names", "_stay", "released", "streams")

    def __init__(self, names: Callable[[bytes, bytes], Iterable[bytes]]) -> None:
        """`names`: streams that a row names, by its key and value."""
        self._names = names
        self._stay: set[bytes] = set()
        self._most = MAX_UNNAMED
        self.streams: dict[bytes, None] = {}
        """At most MAX_UNNAMED; frames of others stay (promise P8)."""
        self.released: list[bytes] = []
        """Those that were."""

    def lost_name(self, streams: Iterable[bytes]) -> None:
        for stream in streams:
            if len(self.streams) < self._most and stream not in self._stay:
                self.streams[stream] = None

    def stays(self, streams: Iterable[bytes]) -> None:
        """More than can be remembered, and nothing is released."""
        for stream in streams:
            self._stay.add(stream)
            self.streams.pop(stream, None)
        if len(self._stay) > MAX_UNNAMED:
            self._most = 0
            self._stay.clear()
            self.streams.clear()

    def row_goes(self, key: bytes, value: bytes) -> None:
        self.lost_name(self._names(key, value))

    def row_comes(self, key: bytes, value: bytes) -> None:
        for stream in self._names(key, value):
            self.streams.pop(stream, None)


class Installer:
    """One snapshot of a group at a time."""

    def __init__(self, core: Core, log: LogWriter, frames: Frames) -> None:
        self.core = core
        self.log = log
        self.frames = frames

    async def stage(self, group: GroupId, number: int, piece: bytes) -> None:
        """Durable on return. Piece 0 drops what was staged before. Raises ValueError (nobody
        encoded this), StoreFull, StoreOutOfService."""
        if len(piece) > MAX_PIECE_BYTES or number >= DECISION:
            raise ValueError("a piece of a snapshot breaks a limit")
        try:
            decode_rows(piece)
        except RecordBad as error:
            raise ValueError(str(error)) from error
        if number == 0:
            await self._drop(group, 0)
        await self.log.write_rows([(_key(group, number), piece)])

    async def install(  # noqa: PLR0917
        self,
        group: GroupId,
        index: int,
        term: int,
        pieces: int,
        spans: Sequence[Span],
        hard: HardState,
        keep: bool,
        rows: Sequence[RowChange],
        unnamed: Unnamed | None = None,
    ) -> None:
        """Make pieces 0..pieces - 1 the rows of `spans`, and (`index`, `term`) what the group's
        log has applied. `keep`: entries above `index` stay. What is left in `unnamed` is released,
        but not by an open that finishes this. Raises StoreFull, StoreOutOfService: then it is done
        at the next open, if it was decided; SnapshotLost."""
        fixed = (index, term, hard.term, hard.vote, hard.commit, keep)
        parts = [_MARK.pack(*fixed, pieces, len(spans), len(rows))]
        for low, high in spans:
            parts += (_U16.pack(len(low)), low, _U16.pack(len(high)), high)
        parts.append(encode_rows(list(rows)))
        mark = b"".join(parts)
        await self.log.write_rows([(_key(group, DECISION), mark)])
        async with self.core.replacing:
            try:
                await self._carry_out(group, mark, unnamed)
            except SnapshotLost:
                await self._lose(group)
                raise

    async def _lose(self, group: GroupId) -> None:
        """What it changed so far stands, or all of it does and its end is lost."""
        self.core.rows_lost[group] = None
        await self.log.write_rows([(rows_lost_key(group), encode_holes(self.core.holes))])
        # What was staged is of no use: the sender begins again.
        await self._drop(group, 0)

    async def erase(self, group: GroupId, spans: Sequence[Span]) -> None:
        """No row is left in the spans, nor anything staged. Raises StoreFull,
        StoreOutOfService."""
        async with self.core.replacing:
            await self._drop(group, 0)
            for low, high in spans:
                await self._replace(low, high, _Staged(self.core, group, 0))

    async def redo(self) -> None:
        """At the open: finish what was decided."""
        low, high = STAGING_TABLE, bytes([STAGING_TABLE[0] + 1])
        while True:
            rows = await self.core.index.scan(low, high, 1)
            if not rows:
                return
            group, _ = _KEY.unpack(rows[0][0][1:])
            mark = await self.core.index.get(_key(group, DECISION))
            if mark is not None and await self._all_staged(group, mark):
                await self._carry_out(group, mark)
            elif mark is not None:
                await self._lose(group)
            else:
                await self._drop(group, 0)

    async def _all_staged(self, group: GroupId, mark: bytes) -> bool:
        for number in range(_MARK.unpack_from(mark)[6]):
            if await self.core.index.get(_key(group, number)) is None:
                return False
        return True

    async def _carry_out(self, group: GroupId, mark: bytes, unnamed: Unnamed | None = None) -> None:
        core = self.core
        fields = _MARK.unpack_from(mark)
        index, term, hard_term, vote, commit, keep, pieces, span_count, _ = fields
        at = _MARK.size
        bounds: list[bytes] = []
        for _number in range(2 * span_count):
            (size,) = _U16.unpack_from(mark, at)
            bounds.append(mark[at + 2 : at + 2 + size])
            at += 2 + size
        own, _ = decode_rows(mark[at:])
        log = core.groups.get(group)
        if log is None:
            log = core.groups[group] = GroupLog(group, core.entry_account)
        lost = group in core.rows_lost
        if lost:
            unnamed = None
        if index > log.applied_index or (lost and index == log.applied_index):
            staged = _Staged(core, group, pieces)
            for low, high in zip(bounds[::2], bounds[1::2], strict=True):
                await self._replace(low, high, staged, every=lost, unnamed=unnamed)
            await staged.end()
            if unnamed is not None and unnamed.streams:
                async for key, value in _Staged.read(core, group, pieces):
                    unnamed.row_comes(key, value)
            log.install(index, term, keep=bool(keep))
            # A vote that was given meanwhile stands.
            hard = log.hard_state
            if hard.term < hard_term:
                hard = HardState(hard_term, vote, commit)
            hard = log.hard_state = HardState(hard.term, hard.vote, max(hard.commit, index))
            ended: list[RowChange] = [(_key(group, DECISION), None)]
            if lost:
                ended.append((rows_lost_key(group), None))
            await self.log.submit(
                log,
                HardState(hard.term, hard.vote, hard.commit),
                (),
                (),
                reset=(index, term),
                keep=bool(keep),
                rows=[*own, *ended],
            )
            core.rows_lost.pop(group, None)
            if unnamed is not None:
                await self._release(unnamed)
        await self._drop(group, 0)

    async def _release(self, unnamed: Unnamed) -> None:
        streams = list(unnamed.streams)
        for at in range(0, len(streams), STEP_STREAMS):
            step = streams[at : at + STEP_STREAMS]
            unnamed.released += step
            changes = self.frames.released(step)
            if changes:
                await self.log.write_rows(changes)

    async def _replace(
        self,
        low: bytes,
        high: bytes,
        staged: _Staged,
        *,
        every: bool = False,
        unnamed: Unnamed | None = None,
    ) -> None:
        """Make the rows of [low, high) those that are staged for it; `every` one is written."""
        index = self.core.index
        changes: list[RowChange] = []
        size = 0
        at: bytes | None = low
        new = await staged.peek()
        while at is not None or (new is not None and new[0] < high):
            page: list[Row] = []
            if at is not None:
                page = await index.scan(at, high, STEP_ROWS)
                at = page[-1][0] + b"\0" if len(page) == STEP_ROWS else None
            end = at if at is not None else high
            old = dict(page)
            while new is not None and new[0] < end:
                before = old.pop(new[0], None)
                if before != new[1] or every:
                    if before is not None and unnamed is not None:
                        unnamed.row_goes(new[0], before)
                    changes.append(new)
                    size += len(new[0]) + len(new[1])
                staged.take()
                new = await staged.peek()
                if size >= STEP_BYTES or len(changes) >= STEP_ROWS:
                    await self.log.write_rows(changes)
                    changes, size = [], 0
            changes += [(key, None) for key in old]
            if unnamed is not None:
                for row in old.items():
                    unnamed.row_goes(*row)
            if len(changes) >= STEP_ROWS:
                await self.log.write_rows(changes)
                changes, size = [], 0
        if changes:
            await self.log.write_rows(changes)

    async def _drop(self, group: GroupId, first: int) -> None:
        """Staged pieces from `first` on, and a decision, go."""
        low, high = _key(group, first), STAGING_TABLE + struct.pack(">II", group, DECISION) + b"\0"
        while True:
            rows = await self.core.index.scan(low, high, 16)
            if rows:
                await self.log.write_rows([(key, None) for key, _ in rows])
            if len(rows) < 16:
                return
            await asyncio.sleep(0)


class _Staged:
    """The rows of all pieces, in order."""

    def __init__(self, core: Core, group: GroupId, pieces: int) -> None:
        self._rows = self.read(core, group, pieces)
        self._next: Row | None = None

    @staticmethod
    async def read(core: Core, group: GroupId, pieces: int) -> AsyncIterator[Row]:
        for number in range(pieces):
            piece = await core.index.get(_key(group, number))
            if piece is None:
                raise SnapshotLost(f"piece {number} of a snapshot of group {group} is lost")
            for key, value in decode_rows(piece)[0]:
                assert value is not None, "a snapshot holds rows that are there"
                yield key, value

    async def peek(self) -> Row | None:
        if self._next is None:
            self._next = await anext(self._rows, None)
        return self._next

    def take(self) -> None:
        self._next = None

    async def end(self) -> None:
        left = await self.peek()
        if left is not None:
            raise StoreDamaged(f"a snapshot brings a row of another group: {left[0][:9].hex()}")
