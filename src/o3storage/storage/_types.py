"""What the storage room says to the others: values, options, errors.

Invariants
- Log indexes start at 1; index 0 with term 0 stands for "before the first entry".
- A `SealedFrame.data` is ciphertext with its tag, never plaintext: the batch format relies on it
  (no 512-byte sector of a batch is all zero, docs/format.md).
- All sizes are bytes, all times nanoseconds or seconds as the name says.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from o3storage.runtime.disk import Buffer

GroupId = int
"""A Raft group: 0 is range 0 (the cluster's own records), 1 and up are key ranges."""

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

FRAME_PLAIN_BYTES = 256 * KIB
"""Plaintext bytes of every frame of a stream but the last (DESIGN 4, Streams)."""

SEAL_TAG_BYTES = 16
"""Poly1305 tag at the end of each ciphertext (RFC 8439)."""

STREAM_ID_BYTES = 16

SMALL_FRAME_BYTES = 32 * KIB
"""Plaintext bytes up to which a frame rides in the log beside its entry (DESIGN 4, Volumes)."""

MAX_ENTRY_BYTES = 2 * MIB
"""One entry's data: a few times the largest command (a 1,000-key delete), far below memory."""

MAX_APPEND_BYTES = 8 * MIB
"""Entries and frames of one `append`: the driver batches below 1 MiB; a replica catching up may
send more, but a batch must still fit the write buffers."""

MAX_GROUPS = 4096
"""Groups of one disk: bounds the restatements at the start of each log volume."""

MAX_ROW_KEY_BYTES = 4 * KIB
"""A row key: an escaped 1,024-byte S3 key is at most 2,050 bytes, beside ids and upload ids."""

MAX_ROW_VALUE_BYTES = 1 * MIB
"""A row value: bounds what one record must hold in memory."""


class EntryKind(enum.IntEnum):
    """What a log entry carries."""

    COMMAND = 0
    NO_OP = 1
    CONFIGURATION = 2
    LOST = 3
    """Put by `verify --repair` for an entry that rotted away; applies as a counted no-op."""


@dataclass(slots=True)
class Entry:
    """One entry of a group's log. index >= 1, term >= 1, `data` at most MAX_ENTRY_BYTES."""

    index: int
    term: int
    kind: int
    data: bytes


@dataclass(slots=True)
class HardState:
    """Raft's persistent state of one group (Raft paper, figure 2). vote 0 = none."""

    term: int = 0
    vote: int = 0
    commit: int = 0


@dataclass(slots=True)
class SealedFrame:
    """One frame of a stream as it is stored: at most FRAME_PLAIN_BYTES of plaintext, sealed."""

    stream: bytes
    """16 random bytes."""
    number: int
    """0, 1, ... within the stream."""
    last: bool
    plain_size: int
    data: Buffer
    """Ciphertext and tag: plain_size + SEAL_TAG_BYTES bytes."""


@dataclass(slots=True)
class LogState:
    """What one group's log holds. After `Store.open` everything in it is durable."""

    first_index: int = 1
    """Lowest index whose entry can be read here; last_index + 1 if there is none."""
    last_index: int = 0
    """Last readable index: what the group votes with (DESIGN 4, known missing)."""
    last_term: int = 0
    hard_state: HardState = field(default_factory=HardState)
    applied_index: int = 0
    """Every outcome up to this index is in the rows; the caller applies from here + 1."""
    durable_index: int = 0
    """Last index that is synced here; equals last_index after open."""
    missing: list[tuple[int, int]] = field(default_factory=list)
    """Known-missing spans of indexes (both ends included): were durable, have rotted."""
    uncertain: bool = False
    """The disk lost a batch without a trace of what it held: the group grants no vote and
    acknowledges no append until it was made a learner; a sole voter goes on with term + 1."""
    rows_lost: bool = False
    """Rows are lost that no entry here brings back (a snapshot that was installed left them as they
    were, say, or a block of the index is bad and so is a record of what stood there): the log is
    sound, the rows are not. Only a snapshot mends that, all of which `Store.install` then writes;
    it stays so over restarts until then."""


@dataclass(slots=True)
class StoreOptions:
    """Sizes and rates. The defaults are for production; tests use small ones."""

    log_volume_bytes: int = 64 * MIB
    """A log volume is zero-filled to this size before it is used."""
    first_log_volume_bytes: int = 16 * MIB
    """Size of the first log volume of each open: it is waited for."""
    bulk_volume_bytes: int = 256 * MIB
    """A bulk volume is closed when it grew past this."""
    bulk_allocate_bytes: int = 32 * MIB
    """Fallocate step of a bulk volume."""
    batch_bytes: int = 1 * MIB
    """A batch gathers at most this much, unless one append alone is larger."""
    batch_buffers: int = 1024
    """A batch gathers at most this many buffers (IOV_MAX)."""
    entry_cache_bytes: int = 32 * MIB
    """Entries kept in memory over all groups; older ones are read from disk."""
    bulk_queue_bytes: int = 8 * MIB
    """Frames that wait for the bulk writer; beyond it `StreamWriter.write` waits."""
    flush_log_bytes: int = 1 * GIB
    """A flush is forced when the log grew this much since the last one."""
    flush_entries: int = 100_000
    """... or when this many entries were applied since."""
    flush_memtable_bytes: int = 32 * MIB
    """... or when the index holds this much in memory."""
    crowded_memtable_bytes: int = 96 * MIB
    """Writers wait while the index holds this much in memory: flushes and merges do not keep up
    with them, and memory must not grow (promise P8)."""
    keep_log_bytes: int = 1 * GIB
    """Log kept for a follower that lags, per group; beyond it the follower gets a snapshot."""
    reload_log_bytes: int = 64 * MIB
    """Log below the replay floor that is walked at open, so that followers find entries there."""
    reserve_bytes: int = 256 * MIB
    """Free space kept for deletes, hard state, flush and compaction; PUT is refused before it."""
    reserve_ratio: float = 0.02
    """The reserve is at most this part of the whole disk, so that small disks stay usable."""
    compaction_garbage_ratio: float = 0.5
    """A volume with at least this part of garbage is compacted."""
    compaction_bytes_per_s: int = 64 * MIB
    compaction_every_s: float = 5.0
    """How often volumes are looked at for garbage."""
    scrub_bytes_per_s: int = 8 * MIB
    scrub_every_s: float = 24 * 3600.0
    """A scrub of everything begins this long after the last one ended."""
    background: bool = True
    """Run flush, compaction and scrub by themselves. Off in tests that call them."""


@dataclass(slots=True)
class StoreSpace:
    """Space of the disk, in bytes."""

    total_bytes: int
    used_bytes: int
    """Bytes of the volumes and the index."""
    free_bytes: int
    reserve_bytes: int
    full: bool
    """New data is refused (free - reserve is used up)."""


@dataclass(slots=True)
class StoreStats:
    """Counters since open, for metrics and status."""

    batches: int = 0
    batch_bytes: int = 0
    batch_records: int = 0
    appends: int = 0
    log_volumes: int = 0
    bulk_volumes: int = 0
    live_frame_bytes: int = 0
    garbage_bytes: int = 0
    flushes: int = 0
    compactions: int = 0
    compacted_bytes: int = 0
    scrubbed_bytes: int = 0
    scrub_bad: int = 0
    rotted_records: int = 0
    lost_entries: int = 0
    index_rebuilt: bool = False
    rebuilt_in_part: bool = False
    """The rebuild saw that the volumes do not hold all that was written."""
    spans_repaired: int = 0
    """Key spans of the index that were bad and were put right from the volumes."""
    spans_lost: int = 0
    """Those of them of which the volumes do not hold all: others have the rows."""
    out_of_service: str = ""


class StoreError(Exception):
    """Base of all errors of this room. The message says what to do."""


class StoreOutOfService(StoreError):
    """A write or sync failed: nothing is written to this disk any more (promise P6)."""


class StoreFull(StoreError):
    """No space for new data; nothing of it was written. Deletes still work."""


class StoreLocked(StoreError):
    """Another process has the data directory open."""


class StoreDamaged(StoreError):
    """The volumes cannot be opened as they are; names `o3storage verify --repair`."""


class SnapshotLost(StoreError):
    """What was staged of a snapshot is not all here any more: it must be received anew."""


class StoreKeyWrong(StoreError):
    """The disk key does not open the volumes."""


class FormatVersionUnknown(StoreError):
    """A volume was written by another version of the program."""


class FrameMissing(StoreError):
    """No placement for this frame on this disk."""


class FrameBad(StoreError):
    """The frame's record does not match its checksum or its ids; repair it from elsewhere."""


class FrameUnread(StoreError):
    """The disk failed to read the frame; it may be able to later, and others may have it."""


class EntriesGone(StoreError):
    """The log no longer holds (or cannot read) the entries asked for."""


class EntriesUnread(EntriesGone):
    """The disk failed to read the entries asked for; it may be able to later."""
