"""The index of one disk: a log-structured merge tree over sealed, checksummed tables.

Format: docs/format-index.md. Used by the storage room only.
"""

from __future__ import annotations

from ._index import Index, Snapshot
from ._types import (
    MAX_BATCH_ROWS,
    MAX_KEY_BYTES,
    MAX_MARK_BYTES,
    MAX_VALUE_BYTES,
    STEP_ROWS,
    BadBlock,
    IndexDamaged,
    IndexFailure,
    IndexKeyWrong,
    IndexOptions,
    IndexStats,
    Miss,
    PrefixLength,
)

__all__ = [
    "MAX_BATCH_ROWS",
    "MAX_KEY_BYTES",
    "MAX_MARK_BYTES",
    "MAX_VALUE_BYTES",
    "STEP_ROWS",
    "BadBlock",
    "Index",
    "IndexDamaged",
    "IndexFailure",
    "IndexKeyWrong",
    "IndexOptions",
    "IndexStats",
    "Miss",
    "PrefixLength",
    "Snapshot",
]
