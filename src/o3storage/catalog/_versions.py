"""Version rows: their bytes.

A version (all integers big-endian):

    0   format u8 = 1        18  size u64
    1   flags u8             26  ETag suffix u16 (0: none)
    2   order u64            28  ETag MD5 16
    10  modified u64 (ns)    44  BLAKE3 32
                             76  checksum code u8, 77 owner length u8
    78  body 60 (if BODY), owner, checksum value (its algorithm's size)
        if MULTIPART: upload id 16, part count u16, bitmap length u16, index length u16, both
        lengths of headers, metadata and tags u16 each, then the three texts

A command that writes a version carries this very value, so that applying it copies bytes
and patches the order instead of decoding and encoding texts.
"""

from __future__ import annotations

import struct
from typing import Final

from ._codec import (
    check_blake3,
    check_body,
    checksum_size,
    join_etag,
    pack_checksum,
    pack_headers,
    pack_metadata,
    pack_tags,
    split_etag,
    u8,
    unpack_checksum,
    unpack_map,
    unpack_pairs,
)
from ._limits import (
    MAX_OBJECT_BYTES,
    MAX_PART_BITMAP_BYTES,
    STREAM_ID_BYTES,
    STREAM_REF_BYTES,
)
from ._parts import MARK
from ._types import (
    Checksum,
    Tags,
    VersionInfo,
)

FORMAT: Final = 1

IS_NULL: Final = 1
IS_MARKER: Final = 2
HAS_BODY: Final = 4
IS_MULTIPART: Final = 8
_VERSION_FLAGS: Final = 15

VERSION_HEAD: Final = struct.Struct(">BBQQQH16s32sBB")
VERSION_HEAD_BYTES: Final = VERSION_HEAD.size
VERSION_LIST: Final = struct.Struct(">xBQQQH16s32xBB")
"""What a listing needs: flags, order, modified, size, ETag suffix, MD5, checksum, owner length."""
_PATCH = struct.Struct(">BQ")
_SIZE = struct.Struct(">Q")
TEXTS: Final = struct.Struct(">HHH")
"""Lengths of packed headers, metadata and tags, which follow."""
_MULTIPART = struct.Struct(">16sHHH")
UPLOAD_HEAD: Final = struct.Struct(">BBQHQQBBB")
"""format, completed, changes, parts, their size, initiated, checksum code, 0, owner length; then
the owner and the texts as in a version."""
UPLOAD_HEAD_BYTES: Final = UPLOAD_HEAD.size
_NO_TEXTS: Final = bytes(6)
_MARKER_TAIL: Final = bytes(2 + 16 + 32 + 1)

assert VERSION_HEAD_BYTES == 78


# --- versions


def pack_texts(headers: dict[str, str], metadata: dict[str, str], tags: Tags) -> bytes:
    if not headers and not metadata and not tags:
        return _NO_TEXTS
    packed_headers = pack_headers(headers)
    packed_metadata = pack_metadata(metadata)
    packed_tags = pack_tags(tags)
    return b"".join(
        (
            TEXTS.pack(len(packed_headers), len(packed_metadata), len(packed_tags)),
            packed_headers,
            packed_metadata,
            packed_tags,
        )
    )


def pack_version(
    *,
    modified_ns: int,
    size_bytes: int,
    etag: str,
    blake3: bytes,
    owner: str,
    body: bytes,
    checksum: Checksum | None,
    headers: dict[str, str],
    metadata: dict[str, str],
    tags: Tags,
) -> bytes:
    """A version that is one stream, with order 0 (see place_version). Raises ValueError."""
    check_body(body, size_bytes)
    if size_bytes > MAX_OBJECT_BYTES:
        raise ValueError(f"{size_bytes} bytes: objects end at 50 TB")
    digest, suffix = split_etag(etag)
    code, value = pack_checksum(checksum)
    owner_bytes = owner.encode()
    if len(owner_bytes) > 255:
        raise ValueError("owner id longer than 255 bytes")
    try:
        head = VERSION_HEAD.pack(
            FORMAT,
            HAS_BODY if body else 0,
            0,
            modified_ns,
            size_bytes,
            suffix,
            digest,
            check_blake3(blake3),
            code,
            len(owner_bytes),
        )
    except struct.error as error:
        raise ValueError(f"version field out of range: {error}") from None
    return b"".join((head, body, owner_bytes, value, pack_texts(headers, metadata, tags)))


