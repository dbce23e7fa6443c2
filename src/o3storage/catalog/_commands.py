"""Commands: every change of the catalog, as data.

All that is decided outside (ids, times, randomness) is a field, so that applying a command is a
function of its bytes and the rows alone. Commands of range 0 change buckets, keys and nodes;
commands of a key range carry (bucket_id, epoch): the bucket's id and settings epoch as read from
range 0, and fail with StaleEpoch or BucketFenced if the range holds other settings.

The docstring of each command names its result and the errors its apply may give.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ._types import Checksum, Tags, WriteCondition

# --- range 0


@dataclass(slots=True)
class CreateBucket:
    """-> CreateBucketResult. Idempotent for the owner. BucketExists, BucketBusy."""

    name: str
    owner: str
    created_ns: int
    region: str = "us-east-1"


@dataclass(slots=True)
class BeginDeleteBucket:
    """Mark a bucket as being deleted. -> BucketInfo (epoch raised). Idempotent. NoSuchBucket, also
    if `bucket_id` is not 0 and the name is another bucket's by now, maybe another owner's."""

    name: str
    bucket_id: int = 0


@dataclass(slots=True)
class RevertDeleteBucket:
    """A range was not empty: the bucket lives on. -> BucketInfo (epoch raised; as it is if the
    deletion of that epoch is over). NoSuchBucket."""

    name: str
    bucket_id: int
    epoch: int


@dataclass(slots=True)
class FinishDeleteBucket:
    """Every fenced range was empty: remove the bucket; its id stays listed by `pending_buckets`
    until ForgetBucket. -> BucketInfo | None (None: it was gone). BucketBusy (the deletion of that
    epoch is over: it was reverted)."""

    name: str
    bucket_id: int
    epoch: int
    """As fenced: the ranges were empty at this epoch."""


@dataclass(slots=True)
class ForgetBucket:
    """Every range was told that the bucket is gone (SyncBucket state "dead"). -> None."""

    bucket_id: int


@dataclass(slots=True)
class SetBucketVersioning:
    """status "Enabled" or "Suspended". -> BucketInfo (epoch raised if changed). To be
    acknowledged only after SyncBucket. NoSuchBucket, BucketBusy, InvalidBucketState."""

    name: str
    status: str
    bucket_id: int = 0
    """As of `BeginDeleteBucket`."""


@dataclass(slots=True)
class SetBucketSetting:
    """Set a document ("tagging", "cors", ...), or remove it (None). -> BucketInfo. No write
    depends on these at apply, so the epoch stays. NoSuchBucket, BucketBusy."""

    name: str
    setting: str
    value: bytes | None
    bucket_id: int = 0
    """As of `BeginDeleteBucket`."""


@dataclass(slots=True)
class PutAccessKey:
    """Create an access key, or replace the same owner's. -> None. AccessKeyExists."""

    key_id: str
    secret: bytes = field(repr=False)
    owner: str
    created_ns: int
    status: str = "Active"


@dataclass(slots=True)
class RemoveAccessKey:
    """-> None. NoSuchAccessKey."""

    key_id: str


@dataclass(slots=True)
class SetClusterSetting:
    """Set a cluster-wide setting, or remove it (None). -> None."""

    name: str
    value: bytes | None


# --- key ranges


@dataclass(slots=True)
class SyncBucket:
    """Give a range its copy of a bucket's settings. -> SyncResult (the range's copy after it;
    an older epoch than the range's changes nothing).

    state: "active", "fenced" (writes fail with BucketFenced; `empty` tells whether it may be
    deleted) or "dead" (deleted: the rest of its rows is removed in steps, see `chores`)."""

    bucket_id: int
    epoch: int
    versioning: str
    state: str
    proposed_ns: int


@dataclass(slots=True)
class PutObject:
    """Write a version. -> PutResult. StaleEpoch, BucketFenced, NoSuchKey (If-Match on a missing
    key), PreconditionFailed, StreamAbandoned, StreamExpired.

    body: b"" only for an empty object; started_ns: when its stream was opened. In an unversioned
    or suspended bucket the null version is replaced and its stream released."""

    bucket_id: int
    epoch: int
    key: bytes
    proposed_ns: int
    owner: str
    size_bytes: int
    etag: str
    blake3: bytes
    body: bytes = b""
    started_ns: int = 0
    checksum: Checksum | None = None
    headers: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    tags: Tags = field(default_factory=list)
    condition: WriteCondition | None = None


@dataclass(slots=True)
class DeleteItem:
    """One key of a delete. version: None (the current one: removed in an unversioned bucket, else
    hidden by a delete marker), an order, or NULL. Conditions look at the current version."""

    key: bytes
    version: int | None = None
    condition: WriteCondition | None = None


