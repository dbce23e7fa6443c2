"""Values, options, limits and errors of the index."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB

MAX_KEY_BYTES = 8 * KIB
"""An escaped 1,024-byte S3 key is at most 2,050 bytes, beside ids; twice and again for safety."""

MAX_VALUE_BYTES = 2 * MIB
"""Bounds what one block must hold in memory: a row is never split over blocks."""

MAX_BATCH_ROWS = 16_384
"""One command writes at most a few rows for each of 1,000 keys; the rest is room."""

MAX_MARK_BYTES = 1 * MIB
"""A mark holds a few numbers for each Raft group of the disk."""

STEP_ROWS = 1024
"""Rows that one step on the event loop handles at most (DESIGN 6)."""

STEP_BYTES = 1 * MIB
"""Bytes that one step on the event loop handles at most (DESIGN 6)."""

PrefixLength = Callable[[bytes], int]
"""How many bytes of a row key the bloom filters cover (1..len(key))."""


class Miss(enum.Enum):
    """What a `..._now` method returns when it would have to wait for the disk."""

    MISS = "miss"


@dataclass(frozen=True, slots=True)
class IndexOptions:
    """Sizes and rates. The defaults are for production; tests use small ones."""

    block_bytes: int = 4 * KIB
    """Plain bytes after which a block is closed. Small: a random get opens one whole block."""
    table_bytes: int = 32 * MIB
    """Size at which a merge starts the next table."""
    filter_bits_per_row: int = 10
    """Bits of bloom filter for each distinct prefix: about 1 % false positives."""
    cache_bytes: int = 128 * MIB
    """Opened blocks kept in memory. Opening one costs about as much as the rest of a get: these are
    nearly all blocks of a million small objects (140 MiB), and a quarter of what a process may take
    (promise P8)."""
    level0_tables: int = 4
    """Tables of level 0 that start a merge."""
    level0_stall_tables: int = 12
    """Tables of level 0 at which a flush waits for merges: each costs every read a probe."""
    level1_bytes: int = 128 * MIB
    """Size of level 1 above which its tables move down; each next level is larger by the ratio."""
    level_ratio: int = 8
    merge_bytes_per_s: int = 64 * MIB
    """Rate of background merges (bytes read), unless level 0 is about to stall."""
    background: bool = True
    """Merge by itself. Off in tests that call `merge`."""


@dataclass(slots=True)
class IndexStats:
    """Counters since open, for metrics and status."""

    flushes: int = 0
    flushed_bytes: int = 0
    merges: int = 0
    merged_bytes: int = 0
    moves: int = 0
    """Tables moved a level down without being rewritten."""
    block_reads: int = 0
    """Blocks read from the disk or its cache, and opened."""
    tables: int = 0
    table_bytes: int = 0
    memtable_runs: int = 0


class IndexFailure(Exception):
    """Base of the index's own errors."""


class IndexDamaged(IndexFailure):
    """The manifest cannot be read: the index must be rebuilt from the volumes."""


class IndexKeyWrong(IndexFailure):
    """The disk key does not open the index's files."""


class BadBlock(IndexFailure):
    """A block of a table does not match its checksum or cannot be read. Rows with
    key_low <= key < key_high are affected (key_high None: to the end); all others serve."""

    def __init__(self, table: int, key_low: bytes, key_high: bytes | None, reason: str) -> None:
        super().__init__(
            f"index table {table:016x}: {reason}; rows from {key_low.hex()} to "
            f"{'the end' if key_high is None else key_high.hex()} must be rebuilt from the volumes"
        )
        self.table = table
        self.key_low = key_low
        self.key_high = key_high