def pack_marker(order: int, modified_ns: int, owner: bytes, is_null: bool) -> bytes:
    """A delete marker."""
    return b"".join(
        (
            struct.pack(
                ">BBQQQ",
                FORMAT,
                IS_MARKER | IS_NULL if is_null else IS_MARKER,
                order,
                modified_ns,
                0,
            ),
            _MARKER_TAIL,
            u8(len(owner)),
            owner,
            _NO_TEXTS,
        )
    )


def pack_completed_version(
    upload_value: bytes,
    *,
    upload_id: bytes,
    size_bytes: int,
    etag: tuple[bytes, int],
    blake3: bytes,
    checksum: tuple[int, bytes],
    part_count: int,
    part_bitmap: bytes,
    part_index: bytes,
) -> bytes:
    """The version of a completed upload, order 0: owner and texts copied from the upload's row."""
    _, _, _, _, _, initiated_ns, _, _, owner_length = UPLOAD_HEAD.unpack_from(upload_value)
    owner_end = UPLOAD_HEAD_BYTES + owner_length
    return b"".join(
        (
            VERSION_HEAD.pack(
                FORMAT,
                IS_MULTIPART,
                0,
                initiated_ns,
                size_bytes,
                etag[1],
                etag[0],
                blake3,
                checksum[0],
                owner_length,
            ),
            upload_value[UPLOAD_HEAD_BYTES:owner_end],
            checksum[1],
            _MULTIPART.pack(upload_id, part_count, len(part_bitmap), len(part_index)),
            part_bitmap,
            part_index,
            upload_value[owner_end:],
        )
    )


def place_version(template: bytes, order: int, is_null: bool) -> bytes:
    """The row value of a packed version at its order."""
    flags = template[1]
    return b"".join(
        (
            template[:1],
            _PATCH.pack(flags | IS_NULL if is_null else flags, order),
            template[10:],
        )
    )


def version_flags(value: bytes) -> int:
    return value[1]


def version_order(value: bytes) -> int:
    return int.from_bytes(value[2:10], "big")


def version_modified_ns(value: bytes) -> int:
    return int.from_bytes(value[10:18], "big")


def version_size(value: bytes) -> int:
    return int.from_bytes(value[18:26], "big")


def version_etag(value: bytes) -> str:
    return join_etag(value[28:44], int.from_bytes(value[26:28], "big"))


def version_body(value: bytes) -> bytes:
    """The packed stream reference of a version's body; b"" if it has none of its own."""
    return value[78 : 78 + STREAM_REF_BYTES] if value[1] & HAS_BODY else b""


def version_stream(value: bytes) -> bytes:
    """The id of the one stream of a version; b"" if it has none."""
    return value[78 : 78 + STREAM_ID_BYTES] if value[1] & HAS_BODY else b""


def _multipart_offset(value: bytes) -> int:
    return (
        VERSION_HEAD_BYTES
        + (STREAM_REF_BYTES if value[1] & HAS_BODY else 0)
        + value[77]
        + checksum_size(value[76])
    )


def version_upload_id(value: bytes) -> bytes:
    """The upload id of a multipart version."""
    start = _multipart_offset(value)
    return value[start : start + 16]


