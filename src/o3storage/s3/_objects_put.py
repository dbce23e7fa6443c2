"""PutObject. Source: S3 API reference, PutObject; user guide, "Conditional writes"."""

from __future__ import annotations

from o3storage.catalog import (
    BucketInfo,
    CatalogError,
    Command,
    NoSuchKey,
    PreconditionFailed,
    PutObject,
    PutResult,
    VersionInfo,
    WriteCondition,
    head_version,
)
from o3storage.http import Response
from o3storage.s3._answers import Header, empty
from o3storage.s3._bodies import StoredBody, store_body
from o3storage.s3._conditions import check_before_body, write_condition
from o3storage.s3._context import Context
from o3storage.s3._errors import S3Error
from o3storage.s3._headers import (
    checksum_headers,
    stored_headers,
    tagging_header,
    user_metadata,
)
from o3storage.s3._payload import open_body


async def put_object(ctx: Context) -> Response:
    headers = ctx.headers
    if not getattr(ctx.request.body, "declared", True):
        raise S3Error("MissingContentLength")
    body = open_body(ctx.request, ctx.identity, streaming=True)
    system = stored_headers(headers)
    metadata = user_metadata(headers)
    tags = tagging_header(headers)
    condition = write_condition(headers)
    if condition is not None:
        await check_condition(ctx, condition)
    stored = await store_body(ctx, body)
    result = await commit_version(
        ctx, stored, system=system, metadata=metadata, tags=tags, condition=condition
    )
    answer: list[Header] = [
        ("ETag", f'"{stored.etag}"'),
        *checksum_headers(stored.checksum),
    ]
    if (version_id := result.version_id) is not None:
        answer.append(("x-amz-version-id", version_id))
    answer.extend(encryption_echo(headers))
    return empty(200, answer)


async def current_version(ctx: Context) -> VersionInfo | None:
    """The current version of the request's key, if it has one."""
    try:
        return await ctx.query(head_version(ctx.bucket.bucket_id, ctx.key))
    except NoSuchKey:
        return None


async def check_condition(ctx: Context, condition: WriteCondition) -> None:
    """Refuse from the head what a look at the current version already refuses."""
    check_before_body(condition, await current_version(ctx))


async def commit_version(
    ctx: Context,
    stored: StoredBody,
    *,
    system: dict[str, str],
    metadata: dict[str, str],
    tags: list[tuple[str, str]],
    condition: WriteCondition | None,
) -> PutResult:
    """Make a version of a stored body; the body is discarded if that is refused."""

    def make(bucket: BucketInfo) -> Command:
        stored.modified_ns = ctx.now_ns()
        return PutObject(
            bucket.bucket_id,
            bucket.epoch,
            ctx.key,
            stored.modified_ns,
            ctx.owner,
            stored.size_bytes,
            stored.etag,
            stored.blake3,
            stored.ref,
            stored.started_ns,
            stored.checksum,
            system,
            metadata,
            tags,
            condition,
        )

    try:
        result: PutResult = await ctx.write(make, stored.frames)
    except (PreconditionFailed, NoSuchKey) as refusal:
        stored.discard()
        raise lost_race(condition, refusal) from None
    except BaseException:
        stored.discard()
        raise
    return result


def lost_race(condition: WriteCondition | None, refusal: CatalogError) -> Exception:
    """What to answer when a condition held at the head of the request and not when it was applied.

    An If-Match that lost may be tried again against the new version: 409. An If-None-Match is told
    412, what it would be told if it came now.
    """
    if condition is not None and condition.if_match is not None:
        return S3Error("ConditionalRequestConflict", details=(("Condition", "If-Match"),))
    return refusal


def encryption_echo(headers: dict[str, str]) -> list[Header]:
    """x-amz-server-side-encryption as it was asked for: everything is sealed anyway."""
    value = headers.get("x-amz-server-side-encryption")
    return [] if value is None else [("x-amz-server-side-encryption", value)]
