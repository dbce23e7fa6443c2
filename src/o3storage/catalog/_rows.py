"""Values of all other rows: their bytes.

A part (all integers big-endian):

    0 format u8 = 1   1 flags u8   2 size u64   10 modified u64   18 ETag MD5 16   34 BLAKE3 32
    66 checksum code u8   67 body 60 (if BODY), checksum value

PutPart carries this very value. The others are described at their structs.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Final

from o3storage.runtime.fields import FieldReader

from ._codec import (
    bytes32,
    check_blake3,
    check_body,
    checksum_code,
    checksum_names,
    checksum_size,
    join_etag,
    pack_checksum,
    split_etag,
    text8,
    u8,
    u16,
    u64,
    unpack_checksum,
    unpack_map,
    unpack_pairs,
)
from ._limits import (
    MAX_OBJECT_BYTES,
    MAX_PART_BITMAP_BYTES,
    MAX_PARTS,
    MAX_SETTING_BYTES,
    MAX_SETTINGS_PER_BUCKET,
    PART_INDEX_STRIDE,
    STREAM_ID_BYTES,
    STREAM_REF_BYTES,
)
from ._parts import MARK, count_bits
from ._types import (
    BucketInfo,
    Checksum,
    CompletedUpload,
    Counts,
    PartInfo,
    Tags,
    UploadInfo,
)
from ._versions import (
    FORMAT,
    HAS_BODY,
    TEXTS,
    UPLOAD_HEAD,
    UPLOAD_HEAD_BYTES,
    pack_texts,
)

# --- parts

PART_HEAD: Final = struct.Struct(">BBQQ16s32sB")
PART_HEAD_BYTES: Final = PART_HEAD.size
assert PART_HEAD_BYTES == 67


def pack_part(
    *,
    size_bytes: int,
    modified_ns: int,
    etag: str,
    blake3: bytes,
    body: bytes,
    checksum: Checksum | None,
) -> bytes:
    """A part's row value. Raises ValueError."""
    check_body(body, size_bytes)
    if size_bytes > MAX_OBJECT_BYTES:
        raise ValueError(f"part of {size_bytes} bytes")
    digest, suffix = split_etag(etag)
    if suffix:
        raise ValueError("a part's ETag has no suffix")
    code, value = pack_checksum(checksum)
    try:
        head = PART_HEAD.pack(
            FORMAT,
            HAS_BODY if body else 0,
            size_bytes,
            modified_ns,
            digest,
            check_blake3(blake3),
            code,
        )
    except struct.error as error:
        raise ValueError(f"part field out of range: {error}") from None
    return b"".join((head, body, value))


def part_size(value: bytes) -> int:
    return int.from_bytes(value[2:10], "big")


def part_body(value: bytes) -> bytes:
    """A part's packed stream reference; b"" for a part of no bytes."""
    return value[67 : 67 + STREAM_REF_BYTES] if value[1] & HAS_BODY else b""


def part_stream(value: bytes) -> bytes:
    """The id of a part's stream; b"" for a part of no bytes."""
    return value[67 : 67 + STREAM_ID_BYTES] if value[1] & HAS_BODY else b""


def check_part(value: bytes) -> None:
    """Raise ValueError unless the lengths in a part row add up."""
    if len(value) < PART_HEAD_BYTES or value[0] != FORMAT or value[1] not in {0, HAS_BODY}:
        raise ValueError("not a part row of this format")
    body = STREAM_REF_BYTES if value[1] else 0
    if len(value) != PART_HEAD_BYTES + body + checksum_size(value[66]):
        raise ValueError("part row of the wrong size")
    size = part_size(value)
    if size > MAX_OBJECT_BYTES or (size and not body):
        raise ValueError(f"part of {size} bytes, body reference of {body}")


