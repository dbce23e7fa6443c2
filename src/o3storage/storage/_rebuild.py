"""Rebuilding the index from the volumes alone (DESIGN 4, "Outcomes").

Interface: `rebuild`, `remove_index`.

Every change of rows stands in the volumes with its sequence: in outcomes and local records, with
frames in the log, and in the state records that compaction wrote. For each key the change with the
highest sequence counts. They are gathered in a second index, where each value carries its sequence,
and copied from there: memory stays bounded whatever the store holds.

Invariants
- Until the copy is complete the new index carries REBUILDING as its mark; an open that finds that
  mark starts over.
- Nothing in the volumes is changed.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from o3storage.crypto import FileSealer
from o3storage.runtime.disk import Disk
from o3storage.storage import _open
from o3storage.storage._batches import FLAG_RESTATED, BatchInfo, GroupInfo
from o3storage.storage._core import Core, Volume
from o3storage.storage._groups import unpack_place
from o3storage.storage._mark import Mark, VolumeCount
from o3storage.storage._records import (
    FRAME,
    GROUP,
    LOCAL,
    OUTCOME,
    STATE,
    RecordBad,
    decode_rows,
    decode_state,
    open_body,
)
from o3storage.storage._replay import Replay
from o3storage.storage._rows import (
    BULK_TABLE,
    NOTE_TABLE,
    PLACEMENT_TABLE,
    PLACES_LOST,
    RESTATED_KEY,
    Hole,
    RowChange,
    RowIndex,
    Run,
    decode_run,
    decode_u64,
    encode_holes,
    encode_run,
    placement_key,
    released_key,
    rows_lost_key,
    run_bytes,
    run_end,
)
from o3storage.storage._scan import Scanned, is_unsynced, scan_records
from o3storage.storage._types import MIB, StoreDamaged
from o3storage.storage._volume import HEADER_BYTES, VOLUME_DIR, VolumeKind
from o3storage.storage._walk import FoundRecord, in_place
from o3storage.storage.index import IndexDamaged

REBUILDING = b"rebuilding"
STAGING_DIR = "index.rebuild"
STEP_ROWS = 1000
MEMORY_BYTES = 24 * MIB
"""Rows in memory at which the index being built is flushed."""

_STAGED = struct.Struct("<QB")
"""sequence, 1 if the row was deleted; then the value."""

OpenIndex = Callable[[Core, str], Awaitable[RowIndex]]


class _Gather(Replay):
    """The walk's sink: groups as in a replay, but rows go to the staging index by sequence."""

    def __init__(self, core: Core, sealers: Callable[[int], FileSealer]) -> None:
        super().__init__(core, Mark(), sealers)
        self._outcomes_may_be_gone = True
        self._chain: dict[int, tuple[int, int, int, int]] = {}
        """group -> last outcome so far, and how many holes of each kind there were before it.
        Outcomes follow each other; where volumes were freed, compaction has moved some."""
        self._last: BatchInfo | None = None
        self._unread: set[int] = set()
        """Volumes whose last batches are lost."""
        self._lost_batches = 0
        """Holes in the sequence of batches where no volume can have been freed."""
        self._freed = 0
        """Those where one may have been."""
        self._losses_before = 0
        """`_losses` before those of the batch at hand."""
        self._moved = False
        """Compaction kept rows that were current then."""
        self.staged: dict[bytes, tuple[int, bytes | None]] = {}
        self.missing_from: dict[int, int] = {}
        """group -> first log volume that names entries which are missing."""

    def stage(self, sequence: int, rows: Sequence[RowChange]) -> None:
        self.core.sequence = max(self.core.sequence, sequence)
        for key, value in rows:
            old = self.staged.get(key)
            if old is None or old[0] <= sequence:  # (of a key that comes twice the last counts)
                self.staged[key] = (sequence, value)

    def batch(
        self, info: BatchInfo, data: memoryview, records: list[FoundRecord], *, rotted: bool
    ) -> None:
        # What can be read counts; what cannot is reported by the walk of the open.
        others: list[FoundRecord] = []
        self._look_for_hole(info)
        self._losses_before = self._losses  # (what a batch lacks may stand behind what it has)
        for summary in info.groups:
            if summary.flags & FLAG_RESTATED:
                self._restart_chain(summary.group, summary.applied_index)
        sealer = self._sealers(info.volume)
        if rotted:
            records = in_place(data, records, sealer)
            # (The walk of the open does not come to volumes before the floor.)
            self.core.stats.rotted_records += max(0, info.records - len(records))
            self._look_for_loss(info, records)
        for found in records:
            offset, header = found
            if header.kind == FRAME:
                size = header.size_bytes
                run = encode_run(Run(info.volume, offset, 1, size, size))
                self.stage(header.sequence, [(placement_key(header.a, header.b), run)])
            elif header.kind in (OUTCOME, LOCAL):
                self.core.volumes[info.volume].change_bytes += header.size_bytes
                if header.kind == OUTCOME and not self._follows(header.group, header.b):
                    continue
                body = open_body(data, header, sealer, offset, offset)
                rows, released = decode_rows(body)
                if header.kind == LOCAL:
                    self._look_for_install(rows)
                rows += [(released_key(stream), b"") for stream in released]
                self.stage(header.sequence, rows)
                if header.kind == OUTCOME:
                    group = self._group(header.group)
                    group.applied_index = max(group.applied_index, header.b)
            else:
                if header.kind == GROUP:
                    # A snapshot took the place of all that, but wrote only what differed from it.
                    if header.group in self.lost_outcomes:
                        self._hole(Hole(0, 0, header.group))
                        del self.lost_outcomes[header.group]
                    self._reach(header.group, header.b)
                others.append(found)
        super().batch(info, data, others, rotted=False)
        for summary in info.groups:
            if self._group(summary.group).missing:
                self.missing_from.setdefault(summary.group, info.volume)
            else:
                self.missing_from.pop(summary.group, None)

    @property
    def lacks_batches(self) -> bool:
        """Something of the log is lost: what it does not say may have been said there."""
        return bool(self._losses or self.lost_outcomes)

    def state_lost(self) -> None:
        """Rows of any group were moved by compaction to what cannot be read."""
        self.core.rows_lost.update(dict.fromkeys(self.core.groups))

    def state_found(self) -> None:
        self._moved = True

    def rows_end(self) -> None:
        """All is read."""
        if self._moved or self._freed:
            # What is executed again would find rows of later entries, and not all that these
            # replaced. (Until something is moved, the outcomes that are left are all there is.)
            self.core.rows_lost.update(self.lost_outcomes)

    def unread(self, volume: int) -> None:
        self._unread.add(volume)

    def _look_for_hole(self, info: BatchInfo) -> None:
        """Are all batches here that were written before this one? What volumes that were freed
        held stands elsewhere; a batch that a volume lacks was lost."""
        last, self._last = self._last, info
        unread, self._unread = self._unread, set()
        if info.sequence == (last.sequence + 1 if last is not None else 1):
            return
        between = range(last.volume + 1 if last is not None else 1, info.volume)
        # (The number of a spare volume that was never used is nobody's, either.)
        freed = not all(number in self.core.volumes for number in between)
        if unread or not freed:
            self._lost_batches += 1
            self._hole(self._gap(info))
        self._freed += freed

    def _reach(self, group: int, index: int) -> None:
        self._chain[group] = (index, self._lost_batches, self._freed, self._losses_before)
        self._made_before[group] = len(self._made)

    def _restart_chain(self, group: int, applied: int) -> None:
        """A volume begins, and says how far the group had applied. Where outcomes up to there are
        not here, compaction has moved them, unless that cannot be."""
        at, lost_batches, freed, losses = self._chain.get(group, (0, 0, 0, 0))
        if applied <= at:
            self.lost_outcomes.pop(group, None)  # from here on they were executed again
        else:
            if lost_batches != self._lost_batches or freed == self._freed:
                self._miss_outcomes(group)
            if freed != self._freed and losses != self._losses:
                # Some were moved, and some may be what is lost: neither what is here nor what
                # comes of executing them again is what was there.
                self.core.rows_lost[group] = None
        if group not in self.lost_outcomes:
            self._reach(group, applied)

    def _follows(self, group: int, index: int) -> bool:
        """Whether the outcome counts: none before it was lost."""
        known = self._chain.get(group)
        # (A group of which nothing was said yet began here, unless what says so is lost.)
        before = known[0] if known is not None else 0 if self._losses else index - 1
        if group in self.lost_outcomes or index > before + 1:
            self._miss_outcomes(group)
            return False
        self._reach(group, max(before, index))
        return True

    def _restated(self, summary: GroupInfo) -> None:
        applied = self._group(summary.group).applied_index
        super()._restated(summary)
        if summary.group in self.lost_outcomes:
            self._group(summary.group).applied_index = applied


