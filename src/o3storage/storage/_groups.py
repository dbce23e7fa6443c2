"""What a disk knows of one group's log: terms, places, recent entries, hard state.

Interface: `GroupLog`, `EntryCache`, `pack_place`, `unpack_place`.

Invariants
- `terms`, `places` and `sizes` hold one item for each index from first_index to last_index.
- A place is 0 while the entry is not written yet, or was lost; only entries whose place is known
  and that are durable leave the cache.
- durable_index <= last_index; applied_index <= durable_index.
- `written_*` is the state as of the last batch that was built (what the next header repeats);
  last_index and hard_state run ahead of it by the appends that wait.
"""

from __future__ import annotations

import sys
from array import array
from collections import deque
from collections.abc import Sequence

from o3storage.storage._types import EntriesGone, Entry, HardState, LogState

_OFFSET_BITS = 36
_OFFSET_MASK = (1 << _OFFSET_BITS) - 1
NO_CUT = sys.maxsize


def pack_place(volume: int, offset: int) -> int:
    """One word for a place: volumes below 2^28, offsets below 64 GiB."""
    assert offset <= _OFFSET_MASK
    return volume << _OFFSET_BITS | offset


def unpack_place(place: int) -> tuple[int, int]:
    return place >> _OFFSET_BITS, place & _OFFSET_MASK