def unpack_part(number: int, value: bytes) -> PartInfo:
    """Decode a part row. Raises ValueError."""
    check_part(value)
    _, flags, size, modified, digest, blake3, code = PART_HEAD.unpack_from(value)
    end = PART_HEAD_BYTES + (STREAM_REF_BYTES if flags else 0)
    return PartInfo(
        number,
        size,
        digest.hex(),
        value[PART_HEAD_BYTES:end],
        modified,
        blake3,
        unpack_checksum(code, value[end:]),
    )


# --- uploads

_UPLOAD_SUMS = struct.Struct(">QHQ")
_COMPLETED = struct.Struct(">BBQQQBQH16sB")
"""format, completed, initiated, completed at, order, null and versioned, size, ETag suffix, MD5,
checksum code; then the checksum's value."""


def pack_upload(
    *,
    initiated_ns: int,
    owner: str,
    checksum_algorithm: str,
    checksum_type: str,
    headers: dict[str, str],
    metadata: dict[str, str],
    tags: Tags,
) -> bytes:
    """An open upload without parts. Raises ValueError."""
    code = checksum_code(checksum_algorithm, checksum_type)
    owner_bytes = owner.encode()
    try:
        head = UPLOAD_HEAD.pack(FORMAT, 0, 0, 0, 0, initiated_ns, code, 0, len(owner_bytes))
    except struct.error as error:
        raise ValueError(f"upload field out of range: {error}") from None
    return b"".join((head, owner_bytes, pack_texts(headers, metadata, tags)))


def upload_is_completed(value: bytes) -> bool:
    return bool(value[1])


def upload_sums(value: bytes) -> tuple[int, int, int]:
    """(changes, parts, their size in bytes) of an open upload."""
    return _UPLOAD_SUMS.unpack_from(value, 2)


def with_upload_sums(value: bytes, changes: int, parts: int, size_bytes: int) -> bytes:
    return b"".join((value[:2], _UPLOAD_SUMS.pack(changes, parts, size_bytes), value[20:]))


def pack_completed(initiated_ns: int, done: CompletedUpload) -> bytes:
    """The row of a completed upload."""
    digest, suffix = split_etag(done.etag)
    code, value = pack_checksum(done.checksum)
    return (
        _COMPLETED.pack(
            FORMAT,
            1,
            initiated_ns,
            done.completed_ns,
            done.order,
            (1 if done.is_null else 0) | (2 if done.versioned else 0),
            done.size_bytes,
            suffix,
            digest,
            code,
        )
        + value
    )


def unpack_upload(key: bytes, upload_id: bytes, value: bytes) -> UploadInfo:
    """Decode an upload's row. Raises ValueError."""
    if len(value) < UPLOAD_HEAD_BYTES or value[0] != FORMAT or value[1] > 1:
        raise ValueError("not an upload row of this format")
    if value[1]:
        return _unpack_completed(key, upload_id, value)
    _, _, changes, parts, size, initiated, code, zero, owner_length = UPLOAD_HEAD.unpack_from(value)
    reader = FieldReader(value, UPLOAD_HEAD_BYTES)
    owner = reader.take(owner_length).decode()
    headers, metadata, tags = TEXTS.unpack(reader.take(6))
    algorithm, kind = checksum_names(code)
    info = UploadInfo(
        key,
        upload_id,
        initiated,
        owner,
        changes,
        parts,
        size,
        algorithm,
        kind,
        unpack_map(reader.take(headers)),
        unpack_map(reader.take(metadata)),
        unpack_pairs(reader.take(tags)),
    )
    reader.end()
    if zero or parts > MAX_PARTS:
        raise ValueError("impossible upload row")
    return info


def _unpack_completed(key: bytes, upload_id: bytes, value: bytes) -> UploadInfo:
    if len(value) < _COMPLETED.size:
        raise ValueError("upload row cut short")
    _, _, initiated, at, order, kinds, size, suffix, digest, code = _COMPLETED.unpack_from(value)
    if kinds > 3 or len(value) != _COMPLETED.size + checksum_size(code):
        raise ValueError("impossible upload row")
    done = CompletedUpload(
        at,
        order,
        bool(kinds & 1),
        bool(kinds & 2),
        size,
        join_etag(digest, suffix),
        unpack_checksum(code, value[_COMPLETED.size :]),
    )
    return UploadInfo(key, upload_id, initiated, "", completed=done)


