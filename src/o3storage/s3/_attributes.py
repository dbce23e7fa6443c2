"""GetObjectAttributes. Source: S3 API reference."""

from __future__ import annotations

from typing import Final

from o3storage.catalog import VersionInfo, head_version, parts_of_version
from o3storage.http import Response
from o3storage.s3._answers import count_param, number_param, xml
from o3storage.s3._checksums import checksum_xml, part_checksum_xml
from o3storage.s3._conditions import check_read
from o3storage.s3._context import Context
from o3storage.s3._errors import NotModified, S3Error
from o3storage.s3._headers import version_header
from o3storage.s3._objects_get import read_anew
from o3storage.s3._times import http_date

KNOWN: Final = ("ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize")


async def get_object_attributes(ctx: Context) -> Response:
    return await read_anew(ctx, _attributes)


async def _attributes(ctx: Context) -> Response:
    text = ctx.headers.get("x-amz-object-attributes", "")
    asked = {name.strip() for name in text.split(",") if name.strip()}
    if not asked or not asked.issubset(KNOWN):
        raise S3Error(
            "InvalidArgument",
            "Invalid attribute name specified.",
            details=(("ArgumentName", "x-amz-object-attributes"), ("ArgumentValue", text)),
        )
    version = await ctx.query(head_version(ctx.bucket.bucket_id, ctx.key, ctx.version_param()))
    headers = [
        ("Last-Modified", http_date(version.modified_ns)),
        *version_header(ctx.bucket, version),
    ]
    if check_read(ctx.headers, version):
        raise NotModified([*headers, ("ETag", f'"{version.etag}"')])
    parts = []
    if "ETag" in asked:
        parts.append(f"<ETag>{version.etag}</ETag>")
    if "Checksum" in asked and version.checksum is not None:
        parts.append(f"<Checksum>{checksum_xml(version.checksum, version.part_count)}</Checksum>")
    if "ObjectParts" in asked and version.upload_id:
        parts.append(await _parts_xml(ctx, version))
    if "StorageClass" in asked:
        parts.append("<StorageClass>STANDARD</StorageClass>")
    if "ObjectSize" in asked:
        parts.append(f"<ObjectSize>{version.size_bytes}</ObjectSize>")
    return xml("GetObjectAttributesResponse", "".join(parts), headers)


async def _parts_xml(ctx: Context, version: VersionInfo) -> str:
    max_parts = count_param({"max-parts": ctx.headers.get("x-amz-max-parts", "")}, "max-parts")
    marker_text = ctx.headers.get("x-amz-part-number-marker", "0") or "0"
    marker = number_param(marker_text, "part-number-marker", 0, 0x7FFF_FFFF)
    spans = []
    if max_parts:
        # One more than shown tells whether there are more; a page is at most 1,000.
        limit = min(max_parts + 1, 1000)
        spans = await ctx.query(parts_of_version(ctx.bucket.bucket_id, version, marker, limit))
    truncated = len(spans) > max_parts
    if not truncated and max_parts and len(spans) == 1000:
        truncated = bool(
            await ctx.query(parts_of_version(ctx.bucket.bucket_id, version, spans[-1].number, 1))
        )
    spans = spans[:max_parts]
    last = spans[-1].number if spans else 0
    inner = [
        f"<Part>{part_checksum_xml(span.checksum)}<PartNumber>{span.number}</PartNumber>"
        f"<Size>{span.size_bytes}</Size></Part>"
        for span in spans
    ]
    return (
        f"<ObjectParts><IsTruncated>{'true' if truncated else 'false'}</IsTruncated>"
        f"<MaxParts>{max_parts}</MaxParts><NextPartNumberMarker>{last}</NextPartNumberMarker>"
        f"<PartNumberMarker>{marker}</PartNumberMarker>{''.join(inner)}"
        f"<PartsCount>{version.part_count}</PartsCount></ObjectParts>"
    )
