"""Volumes, frames, the log and the index of one disk (DESIGN section 4; bytes: docs/format.md).

One disk is one `Store`. It knows groups, entries, frames and rows, and no S3.
"""

from __future__ import annotations

from o3storage.storage._bulk import StreamWriter
from o3storage.storage._frames import FrameReader
from o3storage.storage._install import MAX_PIECE_BYTES, Span, Unnamed, decode_piece, encode_piece
from o3storage.storage._lock import DataDirLock
from o3storage.storage._offline import (
    FramePlace,
    OfflineStore,
    RecordDetail,
    RecordSummary,
    VolumeSummary,
)
from o3storage.storage._pace import MAX_SHARE as MAX_PACE_SHARE
from o3storage.storage._pace import Pace
from o3storage.storage._records import PREFIX_BYTES
from o3storage.storage._rows import NOTE_TABLE, PLACES_LOST
from o3storage.storage._scrub import BadFrame
from o3storage.storage._span_repair import Others
from o3storage.storage._store import Store
from o3storage.storage._types import (
    FRAME_PLAIN_BYTES,
    MAX_APPEND_BYTES,
    MAX_ENTRY_BYTES,
    SEAL_TAG_BYTES,
    SMALL_FRAME_BYTES,
    EntriesGone,
    EntriesUnread,
    Entry,
    EntryKind,
    FormatVersionUnknown,
    FrameBad,
    FrameMissing,
    FrameUnread,
    GroupId,
    HardState,
    LogState,
    SealedFrame,
    SnapshotLost,
    StoreDamaged,
    StoreError,
    StoreFull,
    StoreKeyWrong,
    StoreLocked,
    StoreOptions,
    StoreOutOfService,
    StoreSpace,
    StoreStats,
)
from o3storage.storage._verify import Problem, VerifyReport, verify
from o3storage.storage.index import BadBlock, Miss, Snapshot

__all__ = [
    "FRAME_PLAIN_BYTES",
    "MAX_APPEND_BYTES",
    "MAX_ENTRY_BYTES",
    "MAX_PACE_SHARE",
    "MAX_PIECE_BYTES",
    "NOTE_TABLE",
    "PLACES_LOST",
    "PREFIX_BYTES",
    "SEAL_TAG_BYTES",
    "SMALL_FRAME_BYTES",
    "BadBlock",
    "BadFrame",
    "DataDirLock",
    "EntriesGone",
    "EntriesUnread",
    "Entry",
    "EntryKind",
    "FormatVersionUnknown",
    "FrameBad",
    "FrameMissing",
    "FramePlace",
    "FrameReader",
    "FrameUnread",
    "GroupId",
    "HardState",
    "LogState",
    "Miss",
    "OfflineStore",
    "Others",
    "Pace",
    "Problem",
    "RecordDetail",
    "RecordSummary",
    "SealedFrame",
    "Snapshot",
    "SnapshotLost",
    "Span",
    "Store",
    "StoreDamaged",
    "StoreError",
    "StoreFull",
    "StoreKeyWrong",
    "StoreLocked",
    "StoreOptions",
    "StoreOutOfService",
    "StoreSpace",
    "StoreStats",
    "StreamWriter",
    "Unnamed",
    "VerifyReport",
    "VolumeSummary",
    "decode_piece",
    "encode_piece",
    "verify",
]
