"""Which tables make up the index at one instant, and reads over them.

A read needs a block that is not in memory? Then it returns a `Need`; the caller fetches it (or
answers MISS) and asks again. So there is one path for reads that may wait and reads that may not.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Literal

from o3storage._native import (
    BlockError,
    Run,
    index_block_get,
    index_candidates,
    index_first,
    index_get,
    index_open_rows,
)

from ._cache import BlockCache
from ._table import Table

Drop = tuple[bytes, bytes | None, int]
"""Rows with low <= key < high (None: to the end) up to this sequence are gone."""

MAX_FIRST_SOURCES = 8
"""Runs of the memtable that a look for one row asks one by one, each about 0.3 us; a `Scan` merges
any number at about 5 us."""

Found = bytes | Literal[False] | None
"""A value; False for a deleted row; None for no row."""


class Need:
    """Blocks that a read wants and that are not in memory."""

    __slots__ = ("count", "number", "table")

    def __init__(self, table: Table, number: int, count: int) -> None:
        self.table = table
        self.number = number
        self.count = count


class Level:
    """Tables of one level below 0: sorted, with disjoint spans."""

    __slots__ = ("lasts", "size_bytes", "tables")

    def __init__(self, tables: list[Table]) -> None:
        self.tables = sorted(tables, key=lambda table: table.first)
        self.lasts = [table.last for table in self.tables]
        self.size_bytes = sum(table.info.size_bytes for table in self.tables)

    def overlapping(self, low: bytes, high: bytes | None) -> list[Table]:
        """Tables that may hold keys with low <= key < high."""
        start = bisect_left(self.lasts, low)
        end = start
        while end < len(self.tables) and (high is None or self.tables[end].first < high):
            end += 1
        return self.tables[start:end]


def covers(drops: Sequence[Drop], table: Table, low: bytes, high: bytes | None) -> bool:
    """Whether one drop, or several that follow each other, took every row of `table` with
    low <= key < high."""
    for drop_low, drop_high, sequence in drops:
        if table.max_sequence <= sequence and drop_low <= low:
            if drop_high is None or (high is not None and high <= drop_high):
                return True
            low = max(low, drop_high)  # from here on: a repair drops a span in steps, ascending
    return False


class View:
    """The tables at one instant. Immutable; `pin`ned by whoever reads across an await."""

    __slots__ = ("_on_dead", "cache", "drops", "level0", "levels", "references")

    def __init__(
        self,
        level0: list[Table],
        levels: list[Level],
        drops: tuple[Drop, ...],
        cache: BlockCache,
        on_dead: Callable[[Table], None],
    ) -> None:
        self.level0 = sorted(level0, key=lambda table: -table.max_sequence)
        """Newest first: later flushes have later sequences."""
        self.levels = levels
        self.drops = drops
        self.cache = cache
        self.references = 1
        self._on_dead = on_dead
        for table in self.tables():
            table.references += 1

    def tables(self) -> list[Table]:
        return [*self.level0, *(table for level in self.levels for table in level.tables)]

    def pin(self) -> None:
        assert self.references > 0
        self.references += 1

    def unpin(self) -> None:
        self.references -= 1
        if self.references == 0:
            for table in self.tables():
                table.references -= 1
                if table.references == 0 and table.dead:
                    self._on_dead(table)

    def floor(self, key: bytes) -> int:
        """Rows of `key` up to this sequence were dropped."""
        floor = 0
        for low, high, sequence in self.drops:
            if low <= key and (high is None or key < high) and sequence > floor:
                floor = sequence
        return floor

    def is_dropped(self, table: Table, low: bytes, high: bytes | None) -> bool:
        """Whether every row of `table` with low <= key < high is gone."""
        return covers(self.drops, table, low, high)

    # --- one row

    def get(
        self, runs: tuple[Run, ...], key: bytes, prefix: int, held: dict[int, bytes] | None
    ) -> Found | Need:
        """The newest row of `key` in `runs` (newest first), then in the tables. Raises BadBlock."""
        floor = self.floor(key) if self.drops else 0
        found = index_get(runs, key, prefix, floor)
        if found is not None:
            return found
        young = self.cache.young
        for table in self.level0:
            if table.first <= key <= table.last and table.max_sequence > floor:
                if table.index is None:
                    raise table.bad_whole()
                number = table.index.probe(key, prefix)
                if number >= 0:
                    block = young.get(table.base + number) or self.block(table, number, held)
                    if block is None:
                        return Need(table, number, 1)
                    found = self._row(table, number, block, key, floor)
                    if found is not None:
                        return found
        for level in self.levels:
            at = bisect_left(level.lasts, key)
            if at == len(level.lasts):
                continue
            table = level.tables[at]
            if table.first <= key and table.max_sequence > floor:
                if table.index is None:
                    raise table.bad_whole()
                number = table.index.probe(key, prefix)
                if number >= 0:
                    block = young.get(table.base + number) or self.block(table, number, held)
                    if block is None:
                        return Need(table, number, 1)
                    found = self._row(table, number, block, key, floor)
                    if found is not None:
                        return found
        return None

    def first(
        self, runs: tuple[Run, ...], prefix: bytes
    ) -> tuple[bytes, bytes] | Literal[False] | None:
        """The first row that starts with a bloom prefix, where a look at each source tells: no
        filter holds it (None), or few do and the first row of each is not deleted. False: make a
        `Scan`."""
        if self.drops:
            return False
        sources: list[Run] = index_candidates(runs, prefix)
        if len(sources) > MAX_FIRST_SOURCES:
            return False
        only: Table | None = None
        number = -1
        for table in self.level0:
            # Keys that start with the prefix are above it; they may be above all of the table too.
            if prefix <= table.last:
                if table.index is None:
                    return False
                at = table.index.probe(prefix, len(prefix))
                if at >= 0:
                    if only is not None:
                        return False
                    only, number = table, at
        for level in self.levels:
            place = bisect_left(level.lasts, prefix)
            if place == len(level.lasts):
                continue
            # If the span of the prefix went on into the next table, this one would hold it too.
            table = level.tables[place]
            if table.index is None:
                return False
            at = table.index.probe(prefix, len(prefix))
            if at >= 0:
                if only is not None:
                    return False
                only, number = table, at
        # A source whose first row is deleted cannot tell, nor can one that has none after all.
        # Where each has one, the least key counts, and of equal keys the newest source.
        row: tuple[bytes, bytes] | None = None
        for source in sources:
            found = index_first(source, prefix)
            if found is None:
                return False
            if row is None or found[0] < row[0]:
                row = found
        if only is None:
            return row
        block = self.cache.young.get(only.base + number) or self.block(only, number, None)
        if block is None:
            return False
        try:
            found = index_first(block, prefix)
        except BlockError as error:
            raise only.bad(number, str(error.args[0])) from error
        if found is None:
            return False
        return found if row is None or found[0] < row[0] else row

    def _row(self, table: Table, number: int, block: bytes, key: bytes, floor: int) -> Found:
        try:
            return index_block_get(block, key, floor)
        except BlockError as error:
            raise table.bad(number, str(error.args[0])) from error

    # --- blocks

    def block(self, table: Table, number: int, held: dict[int, bytes] | None) -> bytes | None:
        """The opened block, if no disk I/O is needed."""
        key = table.base + number
        block = self.cache.get(key)
        if block is None and held is not None:
            block = held.get(key)
        if block is not None:
            return block
        assert table.index is not None and table.file is not None
        offset, size = table.index.locate(number)
        data = table.file.read_now(offset, size)
        if data is None:
            return None
        return self.admit(table, number, 1, offset, data)[0]

    def blocks(
        self, table: Table, number: int, count: int, held: dict[int, bytes] | None
    ) -> list[bytes] | Need:
        """`count` blocks that follow each other. What is touched beyond the first is a guess of
        the caller: it asks again for one if this raises BadBlock."""
        found: list[bytes] = []
        while len(found) < count:
            at = number + len(found)
            key = table.base + at
            block = self.cache.get(key)
            if block is None and held is not None:
                block = held.get(key)
            if block is not None:
                found.append(block)
                continue
            missing = 1
            while len(found) + missing < count and table.base + at + missing not in (
                self.cache.young
            ):
                missing += 1
            assert table.index is not None and table.file is not None
            offset, size = table.index.locate(at, missing)
            data = table.file.read_now(offset, size)
            if data is None:
                return Need(table, at, missing)
            found.extend(self.admit(table, at, missing, offset, data))
        return found

    def admit(self, table: Table, number: int, count: int, offset: int, data: bytes) -> list[bytes]:
        """Open blocks that were read and keep them in the cache. Raises BadBlock."""
        assert table.key is not None
        try:
            blocks = index_open_rows(table.key, offset, data)
        except BlockError as error:
            raise table.bad(number + error.args[1], error.args[0]) from error
        if len(blocks) != count:
            raise table.bad(number + min(len(blocks), count - 1), "a record is cut off")
        self.cache.opened += count
        for at, block in enumerate(blocks):
            self.cache.put(table.base + number + at, block)
        return blocks
