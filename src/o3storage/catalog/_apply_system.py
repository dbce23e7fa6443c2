"""Applying the commands of range 0, and those that give a key range its copy of a bucket."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from o3storage.runtime.fields import FieldReader
from o3storage.runtime.state_machine import Get, Outcome, Row, Scan

from . import _commands as c
from ._codec import bytes32, text8, u64
from ._errors import (
    AccessKeyExists,
    BucketBusy,
    BucketExists,
    InvalidBucketState,
    NoSuchAccessKey,
    NoSuchBucket,
)
from ._keys import (
    RANGE_PURGE,
    RANGE_STATE,
    TABLE_ACCESS_KEY,
    TABLE_BUCKET,
    TABLE_OWNER_BUCKET,
    TABLE_OWNER_KEY,
    TABLE_SETTING,
    TABLE_UPLOAD,
    TABLE_VERSION,
    after_prefix,
    bucket_prefix,
    chore_row,
    named,
    owned,
    pending_bucket,
    range_row,
    split_keyed,
)
from ._limits import (
    COLLECT_STEP_ROWS,
    DEAD_BUCKET_KEPT_NS,
    MAX_SETTINGS_BYTES,
    MAX_SETTINGS_PER_BUCKET,
)
from ._range import Apply, Range, Reads, Rows, refused
from ._rows import (
    BUCKET_STATES,
    CHORE_PARTS,
    DEAD,
    DEAD_EPOCH,
    pack_bucket,
    pack_chore,
    pack_copy,
    pack_state,
    unpack_bucket,
    unpack_copy,
    unpack_state,
    upload_is_completed,
    upload_sums,
    versioning_code,
)
from ._types import AccessKey, BucketInfo, CreateBucketResult, StepResult, SyncResult
from ._versions import FORMAT

BUCKET_COUNTER: Final = range_row(0, RANGE_STATE)
"""Row of the last bucket id given: u64."""


# --- rows of range 0


def bucket_row(name: str) -> bytes:
    return named(TABLE_BUCKET, name.encode())


def pack_access_key(key: AccessKey) -> bytes:
    return b"".join(
        (
            bytes((FORMAT,)),
            u64(key.created_ns),
            text8(key.owner),
            text8(key.status),
            bytes32(key.secret),
        )
    )


def unpack_access_key(key_id: str, value: bytes) -> AccessKey:
    """Raises ValueError."""
    reader = FieldReader(value)
    if reader.u8() != FORMAT:
        raise ValueError("not an access key of this format")
    created_ns, owner, status = reader.u64(), reader.text(), reader.text()
    key = AccessKey(key_id, reader.bytes32(), owner, created_ns, status)
    reader.end()
    return key


def pack_pending(name: str, gone: bool) -> bytes:
    return bytes((FORMAT, int(gone))) + name.encode()


def unpack_pending(value: bytes) -> tuple[str, bool]:
    """(name, gone). Raises ValueError."""
    if len(value) < 2 or value[0] != FORMAT or value[1] > 1:
        raise ValueError("not a pending bucket of this format")
    return value[2:].decode(), bool(value[1])


# --- buckets


def create_bucket(_: Range, command: c.CreateBucket) -> Apply:
    row_key = bucket_row(command.name)
    value = yield Get(row_key)
    if value is not None:
        bucket = unpack_bucket(command.name, value)
        if bucket.owner != command.owner:
            return refused(BucketExists(command.name, bucket.owner))
        if bucket.deleting:
            return refused(BucketBusy(command.name))
        return Outcome(CreateBucketResult(bucket, False))
    counter = yield Get(BUCKET_COUNTER)
    bucket_id = 1 + (0 if counter is None else int.from_bytes(counter, "big"))
    bucket = BucketInfo(bucket_id, command.name, command.owner, command.created_ns, command.region)
    owner_row = owned(TABLE_OWNER_BUCKET, command.owner.encode(), command.name.encode())
    return Outcome(
        CreateBucketResult(bucket, True),
        None,
        [
            (row_key, pack_bucket(bucket)),
            (owner_row, b""),
            (BUCKET_COUNTER, u64(bucket_id)),
        ],
    )


def begin_delete_bucket(_: Range, command: c.BeginDeleteBucket) -> Apply:
    row_key = bucket_row(command.name)
    value = yield Get(row_key)
    if value is None:
        return refused(NoSuchBucket(command.name))
    bucket = unpack_bucket(command.name, value)
    if command.bucket_id not in {0, bucket.bucket_id}:
        return refused(NoSuchBucket(command.name))
    if bucket.deleting:
        return Outcome(bucket)
    bucket.deleting = True
    bucket.epoch += 1
    return Outcome(
        bucket,
        None,
        [
            (row_key, pack_bucket(bucket)),
            (pending_bucket(bucket.bucket_id), pack_pending(command.name, False)),
        ],
    )


def revert_delete_bucket(_: Range, command: c.RevertDeleteBucket) -> Apply:
    row_key = bucket_row(command.name)
    value = yield Get(row_key)
    bucket = None if value is None else unpack_bucket(command.name, value)
    if bucket is None or bucket.bucket_id != command.bucket_id:
        return refused(NoSuchBucket(command.name))
    if not bucket.deleting or bucket.epoch != command.epoch:
        return Outcome(bucket)
    bucket.deleting = False
    bucket.epoch += 1
    return Outcome(
        bucket,
        None,
        [(row_key, pack_bucket(bucket)), (pending_bucket(bucket.bucket_id), None)],
    )


def finish_delete_bucket(_: Range, command: c.FinishDeleteBucket) -> Apply:
    row_key = bucket_row(command.name)
    value = yield Get(row_key)
    bucket = None if value is None else unpack_bucket(command.name, value)
    if bucket is None or bucket.bucket_id != command.bucket_id:
        return Outcome(None)
    if not bucket.deleting or bucket.epoch != command.epoch:
        return refused(BucketBusy(command.name))
    return Outcome(
        bucket,
        None,
        [
            (row_key, None),
            (owned(TABLE_OWNER_BUCKET, bucket.owner.encode(), command.name.encode()), None),
            (pending_bucket(bucket.bucket_id), pack_pending(command.name, True)),
        ],
    )


def forget_bucket(_: Range, command: c.ForgetBucket) -> Apply:
    row_key = pending_bucket(command.bucket_id)
    value = yield Get(row_key)
    if value is None or not unpack_pending(value)[1]:
        return Outcome()
    return Outcome(None, None, [(row_key, None)])


def _standing_bucket(name: str, bucket_id: int) -> Reads[BucketInfo | Outcome]:
    """The bucket, or the refusal if there is none or it is being deleted."""
    value = yield Get(bucket_row(name))
    if value is None:
        return refused(NoSuchBucket(name))
    bucket = unpack_bucket(name, value)
    if bucket_id not in {0, bucket.bucket_id}:
        return refused(NoSuchBucket(name))
    return refused(BucketBusy(name)) if bucket.deleting else bucket


def set_bucket_versioning(_: Range, command: c.SetBucketVersioning) -> Apply:
    bucket = yield from _standing_bucket(command.name, command.bucket_id)
    if isinstance(bucket, Outcome):
        return bucket
    if bucket.versioning == command.status:
        return Outcome(bucket)
    bucket.versioning = command.status
    bucket.epoch += 1
    return Outcome(bucket, None, [(bucket_row(command.name), pack_bucket(bucket))])


def set_bucket_setting(_: Range, command: c.SetBucketSetting) -> Apply:
    bucket = yield from _standing_bucket(command.name, command.bucket_id)
    if isinstance(bucket, Outcome):
        return bucket
    if command.value is None:
        if bucket.settings.pop(command.setting, None) is None:
            return Outcome(bucket)
    else:
        bucket.settings[command.setting] = command.value
        if len(bucket.settings) > MAX_SETTINGS_PER_BUCKET:
            return refused(
                InvalidBucketState(f"a bucket holds at most {MAX_SETTINGS_PER_BUCKET} settings")
            )
        if sum(map(len, bucket.settings.values())) > MAX_SETTINGS_BYTES:
            return refused(
                InvalidBucketState(
                    f"the settings of a bucket have at most {MAX_SETTINGS_BYTES} bytes together"
                )
            )
    return Outcome(bucket, None, [(bucket_row(command.name), pack_bucket(bucket))])


# --- access keys, settings


def put_access_key(_: Range, command: c.PutAccessKey) -> Apply:
    row_key = named(TABLE_ACCESS_KEY, command.key_id.encode())
    value = yield Get(row_key)
    if value is not None and unpack_access_key(command.key_id, value).owner != command.owner:
        return refused(AccessKeyExists(command.key_id))
    key = AccessKey(
        command.key_id, command.secret, command.owner, command.created_ns, command.status
    )
    owner_row = owned(TABLE_OWNER_KEY, command.owner.encode(), command.key_id.encode())
    return Outcome(None, None, [(row_key, pack_access_key(key)), (owner_row, b"")])


def remove_access_key(_: Range, command: c.RemoveAccessKey) -> Apply:
    row_key = named(TABLE_ACCESS_KEY, command.key_id.encode())
    value = yield Get(row_key)
    if value is None:
        return refused(NoSuchAccessKey(command.key_id))
    owner = unpack_access_key(command.key_id, value).owner
    owner_row = owned(TABLE_OWNER_KEY, owner.encode(), command.key_id.encode())
    return Outcome(None, None, [(row_key, None), (owner_row, None)])


def set_cluster_setting(_: Range, command: c.SetClusterSetting) -> Apply:
    row_key = named(TABLE_SETTING, command.name.encode())
    return Outcome(None, None, [(row_key, command.value)])
    yield  # a generator like the others


# --- a key range's copy of a bucket


def sync_bucket(rng: Range, command: c.SyncBucket) -> Apply:
    row_key = rng.copy_row(command.bucket_id)
    value = yield Get(row_key)
    current = -1 if value is None else unpack_copy(value)[0]
    prefix = bucket_prefix(TABLE_VERSION, command.bucket_id)
    first: list[Row] = yield Scan(prefix, after_prefix(prefix), 1)
    state = BUCKET_STATES.index(command.state)
    epoch = DEAD_EPOCH if state == DEAD else command.epoch
    if epoch <= current:
        return Outcome(SyncResult(current, not first))
    rows: Rows = [(row_key, pack_copy(epoch, versioning_code(command.versioning), state))]
    if state == DEAD:
        rows.append((range_row(rng.group, RANGE_PURGE, command.bucket_id), pack_chore(0)))
    return Outcome(SyncResult(epoch, not first), None, rows)


def purge_bucket(rng: Range, command: c.PurgeBucket) -> Apply:
    """First its uploads, some at a time; then, when no late copy of its settings can arrive any
    more, the memory of it."""
    row_key = range_row(rng.group, RANGE_PURGE, command.bucket_id)
    chore = yield Get(row_key)
    if chore is None:
        return Outcome(StepResult(True))
    due_ns = int.from_bytes(chore[1:9], "big")
    state = unpack_state((yield Get(rng.state_row)))
    now_ns = max(state.clock_ns, command.proposed_ns)
    if now_ns < due_ns:
        return Outcome(StepResult(True))
    if due_ns:
        return Outcome(
            StepResult(True), None, [(row_key, None), (rng.copy_row(command.bucket_id), None)]
        )
    prefix = bucket_prefix(TABLE_UPLOAD, command.bucket_id)
    uploads: list[Row] = yield Scan(prefix, after_prefix(prefix), COLLECT_STEP_ROWS)
    rows: Rows = []
    for upload_key, value in uploads:
        rows.append((upload_key, None))
        if upload_is_completed(value):
            continue
        _, parts, size = upload_sums(value)
        state.uploads -= 1
        state.upload_size_bytes -= size
        if parts:
            bucket_id, key, upload_id = split_keyed(upload_key)
            rows.append((chore_row(bucket_id, key, CHORE_PARTS, upload_id), pack_chore(0)))
            state.garbage += 1
    done = len(uploads) < COLLECT_STEP_ROWS
    if done:
        rows.append((row_key, pack_chore(now_ns + DEAD_BUCKET_KEPT_NS)))
    rows.append((rng.state_row, pack_state(state)))
    return Outcome(StepResult(done), None, rows)


APPLIES: Final[dict[type[Any], Callable[[Range, Any], Apply]]] = {
    c.CreateBucket: create_bucket,
    c.BeginDeleteBucket: begin_delete_bucket,
    c.RevertDeleteBucket: revert_delete_bucket,
    c.FinishDeleteBucket: finish_delete_bucket,
    c.ForgetBucket: forget_bucket,
    c.SetBucketVersioning: set_bucket_versioning,
    c.SetBucketSetting: set_bucket_setting,
    c.PutAccessKey: put_access_key,
    c.RemoveAccessKey: remove_access_key,
    c.SetClusterSetting: set_cluster_setting,
    c.SyncBucket: sync_bucket,
    c.PurgeBucket: purge_bucket,
}
