"""Offline check of everything stored, and its repair (the command `o3storage verify`).

Interface: `verify`, `VerifyReport`, `Problem`. The caller holds the directory's lock.

What is checked: every volume header, every batch, every record's checksum and seal; that each
placed frame stands where placement says; every block of the index; entries known missing.

What repair does, and nothing else
- volumes without a readable header go to quarantine/, so that the others open;
- a volume with records that cannot be read goes there too, once all that is good in it stands
  elsewhere; frames that are lost with it keep a placement, and a later check names them;
- a damaged index is removed: the next start rebuilds it from the volumes;
- for a group's entries that rotted above its applied index *lost* records are appended, which
  apply as counted no-ops (for a sole voter: nobody else has them).
Nothing that could still be read is thrown away.
"""

from __future__ import annotations

import bisect
from array import array
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from o3storage.runtime.clock import Clock, Entropy
from o3storage.runtime.disk import Disk, DiskError
from o3storage.runtime.jobs import Jobs
from o3storage.storage._batches import SECTOR_BYTES, zero_sector
from o3storage.storage._core import OUT_OF_SERVICE, Volume
from o3storage.storage._frames import frame_place
from o3storage.storage._index_open import IndexFactory
from o3storage.storage._offline import OfflineStore
from o3storage.storage._open import synced_end
from o3storage.storage._rebuild import remove_index
from o3storage.storage._records import FRAME, RecordBad, RecordHeader, open_body
from o3storage.storage._rows import (
    PLACEMENT_TABLE,
    InSight,
    decode_run,
    released_key,
    split_placement_key,
)
from o3storage.storage._scan import Scanned, is_unsynced, scan_records
from o3storage.storage._store import INDEX_DIR, Store
from o3storage.storage._types import Entry, EntryKind, StoreOptions
from o3storage.storage._volume import VOLUME_DIR, VolumeKind

QUARANTINE_DIR = "quarantine"
MAX_PROBLEMS = 10_000
"""Problems that a report lists; the rest is counted. A rotten disk must not fill memory."""
NameStreams = Callable[[OfflineStore, list[bytes]], Awaitable[dict[bytes, str]]]
DecidesAlone = Callable[[Store, int], Awaitable[bool]]
LOST_STEP = 256
"""Entries of one append of the repair."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is not as it should be."""

    kind: str
    """header, batch, record, frame, entries, uncertain or index."""
    where: str
    detail: str


@dataclass(slots=True)
class VerifyReport:
    """What `verify` found and did."""

    volumes: int = 0
    records: int = 0
    frames: int = 0
    placed_frames: int = 0
    bytes_read: int = 0
    problems: list[Problem] = field(default_factory=list)
    problem_count: int = 0
    repaired: list[str] = field(default_factory=list)
    lost: dict[str, list[str]] = field(default_factory=dict)
    """Whose frames cannot be read: a name for people -> which."""
    notes: list[str] = field(default_factory=list)
    """What the node itself sees to when it runs."""
    returned: bool = False
    """OUT_OF_SERVICE was removed."""
    out_of_service: bool = False
    """OUT_OF_SERVICE stands."""

    @property
    def clean(self) -> bool:
        return self.problem_count == 0

    def add(self, kind: str, where: str, detail: str) -> None:
        self.problem_count += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Problem(kind, where, detail))


async def verify(
    disk: Disk,
    *,
    disk_key: bytes,
    jobs: Jobs,
    clock: Clock,
    entropy: Entropy,
    repair: bool = False,
    return_disk: bool = False,
    prefix_length: Callable[[bytes], int] | None = None,
    open_index: IndexFactory | None = None,
    on_progress: Callable[[str, float], None] | None = None,
    name_streams: NameStreams | None = None,
    decides_alone: DecidesAlone | None = None,
) -> VerifyReport:
    """Check a stopped store; `on_progress(step, 0..1)`. Changes nothing without `repair` or
    `return_disk` (which lets a disk serve again only if the check found it clean). `name_streams`
    says whose the streams of bad frames are (its answer goes to `VerifyReport.lost`).
    `decides_alone` says of which groups nobody else has the entries: a repair gives up those of no
    other (without it, of all).

    Raises StoreKeyWrong, FormatVersionUnknown, StoreDamaged, DiskError.
    """
    report = VerifyReport()
    report.out_of_service = OUT_OF_SERVICE in await disk.list_dir("")
    store = await OfflineStore.open(
        disk,
        disk_key=disk_key,
        jobs=jobs,
        clock=clock,
        entropy=entropy,
        prefix_length=prefix_length,
        open_index=open_index,
        on_progress=on_progress,
    )
    try:
        lost, bad = await _check(store, report, on_progress)
        if bad.frames and name_streams is not None:
            names = await name_streams(store, list(bad.frames))
            for stream, numbers in bad.frames.items():
                what = "frames " + ", ".join(str(number) for number in sorted(numbers))
                owner = names.get(stream, f"stream {stream.hex()}, which no version names")
                report.lost.setdefault(owner, []).append(what)
    finally:
        await store.close()
    if return_disk and report.out_of_service and report.clean:
        await disk.unlink(OUT_OF_SERVICE)
        await disk.sync_dir("")
        report.returned = True
        report.out_of_service = False
    if repair and not report.clean:
        await _set_aside(disk, store, report)
        if (lost or bad.volumes or store.bad_headers) and not report.out_of_service:
            again = await Store.open(
                disk,
                disk_key=disk_key,
                jobs=jobs,
                clock=clock,
                entropy=entropy,
                options=StoreOptions(background=False),
                prefix_length=prefix_length,
                open_index=open_index,
            )
            try:
                await _append_lost(again, report, decides_alone)
                if bad.volumes or store.bad_headers:
                    alone = {
                        group
                        for group in again.groups()
                        if decides_alone is None or await decides_alone(again, group)
                    }
                    report.repaired += await again.set_aside(
                        list(bad.volumes), QUARANTINE_DIR, alone
                    )
            finally:
                await again.close()
    return report