class _Nobody:
    """A sink that only lets the walk judge."""

    def batch(
        self, info: BatchInfo, data: memoryview, records: list[FoundRecord], *, rotted: bool
    ) -> None:
        pass

    def unread(self, volume: int) -> None:
        pass

    def uncertain(self, epoch: int) -> None:
        pass


async def open_or_rebuild(
    core: Core,
    open_index: OpenIndex,
    directory: str,
    progress: Callable[[str, float], None] | None = None,
) -> RowIndex:
    """The index; rebuilt if it is damaged, missing beside volumes, half rebuilt, or of a program
    whose flush mark had another layout.

    Raises StoreDamaged, StoreKeyWrong, DiskError.
    """
    logs = [
        core.volumes[number]
        for number in sorted(core.volumes)
        if core.volumes[number].kind is VolumeKind.LOG
    ]
    try:
        index = await open_index(core, directory)
    except IndexDamaged:
        return await rebuild(core, open_index, directory, progress)
    if index.mark in (b"", REBUILDING):
        if index.mark == REBUILDING or await _is_partial(core, logs):
            await index.close()
            return await rebuild(core, open_index, directory, progress)
    elif not logs:
        await index.close()
        raise StoreDamaged(
            f"there is an index but no log volume: put the files of {VOLUME_DIR}/ back"
        )
    elif not Mark.is_known(index.mark):
        await index.close()
        return await rebuild(core, open_index, directory, progress)
    return index