# --- the state of a range

_STATE = struct.Struct(">B9Q")
_DIVIDED = struct.Struct(">BQ7qQ")
DIVIDED: Final = 2
"""Format of the sums of a range that took part in a split: they have signs."""


def unpack_state(value: bytes | None) -> Counts:
    """The state row of a range; zeros before the first write. Raises ValueError."""
    if value is None:
        return Counts()
    if len(value) != _STATE.size or value[0] != FORMAT:
        if len(value) == _DIVIDED.size and value[0] == DIVIDED:
            state = Counts(*_DIVIDED.unpack(value)[1:])
            state.divided = True
            return state
        raise ValueError("not a range state row of this format")
    return Counts(*_STATE.unpack(value)[1:])


def pack_state(state: Counts) -> bytes:
    """Raises ValueError if a sum went below zero: the rows would contradict each other."""
    try:
        return (_DIVIDED if state.divided else _STATE).pack(
            DIVIDED if state.divided else FORMAT,
            state.clock_ns,
            state.objects,
            state.versions,
            state.delete_markers,
            state.size_bytes,
            state.uploads,
            state.upload_size_bytes,
            state.garbage,
            state.abandoned,
        )
    except struct.error:
        raise ValueError(f"impossible sums of a range: {state}") from None


# --- a range's copy of a bucket's settings

VERSIONINGS: Final = ("", "Enabled", "Suspended")
UNVERSIONED: Final = 0
ENABLED: Final = 1
SUSPENDED: Final = 2
BUCKET_STATES: Final = ("active", "fenced", "dead")
ACTIVE: Final = 0
FENCED: Final = 1
DEAD: Final = 2
DEAD_EPOCH: Final = (1 << 63) - 1
"""Epoch of a dead bucket's copy: above every real one, so nothing brings it back."""

_COPY = struct.Struct(">BQBB")


def pack_copy(epoch: int, versioning: int, state: int) -> bytes:
    return _COPY.pack(FORMAT, epoch, versioning, state)


def unpack_copy(value: bytes) -> tuple[int, int, int]:
    """(epoch, versioning, state). Raises ValueError."""
    if len(value) != _COPY.size:
        raise ValueError("not a bucket copy of this format")
    form, epoch, versioning, state = _COPY.unpack(value)
    if form != FORMAT or versioning > SUSPENDED or state > DEAD:
        raise ValueError("impossible bucket copy")
    return epoch, versioning, state


def versioning_code(versioning: str) -> int:
    try:
        return VERSIONINGS.index(versioning)
    except ValueError:
        raise ValueError(f"versioning {versioning!r}: Enabled or Suspended") from None


# --- buckets


def pack_bucket(bucket: BucketInfo) -> bytes:
    """A bucket's row in range 0. Raises ValueError."""
    if len(bucket.settings) > MAX_SETTINGS_PER_BUCKET:
        raise ValueError(f"more than {MAX_SETTINGS_PER_BUCKET} settings in a bucket")
    out = [
        bytes((FORMAT, versioning_code(bucket.versioning), int(bucket.deleting))),
        u64(bucket.bucket_id),
        u64(bucket.created_ns),
        u64(bucket.epoch),
        text8(bucket.owner),
        text8(bucket.region),
        u8(len(bucket.settings)),
    ]
    for name, document in sorted(bucket.settings.items()):
        if len(document) > MAX_SETTING_BYTES:
            raise ValueError(f"setting {name!r} of {len(document)} bytes")
        out += (text8(name), bytes32(document))
    return b"".join(out)


