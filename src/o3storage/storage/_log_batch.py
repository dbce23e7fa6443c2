"""What one batch of the log is made of: queued appends, group summaries, encoded records.

Interface: `Append`, `Infos`, `Payload`, `QueuedOutcome`, `PlacedRun`, `runs_bytes`.

Invariant: `Payload` gives a sequence to each change of rows in the step that also hands those rows
to the index (LogWriter writes `rows` before it waits for anything).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from o3storage.runtime.disk import Buffer
from o3storage.storage._batches import (
    FLAG_ENTRIES,
    FLAG_HARD_STATE,
    FLAG_LAST_MISSING,
    FLAG_UNCERTAIN,
    MAX_BATCH_GROUPS,
    GroupInfo,
)
from o3storage.storage._core import Core, Volume
from o3storage.storage._groups import NO_CUT, GroupLog
from o3storage.storage._records import (
    ENTRY,
    FLAG_KEEP,
    GROUP,
    LOCAL,
    OUTCOME,
    PREFIX_BYTES,
    decode_rows,
    encode_group_reset,
    encode_rows,
    frame_parts,
    group_words,
    seal_record,
)
from o3storage.storage._rows import (
    RowChange,
    Run,
    decode_run,
    encode_run,
    placement_bounds,
    placement_key,
    split_placement_key,
)
from o3storage.storage._types import SEAL_TAG_BYTES, Entry, HardState, SealedFrame
from o3storage.storage._volume import align
from o3storage.storage.index import Miss

RECORD_OVERHEAD = PREFIX_BYTES + SEAL_TAG_BYTES
"""Bytes of a sealed record beside its plain body."""

QueuedOutcome = tuple[GroupLog, int, int, bytes]
"""(group, index, sequence, body)."""

PlacedRun = tuple[bytes, int, Run, bool]
"""(stream, first frame, run, whether it may cut into a run that is placed already)."""


class Append:
    """One queued append, or a group's reset, or a mere wish to be synced."""

    __slots__ = (
        "buffers",
        "entries",
        "fills",
        "first",
        "frames",
        "future",
        "group",
        "hard",
        "keep",
        "previous_term",
        "replaces",
        "reset",
        "rows",
        "size",
    )

    def __init__(  # noqa: PLR0917
        self,
        group: GroupLog | None,
        hard: HardState | None,
        entries: Sequence[Entry],
        frames: Sequence[SealedFrame],
        future: asyncio.Future[None],
        previous_term: int = 0,
        replaces: bool = False,
        reset: tuple[int, int] | None = None,
        keep: bool = False,
        rows: bytes = b"",
        fills: Sequence[Entry] = (),
    ) -> None:
        self.group = group
        self.hard = hard
        self.entries = entries
        self.frames = frames
        self.future = future
        self.previous_term = previous_term
        """Term of the entry before the first."""
        self.replaces = replaces
        """The entries replace some that were appended before."""
        self.reset = reset
        self.keep = keep
        """The reset leaves the entries above it."""
        self.rows = rows
        """Encoded changes of rows that belong to this disk alone."""
        self.fills = fills
        """Entries that were missing; they replace nothing."""
        self.first = entries[0].index if entries else 0
        self.size = RECORD_OVERHEAD * (len(entries) + (reset is not None) * 2)
        if rows:
            self.size += RECORD_OVERHEAD + len(rows)
        for entry in entries:
            self.size += len(entry.data)
        for entry in fills:
            self.size += RECORD_OVERHEAD + len(entry.data)
        for frame in frames:
            self.size += PREFIX_BYTES + len(frame.data)
        self.buffers = len(entries) + len(frames)