async def _is_partial(core: Core, logs: list[Volume]) -> bool:
    """The index was never flushed as far as it shows, but the log does not hold everything: a
    flush did happen once, since only what was flushed is ever freed."""
    if not logs:
        return bool(core.volumes)
    if sum(volume.size_bytes for volume in logs) > core.options.flush_log_bytes:
        return True  # more than a replay may hold in memory
    result = await _open.read_log(core, logs, _Nobody(), 0, None)
    return result.uncertain or (result.first is not None and result.first.sequence != 1)


async def remove_index(disk: Disk, directory: str) -> None:
    """Every file of an index. The directory stays."""
    try:
        names = await disk.list_dir(directory)
    except FileNotFoundError:
        return
    for name in names:
        await disk.unlink(f"{directory}/{name}")
    await disk.sync_dir(directory)


async def rebuild(
    core: Core,
    open_index: OpenIndex,
    directory: str,
    progress: Callable[[str, float], None] | None = None,
) -> RowIndex:
    """A complete index of what the volumes hold, with the mark of a finished flush.

    `core.groups` is left empty: the open goes on with a replay. Raises StoreDamaged, DiskError.
    """
    for name in (STAGING_DIR, directory):
        await remove_index(core.disk, name)
    index = await open_index(core, directory)
    await index.flush(REBUILDING)
    staging = await open_index(core, STAGING_DIR)
    try:
        last, missing_from = await _collect(core, staging, progress)
        mark = _mark_of(core, last)
        for number, volume in missing_from.items():
            group = core.groups[number]
            if any(high > group.applied_index for _, high in group.missing):
                # The batch that names them must be met again: they may be known by it alone.
                mark.floor_volume = min(mark.floor_volume, volume)
        await _copy(core, staging, index, mark, progress)
        mark.sequence = core.sequence
        await index.flush(mark.encode())
    finally:
        await staging.close()
    await remove_index(core.disk, STAGING_DIR)
    core.groups.clear()
    core.stats.index_rebuilt = True
    return index


