"""Headers of objects: what is stored from a request, and what an answer shows of it.

Source: Amazon S3 user guide, "Working with object metadata": user metadata is limited to 2 KB, and
values that are not US-ASCII are answered as RFC 2047 encoded words.
"""

from __future__ import annotations

import re
from base64 import b64encode
from binascii import Error as Base64Error
from binascii import a2b_base64, a2b_qp
from typing import Final
from urllib.parse import parse_qsl

from o3storage.catalog import BucketInfo, VersionInfo
from o3storage.s3._checksums import BY_HEADER as _BY_HEADER
from o3storage.s3._checksums import COMPOSITE, encode_value
from o3storage.s3._errors import S3Error
from o3storage.s3._times import http_date

MAX_METADATA_BYTES: Final = 2048
"""Names and values of user metadata in UTF-8 (AWS)."""

MAX_SYSTEM_HEADERS_BYTES: Final = 8000
"""Values of the headers that a version keeps (AWS: 8 KB for all headers of a request). A row has
room for twice that, which they take where each byte is beyond US-ASCII."""

DEFAULT_CONTENT_TYPE: Final = "binary/octet-stream"

STORED: Final = (
    "content-type",
    "content-encoding",
    "cache-control",
    "content-disposition",
    "content-language",
    "expires",
)

_SHOWN: Final = {
    "content-type": "Content-Type",
    "content-encoding": "Content-Encoding",
    "cache-control": "Cache-Control",
    "content-disposition": "Content-Disposition",
    "content-language": "Content-Language",
    "expires": "Expires",
    "x-amz-server-side-encryption": "x-amz-server-side-encryption",
}

OVERRIDES: Final = {
    "response-content-type": "Content-Type",
    "response-content-encoding": "Content-Encoding",
    "response-cache-control": "Cache-Control",
    "response-content-disposition": "Content-Disposition",
    "response-content-language": "Content-Language",
    "response-expires": "Expires",
}

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_ENCODED_WORD: Final = re.compile(r"=\?(utf-8|us-ascii|iso-8859-1)\?([bq])\?([^? ]*)\?=", re.I)
_BETWEEN_WORDS: Final = re.compile(r"(\?=)[ \t]+(=\?)")
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")

META: Final = "x-amz-meta-"


def stored_headers(headers: dict[str, str]) -> dict[str, str]:
    """The system headers that a version keeps. Raises S3Error for control characters, and
    MetadataTooLarge."""
    kept = {}
    size = 0
    for name in STORED:
        value = headers.get(name)
        if value is None:
            continue
        if name == "content-encoding":
            value = strip_aws_chunked(value)
            if not value:
                continue
        check_value(name, value)
        size += len(value)
        kept[name] = value
    if size > MAX_SYSTEM_HEADERS_BYTES:
        raise S3Error(
            "MetadataTooLarge",
            f"The values of {', '.join(kept)} are too large together.",
            details=(("Size", str(size)), ("MaxSizeAllowed", str(MAX_SYSTEM_HEADERS_BYTES))),
        )
    if not kept.get("content-type"):
        kept["content-type"] = DEFAULT_CONTENT_TYPE
    encryption = headers.get("x-amz-server-side-encryption")
    if encryption is not None:
        kept["x-amz-server-side-encryption"] = encryption
    return kept


def strip_aws_chunked(value: str) -> str:
    """A Content-Encoding without `aws-chunked`, which was undone on the way in."""
    if "aws-chunked" not in value.lower():
        return value
    codings = [coding.strip() for coding in value.split(",")]
    return ",".join([c for c in codings if c and c.lower() != "aws-chunked"])


def check_value(name: str, value: str) -> None:
    """Raises S3Error InvalidArgument for control characters (decoded %0d%0a too)."""
    if _CONTROL.search(value):
        raise S3Error("InvalidArgument", f"The value of {name} holds a control character.")


def user_metadata(headers: dict[str, str]) -> dict[str, str]:
    """The x-amz-meta-* headers as text, prefix removed. Raises S3Error MetadataTooLarge, and
    InvalidArgument for what no answer could carry: a name that came in a presigned URL or in a form
    can have any character in it."""
    found: dict[str, str] = {}
    size = 0
    for name, raw in headers.items():
        if not name.startswith(META):
            continue
        if not _TOKEN.fullmatch(name):
            raise S3Error(
                "InvalidArgument",
                "A name of user metadata holds a character that no header name can have.",
            )
        check_value(name, raw)
        value = decode_metadata(raw)
        short = name[len(META) :]
        size += len(short) + len(value.encode("utf-8", "surrogateescape"))
        found[short] = value
    if size > MAX_METADATA_BYTES:
        raise S3Error(
            "MetadataTooLarge",
            details=(("Size", str(size)), ("MaxSizeAllowed", str(MAX_METADATA_BYTES))),
        )
    return found


def decode_metadata(raw: str) -> str:
    """The text that a header value (latin-1 text of its bytes) stands for.

    Bytes that are UTF-8 are taken as that; encoded words of RFC 2047 are decoded if that gives
    anything but US-ASCII, which is left as it is.
    """
    if raw.isascii():
        if "=?" not in raw:
            return raw
        text = _ENCODED_WORD.sub(_decode_word, _BETWEEN_WORDS.sub(r"\1\2", raw))
        return raw if text.isascii() or _CONTROL.search(text) else text
    try:
        return raw.encode("latin-1").decode("utf-8")
    except UnicodeDecodeError:
        return raw


def _decode_word(word: re.Match[str]) -> str:
    charset, encoding, text = word.groups()
    try:
        if encoding in "bB":
            data = a2b_base64(text, strict_mode=True)
        else:
            data = a2b_qp(text.encode("ascii"), header=True)
        return data.decode(charset)
    except (Base64Error, UnicodeError, ValueError):
        return word.group()


