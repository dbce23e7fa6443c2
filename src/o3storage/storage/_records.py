"""Records: the unit of everything that is stored in volumes (docs/format.md, "Records").

    +---------------------+----------------------------------+------------------------+
    | BLAKE3 (32)         | header (48), clear               | body, sealed           |
    | of all that follows | = associated data of the body    | ciphertext, tag (16)   |
    +---------------------+----------------------------------+------------------------+

Interface: `seal_record`, `frame_parts`, `parse_header`, `check_record`, `open_body`, and the codecs
of the bodies.

Invariants
- A record names itself: type and ids stand in the clear header, which the checksum and the seal
  cover; a reader compares them with what it looked for.
- Bodies of all types but FRAME are sealed with the volume's key at the record's file offset;
  a frame's body is stored as its stream sealed it.
- No input can make a parser read beyond the buffer it was given or allocate more than the record.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from o3storage._native import blake3, blake3_parts
from o3storage.crypto import FileSealer, SealError
from o3storage.runtime.disk import Buffer
from o3storage.storage._types import (
    FRAME_PLAIN_BYTES,
    MAX_APPEND_BYTES,
    MAX_ROW_KEY_BYTES,
    MAX_ROW_VALUE_BYTES,
    SEAL_TAG_BYTES,
    STREAM_ID_BYTES,
    SealedFrame,
)

Row = tuple[bytes, bytes | None]

HASH_BYTES = 32
HEADER = struct.Struct("<4sBBBBIIQQQQ")
"""magic, type, key source, flags, reserved (0), stored body bytes, plain body bytes, id a (two
words), id b, sequence."""
HEADER_BYTES = HEADER.size
PREFIX_BYTES = HASH_BYTES + HEADER_BYTES
assert PREFIX_BYTES == 80

RECORD_MAGIC = b"O3Rc"

FRAME = 1
ENTRY = 2
OUTCOME = 3
LOCAL = 4
STATE = 5
GROUP = 6
RECORD_TYPES = frozenset((FRAME, ENTRY, OUTCOME, LOCAL, STATE, GROUP))

KEY_DISK = 1
KEY_STREAM = 2
KEY_CUSTOMER = 3
"""Reserved for SSE-C: HKDF(customer key, stream salt). Nothing writes it yet."""

FLAG_LAST = 1
"""FRAME: the stream's last frame."""

FLAG_KEEP = 1
"""GROUP: entries above the index stay; without it the log is empty behind it."""

MAX_BODY_BYTES = MAX_APPEND_BYTES + SEAL_TAG_BYTES
"""No record is larger than one append; a length beyond it is damage."""

_STREAM_WORDS = struct.Struct("<QQ")
_ROW = struct.Struct("<HI")
_STATE_ROW = struct.Struct("<QHI")
_COUNTS = struct.Struct("<II")
_GROUP_BODY = struct.Struct("<QQ")
_DELETED = 0xFFFFFFFF
"""Value length that stands for a deleted row."""


class RecordBad(Exception):
    """The bytes are not the record they should be."""


class RecordHeader(NamedTuple):
    """The clear header. `a` is the stream of a FRAME, else group, incarnation and term."""

    kind: int
    key_source: int
    flags: int
    stored_bytes: int
    plain_bytes: int
    a: bytes
    b: int
    sequence: int

    @property
    def size_bytes(self) -> int:
        """Of the whole record."""
        return PREFIX_BYTES + self.stored_bytes

    @property
    def group(self) -> int:
        return int.from_bytes(self.a[:4], "little")

    @property
    def term(self) -> int:
        return int.from_bytes(self.a[8:], "little")


def group_words(group: int, incarnation: int, term: int) -> tuple[int, int]:
    """Id `a` of a record of a group, as its two words."""
    return group | incarnation << 32, term


