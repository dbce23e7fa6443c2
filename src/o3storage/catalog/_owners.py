"""Whose a stream is: for people, when its frames cannot be read."""

from __future__ import annotations

from typing import NamedTuple

from ._keys import (
    TABLE_BUCKET,
    TABLE_PART,
    TABLE_VERSION,
    after_prefix,
    keyed,
    split_keyed,
)
from ._rows import part_stream, unpack_bucket
from ._versions import (
    IS_MULTIPART,
    IS_NULL,
    version_flags,
    version_order,
    version_stream,
    version_upload_id,
)

BODY_SPANS = tuple((bytes((table,)), bytes((table + 1,))) for table in (TABLE_VERSION, TABLE_PART))
"""(low, high) of all rows that name a body."""
BUCKET_SPAN = (bytes((TABLE_BUCKET,)), bytes((TABLE_BUCKET + 1,)))
"""(low, high) of the rows of all buckets."""


class BodyOwner(NamedTuple):
    """What a row says of the body that it names."""

    stream: bytes
    bucket_id: int
    key: bytes
    order: int
    """Of the version; 0 for a part."""
    is_null: bool
    upload_id: bytes
    """Of the upload that a part belongs to; b"" for a version's own body."""
    part: int


def body_owner(row_key: bytes, value: bytes) -> BodyOwner | None:
    """The body that a row of BODY_SPANS names, if any. Raises ValueError for a row nobody wrote."""
    bucket_id, key, rest = split_keyed(row_key)
    if row_key[0] == TABLE_VERSION:
        stream = version_stream(value)
        null = bool(version_flags(value) & IS_NULL)
        owner = BodyOwner(stream, bucket_id, key, version_order(value), null, b"", 0)
    else:
        stream = part_stream(value)
        number = int.from_bytes(rest[16:18], "big")
        owner = BodyOwner(stream, bucket_id, key, 0, False, rest[:16], number)
    return owner if stream else None


def versions_span(bucket_id: int, key: bytes) -> tuple[bytes, bytes]:
    """(low, high) of the version rows of one key."""
    low = keyed(TABLE_VERSION, bucket_id, key)
    return low, after_prefix(low)


def completed_from(value: bytes, upload_id: bytes) -> tuple[int, bool] | None:
    """(order, whether it is the null version) of a version row, if this upload became it."""
    flags = version_flags(value)
    if not flags & IS_MULTIPART or version_upload_id(value) != upload_id:
        return None
    return version_order(value), bool(flags & IS_NULL)


def bucket_of(row_key: bytes, value: bytes) -> tuple[int, str]:
    """(id, name) of a row of BUCKET_SPAN. Raises ValueError."""
    name = row_key[1:].decode()
    return unpack_bucket(name, value).bucket_id, name
