"""What the store needs of its index, and the private tables that it keeps there.

The tables 0x01..0x0F belong to this room:

    0x01 | stream 16 | 2^32-1 - first frame, big-endian 4  ->  a run of frames (`Run`)
    0x03 | stream 16                                       ->  b"": released, not yet reaped
    0x05 | group 4 | number 4                              ->  a piece of a snapshot (`_install`)
    0x06 | name                                            ->  what `Store.note` was told
    0x04 | bulk volume, big-endian 4                       ->  u64 end of what was synced of it
    0x07                                                   ->  u64 sequence S: all rows were
        written anew by a repair; changes in the volumes that are older than S are void
    0x08                                                   ->  how far the scrub is (`_scrub`)
    0x09 | group 4                                         ->  rows of the group are lost
        (`LogState.rows_lost`); the holes in the log that are known (`encode_holes`)

Frame numbers are stored inverted, so that the run that holds frame n is the first row at or after
the key of n.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from o3storage.storage._types import MAX_GROUPS, STREAM_ID_BYTES
from o3storage.storage._volume import align
from o3storage.storage.index import Miss

Row = tuple[bytes, bytes]
RowChange = tuple[bytes, bytes | None]

PLACEMENT_TABLE = b"\x01"
RELEASED_TABLE = b"\x03"
BULK_TABLE = b"\x04"
NOTE_TABLE = b"\x06"
PLACES_LOST = b"places lost"
"""A note: where frames are was put right from volumes of which not all could be read, so frames
that rows name may have no place any more. Whoever sees to those forgets it."""
SCRUB_KEY = b"\x08"
RESTATED_KEY = b"\x07"
ROWS_LOST_TABLE = b"\x09"
FIRST_CATALOG_BYTE = 0x10
"""Rows of the catalog start at this table byte."""

PLACEMENT_PREFIX_BYTES = 1 + STREAM_ID_BYTES
_INVERT = 0xFFFFFFFF
_RUN = struct.Struct("<IQHII")
_U32 = struct.Struct("<I")
_HOLE = struct.Struct("<QII")
MAX_HOLES = 1000
"""Of a disk that lost more than that, no walk is worth much; and a row stays small."""
MAX_RUN_FRAMES = 0xFFFF
_FRAME_0 = _INVERT.to_bytes(4, "big")


def rows_lost_key(group: int) -> bytes:
    return ROWS_LOST_TABLE + group.to_bytes(4, "big")


async def read_rows_lost(index: RowIndex) -> dict[int, bytes]:
    """Groups of which rows are lost, ascending, with their rows' values. Raises BadBlock."""
    low, high = ROWS_LOST_TABLE, bytes([ROWS_LOST_TABLE[0] + 1])
    rows = await index.scan(low, high, MAX_GROUPS)
    return {int.from_bytes(key[1:], "big"): value for key, value in rows}


class Hole(NamedTuple):
    """What a walk over the log found to be lost. Two are equal only if no more was lost."""

    batch: int
    """Sequence of the batch, or of the first that is gone."""
    batches: int
    """How many are gone; 0: the batch is there."""
    records: int
    """How many records of the batch are gone."""


def encode_holes(holes: Iterable[Hole]) -> bytes:
    """The value of a row of table 09. Beyond MAX_HOLES, what is left out is never taken for known:
    a snapshot more is needed."""
    kept = sorted(set(holes))[:MAX_HOLES]
    return _U32.pack(len(kept)) + b"".join([_HOLE.pack(*hole) for hole in kept])


def decode_holes(value: bytes) -> set[Hole] | None:
    """None: written by a program that did not say which."""
    if not value:
        return None
    return {Hole(*fields) for fields in _HOLE.iter_unpack(value[_U32.size :])}


class Run(NamedTuple):
    """Where `frames` consecutive frames of a stream stand: frame first + i at
    offset + i * stride(record_bytes), all of record_bytes but the last of the run."""

    volume: int
    offset: int
    frames: int
    record_bytes: int
    last_bytes: int