def seal_record(  # noqa: PLR0917
    parts: list[Buffer],
    sealer: FileSealer,
    offset: int,
    kind: int,
    flags: int,
    a0: int,
    a1: int,
    b: int,
    sequence: int,
    body: Buffer,
) -> tuple[bytes, int]:
    """Append the record's buffers to `parts`; returns (its BLAKE3, its size in bytes).
    `offset` is where it will stand in its file: it is the nonce and is never used twice."""
    plain = len(body)
    stored = plain + SEAL_TAG_BYTES
    header = HEADER.pack(RECORD_MAGIC, kind, KEY_DISK, flags, 0, stored, plain, a0, a1, b, sequence)
    sealed = sealer.seal(offset, header, body)
    digest = blake3_parts((header, sealed))
    parts += (digest, header, sealed)
    return digest, PREFIX_BYTES + stored


def frame_parts(parts: list[Buffer], frame: SealedFrame, sequence: int) -> tuple[bytes, int]:
    """As seal_record, for a frame, which is sealed already and may stand at any offset."""
    data = frame.data
    stored = len(data)
    a0, a1 = _STREAM_WORDS.unpack(frame.stream)
    header = HEADER.pack(
        RECORD_MAGIC,
        FRAME,
        KEY_STREAM,
        FLAG_LAST if frame.last else 0,
        0,
        stored,
        frame.plain_size,
        a0,
        a1,
        frame.number,
        sequence,
    )
    digest = blake3_parts((header, data))
    parts += (digest, header, data)
    return digest, PREFIX_BYTES + stored


def check_frame(frame: SealedFrame) -> None:
    """Raises ValueError for a frame that must not be stored."""
    if len(frame.stream) != STREAM_ID_BYTES:
        raise ValueError(f"a stream id is {STREAM_ID_BYTES} bytes, not {len(frame.stream)}")
    size = frame.plain_size
    if not 0 <= size <= FRAME_PLAIN_BYTES or len(frame.data) != size + SEAL_TAG_BYTES:
        raise ValueError(f"frame of {size} plain bytes and {len(frame.data)} stored")
    if not 0 <= frame.number < 1 << 32:
        raise ValueError(f"frame number {frame.number}")


def parse_header(data: Buffer, at: int = 0) -> RecordHeader:
    """The header of the record that starts at `data[at]`; checks form, not the checksum."""
    if len(data) - at < PREFIX_BYTES:
        raise RecordBad("shorter than a record's header")
    magic, kind, key, flags, zero, stored, plain, a0, a1, b, sequence = HEADER.unpack_from(
        data, at + HASH_BYTES
    )
    if magic != RECORD_MAGIC or kind not in RECORD_TYPES or zero:
        raise RecordBad("not a record")
    if stored > MAX_BODY_BYTES or stored != plain + SEAL_TAG_BYTES:
        raise RecordBad(f"record lengths {plain} and {stored} do not belong together")
    if key != (KEY_STREAM if kind == FRAME else KEY_DISK):
        raise RecordBad(f"key source {key} of a record of type {kind}")
    return RecordHeader(kind, key, flags, stored, plain, _STREAM_WORDS.pack(a0, a1), b, sequence)


def check_record(data: Buffer, at: int = 0) -> RecordHeader:
    """Header of a whole, unaltered record at `data[at]`. Raises RecordBad."""
    header = parse_header(data, at)
    check_hash(data, header.size_bytes, at)
    return header


def check_hash(data: Buffer, size: int, at: int = 0) -> None:
    """The record of `size` bytes at `data[at]` is whole and unaltered. Raises RecordBad."""
    end = at + size
    if end > len(data):
        raise RecordBad("the record is cut off")
    view = memoryview(data)
    if blake3(view[at + HASH_BYTES : end]) != view[at : at + HASH_BYTES]:
        raise RecordBad("BLAKE3 does not match")


def stored_body(data: Buffer, header: RecordHeader, at: int = 0) -> memoryview:
    """The body as it is stored."""
    start = at + PREFIX_BYTES
    return memoryview(data)[start : start + header.stored_bytes]


def open_body(
    data: Buffer, header: RecordHeader, sealer: FileSealer, offset: int, at: int = 0
) -> bytes:
    """The plain body of a record sealed with the disk key at file offset `offset`."""
    aad = memoryview(data)[at + HASH_BYTES : at + PREFIX_BYTES]
    try:
        return sealer.unseal(offset, aad, stored_body(data, header, at))
    except SealError as error:
        raise RecordBad("the seal does not hold: wrong key or wrong place") from error


