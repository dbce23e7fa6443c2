"""Listing objects and versions: hot. A page of 1,000 keys is two Scans and a loop over
their rows; what lies between two of them is a step on the event loop.

Rows of one key lie newest first, so the first row of a key decides; the rest of its rows, and the
rest of a common prefix, are passed by bisection inside the rows at hand, or by starting the next
Scan behind them. How many rows the next Scan reads follows from how many of the last were of use:
a page of 1,000 common prefixes over millions of keys reads a few thousand rows, not millions.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from typing import Final

from o3storage.runtime.state_machine import First, Get, Row, Scan

from ._codec import CHECKSUM_NAMES
from ._keys import (
    END,
    KEY_OFFSET,
    OLDEST_SLOT,
    TABLE_NULL,
    TABLE_VERSION,
    VERSION_TAIL,
    after_prefix,
    bucket_prefix,
    escape_open,
    keyed,
    slot,
    unescape,
)
from ._limits import LIST_STEP_ROWS, MAX_EXAMINED, MAX_PAGE
from ._query import Steps
from ._types import ListEntry, ListPage, VersionEntry, VersionsPage
from ._version_id import NULL
from ._versions import HAS_BODY, IS_MARKER, IS_NULL, VERSION_LIST

AFTER_KEY: Final = b"\x00\x01"
"""Behind an escaped key: above all rows of that key, below those of every greater key."""

INSIDE: Final = "\U0010ffff".encode()
"""Ends a marker that stands inside a common prefix which was not answered yet: a page may end
there when 10,000 rows of delete markers were all it saw. Without it a marker inside a common
prefix skips that prefix. The noncharacter U+10FFFF passes XML and URLs."""

FROM: Final = "\U0010fffe".encode()
"""Ends a marker that stands for a key itself, not for what follows it: a page ended where its range
ends, and the next range begins at that key. Inside a common prefix it does not skip the prefix.
U+10FFFE is a noncharacter like `INSIDE`."""

MARKS: Final = (INSIDE, FROM)
"""In nobody's keys, because the S3 layer refuses such keys: after one that ends in a mark a listing
would go on before it, for ever."""

BEHIND_KEY: Final = b"\xff" * 9
"""In place of a slot: above all versions of a key."""

_FIRST_DELIMITED_SCAN: Final = 64
"""Rows of the first Scan with a delimiter: how many keys share a prefix is not known yet."""
_UNPACK = VERSION_LIST.unpack_from
_UNPACK_CURRENT = struct.Struct(">xB8xQQH16s32xBB").unpack_from
"""`VERSION_LIST` without the order, which a listing of current versions has no use for."""


class Span:
    """The rows a listing may look at."""

    __slots__ = ("base", "border", "delimiter", "high", "low", "prefix_length")

    def __init__(  # noqa: PLR0917
        self,
        table: int,
        bucket_id: int,
        prefix: bytes,
        delimiter: bytes,
        after: bytes,
        border: bytes = b"",
    ) -> None:
        """`border`: where the range ends, as of `Query.__call__`; b"" for nowhere."""
        self.base = bucket_prefix(table, bucket_id)
        self.delimiter = delimiter
        self.prefix_length = len(prefix)
        self.low = self.base + escape_open(prefix)
        self.high = after_prefix(self.low)
        if after:
            self.low = max(self.low, self._behind(prefix, after))
        self.border = b""
        """First key of the next range, if the listing goes on there."""
        end = self.base[:1] + border
        if border and self.low < end < self.high:
            self.high = end
            self.border = unescape(border[KEY_OFFSET - 1 : -2])

    def _behind(self, prefix: bytes, after: bytes) -> bytes:
        """The lowest row above marker `after`, and above the common prefix it lies in."""
        if after.endswith(FROM):
            return self.base + escape_open(after[: -len(FROM)]) + END
        if self.delimiter and after.startswith(prefix):
            if after.endswith(INSIDE):
                return self.base + escape_open(after[: -len(INSIDE)]) + AFTER_KEY
            group = self.group(after)
            if group:
                return self.behind_group(group)
        return self.base + escape_open(after) + AFTER_KEY

    def group(self, key: bytes) -> bytes:
        """The common prefix that a key of this listing rolls up into; b"" for none."""
        at = key.find(self.delimiter, self.prefix_length)
        return b"" if at < 0 else key[: at + len(self.delimiter)]

    def begins_inside(self, prefix: bytes, key: bytes) -> bool:
        """A marker with a version goes on among the versions of its key."""
        return key.startswith(prefix) and not (self.delimiter and self.group(key))

    def behind_group(self, group: bytes) -> bytes:
        return after_prefix(self.base + escape_open(group))

    def resume(self, key: bytes, last: bytes) -> bytes:
        """The marker after which a page that ended early at `key` goes on; `last` is what it
        answered last."""
        group = self.group(key) if self.delimiter else b""
        if not group:
            return key
        return group if group == last else key + INSIDE

    def at_border(self, last: bytes) -> bytes:
        """The marker with which a listing goes on in the next range; `last` as in `resume`."""
        group = self.group(self.border) if self.delimiter else b""
        return group if group and group == last else self.border + FROM


def first_scan(limit: int, delimiter: bytes) -> int:
    """Rows of the first Scan: the page and one more, which tells whether it is truncated, if they
    are not too many for a step."""
    return min(_FIRST_DELIMITED_SCAN if delimiter else LIST_STEP_ROWS, limit + 1)


def next_scan(useful: int, answered: int, room: int) -> int:
    """Rows to ask for after a Scan of which `useful` were looked at (the rest was passed), of
    which `answered` went into the page that has `room` left."""
    size = min(LIST_STEP_ROWS, 2 * useful + 2)
    return min(size, room + 1) if answered else size


def list_objects(  # noqa: PLR0917
    bucket_id: int,
    prefix: bytes,
    delimiter: bytes,
    after: bytes,
    max_keys: int,
    with_owner: bool,
    border: bytes = b"",
) -> Steps[ListPage]:
    limit = min(max_keys, MAX_PAGE)
    entries: list[ListEntry] = []
    groups: list[bytes] = []
    if limit <= 0:
        return ListPage(entries, groups, False, b"")
    span = Span(TABLE_VERSION, bucket_id, prefix, delimiter, after, border)
    low = span.low
    high = span.high
    delimiter_length = len(delimiter)
    prefix_length = span.prefix_length
    last = b""
    """The last answered key or common prefix."""
    key = b""
    owners: dict[bytes, str] = {}
    room = limit
    examined = 0
    size = first_scan(limit, delimiter)
    while low < high:
        size = min(size, MAX_EXAMINED - examined)
        if size <= 0:
            return ListPage(entries, groups, True, span.resume(key, last))
        rows: list[Row] = yield Scan(low, high, size)
        count = len(rows)
        examined += count
        useful = 0
        before = room
        at = 0
        jump = b""
        keys = None if delimiter else _single_keys(rows)
        if keys:
            # Most pages hold nothing else; the loop below goes on at a delete marker or at the end.
            at = useful = _add_single(entries, keys[:room], rows, owners, with_owner)
            room -= at
            if at:
                key = last = entries[-1][0]
        while at < count:
            row_key, value = rows[at]
            at += 1
            key = row_key[KEY_OFFSET:-VERSION_TAIL]
            # Older versions of this key follow directly, if there are any.
            if at < count and rows[at][0].startswith(key, KEY_OFFSET):
                behind = row_key[:-8] + BEHIND_KEY
                if rows[at][0] < behind:
                    at = bisect_left(rows, (behind,), at)
                    jump = behind
            if b"\x00" in key:
                key = unescape(key)
            useful += 1
            flags, modified, length, suffix, digest, code, owner_length = _UNPACK_CURRENT(value)
            if flags & IS_MARKER:
                continue
            if not room:
                return ListPage(entries, groups, True, last)
            room -= 1
            if delimiter:
                found = key.find(delimiter, prefix_length)
                if found >= 0:
                    last = key[: found + delimiter_length]
                    groups.append(last)
                    jump = span.behind_group(last)
                    if at < count and rows[at][0] < jump:
                        at = bisect_left(rows, (jump,), at)
                    continue
            owner = _owner(owners, value, flags, owner_length) if with_owner else ""
            etag = f"{digest.hex()}-{suffix}" if suffix else digest.hex()
            algorithm, kind = CHECKSUM_NAMES[code]
            entries.append((key, modified, etag, length, owner, algorithm, kind))
            last = key
        if count < size:
            break
        low = max(rows[-1][0][:-8] + BEHIND_KEY, jump)
        size = next_scan(useful, before - room, room)
        rows = []  # (large; others may be served before the next come)
    if span.border:
        return ListPage(entries, groups, True, span.at_border(last))
    return ListPage(entries, groups, False, b"")


def _single_keys(rows: list[Row]) -> list[bytes] | None:
    """The keys, if each row is of a key of its own, and no key is escaped."""
    keys = [row_key[KEY_OFFSET:-VERSION_TAIL] for row_key, _ in rows]
    single = len(dict.fromkeys(keys)) == len(keys) and b"\x00" not in b"".join(keys)
    return keys if single else None


def _add_single(
    entries: list[ListEntry],
    keys: list[bytes],
    rows: list[Row],
    owners: dict[bytes, str],
    with_owner: bool,
) -> int:
    """Entries of rows with these `_single_keys`, up to the first delete marker; how many these
    are."""
    before = len(entries)
    owner = ""
    last = b""
    for key, (_, value) in zip(keys, rows, strict=False):
        flags, modified, length, suffix, digest, code, owner_length = _UNPACK_CURRENT(value)
        if flags & IS_MARKER:
            break
        if with_owner:
            start = 138 if flags & HAS_BODY else 78
            text = value[start : start + owner_length]
            if text != last:
                last = text
                owner = _owner(owners, value, flags, owner_length)
        etag = f"{digest.hex()}-{suffix}" if suffix else digest.hex()
        algorithm, kind = CHECKSUM_NAMES[code]
        entries.append((key, modified, etag, length, owner, algorithm, kind))
    return len(entries) - before


def _owner(owners: dict[bytes, str], value: bytes, flags: int, owner_length: int) -> str:
    """The owner's name in a version; `owners` remembers those of this page."""
    start = 138 if flags & HAS_BODY else 78
    text = value[start : start + owner_length]
    return owners.get(text) or owners.setdefault(text, text.decode())