class _Bad:
    """What a repair needs to know."""

    def __init__(self) -> None:
        self.volumes: dict[int, None] = {}
        """With records or batches that cannot be read."""
        self.frames: dict[bytes, list[int]] = {}
        """Stream -> placed frames that cannot be read; at most MAX_PROBLEMS in all."""
        self.frame_count = 0

    def add_frame(self, stream: bytes, number: int) -> None:
        self.frame_count += 1
        if self.frame_count <= MAX_PROBLEMS:
            self.frames.setdefault(stream, []).append(number)


async def _check(
    store: OfflineStore, report: VerifyReport, on_progress: Callable[[str, float], None] | None
) -> tuple[bool, _Bad]:
    """Fills the report; true if entries above an applied index are missing."""
    core = store.core
    bad = _Bad()
    for path in store.bad_headers:
        report.add("header", path, "both copies of the header are damaged")
    for region in store.log.regions:
        if region.verdict in ("rotted", "uncertain"):
            bad.volumes[region.volume] = None
            report.add(
                "batch",
                f"volume {region.volume} at {region.start}",
                f"{region.verdict}, {region.end - region.start} bytes",
            )
    lost = False
    for group in store.groups():
        state = store.log_state(group)
        if state.uncertain:
            report.add("uncertain", f"group {group}", "a batch is gone without a trace")
        if state.rows_lost:
            report.notes.append(
                f"group {group}: rows are lost that the volumes do not hold any more. A node with "
                "others serves nothing of the group until they sent all of it; one alone serves "
                "what there is"
            )
        for low, high in state.missing:
            if high > state.applied_index:
                lost = True
            known = "; what they did is in the rows" if high <= state.applied_index else ""
            report.add("entries", f"group {group}", f"entries {low}..{high} are missing{known}")
    total = sum(volume.size_bytes for volume in core.volumes.values()) or 1
    good: dict[int, array[int]] = {}
    for number in sorted(core.volumes):
        volume = core.volumes[number]
        report.volumes += 1
        before = report.problem_count
        good[number] = await _check_volume(store, volume, report)
        if report.problem_count > before:
            bad.volumes[number] = None
        if on_progress is not None:
            on_progress("volumes", report.bytes_read / total)
    if store.has_rows:
        if await _check_index(store, report, on_progress):
            await _check_placement(store, good, report, bad)
    elif store.index_state != "missing" or core.volumes:
        report.add("index", INDEX_DIR, f"the index is {store.index_state}; a start rebuilds it")
    return lost, bad


async def _check_volume(store: OfflineStore, volume: Volume, report: VerifyReport) -> array[int]:
    """Every record; returns the offsets of good frames, ascending."""
    frames: array[int] = array("Q")
    where = f"{volume.path} at "
    try:
        async for found in scan_records(store.core, volume, limit=_log_end(store, volume)):
            if found.header is None and await _is_torn_bulk(store, volume, found):
                continue
            if found.header is None:
                report.add("record", where + str(found.offset), f"{found.size_bytes} bad bytes")
                continue
            report.records += 1
            if found.header.kind == FRAME:
                report.frames += 1
                frames.append(found.offset)
            else:
                await _check_seal(store, volume, found.offset, found.header, found.data, report)
    except DiskError as error:
        report.add("record", volume.path, f"cannot be read: {error}")
    report.bytes_read += volume.size_bytes
    return frames


def _log_end(store: OfflineStore, volume: Volume) -> int | None:
    """Where the batches of a log volume end that was walked: what lies behind is the torn tail, of
    which a power cut may have left any sector."""
    walk = store.log
    regions = [region for region in walk.regions if region.volume == volume.volume]
    tails = [region.start for region in regions if region.verdict in ("torn", "cut")]
    if volume.volume in walk.ends:
        end = walk.ends[volume.volume]
        if all(region.start < end or region.start in tails for region in regions):
            tails.append(end)
    return min(tails, default=None)