def encode_metadata(value: str) -> str:
    """A value as it is answered: US-ASCII as it is, anything else as an encoded word."""
    if value.isascii():
        return value
    return f"=?UTF-8?B?{b64encode(value.encode()).decode('ascii')}?="


def overrides(query: dict[str, str], *, anonymous: bool) -> dict[str, str]:
    """The response-* overrides of a GET, by header name. Raises S3Error."""
    found = {}
    for name, value in query.items():
        header = OVERRIDES.get(name)
        if header is None:
            continue
        if anonymous:
            raise S3Error(
                "InvalidRequest",
                "Request specific response headers cannot be used for anonymous GET requests.",
            )
        check_value(name, value)
        # Text beyond latin-1 cannot stand in a header; its UTF-8 bytes can.
        found[header] = value.encode().decode("latin-1")
    return found


def version_header(bucket: BucketInfo, version: VersionInfo) -> list[tuple[str, str]]:
    """x-amz-version-id, in a bucket that has or had versioning."""
    return [("x-amz-version-id", version.version_id)] if bucket.versioning else []


def object_headers(bucket: BucketInfo, version: VersionInfo) -> list[tuple[str, str]]:
    """What every GET and HEAD shows of a version, but its length, range and checksums."""
    out = [
        ("Last-Modified", http_date(version.modified_ns)),
        ("ETag", f'"{version.etag}"'),
        ("Accept-Ranges", "bytes"),
        ("X-Content-Type-Options", "nosniff"),
    ]
    if bucket.versioning:
        out.append(("x-amz-version-id", version.version_id))
    shown = _SHOWN
    for name, value in version.headers.items():
        out.append((shown[name], value))
    if version.metadata:
        for name, value in version.metadata.items():
            out.append((META + name, encode_metadata(value)))
    if version.tags:
        out.append(("x-amz-tagging-count", str(len(version.tags))))
    return out


_HEADER_OF: Final = {algorithm.name: header for header, algorithm in _BY_HEADER.items()}


def checksum_headers(
    checksum: tuple[str, str, bytes] | None, parts: int = 0
) -> list[tuple[str, str]]:
    """x-amz-checksum-* and x-amz-checksum-type of a stored checksum."""
    if checksum is None:
        return []
    algorithm, kind, value = checksum
    return [
        (_HEADER_OF[algorithm], encode_value(value, kind, parts if kind == COMPOSITE else 0)),
        ("x-amz-checksum-type", kind),
    ]


# --- tags

MAX_OBJECT_TAGS: Final = 10
MAX_BUCKET_TAGS: Final = 50
MAX_TAG_KEY: Final = 128
MAX_TAG_VALUE: Final = 256
"""Characters, those beyond the first plane counted as two (AWS, "Categorizing your storage using
tags": they are counted in UTF-16). 50 tags then fit into a setting of 64 KiB."""


def _utf16_length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-16-le")) // 2


def check_tag_count(count: int, limit: int) -> None:
    """Raises S3Error BadRequest. Before anything is made of a document with 30,000 of them."""
    if count > limit:
        if limit == MAX_OBJECT_TAGS:
            raise S3Error("BadRequest", f"Object tags cannot be greater than {limit}")
        raise S3Error("BadRequest", f"Bucket tag count cannot be greater than {limit}")


def check_tags(tags: list[tuple[str, str]], limit: int) -> list[tuple[str, str]]:
    """The tags themselves. Raises S3Error InvalidTag, or BadRequest for too many."""
    check_tag_count(len(tags), limit)
    seen = set()
    for key, value in tags:
        if not 1 <= _utf16_length(key) <= MAX_TAG_KEY:
            raise S3Error("InvalidTag", "The TagKey you have provided is invalid")
        if _utf16_length(value) > MAX_TAG_VALUE:
            raise S3Error("InvalidTag", "The TagValue you have provided is invalid")
        for text, what in ((key, "TagKey"), (value, "TagValue")):
            if not all(c.isalnum() or c.isspace() or c in "+-=._:/@" for c in text) or (
                _CONTROL.search(text)
            ):
                raise S3Error("InvalidTag", f"The {what} you have provided is invalid")
        if key.startswith("aws:"):
            raise S3Error("InvalidTag", "System tags cannot be added/updated by requester")
        if key in seen:
            raise S3Error("InvalidTag", "Cannot provide multiple Tags with the same key")
        seen.add(key)
    return tags


def tagging_header(headers: dict[str, str]) -> list[tuple[str, str]]:
    """The tags of x-amz-tagging, a URL query string; a name alone has an empty value. Raises
    S3Error."""
    text = headers.get("x-amz-tagging")
    if not text:
        return []
    try:
        pairs = parse_qsl(
            text.encode("latin-1").decode("utf-8"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=MAX_OBJECT_TAGS + 1,
        )
    except ValueError:
        if text.count("&") >= MAX_OBJECT_TAGS:
            raise S3Error(
                "BadRequest", f"Object tags cannot be greater than {MAX_OBJECT_TAGS}"
            ) from None
        raise S3Error("InvalidArgument", _TAGGING_FORM) from None
    check_tag_count(len(pairs), MAX_OBJECT_TAGS)
    if len(dict(pairs)) != len(pairs):
        raise S3Error("InvalidArgument", _TAGGING_FORM)
    return check_tags(pairs, MAX_OBJECT_TAGS)


_TAGGING_FORM: Final = (
    "The header 'x-amz-tagging' shall be encoded as UTF-8 then "
    "URLEncoded URL query parameters without tag name duplicates."
)