def list_versions(  # noqa: PLR0917
    bucket_id: int,
    prefix: bytes,
    delimiter: bytes,
    marker: tuple[bytes, int | None],
    max_keys: int,
    border: bytes = b"",
) -> Steps[VersionsPage]:
    key_marker, version_marker = marker
    limit = min(max_keys, MAX_PAGE)
    entries: list[VersionEntry] = []
    groups: list[bytes] = []
    if limit <= 0:
        return VersionsPage(entries, groups, False, b"", 0)
    span = Span(TABLE_VERSION, bucket_id, prefix, delimiter, key_marker, border)
    low = span.low
    high = span.high
    behind = b""
    """Rows from here on may be the newest of their key; rows before it are not."""
    if version_marker is not None and span.begins_inside(prefix, key_marker):
        low, behind = yield from _inside_key(bucket_id, key_marker, version_marker)
    last_key = b""
    last_version = 0
    previous = b""
    room = limit
    examined = 0
    size = first_scan(limit, delimiter)
    while low < high:
        size = min(size, MAX_EXAMINED - examined)
        if size <= 0:
            return VersionsPage(entries, groups, True, last_key, last_version)
        rows: list[Row] = yield Scan(low, high, size)
        count = len(rows)
        examined += count
        useful = 0
        before = room
        at = 0
        jump = b""
        while at < count:
            row_key, value = rows[at]
            at += 1
            useful += 1
            if not room:
                return VersionsPage(entries, groups, True, last_key, last_version)
            room -= 1
            escaped = row_key[KEY_OFFSET:-VERSION_TAIL]
            key = unescape(escaped) if b"\x00" in escaped else escaped
            if delimiter:
                group = span.group(key)
                if group:
                    groups.append(group)
                    last_key = group
                    last_version = 0
                    jump = span.behind_group(group)
                    at = bisect_left(rows, (jump,), at)
                    continue
            flags, order, modified, length, suffix, digest, code, owner_length = _UNPACK(value)
            start = 138 if flags & HAS_BODY else 78
            algorithm, kind = CHECKSUM_NAMES[code]
            deleted = bool(flags & IS_MARKER)
            is_null = bool(flags & IS_NULL)
            etag = "" if deleted else f"{digest.hex()}-{suffix}" if suffix else digest.hex()
            entries.append(
                (
                    key,
                    order,
                    is_null,
                    escaped != previous and row_key >= behind,
                    deleted,
                    modified,
                    etag,
                    length,
                    value[start : start + owner_length].decode(),
                    algorithm,
                    kind,
                )
            )
            previous = escaped
            last_key = key
            last_version = NULL if is_null else order
        if count < size:
            break
        low = max(rows[-1][0] + b"\x00", jump)
        size = next_scan(useful, before - room, room)
        rows = []  # (large; others may be served before the next come)
    if span.border:
        return VersionsPage(entries, groups, True, span.at_border(last_key), 0)
    return VersionsPage(entries, groups, False, b"", 0)


def _inside_key(bucket_id: int, key: bytes, version_marker: int) -> Steps[tuple[bytes, bytes]]:
    """(first row behind a version of `key`, first row that can be the newest of its key).

    A version that is gone still marks a place by its order; a null version that is gone does not:
    then the rest of the key is skipped."""
    prefix = keyed(TABLE_VERSION, bucket_id, key)
    after = prefix[:-2] + AFTER_KEY
    newest: Row | None = yield First(prefix)
    if newest is None:
        return after, b""
    if version_marker == NULL:
        pointer = yield Get(keyed(TABLE_NULL, bucket_id, key))
        at = prefix + (OLDEST_SLOT if pointer is None else slot(int.from_bytes(pointer, "big")))
    else:
        at = prefix + slot(version_marker)
    low = at + b"\x00"
    return low, b"" if low <= newest[0] else after


def bucket_is_empty(bucket_id: int) -> Steps[bool]:
    prefix = bucket_prefix(TABLE_VERSION, bucket_id)
    rows: list[Row] = yield Scan(prefix, after_prefix(prefix), 1)
    return not rows
