"""CopyObject, and the source of UploadPartCopy. Source: S3 API reference, CopyObject.

A copy makes new frames: frames belong to one version. The copy of a multipart object is a single
object, with the MD5 of its bytes as ETag.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from urllib.parse import unquote_to_bytes

from o3storage.catalog import (
    BucketInfo,
    MethodNotAllowed,
    NoSuchVersion,
    VersionInfo,
    get_bucket,
    head_version,
)
from o3storage.cluster import BodyMissing
from o3storage.http import Response
from o3storage.s3._answers import Header, xml
from o3storage.s3._bodies import StoredBody, empty_body, read_version, store_body
from o3storage.s3._checksums import ALGORITHMS, Algorithm, find_algorithm, part_checksum_xml
from o3storage.s3._conditions import check_copy_source, write_condition
from o3storage.s3._context import Context, parse_version
from o3storage.s3._errors import S3Error
from o3storage.s3._headers import stored_headers, tagging_header, user_metadata
from o3storage.s3._names import check_bucket, check_key
from o3storage.s3._node import Buffer
from o3storage.s3._objects_put import check_condition, commit_version, encryption_echo
from o3storage.s3._payload import MAX_PUT_BYTES, RequestBody
from o3storage.s3._times import iso_time


class CopySource:
    """The version that x-amz-copy-source names, open to the sender."""

    __slots__ = ("bucket", "named_version", "version")

    def __init__(self, bucket: BucketInfo, version: VersionInfo, named_version: bool) -> None:
        self.bucket = bucket
        self.version = version
        self.named_version = named_version

    def headers(self) -> list[Header]:
        if not self.bucket.versioning:
            return []
        return [("x-amz-copy-source-version-id", self.version.version_id)]


async def copy_object(ctx: Context) -> Response:
    headers = ctx.headers
    replace_metadata = _directive(headers, "x-amz-metadata-directive")
    replace_tags = _directive(headers, "x-amz-tagging-directive")
    wanted = headers.get("x-amz-checksum-algorithm")
    algorithm = None if wanted is None else find_algorithm(wanted)
    if replace_metadata:
        system, metadata = stored_headers(headers), user_metadata(headers)
    tags = tagging_header(headers) if replace_tags else []
    if not replace_tags and headers.get("x-amz-tagging"):
        raise S3Error("InvalidArgument", "x-amz-tagging needs x-amz-tagging-directive: REPLACE.")
    condition = write_condition(headers)
    source = await open_source(ctx)
    version = source.version
    same = source.bucket.bucket_id == ctx.bucket.bucket_id and version.key == ctx.key
    changes = replace_metadata or algorithm or "x-amz-server-side-encryption" in headers
    if same and not source.named_version and not changes:
        raise S3Error(
            "InvalidRequest",
            "This copy request is illegal because it is trying to copy an object to itself without "
            "changing the object's metadata, storage class, website redirect location or "
            "encryption attributes.",
        )
    if version.size_bytes > MAX_PUT_BYTES:
        raise S3Error(
            "InvalidRequest",
            "The specified copy source is larger than the maximum allowable size for a copy "
            f"source: {MAX_PUT_BYTES}",
        )
    if not replace_metadata:
        system, metadata = dict(version.headers), version.metadata
        if (encryption := headers.get("x-amz-server-side-encryption")) is not None:
            system["x-amz-server-side-encryption"] = encryption
    if not replace_tags:
        tags = version.tags
    if condition is not None:
        await check_condition(ctx, condition)
    if algorithm is None and version.checksum is not None:
        algorithm = ALGORITHMS[version.checksum.algorithm]
    stored = await copy_bytes(ctx, source, 0, version.size_bytes, algorithm)
    result = await commit_version(
        ctx, stored, system=system, metadata=metadata, tags=tags, condition=condition
    )
    answer = [*source.headers(), *encryption_echo(headers)]
    if (version_id := result.version_id) is not None:
        answer.append(("x-amz-version-id", version_id))
    return xml("CopyObjectResult", copy_result(stored), answer)


def copy_result(stored: StoredBody) -> str:
    """The content of CopyObjectResult and CopyPartResult."""
    return (
        f"<LastModified>{iso_time(stored.modified_ns)}</LastModified>"
        f"<ETag>&quot;{stored.etag}&quot;</ETag>"
        f"{part_checksum_xml(stored.checksum)}"
        f"<ChecksumType>{stored.checksum.kind}</ChecksumType>"
    )


def _directive(headers: dict[str, str], name: str) -> bool:
    """Whether a directive says REPLACE. Raises S3Error InvalidArgument."""
    value = headers.get(name, "COPY")
    if value not in ("COPY", "REPLACE"):
        raise S3Error(
            "InvalidArgument",
            f"Unknown {name[6:].replace('-', ' ')}.",
            details=(("ArgumentName", name), ("ArgumentValue", value)),
        )
    return value == "REPLACE"


def parse_source(text: str) -> tuple[str, bytes, int | None]:
    """(bucket, key, version) of x-amz-copy-source. Raises S3Error."""
    raw = text.encode("latin-1")
    path, _, version_text = raw.partition(b"?versionId=")
    if path.startswith(b"arn:"):
        raise S3Error("NotImplemented", "Copies from access points are not implemented.")
    bucket, _, key = unquote_to_bytes(path).removeprefix(b"/").partition(b"/")
    if not bucket or not key:
        raise S3Error(
            "InvalidArgument",
            "Copy Source must mention the source bucket and key: sourcebucket/sourcekey",
        )
    name = bucket.decode("utf-8", "replace")
    check_bucket(name)
    check_key(key)
    version = None
    if version_text or b"?versionId=" in raw:
        version = parse_version(unquote_to_bytes(version_text).decode("utf-8", "replace"))
    return name, key, version


async def open_source(ctx: Context) -> CopySource:
    """Find the source, check access and conditions. Raises S3Error and CatalogError."""
    name, key, named = parse_source(ctx.headers["x-amz-copy-source"])
    bucket = ctx.bucket if name == ctx.bucket_name else await ctx.query(get_bucket(name))
    check_access_of_source(ctx, bucket)
    try:
        version = await ctx.query(head_version(bucket.bucket_id, key, named))
    except MethodNotAllowed:
        raise S3Error(
            "InvalidRequest",
            "The source of a copy request may not specifically refer to a delete marker by "
            "version id.",
        ) from None
    check_copy_source(ctx.headers, version)
    return CopySource(bucket, version, named is not None)


def check_access_of_source(ctx: Context, bucket: BucketInfo) -> None:
    """Raises S3Error AccessDenied."""
    if bucket.owner != ctx.owner:
        raise S3Error("AccessDenied")
    expected = ctx.headers.get("x-amz-source-expected-bucket-owner")
    if expected is not None and expected != bucket.owner:
        raise S3Error("AccessDenied", "The source bucket does not belong to the expected owner.")


class _PiecesSource:
    """A ByteSource over pieces of a version."""

    __slots__ = ("_at", "_piece", "_pieces", "length")

    def __init__(self, pieces: AsyncIterator[Buffer], length: int) -> None:
        self._pieces = pieces
        self._piece = memoryview(b"")
        self._at = 0
        self.length: int | None = length

    async def read_into(self, view: memoryview) -> int:
        while self._at == len(self._piece):
            try:
                self._piece = memoryview(await anext(self._pieces))
            except StopAsyncIteration:
                return 0
            self._at = 0
        count = min(len(view), len(self._piece) - self._at)
        view[:count] = self._piece[self._at : self._at + count]
        self._at += count
        return count


async def copy_bytes(
    ctx: Context, source: CopySource, offset: int, length: int, algorithm: Algorithm | None
) -> StoredBody:
    """A range of the source as a stored body of its own. Raises BodyMissing, also where the parts
    of a source that was not named by its version are gone: it was replaced."""
    if length == 0:
        return empty_body(algorithm)
    pieces = read_version(ctx, source.bucket.bucket_id, source.version, offset, length)
    body = RequestBody(
        _PiecesSource(pieces, length),
        length,
        md5=None,
        sha256=None,
        pending=None,
        algorithm=None,
        value=None,
    )
    try:
        return await store_body(ctx, body, algorithm)
    except NoSuchVersion as error:
        if source.named_version:
            raise
        raise BodyMissing("the source is replaced while it is copied") from error
