"""Replay: from the log's records back to groups, rows and placement.

`Replay` is the sink of a walk over the log volumes (`_walk.py`). It rebuilds each group's log and
writes to the index every change of rows above the flush mark.

Invariants
- A change is applied if and only if its sequence is above the mark's: the tables hold exactly the
  others.
- Outcomes of a group are applied without a gap; behind a lost one nothing more of that group is,
  since the caller executes those entries again and finds the same (the state machine is pure).
  Where a group began behind it, which may have been cut off this one, it would not: rows of both
  count as lost (`LogState.rows_lost`).
- An install wrote only what differed from the rows that stood: where records before it are lost,
  the group's rows count as lost too, until an install that wrote all, with the same holes known.
- Entries are taken in order of the log; a later one with the same index replaces its suffix.
  Between volumes that are read some may have been freed, with entries that replaced some of the
  older one's: what a volume restates of a group's last entry decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from o3storage.crypto import FileSealer
from o3storage.storage._batches import (
    FLAG_ENTRIES,
    FLAG_HARD_STATE,
    FLAG_LAST_MISSING,
    FLAG_RESTATED,
    FLAG_UNCERTAIN,
    BatchInfo,
    GroupInfo,
)
from o3storage.storage._core import Core
from o3storage.storage._groups import GroupLog
from o3storage.storage._install import decided_group
from o3storage.storage._mark import Mark
from o3storage.storage._records import (
    ENTRY,
    FLAG_KEEP,
    FRAME,
    GROUP,
    LOCAL,
    OUTCOME,
    RecordHeader,
    decode_group_reset,
    decode_rows,
    open_body,
)
from o3storage.storage._rows import (
    BULK_TABLE,
    PLACEMENT_TABLE,
    ROWS_LOST_TABLE,
    Hole,
    RowChange,
    Run,
    decode_holes,
    decode_run,
    decode_u64,
    encode_run,
    placement_key,
    released_key,
    run_bytes,
    run_end,
)
from o3storage.storage._types import HardState
from o3storage.storage._volume import VolumeKind
from o3storage.storage._walk import FoundRecord, in_place
from o3storage.storage.index import BadBlock

ROWS_PER_WRITE = 512
"""Rows gathered before they go to the index in one batch."""


class Replay:
    """Sink of the walk at open. `sealers` gives the sealer of a log volume by id."""

    def __init__(
        self,
        core: Core,
        mark: Mark,
        sealers: Callable[[int], FileSealer],
        *,
        rows: bool = True,
    ) -> None:
        """`rows=False`: only the groups; there is no index to write to."""
        self.core = core
        self._keep_rows = rows
        self.mark = mark
        self.lost_outcomes: dict[int, None] = {}
        """Groups whose outcomes have a gap here: what lies behind it is executed again."""
        self._sealers = sealers
        self._seen: set[int] = set()
        self._outcomes_may_be_gone = False
        """Volumes with outcomes were freed: what a later volume restates as applied is."""
        self._doubtful_epoch = 0
        """All groups became uncertain in this epoch; what later epochs say of each counts."""
        self._rows: list[RowChange] = []
        self._losses = 0
        """Above the mark, holes in what was read so far: records or batches that are gone."""
        self._holes: dict[Hole, None] = {}
        self._torn = False
        """Records of this batch are gone."""
        self._next_batch = 1
        self._given_out = 0
        """The last sequence of the batch before."""
        self._in_doubt = False
        """What was lost without a trace lies before the next batch."""
        self._known: dict[int, set[Hole]] = {}
        """group -> the holes that were known when its rows were noted as lost."""
        self._made_up: dict[int, set[Hole]] = {}
        """group -> those that were known to the last install that wrote all."""
        self._installed: dict[int, bool] = {}
        """Groups of which the batch ends an install, and whether that wrote all rows."""
        self._made: list[int] = []
        """Groups whose log began above the mark without a snapshot, in order: each may have been
        cut off any other."""
        self._made_before: dict[int, int] = {}
        """group -> how many of them there were at the last of its outcomes that counts."""

    def batch(
        self, info: BatchInfo, data: memoryview, records: list[FoundRecord], *, rotted: bool
    ) -> None:
        core = self.core
        core.sequence = max(core.sequence, info.store_sequence)
        if self._in_doubt:
            self._in_doubt = False
            if info.store_sequence > self.mark.sequence:
                self._hole(self._gap(info))
        self._next_batch = info.sequence + 1
        for summary in info.groups:
            if summary.flags & FLAG_RESTATED:
                self._restated(summary)
            if summary.flags & FLAG_ENTRIES:
                self._begin(summary)
        sealer = self._sealers(info.volume)
        if rotted:
            records = in_place(data, records, sealer)
            self._look_for_loss(info, records)
        for offset, header in records:
            kind = header.kind
            if kind == ENTRY:
                self._entry(info.volume, offset, header)
            elif kind == FRAME:
                if header.sequence > self.mark.sequence:
                    size = header.size_bytes
                    run = Run(info.volume, offset, 1, size, size)
                    self._place(placement_key(header.a, header.b), encode_run(run))
            elif kind == OUTCOME:
                if header.sequence > self.mark.sequence:
                    core.volumes[info.volume].change_bytes += header.size_bytes
                self._outcome(data, offset, header, sealer)
            elif kind == LOCAL:
                if header.sequence > self.mark.sequence:
                    core.volumes[info.volume].change_bytes += header.size_bytes
                    rows, _ = decode_rows(open_body(data, header, sealer, offset, offset))
                    for key, value in rows:
                        self._place_again(key, value)
                    self._look_for_install(rows)
            elif kind == GROUP:
                index, term = decode_group_reset(open_body(data, header, sealer, offset, offset))
                group = self._group(header.group)
                applied = group.applied_index
                group.install(index, term, keep=bool(header.flags & FLAG_KEEP))
                group.applied_index = max(index, applied)
                if header.sequence > self.mark.sequence:
                    self._judge_rows(header.group)
        if self._torn:
            # The record that says what such a snapshot applied is gone, its rows are not.
            self.core.rows_lost.update(dict.fromkeys(self._installed))
        self._installed.clear()
        self._torn = False
        self._given_out = info.store_sequence
        for summary in info.groups:
            group = self._group(summary.group)
            group.incarnation = summary.incarnation
            if info.epoch > self._doubtful_epoch:
                group.uncertain = bool(summary.flags & FLAG_UNCERTAIN)
            if summary.flags & (FLAG_HARD_STATE | FLAG_RESTATED):
                group.hard_state = HardState(summary.hard_term, summary.vote, summary.commit)
            if summary.flags & FLAG_ENTRIES and group.last_index < summary.last_index:
                group.missing.append((group.last_index + 1, summary.last_index))
        if rotted:
            core.stats.rotted_records += max(0, info.records - len(records))

    def _look_for_loss(self, info: BatchInfo, records: list[FoundRecord]) -> None:
        if len(records) < info.records and info.store_sequence > self.mark.sequence:
            self._torn = True
            self._hole(Hole(info.sequence, 0, info.records - len(records)))

    def _hole(self, hole: Hole) -> None:
        self._losses += 1
        self._holes[hole] = None
        # Of what lies below the mark the tables have the rows, and the volumes do not: an install
        # makes up for that only if it is found where these rows are missing.
        if not self.mark.sequence or self._given_out > self.mark.sequence:
            self.core.holes[hole] = None

    def _gap(self, info: BatchInfo) -> Hole:
        return Hole(self._next_batch, max(0, info.sequence - self._next_batch), 0)

    def _look_for_install(self, rows: Sequence[RowChange]) -> None:
        """What a LOCAL record says of snapshots."""
        for key, value in rows:
            if key[:1] == ROWS_LOST_TABLE:
                group = int.from_bytes(key[1:], "big")
                if value is not None:
                    self.core.rows_lost[group] = None
                    holes = decode_holes(value)
                    self._known[group] = set(self._holes) if holes is None else holes
                elif self.core.rows_lost.pop(group, group) is None and group in self._installed:
                    self._installed[group] = True
            elif value is None and (ended := decided_group(key)) is not None:
                self._installed[ended] = False

    def _judge_rows(self, group: int) -> None:
        """The log of a group begins anew: are all rows here that were there then?"""
        wrote_all = self._installed.pop(group, None)
        if wrote_all is None:
            self._made.append(group)
            for other in list(self.lost_outcomes):
                self._miss_outcomes(other)
        if wrote_all is None and self._torn:
            lost = True  # what says which of the two it was may be what is gone
        elif wrote_all is None:
            lost = bool(self.core.rows_lost)  # a cut may have made it of rows of another group
        else:
            if wrote_all:
                self._made_up[group] = self._known.get(group, set())
            lost = not self._holes.keys() <= self._made_up.get(group, set())
        if lost:
            self.core.rows_lost[group] = None

    def _miss_outcomes(self, group: int) -> None:
        """Its entries are executed again from the last outcome that counts. If it was cut behind
        that, they would write over what the upper part has written since."""
        self.lost_outcomes[group] = None
        made = [other for other in self._made[self._made_before.get(group, 0) :] if other != group]
        if made:
            self.core.rows_lost.update(dict.fromkeys([group, *made]))

    def unread(self, volume: int) -> None:
        pass  # what is not in the tables lies above the floor

    def uncertain(self, epoch: int) -> None:
        self._losses += 1
        self._in_doubt = True
        self._doubtful_epoch = max(self._doubtful_epoch, epoch)
        for group in self.core.groups.values():
            group.uncertain = True

    def finish(self) -> None:
        """Everything is written to the index; the groups are as durable as they were found."""
        self._write()
        for group in self.core.groups.values():
            if group.applied_index > group.last_index:
                # The last entries rotted, but what they did is known: the log goes on behind them.
                term = group.last_term
                low = group.last_index + 1
                self._pad(group, group.applied_index)
                for index in range(low, group.applied_index + 1):
                    group.terms[index - group.first_index] = term
            elif self._keep_rows and group.applied_index + 1 < group.first_index:
                # An index that was rebuilt ends before what is left of the log: the entries in
                # between are lost, and how the group's other replicas go on is for them to say.
                group.miss_below(group.applied_index)
            group.durable_index = group.last_index
            group.written_last = group.last_index
            group.written_term = group.last_term
            group.written_guess = group.is_missing(group.last_index)
            group.written_applied = group.applied_index
            hard = group.hard_state
            group.written_hard = HardState(hard.term, hard.vote, hard.commit)
            self.core.stats.lost_entries += sum(hi - lo + 1 for lo, hi in group.missing)

    # --- groups

    def _group(self, number: int) -> GroupLog:
        group = self.core.groups.get(number)
        if group is None:
            group = self.core.groups[number] = GroupLog(number, self.core.entry_account)
            group.applied_index = self.mark.applied.get(number, 0)
            group.uncertain = self._doubtful_epoch > 0
            group.begun = True
        return group

    def _restated(self, summary: GroupInfo) -> None:
        group = self._group(summary.group)
        last = summary.last_index
        if group.first_index <= last + 1 <= group.last_index:
            # It went back, by a record that lies before the floor: the group left this disk, say.
            group.truncate(last)
        missing = bool(summary.flags & FLAG_LAST_MISSING)
        same = last == group.last_index and (
            group.is_missing(last)
            or (not missing and group.term_before(last + 1) == summary.last_term)
        )
        if summary.group not in self._seen or not same:
            # What lies before is not here any more (it was compacted), or what is here was replaced
            # by entries that went with their volume: the log starts here. (Entries of the same
            # index and term are the same, and so is all below them.)
            self._seen.add(summary.group)
            applied = group.applied_index
            group.reset(summary.last_index, summary.last_term)
            group.applied_index = applied
            if missing:
                # (What came back since follows in this volume or a later one. As the end of the
                # log, a guessed term would decide votes, and what a leader sends never followed.)
                group.miss_below(last - 1)
        if summary.applied_index > group.applied_index:
            if self._outcomes_may_be_gone:
                group.applied_index = summary.applied_index
            else:
                # Every outcome above the flushed index was walked over: the one that is not here
                # rotted, and what it says is executed again rather than skipped.
                self._miss_outcomes(summary.group)

    def _begin(self, summary: GroupInfo) -> None:
        """A batch holds the entries first_index..last_index: they replace what was from there."""
        group = self._group(summary.group)
        first = summary.first_index
        if summary.group not in self._seen or first < group.first_index:
            # the first that can be read, or it replaced a suffix that began before that
            self._seen.add(summary.group)
            group.truncate(group.first_index - 1)
            group.first_index = first
            group.previous_term = summary.previous_term
        group.truncate(first - 1)
        group.missing = [(lo, min(hi, first - 1)) for lo, hi in group.missing if lo < first]
        if first > group.last_index + 1:  # what was lost at the end of an earlier batch
            self._pad(group, first - 1)

    def _entry(self, volume: int, offset: int, header: RecordHeader) -> None:
        group = self._group(header.group)
        index = header.b
        if group.applied_index < index < group.first_index:
            # It came back to a volume behind the floor, where the one it was lost in is not read.
            group.miss_below(index - 1)
        if index == group.first_index - 1 and not group.previous_term:
            group.previous_term = header.term  # it came back in the batch that begins the log here
            return
        if index <= group.last_index or group.is_missing(index):
            # A batch holds an index once; this one was lost to rot, and came back.
            group.pad(index)
            group.fill(index, header.term, volume, offset, header.size_bytes)
            return
        if index > group.last_index + 1:
            self._pad(group, index - 1)
        group.terms.append(header.term)
        group.places.append(0)
        group.sizes.append(0)
        group.place(index, volume, offset, header.size_bytes)

    @staticmethod
    def _pad(group: GroupLog, last: int) -> None:
        """Entries up to `last` are lost, though later ones are there."""
        low = group.last_index + 1
        for _ in range(low, last + 1):
            group.terms.append(0)
            group.places.append(0)
            group.sizes.append(0)
        if not any(a <= low and last <= b for a, b in group.missing):
            group.missing.append((low, last))

    # --- rows

    def _outcome(
        self, data: memoryview, offset: int, header: RecordHeader, sealer: FileSealer
    ) -> None:
        group = self._group(header.group)
        index = header.b
        if index <= group.applied_index:
            return
        if index != group.applied_index + 1:
            self._miss_outcomes(group.group)
            return
        self.lost_outcomes.pop(group.group, None)
        self._made_before[group.group] = len(self._made)
        rows, released = decode_rows(open_body(data, header, sealer, offset, offset))
        group.applied_index = index
        self._rows += rows
        self._rows += [(released_key(stream), b"") for stream in released]
        if len(self._rows) >= ROWS_PER_WRITE:
            self._write()

    def _place(self, key: bytes, value: bytes | None) -> None:
        if key[:1] == BULK_TABLE:
            self.core.saw_volume(int.from_bytes(key[1:], "big"))
        if value is not None and key[:1] == PLACEMENT_TABLE:
            run = decode_run(value)
            volume = self.core.volumes.get(run.volume)
            if volume is not None:
                volume.placed_bytes += run_bytes(run)
                if volume.kind is VolumeKind.BULK:  # (placed after a sync of all before its end)
                    volume.synced_bytes = max(volume.synced_bytes, run_end(run))
        elif value is not None and key[:1] == BULK_TABLE:
            volume = self.core.volumes.get(int.from_bytes(key[1:], "big"))
            if volume is not None:
                volume.synced_bytes = max(volume.synced_bytes, decode_u64(value))
        self._rows.append((key, value))
        if len(self._rows) >= ROWS_PER_WRITE:
            self._write()

    def _place_again(self, key: bytes, value: bytes | None) -> None:
        """A run that grew or moved replaces the one it was."""
        self._write()
        try:
            old = self.core.index.get_now(key) if self._keep_rows else None
        except BadBlock:
            old = None  # only an estimate of garbage is at stake
        if isinstance(old, bytes) and key[:1] == PLACEMENT_TABLE:
            run = decode_run(old)
            volume = self.core.volumes.get(run.volume)
            if volume is not None:
                volume.placed_bytes -= run_bytes(run)
        self._place(key, value)

    def _write(self) -> None:
        if self._rows and self._keep_rows:
            self.core.index.write(self._rows)
        self._rows = []
