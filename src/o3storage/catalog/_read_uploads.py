"""Reading uploads, their parts, and the parts of completed versions."""

from __future__ import annotations

from bisect import bisect_left

from o3storage.runtime.state_machine import Get, Row, Scan

from ._codec import checksum_names
from ._errors import InvalidPart, NoSuchUpload, NoSuchVersion
from ._keys import (
    OLDEST_SLOT,
    TABLE_PART,
    TABLE_UPLOAD,
    TABLE_VERSION,
    after_prefix,
    keyed,
    part_row,
    slot,
    split_keyed,
    upload_row,
)
from ._limits import LIST_STEP_ROWS, MAX_EXAMINED, MAX_PAGE, PART_INDEX_STRIDE
from ._parts import MARK, has_bit
from ._query import Steps
from ._read_lists import INSIDE, Span, first_scan, next_scan
from ._rows import part_size, unpack_part, unpack_upload, upload_is_completed
from ._types import (
    PartInfo,
    PartsPage,
    PartSpan,
    UploadEntry,
    UploadInfo,
    UploadsPage,
    VersionInfo,
)
from ._versions import (
    IS_MULTIPART,
    UPLOAD_HEAD,
    UPLOAD_HEAD_BYTES,
    version_order,
    version_upload_id,
)


def get_upload(bucket_id: int, key: bytes, upload_id: bytes) -> Steps[UploadInfo]:
    value = yield Get(upload_row(bucket_id, key, upload_id))
    if value is None:
        raise NoSuchUpload(key, upload_id)
    return unpack_upload(key, upload_id, value)


def _open_upload(bucket_id: int, key: bytes, upload_id: bytes) -> Steps[UploadInfo]:
    upload = yield from get_upload(bucket_id, key, upload_id)
    if upload.completed is not None:
        raise NoSuchUpload(key, upload_id)
    return upload


def list_parts(
    bucket_id: int, key: bytes, upload_id: bytes, after: int, limit: int
) -> Steps[PartsPage]:
    upload = yield from _open_upload(bucket_id, key, upload_id)
    limit = min(limit, MAX_PAGE)
    if limit <= 0 or after >= 0xFFFF:
        return PartsPage(upload, [], False, 0)
    prefix = keyed(TABLE_PART, bucket_id, key) + upload_id
    low = prefix + (max(after, 0) + 1).to_bytes(2, "big")
    high = after_prefix(prefix)
    parts: list[PartInfo] = []
    wanted = count = 0
    while count == wanted and len(parts) <= limit:
        wanted = min(LIST_STEP_ROWS, limit + 1 - len(parts))
        rows: list[Row] = yield Scan(low, high, wanted)
        count = len(rows)
        parts += [unpack_part(int.from_bytes(key[-2:], "big"), value) for key, value in rows]
        if rows:
            low = rows[-1][0] + b"\x00"
    truncated = len(parts) > limit
    del parts[limit:]
    return PartsPage(upload, parts, truncated, parts[-1].number if truncated else 0)


def get_part(bucket_id: int, key: bytes, upload_id: bytes, number: int) -> Steps[PartInfo]:
    yield from _open_upload(bucket_id, key, upload_id)
    if not 0 < number <= 0xFFFF:
        raise InvalidPart(number)
    value = yield Get(part_row(bucket_id, key, upload_id, number))
    if value is None:
        raise InvalidPart(number)
    return unpack_part(number, value)


def uploads_start(span: Span, bucket_id: int, prefix: bytes, marker: tuple[bytes, bytes]) -> bytes:
    """The first row that a page of `list_uploads` looks at."""
    key_marker, upload_marker = marker
    if upload_marker and key_marker.startswith(prefix):
        inside = bool(span.delimiter) and key_marker.endswith(INSIDE)
        marked = key_marker[: -len(INSIDE)] if inside else key_marker
        if inside or not (span.delimiter and span.group(marked)):
            return keyed(TABLE_UPLOAD, bucket_id, marked) + upload_marker + b"\x00"
    return span.low


