"""The bulk writer: frames of larger objects, many streams interleaved, and what compaction packs.

Writes start and end at 4 KiB boundaries and go out with direct I/O from aligned buffers. A record
stands at a 4 KiB boundary, but small ones follow each other directly. Bulk volumes are never
replayed; their frames are reached through the placement table alone.

Interface: `BulkWriter`, `StreamWriter` (public), `RecordOwner`, `RunBuilder`.

Invariants
- A frame is placed (in the log) only after the sync that covers its bytes returned, and that sync
  started after they were written.
- `write` holds at most `bulk_queue_bytes` in memory; whoever comes then waits.
- One write or sync of this writer is under way at a time; all who wait for a sync share it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterable

from o3storage.runtime.disk import Buffer, DiskError, DiskFull
from o3storage.storage._core import Core, Volume
from o3storage.storage._log import LogWriter
from o3storage.storage._log_batch import PlacedRun
from o3storage.storage._records import (
    PREFIX_BYTES,
    STATE,
    check_frame,
    frame_parts,
    seal_record,
)
from o3storage.storage._rows import (
    MAX_RUN_FRAMES,
    Run,
    placement_bounds,
    placement_key,
    run_bytes,
)
from o3storage.storage._types import (
    KIB,
    MIB,
    SEAL_TAG_BYTES,
    STREAM_ID_BYTES,
    SealedFrame,
    StoreError,
    StoreFull,
)
from o3storage.storage._volume import BLOCK_BYTES, HEADER_BYTES, VolumeKind, align
from o3storage.storage.index import BadBlock

WRITE_BYTES = 2 * MIB
"""One write of the bulk: large enough to be steady (measured at 8 MiB/s steps and up), small
enough that a sync does not wait long behind it."""


PACK_BYTES = 64 * KIB
"""Records below this follow a record of their kind directly: 4 KiB alignment would waste most of
what compaction packs. Large frames stay aligned, so that a run of them has a fixed stride."""
PLACE_RUNS = 1000
"""Runs that one batch places for a writer: one step on the loop handles no more rows (DESIGN 6). Of
two bodies that come at the same time each frame may be a run of its own."""
PLACE_TRIES = 16
"""Rows that were read are still in memory a batch later, but for a flush of the index between."""


class RunBuilder:
    """Joins frames that came to stand one behind the other into runs."""

    __slots__ = ("_open", "_ready", "_taken")

    def __init__(self) -> None:
        self._open: list[int] | None = None
        """[first, volume, offset, frames, record bytes, last bytes], still growing."""
        self._ready: list[tuple[int, Run]] = []
        self._taken = 0
        """Frames of the open run when it was taken last. It is not given again as it was then:
        compaction may have moved them since, and freed their volume."""

    def add(self, number: int, volume: int, offset: int, size: int) -> None:
        run = self._open
        if run is not None:
            first, in_volume, start, frames, record, last = run
            if (
                in_volume == volume
                and number == first + frames
                and last == record
                and offset == start + frames * align(record)
                and frames < MAX_RUN_FRAMES
                and size <= record
            ):
                run[3] = frames + 1
                run[5] = size
                return
            self.cut()
        self._open = [number, volume, offset, 1, size, size]

    def cut(self) -> None:
        """The next frame begins a run, wherever it stands."""
        run, self._open = self._open, None
        if run is not None and run[3] > self._taken:
            self._ready.append(_closed(run))
        self._taken = 0

    def take(self) -> list[tuple[int, Run]]:
        """(first frame, run) of what was added since; an open run comes again once it grew."""
        ready, self._ready = self._ready, []
        run = self._open
        if run is not None and run[3] > self._taken:
            ready.append(_closed(run))
            self._taken = run[3]
        return ready

    def single(self) -> bool:
        """All there is so far is one frame, number 0."""
        return (
            not self._ready and self._open is not None and self._open[0] == 0 == self._open[3] - 1
        )


def _closed(run: list[int]) -> tuple[int, Run]:
    first, volume, offset, frames, record, last = run
    return first, Run(volume, offset, frames, record, last)


class RecordOwner:
    """Who queued records: hears of errors, and holds the volumes that its frames went to until
    their placement is in the index (compaction leaves such volumes alone)."""

    __slots__ = ("__weakref__", "_held", "_unplaced", "error")

    def __init__(self) -> None:
        self.error: StoreError | None = None
        self._held: dict[int, Volume] = {}
        self._unplaced: dict[int, tuple[Volume, int]] = {}
        """By volume: bytes of frames in it that no batch of the log was asked to place."""

    def placed(self, frame: SealedFrame, volume: Volume, offset: int, size: int) -> None:
        """The bulk writer put the frame there."""
        raise NotImplementedError

    def hold(self, volume: Volume, size: int) -> None:
        """A frame of `size` bytes is in it."""
        number = volume.volume
        if number not in self._held:
            self._held[number] = volume
            volume.holds += 1
        self._unplaced[number] = volume, self._unplaced.get(number, (volume, 0))[1] + size
        volume.unplaced_bytes += size

    def hand_over(self, runs: Iterable[Run]) -> None:
        """The log was asked to place them."""
        for run in runs:
            volume, unplaced = self._unplaced.get(run.volume, (None, 0))
            if volume is not None:
                size = min(unplaced, run_bytes(run))  # (what grew is counted with the old part)
                self._unplaced[run.volume] = volume, unplaced - size
                volume.unplaced_bytes -= size

    def take_held(self) -> list[Volume]:
        held, self._held = self._held, {}
        return list(held.values())

    def discard(self) -> None:
        """Nothing more comes, and what was not placed never will be. Idempotent."""
        for volume in self.take_held():
            volume.holds -= 1
        left, self._unplaced = self._unplaced, {}
        for volume, size in left.values():
            volume.unplaced_bytes -= size
            volume.placed_bytes -= size
            volume.dead_bytes += size

    def __del__(self) -> None:
        self.discard()


class _Item:
    """A record on its way: a frame of a stream, or state rows."""

    __slots__ = ("body", "frame", "owner", "size")

    def __init__(self, owner: RecordOwner, frame: SealedFrame | None, body: bytes) -> None:
        self.owner = owner
        self.frame = frame
        self.body = body
        if frame is not None:
            self.size = PREFIX_BYTES + len(frame.data)
        else:
            self.size = PREFIX_BYTES + SEAL_TAG_BYTES + len(body)


class StreamWriter(RecordOwner):
    """Writes one stream's frames into the bulk volume. Made by `Store.open_stream`."""

    __slots__ = ("_bulk", "_cuts", "_runs", "stream")

    def __init__(self, bulk: BulkWriter, stream: bytes) -> None:
        super().__init__()
        if len(stream) != STREAM_ID_BYTES:
            raise ValueError(f"a stream id is {STREAM_ID_BYTES} bytes, not {len(stream)}")
        self.stream = stream
        self._bulk = bulk
        self._runs = RunBuilder()
        self._cuts: bool | None = None
        """Frames of this stream were placed before this writer; None before the first sync."""

    async def write(self, frame: SealedFrame) -> None:
        """Queue the frame; waits while the queue is over its bound (backpressure).
        `frame.data` must not change until `sync` returned. Raises StoreFull, StoreOutOfService."""
        if frame.stream != self.stream:
            raise ValueError("the frame belongs to another stream")
        check_frame(frame)
        await self._bulk.write(self, frame)

    async def sync(self, *, wait_placement: bool = True) -> None:
        """Every frame written so far is durable and its placement is synced in the log.

        With `wait_placement=False` the placement only waits in the log's queue: it is durable with
        (in the same batch as, or before) the next append that is made after this call returned.
        Raises StoreFull, StoreOutOfService."""
        await self._bulk.sync()
        if self.error is not None:
            raise self.error
        new = self._runs.take()
        if self._cuts is None:
            self._cuts = bool(await self._bulk.placed_at(self.stream, 0xFFFFFFFF))
        runs = [(self.stream, first, run, self._cuts) for first, run in new]
        if self._cuts:
            await self._place_over(runs)
            return
        log = self._bulk.log
        while len(runs) > PLACE_RUNS:
            log.place_runs(runs[:PLACE_RUNS], ())
            runs = runs[PLACE_RUNS:]
            await log.settle()
        self.hand_over([run for _, run in new])
        log.place_runs(runs, self.take_held())
        if wait_placement:
            await log.settle()

    async def _place_over(self, runs: list[PlacedRun]) -> None:
        """A repair: what it may cut into has to be in memory when the batch is made."""
        log = self._bulk.log
        stored = [run for _, _, run, _ in runs]
        try:
            for _ in range(PLACE_TRIES):
                for _, first, run, _ in runs:
                    await self._bulk.placed_at(self.stream, first + run.frames)
                log.place_runs(runs, ())
                await log.settle()
                runs = log.take_unplaced(runs)
                if not runs:
                    self.hand_over(stored)
                    self.discard()
                    return
        finally:
            log.take_unplaced(runs)
        raise StoreError(
            f"frames of stream {self.stream.hex()} are stored, and cannot be placed: the index's "
            "cache does not hold a block for as long as a batch takes"
        )

    def placed(self, frame: SealedFrame, volume: Volume, offset: int, size: int) -> None:
        self.hold(volume, size)
        self._runs.add(frame.number, volume.volume, offset, size)


