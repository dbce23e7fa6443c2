"""What every command of a key range shares: its rows, the epoch check, conditions, releases."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeVar

from o3storage.runtime.state_machine import First, Get, Outcome, Read, Row

from ._errors import (
    BucketFenced,
    CatalogError,
    NoSuchKey,
    PreconditionFailed,
    StaleEpoch,
    StreamAbandoned,
    StreamExpired,
)
from ._keys import (
    OLDEST_SLOT,
    RANGE_BUCKET,
    RANGE_STATE,
    TABLE_NULL,
    TABLE_VERSION,
    abandoned_row,
    chore_row,
    keyed,
    range_row,
    slot,
)
from ._limits import STREAM_LIFE_NS
from ._rows import (
    ACTIVE,
    CHORE_PARTS,
    ENABLED,
    FENCED,
    UNVERSIONED,
    pack_chore,
    pack_state,
    unpack_copy,
)
from ._types import Counts, WriteCondition
from ._versions import (
    HAS_BODY,
    IS_MARKER,
    IS_MULTIPART,
    IS_NULL,
    place_version,
    version_etag,
    version_modified_ns,
    version_order,
    version_size,
    version_stream,
    version_upload_id,
)

T = TypeVar("T")
Apply = Generator[Read, Any, Outcome]
Reads = Generator[Read, Any, T]
Rows = list[tuple[bytes, bytes | None]]

_SECOND_NS = 10**9


class Range:
    """The range a command is applied in: where its own rows lie."""

    __slots__ = ("group", "state_row")

    def __init__(self, group: int) -> None:
        self.group = group
        self.state_row = range_row(group, RANGE_STATE)

    def copy_row(self, bucket_id: int) -> bytes:
        """Row of the range's copy of a bucket's settings."""
        return range_row(self.group, RANGE_BUCKET, bucket_id)


def refused(error: CatalogError) -> Outcome:
    """An outcome that writes nothing."""
    return Outcome(None, error)


def check_copy(value: bytes | None, bucket_id: int, epoch: int) -> tuple[int, CatalogError | None]:
    """(versioning, None), or the refusal, for a write made at `epoch`."""
    if value is None:
        return 0, StaleEpoch(bucket_id, epoch, 0)
    current, versioning, state = unpack_copy(value)
    if state == FENCED and epoch <= current:
        return versioning, BucketFenced(bucket_id)
    if current != epoch or state != ACTIVE:
        return versioning, StaleEpoch(bucket_id, epoch, current)
    return versioning, None


def newest_version(prefix: bytes, *, only_null: bool) -> Reads[Row | None]:
    """The newest row of a key, by the prefix of its version rows. `only_null`: of a bucket in
    which versioning was never switched on. Its keys have one version each, whose row is known:
    reading that row ends at the newest part of the index that holds it, where the search for a
    first row asks every part. Of a key that is overwritten often they all hold one."""
    if only_null:
        row_key = prefix + OLDEST_SLOT
        value: bytes | None = yield Get(row_key)
        return None if value is None else (row_key, value)
    newest: Row | None = yield First(prefix)
    return newest


def next_order(state: Counts, proposed_ns: int) -> int:
    """The order of the next version: above every one given, and not before it was proposed."""
    previous = state.clock_ns + 1
    return previous if previous > proposed_ns else proposed_ns


def check_condition(
    key: bytes, condition: WriteCondition, newest: bytes | None
) -> CatalogError | None:
    """The refusal if the condition does not hold on the key's newest version."""
    hidden = newest is None or newest[1] & IS_MARKER
    if newest is None or hidden:
        if condition.if_match is None:
            return None
        if newest is None:
            return NoSuchKey(key)
        return NoSuchKey(key, version_order(newest), bool(newest[1] & IS_NULL))
    order = version_order(newest)
    if condition.if_match not in {None, "*"} and condition.if_match != version_etag(newest):
        return PreconditionFailed("If-Match", order)
    if condition.if_none_match is not None and condition.if_none_match in {
        "*",
        version_etag(newest),
    }:
        return PreconditionFailed("If-None-Match", order)
    if (
        condition.if_match_modified_ns is not None
        and condition.if_match_modified_ns // _SECOND_NS
        != version_modified_ns(newest) // _SECOND_NS
    ):
        return PreconditionFailed("x-amz-if-match-last-modified-time", order)
    if condition.if_match_size is not None and condition.if_match_size != version_size(newest):
        return PreconditionFailed("x-amz-if-match-size", order)
    return None


