"""The log writer: group commit by draining the queue (DESIGN 4, "Group commit").

Whatever waits when the disk becomes free goes out as one batch with one write and one fdatasync;
while that runs the next batch gathers. Where several write at a time, what waits in the sockets is
taken in first. A timer is used only while the loop is busy, to save it small batches.

Interface: `LogWriter.submit`, `queue_outcome`, `place_runs`, `settle`, `start`, `close`.

Invariants
- One batch is on its way at a time; batch n+1 starts only after the sync of n returned.
- A batch holds each index of a group at most once, so a record that rots cannot be taken for an
  older one with the same index.
- All records that change rows get their sequence in the step that also changes the index, and all
  outcomes that wait go into the next batch: once a batch is durable, so is every change of rows
  that was made before it was built (what a flush relies on).
- The first batches of each log volume restate every group, so that older volumes are not needed
  for hard states; `settled_volume` is the newest volume where that is done.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Container, Sequence

from o3storage.runtime import busy_share
from o3storage.runtime.disk import DiskError
from o3storage.storage._batches import (
    FLAG_RESTATED,
    MAX_BATCH_GROUPS,
    NO_HASH,
    batch_bytes,
    encode_batch,
    summary_bytes,
)
from o3storage.storage._core import Core, Volume
from o3storage.storage._groups import GroupLog
from o3storage.storage._log_batch import (
    RECORD_OVERHEAD,
    Append,
    Infos,
    Payload,
    PlacedRun,
    QueuedOutcome,
    runs_bytes,
)
from o3storage.storage._records import encode_rows
from o3storage.storage._rows import RESTATED_KEY, SCRUB_KEY, RowChange, bulk_key, encode_u64
from o3storage.storage._types import (
    MIB,
    Entry,
    HardState,
    SealedFrame,
    StoreError,
    StoreFull,
    StoreOutOfService,
)
from o3storage.storage._volume import HEADER_BYTES, VolumeKind, align

OUTCOME_WAIT_BYTES = 1 * MIB
"""Outcomes that wait for an append to ride with; beyond it they get a batch of their own."""
OUTCOMES_PER_BATCH_BYTES = 4 * MIB
"""Of outcomes in one batch, so that it stays within MAX_BATCH_BYTES."""
RUNS_PER_BATCH = 4000
"""Of runs in one batch, whoever places them, so that its record stays within MAX_BODY_BYTES."""
FULL_RETRY_S = 1.0
"""How often a full disk is asked again for the next log volume."""
STALL_S = 5.0
"""A batch that finds no space is tried again for so long before those who wait for it are told: as
long as other writes may wait (DESIGN 5), and time for compaction to free a volume."""
NO_LOG_SPACE = "no space left for the log: delete something or add space; it goes on by itself"
GATHER_TURNS = 2
"""Turns of the loop that a batch of several entries is left open for what waits in the sockets: one
to read it, one for its proposals. Batches are larger for it, and PUT at 64 connections took 8 %
less CPU; what the disk idles is less than its sync takes. A lone writer never waits."""
BUSY_FROM = 0.5
"""Part of the loop's time in use from which on small batches are put off."""
BUSY_FULL = 0.8
"""Part of the loop's time in use from which on they are put off for all of BATCH_SPACING_S."""
BATCH_SPACING_S = 0.004
"""From the start of a batch to that of the next, if that is small and the loop is full. A PUT alone
in its batch takes 190 us of CPU, of two 108 each, of sixteen 50: without this the batches were
smallest (1.3 to 2 PUTs at 70 % of the peak) where the loop was short of time for all requests."""
ENOUGH_ENTRIES = 4
"""A batch of so many is not put off: more in it saves little."""
SHARED_FROM = 0.25
"""Part of the last batches that somebody else waited behind, or shared, from which on they are put
off: a lone writer on a fast disk may keep the loop busy, and must not be slowed down."""
SHARED_BATCHES = 16
"""How many these are, as of a moving average."""
LOW_ROOM_BYTES = 12 * MIB
"""Without a spare volume and with less room than this, appends are refused: one more of the
largest append must fit, with the outcomes that wait."""