async def _collect(
    core: Core, staging: RowIndex, progress: Callable[[str, float], None] | None
) -> tuple[BatchInfo | None, dict[int, int]]:
    """Everything into the staging index; returns the log's last batch, and `missing_from`."""

    gather = _Gather(core, core.sealer_now)
    volumes = [core.volumes[number] for number in sorted(core.volumes)]
    logs = [volume for volume in volumes if volume.kind is VolumeKind.LOG]
    walk = _open.start_walk(gather, floor=(logs[-1].volume + 1 if logs else 0))
    total = sum(volume.size_bytes for volume in volumes) or 1
    done = 0
    bad: list[_BadState] = []
    for volume in volumes:
        if volume.kind is VolumeKind.LOG:
            await _open.feed_volume(core, walk, volume, medium=True)
            for group in core.groups.values():
                # Of what is applied nothing is asked later; kept for every entry there ever was,
                # places and terms would grow with the store (promise P8).
                group.forget_below(group.applied_index + 1)
        else:
            spans = await _gather_state(core, volume, gather, staging)
            if spans is not None:
                bad.append(spans)
        await _store_staged(gather, staging)
        done += volume.size_bytes
        if progress is not None:
            progress("rebuild", done / total * 0.7)
    result = walk.finish()
    await _store_staged(gather, staging)
    gather.rows_end()
    doubtful = result.uncertain or gather.lacks_batches or core.stats.rotted_records > 0
    if bad:
        synced = await _synced_ends(staging)
        for spans in bad:
            volume = spans.volume
            end = max(HEADER_BYTES, synced.get(volume.volume, 0))
            if doubtful or not await is_unsynced(core, volume, spans.first, end):
                core.stats.rotted_records += spans.count
                gather.state_lost()
    core.stats.rebuilt_in_part = doubtful or core.stats.rotted_records > 0
    return result.last, gather.missing_from


@dataclass(slots=True)
class _BadState:
    """Where state records may have stood in a bulk volume. Whether they were ever synced only the
    whole log says: it names the end of what was, before anything relies on it."""

    volume: Volume
    first: Scanned
    count: int


async def _synced_ends(staging: RowIndex) -> dict[int, int]:
    """Of each bulk volume, up to where the log says that it was synced (as `Replay._place`)."""
    ends: dict[int, int] = {}
    for low in (BULK_TABLE, PLACEMENT_TABLE):
        high = bytes([low[0] + 1])
        while True:
            rows = await staging.scan(low, high, STEP_ROWS)
            for key, staged in rows:
                if _STAGED.unpack_from(staged)[1]:
                    continue
                value = staged[_STAGED.size :]
                if key[:1] == BULK_TABLE:
                    volume, end = int.from_bytes(key[1:], "big"), decode_u64(value)
                else:
                    run = decode_run(value)
                    volume, end = run.volume, run_end(run)
                ends[volume] = max(ends.get(volume, 0), end)
            if len(rows) < STEP_ROWS:
                break
            low = rows[-1][0] + b"\0"
    return ends