# --- bodies -------------------------------------------------------------------------------------


def encode_rows(rows: Sequence[Row], released: Sequence[bytes] = ()) -> bytes:
    """Body of OUTCOME and LOCAL: counts, rows, released stream ids."""
    parts: list[bytes] = [_COUNTS.pack(len(rows), len(released))]
    for key, value in rows:
        if value is None:
            parts += (_ROW.pack(len(key), _DELETED), key)
        else:
            parts += (_ROW.pack(len(key), len(value)), key, value)
    parts += released
    return b"".join(parts)


def decode_rows(body: bytes) -> tuple[list[Row], list[bytes]]:
    """Inverse of encode_rows. Raises RecordBad."""
    if len(body) < _COUNTS.size:
        raise RecordBad("a body of rows without its counts")
    rows_count, released_count = _COUNTS.unpack_from(body)
    at = _COUNTS.size
    if rows_count > len(body) // _ROW.size or released_count > len(body) // STREAM_ID_BYTES:
        raise RecordBad("more rows than bytes")
    rows: list[Row] = []
    for _ in range(rows_count):
        if at + _ROW.size > len(body):
            raise RecordBad("rows run over the end")
        key_size, value_size = _ROW.unpack_from(body, at)
        at += _ROW.size
        key = body[at : at + key_size]
        at += key_size
        if value_size == _DELETED:
            rows.append((key, None))
        else:
            rows.append((key, body[at : at + value_size]))
            at += value_size
        if at > len(body):
            raise RecordBad("rows run over the end")
    if at + released_count * STREAM_ID_BYTES != len(body):
        raise RecordBad("released streams do not end with the body")
    released = [body[i : i + STREAM_ID_BYTES] for i in range(at, len(body), STREAM_ID_BYTES)]
    return rows, released


def check_rows(rows: Iterable[Row]) -> None:
    """Raises ValueError for rows that the format cannot hold."""
    for key, value in rows:
        if not 0 < len(key) <= MAX_ROW_KEY_BYTES:
            raise ValueError(f"a row key of {len(key)} bytes")
        if value is not None and len(value) > MAX_ROW_VALUE_BYTES:
            raise ValueError(f"a row value of {len(value)} bytes")


StateRow = tuple[int, bytes, bytes | None]
"""(sequence of the change, key, value or None for a deletion)."""


def encode_state(rows: Iterable[StateRow]) -> bytes:
    """Body of STATE."""
    parts: list[bytes] = []
    for sequence, key, value in rows:
        if value is None:
            parts += (_STATE_ROW.pack(sequence, len(key), _DELETED), key)
        else:
            parts += (_STATE_ROW.pack(sequence, len(key), len(value)), key, value)
    return b"".join(parts)


def decode_state(body: bytes) -> list[StateRow]:
    """Inverse of encode_state. Raises RecordBad."""
    rows: list[StateRow] = []
    at = 0
    while at < len(body):
        if at + _STATE_ROW.size > len(body):
            raise RecordBad("state rows run over the end")
        sequence, key_size, value_size = _STATE_ROW.unpack_from(body, at)
        at += _STATE_ROW.size
        key = body[at : at + key_size]
        at += key_size
        if value_size == _DELETED:
            rows.append((sequence, key, None))
        else:
            rows.append((sequence, key, body[at : at + value_size]))
            at += value_size
    if at > len(body):
        raise RecordBad("state rows run over the end")
    return rows


def encode_group_reset(index: int, term: int) -> bytes:
    """Body of GROUP: the log starts anew behind (index, term), all of which is applied."""
    return _GROUP_BODY.pack(index, term)


def decode_group_reset(body: bytes) -> tuple[int, int]:
    if len(body) != _GROUP_BODY.size:
        raise RecordBad("a group body of another size")
    index, term = _GROUP_BODY.unpack(body)
    return index, term
