"""What the catalog holds and answers. Times are UNIX nanoseconds, keys UTF-8 bytes, sizes bytes.

`owner` is an owner id (text). `etag` is without quotes: 32 hexadecimal digits, for multipart
followed by -N. `body` is a packed crypto.StreamRef (60 bytes), or b"" where there are no bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from ._version_id import version_id


class Checksum(NamedTuple):
    """An object checksum as S3 names it."""

    algorithm: str
    """"CRC32", "CRC32C", "CRC64NVME", "SHA1" or "SHA256"."""
    kind: str
    """"FULL_OBJECT" or "COMPOSITE"."""
    value: bytes
    """The digest, as S3 base64-encodes it (CRCs big-endian)."""


Tags = list[tuple[str, str]]


@dataclass(slots=True)
class BucketInfo:
    """A bucket as range 0 holds it."""

    bucket_id: int
    """Never reused."""
    name: str
    owner: str
    created_ns: int
    region: str
    versioning: str = ""
    """"" (never switched on), "Enabled" or "Suspended"."""
    epoch: int = 1
    """Settings epoch: goes into every command on the bucket's objects."""
    deleting: bool = False
    """A deletion is under way; it ends with the bucket gone or as it was."""
    settings: dict[str, bytes] = field(default_factory=dict)
    """"tagging", "cors", ...: documents in the form the S3 layer chose."""


@dataclass(slots=True)
class WriteCondition:
    """Conditions of a write, checked at apply against the current version of the key.

    if_match: "*" or an ETag. No current version: NoSuchKey; another ETag: PreconditionFailed.
    if_none_match: "*" or an ETag. PreconditionFailed if a current version exists ("*") or has it.
    if_match_modified_ns, if_match_size: deletes only; hold when there is no current version
    (x-amz-if-match-last-modified-time compares whole seconds)."""

    if_match: str | None = None
    if_none_match: str | None = None
    if_match_modified_ns: int | None = None
    if_match_size: int | None = None


@dataclass(slots=True)
class VersionInfo:
    """One version of an object, or a delete marker."""

    key: bytes
    order: int
    is_null: bool
    delete_marker: bool
    modified_ns: int
    owner: str
    size_bytes: int
    etag: str
    body: bytes
    blake3: bytes
    """BLAKE3 of the plaintext; of a multipart version: over its parts' BLAKE3 in order."""
    upload_id: bytes = b""
    """16 bytes; b"" unless multipart: then the parts are rows (see parts_from)."""
    part_count: int = 0
    part_bitmap: bytes = b""
    """Bit n set: part n is used. b"": every part row of the upload is."""
    part_index: bytes = b""
    """Marks of every 128th used part: number u16, offset u64, big-endian."""
    checksum: Checksum | None = None
    headers: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    tags: Tags = field(default_factory=list)
    is_latest: bool = True
    """Filled by queries."""

    @property
    def version_id(self) -> str:
        """ "null" or the text of the order."""
        return "null" if self.is_null else version_id(self.order)


@dataclass(slots=True)
class PartInfo:
    """One uploaded part."""

    number: int
    size_bytes: int
    etag: str
    body: bytes
    modified_ns: int
    blake3: bytes
    checksum: Checksum | None = None


@dataclass(slots=True)
class PartSpan:
    """A part of a completed version and where it lies in the object."""

    number: int
    offset: int
    """Of its first byte in the object."""
    size_bytes: int
    body: bytes
    etag: str
    checksum: Checksum | None = None


@dataclass(slots=True)
class UploadInfo:
    """A multipart upload."""

    key: bytes
    upload_id: bytes
    initiated_ns: int
    owner: str
    changes: int = 0
    """Counts changes of the parts; CompleteUpload carries the value it was computed at."""
    part_count: int = 0
    """Parts uploaded so far."""
    parts_size_bytes: int = 0
    """Sum of their sizes."""
    checksum_algorithm: str = ""
    checksum_type: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    tags: Tags = field(default_factory=list)
    completed: CompletedUpload | None = None
    """Set for a day after completion; such an upload is not listed and takes no parts."""


@dataclass(slots=True)
class CompletedUpload:
    """What CompleteUpload answered, so that it can answer the same again for a day."""

    completed_ns: int
    order: int
    is_null: bool
    versioned: bool
    size_bytes: int
    etag: str
    checksum: Checksum | None = None


@dataclass(slots=True)
class AccessKey:
    """An access key. The row holds the secret itself: signatures cannot be checked with less. On
    a disk it lies sealed like all rows, by each node's own disk key."""

    key_id: str
    secret: bytes = field(repr=False)
    owner: str
    created_ns: int
    status: str = "Active"
    """"Active" or "Inactive"."""


@dataclass(slots=True)
class Counts:
    """Exact sums of one key range."""

    clock_ns: int = 0
    """The last version order given."""
    objects: int = 0
    """Keys with a current version that is no delete marker."""
    versions: int = 0
    """Version rows, delete markers included."""
    delete_markers: int = 0
    size_bytes: int = 0
    """Sum of the sizes of all versions."""
    uploads: int = 0
    """Open uploads."""
    upload_size_bytes: int = 0
    """Sum of the sizes of the parts of open uploads."""
    garbage: int = 0
    """Chores that wait (see `chores`)."""
    abandoned: int = 0
    """Abandon rows."""
    divided: bool = False
    """The range was cut in two, or was cut off another: what a key counted before stays counted in
    the part that kept the number, so a sum may be below zero here, and only the sums over all
    ranges say something. (`clock_ns` and `abandoned` are this range's own in any case.)"""


