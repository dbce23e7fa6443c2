"""Scans: the rows of a span of keys, merged from runs and tables, in bounded steps."""

from __future__ import annotations

from o3storage._native import BlockError, Run, index_candidates, index_scan

from ._table import Table
from ._types import STEP_ROWS, BadBlock, IndexFailure
from ._view import Need, View

MAX_READ_AHEAD = 32
"""Blocks that a scan loads at a time from one source: 128 KiB of default blocks."""


class Cursor:
    """Where a scan stands in one table, or in the tables of one level."""

    __slots__ = ("ahead", "blocks", "bound", "number", "tables")

    def __init__(self, tables: list[Table], low: bytes, ahead: int) -> None:
        self.tables = tables
        """Those that still hold keys of the span; the first one is being read."""
        self.number = -1
        """The next block of the first table; -1: look it up from the scan's low end."""
        self.blocks: list[bytes] = []
        self.bound: bytes | None = low
        """All rows below it are in `blocks` or passed; None at the end of the source."""
        self.ahead = ahead

    def load(
        self, view: View, low: bytes, high: bytes | None, held: dict[int, bytes] | None
    ) -> Need | None:
        """Replace the blocks by the next ones. Raises BadBlock."""
        self.blocks = []
        while self.tables:
            table = self.tables[0]
            if high is not None and table.first >= high:
                self.tables = []
                break
            if view.drops and view.is_dropped(table, table.first, table.last + b"\0"):
                self._next_table()
                continue
            index = table.index
            if index is None:
                raise table.bad_whole()
            if self.number < 0:
                self.number = index.seek(low)
            if self.number >= index.blocks:
                self._next_table()
                continue
            if view.drops and self._skip_dropped(view, table):
                continue
            count = min(self.ahead, index.blocks - self.number)
            if count > 1 and high is not None:
                count = max(1, min(count, index.seek(high) + 1 - self.number))
            try:
                found = view.blocks(table, self.number, count, held)
            except BadBlock:
                if count == 1:
                    raise
                self.ahead = 1  # what lies ahead may not be needed: go block by block
                continue
            if isinstance(found, Need):
                return found
            self.blocks = found
            self.number += count
            self.ahead = min(2 * self.ahead, MAX_READ_AHEAD)
            break
        self._set_bound()
        return None

    def _skip_dropped(self, view: View, table: Table) -> bool:
        index = table.index
        assert index is not None
        high = (
            index.lower(self.number + 1) if self.number + 1 < index.blocks else table.last + b"\0"
        )
        if view.is_dropped(table, index.lower(self.number), high):
            self.number += 1
            return True
        self.ahead = 1
        return False

    def _next_table(self) -> None:
        self.tables = self.tables[1:]
        self.number = 0

    def _set_bound(self) -> None:
        if not self.tables:
            self.bound = None
            return
        index = self.tables[0].index
        assert index is not None
        if self.number < index.blocks:
            self.bound = index.lower(self.number)
        else:
            self.bound = self.tables[1].first if len(self.tables) > 1 else None


class Scan:
    """A scan under way: call `step` until it returns True; fetch what it needs in between."""

    __slots__ = ("_cursors", "_high", "_limit", "_low", "_runs", "rows", "view")

    def __init__(
        self,
        view: View,
        runs: tuple[Run, ...],
        low: bytes,
        high: bytes | None,
        limit: int,
        *,
        filtered: bool = False,
    ) -> None:
        """With `filtered`, `low` is a bloom prefix and the span is that of the keys it starts:
        sources whose filter excludes it are not read."""
        self.rows: list[tuple[bytes, bytes]] = []
        self.view = view
        # Here and not in `step`, whose low end moves on: only the first one is a bloom prefix.
        chosen = index_candidates(runs, low) if filtered else runs
        self._runs: list[list[Run | bytes]] = [[run] for run in chosen]
        self._low = low
        self._high = high
        self._limit = limit
        ahead = 1 if limit <= 16 else 4
        self._cursors: list[Cursor] = []
        sources = [
            [table]
            for table in view.level0
            if table.last >= low and (high is None or table.first < high)
        ]
        sources.extend(level.overlapping(low, high) for level in view.levels)
        for tables in sources:
            if filtered:
                tables = [
                    table
                    for table in tables
                    if table.index is None or table.index.probe(low, len(low)) >= 0
                ]
            if tables:
                self._cursors.append(Cursor(tables, low, ahead))

    def step(self, held: dict[int, bytes] | None) -> bool | Need:
        """Merge what is loaded, loading first where nothing is. True at the end. Raises
        BadBlock."""
        high = self._high
        for cursor in self._cursors:
            if cursor.bound is not None and cursor.bound <= self._low:
                need = cursor.load(self.view, self._low, high, held)
                if need is not None:
                    return need
        bound = high
        for cursor in self._cursors:
            if cursor.bound is not None and (bound is None or cursor.bound < bound):
                bound = cursor.bound
        sources = self._runs + [cursor.blocks for cursor in self._cursors if cursor.blocks]
        try:
            rows, resume = index_scan(
                sources,
                self._low,
                bound,
                self._limit - len(self.rows),
                self.view.drops,
                STEP_ROWS,
            )
        except BlockError as error:
            raise self._find_bad() from error
        self.rows = self.rows + rows if self.rows else rows
        if len(self.rows) >= self._limit:
            return True
        if resume is not None:
            self._low = resume
            return False
        if bound is None or bound == high:
            return True
        self._low = bound
        return False

    def _find_bad(self) -> Exception:
        """Which source holds the damaged block: its checksum held, so this is a defect, not rot."""
        for cursor in self._cursors:
            if cursor.tables and cursor.blocks:
                table = cursor.tables[0]
                for number in range(max(0, cursor.number - len(cursor.blocks)), cursor.number):
                    return table.bad(number, "a block's rows are damaged")
        return IndexFailure("rows in memory are damaged; this is a defect, please report it")
