"""Queries: every way to read the catalog. Each returns a Query for a node to run.

Errors named here are raised when the query runs. All reads of one query see one instant.
"""

from __future__ import annotations

from . import _read_lists, _read_objects, _read_system, _read_uploads
from ._commands import Command
from ._keys import (
    TABLE_ABANDONED,
    TABLE_CHORE,
    TABLE_UPLOAD,
    TABLE_VERSION,
    bucket_prefix,
    keyed,
)
from ._limits import MAX_PAGE
from ._query import PageQuery, Query
from ._read_lists import Span
from ._types import (
    AccessKey,
    AccessKeysPage,
    BucketInfo,
    BucketsPage,
    Counts,
    ListPage,
    PartInfo,
    PartsPage,
    PartSpan,
    UploadInfo,
    UploadsPage,
    VersionInfo,
    VersionsPage,
)

FIRST_KEY_RANGE = 1
"""Group of the first key range."""


# --- range 0


def get_bucket(name: str) -> Query[BucketInfo]:
    """A bucket by name (also one that is being deleted: see `deleting`). NoSuchBucket."""
    return Query(b"", _read_system.get_bucket, name)


def list_buckets(
    owner: str, prefix: str = "", after: str = "", limit: int = MAX_PAGE
) -> Query[BucketsPage]:
    """An owner's buckets by name, those > `after` that start with `prefix`, without their
    `settings`; limit 1 to 1,000."""
    return Query(b"", _read_system.list_buckets, owner, prefix, after, limit)


def pending_buckets(limit: int = MAX_PAGE) -> Query[list[tuple[int, str, bool]]]:
    """Deletions of buckets under way: (bucket id, name, gone). `gone`: removed from range 0, but
    not every range may know; else it waits to be driven to its end or back."""
    return Query(b"", _read_system.pending_buckets, limit)


def get_access_key(key_id: str) -> Query[AccessKey]:
    """An access key. NoSuchAccessKey."""
    return Query(b"", _read_system.get_access_key, key_id)


def list_access_keys(
    owner: str | None = None, after: str = "", limit: int = MAX_PAGE
) -> Query[AccessKeysPage]:
    """Access keys of an owner (None: of all), with ids > `after`, by id; limit 1 to 1,000."""
    return Query(b"", _read_system.list_access_keys, owner, after, limit)


def get_cluster_setting(name: str) -> Query[bytes | None]:
    """A cluster-wide setting, or None."""
    return Query(b"", _read_system.get_cluster_setting, name)


# --- key ranges: objects


def head_version(
    bucket_id: int, key: bytes, version: int | None = None, *, only_null: bool = False
) -> Query[VersionInfo]:
    """A version: the current one (None), one by order, or the null version (NULL).

    only_null: the bucket's `versioning` was "" when range 0 was read, after the request came; this
    costs less. No version with a number can have been acknowledged before the request then: it
    would have been made under settings that range 0 had committed before it.

    NoSuchKey (with the delete marker's id, if one hides the key), NoSuchVersion, MethodNotAllowed
    (the named version is a delete marker)."""
    route = keyed(TABLE_VERSION, bucket_id, key)
    return Query(route, _read_objects.head_version, bucket_id, key, version, only_null)


def list_objects(
    bucket_id: int,
    prefix: bytes = b"",
    delimiter: bytes = b"",
    after: bytes = b"",
    max_keys: int = MAX_PAGE,
    *,
    with_owner: bool = True,
) -> Query[ListPage]:
    """Current objects with keys > `after` that start with `prefix`, in byte order.

    after: V1's marker, V2's start-after, or `next_after` of the page before (wins over
    start-after). With a delimiter (any length), an `after` inside a common prefix skips it whole.
    max_keys: 0 to 1,000 (more is cut to 1,000); common prefixes count.
    with_owner: False leaves the entries' owner "", which costs less."""
    return PageQuery(
        Span(TABLE_VERSION, bucket_id, prefix, delimiter, after).low,
        _read_lists.list_objects,
        bucket_id,
        prefix,
        delimiter,
        after,
        max_keys,
        with_owner,
    )


def list_versions(
    bucket_id: int,
    prefix: bytes = b"",
    delimiter: bytes = b"",
    *,
    key_marker: bytes = b"",
    version_marker: int | None = None,
    max_keys: int = MAX_PAGE,
) -> Query[VersionsPage]:
    """All versions and delete markers with keys > key_marker, newest first within a key; with a
    version_marker (an order or NULL) the rest of key_marker's versions first."""
    span = Span(TABLE_VERSION, bucket_id, prefix, delimiter, key_marker)
    route = span.low
    if version_marker is not None and span.begins_inside(prefix, key_marker):
        route = keyed(TABLE_VERSION, bucket_id, key_marker)
    return PageQuery(
        route,
        _read_lists.list_versions,
        bucket_id,
        prefix,
        delimiter,
        (key_marker, version_marker),
        max_keys,
    )