class EntryCache:
    """Bytes of entries in memory, over all groups."""

    __slots__ = ("limit_bytes", "used_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0


UNCACHE_ENTRIES = 1000
"""Freed in one step of the loop, at about 0.3 us each: between two flushes 100 thousand gather."""
ENTRY_OVERHEAD_BYTES = 200
"""Of an Entry object, its integers and its slot, for the cache's account."""


class GroupLog:
    """The log of one group on this disk."""

    __slots__ = (
        "applied_index",
        "begun",
        "cache",
        "cache_account",
        "cut",
        "cuts",
        "dropped",
        "durable_index",
        "first_index",
        "group",
        "hard_state",
        "incarnation",
        "keep_from",
        "missing",
        "places",
        "previous_term",
        "sizes",
        "terms",
        "uncertain",
        "written_applied",
        "written_guess",
        "written_hard",
        "written_last",
        "written_term",
    )

    def __init__(self, group: int, account: EntryCache) -> None:
        self.group = group
        self.incarnation = 0
        self.begun = False
        """The disk says something of the group, or will with the batch being built. Until then no
        new volume may: an open would take what the group is before its beginning for its log."""
        self.first_index = 1
        self.previous_term = 0
        """Term of the entry before first_index."""
        self.terms = array("Q")
        self.places = array("Q")
        self.sizes = array("I")
        self.cache: deque[Entry] = deque()
        """The last entries of the log."""
        self.cache_account = account
        self.hard_state = HardState()
        self.applied_index = 0
        self.durable_index = 0
        self.keep_from: int | None = None
        self.missing: list[tuple[int, int]] = []
        self.uncertain = False
        self.cut = NO_CUT
        """Highest index that waiting appends leave alone (they replace what lies above)."""
        self.cuts = 0
        self.dropped = False
        """Entries were dropped that may still be on their way to the disk: what is appended next
        replaces them, and is not durable with them."""
        self.written_last = 0
        self.written_term = 0
        self.written_guess = False
        """The entry at `written_last` is lost, and `written_term` as well as is known."""
        self.written_hard = HardState()
        self.written_applied = 0

    @property
    def last_index(self) -> int:
        return self.first_index + len(self.terms) - 1

    @property
    def last_term(self) -> int:
        return self.terms[-1] if self.terms else self.previous_term

    @property
    def is_blank(self) -> bool:
        """It certainly never held an entry: there may be a term and a vote, nothing else."""
        held = self.last_index or self.applied_index or self.missing or self.hard_state.commit
        return not held and not self.uncertain

    def state(self) -> LogState:
        hard = self.hard_state
        return LogState(
            first_index=self.first_index,
            last_index=self.last_index,
            last_term=self.last_term,
            hard_state=HardState(hard.term, hard.vote, hard.commit),
            applied_index=self.applied_index,
            durable_index=self.durable_index,
            missing=list(self.missing),
            uncertain=self.uncertain,
        )

    def term(self, index: int) -> int:
        """Raises EntriesGone outside first_index - 1 .. last_index, and for a lost entry."""
        at = index - self.first_index
        if at == -1:
            return self.previous_term
        if not 0 <= at < len(self.terms) or (self.missing and self.is_missing(index)):
            raise EntriesGone(f"group {self.group}: no term of entry {index}")
        return self.terms[at]

    def term_before(self, index: int) -> int:
        """Term of the entry before `index`, which may itself be lost (then as well as is known)."""
        at = index - 1 - self.first_index
        return self.terms[at] if at >= 0 else self.previous_term

    def is_missing(self, index: int) -> bool:
        return any(lo <= index <= hi for lo, hi in self.missing)

    # --- growing

    def check_append(self, entries: Sequence[Entry]) -> None:
        """Raises ValueError unless the entries are contiguous and touch the log."""
        index = entries[0].index
        if not self.first_index <= index <= self.last_index + 1:
            raise ValueError(
                f"group {self.group}: entries from {index} do not continue a log of "
                f"{self.first_index}..{self.last_index}"
            )
        if index <= self.applied_index:
            raise ValueError(f"group {self.group}: entry {index} is applied and stays as it is")
        for entry in entries:
            if entry.index != index or entry.term < 1:
                raise ValueError(f"group {self.group}: entry {entry.index} where {index} belongs")
            index += 1

    def take_append(self, entries: Sequence[Entry]) -> bool:
        """Entries waiting to be written. True if they replace a suffix."""
        first = entries[0].index
        replaces = self.dropped or first <= self.last_index
        self.dropped = False
        if self.missing:
            self.missing = [(lo, min(hi, first - 1)) for lo, hi in self.missing if lo < first]
        if replaces:
            self.truncate(first - 1)
            self.durable_index = min(self.durable_index, first - 1)
            self.cut = min(self.cut, first - 1)
            self.cuts += 1
        cache = self.cache
        terms = self.terms
        for entry in entries:
            terms.append(entry.term)
            self.places.append(0)
            self.sizes.append(0)
            cache.append(entry)
            self.cache_account.used_bytes += len(entry.data) + ENTRY_OVERHEAD_BYTES
        if self.cache_account.used_bytes > self.cache_account.limit_bytes:
            self.evict()
        return replaces

    def truncate(self, last: int) -> None:
        """Drop the entries above `last`."""
        keep = max(0, last + 1 - self.first_index)
        drop = len(self.terms) - keep
        if drop <= 0:
            return
        for _ in range(min(drop, len(self.cache))):
            entry = self.cache.pop()
            self.cache_account.used_bytes -= len(entry.data) + ENTRY_OVERHEAD_BYTES
        del self.terms[keep:], self.places[keep:], self.sizes[keep:]
        if self.missing:
            self.missing = [(lo, min(hi, last)) for lo, hi in self.missing if lo <= last]

    def evict(self) -> None:
        """Entries that can be read from disk leave the cache, oldest first."""
        account = self.cache_account
        cache = self.cache
        while cache and account.used_bytes > account.limit_bytes:
            if cache[0].index > min(self.durable_index, self.applied_index):
                break
            account.used_bytes -= len(cache.popleft().data) + ENTRY_OVERHEAD_BYTES

    def place(self, index: int, volume: int, offset: int, size: int) -> None:
        """The entry stands there (a waiting append may have replaced it meanwhile)."""
        at = index - self.first_index
        if 0 <= at < len(self.places):
            self.places[at] = pack_place(volume, offset)
            self.sizes[at] = size

    def pad(self, last: int) -> None:
        """Make room for missing entries at the end that are about to be filled."""
        if self.last_index >= last:
            return
        # The cache holds the end of the log, and what comes is not in it.
        for entry in self.cache:
            self.cache_account.used_bytes -= len(entry.data) + ENTRY_OVERHEAD_BYTES
        self.cache.clear()
        while self.last_index < last:
            self.terms.append(self.last_term)
            self.places.append(0)
            self.sizes.append(0)

    def fill(self, index: int, term: int, volume: int, offset: int, size: int) -> bool:
        """A missing entry stands there now (unless the log was cut meanwhile: False)."""
        at = index - self.first_index
        if not 0 <= at < len(self.terms) or not self.is_missing(index):
            return False
        self.terms[at] = term
        self.place(index, volume, offset, size)
        parts: list[tuple[int, int]] = []
        for lo, hi in self.missing:
            if lo <= index <= hi:
                parts += [(lo, index - 1), (index + 1, hi)]
            else:
                parts.append((lo, hi))
        self.missing = [(lo, hi) for lo, hi in parts if lo <= hi]
        return True

    def miss_below(self, index: int) -> None:
        """The log goes back to `index`, whose term nobody remembers; what was not here is lost."""
        low, high = index + 1, self.first_index - 1
        lost = high - index
        self.terms = array("Q", [self.previous_term]) * lost + self.terms
        self.places = array("Q", [0]) * lost + self.places
        self.sizes = array("I", [0]) * lost + self.sizes
        self.missing.insert(0, (low, high))
        self.first_index = low
        self.previous_term = 0

    # --- shrinking

    def forget_below(self, index: int) -> None:
        """Entries below `index` can no longer be read."""
        drop = min(index - self.first_index, len(self.terms))
        if drop <= 0:
            return
        self.previous_term = self.terms[drop - 1]
        del self.terms[:drop], self.places[:drop], self.sizes[:drop]
        self.first_index += drop
        self.uncache()
        if self.missing:
            low = self.first_index
            self.missing = [(max(lo, low), hi) for lo, hi in self.missing if hi >= low]

    def uncache(self) -> bool:
        """Some of the entries that were forgotten leave the cache; whether more have to. They do
        no harm there: nobody asks for them, and those behind them follow without a gap."""
        cache = self.cache
        for _ in range(UNCACHE_ENTRIES):
            if not cache or cache[0].index >= self.first_index:
                return False
            self.cache_account.used_bytes -= len(cache.popleft().data) + ENTRY_OVERHEAD_BYTES
        return True

    def reset(self, index: int, term: int) -> None:
        """Empty, behind (index, term)."""
        self.truncate(self.first_index - 1)
        for entry in self.cache:
            self.cache_account.used_bytes -= len(entry.data) + ENTRY_OVERHEAD_BYTES
        self.cache.clear()
        self.first_index = index + 1
        self.previous_term = term
        self.missing = []
        self.durable_index = index
        self.applied_index = index

    def install(self, index: int, term: int, *, keep: bool) -> None:
        """All up to (index, term) is applied, through a snapshot. `keep`: what lies above stays."""
        if not keep or index >= self.last_index:
            self.reset(index, term)
            return
        self.forget_below(index + 1)
        self.previous_term = term
        self.durable_index = max(self.durable_index, index)
        self.applied_index = index

    # --- reading

    def cached(self, lo: int, hi: int, max_bytes: int) -> list[Entry] | None:
        """Entries lo <= index < hi from memory, None if the first of them is not there."""
        if not self.cache:
            return None
        start = lo - self.cache[0].index
        if start < 0:
            return None
        found: list[Entry] = []
        size = 0
        stop = min(hi - self.cache[0].index, len(self.cache))
        for at in range(start, stop):
            entry = self.cache[at]
            size += len(entry.data)
            if found and size > max_bytes:
                break
            found.append(entry)
        return found
