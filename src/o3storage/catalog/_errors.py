"""Refusals of commands and queries, as types. The S3 layer maps them to S3's codes.

A command that fails at apply writes nothing: its error travels in `Outcome.error`, equal on every
replica. Queries raise. Messages say what to do; none holds a secret.
"""

from __future__ import annotations


class CatalogError(Exception):
    """Base of every refusal of the catalog."""


class NoSuchBucket(CatalogError):
    """No bucket has this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no bucket is named {name!r}; create it first")
        self.name = name


class BucketExists(CatalogError):
    """The name is taken by another owner."""

    def __init__(self, name: str, owner: str) -> None:
        super().__init__(f"bucket name {name!r} is taken; choose another")
        self.name = name
        self.owner = owner


class BucketBusy(CatalogError):
    """A deletion of the bucket is under way; it ends with the bucket gone or as it was. Retry
    after a moment (S3: 409 OperationAborted, or 503 for object writes)."""

    def __init__(self, name: str) -> None:
        super().__init__(f"bucket {name!r} is being deleted; try again in a few seconds")
        self.name = name


class BucketNotEmpty(CatalogError):
    """The bucket still holds versions or delete markers."""

    def __init__(self, name: str) -> None:
        super().__init__(f"bucket {name!r} still holds versions or delete markers; remove them")
        self.name = name


class InvalidBucketState(CatalogError):
    """The change is not possible for this bucket, e.g. versioning cannot be switched off again."""


class StaleEpoch(CatalogError):
    """The range holds other settings of the bucket than the command was made with.

    A definite refusal: nothing was written. If `current` < the command's epoch (0: the range has
    no copy), propose the bucket's `SyncBucket` and the command again; if it is greater, read the
    bucket again (it may be gone) and make the command anew."""

    def __init__(self, bucket_id: int, epoch: int, current: int) -> None:
        super().__init__(
            f"bucket {bucket_id}: command made at settings epoch {epoch}, range holds {current}"
        )
        self.bucket_id = bucket_id
        self.epoch = epoch
        self.current = current


class BucketFenced(CatalogError):
    """The bucket is fenced while its deletion is decided. Definite refusal: wait up to 5 s and
    propose again, then answer 503; never NoSuchBucket, for it may still revert."""

    def __init__(self, bucket_id: int) -> None:
        super().__init__(f"bucket {bucket_id} is fenced while its deletion is decided; retry")
        self.bucket_id = bucket_id


class NoSuchKey(CatalogError):
    """The key has no current version. `marker_order` is 0, or the order of the delete marker that
    is its newest version (`marker_version_id` its text)."""

    def __init__(self, key: bytes, marker_order: int = 0, marker_is_null: bool = False) -> None:
        super().__init__("no current version of this key")
        self.key = key
        self.marker_order = marker_order
        self.marker_is_null = marker_is_null

    @property
    def marker_version_id(self) -> str | None:
        """Version id of the delete marker that hides the key, or None."""
        if not self.marker_order:
            return None
        if self.marker_is_null:
            return "null"
        from ._version_id import version_id

        return version_id(self.marker_order)


class NoSuchVersion(CatalogError):
    """The key has no version of this id."""

    def __init__(self, key: bytes, version: int) -> None:
        super().__init__("this key has no such version")
        self.key = key
        self.version = version


class MethodNotAllowed(CatalogError):
    """A delete marker was named by its version id (S3: 405 with Allow: DELETE)."""

    def __init__(self, key: bytes, order: int, is_null: bool, modified_ns: int) -> None:
        super().__init__("this version is a delete marker; it can only be deleted")
        self.key = key
        self.order = order
        self.is_null = is_null
        self.modified_ns = modified_ns


class PreconditionFailed(CatalogError):
    """A condition of the request does not hold. `which` is the header's name as S3 writes it;
    `current_order` is the order (ns) of the version that decided, 0 if there was none, so that a
    version newer than the request's arrival can be told as a lost race (409)."""

    def __init__(self, which: str, current_order: int = 0) -> None:
        super().__init__(f"precondition {which} does not hold")
        self.which = which
        self.current_order = current_order


class NoSuchUpload(CatalogError):
    """The upload does not exist: never did, was completed, or was aborted."""

    def __init__(self, key: bytes, upload_id: bytes) -> None:
        super().__init__("no such multipart upload; it may have been completed or aborted")
        self.key = key
        self.upload_id = upload_id


class UploadChanged(CatalogError):
    """Parts of the upload changed since they were read: read them again and propose anew."""

    def __init__(self, expected: int, actual: int) -> None:
        super().__init__("parts of the upload changed while it was being completed; read again")
        self.expected = expected
        self.actual = actual


class InvalidPart(CatalogError):
    """The part is not among those uploaded, or its ETag differs. For the S3 layer's checks."""

    def __init__(self, number: int) -> None:
        super().__init__(f"part {number} was not uploaded or its ETag differs")
        self.number = number


class StreamAbandoned(CatalogError):
    """The body's stream was abandoned (or is being judged): its frames may be gone. Upload the
    body again as a new stream."""

    def __init__(self, stream: bytes) -> None:
        super().__init__("the upload took too long and was given up; send the body again")
        self.stream = stream


class StreamExpired(CatalogError):
    """The body's stream was opened more than 7 days ago by the range's clock. Upload again."""

    def __init__(self, stream: bytes) -> None:
        super().__init__("the upload is older than 7 days; send the body again")
        self.stream = stream


class NoSuchAccessKey(CatalogError):
    """No access key has this id."""

    def __init__(self, key_id: str) -> None:
        super().__init__(f"no access key has the id {key_id!r}")
        self.key_id = key_id


class AccessKeyExists(CatalogError):
    """The access key id belongs to another owner."""

    def __init__(self, key_id: str) -> None:
        super().__init__(f"access key {key_id!r} belongs to another owner; choose another id")
        self.key_id = key_id


class InvalidVersionId(CatalogError, ValueError):
    """The text is not a version id that this store writes (S3: 400)."""

    def __init__(self) -> None:
        super().__init__("malformed version id")
