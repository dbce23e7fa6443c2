"""Names of buckets and keys: what may be created, and how a target names them.

Source: Amazon S3 user guide, "General purpose buckets naming rules" and "Naming objects".
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from o3storage.catalog import MARKS
from o3storage.s3._errors import S3Error

MAX_KEY_BYTES: Final = 1024
"""UTF-8 bytes of an object key (AWS)."""

RESERVED_BUCKETS: Final = frozenset({"health", "metrics", "minio"})
"""Paths that are not S3 on this server."""

MAX_BUCKET_CHARS: Final = 63
"""Of a bucket's name (AWS)."""

CACHED_NAMES: Final = 4096
"""Judged names kept, about 150 bytes each: a request names one. Longer ones are not judged, or who
has proven nothing yet could have 16 KiB (a head) kept for each."""

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]\Z")
_ADDRESS: Final = re.compile(r"\d{1,3}(\.\d{1,3}){3}\Z")
_BAD_PREFIXES: Final = ("xn--", "sthree-", "amzn-s3-demo-")
_BAD_SUFFIXES: Final = ("-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3")


@lru_cache(CACHED_NAMES)
def is_bucket_name(name: str) -> bool:
    """Whether a bucket can have this name at all."""
    return (
        _NAME.match(name) is not None
        and ".." not in name
        and ".-" not in name
        and "-." not in name
        and _ADDRESS.match(name) is None
        and not name.startswith(_BAD_PREFIXES)
        and not name.endswith(_BAD_SUFFIXES)
    )


def check_new_bucket(name: str) -> None:
    """Raises S3Error InvalidBucketName for a name that cannot be created."""
    if name in RESERVED_BUCKETS:
        raise S3Error(
            "InvalidBucketName",
            "This name is reserved: its path is not S3 on this server.",
            details=(("BucketName", name),),
        )
    check_bucket(name)


def check_bucket(name: str) -> None:
    """Raises S3Error InvalidBucketName for a name that no bucket can have."""
    if len(name) > MAX_BUCKET_CHARS or not is_bucket_name(name):
        raise S3Error("InvalidBucketName", details=(("BucketName", name),))


def check_key(key: bytes) -> None:
    """Raises S3Error for a key that cannot be stored."""
    if len(key) > MAX_KEY_BYTES:
        raise S3Error(
            "KeyTooLongError",
            details=(("Size", str(len(key))), ("MaxSizeAllowed", str(MAX_KEY_BYTES))),
        )
    if b"\0" in key:
        raise S3Error("InvalidURI", "A key cannot hold a NUL character.")
    if key.isascii():
        return
    try:
        key.decode()
    except UnicodeDecodeError:
        raise S3Error("InvalidURI", "A key must be valid UTF-8.") from None
    if any(mark in key for mark in MARKS):
        raise S3Error(
            "InvalidURI",
            "A key cannot hold the noncharacters U+10FFFE and U+10FFFF: they mark places in "
            "listings.",
        )


def split_target(
    path: bytes, host: str, domains: tuple[str, ...]
) -> tuple[str | None, bytes | None]:
    """(bucket, key) of a decoded path: path style, or virtual-host style below one of `domains`.

    A missing bucket is None; so is an empty key. Raises S3Error for names that cannot exist.
    """
    if not path.startswith(b"/"):
        raise S3Error("InvalidURI", "The path must start with '/'.")
    bucket = _virtual_bucket(host, domains) if domains else None
    if bucket is None:
        name, _, key = path[1:].partition(b"/")
        if not name:
            if key:
                raise S3Error("InvalidBucketName", details=(("BucketName", ""),))
            return None, None
        try:
            bucket = name.decode("ascii")
        except UnicodeDecodeError:
            raise S3Error(
                "InvalidBucketName", details=(("BucketName", name.decode("utf-8", "replace")),)
            ) from None
    else:
        key = path[1:]
    check_bucket(bucket)
    if not key:
        return bucket, None
    check_key(key)
    return bucket, key


def host_name(host: str) -> str:
    """A Host value without its port, lower case, brackets of IPv6 kept; without the dot that ends a
    name written from the root."""
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.partition(":")[0].lower().removesuffix(".")


def _virtual_bucket(host: str, domains: tuple[str, ...]) -> str | None:
    name = host_name(host)
    for domain in domains:
        if name.endswith(domain) and name[: -len(domain)].endswith("."):
            return name[: -len(domain) - 1]
    return None