def _texts_offset(value: bytes) -> int:
    """Where the three text lengths stand. Raises ValueError if the row is cut short."""
    if len(value) < VERSION_HEAD_BYTES + 6 or value[0] != FORMAT:
        raise ValueError("not a version row of this format")
    flags = value[1]
    if flags > _VERSION_FLAGS or flags & (HAS_BODY | IS_MULTIPART) == HAS_BODY | IS_MULTIPART:
        raise ValueError(f"impossible version flags {flags}")
    start = _multipart_offset(value)
    if flags & IS_MULTIPART:
        if len(value) < start + _MULTIPART.size:
            raise ValueError("version row cut short")
        _, _, bitmap_length, index_length = _MULTIPART.unpack_from(value, start)
        if bitmap_length > MAX_PART_BITMAP_BYTES or index_length % MARK.size:
            raise ValueError("impossible part tables in a version row")
        start += _MULTIPART.size + bitmap_length + index_length
    return start


def check_version(value: bytes) -> None:
    """Raise ValueError unless the lengths in a version row add up to its size."""
    start = _texts_offset(value)
    if len(value) < start + 6:
        raise ValueError("version row cut short")
    headers, metadata, tags = TEXTS.unpack_from(value, start)
    if len(value) != start + 6 + headers + metadata + tags:
        raise ValueError("version row of the wrong size")


def unpack_version(key: bytes, value: bytes) -> VersionInfo:
    """Decode a version row wholly, in one pass: hot. Raises ValueError."""
    total = len(value)
    if total < VERSION_HEAD_BYTES + TEXTS.size:
        raise ValueError("version row cut short")
    form, flags, order, modified, size, suffix, digest, blake3, code, owner_length = (
        VERSION_HEAD.unpack_from(value)
    )
    if form != FORMAT or flags > _VERSION_FLAGS:
        raise ValueError("not a version row of this format")
    at = VERSION_HEAD_BYTES
    body = b""
    if flags & HAS_BODY:
        if flags & IS_MULTIPART:
            raise ValueError(f"impossible version flags {flags}")
        body = value[at : at + STREAM_REF_BYTES]
        at += STREAM_REF_BYTES
    end = at + owner_length
    owner = value[at:end].decode()
    at = end
    checksum = None
    if code:
        end += checksum_size(code)
        checksum = unpack_checksum(code, value[at:end])
        at = end
    upload_id = bitmap = index = b""
    part_count = 0
    if flags & IS_MULTIPART:
        if total < at + _MULTIPART.size:
            raise ValueError("version row cut short")
        upload_id, part_count, bitmap_length, index_length = _MULTIPART.unpack_from(value, at)
        if bitmap_length > MAX_PART_BITMAP_BYTES or index_length % MARK.size:
            raise ValueError("impossible part tables in a version row")
        at += _MULTIPART.size
        bitmap = value[at : at + bitmap_length]
        at += bitmap_length
        index = value[at : at + index_length]
        at += index_length
    if total < at + TEXTS.size:
        raise ValueError("version row cut short")
    headers_length, metadata_length, tags_length = TEXTS.unpack_from(value, at)
    at += TEXTS.size
    metadata_at = at + headers_length
    tags_at = metadata_at + metadata_length
    if total != tags_at + tags_length:
        raise ValueError("version row of the wrong size")
    if flags & IS_MARKER:
        etag = ""
    else:
        etag = f"{digest.hex()}-{suffix}" if suffix else digest.hex()
    return VersionInfo(
        key,
        order,
        bool(flags & IS_NULL),
        bool(flags & IS_MARKER),
        modified,
        owner,
        size,
        etag,
        body,
        blake3,
        upload_id,
        part_count,
        bitmap,
        index,
        checksum,
        unpack_map(value[at:metadata_at]),
        unpack_map(value[metadata_at:tags_at]),
        unpack_pairs(value[tags_at:]),
    )


def with_tags(value: bytes, tags: bytes) -> bytes:
    """A version row with other (packed) tags."""
    start = _texts_offset(value)
    headers, metadata, _ = TEXTS.unpack_from(value, start)
    return b"".join(
        (
            value[:start],
            TEXTS.pack(headers, metadata, len(tags)),
            value[start + 6 : start + 6 + headers + metadata],
            tags,
        )
    )
