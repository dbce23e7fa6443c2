"""Reading range 0, and a range as a whole."""

from __future__ import annotations

from dataclasses import replace

from o3storage.runtime.state_machine import Get, Row, Scan

from ._apply_system import bucket_row, unpack_access_key, unpack_pending
from ._commands import Collect, Command, PurgeBucket
from ._errors import NoSuchAccessKey, NoSuchBucket
from ._keys import (
    RANGE_BUCKET,
    RANGE_PURGE,
    RANGE_STATE,
    TABLE_ACCESS_KEY,
    TABLE_CHORE,
    TABLE_OWNER_BUCKET,
    TABLE_OWNER_KEY,
    TABLE_PENDING_BUCKET,
    TABLE_SETTING,
    abandoned_row,
    after_prefix,
    named,
    owned,
    range_row,
    range_row_number,
    range_rows_prefix,
    split_keyed,
)
from ._limits import MAX_PAGE
from ._query import Steps
from ._rows import read_bucket, unpack_abandoned, unpack_chore, unpack_copy, unpack_state
from ._types import (
    AccessKey,
    AccessKeysPage,
    BucketInfo,
    BucketsPage,
    Counts,
)


def get_bucket(name: str) -> Steps[BucketInfo]:
    value = yield Get(bucket_row(name))
    if value is None:
        raise NoSuchBucket(name)
    return read_bucket(name, value)


def _page_limit(limit: int) -> int:
    return max(1, min(limit, MAX_PAGE))


def list_buckets(owner: str, prefix: str, after: str, limit: int) -> Steps[BucketsPage]:
    limit = _page_limit(limit)
    base = owned(TABLE_OWNER_BUCKET, owner.encode(), b"")
    low = base + prefix.encode()
    high = after_prefix(low)
    if after:
        low = max(low, base + after.encode() + b"\x00")
    if low >= high:
        return BucketsPage([], None)
    rows: list[Row] = yield Scan(low, high, limit + 1)
    buckets = []
    for row_key, _ in rows[:limit]:
        name = row_key[len(base) :].decode()
        bucket = yield from get_bucket(name)
        # (A page of a thousand would keep 128 MiB of CORS rules and tags.)
        buckets.append(replace(bucket, settings={}) if bucket.settings else bucket)
    return BucketsPage(buckets, buckets[-1].name if len(rows) > limit else None)


def pending_buckets(limit: int) -> Steps[list[tuple[int, str, bool]]]:
    prefix = bytes((TABLE_PENDING_BUCKET,))
    rows: list[Row] = yield Scan(prefix, after_prefix(prefix), _page_limit(limit))
    return [(int.from_bytes(row_key[1:], "big"), *unpack_pending(value)) for row_key, value in rows]


def get_access_key(key_id: str) -> Steps[AccessKey]:
    value = yield Get(named(TABLE_ACCESS_KEY, key_id.encode()))
    if value is None:
        raise NoSuchAccessKey(key_id)
    return unpack_access_key(key_id, value)


def list_access_keys(owner: str | None, after: str, limit: int) -> Steps[AccessKeysPage]:
    limit = _page_limit(limit)
    if owner is None:
        base = bytes((TABLE_ACCESS_KEY,))
    else:
        base = owned(TABLE_OWNER_KEY, owner.encode(), b"")
    low = base + after.encode() + b"\x00" if after else base
    rows: list[Row] = yield Scan(low, after_prefix(base), limit + 1)
    keys = []
    for row_key, value in rows[:limit]:
        key_id = row_key[len(base) :].decode()
        if owner is None:
            keys.append(unpack_access_key(key_id, value))
        else:
            keys.append((yield from get_access_key(key_id)))
    return AccessKeysPage(keys, keys[-1].key_id if len(rows) > limit else None)


def get_cluster_setting(name: str) -> Steps[bytes | None]:
    value: bytes | None = yield Get(named(TABLE_SETTING, name.encode()))
    return value


def counts(group: int) -> Steps[Counts]:
    return unpack_state((yield Get(range_row(group, RANGE_STATE))))


def range_bucket_epoch(bucket_id: int, group: int) -> Steps[int]:
    value = yield Get(range_row(group, RANGE_BUCKET, bucket_id))
    return 0 if value is None else unpack_copy(value)[0]


def is_abandoned(bucket_id: int, key: bytes, stream: bytes) -> Steps[bool]:
    value = yield Get(abandoned_row(bucket_id, key, stream))
    return value is not None and unpack_abandoned(value)[0]


def chores(now_ns: int, after: bytes, limit: int, group: int) -> Steps[tuple[list[Command], bytes]]:
    """Purges first, then the chore table: both in row-key order, so one marker serves."""
    commands: list[Command] = []
    limit = _page_limit(limit)
    purges = range_rows_prefix(group, RANGE_PURGE)
    table = bytes((TABLE_CHORE,))
    for prefix in (purges, table):
        high = after_prefix(prefix)
        low = max(prefix, after + b"\x00")
        if low >= high:
            continue
        rows: list[Row] = yield Scan(low, high, MAX_PAGE)
        for row_key, value in rows:
            if unpack_chore(value)[0] > now_ns:
                continue
            if prefix is purges:
                commands.append(PurgeBucket(range_row_number(row_key), now_ns))
            else:
                bucket_id, key, rest = split_keyed(row_key)
                commands.append(Collect(bucket_id, key, rest[0], rest[1:], now_ns))
            if len(commands) == limit:
                return commands, row_key
        if len(rows) == MAX_PAGE:
            return commands, rows[-1][0]
    return commands, b""
