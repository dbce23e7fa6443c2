"""Operations that touch range 0 and the key ranges, as steps to be driven.

Each is a generator that yields a Command (to submit) or a Query (to run) and is sent its result;
a refusal is thrown into it. It returns the operation's result or raises a CatalogError. So the
order of steps, which keeps a bucket's settings safe under crashes and races, stands here once, and
the rooms above only `drive` them.

If a driver dies in the middle nothing is lost: an unfinished creation or change is completed by
the next write that meets StaleEpoch (see `sync_bucket`); an unfinished deletion is listed by
`pending_buckets` and driven by `resume_delete`.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, Protocol, TypeVar

from ._commands import (
    BeginDeleteBucket,
    Command,
    CreateBucket,
    DeleteItem,
    FinishDeleteBucket,
    ForgetBucket,
    RevertDeleteBucket,
    SetBucketVersioning,
    SyncBucket,
)
from ._errors import BucketBusy, BucketNotEmpty, CatalogError, NoSuchBucket
from ._limits import MAX_DELETES_PER_COMMAND
from ._queries import get_bucket
from ._query import Query
from ._types import BucketInfo, CreateBucketResult

Procedure = Generator[Command | Query[Any], Any, Any]

T = TypeVar("T")


class Driver(Protocol):
    """What carries out the steps: a node."""

    async def submit(self, command: Any) -> Any: ...

    async def query(self, query: Any) -> Any: ...


async def drive(node: Driver, steps: Generator[Command | Query[Any], Any, T]) -> T:
    """Run a procedure to its end; its result. Raises its CatalogError, and what the node raises."""
    try:
        step = next(steps)
        while True:
            try:
                if isinstance(step, Query):
                    result = await node.query(step)
                else:
                    result = await node.submit(step)
            except CatalogError as error:
                step = steps.throw(error)
            else:
                step = steps.send(result)
    except StopIteration as end:
        answer: T = end.value
        return answer


def _sync(bucket: BucketInfo, state: str, now_ns: int) -> SyncBucket:
    return SyncBucket(bucket.bucket_id, bucket.epoch, bucket.versioning, state, now_ns)


def create_bucket(
    command: CreateBucket,
) -> Generator[Command | Query[Any], Any, CreateBucketResult]:
    """Create a bucket and give every range its copy. BucketExists, BucketBusy."""
    result: CreateBucketResult = yield command
    yield _sync(result.bucket, "active", command.created_ns)
    return result


def set_versioning(
    name: str, status: str, now_ns: int, bucket_id: int = 0
) -> Generator[Command | Query[Any], Any, BucketInfo]:
    """Set "Enabled" or "Suspended", in force in every range on return. `bucket_id`: of that bucket
    only, not of one that has its name by now. NoSuchBucket, BucketBusy, InvalidBucketState."""
    bucket: BucketInfo = yield SetBucketVersioning(name, status, bucket_id)
    yield _sync(bucket, "active", now_ns)
    return bucket


def sync_bucket(name: str, now_ns: int) -> Generator[Command | Query[Any], Any, BucketInfo]:
    """After StaleEpoch: bring the range up to range 0 and return the bucket to make the command
    anew with. NoSuchBucket (it is gone), BucketBusy (it is being deleted: treat as a fence)."""
    bucket: BucketInfo = yield get_bucket(name)
    if bucket.deleting:
        raise BucketBusy(name)
    yield _sync(bucket, "active", now_ns)
    return bucket


def delete_bucket(
    name: str, now_ns: int, bucket_id: int = 0
) -> Generator[Command | Query[Any], Any, None]:
    """Delete an empty bucket (open uploads do not count). `bucket_id` as of `set_versioning`.
    NoSuchBucket, BucketNotEmpty, BucketBusy (another deletion just reverted or finished it)."""
    bucket: BucketInfo = yield BeginDeleteBucket(name, bucket_id)
    gone = yield from _decide(bucket, now_ns)
    if not gone:
        raise BucketNotEmpty(name)


def resume_delete(
    bucket_id: int, name: str, gone: bool, now_ns: int
) -> Generator[Command | Query[Any], Any, None]:
    """Drive an entry of `pending_buckets` to its end, or back."""
    if gone:
        yield SyncBucket(bucket_id, 0, "", "dead", now_ns)
        yield ForgetBucket(bucket_id)
        return
    try:
        bucket: BucketInfo = yield get_bucket(name)
    except NoSuchBucket:
        return
    if bucket.bucket_id == bucket_id and bucket.deleting:
        yield from _decide(bucket, now_ns)


def _decide(bucket: BucketInfo, now_ns: int) -> Generator[Command | Query[Any], Any, bool]:
    """Fence, look, then delete or revert. Whether the bucket is gone."""
    fenced = yield _sync(bucket, "fenced", now_ns)
    if fenced.epoch != bucket.epoch:
        raise BucketBusy(bucket.name)
    if fenced.empty:
        ended = yield FinishDeleteBucket(bucket.name, bucket.bucket_id, bucket.epoch)
        if ended is not None:
            yield SyncBucket(bucket.bucket_id, 0, "", "dead", now_ns)
            yield ForgetBucket(bucket.bucket_id)
        return True
    try:
        back: BucketInfo = yield RevertDeleteBucket(bucket.name, bucket.bucket_id, bucket.epoch)
    except NoSuchBucket:
        return True
    yield _sync(back, "active", now_ns)
    return False


def delete_batches(items: Sequence[DeleteItem]) -> list[list[int]]:
    """Split a multi-delete into batches for DeleteObjects, as positions in `items`: at most
    MAX_DELETES_PER_COMMAND each, no key twice in one, the order of each key's items kept. Submit
    the batches one after another."""
    batches: list[list[int]] = []
    seen: list[set[bytes]] = []
    earliest: dict[bytes, int] = {}
    first_open = 0
    for position, item in enumerate(items):
        at = max(earliest.get(item.key, 0), first_open)
        while at < len(batches) and len(batches[at]) >= MAX_DELETES_PER_COMMAND:
            at += 1
        if at == len(batches):
            batches.append([])
            seen.append(set())
        batches[at].append(position)
        seen[at].add(item.key)
        earliest[item.key] = at + 1
        while first_open < len(batches) and len(batches[first_open]) >= MAX_DELETES_PER_COMMAND:
            first_open += 1
    return batches