def list_uploads(  # noqa: PLR0917
    bucket_id: int,
    prefix: bytes,
    delimiter: bytes,
    marker: tuple[bytes, bytes],
    max_uploads: int,
    border: bytes = b"",
) -> Steps[UploadsPage]:
    limit = min(max_uploads, MAX_PAGE)
    entries: list[UploadEntry] = []
    groups: list[bytes] = []
    if limit <= 0:
        return UploadsPage(entries, groups, False, b"", b"")
    span = Span(TABLE_UPLOAD, bucket_id, prefix, delimiter, marker[0], border)
    low = uploads_start(span, bucket_id, prefix, marker)
    last_key = last_id = b""
    key = upload_id = b""
    room = limit
    examined = 0
    size = first_scan(limit, delimiter)
    while low < span.high:
        size = min(size, MAX_EXAMINED - examined)
        if size <= 0:
            return UploadsPage(entries, groups, True, span.resume(key, last_key), upload_id)
        rows: list[Row] = yield Scan(low, span.high, size)
        examined += len(rows)
        useful = 0
        before = room
        at = 0
        jump = b""
        while at < len(rows):
            row_key, value = rows[at]
            at += 1
            useful += 1
            _, key, upload_id = split_keyed(row_key)
            if upload_is_completed(value):
                continue
            if not room:
                return UploadsPage(entries, groups, True, last_key, last_id)
            room -= 1
            group = span.group(key) if delimiter else b""
            if group:
                groups.append(group)
                last_key, last_id = group, b""
                jump = span.behind_group(group)
                at = bisect_left(rows, (jump,), at)
                continue
            *_, initiated_ns, code, _, owner_length = UPLOAD_HEAD.unpack_from(value)
            owner = value[UPLOAD_HEAD_BYTES : UPLOAD_HEAD_BYTES + owner_length].decode()
            entries.append((key, upload_id, initiated_ns, owner, *checksum_names(code)))
            last_key, last_id = key, upload_id
        if len(rows) < size:
            break
        low = max(rows[-1][0] + b"\x00", jump)
        size = next_scan(useful, before - room, room)
        rows = []
    if span.border:
        return UploadsPage(entries, groups, True, span.at_border(last_key), b"")
    return UploadsPage(entries, groups, False, b"", b"")


# --- parts of completed versions


def _check_alive(bucket_id: int, version: VersionInfo) -> Steps[None]:
    """The version's row still names the upload: else its parts may be half collected."""
    prefix = keyed(TABLE_VERSION, bucket_id, version.key)
    value = yield Get(prefix + slot(version.order))
    if value is None and version.is_null:
        value = yield Get(prefix + OLDEST_SLOT)
    if (
        value is None
        or not value[1] & IS_MULTIPART
        or version_order(value) != version.order
        or version_upload_id(value) != version.upload_id
    ):
        raise NoSuchVersion(version.key, version.order)


def _mark_before(version: VersionInfo, field: int, limit: int) -> tuple[int, int]:
    """The last mark (part number, offset) whose `field` is at most `limit`."""
    number, offset = 1, 0
    for mark in MARK.iter_unpack(version.part_index):
        if mark[field] > limit:
            break
        number, offset = mark
    return number, offset


def _walk(
    bucket_id: int,
    version: VersionInfo,
    start: tuple[int, int],
    keep_from: tuple[int, int],
    limit: int,
) -> Steps[list[PartSpan]]:
    """Parts from `start` (a part number and the byte it begins at) on, at most `limit` of those
    whose number is at least keep_from[0] and whose end is above keep_from[1]."""
    number, offset = start
    yield from _check_alive(bucket_id, version)
    prefix = keyed(TABLE_PART, bucket_id, version.key) + version.upload_id
    low = prefix + number.to_bytes(2, "big")
    high = after_prefix(prefix)
    bitmap = version.part_bitmap
    least_number, least_end = keep_from
    spans: list[PartSpan] = []
    while True:
        wanted = min(MAX_PAGE, limit - len(spans) + PART_INDEX_STRIDE)
        rows: list[Row] = yield Scan(low, high, wanted)
        for row_key, value in rows:
            number = int.from_bytes(row_key[-2:], "big")
            if not has_bit(bitmap, number):
                continue
            size = part_size(value)
            if number >= least_number and offset + size > least_end:
                part = unpack_part(number, value)
                spans.append(PartSpan(number, offset, size, part.body, part.etag, part.checksum))
                if len(spans) == limit:
                    return spans
            offset += size
        if len(rows) < wanted:
            if offset != version.size_bytes:
                raise ValueError("the parts of a version do not add up to its size")
            return spans
        low = rows[-1][0] + b"\x00"


def parts_from(
    bucket_id: int, version: VersionInfo, offset: int, limit: int
) -> Steps[list[PartSpan]]:
    if not version.upload_id or offset >= version.size_bytes:
        return []
    start = _mark_before(version, 1, offset)
    limit = max(1, min(limit, MAX_PAGE))
    return (yield from _walk(bucket_id, version, start, (0, offset), limit))


def parts_of_version(
    bucket_id: int, version: VersionInfo, after: int, limit: int
) -> Steps[list[PartSpan]]:
    if not version.upload_id:
        return []
    start = _mark_before(version, 0, after + 1)
    limit = max(1, min(limit, MAX_PAGE))
    return (yield from _walk(bucket_id, version, start, (after + 1, -1), limit))


def part_of_version(bucket_id: int, version: VersionInfo, number: int) -> Steps[PartSpan | None]:
    spans = yield from parts_of_version(bucket_id, version, number - 1, 1)
    return spans[0] if spans and spans[0].number == number else None