class Infos:
    """Group summaries of the batch being gathered."""

    __slots__ = ("by_group", "filled")

    def __init__(self) -> None:
        self.by_group: dict[int, list[int]] = {}
        """group -> [flags, first index, its previous term, last index] of what the batch holds."""
        self.filled: dict[int, int] = {}
        """group -> last index of entries that were missing and came back in this batch."""

    def takes(self, append: Append) -> bool:
        group = append.group
        if group is None:
            return True
        info = self.by_group.get(group.group)
        if info is None:
            return len(self.by_group) < MAX_BATCH_GROUPS
        if append.reset is not None:
            return False
        if self.filled and append.entries and append.first <= self.filled.get(group.group, 0):
            return False  # (of two records of one index a replay takes the first)
        return not (append.entries and info[0] & FLAG_ENTRIES and append.first <= info[3])

    def take(self, append: Append) -> None:
        group = append.group
        if group is None:
            return
        info = self.by_group.get(group.group)
        if info is None:
            info = self.by_group[group.group] = [0, 0, 0, 0]
        if append.entries:
            if not info[0] & FLAG_ENTRIES:
                info[0] |= FLAG_ENTRIES
                info[1] = append.first
                info[2] = append.previous_term
            info[3] = append.entries[-1].index
        if append.fills:
            last = append.fills[-1].index
            self.filled[group.group] = max(last, self.filled.get(group.group, 0))
        if append.hard is not None:
            info[0] |= FLAG_HARD_STATE

    def summaries(self, core: Core) -> list[GroupInfo]:
        """For the batch's header, once its records are encoded."""
        return [
            _group_info(core.groups[number], flags, first, previous)
            for number, (flags, first, previous, _) in self.by_group.items()
        ]

    def last_entries(self, core: Core) -> list[tuple[GroupLog, int]]:
        """(group, last index in the batch) of groups with entries in it."""
        last = [
            (core.groups[number], core.groups[number].written_last)
            for number, (flags, _, _, _) in self.by_group.items()
            if flags & FLAG_ENTRIES
        ]
        if self.filled:
            last += [(core.groups[number], index) for number, index in self.filled.items()]
        return last


def runs_bytes(runs: Sequence[PlacedRun], notes: Mapping[bytes, bytes | None]) -> int:
    """Upper bound of the body of the LOCAL record for these runs, and rows of 04, 07 and 08."""
    return 8 + sum(128 if cuts else 64 for _, _, _, cuts in runs) + 32 * len(notes)


def _group_info(group: GroupLog, flags: int, first: int, previous_term: int) -> GroupInfo:
    hard = group.written_hard
    if group.uncertain:
        flags |= FLAG_UNCERTAIN
    if group.written_guess:
        flags |= FLAG_LAST_MISSING
    return GroupInfo(
        group.group,
        flags,
        group.incarnation,
        first,
        previous_term,
        group.written_last,
        group.written_term,
        hard.term,
        hard.vote,
        hard.commit,
        group.written_applied,
    )