class BulkWriter:
    """The one writer of the current bulk volume, which is made when the first frame comes."""

    def __init__(self, core: Core, log: LogWriter) -> None:
        self.core = core
        self.log = log
        self.volume: Volume | None = None
        self.queued_bytes = 0
        self.written_bytes = 0
        self._queue: deque[_Item] = deque()
        self._allocated = 0
        self._syncs: deque[tuple[int, asyncio.Future[None]]] = deque()
        """(items that must be written first, future), ascending."""
        self._items_queued = 0
        self._items_done = 0
        """Written, or given up for want of space."""
        self._room_waiters: deque[asyncio.Future[None]] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self._dirty = False
        """Something was written since the last sync."""
        self._retire = False
        """Close the current volume before the next write."""
        self._buffer: memoryview | None = None
        self.on_bad_block: Callable[[BadBlock], None] = lambda _: None
        """Told of a block that a look at the placement table met."""
        core.fault_listeners.append(self._fail)

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Write and sync what waits, cut the volume at its end."""
        self._closing = True
        self._kick()
        task, self._task = self._task, None
        if task is not None:
            await task
        if not self.core.out_of_service:
            with contextlib.suppress(StoreError):
                await self._seal_volume()

    async def abandon(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    # --- callers

    async def write(self, owner: RecordOwner, frame: SealedFrame | None, body: bytes = b"") -> None:
        """Queue a frame or (frame None) the body of a STATE record; waits for room."""
        try:
            while self.queued_bytes >= self.core.options.bulk_queue_bytes:
                self.core.check_service()
                room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._room_waiters.append(room)
                await room
            self.core.check_service()
            if owner.error is not None:
                raise owner.error
        except BaseException:
            self._free_waiters()  # (perhaps it was woken: the room is the next one's)
            raise
        item = _Item(owner, frame, body)
        self._queue.append(item)
        self._items_queued += 1
        self.queued_bytes += item.size
        self._kick()
        self._free_waiters()

    async def sync(self) -> None:
        """Everything that `write` took before this call is durable, or its writer has an error."""
        self.core.check_service()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._syncs.append((self._items_queued, done))
        self._kick()
        await done

    async def placed_at(self, stream: bytes, number: int) -> list[tuple[bytes, bytes]]:
        """The placement row for the last run that begins at or before frame `number`."""
        low, high = placement_key(stream, number), placement_bounds(stream)[1]
        try:
            return await self.core.index.scan(low, high, 1)
        except BadBlock as bad:
            self.on_bad_block(bad)
            raise

    def _kick(self) -> None:
        wake, self._wake = self._wake, None
        if wake is not None and not wake.done():
            wake.set_result(None)

    def _fail(self, error: StoreError) -> None:
        for item in self._queue:
            item.owner.error = error
        waiting = [*(future for _, future in self._syncs), *self._room_waiters]
        self._syncs.clear()
        self._room_waiters.clear()
        self._queue.clear()
        self.queued_bytes = 0
        for future in waiting:
            if not future.done():
                future.set_exception(error)
                future.exception()

    # --- the writing task

    async def _run(self) -> None:
        while not self.core.out_of_service:
            try:
                if self._syncs and self._syncs[0][0] <= self._items_done:
                    await self._sync_some()  # first: a steady stream of writes must not starve it
                elif self._retire:
                    self._retire = False
                    await self._seal_volume()
                elif self._queue:
                    await self._write_some()
                elif self._closing:
                    return
                else:
                    self._wake = asyncio.get_running_loop().create_future()
                    await self._wake
            except DiskFull as error:
                self._refuse(StoreFull(f"the disk is full: {error}"))
            except StoreFull as error:
                self._refuse(error)
            except DiskError as error:
                self.core.fault(error)
            except StoreError as error:
                self._fail(error)
            except Exception as error:
                self._fail(self.core.defect("bulk writer", error))

    def _refuse(self, error: StoreFull) -> None:
        """No room: the streams in the queue end here, what was written before stays good."""
        queue = list(self._queue)
        self._queue.clear()
        self.queued_bytes = 0
        self._items_done += len(queue)
        for item in queue:
            item.owner.error = error
        self._free_waiters()
        # What was allocated ahead goes back, and garbage in this volume can be freed.
        self.retire()

    def retire(self) -> None:
        """Close the current volume soon, so that compaction may take it: space is short."""
        if self.volume is not None and self.volume.size_bytes > HEADER_BYTES:
            self._retire = True
            self._kick()

    def _free_waiters(self) -> None:
        while self._room_waiters and self.queued_bytes < self.core.options.bulk_queue_bytes:
            waiter = self._room_waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return  # it will queue its frame; the next write wakes the next

    async def _write_some(self) -> None:
        """Write the next records, as many as fit one write."""
        first = self._queue[0]
        volume = await self._volume_for(align(first.size), isinstance(first.owner, StreamWriter))
        room = min(WRITE_BYTES, self._allocated - volume.size_bytes)
        items: list[tuple[_Item, int]] = []
        end = 0
        packed = False
        for item in self._queue:
            small = item.size < PACK_BYTES
            at = end if small and packed else align(end)
            if items and align(at + item.size) > room:
                break
            items.append((item, at))
            end = at + item.size
            packed = small
        total = align(end)
        if self._buffer is None or len(self._buffer) < total:
            self._buffer = self.core.disk.aligned_buffer(max(total, WRITE_BYTES))
        buffer = self._buffer
        start = volume.size_bytes
        filled = 0
        for item, at in items:
            self._queue.popleft()
            buffer[filled:at] = b"\xff" * (at - filled)
            filled = at
            for part in self._encode(volume, item, start + at):
                buffer[filled : filled + len(part)] = part
                filled += len(part)
            assert filled == at + item.size
        buffer[filled:total] = b"\xff" * (total - filled)
        assert volume.file is not None
        self._dirty = True
        await volume.file.write(start, [buffer[:total]])
        volume.size_bytes = start + total
        self.written_bytes += total
        for item, at in items:
            if item.frame is not None:
                item.owner.placed(item.frame, volume, start + at, item.size)
                volume.placed_bytes += item.size
            else:
                volume.change_bytes += item.size
            self.queued_bytes -= item.size
        self._items_done += len(items)
        self._free_waiters()

    @staticmethod
    def _encode(volume: Volume, item: _Item, offset: int) -> list[Buffer]:
        parts: list[Buffer] = []
        if item.frame is not None:
            frame_parts(parts, item.frame, 0)
        else:
            assert volume.sealer is not None
            seal_record(parts, volume.sealer, offset, STATE, 0, 0, 0, 0, 0, item.body)
        return parts

    async def _sync_some(self) -> None:
        """One sync for all whose records are written."""
        waiting: list[asyncio.Future[None]] = []
        while self._syncs and self._syncs[0][0] <= self._items_done:
            waiting.append(self._syncs.popleft()[1])
        if self.volume is not None and self._dirty:
            assert self.volume.file is not None
            try:
                await self.volume.file.sync()
            except DiskError:
                self._syncs.extendleft((0, future) for future in waiting)
                raise  # `fault` refuses them all
            self._dirty = False
            self.log.note_bulk(self.volume.volume, self.volume.size_bytes)
        for future in waiting:
            if not future.done():
                future.set_result(None)

    # --- volumes

    async def _volume_for(self, size: int, new_data: bool) -> Volume:
        """The volume that takes `size` more bytes, with space allocated for them. `new_data` may
        not take the reserve, which compaction may. Raises StoreFull, DiskFull."""
        options = self.core.options
        volume = self.volume
        if (
            volume is not None
            and volume.size_bytes + size > options.bulk_volume_bytes + HEADER_BYTES
        ):
            await self._seal_volume()
            volume = None
        if volume is not None and volume.size_bytes + size <= self._allocated:
            return volume
        step = max(align(options.bulk_allocate_bytes), size)
        if new_data:
            spare = await self.core.spare_bytes()
            if spare < size:
                raise StoreFull("the disk is full but for its reserve")
            step = max(size, min(step, spare // BLOCK_BYTES * BLOCK_BYTES))
        while True:
            try:
                if volume is None:
                    volume = await self.core.create_volume(VolumeKind.BULK, HEADER_BYTES + step)
                    self.volume = volume
                    self._allocated = HEADER_BYTES + step
                else:
                    assert volume.file is not None
                    await volume.file.allocate(self._allocated, step, zero_fill=False)
                    self.core.took_space(step)
                    self._allocated += step
            except (DiskFull, StoreFull):
                if step == size:
                    raise
                step = max(size, align(step // 4))  # a whole step does not fit: less may
            else:
                return volume

    async def _seal_volume(self) -> None:
        """Cut the volume at its end; nothing is written to it any more."""
        volume, self.volume = self.volume, None
        if volume is None or volume.file is None:
            return
        try:
            await volume.file.truncate(volume.size_bytes)
            if self._dirty:
                await volume.file.sync()
                self._dirty = False
                self.log.note_bulk(volume.volume, volume.size_bytes)
        except DiskError as error:
            raise self.core.fault(error) from error
        await self.core.seal(volume)
