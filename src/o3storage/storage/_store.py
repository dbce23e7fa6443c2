"""The store of one disk: the one object that the rooms above use.

It joins the parts: log and bulk writers, frames, groups, the index, flush, space. What each may do
to the disk stands in its own file.

Invariants
- Only committed, locally durable entries are applied, in order, each once.
- After a fault every call that would write raises StoreOutOfService; reads go on.
- One step on the event loop handles at most one append, one apply or one lookup; long work is in
  the background tasks, in steps.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Container, Iterator, Sequence

from o3storage.runtime.clock import Clock, Entropy
from o3storage.runtime.disk import Buffer, Disk
from o3storage.runtime.jobs import Jobs
from o3storage.storage import _open
from o3storage.storage._bulk import BulkWriter, StreamWriter
from o3storage.storage._compaction import Compactor
from o3storage.storage._core import Core
from o3storage.storage._entries import read_entries
from o3storage.storage._flush import Flusher
from o3storage.storage._frames import Frames
from o3storage.storage._groups import GroupLog
from o3storage.storage._index_open import IndexFactory, open_index_factory
from o3storage.storage._install import Installer, Span, Unnamed
from o3storage.storage._log import NO_LOG_SPACE, LogWriter
from o3storage.storage._mark import Mark
from o3storage.storage._rebuild import open_or_rebuild
from o3storage.storage._records import check_frame, check_rows, encode_rows
from o3storage.storage._replay import Replay
from o3storage.storage._rows import (
    FIRST_CATALOG_BYTE,
    NOTE_TABLE,
    Row,
    RowChange,
    decode_holes,
    encode_holes,
    read_rows_lost,
    rows_lost_key,
)
from o3storage.storage._scrub import BadFrame, scrub
from o3storage.storage._set_aside import set_aside
from o3storage.storage._space import SpaceAccount
from o3storage.storage._span_repair import AllGroups, Others, SpanRepair
from o3storage.storage._tending import Tender
from o3storage.storage._types import (
    MAX_APPEND_BYTES,
    MAX_ENTRY_BYTES,
    MAX_GROUPS,
    SMALL_FRAME_BYTES,
    EntriesGone,
    Entry,
    GroupId,
    HardState,
    LogState,
    SealedFrame,
    StoreError,
    StoreFull,
    StoreOptions,
    StoreOutOfService,
    StoreSpace,
    StoreStats,
)
from o3storage.storage._volume import VolumeKind
from o3storage.storage.index import BadBlock, IndexFailure, Miss, Snapshot

INDEX_DIR = "index"
MAX_MENDS = 16
"""Damaged blocks that an open waits for: it looks at a handful of rows."""


class Store:
    """One disk. All methods run on the event loop's thread."""

    def __init__(self, core: Core, log: LogWriter, bulk: BulkWriter, mark: Mark) -> None:
        """Use `open`."""
        self._core = core
        self._log = log
        self._bulk = bulk
        self._frames = Frames(core)
        self._flusher = Flusher(core, log, mark)
        self._space = SpaceAccount(core)
        core.took_space = self._space.took
        core.spare_bytes = self._space.spare_bytes
        self._compactor = Compactor(core, log, bulk, self._frames, self._flusher)
        self._spans = SpanRepair(core, log, self._frames, self._compactor)
        self._frames.on_bad_block = bulk.on_bad_block = self._spans.wanted
        core.on_bad_block = self._spans.wanted
        self._installer = Installer(core, log, self._frames)
        self._tender = Tender(
            core,
            log=log,
            bulk=bulk,
            frames=self._frames,
            flusher=self._flusher,
            compactor=self._compactor,
            space=self._space,
            spans=self._spans,
        )
        self._closed = False

    # --- life

    @classmethod
    async def open(
        cls,
        disk: Disk,
        *,
        disk_key: bytes,
        jobs: Jobs,
        clock: Clock,
        entropy: Entropy,
        options: StoreOptions | None = None,
        on_progress: Callable[[str, float], None] | None = None,
        prefix_length: Callable[[bytes], int] | None = None,
        open_index: IndexFactory | None = None,
        others: bool = False,
    ) -> Store:
        """Open or create the store under the disk's root. `on_progress(step, 0..1)`.

        `prefix_length` says how much of a row key (table byte >= 0x10) the index's filters cover;
        by default table byte, bucket id and escaped key. It must not change between opens.
        `open_index` replaces the index (tests). `others`: other nodes have the rows of this disk's
        groups, until `mend_with_others` says more.

        Raises StoreOutOfService (OUT_OF_SERVICE stands), StoreKeyWrong, FormatVersionUnknown,
        StoreDamaged, DiskFault, DiskFull.
        """
        core = Core(disk, disk_key, jobs, clock, entropy, options or StoreOptions())
        factory = open_index or open_index_factory(prefix_length)
        try:
            return await cls._open(core, factory, on_progress, others=others)
        except BaseException:
            await core.close_files()
            raise

    @classmethod
    async def _open(
        cls,
        core: Core,
        factory: IndexFactory,
        on_progress: Callable[[str, float], None] | None,
        *,
        others: bool,
    ) -> Store:
        await _open.prepare(core)
        log_volumes = [
            core.volumes[number]
            for number in sorted(core.volumes)
            if core.volumes[number].kind is VolumeKind.LOG
        ]
        core.index = await open_or_rebuild(core, factory, INDEX_DIR, on_progress)
        mark = Mark.decode(core.index.mark)
        core.sequence = max(core.sequence, mark.sequence)
        for number, count in mark.volumes.items():
            core.saw_volume(number)
            if number in core.volumes:
                core.volumes[number].placed_bytes = count.placed_bytes
                core.volumes[number].dead_bytes = count.dead_bytes
                core.volumes[number].change_bytes = count.change_bytes
        replay = Replay(core, mark, core.sealer_now)
        walked = _open.volumes_to_walk(core, log_volumes, mark.floor_volume)
        result = await _open.read_log(core, walked, replay, mark.floor_volume, on_progress)
        replay.finish()
        await _open.settle_tail(core, result)
        await _open.drop_spares(core, result)
        await _open.cut_bulk(core, mark)
        core.epoch += 1
        last = result.last
        log = LogWriter(core, last.sequence + 1, last.hash) if last else LogWriter(core, 1)
        store = cls(core, log, BulkWriter(core, log), mark)
        store._spans.others = AllGroups(core) if others else None
        await store._space.refresh()
        core.options = store._space.fitted(core.options)
        await log.start()
        store._bulk.start()
        await store._redo_install()
        if not core.options.background:
            await store._frames.reap_left_over()
        else:
            store._tender.start()
        return store

    async def _redo_install(self) -> None:
        """A snapshot that a crash cut short; what says so may lie in a damaged block."""
        for _ in range(MAX_MENDS):
            try:
                await self._note_rows_lost()
                await self._installer.redo()
            except BadBlock as bad:
                self._spans.wanted(bad)
                await self._spans.repair()
            else:
                return
        await self._note_rows_lost()
        await self._installer.redo()

    async def _note_rows_lost(self) -> None:
        """What this open found out, and what one before did, is in the volumes: an index that is
        rebuilt once more says it again."""
        core = self._core
        said = await read_rows_lost(core.index)
        core.rows_lost.update(dict.fromkeys(said))
        if core.rows_lost:
            await self._log.write_rows(
                [
                    (
                        rows_lost_key(group),
                        encode_holes({*core.holes, *(decode_holes(said.get(group, b"")) or ())}),
                    )
                    for group in core.rows_lost
                ]
            )

    async def close(self) -> None:
        """Flush, write what waits, stop. Idempotent."""
        if self._closed:
            return
        self._closed = True
        await self._tender.close()
        core = self._core
        await self._spans.close()
        if not core.out_of_service:
            with contextlib.suppress(StoreError, IndexFailure):
                await self._frames.close()
                await self._bulk.close()
                await self._flusher.flush()
                await self._log.close()
        await self._bulk.abandon()
        await self._log.abandon()
        if core.mark_task is not None:
            await core.mark_task
        await core.index.close()
        await core.close_files()

    def on_bad_frame(self, listener: Callable[[BadFrame], None]) -> None:
        """`listener` hears of what the background's scrub finds bad."""
        self._tender.bad_listeners.append(listener)

    def on_out_of_service(self, listener: Callable[[StoreOutOfService], None]) -> None:
        """`listener` is called once, on the loop, when a write or sync of this disk failed: give
        up leadership and votes here (promise P6)."""
        self._core.fault_listeners.append(listener)
        if self._core.out_of_service:
            listener(self._core.refusal())

    def on_no_space(self, listener: Callable[[str], None]) -> None:
        """`listener(reason)` is called on the loop, again and again, while appends that were taken
        have been waiting for space for seconds: they may be written later, or never."""
        self._log.stall_listeners.append(listener)

    @property
    def log_full(self) -> bool:
        """An append would raise StoreFull now."""
        return self._log.cramped

    # --- raft log

    def groups(self) -> list[GroupId]:
        """Groups that have a log here, ascending."""
        return sorted(self._core.groups)

    def log_state(self, group: GroupId) -> LogState:
        """A copy; an unknown group has the empty state."""
        found = self._core.groups.get(group)
        if found is None:
            return LogState(uncertain=self._in_doubt())
        state = found.state()
        state.rows_lost = group in self._core.rows_lost
        return state

    def append(
        self,
        group: GroupId,
        hard_state: HardState | None,
        entries: Sequence[Entry],
        frames: Sequence[SealedFrame] = (),
        *,
        use_reserve: bool = False,
    ) -> asyncio.Future[None]:
        """Queue one append; the future resolves when all of it is durable (group commit).

        Entries are contiguous and replace any suffix from entries[0].index on; `entries` and
        `term` see them at once. Frames (small ones) ride in the same batch and are placed.
        Raises, before anything is written: StoreFull (frames, or no reserve left;
        `use_reserve=True` for deletes lets an append with frames pass), StoreOutOfService,
        ValueError (limits, a gap). The future raises StoreOutOfService.
        """
        self._check_open()
        size = 0
        for entry in entries:
            if len(entry.data) > MAX_ENTRY_BYTES:
                raise ValueError(f"an entry of {len(entry.data)} bytes; limit {MAX_ENTRY_BYTES}")
            size += len(entry.data)
        if frames:
            if not use_reserve:
                self._space.check()
            for frame in frames:
                check_frame(frame)
                if frame.plain_size > SMALL_FRAME_BYTES:
                    raise ValueError("large frames go through open_stream, not through the log")
                size += len(frame.data)
        if size > MAX_APPEND_BYTES:
            raise ValueError(f"an append of {size} bytes; limit {MAX_APPEND_BYTES}")
        if self._log.cramped:
            raise StoreFull(NO_LOG_SPACE)
        log = self._core.groups.get(group)
        if log is None:
            log = self._create_group(group)
        replaces = False
        previous_term = 0
        if entries:
            log.check_append(entries)
            before = entries[0].index - 1
            if not log.is_missing(before):  # (its term would be a guess)
                previous_term = log.term_before(before + 1)
            replaces = log.take_append(entries)
        hard = None
        if hard_state is not None:
            hard = HardState(hard_state.term, hard_state.vote, hard_state.commit)
            log.hard_state = hard
        return self._log.submit(
            log, hard, entries, frames, previous_term=previous_term, replaces=replaces
        )

    def fill(self, group: GroupId, entries: Sequence[Entry]) -> asyncio.Future[None]:
        """Entries that were known missing came back from another node: they take their places and
        replace nothing; what is not missing stays as it is. Ascending; those behind the last
        readable entry follow it without a gap. The future as of `append`. Raises
        StoreOutOfService."""
        self._check_open()
        log = self._core.groups[group]
        log.pad(entries[-1].index)
        return self._log.submit(log, None, (), (), fills=entries)

    def drop_missing(self, group: GroupId, low: int) -> None:
        """The entries from `low` on, which are missing, were never committed: the log ends before
        them. (An open that finds them missing again asks again.)"""
        log = self._core.groups[group]
        log.truncate(low - 1)
        log.missing = [(lo, min(hi, low - 1)) for lo, hi in log.missing if lo < low]
        log.durable_index = min(log.durable_index, low - 1)
        log.dropped = True
        log.written_last, log.written_term = log.last_index, log.last_term
        log.written_guess = log.is_missing(log.last_index)

    def _create_group(self, group: GroupId) -> GroupLog:
        groups = self._core.groups
        if len(groups) >= MAX_GROUPS or not 0 <= group < 1 << 32:
            raise ValueError(f"group {group}: at most {MAX_GROUPS} groups on one disk")
        doubtful = self._in_doubt()
        log = groups[group] = GroupLog(group, self._core.entry_account)
        log.uncertain = doubtful
        return log

    def _in_doubt(self) -> bool:
        """Where all promises are in doubt, so are those of a group that is made a second time:
        what told of it may be what was lost."""
        return any(other.uncertain for other in self._core.groups.values())

    def entries(
        self, group: GroupId, lo: int, hi: int, max_bytes: int
    ) -> list[Entry] | Awaitable[list[Entry]]:
        """Entries lo <= index < hi, at least one, at most about max_bytes of data. A list when
        they are in memory, else an awaitable. Raises EntriesGone (the awaitable may, too, and
        EntriesUnread)."""
        log = self._core.groups.get(group)
        if log is None or not log.first_index <= lo <= log.last_index or log.is_missing(lo):
            raise EntriesGone(f"group {group}: entry {lo} is not in this log")
        found = log.cached(lo, hi, max_bytes)
        if found is not None:
            return found
        return read_entries(self._core, log, lo, hi, max_bytes)

    def term(self, group: GroupId, index: int) -> int:
        """Term of the entry (0 for index 0); also known for first_index - 1. Raises EntriesGone."""
        if index == 0:
            return 0
        log = self._core.groups.get(group)
        if log is None:
            raise EntriesGone(f"group {group}: no log here")
        return log.term(index)

    def keep_entries_from(self, group: GroupId, index: int | None) -> None:
        """A follower still needs entries from `index` on (None: nobody does). Kept up to
        StoreOptions.keep_log_bytes."""
        log = self._core.groups.get(group)
        if log is not None:
            log.keep_from = index

    def reset_group(self, group: GroupId, index: int, term: int) -> asyncio.Future[None]:
        """After a snapshot was installed: the log becomes empty with (index, term) as its last,
        applied_index = index."""
        self._check_open()
        log = self._core.groups.get(group) or self._create_group(group)
        log.reset(index, term)
        log.dropped = True
        return self._log.submit(log, None, (), (), reset=(index, term))

    def create_group(self, group: GroupId, index: int, term: int) -> None:
        """A group begins here behind (index, term), which counts as applied and committed; durable
        with any append that is made after this call. Of one that is here already, and certainly
        never had an entry, the term and the vote stay; nothing if it had one. Raises
        StoreOutOfService."""
        self._check_open()
        log = self._core.groups.get(group)
        if log is None:
            log = self._create_group(group)
        elif not log.is_blank or group in self._core.rows_lost:
            return
        hard = log.hard_state
        if hard.term < term:
            hard = HardState(term, 0, index)
        log.reset(index, term)
        log.hard_state = HardState(hard.term, hard.vote, index)
        hard = HardState(hard.term, hard.vote, index)
        self._log.submit(log, hard, (), (), reset=(index, term))

    async def stage_piece(self, group: GroupId, number: int, piece: bytes) -> None:
        """Keep a piece (of `encode_piece`) of a snapshot that is being received; durable on
        return. Piece 0 drops what was staged before. Raises ValueError, StoreError."""
        self._check_open()
        with self._repairing():
            await self._installer.stage(group, number, piece)

    async def install(  # noqa: PLR0917
        self,
        group: GroupId,
        index: int,
        term: int,
        pieces: int,
        spans: Sequence[Span],
        hard_state: HardState,
        keep: bool,
        rows: Sequence[RowChange] = (),
        unnamed: Unnamed | None = None,
    ) -> None:
        """Make the staged pieces 0..pieces - 1 the rows of `spans`, and of the group's log what
        follows (`index`, `term`): nothing, or (`keep`) what lies above. `rows` are written with
        it. All or nothing, over a crash too. Nobody may read or apply in the spans meanwhile.
        Frames of the streams that are left in `unnamed` are released; after a crash they stay.
        Raises StoreError; SnapshotLost: the rows of the group count as lost, and nothing is staged.
        """
        self._check_open()
        with self._repairing():
            await self._installer.install(
                group, index, term, pieces, spans, hard_state, keep, rows, unnamed
            )

    async def erase(self, group: GroupId, spans: Sequence[Span], rows: Sequence[RowChange]) -> None:
        """The group has left this disk: the rows of `spans` go, and its log is empty behind what is
        applied; its term and vote stay. `rows` are written at the end. In steps: after a crash
        call it again. Nobody may read or apply in the spans meanwhile. Raises StoreError."""
        self._check_open()
        with self._repairing():
            await self._installer.erase(group, spans)
        if rows:
            await self._log.write_rows(list(rows))
        log = self._core.groups.get(group)
        if log is not None:
            await self.reset_group(group, log.applied_index, log.term_before(log.applied_index + 1))

    def note(self, name: bytes, value: bytes | None) -> asyncio.Future[None]:
        """Remember something on this disk alone; durable with the future, and with any append that
        is made after this call. None forgets it."""
        self._check_open()
        return self._log.write_rows([(NOTE_TABLE + name, value)])

    async def noted(self, name: bytes) -> bytes | None:
        """What `note` said last."""
        with self._repairing():
            return await self._core.index.get(NOTE_TABLE + name)

    def clear_uncertain(self, group: GroupId) -> asyncio.Future[None]:
        """The group found a way on (it became a learner and caught up, or a sole voter took
        term + 1): durable with the future."""
        self._check_open()
        log = self._core.groups[group]
        log.uncertain = False
        hard = log.hard_state
        return self._log.submit(log, HardState(hard.term, hard.vote, hard.commit), (), ())

    # --- frames

    def open_stream(self, stream: bytes) -> StreamWriter:
        """A writer of frames into the bulk volume. Raises StoreFull, StoreOutOfService."""
        self._check_open()
        self._space.check()
        return StreamWriter(self._bulk, stream)

    def read_frame_now(self, stream: bytes, number: int) -> Buffer | None:
        """Ciphertext of the frame if no disk I/O is needed, else None. Checked (BLAKE3 and ids).
        Raises FrameMissing, FrameBad."""
        try:
            return self._frames.read_now(stream, number)
        except BadBlock as bad:
            self._spans.wanted(bad)
            raise

    async def read_frame(self, stream: bytes, number: int) -> Buffer:
        """As read_frame_now, with disk I/O. Raises FrameUnread as well, if that fails."""
        with self._repairing():
            return await self._frames.read(stream, number)

    async def stream_frames(self, stream: bytes) -> list[tuple[int, int]]:
        """(first frame, count) runs held here, ascending; for repair."""
        frames = self._frames
        with self._repairing():
            found = await frames.runs(stream)
        return [(first, run.frames) for first, run in found if frames.is_here(run)]

    def frames_held_now(self, stream: bytes) -> int | None:
        """How many frames of the stream are placed here; None if the disk must be asked.
        What is placed is durable once any append that is made after this call is. Raises BadBlock.
        """
        return self._frames.held_now(stream)

    def release_again(self, stream: bytes) -> None:
        """Frames of a stream that an entry had released were placed after that: they go, too."""
        self._check_open()
        rows = self._frames.released([stream])
        if rows:
            self._log.write_rows(rows)

    def pin(self, stream: bytes) -> None:
        """Frames of the stream stay readable until `unpin`. Counted; a restart drops pins."""
        self._frames.pin(stream)

    def unpin(self, stream: bytes) -> None:
        """KeyError if the stream is not pinned."""
        self._frames.unpin(stream)

    # --- rows
    #
    # A read that meets a bad block of the index raises BadBlock and has its key span repaired from
    # the volumes in the background; the same read works once that is done.

    def get_now(self, key: bytes, *, at: Snapshot | None = None) -> bytes | Miss | None:
        """The row's value, None, or MISS: then await `get`. Raises BadBlock."""
        try:
            return self._core.index.get_now(key, at=at)
        except BadBlock as bad:
            self._spans.wanted(bad)
            raise

    async def get(self, key: bytes, *, at: Snapshot | None = None) -> bytes | None:
        """As get_now, with disk I/O."""
        with self._repairing():
            return await self._core.index.get(key, at=at)

    def first_now(self, prefix: bytes, *, at: Snapshot | None = None) -> Row | Miss | None:
        """First row whose key starts with `prefix`, which must end where the filter's prefix
        does. Raises BadBlock."""
        try:
            return self._core.index.first_now(prefix, at=at)
        except BadBlock as bad:
            self._spans.wanted(bad)
            raise

    async def first(self, prefix: bytes, *, at: Snapshot | None = None) -> Row | None:
        """As first_now, with disk I/O."""
        with self._repairing():
            return await self._core.index.first(prefix, at=at)

    def scan_now(
        self, lo: bytes, hi: bytes, limit: int, *, at: Snapshot | None = None
    ) -> list[Row] | Miss:
        """At most `limit` rows with lo <= key < hi, ascending. Raises BadBlock."""
        try:
            return self._core.index.scan_now(lo, hi, limit, at=at)
        except BadBlock as bad:
            self._spans.wanted(bad)
            raise

    async def scan(
        self, lo: bytes, hi: bytes, limit: int, *, at: Snapshot | None = None
    ) -> list[Row]:
        """As scan_now, with disk I/O."""
        with self._repairing():
            return await self._core.index.scan(lo, hi, limit, at=at)

    def measure(self, lo: bytes, hi: bytes) -> int:
        """About how many bytes of the index's tables the rows with lo <= key < hi take, without
        those in memory. Nothing is read."""
        return self._core.index.measure(lo, hi)

    def sample(self, lo: bytes, hi: bytes) -> list[tuple[bytes, int]]:
        """(key, bytes from there on) of places that lie evenly over the rows of a span, in no
        order, some hundreds of them. Nothing is read; the keys need not be of any row."""
        return self._core.index.sample(lo, hi)

    async def repair_index(self) -> int:
        """Put right the key spans that reads found bad; it happens by itself unless
        StoreOptions.background is off. Returns rows written. Raises StoreError, DiskError."""
        return await self._spans.repair()

    def mend_with_others(self, others: Others | None) -> None:
        """Who is asked from now on where the volumes lack what belongs to a bad span. None: nobody
        else has it; the span is refused."""
        self._spans.others = others

    def snapshot(self) -> Snapshot:
        """One instant of all rows; release it soon, it holds memory and files."""
        snapshot: Snapshot = self._core.index.snapshot()
        return snapshot

    def apply(
        self,
        group: GroupId,
        index: int,
        rows: Sequence[RowChange],
        released: Sequence[bytes] = (),
    ) -> None:
        """Entry `index` of `group` (committed, durable here, applied_index + 1) did this.

        Rows are visible at once, all or nothing; durable through the entry, and through an outcome
        record that rides in the next batch. Keys start with a byte >= 0x10. Released streams lose
        their placement when the last pin goes. Call it for every index, with no rows for an entry
        that wrote none. Raises StoreOutOfService, ValueError.
        """
        self._check_open()
        core = self._core
        log = core.groups[group]
        if index != log.applied_index + 1 or index > log.durable_index:
            raise ValueError(
                f"group {group}: entry {index} cannot be applied, applied are "
                f"{log.applied_index}, durable {log.durable_index}"
            )
        check_rows(rows)
        for key, _ in rows:
            if key[0] < FIRST_CATALOG_BYTE:
                raise ValueError(f"row keys below 0x{FIRST_CATALOG_BYTE:02x} belong to the store")
        body = encode_rows(rows, released)
        core.sequence += 1
        if released:
            rows = [*rows, *self._frames.released(released)]
        if rows:
            core.write_rows(rows)
        log.applied_index = index
        self._flusher.entries_since += 1
        self._log.queue_outcome(log, index, core.sequence, body)

    @property
    def crowded(self) -> bool:
        """Rows come faster than flushes and merges take them from memory: writers should wait."""
        core = self._core
        return core.index.memtable_bytes >= core.options.crowded_memtable_bytes

    # --- house-keeping

    async def flush(self) -> None:
        """Everything applied so far is in the index's tables; raises the replay floor.
        Raises StoreFull (nothing changed), StoreOutOfService."""
        await self._flusher.flush()

    async def compact(self) -> int:
        """One volume, if one is worth it; returns the bytes freed.
        Raises StoreFull, StoreOutOfService."""
        self._check_open()
        return await self._tender.compact()

    async def set_aside(
        self, volumes: Sequence[int], directory: str, alone: Container[GroupId] = ()
    ) -> list[str]:
        """Move what is good out of volumes with bad records, and their files to `directory`; lines
        for people. Groups in `alone` have no other members. Raises StoreFull, StoreOutOfService,
        DiskError."""
        self._check_open()
        return await set_aside(
            self._core,
            self._log,
            self._bulk,
            self._flusher,
            self._compactor,
            volumes,
            directory,
            alone,
        )

    async def scrub(self, on_bad: Callable[[BadFrame], None] | None = None) -> int:
        """One pass over everything that is sealed, at StoreOptions.scrub_bytes_per_s; returns the
        count of bad frames, each told to `on_bad`."""
        return await scrub(self._core, on_bad)

    def space(self) -> StoreSpace:
        """As of the last look (at most a few seconds ago)."""
        used = sum(volume.size_bytes for volume in self._core.volumes.values())
        return self._space.state(used + self._core.index.disk_bytes)

    def stats(self) -> StoreStats:
        """Counters since open; the object is the live one."""
        core = self._core
        stats = core.stats
        volumes = core.volumes.values()
        stats.log_volumes = sum(volume.kind is VolumeKind.LOG for volume in volumes)
        stats.bulk_volumes = len(core.volumes) - stats.log_volumes
        stats.live_frame_bytes = sum(volume.placed_bytes for volume in volumes)
        stats.garbage_bytes = sum(
            max(0, volume.size_bytes - volume.placed_bytes) for volume in volumes
        )
        return stats

    @contextlib.contextmanager
    def _repairing(self) -> Iterator[None]:
        """A bad block of the index that is met here is repaired: the same call works then."""
        try:
            yield
        except BadBlock as bad:
            self._spans.wanted(bad)
            raise

    def _check_open(self) -> None:
        core = self._core
        if core.out_of_service:
            raise core.refusal()
        if self._closed:
            raise StoreOutOfService("the store is closed")