class Payload:
    """The records of a batch, encoded for where they will stand."""

    __slots__ = ("_core", "_offset", "_sealer", "_start", "_volume", "hashes", "parts", "rows")

    def __init__(self, core: Core, volume: Volume, offset: int) -> None:
        assert volume.sealer is not None
        self._core = core
        self._volume = volume
        self._sealer = volume.sealer
        self._start = offset
        self._offset = offset
        self.parts: list[Buffer] = []
        self.hashes: list[bytes] = []
        self.rows: list[RowChange] = []
        """Placement that the records imply or say."""

    @property
    def size_bytes(self) -> int:
        return self._offset - self._start

    def _seal(  # noqa: PLR0917
        self, kind: int, flags: int, a0: int, a1: int, b: int, sequence: int, body: bytes
    ) -> int:
        digest, size = seal_record(
            self.parts, self._sealer, self._offset, kind, flags, a0, a1, b, sequence, body
        )
        self.hashes.append(digest)
        self._offset += size
        return size

    def put_outcomes(self, outcomes: Sequence[QueuedOutcome]) -> None:
        for group, index, sequence, body in outcomes:
            a0, a1 = group_words(group.group, group.incarnation, 0)
            self._volume.change_bytes += self._seal(OUTCOME, 0, a0, a1, index, sequence, body)
            group.written_applied = index

    def put_runs(
        self, runs: Sequence[PlacedRun], notes: Mapping[bytes, bytes | None]
    ) -> list[PlacedRun]:
        """One LOCAL record, with the rows `notes`; returns runs that cannot be placed yet: what
        they cut into would have to be read from the disk."""
        core = self._core
        unplaced: list[PlacedRun] = []
        changes: list[RowChange] = [*notes.items()]
        # What is left of a run behind a cut is written as it was before this batch: a frame that
        # is placed anew there, too, has to come behind that.
        for placed in sorted(runs, key=_order_of_cuts):
            stream, first, run, cuts = placed
            if cuts:
                try:
                    changes += self._rest_of_cut(stream, first + run.frames)
                except LookupError:
                    unplaced.append(placed)
                    continue
            changes.append((placement_key(stream, first), encode_run(run)))
        core.sequence += 1
        body = encode_rows(changes)
        self._volume.change_bytes += self._seal(LOCAL, 0, 0, 0, 0, core.sequence, body)
        self.rows += changes
        return unplaced

    def _rest_of_cut(self, stream: bytes, end: int) -> list[RowChange]:
        """A run that goes on over `end` keeps its frames from there, as a run of its own.
        LookupError if the table would have to be read from the disk."""
        high = placement_bounds(stream)[1]
        rows = self._core.index.scan_now(placement_key(stream, end), high, 1)
        if isinstance(rows, Miss):
            raise LookupError
        if not rows:
            return []
        _, first = split_placement_key(rows[0][0])
        run = decode_run(rows[0][1])
        skip = end - first
        if skip <= 0 or skip >= run.frames:
            return []
        rest = run._replace(
            offset=run.offset + skip * align(run.record_bytes), frames=run.frames - skip
        )
        return [(placement_key(stream, end), encode_run(rest))]

    def put_append(self, append: Append) -> None:
        if append.rows:
            self._put_rows(append.rows)
        group = append.group
        if group is not None:
            group.begun = True
            a0 = group.group | group.incarnation << 32
            if append.reset is not None:
                self._put_reset(group, a0, append.reset, append.keep)
            volume = self._volume.volume
            for entry in append.entries:
                offset = self._offset
                size = self._seal(ENTRY, entry.kind, a0, entry.term, entry.index, 0, entry.data)
                group.place(entry.index, volume, offset, size)
            for entry in append.fills:
                offset = self._offset
                size = self._seal(ENTRY, entry.kind, a0, entry.term, entry.index, 0, entry.data)
                filled = group.fill(entry.index, entry.term, volume, offset, size)
                if filled and entry.index >= group.written_last:
                    # The next volume restates where the log ends: with this entry, and with its
                    # term, which had to be guessed while it was missing.
                    group.written_last = entry.index
                    group.written_term = entry.term
                    group.written_guess = False
            _note(group, append)
        for frame in append.frames:
            self._put_frame(frame)

    def _put_rows(self, body: bytes) -> None:
        core = self._core
        core.sequence += 1
        self._volume.change_bytes += self._seal(LOCAL, 0, 0, 0, 0, core.sequence, body)
        self.rows += decode_rows(body)[0]

    def _put_reset(self, group: GroupLog, a0: int, reset: tuple[int, int], keep: bool) -> None:
        index, term = reset
        body = encode_group_reset(index, term)
        flags = FLAG_KEEP if keep else 0
        self._seal(GROUP, flags, a0, term, index, self._core.sequence, body)
        if not keep or group.written_last < index:
            group.written_last, group.written_term = reset
            group.written_guess = False
        group.written_applied = index

    def _put_frame(self, frame: SealedFrame) -> None:
        core = self._core
        core.sequence += 1
        digest, size = frame_parts(self.parts, frame, core.sequence)
        run = Run(self._volume.volume, self._offset, 1, size, size)
        self.rows.append((placement_key(frame.stream, frame.number), encode_run(run)))
        self.hashes.append(digest)
        self._volume.placed_bytes += size
        self._offset += size


def _order_of_cuts(placed: PlacedRun) -> int:
    return placed[1] if placed[3] else -1


def _note(group: GroupLog, append: Append) -> None:
    """The batch being encoded holds this append."""
    if append.entries:
        last = append.entries[-1]
        if append.replaces:
            group.cuts -= 1
            if group.cuts == 0:
                group.cut = NO_CUT
        group.written_last = last.index
        group.written_term = last.term
        group.written_guess = False
    if append.hard is not None:
        group.written_hard = append.hard