async def _gather_state(
    core: Core, volume: Volume, gather: _Gather, staging: RowIndex
) -> _BadState | None:
    sealer = await core.sealer_of(volume)
    bad: _BadState | None = None
    async for found in scan_records(core, volume):
        if found.may_hold_rows and bad is None:
            bad = _BadState(volume, found._replace(data=memoryview(b"")), 1)
        elif found.may_hold_rows and bad is not None:
            bad.count += 1
        if found.header is None or found.header.kind != STATE:
            continue
        try:
            rows = decode_state(open_body(found.data, found.header, sealer, found.offset))
        except RecordBad as error:
            raise StoreDamaged(f"{volume.path} at {found.offset}: {error}") from error
        volume.change_bytes += found.size_bytes
        gather.state_found()
        for sequence, key, value in rows:
            gather.stage(sequence, [(key, value)])
        if len(gather.staged) >= STEP_ROWS:
            await _store_staged(gather, staging)
    return bad


async def _store_staged(gather: _Gather, staging: RowIndex) -> None:
    """Merge what was gathered into the staging index."""
    staged, gather.staged = gather.staged, {}
    rows: list[RowChange] = []
    for key, (sequence, value) in staged.items():
        old = await staging.get(key)
        if old is not None and _STAGED.unpack_from(old)[0] >= sequence:
            continue
        rows.append((key, _STAGED.pack(sequence, value is None) + (value or b"")))
        if len(rows) >= STEP_ROWS:
            staging.write(rows)
            rows = []
    if rows:
        staging.write(rows)
    if staging.memtable_bytes >= MEMORY_BYTES:
        await staging.flush(REBUILDING)


def _mark_of(core: Core, last: BatchInfo | None) -> Mark:
    """Where the replay goes on after the rebuild: in the volume of the last batch, which restates
    all groups, or where entries lie that are not applied."""
    floor = last.volume if last is not None else 0
    applied: dict[int, int] = {}
    for number, group in core.groups.items():
        applied[number] = group.applied_index
        # Not the first of them: one that rot had taken came back to a later volume.
        open_at = max(0, group.applied_index + 1 - group.first_index)
        place = min(filter(None, group.places[open_at:]), default=0)
        floor = min(floor, unpack_place(place)[0]) if place else floor
        for low, _ in group.missing:
            at = low - 1 - group.first_index
            if low > group.applied_index and 0 <= at < len(group.places) and group.places[at]:
                floor = min(floor, unpack_place(group.places[at])[0])
    return Mark(floor_volume=floor, applied=applied)


async def _copy(
    core: Core,
    staging: RowIndex,
    index: RowIndex,
    mark: Mark,
    progress: Callable[[str, float], None] | None,
) -> None:
    """All rows that still stand, and the account of the volumes."""
    counts = {
        number: VolumeCount(0, 0, 0, core.volumes[number].change_bytes) for number in core.volumes
    }
    restated = await staging.get(RESTATED_KEY)
    void_below = decode_u64(restated[_STAGED.size :]) if restated else 0
    low = b""
    while True:
        rows = await staging.scan(low, b"\xff", STEP_ROWS)
        standing: list[RowChange] = []
        for key, staged in rows:
            sequence, deleted = _STAGED.unpack_from(staged)
            if deleted or sequence < void_below:
                continue
            value = staged[_STAGED.size :]
            standing.append((key, value))
            if key[:1] == PLACEMENT_TABLE:
                run = decode_run(value)
                if run.volume in counts:
                    counts[run.volume].placed_bytes += run_bytes(run)
        if standing:
            index.write(standing)
        if index.memtable_bytes >= MEMORY_BYTES:
            await index.flush(REBUILDING)
        if len(rows) < STEP_ROWS:
            break
        low = rows[-1][0] + b"\0"
        if progress is not None:
            progress("rebuild", 0.7 + 0.3 * int.from_bytes(low[:2].ljust(2, b"\0"), "big") / 65536)
    known = encode_holes(core.holes)
    index.write([(rows_lost_key(group), known) for group in core.rows_lost])
    if core.stats.rotted_records or core.holes:
        # A frame in the log is its own placement; the next open does not read this far back.
        index.write([(NOTE_TABLE + PLACES_LOST, b"")])
    mark.volumes = counts
