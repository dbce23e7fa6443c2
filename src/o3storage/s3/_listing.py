"""ListObjects V1 and V2, ListObjectVersions, ListMultipartUploads. Source: S3 API reference.

One page is one query, at one instant. Entries are written straight from the catalog's tuples: a
page of 1,000 keys is the most expensive answer that small requests get.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from typing import Final, TypeVar

from o3storage.catalog import (
    ListEntry,
    UploadEntry,
    VersionEntry,
    list_objects,
    list_uploads,
    list_versions,
    version_id,
)
from o3storage.http import Response
from o3storage.runtime import let_others
from o3storage.s3._answers import count_param, xml
from o3storage.s3._context import Context, parse_version
from o3storage.s3._errors import S3Error
from o3storage.s3._times import MILLISECONDS, SECOND_NS, Seconds, iso_time, iso_times
from o3storage.s3._xml import escape, escape_bytes, plain_all, url_encode

STEP_ENTRIES: Final = 256
"""Entries written in one step of the event loop: an eighth of a millisecond, where no key has to be
encoded."""

STEP_TEXTS: Final = 128
"""Keys written in one step of the event loop where they have to be encoded: at most 15 ms, for keys
of 1,024 control characters."""

E = TypeVar("E")

_TOKEN_MARK: Final = b"\x01"
"""First byte of a continuation token: its version."""


async def list_objects_v1(ctx: Context) -> Response:
    params = ctx.params
    encode = encoder(params)
    prefix, delimiter = _text(params, "prefix"), _text(params, "delimiter")
    marker = _text(params, "marker")
    max_keys = count_param(params, "max-keys")
    page = await ctx.page(list_objects(ctx.bucket.bucket_id, prefix, delimiter, marker, max_keys))
    truncated = page.truncated and max_keys > 0
    parts = [
        f"<Name>{escape(ctx.bucket_name)}</Name><Prefix>{encode(prefix)}</Prefix>"
        f"<Marker>{encode(marker)}</Marker>"
    ]
    # An empty page can be truncated (it passed many delete markers): it has no key to go on from.
    if truncated and (delimiter or not page.entries):
        parts.append(f"<NextMarker>{encode(page.next_after)}</NextMarker>")
    parts.append(_limits(max_keys, delimiter, params, encode, truncated))
    await _write_entries(parts, page.entries, encode, with_owner=True)
    await _write_prefixes(parts, page.common_prefixes, encode)
    return xml("ListBucketResult", parts, _region(ctx))


async def list_objects_v2(ctx: Context) -> Response:
    params = ctx.params
    if params["list-type"] != "2":
        raise S3Error("InvalidArgument", "The value of list-type must be 2.")
    encode = encoder(params)
    prefix, delimiter = _text(params, "prefix"), _text(params, "delimiter")
    start_after = _text(params, "start-after")
    max_keys = count_param(params, "max-keys")
    token = params.get("continuation-token")
    after = start_after if token is None else _read_token(token)
    with_owner = params.get("fetch-owner") == "true"
    page = await ctx.page(
        list_objects(
            ctx.bucket.bucket_id, prefix, delimiter, after, max_keys, with_owner=with_owner
        )
    )
    truncated = page.truncated and max_keys > 0
    parts = [f"<Name>{escape(ctx.bucket_name)}</Name><Prefix>{encode(prefix)}</Prefix>"]
    if start_after:
        parts.append(f"<StartAfter>{encode(start_after)}</StartAfter>")
    if token is not None:
        parts.append(f"<ContinuationToken>{escape(token)}</ContinuationToken>")
    if truncated:
        next_token = _make_token(page.next_after)
        parts.append(f"<NextContinuationToken>{next_token}</NextContinuationToken>")
    count = len(page.entries) + len(page.common_prefixes)
    parts.append(f"<KeyCount>{count}</KeyCount>")
    parts.append(_limits(max_keys, delimiter, params, encode, truncated))
    await _write_entries(parts, page.entries, encode, with_owner=with_owner)
    await _write_prefixes(parts, page.common_prefixes, encode)
    return xml("ListBucketResult", parts, _region(ctx))


async def list_object_versions(ctx: Context) -> Response:
    params = ctx.params
    encode = encoder(params)
    prefix, delimiter = _text(params, "prefix"), _text(params, "delimiter")
    key_marker = _text(params, "key-marker")
    version_marker = params.get("version-id-marker", "")
    if version_marker and not key_marker:
        raise S3Error(
            "InvalidArgument", "A version-id marker cannot be specified without a key marker."
        )
    max_keys = count_param(params, "max-keys")
    marker = parse_version(version_marker) if version_marker else None
    page = await ctx.page(
        list_versions(
            ctx.bucket.bucket_id,
            prefix,
            delimiter,
            key_marker=key_marker,
            version_marker=marker,
            max_keys=max_keys,
        )
    )
    truncated = page.truncated and max_keys > 0
    parts = [
        f"<Name>{escape(ctx.bucket_name)}</Name><Prefix>{encode(prefix)}</Prefix>"
        f"<KeyMarker>{encode(key_marker)}</KeyMarker>"
        f"<VersionIdMarker>{escape(version_marker)}</VersionIdMarker>"
    ]
    if truncated:
        parts.append(f"<NextKeyMarker>{encode(page.next_key_marker)}</NextKeyMarker>")
        if text := page.next_version_marker_text:
            parts.append(f"<NextVersionIdMarker>{text}</NextVersionIdMarker>")
    parts.append(_limits(max_keys, delimiter, params, encode, truncated))
    owner = owner_xml("Owner", ctx.bucket.owner)
    for step in in_steps(page.entries):
        if step is not page.entries:
            await let_others()
        keys = await _encoded([entry[0] for entry in step], encode)
        times = iso_times([entry[5] for entry in step])
        parts.append("".join(map(_version_entry, step, keys, times, repeat(owner))))
    await _write_prefixes(parts, page.common_prefixes, encode)
    return xml("ListVersionsResult", parts, _region(ctx))


async def list_multipart_uploads(ctx: Context) -> Response:
    params = ctx.params
    encode = encoder(params)
    prefix, delimiter = _text(params, "prefix"), _text(params, "delimiter")
    key_marker = _text(params, "key-marker")
    upload_text = params.get("upload-id-marker", "") if key_marker else ""
    upload_marker = b""
    if upload_text:
        upload_marker = parse_upload_id(upload_text) or b""
        if not upload_marker:
            raise S3Error("InvalidArgument", "Invalid uploadId marker")
    max_uploads = count_param(params, "max-uploads")
    page = await ctx.page(
        list_uploads(
            ctx.bucket.bucket_id,
            prefix,
            delimiter,
            key_marker=key_marker,
            upload_marker=upload_marker,
            max_uploads=max_uploads,
        )
    )
    truncated = page.truncated and max_uploads > 0
    parts = [
        f"<Bucket>{escape(ctx.bucket_name)}</Bucket><KeyMarker>{encode(key_marker)}</KeyMarker>"
        f"<UploadIdMarker>{escape(upload_text)}</UploadIdMarker>"
    ]
    if truncated:
        parts.append(
            f"<NextKeyMarker>{encode(page.next_key_marker)}</NextKeyMarker>"
            f"<NextUploadIdMarker>{page.next_upload_marker.hex()}</NextUploadIdMarker>"
        )
    if delimiter:
        parts.append(f"<Delimiter>{encode(delimiter)}</Delimiter>")
    parts.append(f"<Prefix>{encode(prefix)}</Prefix>")
    if "encoding-type" in params:
        parts.append("<EncodingType>url</EncodingType>")
    parts.append(
        f"<MaxUploads>{max_uploads}</MaxUploads>"
        f"<IsTruncated>{'true' if truncated else 'false'}</IsTruncated>"
    )
    for step in in_steps(page.entries):
        if step is not page.entries:
            await let_others()
        keys = await _encoded([entry[0] for entry in step], encode)
        parts += map(_upload_entry, step, keys)
    await _write_prefixes(parts, page.common_prefixes, encode)
    return xml("ListMultipartUploadsResult", parts)


def parse_upload_id(text: str) -> bytes | None:
    """The 16 bytes of an upload id, None for text that never was one."""
    if len(text) != 32 or not text.isascii() or text != text.lower():
        return None
    try:
        return bytes.fromhex(text)
    except ValueError:
        return None


def owner_xml(name: str, owner: str) -> str:
    text = escape(owner)
    return f"<{name}><ID>{text}</ID><DisplayName>{text}</DisplayName></{name}>"


def encoder(params: dict[str, str]) -> Callable[[bytes], str]:
    """How keys are written: escaped, or with `encoding-type=url` percent-encoded."""
    asked = params.get("encoding-type")
    if asked is None:
        return escape_bytes
    if asked.lower() != "url":
        raise S3Error(
            "InvalidArgument",
            "Invalid Encoding Method specified in Request",
            details=(("ArgumentName", "encoding-type"), ("ArgumentValue", asked)),
        )
    return url_encode


def _text(params: dict[str, str], name: str) -> bytes:
    value = params.get(name)
    return b"" if value is None else value.encode()


def _limits(
    count: int,
    delimiter: bytes,
    params: dict[str, str],
    encode: Callable[[bytes], str],
    truncated: bool,
) -> str:
    text = f"<MaxKeys>{count}</MaxKeys>"
    if delimiter:
        text += f"<Delimiter>{encode(delimiter)}</Delimiter>"
    if "encoding-type" in params:
        text += "<EncodingType>url</EncodingType>"
    return f"{text}<IsTruncated>{'true' if truncated else 'false'}</IsTruncated>"


async def _encoded(texts: Sequence[bytes], encode: Callable[[bytes], str]) -> Sequence[str]:
    """`encode` of each, in steps: a thousand keys of a kilobyte that is not ASCII take 50 ms."""
    found = plain_all(texts, encode)
    if found is not None:
        return found
    found = []
    for at in range(0, len(texts), STEP_TEXTS):
        if at:
            await let_others()
        found += map(encode, texts[at : at + STEP_TEXTS])
    return found


def in_steps(entries: list[E]) -> Iterator[list[E]]:
    """The entries by what one step writes."""
    if len(entries) <= STEP_ENTRIES:
        return iter((entries,) if entries else ())
    return (entries[at : at + STEP_ENTRIES] for at in range(0, len(entries), STEP_ENTRIES))


async def _write_entries(
    parts: list[str],
    entries: list[ListEntry],
    encode: Callable[[bytes], str],
    *,
    with_owner: bool,
) -> None:
    for step in in_steps(entries):
        if step is not entries:
            await let_others()
        texts, times_ns, etags, sizes, owners, algorithms, kinds = zip(*step, strict=True)
        keys = await _encoded(texts, encode)
        # What follows an ETag and a size is mostly the same for all.
        checksums: Iterable[str]
        ends: Iterable[str]
        algorithm, kind, owner = algorithms[0], kinds[0], owners[0]
        if algorithms.count(algorithm) == kinds.count(kind) == len(step):
            checksums = repeat(_checksum_xml(algorithm, kind))
        else:
            checksums = map(_checksum_xml, algorithms, kinds)
        if owners.count(owner) == len(step):
            ends = repeat(_contents_end(owner, with_owner))
        else:
            ends = map(_contents_end, owners, repeat(with_owner))
        seconds = Seconds()
        written = [
            f"<Contents><Key>{key}</Key><LastModified>{seconds[time_ns // SECOND_NS]}"
            f"{MILLISECONDS[time_ns // 1_000_000 % 1000]}</LastModified><ETag>&quot;{etag}"
            f"&quot;</ETag>{checksum}<Size>{size_bytes}{end}"
            for key, time_ns, etag, checksum, size_bytes, end in zip(
                keys, times_ns, etags, checksums, sizes, ends, strict=False
            )
        ]
        parts.append("".join(written))


def _contents_end(owner: str, with_owner: bool) -> str:
    who = owner_xml("Owner", owner) if with_owner else ""
    return f"</Size>{who}<StorageClass>STANDARD</StorageClass></Contents>"


def _checksum_xml(algorithm: str, kind: str) -> str:
    if not algorithm:
        return ""
    return f"<ChecksumAlgorithm>{algorithm}</ChecksumAlgorithm><ChecksumType>{kind}</ChecksumType>"


def _version_entry(entry: VersionEntry, key: str, time: str, owner: str) -> str:
    _, order, is_null, is_latest, marker, _, etag, size_bytes, _, algorithm, kind = entry
    text = "null" if is_null else version_id(order)
    name = "DeleteMarker" if marker else "Version"
    head = (
        f"<{name}><Key>{key}</Key><VersionId>{text}</VersionId>"
        f"<IsLatest>{'true' if is_latest else 'false'}</IsLatest>"
        f"<LastModified>{time}</LastModified>"
    )
    if marker:
        return f"{head}{owner}</{name}>"
    checksum = _checksum_xml(algorithm, kind)
    return (
        f"{head}<ETag>&quot;{etag}&quot;</ETag>{checksum}<Size>{size_bytes}</Size>{owner}"
        f"<StorageClass>STANDARD</StorageClass></{name}>"
    )


def _upload_entry(entry: UploadEntry, key: str) -> str:
    _, upload_id, initiated_ns, owner, algorithm, kind = entry
    return (
        f"<Upload><Key>{key}</Key><UploadId>{upload_id.hex()}</UploadId>"
        f"{owner_xml('Initiator', owner)}{owner_xml('Owner', owner)}"
        f"<StorageClass>STANDARD</StorageClass><Initiated>{iso_time(initiated_ns)}</Initiated>"
        f"{_checksum_xml(algorithm, kind)}</Upload>"
    )


async def _write_prefixes(
    parts: list[str], prefixes: list[bytes], encode: Callable[[bytes], str]
) -> None:
    parts += [
        f"<CommonPrefixes><Prefix>{prefix}</Prefix></CommonPrefixes>"
        for prefix in await _encoded(prefixes, encode)
    ]


def _make_token(after: bytes) -> str:
    return urlsafe_b64encode(_TOKEN_MARK + after).decode("ascii")


def _read_token(text: str) -> bytes:
    """The key that a page starts after. Raises S3Error InvalidArgument."""
    try:
        raw = urlsafe_b64decode(text.encode("ascii"))
    except (Base64Error, UnicodeEncodeError, ValueError):
        raw = b""
    if raw[:1] != _TOKEN_MARK:
        raise S3Error(
            "InvalidArgument",
            "The continuation token provided is incorrect",
            details=(("ArgumentName", "continuation-token"),),
        )
    return raw[1:]


def _region(ctx: Context) -> list[tuple[str, str]]:
    return [("x-amz-bucket-region", ctx.bucket.region)]
