"""The memtable: a small head of rows as they came, and sorted runs, newest first.

Reads look at the head by hash, at the runs by filter and search. The head becomes a run when it is
full, before a flush and before a drop; eight runs of a size become one of the next size, in place
when they are small, by a job when they are not.
"""

from __future__ import annotations

from collections.abc import Sequence

from o3storage._native import Run, index_merge_runs, index_run
from o3storage.runtime.jobs import Job

from ._types import (
    MAX_BATCH_ROWS,
    MAX_KEY_BYTES,
    MAX_VALUE_BYTES,
    STEP_BYTES,
    STEP_ROWS,
    PrefixLength,
)

HEAD_ROWS = 256
"""A head is sorted in one step on the loop, at about 0.15 us a row."""
HEAD_BYTES = 256 * 1024
SMALL_HEAD_ROWS = 32
"""Sorting them takes a few microseconds, less than handling one more run."""
ROW_OVERHEAD_BYTES = 200
"""Key and value objects and the dict slot of a row in the head."""
FAN_IN = 8
"""Runs of one size that become one of the next: few enough to search, rare enough to merge."""
LARGE_RUN_BYTES = 2 << 20
"""Not merged further: the flush merges them all, and a dozen of them fill a memtable."""
MAX_RUNS = 96
"""Writers that never let the loop turn keep jobs from completing: merge in place then."""


