"""Which operation a request names, decided before anything of it is carried out.

A request selects an operation by method, level (service, bucket, object), sub-resource and a few
headers. Every sub-resource of S3 is known here: one that is not implemented for a level and method
is refused, so that `PUT key?retention` can never be taken for `PUT key`. The same holds for
x-amz-* headers: an operation names those it understands, and any other is refused.

Source: Amazon S3 API reference, "Actions".
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from o3storage.s3._errors import S3Error

if TYPE_CHECKING:
    from o3storage.http import Response
    from o3storage.s3._context import Context

Handler = Callable[["Context"], Awaitable["Response"]]

SERVICE: Final = "service"
BUCKET: Final = "bucket"
OBJECT: Final = "object"

SUB_RESOURCES: Final = frozenset(
    {
        "abac",
        "accelerate",
        "acl",
        "analytics",
        "annotation",
        "annotations",
        "append",
        "attributes",
        "compose",
        "cors",
        "delete",
        "encryption",
        "events",
        "intelligent-tiering",
        "inventory",
        "lambdaArn",
        "legal-hold",
        "lifecycle",
        "list-type",
        "location",
        "logging",
        "metadataAnnotationTable",
        "metadataConfiguration",
        "metadataInventoryTable",
        "metadataJournalTable",
        "metadataTable",
        "metrics",
        "notification",
        "object-lock",
        "ownershipControls",
        "policy",
        "policyStatus",
        "publicAccessBlock",
        "renameObject",
        "replication",
        "replication-metrics",
        "replication-reset",
        "replication-reset-status",
        "requestPayment",
        "restore",
        "retention",
        "rgwx-copy-if-newer",
        "select",
        "session",
        "symlink",
        "tagging",
        "torrent",
        "uploadId",
        "uploads",
        "versioning",
        "versions",
        "website",
    }
)
"""Query parameters that name another resource than the bucket or object itself: all of S3's, and
those of MinIO's and other stores' extensions that their clients might send here."""

COMMON_HEADERS: Final = frozenset(
    {
        "x-amz-content-sha256",
        "x-amz-date",
        "x-amz-expected-bucket-owner",
        # Asks for optional fields that only restored objects have: never any here.
        "x-amz-optional-object-attributes",
        # Consent to pay, of use only in buckets that ask for it: none do here.
        "x-amz-request-payer",
        "x-amz-user-agent",
    }
)

BODY_HEADERS: Final = frozenset(
    {
        "x-amz-checksum-crc32",
        "x-amz-checksum-crc32c",
        "x-amz-checksum-crc64nvme",
        "x-amz-checksum-sha1",
        "x-amz-checksum-sha256",
        "x-amz-decoded-content-length",
        "x-amz-sdk-checksum-algorithm",
        "x-amz-trailer",
    }
)

OBJECT_HEADERS: Final = frozenset(
    {
        "x-amz-acl",
        "x-amz-server-side-encryption",
        "x-amz-storage-class",
        "x-amz-tagging",
    }
)
"""Of every operation that makes a version; also x-amz-meta-*."""

COPY_HEADERS: Final = frozenset(
    {
        "x-amz-copy-source",
        "x-amz-copy-source-if-match",
        "x-amz-copy-source-if-modified-since",
        "x-amz-copy-source-if-none-match",
        "x-amz-copy-source-if-unmodified-since",
        "x-amz-source-expected-bucket-owner",
    }
)


@dataclass(frozen=True, slots=True)
class Operation:
    """One row of the table.

    `headers`: x-amz-* names it understands besides the common ones. `metadata`: takes x-amz-meta-*.
    `reads_body`: the handler reads the body itself (else it is checked to be harmless).
    `needs_bucket`: the bucket must exist and belong to the sender before the handler runs.
    """

    name: str
    handler: Handler
    headers: frozenset[str] = frozenset()
    metadata: bool = False
    reads_body: bool = False
    needs_bucket: bool = True


Table = dict[tuple[str, str, str], Operation]
"""(method, level, sub-resource or "") -> operation."""


def level_of(bucket: str | None, key: bytes | None) -> str:
    if bucket is None:
        return SERVICE
    return BUCKET if key is None else OBJECT


def find_sub_resource(query: dict[str, str]) -> str:
    """The sub-resource that a query names, "" if none. Raises S3Error for two at once."""
    found = ""
    for name in query:
        if name in SUB_RESOURCES:
            if found:
                raise S3Error(
                    "InvalidArgument", f"Conflicting query parameters: {found} and {name}."
                )
            found = name
    return found


def route(
    table: Table, method: str, level: str, query: dict[str, str], headers: dict[str, str]
) -> Operation:
    """The operation, or S3Error NotImplemented or MethodNotAllowed."""
    sub = find_sub_resource(query) if query else ""
    if method == "PUT" and level == OBJECT and "x-amz-copy-source" in headers and sub in _COPIES:
        sub = _COPIES[sub]
    operation = table.get((method, level, sub))
    if operation is None:
        raise _refusal(table, method, level, sub)
    if query:
        _check_modifiers(operation, query)
    return operation


_COPIES: Final = {"": "copy:", "uploadId": "copy:uploadId"}


def _refusal(table: Table, method: str, level: str, sub: str) -> S3Error:
    if sub:
        if not any(at == level and name == sub for _, at, name in table):
            return S3Error(
                "NotImplemented",
                f"The sub-resource '{sub}' is not implemented here.",
                details=(("ResourceType", sub.upper()),),
            )
        if method in ("PUT", "POST", "DELETE"):
            return S3Error(
                "NotImplemented",
                f"{method} of the sub-resource '{sub}' is not implemented.",
                details=(("ResourceType", sub.upper()),),
            )
    allowed = [m for m, at, name in table if at == level and name == sub]
    return S3Error(
        "MethodNotAllowed",
        details=(("Method", method), ("ResourceType", (sub or level).upper())),
        headers=(("Allow", ", ".join(allowed)),),
    )


_TAKES_VERSION: Final = frozenset(
    {
        "GetObject",
        "HeadObject",
        "DeleteObject",
        "GetObjectTagging",
        "PutObjectTagging",
        "DeleteObjectTagging",
        "GetObjectAttributes",
        "GetObjectAcl",
    }
)
_TAKES_PART: Final = frozenset({"GetObject", "HeadObject", "UploadPart", "UploadPartCopy"})


def _check_modifiers(operation: Operation, query: dict[str, str]) -> None:
    """Parameters that would change what an object operation acts on are not ignored."""
    if "versionId" in query and operation.name not in _TAKES_VERSION:
        raise S3Error("InvalidArgument", "This operation does not accept a version-id.")
    if "partNumber" in query and operation.name not in _TAKES_PART:
        raise S3Error("InvalidArgument", "This operation does not accept a partNumber.")


def check_headers(
    operation: Operation, headers: dict[str, str], names: Iterable[str] | None = None
) -> None:
    """Raises S3Error NotImplemented for an x-amz-* header that the operation does not know.

    `names`: the x-amz-* names among `headers`, where they are known already."""
    special = "content-range" in headers
    for name in headers if names is None else names:
        if name in COMMON_HEADERS or not name.startswith("x-amz-"):
            continue
        if name in operation.headers:
            special = True
            continue
        if name == "x-amz-api-version":
            special = True
            continue
        if operation.metadata and name.startswith("x-amz-meta-"):
            continue
        raise S3Error(
            "NotImplemented",
            f"The header {name} implies functionality that is not implemented for "
            f"{operation.name}.",
            details=(("Header", name),),
        )
    if special:
        check_fixed_values(headers)


_FIXED: Final = {
    "x-amz-acl": ("private", "bucket-owner-full-control"),
    "x-amz-api-version": ("2006-03-01",),
    "x-amz-server-side-encryption": ("AES256",),
    "x-amz-bucket-object-lock-enabled": ("false", "False"),
    "x-amz-object-ownership": ("BucketOwnerEnforced",),
    "x-amz-checksum-mode": ("ENABLED", "enabled"),
    # Offers to take an MD5 behind the body, as the AWS SDK for Java sends it unasked; that there is
    # none shows from the answer having no x-amz-transfer-encoding.
    "x-amz-te": ("append-md5",),
}
"""Headers with values that are true here anyway; any other value is refused."""

_STORAGE_CLASSES: Final = frozenset(
    {
        "DEEP_ARCHIVE",
        "EXPRESS_ONEZONE",
        "FSX_ONTAP",
        "FSX_OPENZFS",
        "GLACIER",
        "GLACIER_IR",
        "INTELLIGENT_TIERING",
        "ONEZONE_IA",
        "OUTPOSTS",
        "REDUCED_REDUNDANCY",
        "SNOW",
        "STANDARD_IA",
    }
)


def check_fixed_values(headers: dict[str, str]) -> None:
    """Raises S3Error for a value of a header whose meaning is not built."""
    for name, accepted in _FIXED.items():
        value = headers.get(name)
        if value is not None and value not in accepted:
            raise S3Error(
                "NotImplemented",
                f"{name}: {value} is not implemented.",
                details=(("Header", name),),
            )
    storage_class = headers.get("x-amz-storage-class")
    if storage_class is not None and storage_class != "STANDARD":
        if storage_class in _STORAGE_CLASSES:
            raise S3Error(
                "NotImplemented", f"The storage class {storage_class} is not implemented."
            )
        raise S3Error("InvalidStorageClass")
    if "content-range" in headers:
        raise S3Error("NotImplemented", "A request with Content-Range is not implemented.")
