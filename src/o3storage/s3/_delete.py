"""DeleteObject and DeleteObjects. Source: S3 API reference."""

from __future__ import annotations

import asyncio
from typing import Final

from o3storage.catalog import (
    BucketInfo,
    CatalogError,
    Command,
    DeleteItem,
    DeleteObject,
    DeleteObjects,
    DeleteResult,
    delete_batches,
)
from o3storage.http import Response
from o3storage.s3._answers import Header, empty, xml
from o3storage.s3._conditions import delete_condition, make_delete_condition
from o3storage.s3._context import Context, parse_version
from o3storage.s3._documents import read_document
from o3storage.s3._errors import S3Error
from o3storage.s3._names import check_key
from o3storage.s3._refusals import translate
from o3storage.s3._xml import Element, escape

MAX_DELETES: Final = 1000
"""Keys of one DeleteObjects (AWS)."""

STEP_ENTRIES: Final = 250
"""Entries written in one step of the event loop: about 10 ms for keys of a kilobyte."""


async def delete_object(ctx: Context) -> Response:
    version = ctx.version_param()
    condition = delete_condition(ctx.headers)

    def make(bucket: BucketInfo) -> Command:
        return DeleteObject(
            bucket.bucket_id, bucket.epoch, ctx.key, ctx.now_ns(), ctx.owner, version, condition
        )

    result: DeleteResult = await ctx.write(make)
    answer: list[Header] = []
    if result.delete_marker:
        answer.append(("x-amz-delete-marker", "true"))
    if (version_id := result.version_id) is not None:
        answer.append(("x-amz-version-id", version_id))
    elif version is not None:
        answer.append(("x-amz-version-id", ctx.params["versionId"]))
    return empty(204, answer)


async def delete_objects(ctx: Context) -> Response:
    root = await read_document(ctx, ("Delete",), needs_digest=True)
    entries = root.find_all("Object")
    if not 1 <= len(entries) <= MAX_DELETES:
        raise S3Error("MalformedXML", f"A Delete names 1 to {MAX_DELETES} objects.")
    quiet = (root.child_text("Quiet") or "").strip().lower() == "true"
    names = [_names(entry) for entry in entries]
    outcomes: list[DeleteResult | S3Error] = []
    items: list[DeleteItem] = []
    positions: list[int] = []
    for position, entry in enumerate(entries):
        try:
            items.append(_item(entry, names[position]))
            positions.append(position)
            outcomes.append(_PENDING)
        except S3Error as error:
            outcomes.append(error)
    for batch in delete_batches(items):
        chosen = [items[at] for at in batch]

        def make(bucket: BucketInfo, chosen: list[DeleteItem] = chosen) -> Command:
            return DeleteObjects(bucket.bucket_id, bucket.epoch, ctx.now_ns(), ctx.owner, chosen)

        for at, result in zip(batch, await ctx.write(make), strict=True):
            if isinstance(result, CatalogError):
                result = translate(result, ctx.bucket_name, "")
            outcomes[positions[at]] = result
    parts = []
    for at, ((key, version), outcome) in enumerate(zip(names, outcomes, strict=True), 1):
        if at % STEP_ENTRIES == 0:
            await asyncio.sleep(0)
        if isinstance(outcome, S3Error):
            parts.append(_error_entry(key, version, outcome))
        elif not quiet:
            parts.append(_deleted_entry(key, version, outcome))
    return xml("DeleteResult", "".join(parts))


_PENDING: Final = DeleteResult(existed=False, delete_marker=False)


def _names(entry: Element) -> tuple[str, str | None]:
    key = entry.child_text("Key")
    if key is None:
        raise S3Error("MalformedXML", "An Object has no Key.")
    return key, entry.child_text("VersionId")


def _item(entry: Element, names: tuple[str, str | None]) -> DeleteItem:
    text, version_text = names
    key = text.encode()
    if not key:
        raise S3Error("UserKeyMustBeSpecified", "A key must be specified.")
    check_key(key)
    version = None
    if version_text:
        try:
            version = parse_version(version_text)
        except S3Error:
            raise S3Error("NoSuchVersion") from None
    condition = make_delete_condition(
        entry.child_text("ETag"), entry.child_text("LastModifiedTime"), entry.child_text("Size")
    )
    return DeleteItem(key, version, condition)


def _deleted_entry(key: str, version: str | None, result: DeleteResult) -> str:
    text = f"<Deleted><Key>{escape(key)}</Key>"
    if version:
        text += f"<VersionId>{escape(version)}</VersionId>"
    if result.delete_marker:
        text += "<DeleteMarker>true</DeleteMarker>"
        if (marker := result.version_id) is not None:
            text += f"<DeleteMarkerVersionId>{marker}</DeleteMarkerVersionId>"
    return text + "</Deleted>"


def _error_entry(key: str, version: str | None, error: S3Error) -> str:
    text = f"<Error><Key>{escape(key)}</Key>"
    if version:
        text += f"<VersionId>{escape(version)}</VersionId>"
    return f"{text}<Code>{error.code}</Code><Message>{escape(error.message)}</Message></Error>"
