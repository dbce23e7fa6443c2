"""What the parts of one open store share: disk, keys, volumes, counters, and the fault switch.

Interface: `Core`, `Volume`.

Invariants
- `sequence` grows by one for each change of rows (an outcome, a frame or run placed); it never
  goes back, not over restarts either: every batch header carries it.
- A volume id is never used again: `next_volume` is above every volume that has ever been seen.
- After `fault` no write or sync is started any more (promise P6).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from o3storage.crypto import FileSealer
from o3storage.runtime.clock import Clock, Entropy
from o3storage.runtime.disk import Disk, DiskError, DiskFull, File, OpenMode
from o3storage.runtime.jobs import Jobs
from o3storage.storage._groups import EntryCache, GroupLog
from o3storage.storage._rows import Hole, Run, run_bytes
from o3storage.storage._types import (
    MIB,
    FrameMissing,
    StoreFull,
    StoreOptions,
    StoreOutOfService,
    StoreStats,
)
from o3storage.storage._unreadable import read_around
from o3storage.storage._volume import (
    HEADER_BYTES,
    SALT_BYTES,
    VOLUME_DIR,
    VolumeHeader,
    VolumeKind,
    encode_header,
    open_sealer,
    volume_path,
)
from o3storage.storage.index import MAX_BATCH_ROWS

if TYPE_CHECKING:
    from o3storage.storage._rows import RowChange, RowIndex
    from o3storage.storage.index import BadBlock

OUT_OF_SERVICE = "OUT_OF_SERVICE"
"""File that start-up obeys; its text says why and what to do."""

ZERO_STEP_BYTES = 1 * MIB
"""Zero-fill goes in steps with a sync each, so that a log sync beside it does not wait for all. On
a busy disk, beside steps of 4 MiB one log sync in ten took 17 to 27 ms, beside these 8 to 12, and
all of a volume was filled as fast."""

OPEN_FILES_MAX = 512
"""Volumes held open for reading; the least recently opened is closed beyond it."""

_OUT_OF_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE})


class Volume:
    """One volume file."""

    __slots__ = (
        "change_bytes",
        "dead_bytes",
        "file",
        "header",
        "holds",
        "in_use",
        "keep",
        "path",
        "placed_bytes",
        "sealed",
        "sealer",
        "size_bytes",
        "synced_bytes",
        "unlinked",
        "unplaced_bytes",
    )

    def __init__(self, header: VolumeHeader, size_bytes: int, sealer: FileSealer | None) -> None:
        self.header = header
        self.path = volume_path(header.kind, header.volume)
        self.size_bytes = size_bytes
        """End of the last good record; the file may be longer while it is written."""
        self.sealer = sealer
        self.file: File | None = None
        self.in_use = 0
        """Reads under way: the file is closed after the last."""
        self.sealed = False
        """Nothing is written to it any more."""
        self.dead_bytes = 0
        """Of frames that lost their placement here; an estimate that compaction goes by."""
        self.change_bytes = 0
        """Of records that hold changes of rows: a rebuild may need them; what part is estimated."""
        self.placed_bytes = 0
        """Of frames that are placed here, or are about to be."""
        self.unplaced_bytes = 0
        """Those about to be: who wrote them may yet leave them."""
        self.synced_bytes = 0
        """What a walk of the log says was synced of a bulk volume, from its start."""
        self.unlinked = False
        self.holds = 0
        """Writers whose frames in this volume are not placed yet."""
        self.keep = False
        """Compaction found something bad in it that is still placed: left to repair."""

    @property
    def volume(self) -> int:
        return self.header.volume

    @property
    def kind(self) -> VolumeKind:
        return self.header.kind


async def _no_limit() -> int:
    return 1 << 62


class Core:
    """Shared by the parts of one store; no behaviour beyond volumes, counters and faults."""

    def __init__(  # noqa: PLR0917
        self,
        disk: Disk,
        disk_key: bytes,
        jobs: Jobs,
        clock: Clock,
        entropy: Entropy,
        options: StoreOptions,
    ) -> None:
        self.disk = disk
        self.disk_key = disk_key
        self.jobs = jobs
        self.clock = clock
        self.entropy = entropy
        self.options = options
        self.stats = StoreStats()
        self.entry_account = EntryCache(options.entry_cache_bytes)
        self.groups: dict[int, GroupLog] = {}
        self.rows_lost: dict[int, None] = {}
        """Groups with `LogState.rows_lost`; each has a row 0x09 once the store is open."""
        self.replacing = asyncio.Lock()
        """Held while a snapshot takes the place of rows, and while a span of the index is filled
        with what is left of it: neither begins or ends in the middle of the other."""
        self.holes: dict[Hole, None] = {}
        """What this open found to be lost of the log: rows stand, or are missing, as these left
        them, and a snapshot that is written whole makes up for it."""
        self.volumes: dict[int, Volume] = {}
        self.index: RowIndex
        self.sequence = 0
        self.epoch = 0
        self.store_id = b""
        self.next_volume = 1
        self.out_of_service = ""
        self.watch: tuple[bytes, bytes | None, dict[bytes, bytes | None]] | None = None
        """(low, high, what was written there): while a span of the index is being repaired."""
        self.moving_since: int | None = None
        """Rows that were current at this sequence may still be on their way to a bulk volume."""
        self.fault_listeners: list[Callable[[StoreOutOfService], None]] = []
        self.mark_task: asyncio.Task[None] | None = None
        self.on_bad_block: Callable[[BadBlock], None] = lambda _: None
        """Told of a bad block that a merge of the index met (the repair of spans listens)."""
        self.took_space: Callable[[int], None] = lambda _: None
        """Told the bytes of each allocation (the space account listens)."""
        self.spare_bytes: Callable[[], Awaitable[int]] = _no_limit
        """Asked how much new data may still take (the space account answers)."""
        self._open_order: dict[int, None] = {}

    def __repr__(self) -> str:
        return f"<Core of store {self.store_id.hex()}, epoch {self.epoch}>"

    # --- faults

    def fault(self, error: BaseException) -> StoreOutOfService:
        """A write or sync failed: from here on nothing is written. Returns what to raise."""
        if not self.out_of_service:
            self.out_of_service = str(error) or type(error).__name__
            self.stats.out_of_service = self.out_of_service
            refusal = self.refusal()
            for listener in self.fault_listeners:
                listener(refusal)
            self.mark_task = asyncio.get_running_loop().create_task(self._leave_mark())
        return self.refusal()

    def defect(self, who: str, error: Exception) -> StoreOutOfService:
        """A defect of the program ended a writer: what waits for it must not wait for ever. The
        disk is not to blame, so it is not marked. Returns what to raise."""
        if not self.out_of_service:
            self.out_of_service = f"internal error: {error!r}; restart the store"
            self.stats.out_of_service = self.out_of_service
            refusal = self.refusal()
            for listener in self.fault_listeners:
                listener(refusal)
        asyncio.get_running_loop().call_exception_handler(
            {"message": f"the {who} met a defect", "exception": error}
        )
        return self.refusal()

    def refusal(self) -> StoreOutOfService:
        return StoreOutOfService(
            f"the disk is out of service ({self.out_of_service}); replace it, or run "
            "`o3storage verify --return-disk` after its fault was found"
        )

    def check_service(self) -> None:
        if self.out_of_service:
            raise self.refusal()

    async def _leave_mark(self) -> None:
        """Write OUT_OF_SERVICE. The disk may be dead: failing to write it changes nothing."""
        text = (
            f"This disk was taken out of service: {self.out_of_service}\n"
            "Run `o3storage verify --return-disk --data-dir ...` to check it in full and use it "
            "again.\n"
        )
        with contextlib.suppress(OSError):
            file = await self.disk.open(OUT_OF_SERVICE, OpenMode.CREATE)
            try:
                await file.write_sync(0, [text.encode()])
            finally:
                await file.close()
            await self.disk.sync_dir("")

    # --- rows

    def write_rows(self, rows: Sequence[RowChange]) -> None:
        """One atomic batch into the index; everything that changes rows goes through here."""
        if len(rows) <= MAX_BATCH_ROWS:
            self.index.write(rows)
        else:  # in one step of the loop: nobody reads, or begins a flush, in between
            for at in range(0, len(rows), MAX_BATCH_ROWS):
                self.index.write(rows[at : at + MAX_BATCH_ROWS])
        if self.watch is not None:
            low, high, seen = self.watch
            for key, value in rows:
                if key >= low and (high is None or key < high):
                    seen[key] = value

    def met_bad_block(self, bad: BadBlock) -> None:
        """A merge of the index did."""
        self.on_bad_block(bad)

    # --- volumes

    def saw_volume(self, volume: int) -> None:
        """There was one of this id, which may be freed."""
        self.next_volume = max(self.next_volume, volume + 1)

    def give_volume_id(self) -> int:
        volume = self.next_volume
        self.next_volume += 1
        return volume

    async def create_volume(self, kind: VolumeKind, size: int) -> Volume:
        """A new volume on the medium, its name too. Log volumes are zero-filled to `size`, bulk
        volumes fallocated. Raises StoreFull (nothing is left behind), StoreOutOfService."""
        self.check_service()
        born = self.sequence
        if kind is VolumeKind.BULK and self.moving_since is not None:
            born = self.moving_since  # what hides a row that comes here is kept (`_compaction`)
        header = VolumeHeader(
            kind,
            self.give_volume_id(),
            self.epoch,
            born,
            self.entropy.random_bytes(SALT_BYTES),
            self.store_id,
        )
        block, sealer = encode_header(header, self.disk_key)
        volume = Volume(header, HEADER_BYTES, sealer)
        try:
            direct = kind is VolumeKind.BULK
            file = await self.disk.open(volume.path, OpenMode.CREATE, direct=direct)
            try:
                await self._fill(file, kind, size)
                buffer = self.disk.aligned_buffer(HEADER_BYTES)
                buffer[:] = block
                await file.write_sync(0, [buffer])
                await self.disk.sync_dir(VOLUME_DIR)
            except DiskError as error:
                if isinstance(error, DiskFull) or error.errno in _OUT_OF_DESCRIPTORS:
                    await file.close()
                    await self.disk.unlink(volume.path)
                raise
        except DiskFull as error:
            raise StoreFull("no space for a new volume: delete objects or add space") from error
        except DiskError as error:
            if error.errno in _OUT_OF_DESCRIPTORS:  # the disk was not even asked
                why = "too many files are open for a new volume: allow more (ulimit -n)"
                raise StoreFull(why) from error
            raise self.fault(error) from error
        volume.file = file
        self.volumes[volume.volume] = volume
        self.took_space(size)
        return volume

    async def seal(self, volume: Volume) -> None:
        """Nothing is written to it any more: its file is open for reading only, as others are."""
        volume.sealed = True
        self._open_order[volume.volume] = None
        await self._close_oldest()

    async def _fill(self, file: File, kind: VolumeKind, size: int) -> None:
        if kind is VolumeKind.BULK:
            await file.allocate(0, size, zero_fill=False)
            return
        await file.allocate(0, size, zero_fill=False)
        for at in range(0, size, ZERO_STEP_BYTES):
            if at:
                await file.sync()  # for its pace; the header's sync covers the last step
            await file.allocate(at, min(ZERO_STEP_BYTES, size - at), zero_fill=True)

    async def open_for_read(self, volume: int) -> Volume:
        """The volume with its file open. Raises FrameMissing if it is gone."""
        found = self.volumes.get(volume)
        if found is None:
            raise FrameMissing(f"volume {volume} is not on this disk")
        if found.file is None:
            try:
                file = await self.disk.open(found.path, OpenMode.READ)
            except FileNotFoundError as error:
                raise FrameMissing(f"{found.path} is gone") from error
            if found.file is not None:  # another reader was faster
                await file.close()
            else:
                found.file = file
                self._open_order[volume] = None
                await self._close_oldest()
        return found

    def sealer_now(self, volume: int) -> FileSealer:
        """The sealer of a volume for which `sealer_of` was called before."""
        sealer = self.volumes[volume].sealer
        assert sealer is not None
        return sealer

    async def sealer_of(self, volume: Volume) -> FileSealer:
        """Raises StoreKeyWrong."""
        if volume.sealer is None:
            await self.open_for_read(volume.volume)
            assert volume.file is not None
            volume.in_use += 1
            try:
                block = await read_around(volume.file.read, 0, HEADER_BYTES)
            finally:
                volume.in_use -= 1
                await self.release(volume)
            volume.sealer = open_sealer(block, volume.header, self.disk_key, volume.path)
        return volume.sealer

    async def _close_oldest(self) -> None:
        tries = len(self._open_order)
        while len(self._open_order) > OPEN_FILES_MAX and tries:
            tries -= 1
            oldest = next(iter(self._open_order))
            del self._open_order[oldest]
            volume = self.volumes.get(oldest)
            if volume is None or volume.file is None:
                continue
            if volume.in_use or not volume.sealed:
                self._open_order[oldest] = None  # its turn comes again
                continue
            file, volume.file = volume.file, None
            await file.close()

    async def release(self, volume: Volume) -> None:
        """A reader is done (`in_use` was lowered): close what was unlinked meanwhile."""
        if volume.unlinked and not volume.in_use and volume.file is not None:
            file, volume.file = volume.file, None
            await file.close()

    def count_garbage(self, run: Run) -> None:
        """What stands there is placed no more, or never will be."""
        volume = self.volumes.get(run.volume)
        if volume is not None:
            size = run_bytes(run)
            volume.placed_bytes -= size
            volume.dead_bytes += size

    async def drop_volume(self, volume: Volume, *, durable: bool = True) -> None:
        """Unlink it; readers under way keep what they have open. `durable`: and it does not come
        back after a crash."""
        self.volumes.pop(volume.volume, None)
        self._open_order.pop(volume.volume, None)
        volume.unlinked = True
        try:
            await self.disk.unlink(volume.path)
            if durable:
                await self.disk.sync_dir(VOLUME_DIR)
        except DiskError as error:
            raise self.fault(error) from error
        await self.release(volume)

    async def set_aside(self, volume: Volume, directory: str) -> str:
        """Move its file to `directory` for good; returns where it is now."""
        self.volumes.pop(volume.volume, None)
        self._open_order.pop(volume.volume, None)
        volume.unlinked = True
        path = f"{directory}/{volume.path.rpartition('/')[2]}"
        try:
            await self.disk.make_dir(directory)
            await self.disk.sync_dir("")
            await self.disk.rename(volume.path, path)
            await self.disk.sync_dir(directory)
            await self.disk.sync_dir(VOLUME_DIR)
        except DiskError as error:
            raise self.fault(error) from error
        await self.release(volume)
        return path

    async def close_files(self) -> None:
        for volume in list(self.volumes.values()):
            file, volume.file = volume.file, None
            if file is not None:
                await file.close()