CACHED_BUCKETS: Final = 1024
CACHED_BUCKET_BYTES: Final = 512
"""Rows up to this size are kept decoded: without settings they have about 60 bytes, so the cache
stays below 1 MiB or so whatever names and settings users choose."""


def read_bucket(name: str, value: bytes) -> BucketInfo:
    """As `unpack_bucket`, for readers: every request asks for its bucket, so the result is shared
    and not to be changed. Raises ValueError."""
    if len(value) <= CACHED_BUCKET_BYTES:
        return _read_bucket(name, value)
    return unpack_bucket(name, value)


def unpack_bucket(name: str, value: bytes) -> BucketInfo:
    """Raises ValueError."""
    reader = FieldReader(value)
    form, versioning, deleting = reader.take(3)
    if form != FORMAT or versioning > SUSPENDED or deleting > 1:
        raise ValueError("not a bucket row of this format")
    bucket_id, created, epoch = reader.u64(), reader.u64(), reader.u64()
    owner, region = reader.text(), reader.text()
    settings = {}
    for _ in range(reader.u8()):
        setting = reader.text()
        settings[setting] = reader.bytes32()
    reader.end()
    return BucketInfo(
        bucket_id, name, owner, created, region, VERSIONINGS[versioning], epoch, bool(deleting),
        settings,
    )  # fmt: skip


_read_bucket = lru_cache(CACHED_BUCKETS)(unpack_bucket)


# --- chores and abandoned streams

CHORE_PARTS: Final = 1
"""Remove all parts of an upload."""
CHORE_UNUSED: Final = 2
"""Remove the parts that a completed upload did not use."""
CHORE_COMPLETED: Final = 3
"""Forget that an upload was completed."""
CHORE_ABANDONED: Final = 4
"""Forget an abandoned stream."""
CHORES: Final = (CHORE_PARTS, CHORE_UNUSED, CHORE_COMPLETED, CHORE_ABANDONED)


def pack_chore(due_ns: int, next_part: int = 0, bitmap: bytes = b"") -> bytes:
    return b"".join((bytes((FORMAT,)), u64(due_ns), u16(next_part), bitmap))


def unpack_chore(value: bytes) -> tuple[int, int, bytes]:
    """(due, next part, bitmap). Raises ValueError."""
    if not 11 <= len(value) <= 11 + MAX_PART_BITMAP_BYTES or value[0] != FORMAT:
        raise ValueError("not a chore of this format")
    return int.from_bytes(value[1:9], "big"), int.from_bytes(value[9:11], "big"), value[11:]


def pack_abandoned(decided: bool, cursor: bytes) -> bytes:
    """cursor: the row key from which the search for the stream goes on."""
    return bytes((FORMAT, int(decided))) + cursor


def unpack_abandoned(value: bytes) -> tuple[bool, bytes]:
    if len(value) < 2 or value[0] != FORMAT or value[1] > 1:
        raise ValueError("not an abandon row of this format")
    return bool(value[1]), value[2:]


def check_part_tables(count: int, bitmap: bytes, index: bytes) -> None:
    """The part tables of a completion: bits and marks that fit the count. Raises ValueError."""
    if not 0 < count <= MAX_PARTS or len(bitmap) > MAX_PART_BITMAP_BYTES:
        raise ValueError(f"{count} parts: 1 to {MAX_PARTS} are possible")
    if not bitmap or bitmap[0] & 1 or count_bits(bitmap) != count:
        raise ValueError("part bitmap does not hold the stated count")
    if len(bitmap) == MAX_PART_BITMAP_BYTES and bitmap[-1] > 1:
        raise ValueError(f"part number over {MAX_PARTS}")
    if len(index) != (count - 1) // PART_INDEX_STRIDE * MARK.size:
        raise ValueError("part index of the wrong size")
    last = (0, 0)
    for mark in MARK.iter_unpack(index):
        if mark[0] <= last[0] or mark[1] < last[1]:
            raise ValueError("part index does not ascend")
        last = (mark[0], mark[1])