@dataclass(slots=True)
class DeleteObject:
    """Delete one. -> DeleteResult. StaleEpoch, BucketFenced, NoSuchKey (If-Match on a missing
    key), PreconditionFailed. A version that does not exist is no error (existed False)."""

    bucket_id: int
    epoch: int
    key: bytes
    proposed_ns: int
    owner: str
    version: int | None = None
    condition: WriteCondition | None = None


@dataclass(slots=True)
class DeleteObjects:
    """Delete several. -> list[DeleteResult | CatalogError], one per item, in order. At most
    MAX_DELETES_PER_COMMAND items, all keys distinct (`delete_batches` splits a list so). As a
    whole: StaleEpoch, BucketFenced."""

    bucket_id: int
    epoch: int
    proposed_ns: int
    owner: str
    items: list[DeleteItem]


@dataclass(slots=True)
class SetTags:
    """Replace the tags of a version ([] removes them). -> TagsResult. NoSuchKey, NoSuchVersion,
    MethodNotAllowed, StaleEpoch, BucketFenced."""

    bucket_id: int
    epoch: int
    key: bytes
    version: int | None
    tags: Tags


@dataclass(slots=True)
class CreateUpload:
    """Open a multipart upload. -> None. StaleEpoch, BucketFenced. upload_id: new_upload_id(...)."""

    bucket_id: int
    epoch: int
    key: bytes
    upload_id: bytes
    proposed_ns: int
    owner: str
    headers: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    tags: Tags = field(default_factory=list)
    checksum_algorithm: str = ""
    checksum_type: str = ""


@dataclass(slots=True)
class PutPart:
    """Store a part (1 to 10,000); the same number is replaced and its stream released.
    -> PartResult. NoSuchUpload, StreamAbandoned, StreamExpired, StaleEpoch, BucketFenced."""

    bucket_id: int
    epoch: int
    key: bytes
    upload_id: bytes
    number: int
    proposed_ns: int
    size_bytes: int
    etag: str
    blake3: bytes
    body: bytes
    started_ns: int
    checksum: Checksum | None = None


@dataclass(slots=True)
class CompleteUpload:
    """Make a version of an upload's parts; nothing is copied. -> PutResult (`repeated` if it had
    been completed within the last day). NoSuchUpload, UploadChanged, NoSuchKey,
    PreconditionFailed, StaleEpoch, BucketFenced.

    changes: UploadInfo.changes at which the parts were read. part_count, part_bitmap,
    part_index, size_bytes: from ChosenParts. The version gets the upload's owner, headers,
    metadata and tags, and as Last-Modified the time of initiation, as AWS documents it."""

    bucket_id: int
    epoch: int
    key: bytes
    upload_id: bytes
    proposed_ns: int
    changes: int
    part_count: int
    part_bitmap: bytes
    part_index: bytes
    size_bytes: int
    etag: str
    blake3: bytes
    checksum: Checksum | None = None
    condition: WriteCondition | None = None


@dataclass(slots=True)
class AbortUpload:
    """Close an open upload; its parts are collected in steps. -> None. NoSuchUpload, StaleEpoch,
    BucketFenced."""

    bucket_id: int
    epoch: int
    key: bytes
    upload_id: bytes
    proposed_ns: int


@dataclass(slots=True)
class AbandonStream:
    """Give up a stream that no row names (bounded steps). -> AbandonResult.

    The first step fences the stream: entries that name it fail from then on. Then the rows under
    the key are searched for it; only "abandoned" allows collecting its frames."""

    bucket_id: int
    key: bytes
    stream: bytes
    proposed_ns: int


@dataclass(slots=True)
class Collect:
    """One bounded step of a chore that `chores` listed. -> StepResult."""

    bucket_id: int
    key: bytes
    chore: int
    subject: bytes
    """16 bytes: upload id or stream id, by kind of chore."""
    proposed_ns: int


@dataclass(slots=True)
class PurgeBucket:
    """One bounded step of removing what is left of a dead bucket in a range. -> StepResult."""

    bucket_id: int
    proposed_ns: int


Command = (
    CreateBucket
    | BeginDeleteBucket
    | RevertDeleteBucket
    | FinishDeleteBucket
    | ForgetBucket
    | SetBucketVersioning
    | SetBucketSetting
    | PutAccessKey
    | RemoveAccessKey
    | SetClusterSetting
    | SyncBucket
    | PutObject
    | DeleteObject
    | DeleteObjects
    | SetTags
    | CreateUpload
    | PutPart
    | CompleteUpload
    | AbortUpload
    | AbandonStream
    | Collect
    | PurgeBucket
)