def encode_run(run: Run) -> bytes:
    return _RUN.pack(*run)


def decode_run(value: bytes) -> Run:
    return Run(*_RUN.unpack(value))


def run_end(run: Run) -> int:
    """Where the last record of a run ends in its volume."""
    return run.offset + (run.frames - 1) * align(run.record_bytes) + run.last_bytes


def run_bytes(run: Run) -> int:
    """Bytes of the records of a run."""
    return (run.frames - 1) * run.record_bytes + run.last_bytes


def placement_key(stream: bytes, first: int) -> bytes:
    if first == 0:
        return PLACEMENT_TABLE + stream + _FRAME_0
    return PLACEMENT_TABLE + stream + (_INVERT - first).to_bytes(4, "big")


def placement_bounds(stream: bytes) -> tuple[bytes, bytes]:
    """(low, high) of all runs of a stream."""
    return PLACEMENT_TABLE + stream, PLACEMENT_TABLE + stream + b"\xff\xff\xff\xff\xff"


def split_placement_key(key: bytes) -> tuple[bytes, int]:
    """(stream, first frame)."""
    return key[1:17], _INVERT - int.from_bytes(key[17:], "big")


class InSight:
    """Of the rows of the placement table, taken in their order, the frames that a reader finds: a
    frame that was stored again, after it rotted, has a run of its own, and the run that it was in
    before may still count it as its last."""

    def __init__(self) -> None:
        self._next = (b"", 0)

    def frames(self, stream: bytes, first: int, run: Run) -> int:
        """How many of the run, from its first on. (Rows begin with a stream's highest frame.)"""
        of, begin = self._next
        self._next = (stream, first)
        return min(run.frames, begin - first) if of == stream else run.frames


def released_key(stream: bytes) -> bytes:
    return RELEASED_TABLE + stream


def bulk_key(volume: int) -> bytes:
    return BULK_TABLE + volume.to_bytes(4, "big")


def encode_u64(number: int) -> bytes:
    """The value of a row of table 04 or 07."""
    return number.to_bytes(8, "little")


def decode_u64(value: bytes) -> int:
    return int.from_bytes(value, "little")


def default_prefix_length(key: bytes) -> int:
    """Of a row (table byte, 8-byte bucket id, escaped key, ...): the bytes up to and with the end
    of the escaped key (0x00 0x00; inside it 0x00 is followed by 0xFF). The whole key if none."""
    end = key.find(b"\0\0", 9)
    return end + 2 if end >= 0 else len(key)


class RowIndex(Protocol):
    """The part of `storage.index.Index` that the store uses. `_now` calls answer without disk I/O
    or with MISS."""

    @property
    def mark(self) -> bytes: ...
    @property
    def memtable_bytes(self) -> int: ...
    @property
    def disk_bytes(self) -> int: ...
    def write(self, rows: Sequence[RowChange]) -> int: ...
    def drop_range(self, low: bytes, high: bytes | None) -> int: ...
    def get_now(self, key: bytes, *, at: Any = None) -> bytes | Miss | None: ...
    async def get(self, key: bytes, *, at: Any = None) -> bytes | None: ...
    def first_now(self, prefix: bytes, *, at: Any = None) -> Row | Miss | None: ...
    async def first(self, prefix: bytes, *, at: Any = None) -> Row | None: ...
    def scan_now(
        self, low: bytes, high: bytes | None, limit: int, *, at: Any = None
    ) -> list[Row] | Miss: ...
    async def scan(
        self, low: bytes, high: bytes | None, limit: int, *, at: Any = None
    ) -> list[Row]: ...
    def measure(self, low: bytes, high: bytes) -> int: ...
    def sample(self, low: bytes, high: bytes) -> list[tuple[bytes, int]]: ...
    def snapshot(self) -> Any: ...
    async def flush(
        self, mark: bytes, *, barrier: Callable[[], Awaitable[None]] | None = None
    ) -> None: ...
    async def verify(
        self, on_progress: Callable[[int, int], None] | None = None
    ) -> Sequence[Exception]: ...
    async def close(self) -> None: ...
