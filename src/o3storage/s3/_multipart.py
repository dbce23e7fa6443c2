"""Multipart uploads: create, upload part, upload part copy, abort, list parts.

Source: S3 API reference; user guide, "Uploading and copying objects using multipart upload".
Completion stands in `_complete.py`.
"""

from __future__ import annotations

import re
from typing import Final

from o3storage.catalog import (
    AbortUpload,
    BucketInfo,
    Command,
    CreateUpload,
    NoSuchUpload,
    PutPart,
    UploadInfo,
    get_upload,
    list_parts,
    new_upload_id,
)
from o3storage.http import Response
from o3storage.runtime import let_others
from o3storage.s3._answers import Header, count_param, empty, number_param, xml
from o3storage.s3._bodies import StoredBody, store_body
from o3storage.s3._checksums import (
    ALGORITHMS,
    Algorithm,
    check_kind,
    default_kind,
    find_algorithm,
    part_checksum_xml,
)
from o3storage.s3._context import Context
from o3storage.s3._copy import copy_bytes, copy_result, open_source
from o3storage.s3._errors import S3Error
from o3storage.s3._headers import (
    checksum_headers,
    stored_headers,
    tagging_header,
    user_metadata,
)
from o3storage.s3._listing import in_steps, owner_xml, parse_upload_id
from o3storage.s3._objects_put import encryption_echo
from o3storage.s3._payload import MAX_PUT_BYTES, open_body
from o3storage.s3._times import iso_time
from o3storage.s3._xml import escape, escape_bytes

MAX_PART_NUMBER: Final = 10_000

_COPY_RANGE: Final = re.compile(r"bytes=(\d{1,19})-(\d{1,19})\Z")


async def create_multipart_upload(ctx: Context) -> Response:
    headers = ctx.headers
    system, metadata, tags = (
        stored_headers(headers),
        user_metadata(headers),
        tagging_header(headers),
    )
    name = headers.get("x-amz-checksum-algorithm")
    kind = headers.get("x-amz-checksum-type", "")
    if name is None:
        if kind:
            raise S3Error(
                "InvalidRequest",
                "The x-amz-checksum-type header can only be used with the "
                "x-amz-checksum-algorithm header.",
            )
        algorithm = ""
    else:
        chosen = find_algorithm(name)
        algorithm = chosen.name
        kind = kind or default_kind(chosen)
        check_kind(chosen, kind)
    upload_id = new_upload_id(ctx.now_ns(), ctx.service.entropy.random_bytes(8))

    def make(bucket: BucketInfo) -> Command:
        return CreateUpload(
            bucket.bucket_id,
            bucket.epoch,
            ctx.key,
            upload_id,
            ctx.now_ns(),
            ctx.owner,
            system,
            metadata,
            tags,
            algorithm,
            kind,
        )

    await ctx.write(make)
    answer: list[Header] = encryption_echo(headers)
    if algorithm:
        answer += [("x-amz-checksum-algorithm", algorithm), ("x-amz-checksum-type", kind)]
    return xml(
        "InitiateMultipartUploadResult",
        f"<Bucket>{escape(ctx.bucket_name)}</Bucket><Key>{escape_bytes(ctx.key)}</Key>"
        f"<UploadId>{upload_id.hex()}</UploadId>",
        answer,
    )


def upload_param(ctx: Context) -> bytes:
    """The upload id of the request. Raises S3Error NoSuchUpload."""
    upload_id = parse_upload_id(ctx.params["uploadId"])
    if upload_id is None:
        raise S3Error("NoSuchUpload", details=(("UploadId", ctx.params["uploadId"]),))
    return upload_id


async def open_upload(ctx: Context, upload_id: bytes) -> UploadInfo:
    """An upload that takes parts. Raises CatalogError NoSuchUpload."""
    upload = await ctx.query(get_upload(ctx.bucket.bucket_id, ctx.key, upload_id))
    if upload.completed is not None:
        raise NoSuchUpload(ctx.key, upload_id)
    return upload


def _part_number(ctx: Context) -> int:
    return number_param(ctx.params.get("partNumber", ""), "partNumber", 1, MAX_PART_NUMBER)


async def upload_part(ctx: Context) -> Response:
    upload_id, number = upload_param(ctx), _part_number(ctx)
    if not getattr(ctx.request.body, "declared", True):
        raise S3Error("MissingContentLength")
    body = open_body(ctx.request, ctx.identity, streaming=True)
    upload = await open_upload(ctx, upload_id)
    algorithm = _algorithm_of(upload, body.algorithm)
    stored = await store_body(ctx, body, algorithm)
    await _commit_part(ctx, upload_id, number, stored)
    answer = [
        ("ETag", f'"{stored.etag}"'),
        *checksum_headers(stored.checksum)[:1],
        *encryption_echo(upload.headers),
    ]
    return empty(200, answer)


