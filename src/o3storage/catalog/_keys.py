"""Row keys: their bytes, and their order.

    range rows     0x10 | group u64 | kind u8 | id u64
    range 0        0x11 | name                                  bucket by name
                   0x12 | esc(owner) | name                     buckets of an owner
                   0x13 | key id                                access key
                   0x14 | esc(owner) | key id                   access keys of an owner
                   0x15 | name                                  cluster setting
                   0x18 | bucket id u64                         bucket whose deletion is under way
    key ranges     0x20 | bucket id u64 | esc(key) | slot u64   version, newest first
                   0x21 | bucket id u64 | esc(key)              where the null version lies
                   0x22 | bucket id u64 | esc(key) | upload id 16               upload
                   0x23 | bucket id u64 | esc(key) | upload id 16 | part u16    part
                   0x24 | bucket id u64 | esc(key) | chore u8 | subject 16      chore
                   0x25 | bucket id u64 | esc(key) | stream id 16               abandoned stream

esc() keeps the order of byte strings and marks their end: 0x00 becomes 0x00 0xFF, the end is
0x00 0x00; so no escaped key is a prefix of another, and "a" sorts before "a\\0" before "a\\1".

slot = 2**64 - 1 - order, so that a forward scan meets the newest version first. The null version
of a bucket without versioning lies in the slot of order 0, behind every other: an overwrite there
replaces the row in place instead of leaving a tombstone per overwrite. A null version written
while versioning was suspended lies at its own order; then, and only then, row 0x21 names it.
"""

from __future__ import annotations

import struct
from typing import Final

TABLE_RANGE: Final = 0x10
TABLE_BUCKET: Final = 0x11
TABLE_OWNER_BUCKET: Final = 0x12
TABLE_ACCESS_KEY: Final = 0x13
TABLE_OWNER_KEY: Final = 0x14
TABLE_SETTING: Final = 0x15
TABLE_PENDING_BUCKET: Final = 0x18
TABLE_VERSION: Final = 0x20
TABLE_NULL: Final = 0x21
TABLE_UPLOAD: Final = 0x22
TABLE_PART: Final = 0x23
TABLE_CHORE: Final = 0x24
TABLE_ABANDONED: Final = 0x25

FIRST_KEYED_TABLE: Final = TABLE_VERSION
"""Tables from here on begin (table, bucket id, escaped key)."""

# (Kind 0 of the range rows is the cluster's: the span of the range.)
RANGE_STATE: Final = 1
RANGE_BUCKET: Final = 2
RANGE_PURGE: Final = 3

KEY_OFFSET: Final = 9
"""Where the escaped key begins in a keyed table."""
VERSION_TAIL: Final = 10
"""Terminator and slot at the end of a version's row key."""
END: Final = b"\x00\x00"
SLOT_MAX: Final = (1 << 64) - 1
OLDEST_SLOT: Final = b"\xff" * 8

_HEAD = struct.Struct(">BQ")
_RANGE = struct.Struct(">BQBQ")
_U64 = struct.Struct(">Q")
_U16 = struct.Struct(">H")


def escape(text: bytes) -> bytes:
    """`text` so that byte order holds and a terminator is unambiguous, terminator included."""
    if b"\x00" in text:
        text = text.replace(b"\x00", b"\x00\xff")
    return text + END


def escape_open(text: bytes) -> bytes:
    """As `escape`, without terminator: the common prefix of all that starts with `text`."""
    return text.replace(b"\x00", b"\x00\xff") if b"\x00" in text else text


def unescape(text: bytes) -> bytes:
    """Undo escape_open. Raises ValueError for bytes that no escape wrote."""
    if b"\x00" in text:
        plain = text.replace(b"\x00\xff", b"\x00")
        if text.count(b"\x00") != text.count(b"\x00\xff"):
            raise ValueError("bad escape in a row key")
        return plain
    return text


def after_prefix(prefix: bytes) -> bytes:
    """The smallest byte string above all that start with `prefix` (whose first byte is a table,
    so never 0xFF)."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes((stripped[-1] + 1,))


def prefix_length(row_key: bytes) -> int:
    """How many bytes of a row key the index's bloom filter should cover: up to the end of the
    escaped key, so that First can use it; the whole key for rows of range 0 and unknown tables."""
    if len(row_key) > KEY_OFFSET and row_key[0] >= FIRST_KEYED_TABLE:
        end = row_key.find(END, KEY_OFFSET)
        if end >= 0:
            return end + 2
    return len(row_key)


# --- range rows


def range_row(group: int, kind: int, number: int = 0) -> bytes:
    return _RANGE.pack(TABLE_RANGE, group, kind, number)


def range_rows_prefix(group: int, kind: int) -> bytes:
    return _RANGE.pack(TABLE_RANGE, group, kind, 0)[:10]


def range_row_number(row_key: bytes) -> int:
    """The id at the end of a range row's key."""
    return int.from_bytes(row_key[10:18], "big")


# --- range 0


def named(table: int, name: bytes) -> bytes:
    return bytes((table,)) + name


def owned(table: int, owner: bytes, name: bytes) -> bytes:
    return bytes((table,)) + escape(owner) + name


def pending_bucket(bucket_id: int) -> bytes:
    return _HEAD.pack(TABLE_PENDING_BUCKET, bucket_id)


# --- keyed tables


def keyed(table: int, bucket_id: int, key: bytes) -> bytes:
    """(table, bucket, escaped key, terminator): what all rows of one object key start with."""
    if b"\x00" in key:
        key = key.replace(b"\x00", b"\x00\xff")
    return _HEAD.pack(table, bucket_id) + key + END


def bucket_prefix(table: int, bucket_id: int) -> bytes:
    return _HEAD.pack(table, bucket_id)


def slot(order: int) -> bytes:
    return _U64.pack(SLOT_MAX - order)


def version_row(bucket_id: int, key: bytes, order: int) -> bytes:
    return keyed(TABLE_VERSION, bucket_id, key) + _U64.pack(SLOT_MAX - order)


def upload_row(bucket_id: int, key: bytes, upload_id: bytes) -> bytes:
    return keyed(TABLE_UPLOAD, bucket_id, key) + upload_id


def part_row(bucket_id: int, key: bytes, upload_id: bytes, number: int) -> bytes:
    return keyed(TABLE_PART, bucket_id, key) + upload_id + _U16.pack(number)


def chore_row(bucket_id: int, key: bytes, chore: int, subject: bytes) -> bytes:
    return keyed(TABLE_CHORE, bucket_id, key) + bytes((chore,)) + subject


def abandoned_row(bucket_id: int, key: bytes, stream: bytes) -> bytes:
    return keyed(TABLE_ABANDONED, bucket_id, key) + stream


def split_keyed(row_key: bytes) -> tuple[int, bytes, bytes]:
    """(bucket id, object key, rest) of a row key of a keyed table. Raises ValueError."""
    end = row_key.find(END, KEY_OFFSET)
    if end < 0 or len(row_key) < KEY_OFFSET:
        raise ValueError("row key without end of key")
    bucket_id = int.from_bytes(row_key[1:KEY_OFFSET], "big")
    return bucket_id, unescape(row_key[KEY_OFFSET:end]), row_key[end + 2 :]
