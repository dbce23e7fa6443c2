"""Names for people: which object, version and part a stream holds the bytes of."""

from __future__ import annotations

from collections.abc import AsyncIterator

from o3storage.catalog import (
    BODY_SPANS,
    BUCKET_SPAN,
    BodyOwner,
    body_owner,
    bucket_of,
    completed_from,
    version_id,
    versions_span,
)
from o3storage.storage import OfflineStore

STEP_ROWS = 1000


async def name_streams(store: OfflineStore, streams: list[bytes]) -> dict[bytes, str]:
    """stream -> `s3://bucket/key version ID[, part N]`, of those that a version or an upload names.
    Reads all rows of versions and parts. Raises StoreDamaged, DiskError."""
    wanted = dict.fromkeys(streams)
    found: list[BodyOwner] = []
    for low, high in BODY_SPANS:
        async for key, value in _rows(store, low, high):
            try:
                owner = body_owner(key, value)
            except ValueError:
                continue  # (a row that nobody wrote; the check of the index is another matter)
            if owner is not None and owner.stream in wanted:
                found.append(owner)
    buckets: dict[int, str] = {}
    async for key, value in _rows(store, *BUCKET_SPAN):
        number, name = bucket_of(key, value)
        buckets[number] = name
    return {owner.stream: await _name(store, owner, buckets) for owner in found}


async def _name(store: OfflineStore, owner: BodyOwner, buckets: dict[int, str]) -> str:
    bucket = buckets.get(owner.bucket_id, f"(bucket {owner.bucket_id})")
    path = f"s3://{bucket}/{owner.key.decode('utf-8', 'backslashreplace')}"
    if not owner.upload_id:
        return f"{path} version {_version(owner.order, owner.is_null)}"
    async for _, value in _rows(store, *versions_span(owner.bucket_id, owner.key)):
        became = completed_from(value, owner.upload_id)
        if became is not None:
            return f"{path} version {_version(*became)}, part {owner.part}"
    return f"{path}, part {owner.part} of the open upload {owner.upload_id.hex()}"


def _version(order: int, is_null: bool) -> str:
    return "null" if is_null else version_id(order)


async def _rows(store: OfflineStore, low: bytes, high: bytes) -> AsyncIterator[tuple[bytes, bytes]]:
    while True:
        rows = await store.scan(low, high, STEP_ROWS)
        for row in rows:
            yield row
        if len(rows) < STEP_ROWS:
            return
        low = rows[-1][0] + b"\0"