def _algorithm_of(upload: UploadInfo, given: Algorithm | None) -> Algorithm | None:
    """The checksum that a part keeps: the upload's, else the client's. Raises S3Error."""
    if not upload.checksum_algorithm:
        return given
    declared = ALGORITHMS[upload.checksum_algorithm]
    if given is not None and given is not declared:
        raise S3Error(
            "InvalidRequest",
            "Checksum Type mismatch occurred, expected checksum Type: "
            f"{declared.name.lower()}, actual checksum Type: {given.name.lower()}",
        )
    return declared


async def _commit_part(ctx: Context, upload_id: bytes, number: int, stored: StoredBody) -> None:
    def make(bucket: BucketInfo) -> Command:
        stored.modified_ns = ctx.now_ns()
        return PutPart(
            bucket.bucket_id,
            bucket.epoch,
            ctx.key,
            upload_id,
            number,
            stored.modified_ns,
            stored.size_bytes,
            stored.etag,
            stored.blake3,
            stored.ref,
            stored.started_ns,
            stored.checksum,
        )

    try:
        await ctx.write(make, stored.frames)
    except BaseException:
        stored.discard()
        raise


async def upload_part_copy(ctx: Context) -> Response:
    upload_id, number = upload_param(ctx), _part_number(ctx)
    upload = await open_upload(ctx, upload_id)
    source = await open_source(ctx)
    offset, length = _copy_range(ctx.headers, source.version.size_bytes)
    if length > MAX_PUT_BYTES:
        raise S3Error(
            "InvalidRequest",
            "The specified copy source is larger than the maximum allowable size for a copy "
            f"source: {MAX_PUT_BYTES}",
        )
    algorithm = _algorithm_of(upload, None)
    stored = await copy_bytes(ctx, source, offset, length, algorithm)
    await _commit_part(ctx, upload_id, number, stored)
    return xml("CopyPartResult", copy_result(stored), source.headers())


def _copy_range(headers: dict[str, str], size_bytes: int) -> tuple[int, int]:
    """(offset, length) of x-amz-copy-source-range. Raises S3Error InvalidArgument."""
    text = headers.get("x-amz-copy-source-range")
    if text is None:
        return 0, size_bytes
    found = _COPY_RANGE.match(text)
    if found is None:
        raise S3Error(
            "InvalidArgument",
            "The x-amz-copy-source-range value must be of the form bytes=first-last where first "
            "and last are the zero-based offsets of the first and last bytes to copy",
            details=(("ArgumentName", "x-amz-copy-source-range"), ("ArgumentValue", text)),
        )
    first, last = int(found[1]), int(found[2])
    if first > last or last >= size_bytes:
        raise S3Error(
            "InvalidArgument",
            f"Range specified is not valid for source object of size: {size_bytes}",
            details=(("ArgumentName", "x-amz-copy-source-range"), ("ArgumentValue", text)),
        )
    return first, last - first + 1


async def abort_multipart_upload(ctx: Context) -> Response:
    upload_id = upload_param(ctx)

    def make(bucket: BucketInfo) -> Command:
        return AbortUpload(bucket.bucket_id, bucket.epoch, ctx.key, upload_id, ctx.now_ns())

    await ctx.write(make)
    return empty(204)


async def list_upload_parts(ctx: Context) -> Response:
    upload_id = upload_param(ctx)
    max_parts = count_param(ctx.params, "max-parts")
    marker_text = ctx.params.get("part-number-marker", "0") or "0"
    marker = number_param(marker_text, "part-number-marker", 0, 0x7FFF_FFFF)
    page = await ctx.page(list_parts(ctx.bucket.bucket_id, ctx.key, upload_id, marker, max_parts))
    upload = page.upload
    truncated = page.truncated and max_parts > 0
    last = page.parts[-1].number if page.parts else 0
    parts = [
        f"<Bucket>{escape(ctx.bucket_name)}</Bucket><Key>{escape_bytes(ctx.key)}</Key>"
        f"<UploadId>{upload_id.hex()}</UploadId>"
        f"{owner_xml('Initiator', upload.owner)}{owner_xml('Owner', upload.owner)}"
        "<StorageClass>STANDARD</StorageClass>"
        f"<PartNumberMarker>{marker}</PartNumberMarker>"
        f"<NextPartNumberMarker>{last}</NextPartNumberMarker><MaxParts>{max_parts}</MaxParts>"
        f"<IsTruncated>{'true' if truncated else 'false'}</IsTruncated>"
    ]
    if upload.checksum_algorithm:
        parts.append(
            f"<ChecksumAlgorithm>{upload.checksum_algorithm}</ChecksumAlgorithm>"
            f"<ChecksumType>{upload.checksum_type}</ChecksumType>"
        )
    for step in in_steps(page.parts):
        if step is not page.parts:
            await let_others()
        parts += [
            f"<Part><PartNumber>{part.number}</PartNumber>"
            f"<LastModified>{iso_time(part.modified_ns)}</LastModified>"
            f"<ETag>&quot;{part.etag}&quot;</ETag><Size>{part.size_bytes}</Size>"
            f"{part_checksum_xml(part.checksum)}</Part>"
            for part in step
        ]
    return xml("ListPartsResult", parts)
