"""Refusals of the rooms below as S3 errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from o3storage.catalog import (
    BucketBusy,
    BucketExists,
    BucketFenced,
    BucketNotEmpty,
    CatalogError,
    InvalidBucketState,
    InvalidPart,
    InvalidVersionId,
    MethodNotAllowed,
    NoSuchBucket,
    NoSuchKey,
    NoSuchUpload,
    NoSuchVersion,
    PreconditionFailed,
    StaleEpoch,
    StreamAbandoned,
    StreamExpired,
    UploadChanged,
    version_id,
)
from o3storage.http import BodyError, BodyTimeout, BodyTruncated
from o3storage.s3._errors import RETRY_AFTER_S, S3Error
from o3storage.s3._times import http_date

_RETRY: Final = (("Retry-After", str(RETRY_AFTER_S)),)


def translate(error: CatalogError, bucket: str, key: str) -> S3Error:
    """The S3 error of a refusal of the catalog."""
    make = _REFUSALS.get(type(error))
    if make is None:
        return S3Error("InternalError")
    return make(error, bucket, key)


# (A copy may lack its source: what is missing is what the refusal names, not the request's target.)


def _no_such_key(error: Any, _bucket: str, _key: str) -> S3Error:
    headers: tuple[tuple[str, str], ...] = ()
    marker = error.marker_version_id
    if marker is not None:
        headers = (("x-amz-delete-marker", "true"), ("x-amz-version-id", marker))
    return S3Error("NoSuchKey", details=(("Key", _text(error.key)),), headers=headers)


def _no_such_version(error: Any, _bucket: str, _key: str) -> S3Error:
    text = "null" if error.version < 0 else version_id(error.version)
    return S3Error("NoSuchVersion", details=(("Key", _text(error.key)), ("VersionId", text)))


def _text(key: bytes) -> str:
    return key.decode("utf-8", "replace")


def _marker_named(error: Any, _bucket: str, _key: str) -> S3Error:
    text = "null" if error.is_null else version_id(error.order)
    return S3Error(
        "MethodNotAllowed",
        details=(("ResourceType", "DeleteMarker"),),
        headers=(
            ("Allow", "DELETE"),
            ("x-amz-delete-marker", "true"),
            ("x-amz-version-id", text),
            ("Last-Modified", http_date(error.modified_ns)),
        ),
    )


def _precondition(error: Any, _bucket: str, _key: str) -> S3Error:
    return S3Error("PreconditionFailed", details=(("Condition", error.which),))


def _no_such_upload(_error: Any, _bucket: str, _key: str) -> S3Error:
    return S3Error("NoSuchUpload")


def _invalid_part(error: Any, _bucket: str, _key: str) -> S3Error:
    return S3Error("InvalidPart", details=(("PartNumber", str(error.number)),))


def _bucket_code(code: str) -> Callable[[Any, str, str], S3Error]:
    return lambda error, bucket, _key: S3Error(
        code, details=(("BucketName", getattr(error, "name", bucket)),)
    )


def _later(message: str) -> Callable[[Any, str, str], S3Error]:
    return lambda _error, _bucket, _key: S3Error("ServiceUnavailable", message, headers=_RETRY)


_REFUSALS: Final[dict[type[CatalogError], Callable[[Any, str, str], S3Error]]] = {
    BucketBusy: _bucket_code("OperationAborted"),
    BucketExists: _bucket_code("BucketAlreadyExists"),
    BucketFenced: _later("A deletion of the bucket is being decided."),
    BucketNotEmpty: _bucket_code("BucketNotEmpty"),
    InvalidBucketState: _bucket_code("InvalidBucketState"),
    InvalidPart: _invalid_part,
    InvalidVersionId: lambda *_: S3Error("InvalidArgument", "Invalid version id specified"),
    MethodNotAllowed: _marker_named,
    NoSuchBucket: _bucket_code("NoSuchBucket"),
    NoSuchKey: _no_such_key,
    NoSuchUpload: _no_such_upload,
    NoSuchVersion: _no_such_version,
    PreconditionFailed: _precondition,
    StaleEpoch: _later("The bucket's settings are changing."),
    StreamAbandoned: lambda *_: S3Error("RequestTimeout"),
    StreamExpired: lambda *_: S3Error("RequestTimeout"),
    UploadChanged: lambda *_: S3Error("OperationAborted"),
}


def translate_body_error(error: BodyError) -> S3Error:
    """The S3 error of a body that could not be read; the connection ends after it."""
    if isinstance(error, BodyTimeout):
        return S3Error("RequestTimeout")
    if isinstance(error, BodyTruncated):
        return S3Error("IncompleteBody")
    return S3Error("InvalidRequest", str(error))
