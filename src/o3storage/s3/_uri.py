"""Request targets: decoding once, and the canonical forms that signatures are computed over.

Source: AWS "Create a signed request", canonical URI and canonical query string. The path is
percent-decoded once and re-encoded, all but `A-Za-z0-9-_.~/`; `//`, `.` and `..` stay as they are.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote_from_bytes, unquote_to_bytes

from o3storage.s3._errors import S3Error

_UNRESERVED: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~"
_PATH_SAFE: Final = _UNRESERVED + b"/"
_BAD_ESCAPE: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")

MAX_QUERY_PARAMETERS: Final = 100
"""S3's own requests have at most about 25; the head is limited to 16 KiB anyway."""


def decode_path(raw: bytes) -> bytes:
    """Percent-decoded path, '+' kept. Raises S3Error InvalidURI for a broken escape."""
    if b"%" not in raw:
        return raw
    if _BAD_ESCAPE.search(raw):
        raise S3Error("InvalidURI", "The path has a '%' that is not followed by two hex digits.")
    return unquote_to_bytes(raw)


def canonical_path(raw: bytes) -> str:
    """The canonical URI of a raw path."""
    if not raw.translate(None, _PATH_SAFE):
        return raw.decode("ascii") or "/"
    return quote_from_bytes(unquote_to_bytes(raw), "/~")


def split_query(raw: bytes) -> list[tuple[bytes, bytes]]:
    """Decoded (name, value) pairs in order of arrival; a name without '=' has an empty value.

    Raises S3Error InvalidURI for a broken escape or too many parameters.
    """
    if not raw:
        return []
    pieces = raw.split(b"&")
    if len(pieces) > MAX_QUERY_PARAMETERS:
        raise S3Error("InvalidURI", f"More than {MAX_QUERY_PARAMETERS} query parameters.")
    coded = b"%" in raw or b"+" in raw
    if coded and _BAD_ESCAPE.search(raw):
        raise S3Error("InvalidURI", "The query has a '%' that is not followed by two hex digits.")
    pairs = []
    for piece in pieces:
        if not piece:
            continue
        name, _, value = piece.partition(b"=")
        if coded:
            name = unquote_to_bytes(name.replace(b"+", b" "))
            value = unquote_to_bytes(value.replace(b"+", b" "))
        pairs.append((name, value))
    return pairs


def canonical_query(pairs: list[tuple[bytes, bytes]], *, without: bytes = b"") -> str:
    """The canonical query string: encoded names sorted, then encoded values.

    `without` names one parameter (lower case) that is left out: the signature itself.
    """
    if not pairs:
        return ""
    coded = []
    for name, value in pairs:
        if without and name.lower() == without:
            continue
        coded.append((quote(name), quote(value)))
    coded.sort()
    return "&".join([f"{name}={value}" for name, value in coded])


def quote_path(data: bytes) -> str:
    """Percent-encoding of everything but unreserved characters and '/'."""
    return quote_from_bytes(data, "/~")


def quote(data: bytes) -> str:
    """Percent-encoding of everything but unreserved characters."""
    if not data.translate(None, _UNRESERVED):
        return data.decode("ascii")
    return quote_from_bytes(data, "~")
