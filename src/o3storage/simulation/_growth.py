"""Key ranges that are cut because they grew, which in life takes millions of objects."""

from __future__ import annotations

from typing import TYPE_CHECKING

from o3storage.storage import StoreOptions

if TYPE_CHECKING:
    from o3storage.cluster import Node

EVERY_SEEDS = 4
"""In one seed of four, not those of `_splits`."""
RANGE_BYTES = 2 << 10
"""Half a block of the index: half a minute of work fills several ranges of this size."""
FLUSH_ENTRIES = 40
"""Ranges are measured when the index was flushed, which has to happen in so short a run."""
LOOK_S = 1.0
"""Between looks at the sizes: a run has some dozen flushes."""


def ranges_grow(seed: int) -> bool:
    return seed % EVERY_SEEDS == 3


def flush_often(options: StoreOptions) -> None:
    options.flush_entries = min(options.flush_entries, FLUSH_ENTRIES)


def make_small(node: Node) -> None:
    """The node cuts ranges that are only a little large."""
    node.ranges.sizes.limit_bytes = RANGE_BYTES
    node.ranges.sizes.look_s = node.ranges.sizes.retry_s = LOOK_S