class Change:
    """What one command does to one object key: the sums, rows and streams it changes. The lists
    and sums are shared by the keys of a DeleteObjects."""

    __slots__ = ("bucket_id", "key", "prefix", "released", "rows", "state")

    def __init__(self, bucket_id: int, key: bytes, prefix: bytes, state: Counts) -> None:
        self.bucket_id = bucket_id
        self.key = key
        self.prefix = prefix
        """Of the key's version rows."""
        self.state = state
        self.rows: Rows = []
        self.released: list[bytes] = []

    def other_key(self, key: bytes) -> Change:
        """The same command's change of another key of the bucket."""
        other = Change(self.bucket_id, key, keyed(TABLE_VERSION, self.bucket_id, key), self.state)
        other.rows = self.rows
        other.released = self.released
        return other

    def check_stream(
        self, stream: bytes, started_ns: int, now_ns: int
    ) -> Reads[CatalogError | None]:
        """Whether an entry may name this stream now. Reads a row only while any stream of the
        range is abandoned, which is rare."""
        if now_ns - started_ns > STREAM_LIFE_NS:
            return StreamExpired(stream)
        if self.state.abandoned:
            row = yield Get(abandoned_row(self.bucket_id, self.key, stream))
            if row is not None:
                return StreamAbandoned(stream)
        return None

    def find_null(self, newest: Row | None) -> Reads[Row | None]:
        """The row of the key's null version, given its newest row."""
        if newest is None or newest[1][1] & IS_NULL:
            return newest
        pointer = yield Get(keyed(TABLE_NULL, self.bucket_id, self.key))
        row_key = self.prefix + (
            OLDEST_SLOT if pointer is None else slot(int.from_bytes(pointer, "big"))
        )
        value = yield Get(row_key)
        if value is None:
            if pointer is not None:
                raise ValueError("a null pointer without its version")
            return None
        return row_key, value

    def find_numbered(self, newest: Row | None, order: int) -> Reads[Row | None]:
        """The row of a version by order; a null version answers to "null" only."""
        if newest is None:
            return None
        row_key = self.prefix + slot(order)
        if newest[0] == row_key:
            value = newest[1]
        else:
            value = yield Get(row_key)
        if value is None or value[1] & IS_NULL:
            return None
        return row_key, value

    def drop(self, value: bytes) -> None:
        """Account for a version that is removed or replaced, and let go of its bytes: one stream
        at once, the parts of a multipart version as a chore."""
        state = self.state
        state.versions -= 1
        flags = value[1]
        if flags & IS_MARKER:
            state.delete_markers -= 1
            return
        state.size_bytes -= version_size(value)
        if flags & IS_MULTIPART:
            self.add_chore(CHORE_PARTS, version_upload_id(value), pack_chore(0))
        elif flags & HAS_BODY:
            self.released.append(version_stream(value))

    def add_chore(self, chore: int, subject: bytes, value: bytes) -> None:
        self.rows.append((chore_row(self.bucket_id, self.key, chore, subject), value))
        self.state.garbage += 1

    def place(
        self, versioning: int, newest: Row | None, template: bytes, order: int
    ) -> Reads[None]:
        """Make a packed version the newest of the key, replacing the null version where versioning
        is off or suspended, and account for it."""
        state = self.state
        state.clock_ns = order
        state.versions += 1
        if template[1] & IS_MARKER:
            state.delete_markers += 1
        else:
            state.size_bytes += version_size(template)
            state.objects += 1
        if newest is not None and not newest[1][1] & IS_MARKER:
            state.objects -= 1
        rows = self.rows
        if versioning == UNVERSIONED:
            if newest is not None:
                if newest[0][-8:] != OLDEST_SLOT:
                    raise ValueError("a numbered version in a bucket without versioning")
                self.drop(newest[1])
            rows.append((self.prefix + OLDEST_SLOT, place_version(template, order, True)))
            return
        row_key = self.prefix + slot(order)
        if versioning == ENABLED:
            rows.append((row_key, place_version(template, order, False)))
            return
        replaced = yield from self.find_null(newest)
        if replaced is not None:
            self.drop(replaced[1])
            rows.append((replaced[0], None))
        rows.append((row_key, place_version(template, order, True)))
        rows.append((keyed(TABLE_NULL, self.bucket_id, self.key), order.to_bytes(8, "big")))

    def outcome(self, rng: Range, result: object) -> Outcome:
        """The command's outcome, with the range's sums if anything changed."""
        if self.rows:
            self.rows.append((rng.state_row, pack_state(self.state)))
        return Outcome(result, None, self.rows, self.released)
