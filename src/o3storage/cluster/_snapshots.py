"""Snapshots of a group: plain rows, from a leader to a member whose entries are not in the log any
more. Consensus decides who needs one and keeps the pieces in order (`raft.core._snapshots`).

The leader reads the rows of the group's spans at one instant; the receiver stages each piece
durably and installs all of them in one step (`Store.install`). Frames are not in a snapshot: what
the rows name and is not here becomes repair debt.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from o3storage.cluster import _records
from o3storage.cluster._newcomer import never_lost, note_passed
from o3storage.cluster._range_rows import EVERYTHING, FIRST_KEY_GROUP, Span, span_key
from o3storage.cluster._reading import READ_FAULTS, entries_of, left_row
from o3storage.crypto import StreamRef
from o3storage.raft.core import (
    Configuration,
    PieceStored,
    ProgressState,
    Restore,
    Role,
    SnapshotData,
    SnapshotFailed,
    SnapshotNeeded,
    StorePiece,
)
from o3storage.runtime import Logger
from o3storage.storage import (
    HardState,
    Snapshot,
    SnapshotLost,
    StoreOutOfService,
    Unnamed,
    decode_piece,
    encode_piece,
)

if TYPE_CHECKING:
    from o3storage.cluster._replica import Replica
    from o3storage.cluster._replication import Replication

PIECE_BYTES = 256 << 10
"""Rows of one piece, held in memory on both sides; they take the bulk link, not the heartbeats'."""
PAGE_ROWS = 500
SKIP_BYTES = 256 << 10
"""Entries looked at in one turn of the loop."""
RETRY_S = 0.5
"""A full disk, or a damaged block that is being rebuilt, is looked at again so often."""
SEND, RECEIVE = "send", "receive"

_log = Logger("snapshots")


@dataclass(slots=True)
class _Source:
    """A snapshot on its way to one member."""

    snapshot: Snapshot
    index: int
    term: int
    configuration: Configuration
    spans: list[tuple[bytes, bytes]]
    """Of the group's rows at that instant; a split may make them fewer meanwhile."""
    starts: list[tuple[int, bytes]] = field(default_factory=list)
    """Where piece n begins: (number of the span, row key)."""


