"""Opening a disk: find the volumes, walk the log, settle its tail, start new volumes.

Interface: `prepare`, `read_log`, `settle_tail`, `drop_spares`, `cut_bulk`, `synced_end`.

Order of things (DESIGN 4)
1. OUT_OF_SERVICE is obeyed. Volume headers are read and the key is tried: with a wrong key nothing
   has been written or created.
2. The log is walked from the replay floor on, its tail past the page cache.
3. The last batch is written again, byte by byte the same, a torn one behind it is cut off, and both
   are synced: only then is anything that was found acted on (a vote, an answer to a read).
4. A new epoch begins: new volumes, never an extended old one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from o3storage.runtime.disk import Buffer, DiskError, OpenMode
from o3storage.storage._core import OUT_OF_SERVICE, Core, Volume
from o3storage.storage._mark import Mark
from o3storage.storage._rows import bulk_key, decode_u64
from o3storage.storage._scan import bulk_end
from o3storage.storage._types import StoreDamaged, StoreOutOfService
from o3storage.storage._unreadable import read_around
from o3storage.storage._volume import (
    BLOCK_BYTES,
    HEADER_BYTES,
    STORE_ID_BYTES,
    VOLUME_DIR,
    VolumeHeader,
    VolumeKind,
    align,
    decode_header,
    parse_name,
    volume_path,
)
from o3storage.storage._walk import LogWalk, Sink, WalkResult
from o3storage.storage.index import BadBlock

Progress = Callable[[str, float], None]
SCAN_BYTES = 4 * 1024 * 1024
"""Bytes of a volume that are read from the medium at a time."""


async def prepare(
    core: Core, *, read_only: bool = False, bad_headers: list[str] | None = None
) -> None:
    """Step 1: obey OUT_OF_SERVICE, read all volume headers, try the key, make directories.

    `read_only` (offline tools): changes nothing and opens a disk that is out of service too.
    `bad_headers` collects the paths of volumes without a good header instead of raising.
    Raises StoreOutOfService, StoreDamaged, StoreKeyWrong, FormatVersionUnknown, DiskError.
    """
    disk = core.disk
    if not read_only and OUT_OF_SERVICE in await disk.list_dir(""):
        raise StoreOutOfService(
            f"{OUT_OF_SERVICE} stands in the data directory: a write or sync failed here. Check "
            "the disk, then run `o3storage verify --return-disk`"
        )
    try:
        names = await disk.list_dir(VOLUME_DIR)
    except FileNotFoundError:
        names = []
    unused: list[str] = []
    for name in names:
        parsed = parse_name(name)
        if parsed is None:
            continue
        kind, number = parsed
        core.next_volume = max(core.next_volume, number + 1)
        try:
            volume = await _look_at(core, kind, number)
        except StoreDamaged:
            if bad_headers is None:
                raise
            bad_headers.append(volume_path(kind, number))
            continue
        if volume is None:
            unused.append(volume_path(kind, number))
            continue
        core.volumes[number] = volume
        core.epoch = max(core.epoch, volume.header.epoch)
        core.sequence = max(core.sequence, volume.header.born_sequence)
        if core.store_id not in (b"", volume.header.store_id):
            raise StoreDamaged(
                f"{volume.path} belongs to another store; move it out of the data directory"
            )
        core.store_id = volume.header.store_id
    if core.volumes:
        newest = core.volumes[max(core.volumes)]
        await core.sealer_of(newest)  # a wrong key ends here
    elif not read_only:
        core.store_id = core.entropy.random_bytes(STORE_ID_BYTES)
        await disk.make_dir(VOLUME_DIR)
        await disk.sync_dir("")
    if not read_only:
        for path in unused:
            await disk.unlink(path)


async def _look_at(core: Core, kind: VolumeKind, number: int) -> Volume | None:
    """The volume, or None for a file that was never put to use: its creation was cut short."""
    path = volume_path(kind, number)
    file = await core.disk.open(path, OpenMode.READ)
    try:
        block = await read_around(file.read, 0, HEADER_BYTES)
        size = await file.size()
        try:
            header: VolumeHeader = decode_header(block, path)
        except StoreDamaged:
            if await _is_unused(core, path, size):
                return None
            raise
        if (header.kind, header.volume) != (kind, number):
            raise StoreDamaged(f"{path}: its header says volume {header.volume} of another name")
    finally:
        await file.close()
    volume = Volume(header, size, None)
    volume.sealed = True
    return volume


async def _is_unused(core: Core, path: str, size: int) -> bool:
    """Nothing was written behind the header."""
    for at in range(HEADER_BYTES, size, SCAN_BYTES):
        data = await core.disk.read_direct(path, at, min(SCAN_BYTES, size - at))
        if data.strip(b"\0"):
            return False
    return True


def volumes_to_walk(core: Core, volumes: list[Volume], floor: int) -> list[Volume]:
    """Log volumes from the replay floor on, and before it as much as followers may want."""
    start = len(volumes)
    while start and volumes[start - 1].volume >= floor:
        start -= 1
    reload = 0
    while start and reload + volumes[start - 1].size_bytes <= core.options.reload_log_bytes:
        start -= 1
        reload += volumes[start].size_bytes
    return volumes[start:]


async def read_log(
    core: Core, volumes: list[Volume], sink: Sink, floor: int, progress: Progress | None
) -> WalkResult:
    """Walk these log volumes, oldest first; the tail from the medium. Raises DiskError.

    All batches but the last were synced before the next was begun, so the page cache may be
    believed for them; the volume of the last is read past it."""
    walk = start_walk(sink, floor=floor)
    tail = await _tail_volume(core, volumes)
    total = sum(volume.size_bytes for volume in volumes) or 1
    done = 0
    for volume in volumes:
        await feed_volume(core, walk, volume, medium=volume.volume >= tail)
        done += volume.size_bytes
        if progress is not None:
            progress("replay", done / total)
    return walk.finish()


def start_walk(sink: Sink, *, floor: int) -> LogWalk:
    return LogWalk(sink, floor_volume=floor)


async def _tail_volume(core: Core, volumes: list[Volume]) -> int:
    """The last of these volumes in which anything was written."""
    for volume in reversed(volumes):
        direct = partial(core.disk.read_direct, volume.path)
        block = await read_around(direct, HEADER_BYTES, BLOCK_BYTES)
        if block.strip(b"\0"):
            return volume.volume
    return 0


async def feed_volume(core: Core, walk: LogWalk, volume: Volume, *, medium: bool) -> None:
    """The next log volume, past the page cache if `medium`. Raises DiskError."""
    await core.sealer_of(volume)
    data: Buffer
    if medium:
        # Piece by piece into one buffer: a volume is held whole once, not twice.
        data = bytearray()
        direct = partial(core.disk.read_direct, volume.path)
        while len(data) < volume.size_bytes:
            wanted = min(SCAN_BYTES, volume.size_bytes - len(data))
            piece = await read_around(direct, len(data), wanted)
            data += piece
            if len(piece) < wanted:
                break
    else:
        held = await core.open_for_read(volume.volume)
        assert held.file is not None
        data = await read_around(held.file.read, 0, volume.size_bytes)
    walk.feed(volume.volume, volume.header.epoch, data)


async def settle_tail(core: Core, result: WalkResult) -> None:
    """Step 3. Raises StoreOutOfService: a disk that cannot be written is not opened."""
    last = result.last
    torn = [region for region in result.regions if region.verdict == "torn"]
    try:
        if last is not None:
            volume = core.volumes[last.volume]
            data = await core.disk.read_direct(volume.path, last.offset, last.size_bytes)
            file = await core.disk.open(volume.path, OpenMode.WRITE)
            try:
                await file.write(last.offset, [data])
                # What says that all groups are uncertain stays: were it cut off, and the power
                # went before the next volume says so, nobody would know.
                doubtful = last.volume in result.doubtful()
                if volume.size_bytes > result.ends[last.volume] and not doubtful:
                    await file.truncate(result.ends[last.volume])
                await file.sync()
            finally:
                await file.close()
        for region in torn:
            if last is not None and region.volume == last.volume:
                continue
            file = await core.disk.open(core.volumes[region.volume].path, OpenMode.WRITE)
            try:
                await file.truncate(region.start)
                await file.sync()
            finally:
                await file.close()
    except DiskError as error:
        raise core.fault(error) from error


async def drop_spares(core: Core, result: WalkResult) -> None:
    """Log volumes without a batch were made ahead and never used."""
    doubtful = result.doubtful()
    for number, end in result.ends.items():
        if number in doubtful:
            continue
        volume = core.volumes[number]
        volume.size_bytes = end
        if end <= HEADER_BYTES:
            core.volumes.pop(number)
            await core.disk.unlink(volume.path)


async def synced_end(core: Core, volume: Volume) -> int:
    """Up to where a bulk volume is known to have been synced."""
    try:
        row = await core.index.get(bulk_key(volume.volume))
    except BadBlock:
        return volume.size_bytes  # unknown until the row is repaired: nothing is thrown away
    return max(HEADER_BYTES, volume.synced_bytes, decode_u64(row) if row else 0)


async def cut_bulk(core: Core, mark: Mark) -> None:
    """Bulk volumes that were not sealed before the crash end at their last good record, or before
    the first that was torn: nothing behind it was ever synced, so nobody names it."""
    for volume in list(core.volumes.values()):
        count = mark.volumes.get(volume.volume)
        if volume.kind is not VolumeKind.BULK or (count is not None and count.size_bytes):
            continue
        synced = await synced_end(core, volume)
        end = await bulk_end(core, volume, synced)
        if end < volume.size_bytes or end > align(synced):
            file = await core.disk.open(volume.path, OpenMode.WRITE)
            try:
                if end < volume.size_bytes:
                    await file.truncate(end)
                # A record behind what was synced may stand in the page cache alone, where a
                # process that was killed left it: the next power cut would take it.
                await file.sync()
            except DiskError as error:
                raise core.fault(error) from error
            finally:
                await file.close()
            volume.size_bytes = end
