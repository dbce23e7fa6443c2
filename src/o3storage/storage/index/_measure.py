"""How many bytes of tables a span of keys takes, and keys that lie evenly over it: from the block
indexes in memory, without reading a block.

Each block counts for the span that its lower bound lies in, so the spans that a span is cut into
have its bytes between them. They are estimates of what is live: rows that were overwritten or
deleted count until a merge takes them, and rows in the memtable do not count yet.
"""

from __future__ import annotations

from collections.abc import Iterator

from o3storage._native import TableIndex

from ._table import Table
from ._view import View

MAX_SAMPLES = 512
"""Keys of one sample, beside one for each table: half a millisecond of work, and each stands for a
fifth of a percent of the span."""


def measure(view: View, low: bytes, high: bytes) -> int:
    """Bytes of the blocks whose lower bound is in low <= key < high."""
    total = 0
    for index, start, end in _pieces(view, low, high):
        total += index.locate(start, end - start)[1]
    return total


def sample(view: View, low: bytes, high: bytes) -> list[tuple[bytes, int]]:
    """(key, bytes) of places in the span, in no order: so many bytes lie from each on. The keys
    need not be of any row."""
    pieces = list(_pieces(view, low, high))
    stride = max(1, -(-sum(end - start for _, start, end in pieces) // MAX_SAMPLES))
    found: list[tuple[bytes, int]] = []
    for index, start, end in pieces:
        for number in range(start, end, stride):
            size = index.locate(number, min(stride, end - number))[1]
            found.append((index.lower(number), size))
    return found


def _pieces(view: View, low: bytes, high: bytes) -> Iterator[tuple[TableIndex, int, int]]:
    """Blocks start <= number < end of each table that has any in the span. A table that cannot be
    read is left out: its rows are being rebuilt."""
    for table in _overlapping(view, low, high):
        index = table.index
        if index is None:
            continue
        start = 0 if low <= table.first else _first_block(index, low)
        end = index.blocks if table.last < high else _first_block(index, high)
        if start < end:
            yield index, start, end


def _overlapping(view: View, low: bytes, high: bytes) -> Iterator[Table]:
    for table in view.level0:
        if table.first < high and low <= table.last:
            yield table
    for level in view.levels:
        yield from level.overlapping(low, high)


def _first_block(index: TableIndex, key: bytes) -> int:
    """The first block whose lower bound is at or above the key."""
    number = index.seek(key)
    return number if index.lower(number) >= key else number + 1