class Snapshots:
    """One replica's, in both directions."""

    def __init__(self, replica: Replica, node: Replication) -> None:
        self.sent = 0
        """Pieces, since the start."""
        self._replica = replica
        self._node = node
        self._sources: dict[int, _Source] = {}
        self._wanted: deque[SnapshotNeeded] = deque()
        self._arrived: deque[StorePiece | Restore] = deque()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._pieces = 0
        self._span: Span | None = None
        """Of what is being received."""

    # --- to others

    def needed(self, output: SnapshotNeeded) -> None:
        self._wanted.append(output)
        if SEND not in self._tasks:
            self._start(SEND, self._send())

    def prune(self) -> None:
        """Let go of snapshots that nobody waits for."""
        core = self._replica.core
        for peer in list(self._sources):
            progress = core.progress.get(peer)
            if progress is None or progress.state is not ProgressState.SNAPSHOT:
                self._sources.pop(peer).snapshot.release()

    @property
    def idle(self) -> bool:
        return not self._sources and not self._tasks

    async def _send(self) -> None:
        replica = self._replica
        while self._wanted:
            wanted = self._wanted.popleft()
            peer, number = wanted.peer, wanted.number
            if replica.core.role is not Role.LEADER or replica.fault:
                continue
            if number == 0:
                self._begin(peer)
            source = self._sources.get(peer)
            if source is None or number >= len(source.starts):
                replica.step(SnapshotFailed(peer))
                continue
            try:
                data, last = await self._read(source, number)
            except (*READ_FAULTS, ValueError):
                # (Released meanwhile, if nobody waits for it any more: see `prune`.)
                replica.step(SnapshotFailed(peer))
                continue
            if self._sources.get(peer) is not source:
                continue
            self.sent += 1
            replica.step(
                SnapshotData(
                    peer, source.index, source.term, source.configuration, number, data, last
                )
            )

    def _begin(self, peer: int) -> None:
        """The newest state there is: what is applied now."""
        old = self._sources.pop(peer, None)
        if old is not None:
            old.snapshot.release()
        replica = self._replica
        index = replica.applied
        core = replica.core
        since, configuration = core.configurations[0]
        if index < since:
            # Of what is committed much is not applied yet, and who the members were then is not
            # known any more. (A cut between gives them to the new range: the same on all replicas.)
            return
        for at, found in core.configurations:
            if at <= index:
                configuration = found
        term = core.log.term(index)
        if term > 0:
            snapshot = self._node.store.snapshot()
            spans = self._node.spans(replica.group)
            self._sources[peer] = _Source(snapshot, index, term, configuration, spans, [(0, b"")])

    async def _read(self, source: _Source, number: int) -> tuple[bytes, bool]:
        """Piece `number`, and whether it is the last."""
        spans = source.spans
        at, low = source.starts[number]
        rows: list[tuple[bytes, bytes]] = []
        size = 0
        while at < len(spans) and size < PIECE_BYTES:
            low = low or spans[at][0]
            page = await self._node.store.scan(low, spans[at][1], PAGE_ROWS, at=source.snapshot)
            for row in page:
                rows.append(row)
                size += len(row[0]) + len(row[1])
                if size >= PIECE_BYTES:
                    break
            if size >= PIECE_BYTES:
                low = rows[-1][0] + b"\0"
            elif len(page) == PAGE_ROWS:
                low = page[-1][0] + b"\0"
            else:
                at, low = at + 1, b""
        if number + 1 == len(source.starts):
            source.starts.append((at, low))
        return encode_piece(rows), at >= len(spans)

    # --- from others

    def arrived(self, output: StorePiece | Restore) -> None:
        self._arrived.append(output)
        if RECEIVE not in self._tasks:
            self._start(RECEIVE, self._receive())

    async def _receive(self) -> None:
        while self._arrived:
            output = self._arrived.popleft()
            if isinstance(output, Restore):
                await self._restore(output)
            elif not await self._stage(output):
                return

    async def _stage(self, output: StorePiece) -> bool:
        replica = self._replica
        while not replica.fault:
            incoming = replica.core.incoming
            if incoming is None or incoming.session != output.session:
                return True  # of no use any more
            try:
                if output.number == 0 and not self._expect(output.data):
                    return True  # later, when the sender knows more
                await self._node.store.stage_piece(replica.group, output.number, output.data)
            except StoreOutOfService as error:
                replica.on_disk_fault(str(error))
                return False
            except ValueError as error:
                replica.fail(f"range {replica.group}: a snapshot cannot be used: {error}")
                return False
            except READ_FAULTS:
                await asyncio.sleep(RETRY_S)
            else:
                self._pieces = output.number + 1
                replica.step(PieceStored(output.session, output.number))
                return True
        return False

    def _expect(self, piece: bytes) -> bool:
        """A snapshot begins: whose keys does it bring? False: some that another range holds here;
        the sender is behind a split that is known here. Raises ValueError."""
        replica = self._replica
        if replica.span is None:
            return True
        rows = decode_piece(piece)
        own = span_key(replica.group)
        if rows and rows[0][0] == own:
            span = Span.decode(rows[0][1])
        elif replica.group == FIRST_KEY_GROUP:
            span = EVERYTHING
        else:
            raise ValueError("it does not say which keys it is of")
        if not self._node.ranges.free_for(replica.group, span):
            return False
        incoming, log = replica.core.incoming, self._node.store.log_state(replica.group)
        if incoming is not None and incoming.index <= log.applied_index - log.rows_lost:
            return False  # (it had been here, and left: what comes must be newer)
        self._span = span
        if replica.applied == 0:
            # Nothing is here yet, and what was thought of the span may be too little.
            replica.span = span
            self._node.ranges.put((replica.group, span))
        return True

    async def _restore(self, output: Restore) -> None:
        replica, store = self._replica, self._node.store
        group = replica.group
        span = self._span if replica.span is not None else None
        # Behind the snapshot they would not follow on the log, and their hard state is older.
        await replica.none_held()
        await replica.hold_applying()
        if replica.team is not None:
            replica.team.mark_incomplete()
        hard = output.hard_state
        row = output.index.to_bytes(8, "big") + output.configuration.encode()
        unnamed = Unnamed(self._named)
        while not replica.fault:
            try:
                if span is not None:
                    await self._note_passed(span)
                certain = await never_lost(store)
                if certain:
                    await self._skip(output.index, span or EVERYTHING, unnamed)
                await store.install(
                    group,
                    output.index,
                    output.index_term,
                    self._pieces,
                    self._node.ranges.row_spans(group, span),
                    HardState(hard.term, hard.vote, hard.commit),
                    output.keep,
                    [(_records.configuration_key(group), row), (left_row(group), None)],
                    unnamed if certain else None,
                )
            except StoreOutOfService as error:
                replica.on_disk_fault(str(error))
                return
            except SnapshotLost:
                replica.lose_rows(abandoned=True)
                return
            except READ_FAULTS:
                await asyncio.sleep(RETRY_S)
            else:
                # (Frames of theirs may be on their way.)
                self._node.note_released(unnamed.released)
                if span is not None:
                    # What it does not hold any more is another range's, which will come.
                    replica.span = span
                    self._node.ranges.put((group, span))
                    self._node.on_ranges()
                replica.restored(output.index)
                return

    def _named(self, key: bytes, value: bytes) -> list[bytes]:
        """The streams that a row keeps from being collected."""
        if key[0] == _records.TABLE_OPEN_STREAM:
            return [key[-_records.STREAM_BYTES :]]
        return [StreamRef.unpack(body).stream for body in self._node.bodies(key, value)]

    async def _skip(self, index: int, span: Span, unnamed: Unnamed) -> None:
        """Entries here that the snapshot takes the place of, up to `index`, were committed, or
        never will be, for another one was there. What they name has a name at `index`, unless it
        never had one or has none any more, for an entry is proposed once. But one that found its
        key in another range, since a cut, is proposed there with the same frames: so of keys
        beyond `span`, which is the snapshot's, nothing is said. Raises StoreError."""
        replica, store = self._replica, self._node.store
        at, last = replica.applied + 1, store.log_state(replica.group).last_index
        while at <= last:
            found = await entries_of(store, replica.group, at, last, SKIP_BYTES)
            if not found:
                return
            for entry in found:
                named = _records.carried(entry.data) if _records.carries(entry) else None
                if named is None:
                    continue
                if entry.index > index:
                    unnamed.stays([named.stream])
                elif span.holds(_records.carried_route(entry.data)[1:]):
                    unnamed.lost_name([named.stream])
            at = found[-1].index + 1

    async def _note_passed(self, span: Span) -> None:
        """Keys that the snapshot does not bring belong to ranges that were cut off without us."""
        replica = self._replica
        old, core = replica.span, replica.core
        certain = replica.applied > 0 and not core.uncertain and not core.log.holes
        high = span.high
        if certain and old is not None and high is not None and old.holds(high):
            await note_passed(self._node.store, replica.group, old, span)

    # --- life

    def _start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.pop(name, None)
            if task.cancelled() or (error := task.exception()) is None:
                return
            group = self._replica.group
            _log.error("snapshot.failed", range=group, doing=name, error=error)
            if name == RECEIVE:
                # What is half received keeps the range from being applied and read: it stops.
                # (Who is to get one asks again.)
                self._replica.fail(f"range {group} stopped at a snapshot: {error!r}")

        task = asyncio.get_running_loop().create_task(work)
        self._tasks[name] = task
        task.add_done_callback(ended)

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        sources, self._sources = self._sources, {}
        for source in sources.values():
            source.snapshot.release()
