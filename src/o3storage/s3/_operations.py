"""The table of operations: everything that this server does, and nothing else."""

from __future__ import annotations

from typing import Any, Final

from o3storage.s3 import (
    _attributes,
    _buckets,
    _complete,
    _copy,
    _cors,
    _delete,
    _listing,
    _multipart,
    _objects_get,
    _objects_put,
    _post_form,
    _tagging,
)
from o3storage.s3._router import (
    BODY_HEADERS,
    BUCKET,
    COPY_HEADERS,
    OBJECT,
    OBJECT_HEADERS,
    SERVICE,
    Operation,
    Table,
)


def _operation(
    name: str,
    handler: Any,
    headers: frozenset[str] = frozenset(),
    *,
    metadata: bool = False,
    reads_body: bool = False,
    needs_bucket: bool = True,
) -> Operation:
    if reads_body:
        headers |= BODY_HEADERS
    return Operation(name, handler, headers, metadata, reads_body, needs_bucket)


TABLE: Final[Table] = {
    # --- service
    ("GET", SERVICE, ""): _operation("ListBuckets", _buckets.list_all_buckets, needs_bucket=False),
    # --- buckets
    ("PUT", BUCKET, ""): _operation(
        "CreateBucket",
        _buckets.create_new_bucket,
        frozenset({"x-amz-acl", "x-amz-bucket-object-lock-enabled", "x-amz-object-ownership"}),
        reads_body=True,
        needs_bucket=False,
    ),
    ("HEAD", BUCKET, ""): _operation("HeadBucket", _buckets.head_bucket),
    ("DELETE", BUCKET, ""): _operation("DeleteBucket", _buckets.remove_bucket),
    ("GET", BUCKET, ""): _operation("ListObjects", _listing.list_objects_v1),
    ("GET", BUCKET, "list-type"): _operation("ListObjectsV2", _listing.list_objects_v2),
    ("GET", BUCKET, "versions"): _operation("ListObjectVersions", _listing.list_object_versions),
    ("GET", BUCKET, "uploads"): _operation("ListMultipartUploads", _listing.list_multipart_uploads),
    ("GET", BUCKET, "location"): _operation("GetBucketLocation", _buckets.get_bucket_location),
    ("GET", BUCKET, "versioning"): _operation(
        "GetBucketVersioning", _buckets.get_bucket_versioning
    ),
    ("PUT", BUCKET, "versioning"): _operation(
        "PutBucketVersioning", _buckets.put_bucket_versioning, reads_body=True
    ),
    ("GET", BUCKET, "tagging"): _operation("GetBucketTagging", _tagging.get_bucket_tagging),
    ("PUT", BUCKET, "tagging"): _operation(
        "PutBucketTagging", _tagging.put_bucket_tagging, reads_body=True
    ),
    ("DELETE", BUCKET, "tagging"): _operation(
        "DeleteBucketTagging", _tagging.delete_bucket_tagging
    ),
    ("GET", BUCKET, "cors"): _operation("GetBucketCors", _cors.get_bucket_cors),
    ("PUT", BUCKET, "cors"): _operation("PutBucketCors", _cors.put_bucket_cors, reads_body=True),
    ("DELETE", BUCKET, "cors"): _operation("DeleteBucketCors", _cors.delete_bucket_cors),
    ("POST", BUCKET, "delete"): _operation(
        "DeleteObjects", _delete.delete_objects, reads_body=True
    ),
    ("POST", BUCKET, ""): _operation("PostObject", _post_form.post_object, reads_body=True),
    # --- settings that no bucket here has
    ("GET", BUCKET, "acl"): _operation("GetBucketAcl", _buckets.get_acl),
    ("GET", BUCKET, "policy"): _operation(
        "GetBucketPolicy", _buckets.not_set("NoSuchBucketPolicy")
    ),
    ("GET", BUCKET, "policyStatus"): _operation(
        "GetBucketPolicyStatus", _buckets.not_set("NoSuchBucketPolicy")
    ),
    ("GET", BUCKET, "lifecycle"): _operation(
        "GetBucketLifecycleConfiguration", _buckets.not_set("NoSuchLifecycleConfiguration")
    ),
    ("GET", BUCKET, "website"): _operation(
        "GetBucketWebsite", _buckets.not_set("NoSuchWebsiteConfiguration")
    ),
    ("GET", BUCKET, "object-lock"): _operation(
        "GetObjectLockConfiguration", _buckets.not_set("ObjectLockConfigurationNotFoundError")
    ),
    ("GET", BUCKET, "publicAccessBlock"): _operation(
        "GetPublicAccessBlock", _buckets.not_set("NoSuchPublicAccessBlockConfiguration")
    ),
    ("GET", BUCKET, "ownershipControls"): _operation(
        "GetBucketOwnershipControls", _buckets.not_set("OwnershipControlsNotFoundError")
    ),
    ("GET", BUCKET, "replication"): _operation(
        "GetBucketReplication", _buckets.not_set("ReplicationConfigurationNotFoundError")
    ),
    ("GET", BUCKET, "encryption"): _operation(
        "GetBucketEncryption",
        _buckets.fixed("ServerSideEncryptionConfiguration", _buckets.ENCRYPTION),
    ),
    ("GET", BUCKET, "requestPayment"): _operation(
        "GetBucketRequestPayment",
        _buckets.fixed("RequestPaymentConfiguration", "<Payer>BucketOwner</Payer>"),
    ),
    ("GET", BUCKET, "logging"): _operation(
        "GetBucketLogging", _buckets.fixed("BucketLoggingStatus", "")
    ),
    ("GET", BUCKET, "notification"): _operation(
        "GetBucketNotificationConfiguration", _buckets.fixed("NotificationConfiguration", "")
    ),
    ("GET", BUCKET, "accelerate"): _operation(
        "GetBucketAccelerateConfiguration", _buckets.fixed("AccelerateConfiguration", "")
    ),
    # --- objects
    ("GET", OBJECT, ""): _operation(
        "GetObject", _objects_get.get_object, frozenset({"x-amz-checksum-mode", "x-amz-te"})
    ),
    ("HEAD", OBJECT, ""): _operation(
        "HeadObject", _objects_get.head_object, frozenset({"x-amz-checksum-mode"})
    ),
    ("PUT", OBJECT, ""): _operation(
        "PutObject", _objects_put.put_object, OBJECT_HEADERS, metadata=True, reads_body=True
    ),
    ("PUT", OBJECT, "copy:"): _operation(
        "CopyObject",
        _copy.copy_object,
        OBJECT_HEADERS
        | COPY_HEADERS
        | {"x-amz-metadata-directive", "x-amz-tagging-directive", "x-amz-checksum-algorithm"},
        metadata=True,
    ),
    ("DELETE", OBJECT, ""): _operation(
        "DeleteObject",
        _delete.delete_object,
        frozenset({"x-amz-if-match-last-modified-time", "x-amz-if-match-size"}),
    ),
    ("GET", OBJECT, "attributes"): _operation(
        "GetObjectAttributes",
        _attributes.get_object_attributes,
        frozenset({"x-amz-object-attributes", "x-amz-max-parts", "x-amz-part-number-marker"}),
    ),
    ("GET", OBJECT, "tagging"): _operation("GetObjectTagging", _tagging.get_object_tagging),
    ("PUT", OBJECT, "tagging"): _operation(
        "PutObjectTagging", _tagging.put_object_tagging, reads_body=True
    ),
    ("DELETE", OBJECT, "tagging"): _operation(
        "DeleteObjectTagging", _tagging.delete_object_tagging
    ),
    ("GET", OBJECT, "acl"): _operation("GetObjectAcl", _buckets.get_object_acl),
    # --- multipart uploads
    ("POST", OBJECT, "uploads"): _operation(
        "CreateMultipartUpload",
        _multipart.create_multipart_upload,
        OBJECT_HEADERS | {"x-amz-checksum-algorithm", "x-amz-checksum-type"},
        metadata=True,
    ),
    ("PUT", OBJECT, "uploadId"): _operation("UploadPart", _multipart.upload_part, reads_body=True),
    ("PUT", OBJECT, "copy:uploadId"): _operation(
        "UploadPartCopy",
        _multipart.upload_part_copy,
        COPY_HEADERS | {"x-amz-copy-source-range"},
    ),
    ("POST", OBJECT, "uploadId"): _operation(
        "CompleteMultipartUpload",
        _complete.complete_multipart_upload,
        frozenset({"x-amz-checksum-type", "x-amz-mp-object-size"}),
        reads_body=True,
    ),
    ("DELETE", OBJECT, "uploadId"): _operation(
        "AbortMultipartUpload", _multipart.abort_multipart_upload
    ),
    ("GET", OBJECT, "uploadId"): _operation("ListParts", _multipart.list_upload_parts),
}

OPERATION_NAMES: Final = sorted(
    {operation.name for operation in TABLE.values()} | {"CORSPreflight"}
)
