"""Applying the commands on objects: PutObject, DeleteObject, DeleteObjects, SetTags.

Each reads a bounded number of rows: at most five per key.
"""

from __future__ import annotations

from o3storage.runtime.state_machine import Get, Outcome, Row, Scan

from ._codec import pack_tags, read_condition
from ._commands import DeleteItem, DeleteObject, DeleteObjects, SetTags
from ._errors import CatalogError, MethodNotAllowed, NoSuchKey, NoSuchVersion
from ._keys import OLDEST_SLOT, TABLE_NULL, TABLE_VERSION, after_prefix, keyed
from ._range import (
    Apply,
    Change,
    Range,
    Reads,
    check_condition,
    check_copy,
    newest_version,
    next_order,
    refused,
)
from ._rows import ENABLED, UNVERSIONED, unpack_state
from ._types import Counts, DeleteResult, PutResult, TagsResult
from ._version_id import NULL
from ._versions import (
    HAS_BODY,
    IS_MARKER,
    IS_NULL,
    pack_marker,
    version_modified_ns,
    version_order,
    version_stream,
    with_tags,
)
from ._wire import split_put


def put_object(rng: Range, data: bytes) -> Apply:
    """PutObject, from its bytes: the version it carries is copied, not decoded."""
    put = split_put(data)
    bucket_id = put.bucket_id
    key = put.key
    versioning, error = check_copy((yield Get(rng.copy_row(bucket_id))), bucket_id, put.epoch)
    if error is not None:
        return refused(error)
    prefix = keyed(TABLE_VERSION, bucket_id, key)
    newest = yield from newest_version(prefix, only_null=versioning == UNVERSIONED)
    if put.condition:
        condition = read_condition(put.condition)
        if condition is not None:
            error = check_condition(key, condition, newest and newest[1])
            if error is not None:
                return refused(error)
    change = Change(bucket_id, key, prefix, unpack_state((yield Get(rng.state_row))))
    order = next_order(change.state, put.proposed_ns)
    value = put.value
    if value[1] & HAS_BODY:
        error = yield from change.check_stream(version_stream(value), put.started_ns, order)
        if error is not None:
            return refused(error)
    yield from change.place(versioning, newest, value, order)
    result = PutResult(order, versioning != ENABLED, versioning != UNVERSIONED)
    return change.outcome(rng, result)


def delete_object(rng: Range, command: DeleteObject) -> Apply:
    bucket_id = command.bucket_id
    versioning, error = check_copy((yield Get(rng.copy_row(bucket_id))), bucket_id, command.epoch)
    if error is not None:
        return refused(error)
    state = unpack_state((yield Get(rng.state_row)))
    key = command.key
    change = Change(bucket_id, key, keyed(TABLE_VERSION, bucket_id, key), state)
    item = DeleteItem(key, command.version, command.condition)
    result = yield from _delete(change, versioning, command, item)
    if isinstance(result, CatalogError):
        return refused(result)
    return change.outcome(rng, result)


def delete_objects(rng: Range, command: DeleteObjects) -> Apply:
    bucket_id = command.bucket_id
    versioning, error = check_copy((yield Get(rng.copy_row(bucket_id))), bucket_id, command.epoch)
    if error is not None:
        return refused(error)
    change = Change(bucket_id, b"", b"", unpack_state((yield Get(rng.state_row))))
    results: list[DeleteResult | CatalogError] = []
    for item in command.items:
        result = yield from _delete(change.other_key(item.key), versioning, command, item)
        results.append(result)
    return change.outcome(rng, results)


def _delete(
    change: Change, versioning: int, command: DeleteObject | DeleteObjects, item: DeleteItem
) -> Reads[DeleteResult | CatalogError]:
    """One key of a delete. A refusal has changed nothing."""
    if item.version is not None:
        return (yield from _delete_version(change, item, item.version))
    newest = yield from newest_version(change.prefix, only_null=versioning == UNVERSIONED)
    if item.condition is not None:
        error = check_condition(item.key, item.condition, newest and newest[1])
        if error is not None:
            return error
    existed = newest is not None and not newest[1][1] & IS_MARKER
    if versioning == UNVERSIONED:
        if newest is None:
            return DeleteResult(False, False)
        change.state.objects -= existed
        change.drop(newest[1])
        change.rows.append((newest[0], None))
        return DeleteResult(True, False, version_order(newest[1]), True)
    order = next_order(change.state, command.proposed_ns)
    is_null = versioning != ENABLED
    marker = pack_marker(order, command.proposed_ns, command.owner.encode(), is_null)
    yield from change.place(versioning, newest, marker, order)
    return DeleteResult(existed, True, order, is_null, True)


def _delete_version(
    change: Change, item: DeleteItem, version: int
) -> Reads[DeleteResult | CatalogError]:
    """Remove one version for good."""
    top: list[Row] = yield Scan(change.prefix, after_prefix(change.prefix), 2)
    newest = top[0] if top else None
    if item.condition is not None:
        error = check_condition(item.key, item.condition, newest and newest[1])
        if error is not None:
            return error
    if version == NULL:
        target = yield from change.find_null(newest)
    else:
        target = yield from change.find_numbered(newest, version)
    if target is None or newest is None:
        is_null = version == NULL
        return DeleteResult(False, False, 0 if is_null else version, is_null, True)
    row_key, value = target
    marker = bool(value[1] & IS_MARKER)
    is_null = bool(value[1] & IS_NULL)
    if row_key == newest[0]:
        if not marker:
            change.state.objects -= 1
        if len(top) > 1 and not top[1][1][1] & IS_MARKER:
            change.state.objects += 1
    change.drop(value)
    change.rows.append((row_key, None))
    if is_null and row_key[-8:] != OLDEST_SLOT:
        change.rows.append((keyed(TABLE_NULL, change.bucket_id, item.key), None))
    return DeleteResult(True, marker, version_order(value), is_null, True)


def find_version(
    bucket_id: int, key: bytes, version: int | None, only_null: bool = False
) -> Reads[tuple[Row, bool] | CatalogError]:
    """The row of a version that has bytes, and whether it is the latest; or the refusal.
    `only_null` as of `newest_version`."""
    prefix = keyed(TABLE_VERSION, bucket_id, key)
    newest = yield from newest_version(prefix, only_null=only_null)
    if version is None:
        if newest is None:
            return NoSuchKey(key)
        if newest[1][1] & IS_MARKER:
            return NoSuchKey(key, version_order(newest[1]), bool(newest[1][1] & IS_NULL))
        return newest, True
    reader = Change(bucket_id, key, prefix, Counts())
    if version == NULL:
        found = yield from reader.find_null(newest)
    else:
        found = yield from reader.find_numbered(newest, version)
    if found is None or newest is None:
        return NoSuchVersion(key, version)
    value = found[1]
    if value[1] & IS_MARKER:
        return MethodNotAllowed(
            key, version_order(value), bool(value[1] & IS_NULL), version_modified_ns(value)
        )
    return found, found[0] == newest[0]


def set_tags(rng: Range, command: SetTags) -> Apply:
    versioning, error = check_copy(
        (yield Get(rng.copy_row(command.bucket_id))), command.bucket_id, command.epoch
    )
    if error is not None:
        return refused(error)
    only_null = versioning == UNVERSIONED
    found = yield from find_version(command.bucket_id, command.key, command.version, only_null)
    if isinstance(found, CatalogError):
        return refused(found)
    row_key, value = found[0]
    return Outcome(
        TagsResult(version_order(value), bool(value[1] & IS_NULL), versioning != UNVERSIONED),
        None,
        [(row_key, with_tags(value, pack_tags(command.tags)))],
    )
