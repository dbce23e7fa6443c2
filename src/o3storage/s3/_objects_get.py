"""GetObject and HeadObject: versions, conditions, ranges, parts.

Sources: S3 API reference, GetObject and HeadObject; RFC 9110 sections 13 and 14.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Final

from o3storage.catalog import NoSuchVersion, VersionInfo, head_version, part_of_version
from o3storage.cluster import BodyMissing
from o3storage.http import Response
from o3storage.s3._answers import Header, number_param
from o3storage.s3._bodies import open_answer
from o3storage.s3._checksums import FULL_OBJECT
from o3storage.s3._conditions import check_read, range_holds
from o3storage.s3._context import Context
from o3storage.s3._errors import NotModified, S3Error
from o3storage.s3._headers import checksum_headers, object_headers, overrides

_RANGE: Final = re.compile(r"bytes=[ \t]*(\d*)-(\d*)[ \t]*\Z", re.ASCII | re.IGNORECASE)

_NOT_MODIFIED_KEEPS: Final = frozenset(
    {"ETag", "Last-Modified", "Cache-Control", "Expires", "x-amz-version-id"}
)

MAX_PART_NUMBER: Final = 10_000


TRIES: Final = 3
"""How often a read begins anew when its version was replaced before the first byte."""


async def get_object(ctx: Context) -> Response:
    return await read_anew(ctx, _get)


async def head_object(ctx: Context) -> Response:
    return await read_anew(ctx, _head)


async def read_anew(ctx: Context, read: Callable[[Context], Awaitable[Response]]) -> Response:
    """The answer, begun anew while the version that was found is replaced under it."""
    for _ in range(TRIES - 1):
        try:
            return await read(ctx)
        except BodyMissing:
            continue
        except NoSuchVersion:
            # Its parts are gone. (Who names a version is told that there is none.)
            if ctx.version_param() is not None:
                raise
    try:
        return await read(ctx)
    except NoSuchVersion as error:
        if ctx.version_param() is not None:
            raise
        raise BodyMissing("the object is replaced faster than it can be read") from error


async def _get(ctx: Context) -> Response:
    version, status, headers, offset, length = await _select(ctx)
    body = await open_answer(ctx, version, offset, length)
    return Response(status, headers, body, length)


async def _head(ctx: Context) -> Response:
    _, status, headers, _, length = await _select(ctx)
    return Response(status, headers, None, length)


async def _select(ctx: Context) -> tuple[VersionInfo, int, list[Header], int, int]:
    """(version, status, headers, offset, length) of what the request asks for."""
    bucket = ctx.bucket
    named = ctx.version_param() if ctx.params else None
    only_null = not bucket.versioning
    version = await ctx.query(head_version(bucket.bucket_id, ctx.key, named, only_null=only_null))
    headers = object_headers(bucket, version)
    if ctx.params:
        replaced = overrides(ctx.params, anonymous=ctx.identity.anonymous)
        if replaced:
            headers = [item for item in headers if item[0] not in replaced]
            headers.extend(replaced.items())
    if check_read(ctx.headers, version):
        raise NotModified([item for item in headers if item[0] in _NOT_MODIFIED_KEEPS])
    part = ctx.params.get("partNumber")
    asked = ctx.headers.get("range")
    if part is not None:
        if asked is not None:
            raise S3Error(
                "InvalidRequest", "Cannot specify both Range header and partNumber query parameter"
            )
        offset, length = await _part_span(ctx, version, part, headers)
        if version.size_bytes == 0:
            return version, 200, headers, 0, 0
        return version, 206, headers, offset, length
    if asked is not None and range_holds(ctx.headers, version):
        span = parse_range(asked, version.size_bytes)
        if span is not None:
            offset, length = span
            headers.append(_content_range(offset, length, version.size_bytes))
            return version, 206, headers, offset, length
    if "x-amz-checksum-mode" in ctx.headers:
        headers.extend(checksum_headers(version.checksum, version.part_count))
    return version, 200, headers, 0, version.size_bytes


def parse_range(text: str, size_bytes: int) -> tuple[int, int] | None:
    """(offset, length) of one byte range; None where the whole object is the answer.

    Raises S3Error InvalidRange where no byte of it exists.
    """
    found = _RANGE.match(text)
    if found is None:
        return None
    first, last = found.groups()
    if first:
        start = _position(first)
        end = _position(last) if last else size_bytes - 1
        if last and end < start:
            return None
        if start >= size_bytes:
            raise _unsatisfiable(text, size_bytes)
        return start, min(end, size_bytes - 1) - start + 1
    if not last:
        return None
    count = min(_position(last), size_bytes)
    if count == 0:
        raise _unsatisfiable(text, size_bytes)
    return size_bytes - count, count


def _position(digits: str) -> int:
    """The number, however long: beyond every object it makes no difference how far."""
    return int(digits.lstrip("0")[:20] or "0")


def _unsatisfiable(text: str, size_bytes: int) -> S3Error:
    return S3Error(
        "InvalidRange",
        details=(("RangeRequested", text), ("ActualObjectSize", str(size_bytes))),
        headers=(("Content-Range", f"bytes */{size_bytes}"),),
    )


def _content_range(offset: int, length: int, size_bytes: int) -> Header:
    return "Content-Range", f"bytes {offset}-{offset + length - 1}/{size_bytes}"


async def _part_span(
    ctx: Context, version: VersionInfo, text: str, headers: list[Header]
) -> tuple[int, int]:
    """Where a part lies; adds the headers that show it. An object that was not made by multipart
    is its own part 1."""
    number = number_param(text, "partNumber", 1, MAX_PART_NUMBER)
    if not version.upload_id:
        if number != 1:
            raise _no_such_part(number, 1)
        if version.size_bytes:
            headers.append(_content_range(0, version.size_bytes, version.size_bytes))
        if "x-amz-checksum-mode" in ctx.headers:
            headers.extend(checksum_headers(version.checksum))
        return 0, version.size_bytes
    span = await ctx.query(part_of_version(ctx.bucket.bucket_id, version, number))
    if span is None:
        raise _no_such_part(number, version.part_count)
    headers.append(("x-amz-mp-parts-count", str(version.part_count)))
    if span.size_bytes:
        headers.append(_content_range(span.offset, span.size_bytes, version.size_bytes))
    if "x-amz-checksum-mode" in ctx.headers and span.checksum is not None:
        algorithm, _, value = span.checksum
        kind = version.checksum.kind if version.checksum is not None else FULL_OBJECT
        headers.append(checksum_headers((algorithm, FULL_OBJECT, value))[0])
        headers.append(("x-amz-checksum-type", kind))
    return span.offset, span.size_bytes


def _no_such_part(number: int, count: int) -> S3Error:
    return S3Error(
        "InvalidPartNumber",
        details=(("PartNumberRequested", str(number)), ("ActualPartCount", str(count))),
    )