class Memtable:
    """Rows that are in no table yet."""

    def __init__(self, prefix_length: PrefixLength) -> None:
        self.head: dict[bytes, bytes | None] = {}
        self.runs: tuple[Run, ...] = ()
        """Newest first."""
        self._frozen: list[int] = []
        """Flushes that wait or run, oldest first: how many of the oldest runs belong to each."""
        self.sequence = 0
        self._prefix_length = prefix_length
        self._head_bytes = 0
        self._run_bytes = 0
        self._head_run: Run | None = None
        """The head as a run, if a reader asked for it since the last write."""
        self._head_prefixes: set[bytes] = set()
        self._unlisted: list[Sequence[tuple[bytes, bytes | None]]] = []
        """Batches in the head whose prefixes are not in the set yet."""
        self.merging: tuple[Run, ...] = ()
        """Runs that a job merges."""

    @property
    def size_bytes(self) -> int:
        return self._head_bytes + self._run_bytes

    @property
    def rows(self) -> int:
        return len(self.head) + sum(run.rows for run in self.runs)

    def write(self, rows: Sequence[tuple[bytes, bytes | None]]) -> None:
        """Raises ValueError before anything changed."""
        if len(rows) > MAX_BATCH_ROWS:
            raise ValueError(f"a batch has at most {MAX_BATCH_ROWS} rows, got {len(rows)}")
        size = ROW_OVERHEAD_BYTES * len(rows)
        for key, value in rows:
            key_size = len(key)
            if not 0 < key_size <= MAX_KEY_BYTES:
                raise ValueError(f"a row key has 1 to {MAX_KEY_BYTES} bytes, got {key_size}")
            size += key_size
            if value is not None:
                if len(value) > MAX_VALUE_BYTES:
                    raise ValueError(f"a row value has at most {MAX_VALUE_BYTES} bytes")
                size += len(value)
        self.sequence += 1
        self.head.update(rows)
        self._head_bytes += size
        self._head_run = None
        self._unlisted.append(rows)
        if len(self.head) >= HEAD_ROWS or self._head_bytes >= HEAD_BYTES:
            self.seal_head()

    def seal_head(self) -> None:
        """Turn the head into a run. All its rows get the sequence of its last batch: no reader
        pinned an instant between them that still looks at the head."""
        if not self.head:
            return
        self.runs = (*self._build_head(), *self.runs)
        self._run_bytes = sum(run.size_bytes for run in self.runs)
        self.head = {}
        self._head_bytes = 0
        self._head_run = None
        self._head_prefixes = set()
        self._unlisted = []

    def _build_head(self) -> list[Run]:
        rows = list(self.head.items())
        prefix_length = self._prefix_length
        prefixes = [prefix_length(key) for key in self.head]
        if len(rows) <= STEP_ROWS:
            return [index_run(rows, prefixes, self.sequence)]
        # A large batch: several runs of distinct keys, each a bounded native call.
        return [
            index_run(rows[at : at + STEP_ROWS], prefixes[at : at + STEP_ROWS], self.sequence)
            for at in range(0, len(rows), STEP_ROWS)
        ]

    def reader_runs(self) -> tuple[Run, ...]:
        """All rows as runs, for readers that pin this instant. A head of a few rows is sorted
        beside itself; a larger one becomes a run, so that it is not sorted for every reader."""
        if not self.head:
            return self.runs
        if len(self.head) > SMALL_HEAD_ROWS or self._head_bytes > HEAD_BYTES // 8:
            self.seal_head()
            return self.runs
        if self._head_run is None:
            (self._head_run,) = self._build_head()
        return (self._head_run, *self.runs)

    def head_has_prefix(self, prefix: bytes) -> bool:
        """Whether the head may hold rows with this bloom prefix."""
        if self._unlisted:
            prefix_length = self._prefix_length
            add = self._head_prefixes.add
            for rows in self._unlisted:
                for key, _ in rows:
                    add(key[: prefix_length(key)])
            self._unlisted = []
        return prefix in self._head_prefixes

    # --- merging runs

    def tidy(self) -> Job[Run] | None:
        """Merge runs that can be merged in this step; a job for more, whose result goes to
        `merged` (one at a time: `merging` names its runs)."""
        while True:
            group = self._group()
            if not group:
                return None
            size = sum(run.size_bytes for run in group)
            rows = sum(run.rows for run in group)
            small = rows <= STEP_ROWS and size <= STEP_BYTES
            if small or len(self.runs) > MAX_RUNS:
                self._replace(group, index_merge_runs(list(group)).run())
            elif self.merging:
                return None
            else:
                self.merging = group
                return index_merge_runs(list(group))

    def merged(self, run: Run) -> None:
        """The job's result."""
        group, self.merging = self.merging, ()
        self._replace(group, run)

    def _replace(self, group: tuple[Run, ...], run: Run) -> None:
        at = self.runs.index(group[0])
        assert self.runs[at : at + len(group)] == group
        behind = 0
        for number, count in enumerate(self._frozen):
            # A job that began before a flush was asked for merges only runs of that flush.
            if at >= len(self.runs) - behind - count:
                self._frozen[number] -= len(group) - 1
                break
            behind += count
        self.runs = (*self.runs[:at], run, *self.runs[at + len(group) :])
        self._run_bytes = sum(run.size_bytes for run in self.runs)

    def _group(self) -> tuple[Run, ...]:
        """Neighbours of one size that are enough for a merge, the newest such group."""
        free = self.runs[: len(self.runs) - sum(self._frozen)]
        if self.merging and self.merging[0] in free:
            free = free[: free.index(self.merging[0])]
        start = 0
        while start + FAN_IN <= len(free):
            tier = _tier(free[start])
            end = start
            while end < len(free) and _tier(free[end]) <= tier and not _is_large(free[end]):
                end += 1
            group = free[start:end]
            if len(group) >= FAN_IN:
                return group
            start = max(end, start + 1)
        return ()

    # --- flushing

    def freeze(self) -> None:
        """A flush was asked for: what is written from here on does not belong to it."""
        self.seal_head()
        self._frozen.append(len(self.runs) - sum(self._frozen))

    def frozen_runs(self) -> tuple[Run, ...]:
        """The runs of the oldest flush. Not while a job merges some."""
        assert not self.merging
        return self.runs[len(self.runs) - self._frozen[0] :]

    def thaw(self, *, flushed: bool) -> None:
        """The end of the oldest flush: its runs are in tables, or belong to the next one."""
        count = self._frozen.pop(0)
        if flushed:
            self.runs = self.runs[: len(self.runs) - count]
            self._run_bytes = sum(run.size_bytes for run in self.runs)
        elif self._frozen:
            self._frozen[0] += count


def _is_large(run: Run) -> bool:
    return run.size_bytes >= LARGE_RUN_BYTES


def _tier(run: Run) -> int:
    """Size class: powers of FAN_IN rows."""
    return (run.rows.bit_length() - 1) // 3
