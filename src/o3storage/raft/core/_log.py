"""What the core knows of its log: terms by runs, holes, what is durable, and a short tail of whole
entries. Older entries are read by the driver when a follower needs them."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque

from o3storage.raft.core._types import Entry

UNKNOWN = -1
"""Term of an entry that is known to exist and cannot be read."""
ABSENT = -2
"""Term of an index below the floor or above the end."""
ENTRY_OVERHEAD_BYTES = 64
"""Counted per entry beside its data, so that empty entries cannot make a batch endless."""


class Log:
    """Invariants: floor <= stable <= last; terms never decrease with the index; `tail` is
    consecutive and ends at `last` unless it is empty; `holes` are sorted, disjoint, above floor.
    """

    __slots__ = (
        "_in_flight",
        "_starts",
        "_terms",
        "_truncated_at",
        "floor",
        "floor_term",
        "holes",
        "last",
        "stable",
        "tail",
        "tail_bytes",
    )

    def __init__(
        self,
        floor: int = 0,
        floor_term: int = 0,
        runs: list[tuple[int, int]] | None = None,
        last: int = 0,
        holes: list[tuple[int, int]] | None = None,
    ) -> None:
        """`runs`: (first index, term) of each run of equal terms, ascending, from floor + 1."""
        self.floor = floor
        self.floor_term = floor_term
        self._starts = [start for start, _ in runs or []]
        self._terms = [term for _, term in runs or []]
        self.last = max(last, floor)
        self.stable = self.last
        self.holes = sorted(holes or [])
        self.tail: list[Entry] = []
        self.tail_bytes = 0
        self._in_flight: deque[tuple[int, int]] = deque()  # (ticket, last index it wrote)
        self._truncated_at = 0  # tickets below this one may have written what is gone now
        assert self.last == floor or (bool(runs) and self._starts[0] == floor + 1)
        assert all(floor < low <= high <= self.last for low, high in self.holes)

    # --- reading

    @property
    def last_term(self) -> int:
        """Of the last entry, readable or not (a batch's header names it)."""
        return self._terms[-1] if self._terms else self.floor_term

    @property
    def ceiling(self) -> int:
        """The highest index below which nothing is missing."""
        return self.holes[0][0] - 1 if self.holes else self.last

    def term(self, index: int) -> int:
        """The term, UNKNOWN inside a hole, or ABSENT."""
        if index > self.last or index < self.floor:
            return ABSENT
        if index == self.floor:
            return self.floor_term
        if self.holes and self.missing(index):
            return UNKNOWN
        if index >= self._starts[-1]:
            return self._terms[-1]
        return self._terms[bisect_right(self._starts, index) - 1]

    def missing(self, index: int) -> bool:
        return any(low <= index <= high for low, high in self.holes)

    def hole_term(self, low: int, high: int) -> int:
        """The term of the entries of a hole if both its neighbours say so, else UNKNOWN: only then
        an (index, term) that another node holds is for certain what was lost here."""
        below = self.term(low - 1)
        above = self.last_term if high == self.last else self.term(high + 1)
        return below if below == above else UNKNOWN

    def find_at_most(self, index: int, term: int) -> tuple[int, int]:
        """The highest (index, term) with index and term at most these: a conflict hint."""
        at = min(index, self.ceiling)
        while at > self.floor:
            run = bisect_right(self._starts, at) - 1
            if self._terms[run] <= term:
                return at, self._terms[run]
            at = self._starts[run] - 1
        return self.floor, self.floor_term

    def slice(self, low: int, high: int, max_bytes: int) -> list[Entry] | None:
        """Entries low..high (inclusive) from memory, at least one, until `max_bytes`; None if the
        first is not in memory."""
        if not self.tail or low < self.tail[0].index:
            return None
        base = self.tail[0].index
        found = self.tail[low - base : high - base + 1]
        size = 0
        for count, entry in enumerate(found):
            size += len(entry.data) + entry.riding_bytes + ENTRY_OVERHEAD_BYTES
            if size > max_bytes and count:
                return found[:count]
        return found

    # --- writing

    def append(self, entries: list[Entry]) -> None:
        """Add entries after `last`."""
        assert entries[0].index == self.last + 1
        tail = self.tail
        last_term = self.last_term
        size = 0
        for entry in entries:
            if entry.term != last_term or not self._terms:
                assert entry.term >= last_term, "terms never decrease along a log"
                self._starts.append(entry.index)
                self._terms.append(entry.term)
                last_term = entry.term
            size += len(entry.data) + entry.riding_bytes + ENTRY_OVERHEAD_BYTES
        tail.extend(entries)
        self.tail_bytes += size
        self.last = entries[-1].index

    def truncate(self, index: int, next_ticket: int) -> None:
        """Drop everything from `index` on. Writes issued before `next_ticket` prove nothing about
        what replaces it."""
        assert index > self.floor
        while self._starts and self._starts[-1] >= index:
            self._starts.pop()
            self._terms.pop()
        keep = len(self.tail)
        while keep and self.tail[keep - 1].index >= index:
            keep -= 1
            gone = self.tail[keep]
            self.tail_bytes -= len(gone.data) + gone.riding_bytes + ENTRY_OVERHEAD_BYTES
        del self.tail[keep:]
        self.holes = [(low, min(high, index - 1)) for low, high in self.holes if low < index]
        self.last = index - 1
        if self.stable >= index:
            self.stable = index - 1
        self._truncated_at = next_ticket

    def fill(self, entry: Entry, next_ticket: int) -> None:
        """A known-missing entry came back. Its term may split a run. It counts as durable only
        when the write of `next_ticket` is."""
        at = entry.index
        self.stable = min(self.stable, at - 1)
        self._truncated_at = next_ticket
        for number, (low, high) in enumerate(self.holes):
            if low <= at <= high:
                parts = [(low, at - 1), (at + 1, high)]
                self.holes[number : number + 1] = [part for part in parts if part[0] <= part[1]]
                break
        run = bisect_right(self._starts, at) - 1
        if run < 0 or self._terms[run] != entry.term:
            self._retag(at, entry.term)

    def _retag(self, index: int, term: int) -> None:
        """Give one index another term, keeping the runs minimal."""
        runs: list[tuple[int, int]] = []

        def add(start: int, run_term: int) -> None:
            if not runs or runs[-1][1] != run_term:
                runs.append((start, run_term))

        placed = False
        for number, start in enumerate(self._starts):
            run_term = self._terms[number]
            end = self._starts[number + 1] - 1 if number + 1 < len(self._starts) else self.last
            if start <= index <= end:
                if start < index:
                    add(start, run_term)
                add(index, term)
                if index < end:
                    add(index + 1, run_term)
                placed = True
            else:
                add(start, run_term)
        assert placed
        self._starts = [start for start, _ in runs]
        self._terms = [run_term for _, run_term in runs]

    def issued(self, ticket: int) -> None:
        """A write that covers the log as it is now was handed to the disk."""
        self._in_flight.append((ticket, self.last))

    def persisted(self, ticket: int) -> None:
        """Every write up to `ticket` is durable."""
        flight = self._in_flight
        while flight and flight[0][0] <= ticket:
            number, last = flight.popleft()
            if number >= self._truncated_at and last > self.stable:
                self.stable = last
        assert self.stable <= self.last

    def trim(self, index: int) -> None:
        """Forget whole entries up to `index` (memory only)."""
        tail = self.tail
        if not tail or tail[0].index > index:
            return
        count = min(index - tail[0].index + 1, len(tail))
        for entry in tail[:count]:
            self.tail_bytes -= len(entry.data) + entry.riding_bytes + ENTRY_OVERHEAD_BYTES
        del tail[:count]

    def compact(self, index: int) -> None:
        """Forget all up to `index`, which stays known as the floor."""
        if index <= self.floor:
            return
        term = self.term(index)
        assert term >= 0, "only applied entries are compacted"
        self.floor_term = term
        self.floor = index
        run = bisect_right(self._starts, index) - 1
        ends_there = run + 1 < len(self._starts) and self._starts[run + 1] == index + 1
        drop = run + 1 if ends_there or index == self.last else run
        del self._starts[:drop]
        del self._terms[:drop]
        if self._starts:
            self._starts[0] = index + 1
        self.trim(index)

    def goes_on(self, index: int, term: int) -> bool:
        """Whether what is here above `index` may follow an entry (`index`, `term`)."""
        if index >= self.last or self.term(index) not in (term, UNKNOWN):
            return False
        for at in range(index + 1, self.last + 1):
            above = self.term(at)
            if above != UNKNOWN:
                return above >= term
        return self.last_term >= term

    def rebase(self, index: int, term: int) -> None:
        """Make (`index`, `term`) the floor, lost or not, and keep all above it."""
        self.holes = [(max(low, index + 1), high) for low, high in self.holes if high > index]
        if index == self.floor:
            self.floor_term = term
        elif self.term(index) != term:
            self._retag(index, term)
        self.compact(index)
        self.stable = max(self.stable, index)

    def reset(self, index: int, term: int, next_ticket: int) -> None:
        """Become the empty log after a snapshot."""
        self.floor, self.floor_term, self.last, self.stable = index, term, index, index
        self._starts, self._terms, self.holes = [], [], []
        self.tail, self.tail_bytes = [], 0
        self._truncated_at = next_ticket
