"""What in life takes millions of objects: key ranges that are cut because they grew, and volumes
that are compacted all the time."""

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
COMPACT_SEEDS = 3
"""In one seed of three volumes are compacted all the time."""
BULK_BYTES = 512 << 10
"""Two bodies of a frame, or one of two."""
COMPACT_EVERY_S = 0.3
COMPACT_BYTES_PER_S = 1 << 20
"""A volume takes half a second, as long as a burst of requests and a fault."""
LOOK_S = 1.0
"""Between looks at the sizes: a run has some dozen flushes."""


def ranges_grow(seed: int) -> bool:
    return seed % EVERY_SEEDS == 3


def flush_often(options: StoreOptions) -> None:
    options.flush_entries = min(options.flush_entries, FLUSH_ENTRIES)


def compacts_often(seed: int) -> bool:
    return seed % COMPACT_SEEDS == 2


def compact_often(options: StoreOptions) -> None:
    """Small volumes, and a compaction that takes long, so that requests, flushes and faults come in
    between."""
    options.bulk_volume_bytes = options.bulk_allocate_bytes = BULK_BYTES
    options.log_volume_bytes = min(options.log_volume_bytes, BULK_BYTES // 4)
    options.first_log_volume_bytes = min(options.first_log_volume_bytes, BULK_BYTES // 4)
    options.flush_entries = min(options.flush_entries, FLUSH_ENTRIES)
    options.compaction_every_s = COMPACT_EVERY_S
    options.compaction_bytes_per_s = COMPACT_BYTES_PER_S
    options.compaction_garbage_ratio = 0.2


def make_small(node: Node) -> None:
    """The node cuts ranges that are only a little large."""
    node.ranges.sizes.limit_bytes = RANGE_BYTES
    node.ranges.sizes.look_s = node.ranges.sizes.retry_s = LOOK_S