# --- results of commands


@dataclass(slots=True)
class CreateBucketResult:
    """`created` is False if the owner already had the bucket."""

    bucket: BucketInfo
    created: bool


@dataclass(slots=True)
class SyncResult:
    """The range's copy after a SyncBucket: its epoch, and whether the range holds no version of
    the bucket at that instant."""

    epoch: int
    empty: bool


@dataclass(slots=True)
class PutResult:
    """A version was written. `order` is its order."""

    order: int
    is_null: bool
    versioned: bool
    """The bucket has had versioning (Enabled or Suspended): answer a version id."""
    repeated: bool = False
    """CompleteUpload only: the upload had been completed before; nothing was written now."""
    etag: str = ""
    size_bytes: int = 0
    checksum: Checksum | None = None

    @property
    def version_id(self) -> str | None:
        """For x-amz-version-id; None in a bucket that never had versioning."""
        if not self.versioned:
            return None
        return "null" if self.is_null else version_id(self.order)


@dataclass(slots=True)
class DeleteResult:
    """Outcome of a delete. Deleting what is not there succeeds (existed False)."""

    existed: bool
    """A version was removed, or a current version was hidden by a marker."""
    delete_marker: bool
    """A marker was written, or the version removed was one."""
    order: int = 0
    """Of the marker written or the version removed; 0 if there is none to name."""
    is_null: bool = False
    versioned: bool = False

    @property
    def version_id(self) -> str | None:
        """For x-amz-version-id; None if there is none to tell."""
        if not self.versioned:
            return None
        if self.is_null:
            return "null"
        return version_id(self.order) if self.order else None


@dataclass(slots=True)
class TagsResult:
    """Which version's tags were set."""

    order: int
    is_null: bool
    versioned: bool

    @property
    def version_id(self) -> str | None:
        """For x-amz-version-id; None in a bucket that never had versioning."""
        if not self.versioned:
            return None
        return "null" if self.is_null else version_id(self.order)


@dataclass(slots=True)
class PartResult:
    """A part was stored; `changes` is the upload's change count after it."""

    changes: int
    replaced: bool


@dataclass(slots=True)
class StepResult:
    """A bounded step: propose the same command again until `done`."""

    done: bool


@dataclass(slots=True)
class AbandonResult:
    """State of an AbandonStream: "abandoned" (its frames may be collected), "named" (a row names
    it: leave it) or "more" (propose the same command again)."""

    state: str


# --- pages

ListEntry = tuple[bytes, int, str, int, str, str, str]
"""key, modified_ns, etag, size_bytes, owner, checksum algorithm, checksum type ("" for none)."""

VersionEntry = tuple[bytes, int, bool, bool, bool, int, str, int, str, str, str]
"""key, order, is_null, is_latest, delete_marker, modified_ns, etag, size_bytes, owner, checksum
algorithm, checksum type."""

UploadEntry = tuple[bytes, bytes, int, str, str, str]
"""key, upload_id, initiated_ns, owner, checksum algorithm, checksum type."""


@dataclass(slots=True)
class ListPage:
    """One page of current objects, at one instant.

    `next_after` is to be passed as `after` for the next page: V1 sends it as NextMarker, V2 wraps
    it into its token. b"" unless truncated. A page can be truncated and empty (10,000 rows of
    delete markers): V1 must then send NextMarker even without a delimiter."""

    entries: list[ListEntry]
    common_prefixes: list[bytes]
    truncated: bool
    next_after: bytes


@dataclass(slots=True)
class VersionsPage:
    """One page of versions and delete markers, newest first within a key."""

    entries: list[VersionEntry]
    common_prefixes: list[bytes]
    truncated: bool
    next_key_marker: bytes
    next_version_marker: int
    """0: none; else an order, or NULL. `next_version_marker_text` for the answer."""

    @property
    def next_version_marker_text(self) -> str:
        """NextVersionIdMarker: "" if there is none."""
        if not self.next_version_marker:
            return ""
        return "null" if self.next_version_marker < 0 else version_id(self.next_version_marker)


@dataclass(slots=True)
class UploadsPage:
    """One page of open uploads, by key, then by time of initiation."""

    entries: list[UploadEntry]
    common_prefixes: list[bytes]
    truncated: bool
    next_key_marker: bytes
    next_upload_marker: bytes


@dataclass(slots=True)
class PartsPage:
    """One page of the parts of an open upload."""

    upload: UploadInfo
    parts: list[PartInfo]
    truncated: bool
    next_after: int


@dataclass(slots=True)
class BucketsPage:
    """One page of an owner's buckets by name; `next_after` is None on the last page."""

    buckets: list[BucketInfo]
    next_after: str | None


@dataclass(slots=True)
class AccessKeysPage:
    """One page of access keys by (owner, key id); `next_after` is None on the last page."""

    keys: list[AccessKey]
    next_after: str | None