class LogWriter:
    """The one writer of the current log volume."""

    def __init__(self, core: Core, batch_sequence: int, previous_hash: bytes = NO_HASH) -> None:
        self.core = core
        self.volume: Volume
        """The volume being written."""
        self.settled_volume = 0
        self.bytes_since_flush = 0
        self._room = 0
        self._capacity = 0
        self._sequence = batch_sequence
        self._previous_hash = previous_hash
        self._queue: deque[Append] = deque()
        self._outcomes: deque[QueuedOutcome] = deque()
        self._outcome_bytes = 0
        self._runs: list[PlacedRun] = []
        self._held: list[Volume] = []
        self._placing: list[Volume] = []
        """Held by the runs of the batch that is being made. (If it begins a log volume, others are
        encoded before it.)"""
        self._notes: dict[bytes, bytes | None] = {}
        """Rows of tables 04, 07 and 08 for the next batch."""
        self._reaped: Container[bytes] = ()
        self.cuts = 0
        """Runs that were placed over parts of others (repair)."""
        self._unplaced: dict[PlacedRun, None] = {}
        """See `take_unplaced`."""
        self._wake: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._spare: asyncio.Task[Volume] | None = None
        self._writing = False
        """A batch is on its way."""
        self._began_s = 0.0
        """When the last batch was begun, by the loop's clock."""
        self._shared = 0.0
        """Part of the last batches that had several entries, or appends waiting behind them."""
        self._spare_tried_s = 0.0
        self._spare_failing = False
        """The last try to make a spare failed for want of space, as far as is known."""
        self._closing = False
        self._waits_for_space = False
        """A batch is held up because no volume can be made; it is written once one can."""
        self.stall_listeners: list[Callable[[str], None]] = []
        """Told that a batch has been held up for STALL_S; what is in it may still be written."""
        self._gathered: list[Append] = []
        core.fault_listeners.append(self._fail_all)

    # --- life

    async def start(self) -> None:
        """Create the first volume of this open, restate the groups in it, and run.
        Raises StoreFull, StoreOutOfService."""
        options = self.core.options
        size = min(options.first_log_volume_bytes, options.log_volume_bytes)
        volume = await self.core.create_volume(VolumeKind.LOG, size)
        self._take_volume(volume, size)
        try:
            await self._restate()
        except DiskError as error:
            raise self.core.fault(error) from error
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Write what waits, stop. Idempotent."""
        self._closing = True
        self._kick()
        task, self._task = self._task, None
        if task is not None:
            await task
        await self._drop_spare()
        volume = self.volume
        if not self.core.out_of_service and volume.file is not None and not volume.sealed:
            try:
                await volume.file.truncate(volume.size_bytes)
            except DiskError as error:
                raise self.core.fault(error) from error
            volume.sealed = True

    async def abandon(self) -> None:
        """Stop at once, for a store that is out of service."""
        self._closing = True
        for task in (self._task, self._spare):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, StoreFull, StoreOutOfService):
                    await task
        self._task = self._spare = None
        # What was cut in the middle of its batch is told so, rather than left to wait for ever.
        self._fail_all(self.core.refusal())

    async def _drop_spare(self) -> None:
        spare, self._spare = self._spare, None
        if spare is None:
            return
        try:
            volume = await spare
        except (StoreFull, StoreOutOfService, asyncio.CancelledError):
            return
        if not self.core.out_of_service:
            await self.core.drop_volume(volume, durable=False)

    # --- queueing

    @property
    def cramped(self) -> bool:
        """No spare volume could be made and the current one is nearly used up. Asking tries again
        to make one, at most once in FULL_RETRY_S."""
        if self._waits_for_space:
            return True
        spare = self._spare
        if self._room >= min(LOW_ROOM_BYTES, self._capacity // 2) or spare is None:
            return False
        if not spare.done() or spare.cancelled() or spare.exception() is None:
            return self._spare_failing and not spare.done()
        self._spare_failing = True
        now_s = asyncio.get_running_loop().time()
        if now_s - self._spare_tried_s >= FULL_RETRY_S:
            self._make_spare()
        return True

    def submit(
        self,
        group: GroupLog | None,
        hard: HardState | None,
        entries: Sequence[Entry],
        frames: Sequence[SealedFrame],
        *,
        previous_term: int = 0,
        replaces: bool = False,
        reset: tuple[int, int] | None = None,
        keep: bool = False,
        rows: Sequence[RowChange] = (),
        fills: Sequence[Entry] = (),
    ) -> asyncio.Future[None]:
        """Queue for the next batch; the future resolves when it is durable. `rows`: changes of
        rows that are this disk's alone, visible with the batch."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.core.out_of_service:
            future.set_exception(self.core.refusal())
            return future
        self._queue.append(
            Append(
                group,
                hard,
                entries,
                frames,
                future,
                previous_term,
                replaces,
                reset,
                keep,
                encode_rows(rows) if rows else b"",
                fills,
            )
        )
        wake = self._wake
        if wake is not None:
            self._wake = None
            if not wake.done():
                wake.set_result(None)
        return future

    def write_rows(self, rows: Sequence[RowChange]) -> asyncio.Future[None]:
        """Changes of rows that no entry of the log says: this disk's alone, or a snapshot's."""
        return self.submit(None, None, (), (), rows=rows)

    def queue_outcome(self, group: GroupLog, index: int, sequence: int, body: bytes) -> None:
        """Rides in the next batch, without a sync of its own."""
        self._outcomes.append((group, index, sequence, body))
        self._outcome_bytes += len(body) + RECORD_OVERHEAD
        if self._outcome_bytes >= OUTCOME_WAIT_BYTES:
            self._kick()

    def place_runs(
        self,
        runs: Sequence[PlacedRun],
        held: Sequence[Volume],
        *,
        unless: Container[bytes] | None = None,
    ) -> None:
        """Runs whose frames are durable; placed with the next batch, all of them at once. `held`
        volumes are let go then. Streams that are in `unless` at that time are left out
        (compaction: they were released meanwhile)."""
        self._runs += runs
        self._held += held
        if unless is not None:
            self._reaped = unless

    def take_unplaced(self, runs: Sequence[PlacedRun]) -> list[PlacedRun]:
        """Those of `runs` that cut into others and were left out of their batch, because rows that
        it takes to place them were not in memory. What they replace stays as it is until they are
        placed again, after these rows were read."""
        left = [placed for placed in runs if placed in self._unplaced]
        for placed in left:
            del self._unplaced[placed]
        return left

    def note_bulk(self, volume: int, end: int | None) -> None:
        """So much of a bulk volume is synced; or (None) it was freed. Said with the next batch:
        before, or together with, the placement of any frame below `end`."""
        self._notes[bulk_key(volume)] = None if end is None else encode_u64(end)

    def note_scrub(self, value: bytes) -> None:
        """How far the scrub is. Said with the next batch."""
        self._notes[SCRUB_KEY] = value

    def turn(self) -> None:
        """The next batch begins a new volume, which restates every group."""
        self._room = 0

    def note_restated(self, sequence: int) -> None:
        """All rows were written anew with this sequence: older changes in the volumes are void.
        Said with the next batch."""
        self._notes[RESTATED_KEY] = encode_u64(sequence)

    def settle(self) -> asyncio.Future[None]:
        """Resolves when everything that was queued before is durable, outcomes too. Raises
        StoreFull while a batch waits for space: what was queued stays queued."""
        if self._waits_for_space and not self.core.out_of_service:
            refused: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            refused.set_exception(StoreFull(NO_LOG_SPACE))
            return refused
        waits = self._queue or self._outcomes or self._runs or self._held or self._notes
        if self._writing or waits:
            return self.submit(None, None, (), ())
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    def _kick(self) -> None:
        wake, self._wake = self._wake, None
        if wake is not None and not wake.done():
            wake.set_result(None)

    # --- writing

    async def _run(self) -> None:
        try:
            while True:
                if self._queue or self._outcome_bytes >= OUTCOME_WAIT_BYTES:
                    queue = self._queue
                    rest_s = self._put_off_s()
                    if rest_s > 0:
                        await asyncio.sleep(rest_s)
                    if len(queue) > 1 or (queue and len(queue[0].entries) > 1):
                        for _ in range(GATHER_TURNS):
                            await asyncio.sleep(0)
                    await self._write_batch()
                elif self._closing:
                    if not (self._outcomes or self._runs or self._notes):
                        return
                    await self._write_batch()
                else:
                    self._wake = asyncio.get_running_loop().create_future()
                    await self._wake
        except DiskError as error:
            self._fail_all(self.core.fault(error))
        except (StoreFull, StoreOutOfService) as error:
            self._fail_all(error)
        except Exception as error:
            self._fail_all(self.core.defect("log writer", error))

    def _put_off_s(self) -> float:
        """How long the next batch waits for more to be in it."""
        busy = busy_share()
        if busy <= BUSY_FROM or self._shared < SHARED_FROM or self._closing:
            return 0.0
        entries = 0
        for append in self._queue:
            entries += len(append.entries)
            if entries >= ENOUGH_ENTRIES:
                return 0.0
        part = min(1.0, (busy - BUSY_FROM) / (BUSY_FULL - BUSY_FROM))
        now_s = asyncio.get_running_loop().time()
        return self._began_s + part * BATCH_SPACING_S - now_s

    def _fail_all(self, error: StoreError) -> None:
        """Nothing that waits here will be written."""
        for append in (*self._gathered, *self._queue):
            if not append.future.done():
                append.future.set_exception(error)
                append.future.exception()  # not every caller looks at a lost future
        self._gathered = []
        self._queue.clear()

    async def _write_batch(self) -> None:
        if self.core.out_of_service:
            raise self.core.refusal()
        self._writing = True
        self._began_s = asyncio.get_running_loop().time()
        infos, outcomes, runs, notes, payload = self._gather()
        if batch_bytes(MAX_BATCH_GROUPS, payload) > self._room:
            await self._rotate(batch_bytes(MAX_BATCH_GROUPS, payload))
        data, entries = self._encode(infos, outcomes, runs, notes, payload)
        for held in self._placing:
            held.holds -= 1
        self._placing = []
        await self._put(data)
        self._writing = False
        self._complete(entries)
        if self._spare is None and self._room < self._capacity * 3 // 4 and not self._closing:
            self._make_spare()

    async def _put(self, data: bytes) -> None:
        volume = self.volume
        assert volume.file is not None
        await volume.file.write_sync(volume.size_bytes, [data])
        volume.size_bytes += len(data)
        self._room -= len(data)
        self.bytes_since_flush += len(data)

    async def _restate(self) -> None:
        """The first batches of a volume: every group's last entry, hard state, applied index."""
        groups = sorted(number for number, group in self.core.groups.items() if group.begun)
        for at in range(0, max(1, len(groups)), MAX_BATCH_GROUPS):
            infos = Infos()
            for group in groups[at : at + MAX_BATCH_GROUPS]:
                infos.by_group[group] = [FLAG_RESTATED, 0, 0, 0]
            gathered, self._gathered = self._gathered, []
            try:
                data, _ = self._encode(infos, [], [], {}, 0)
                await self._put(data)
            finally:
                self._gathered = gathered
        self.settled_volume = self.volume.volume

    def _gather(
        self,
    ) -> tuple[
        Infos,
        list[QueuedOutcome],
        list[PlacedRun],
        dict[bytes, bytes | None],
        int,
    ]:
        """Take from the queues what the next batch will hold; with its records' bytes."""
        options = self.core.options
        payload = 0
        buffers = 0
        outcomes: list[QueuedOutcome] = []
        while self._outcomes and payload < OUTCOMES_PER_BATCH_BYTES:
            outcome = self._outcomes.popleft()
            outcomes.append(outcome)
            payload += len(outcome[3]) + RECORD_OVERHEAD
            self._outcome_bytes -= len(outcome[3]) + RECORD_OVERHEAD
        infos = Infos()
        gathered = self._gathered
        assert not gathered
        runs, self._runs = self._some_runs()
        if not self._runs:
            self._placing, self._held = self._held, []
        notes, self._notes = self._notes, {}
        if runs or notes:
            payload += RECORD_OVERHEAD + runs_bytes(runs, notes)
        queue = self._queue
        while queue and not self._outcomes and not self._runs:
            append = queue[0]
            if gathered and (
                payload + append.size > options.batch_bytes
                or buffers + append.buffers > options.batch_buffers
            ):
                break
            if not infos.takes(append):
                break
            queue.popleft()
            gathered.append(append)
            payload += append.size
            buffers += append.buffers
            infos.take(append)
        return infos, outcomes, runs, notes, payload

    def _some_runs(self) -> tuple[list[PlacedRun], list[PlacedRun]]:
        """(runs for the next batch, those for the batches after it). What one call placed of a
        stream stays together: compaction replaces a stream's runs in a volume whole."""
        runs = self._runs
        end = RUNS_PER_BATCH
        if len(runs) <= end:
            return runs, []
        while end < len(runs) and runs[end][0] == runs[end - 1][0]:
            end += 1
        return runs[:end], runs[end:]

    def _encode(
        self,
        infos: Infos,
        outcomes: list[QueuedOutcome],
        runs: list[PlacedRun],
        notes: dict[bytes, bytes | None],
        payload: int,
    ) -> tuple[bytes, list[tuple[GroupLog, int]]]:
        """The batch's bytes and, by group, the last index in it. Places frames and entries."""
        core = self.core
        volume = self.volume
        head = summary_bytes(len(infos.by_group))
        body = Payload(core, volume, volume.size_bytes + head)
        body.put_outcomes(outcomes)
        if self._reaped:
            runs = self._without_reaped(runs)
        if runs or notes:
            self.cuts += sum([cuts for _, _, _, cuts in runs])
            for unplaced in body.put_runs(runs, notes):
                self._unplaced[unplaced] = None
        for append in self._gathered:
            body.put_append(append)
        assert body.size_bytes <= payload
        data, self._previous_hash = encode_batch(
            volume=volume.volume,
            offset=volume.size_bytes,
            sequence=self._sequence,
            epoch=core.epoch,
            previous_hash=self._previous_hash,
            store_sequence=core.sequence,
            hashes=body.hashes,
            payload=body.parts,
            payload_bytes=body.size_bytes,
            groups=infos.summaries(core),
        )
        self._sequence += 1
        if body.rows:
            core.write_rows(body.rows)
        stats = core.stats
        stats.batches += 1
        stats.batch_bytes += len(data)
        stats.batch_records += len(body.hashes)
        stats.appends += len(self._gathered)
        return data, infos.last_entries(core)

    def _without_reaped(self, runs: list[PlacedRun]) -> list[PlacedRun]:
        kept: list[PlacedRun] = []
        for placed in runs:
            if placed[0] in self._reaped:
                self.core.count_garbage(placed[2])
            else:
                kept.append(placed)
        return kept

    def _complete(self, entries: list[tuple[GroupLog, int]]) -> None:
        for group, last in entries:
            last = min(last, group.cut, group.last_index)  # (what was missing may be dropped again)
            group.durable_index = max(group.durable_index, last)
        gathered, self._gathered = self._gathered, []
        shared = self._queue or sum([len(append.entries) for append in gathered]) > 1
        self._shared += ((1.0 if shared else 0.0) - self._shared) / SHARED_BATCHES
        for append in gathered:
            if not append.future.done():
                append.future.set_result(None)

    # --- volumes

    def _make_spare(self) -> None:
        loop = asyncio.get_running_loop()
        self._spare_tried_s = loop.time()
        self._spare = loop.create_task(self._prepare(self.core.options.log_volume_bytes))
        # `cramped` and `_rotate` look at its error; nobody else has to
        self._spare.add_done_callback(lambda task: task.cancelled() or task.exception())

    def _take_volume(self, volume: Volume, capacity: int) -> None:
        self._spare_failing = False
        self.volume = volume
        self._capacity = capacity
        self._room = capacity - HEADER_BYTES

    def _hold_up(self, *, told: bool) -> None:
        """There is no space for the next batch. Nobody waits for ever: settling ends at once, with
        appends that may be on the disk later their owners are `told`."""
        self._waits_for_space = True
        error = StoreFull(NO_LOG_SPACE)
        for append in (*self._gathered, *self._queue):
            if append.group is None and not append.size and not append.future.done():
                append.future.set_exception(error)
                append.future.exception()
        if told:
            for listener in self.stall_listeners:
                listener(NO_LOG_SPACE)

    async def _prepare(self, capacity: int) -> Volume:
        volume = await self.core.create_volume(VolumeKind.LOG, capacity)
        # How much is free is looked at here too: other programs may have taken a great deal since
        # the last look, and this volume may be full before the next.
        await self.core.spare_bytes()
        return volume

    async def _rotate(self, need: int) -> None:
        """Go on in the next volume; waits for space if the disk is full."""
        capacity = self.core.options.log_volume_bytes
        spare, self._spare = self._spare, None
        volume: Volume | None = None
        if spare is not None:
            with contextlib.suppress(StoreFull):
                volume = await spare
        if need + HEADER_BYTES > capacity:
            if volume is not None:
                await self.core.drop_volume(volume, durable=False)
                volume = None
            capacity = align(need + HEADER_BYTES)
        held_up_s = 0.0
        while volume is None:
            try:
                volume = await self._prepare(capacity)
            except StoreFull:
                if self._closing:
                    raise
                self._hold_up(told=held_up_s >= STALL_S)
                held_up_s += FULL_RETRY_S
                await asyncio.sleep(FULL_RETRY_S)
        self._waits_for_space = False
        old = self.volume
        self._take_volume(volume, capacity)
        await self._restate()
        assert old.file is not None
        await old.file.truncate(old.size_bytes)
        await self.core.seal(old)