async def _is_torn_bulk(store: OfflineStore, volume: Volume, found: Scanned) -> bool:
    """What was being written to the bulk when the power went, and had not been synced: the next
    start cuts it off. Without an index to ask: a sector of it is still zero."""
    count = store.mark.volumes.get(volume.volume)
    if volume.kind is not VolumeKind.BULK or (count is not None and count.size_bytes):
        return False
    if store.has_rows:
        return await is_unsynced(store.core, volume, found, await synced_end(store.core, volume))
    start = -(-found.offset // SECTOR_BYTES) * SECTOR_BYTES - found.offset
    return zero_sector(found.data, start, len(found.data)) is not None


async def _check_seal(  # noqa: PLR0917
    store: OfflineStore,
    volume: Volume,
    offset: int,
    header: RecordHeader,
    data: memoryview,
    report: VerifyReport,
) -> None:
    try:
        open_body(data, header, await store.core.sealer_of(volume), offset)
    except RecordBad as error:
        report.add("record", f"{volume.path} at {offset}", str(error))


async def _check_placement(
    store: OfflineStore, good: dict[int, array[int]], report: VerifyReport, bad: _Bad
) -> None:
    """Each placed frame is one that was found good where it is said to be."""
    low, high = PLACEMENT_TABLE, bytes([PLACEMENT_TABLE[0] + 1])
    in_sight = InSight()
    while True:
        rows = await store.scan(low, high, 1000)
        for key, value in rows:
            stream, first = split_placement_key(key)
            count = in_sight.frames(stream, first, decode_run(value))
            if await store.get(released_key(stream)) is not None:
                continue  # garbage: the next start takes it out, its volume may be gone
            run = decode_run(value)
            offsets = good.get(run.volume, array("Q"))
            for i in range(count):
                offset, _ = frame_place(run, i)
                report.placed_frames += 1
                at = bisect.bisect_left(offsets, offset)
                if at == len(offsets) or offsets[at] != offset:
                    bad.add_frame(stream, first + i)
                    report.add(
                        "frame",
                        f"stream {stream.hex()} frame {first + i}",
                        f"no good record in volume {run.volume} at {offset}",
                    )
        if len(rows) < 1000:
            return
        low = rows[-1][0] + b"\0"


async def _check_index(
    store: OfflineStore, report: VerifyReport, on_progress: Callable[[str, float], None] | None
) -> bool:
    """True if every block is good."""

    def progress(done: int, total: int) -> None:
        if on_progress is not None:
            on_progress("index", done / (total or 1))

    bad = await store.core.index.verify(progress)
    for block in bad:
        report.add("index", INDEX_DIR, str(block))
    return not bad


# --- repair


async def _set_aside(disk: Disk, store: OfflineStore, report: VerifyReport) -> None:
    """Volumes without a header, and a bad index, out of the way of the next start."""
    if store.bad_headers:
        await disk.make_dir(QUARANTINE_DIR)
        await disk.sync_dir("")
        for path in store.bad_headers:
            await disk.rename(path, f"{QUARANTINE_DIR}/{path.rpartition('/')[2]}")
            report.repaired.append(f"{path} moved to {QUARANTINE_DIR}/")
        await disk.sync_dir(QUARANTINE_DIR)
        await disk.sync_dir(VOLUME_DIR)
    if any(problem.kind == "index" for problem in report.problems):
        await remove_index(disk, INDEX_DIR)
        report.repaired.append("the index was removed; the next start rebuilds it from the volumes")


async def _append_lost(
    store: Store, report: VerifyReport, decides_alone: DecidesAlone | None
) -> None:
    """Put *lost* entries in place of those known missing above the applied index. Not where others
    have them: what is missing comes back from there, and a *lost* entry would stay, applied as
    nothing where the others apply something."""
    for group in store.groups():
        state = store.log_state(group)
        spans = [(max(lo, state.applied_index + 1), hi) for lo, hi in state.missing]
        spans = [(lo, hi) for lo, hi in spans if lo <= hi]
        if not spans:
            continue
        if decides_alone is not None and not await decides_alone(store, group):
            for low, high in spans:
                report.repaired.append(
                    f"group {group}: entries {low}..{high} are not given up: the other nodes have "
                    "them, and this one asks for them when it is started"
                )
            continue
        missing = {i for lo, hi in spans for i in range(lo, hi + 1)}
        first, last = min(missing), max(state.last_index, *missing)
        term = store.term(group, first - 1)
        entries: list[Entry] = []
        for index in range(first, last + 1):
            if index in missing:
                entries.append(Entry(index, max(1, term), EntryKind.LOST, b""))
                continue
            found = store.entries(group, index, index + 1, 1)
            (entry,) = found if isinstance(found, list) else await found
            term = entry.term
            entries.append(entry)
        for at in range(0, len(entries), LOST_STEP):
            await store.append(group, None, entries[at : at + LOST_STEP])
        for low, high in spans:
            report.repaired.append(f"group {group}: entries {low}..{high} are marked lost")