def bucket_is_empty(bucket_id: int) -> Query[bool]:
    """Whether no version and no delete marker is left (open uploads do not count), in the range
    where the bucket begins."""
    route = bucket_prefix(TABLE_VERSION, bucket_id)
    return Query(route, _read_lists.bucket_is_empty, bucket_id)


# --- key ranges: uploads


def get_upload(bucket_id: int, key: bytes, upload_id: bytes) -> Query[UploadInfo]:
    """An upload, open or completed within the last day (see `completed`). NoSuchUpload."""
    route = keyed(TABLE_UPLOAD, bucket_id, key)
    return Query(route, _read_uploads.get_upload, bucket_id, key, upload_id)


def list_uploads(
    bucket_id: int,
    prefix: bytes = b"",
    delimiter: bytes = b"",
    *,
    key_marker: bytes = b"",
    upload_marker: bytes = b"",
    max_uploads: int = MAX_PAGE,
) -> Query[UploadsPage]:
    """Open uploads by key, then upload id (time of initiation): those with key > key_marker, and
    with an upload_marker also key_marker's own with a greater id."""
    span = Span(TABLE_UPLOAD, bucket_id, prefix, delimiter, key_marker)
    route = _read_uploads.uploads_start(span, bucket_id, prefix, (key_marker, upload_marker))
    return PageQuery(
        route,
        _read_uploads.list_uploads,
        bucket_id,
        prefix,
        delimiter,
        (key_marker, upload_marker),
        max_uploads,
    )


def list_parts(
    bucket_id: int, key: bytes, upload_id: bytes, after: int = 0, limit: int = MAX_PAGE
) -> Query[PartsPage]:
    """Parts of an open upload with numbers > `after`; limit 0 to 1,000. NoSuchUpload."""
    route = keyed(TABLE_UPLOAD, bucket_id, key)
    return Query(route, _read_uploads.list_parts, bucket_id, key, upload_id, after, limit)


def get_part(bucket_id: int, key: bytes, upload_id: bytes, number: int) -> Query[PartInfo]:
    """One part of an open upload. NoSuchUpload, InvalidPart."""
    route = keyed(TABLE_UPLOAD, bucket_id, key)
    return Query(route, _read_uploads.get_part, bucket_id, key, upload_id, number)


def parts_from(
    bucket_id: int, version: VersionInfo, offset: int = 0, limit: int = 100
) -> Query[list[PartSpan]]:
    """Parts of a multipart version from the one that holds byte `offset` on, at most `limit`
    (1 to 1,000); [] past the end. For the next page pass last.offset + last.size_bytes.
    Parts of no bytes are left out. NoSuchVersion if it was deleted since."""
    route = keyed(TABLE_VERSION, bucket_id, version.key)
    return Query(route, _read_uploads.parts_from, bucket_id, version, offset, limit)


def part_of_version(bucket_id: int, version: VersionInfo, number: int) -> Query[PartSpan | None]:
    """Part `number` of a multipart version (for ?partNumber=), or None if it has none such."""
    route = keyed(TABLE_VERSION, bucket_id, version.key)
    return Query(route, _read_uploads.part_of_version, bucket_id, version, number)


def parts_of_version(
    bucket_id: int, version: VersionInfo, after: int = 0, limit: int = MAX_PAGE
) -> Query[list[PartSpan]]:
    """Parts of a multipart version with numbers > `after` (GetObjectAttributes); limit 1 to
    1,000."""
    route = keyed(TABLE_VERSION, bucket_id, version.key)
    return Query(route, _read_uploads.parts_of_version, bucket_id, version, after, limit)


# --- a range as a whole


def counts(group: int = FIRST_KEY_RANGE) -> Query[Counts]:
    """The sums of a key range; exact are those over all ranges (`Counts.divided`, `add_counts`)."""
    return Query(bucket_prefix(TABLE_VERSION, 0), _read_system.counts, group, group=group)


def range_bucket_epoch(bucket_id: int, group: int = FIRST_KEY_RANGE) -> Query[int]:
    """The settings epoch of a range's copy of a bucket; 0 if it has none."""
    route = bucket_prefix(TABLE_VERSION, bucket_id)
    return Query(route, _read_system.range_bucket_epoch, bucket_id, group, group=group)


def chores(
    now_ns: int, after: bytes = b"", limit: int = 100, group: int = FIRST_KEY_RANGE
) -> Query[tuple[list[Command], bytes]]:
    """Commands that clean up what is due: parts of dead uploads, old abandon rows, completed
    uploads older than a day, dead buckets. Submit each until its StepResult is done.

    Returns (commands, next_after); next_after b"" means the end was reached, else pass it for the
    next page. A chore's own command is idempotent, so a missed or repeated one does no harm."""
    route = bucket_prefix(TABLE_CHORE, 0)
    return Query(route, _read_system.chores, now_ns, after, limit, group, group=group)


def is_abandoned(bucket_id: int, key: bytes, stream: bytes) -> Query[bool]:
    """Whether AbandonStream ended with "abandoned" for this stream."""
    route = keyed(TABLE_ABANDONED, bucket_id, key)
    return Query(route, _read_system.is_abandoned, bucket_id, key, stream)
