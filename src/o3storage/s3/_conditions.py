"""Conditional requests: on reads, on copy sources and on writes.

Sources: RFC 9110 section 13 (precedence: If-Match before If-Unmodified-Since, If-None-Match before
If-Modified-Since; times compared in whole seconds) and the S3 API reference (conditional writes).
"""

from __future__ import annotations

from dataclasses import replace

from o3storage.catalog import MAX_TIME_NS, VersionInfo, WriteCondition
from o3storage.s3._errors import S3Error
from o3storage.s3._times import parse_http_date, parse_iso

_SECOND_NS = 1_000_000_000

MAX_ETAG_CHARS = 48
"""Of an ETag that a write is held to: an MD5 in hexadecimal with a number of parts has 38. What is
longer matches none, cut or not, and a command has room for 255 bytes."""

LATEST_S = MAX_TIME_NS // _SECOND_NS
"""No version is younger, nor older than 1970: a time beyond either matches none."""


def etag_list(text: str) -> list[str]:
    """ETags of a list without quotes; weak ones lose their mark."""
    found = []
    for item in text.split(","):
        item = item.strip()
        if item.startswith("W/"):
            item = item[2:]
        found.append(unquote_etag(item))
    return found


def unquote_etag(text: str) -> str:
    """An ETag without the quotes that clients may or may not send."""
    if len(text) >= 2 and text[0] == '"' == text[-1]:
        return text[1:-1]
    return text


def matches(text: str, etag: str) -> bool:
    """Whether a condition's value names `etag` ("*" names any)."""
    return text.strip() == "*" or etag in etag_list(text)


def _failed(which: str) -> S3Error:
    return S3Error("PreconditionFailed", details=(("Condition", which),))


def check_read(headers: dict[str, str], version: VersionInfo, prefix: str = "") -> bool:
    """Whether the client's copy is still current (304). Raises S3Error PreconditionFailed.

    `prefix`: "x-amz-copy-" + "source-" for a copy, where a 304 is a 412 too (the caller decides).
    """
    get = headers.get
    modified_s = version.modified_ns // _SECOND_NS
    if_match = get(f"{prefix}if-match")
    if if_match is not None:
        if not matches(if_match, version.etag):
            raise _failed("If-Match")
    elif (text := get(f"{prefix}if-unmodified-since")) is not None:
        since_s = parse_http_date(text)
        if since_s is not None and modified_s > since_s:
            raise _failed("If-Unmodified-Since")
    if_none_match = get(f"{prefix}if-none-match")
    if if_none_match is not None:
        return matches(if_none_match, version.etag)
    if (text := get(f"{prefix}if-modified-since")) is not None:
        since_s = parse_http_date(text)
        return since_s is not None and modified_s <= since_s
    return False


def check_copy_source(headers: dict[str, str], version: VersionInfo) -> None:
    """Raises S3Error PreconditionFailed if a copy must not happen."""
    if check_read(headers, version, "x-amz-copy-source-"):
        raise _failed("x-amz-copy-source-If-None-Match")


def range_holds(headers: dict[str, str], version: VersionInfo) -> bool:
    """Whether If-Range lets the Range header stand (RFC 9110, 13.1.5)."""
    text = headers.get("if-range")
    if text is None:
        return True
    if text.startswith('"'):
        return unquote_etag(text) == version.etag
    since_s = parse_http_date(text)
    if since_s is not None:
        return version.modified_ns // _SECOND_NS == since_s
    return text == version.etag


def write_condition(headers: dict[str, str]) -> WriteCondition | None:
    """The condition of PutObject, CopyObject and CompleteMultipartUpload.

    Raises S3Error NotImplemented for forms that S3 does not have.
    """
    if_match, if_none_match = _etags_of_write(headers)
    if if_match is None and if_none_match is None:
        return None
    return WriteCondition(_single(if_match), if_none_match)


def delete_condition(headers: dict[str, str]) -> WriteCondition | None:
    """The condition of DeleteObject: a write's, and two of its own. Raises S3Error."""
    if_match, if_none_match = _etags_of_write(headers)
    condition = make_delete_condition(
        if_match,
        headers.get("x-amz-if-match-last-modified-time"),
        headers.get("x-amz-if-match-size"),
    )
    if if_none_match is None:
        return condition
    return replace(condition or WriteCondition(), if_none_match=if_none_match)


def _etags_of_write(headers: dict[str, str]) -> tuple[str | None, str | None]:
    """(If-Match as it was sent, If-None-Match: "*" or None). Raises S3Error NotImplemented."""
    if_match = headers.get("if-match")
    if_none_match = headers.get("if-none-match")
    if "if-modified-since" in headers or "if-unmodified-since" in headers:
        raise S3Error(
            "NotImplemented", "If-Modified-Since and If-Unmodified-Since do not apply to writes."
        )
    if if_match is not None and if_none_match is not None:
        raise S3Error("NotImplemented", "If-Match and If-None-Match cannot be combined.")
    if if_none_match is not None and if_none_match.strip() != "*":
        raise S3Error("NotImplemented", "If-None-Match of a write must be '*'.")
    return if_match, if_none_match and "*"


def make_delete_condition(
    etag: str | None, modified: str | None, size: str | None
) -> WriteCondition | None:
    """Also from an entry of DeleteObjects. Raises S3Error InvalidArgument."""
    if etag is None and modified is None and size is None:
        return None
    modified_ns = None
    if modified is not None:
        modified_s = parse_http_date(modified)
        if modified_s is None:
            modified_s = parse_iso(modified)
        if modified_s is None:
            raise S3Error("InvalidArgument", "The last-modified time of the condition is no date.")
        modified_ns = min(max(modified_s, 0), LATEST_S) * _SECOND_NS
    size_bytes = None
    if size is not None:
        if not size.isascii() or not size.isdigit() or len(size) > 18:
            raise S3Error("InvalidArgument", "The size of the condition is not a number.")
        size_bytes = int(size)
    return WriteCondition(
        if_match=_single(etag), if_match_modified_ns=modified_ns, if_match_size=size_bytes
    )


def _single(if_match: str | None) -> str | None:
    if if_match is None:
        return None
    text = if_match.strip()
    if text == "*":
        return text
    if "," in text:
        raise S3Error("NotImplemented", "If-Match of a write must be one ETag.")
    return unquote_etag(text)[:MAX_ETAG_CHARS]


def check_before_body(condition: WriteCondition, current: VersionInfo | None) -> None:
    """Judge a write's condition from the head, before any of the body is asked for.

    The same is judged again, finally, when the write is applied. Raises S3Error.
    """
    if condition.if_none_match is not None and current is not None:
        raise _failed("If-None-Match")
    if condition.if_match is not None:
        if current is None:
            raise S3Error("NoSuchKey")
        if condition.if_match not in ("*", current.etag):
            raise _failed("If-Match")
