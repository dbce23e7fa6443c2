"""Several key ranges: what a range that is cut off another begins with, and commands that concern
more than one.

A range's rows under (bucket, key) do not move when it is cut: the keys from the cut on belong to
the new range from then on. Only what stands under the range's own number (table 0x10) is given
to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from o3storage.runtime.state_machine import Get, Row, Scan

from . import _commands as c
from ._keys import (
    KEY_OFFSET,
    RANGE_BUCKET,
    RANGE_PURGE,
    TABLE_ABANDONED,
    TABLE_VERSION,
    after_prefix,
    bucket_prefix,
    range_row,
    range_row_number,
    range_rows_prefix,
    split_keyed,
)
from ._limits import MAX_PAGE
from ._range import Range, Reads, Rows
from ._rows import pack_state, unpack_state
from ._types import Counts, StepResult, SyncResult

MAX_MOVED_ROWS = 4_000
"""Rows of settings that one cut gives to the new range: its outcome stays far below a batch of the
log, 1 MiB, and its apply below 20 ms."""
MAX_ABANDONED = 2_000
"""Abandon rows that one cut counts; there are hardly ever any."""
_BUCKET_BYTES = KEY_OFFSET - 1


def split_bound(bound: bytes) -> tuple[int, bytes]:
    """(bucket id, key) of where a range begins; b"": with the bucket. Raises ValueError."""
    if len(bound) == _BUCKET_BYTES:
        return int.from_bytes(bound, "big"), b""
    bucket_id, key, rest = split_keyed(bytes((TABLE_VERSION,)) + bound)
    if rest:
        raise ValueError("a range begins within a key")
    return bucket_id, key


def split_range(parent: Range, child: Range, cut: bytes, high: bytes | None) -> Reads[Rows | str]:
    """The rows that change when the keys from `cut` up to `high` leave `parent` for `child`; or why
    not now. `cut`, `high`: row keys without table byte (high None: the end)."""
    state = unpack_state((yield Get(parent.state_row)))
    abandoned = 0
    if state.abandoned:
        counted = yield from _count_abandoned(cut, high)
        if counted is None:
            return f"more than {MAX_ABANDONED} uploads were given up lately; try again in some days"
        abandoned = counted
    # A bucket that lies in both parts has its settings in both.
    first = int.from_bytes(cut[:_BUCKET_BYTES], "big")
    shared = first if len(cut) > _BUCKET_BYTES else -1
    rows: Rows = []
    for kind in (RANGE_BUCKET, RANGE_PURGE):
        low = range_row(parent.group, kind, first)
        end = after_prefix(range_rows_prefix(parent.group, kind))
        while low < end:
            page: list[Row] = yield Scan(low, end, MAX_PAGE)
            for row_key, value in page:
                bucket_id = range_row_number(row_key)
                rows.append((range_row(child.group, kind, bucket_id), value))
                if bucket_id != shared:
                    rows.append((row_key, None))
            if len(rows) > MAX_MOVED_ROWS:
                return f"its upper part has settings of more than {MAX_MOVED_ROWS // 2} buckets"
            low = page[-1][0] + b"\x00" if len(page) == MAX_PAGE else end
    cut_off = Counts(state.clock_ns, abandoned=abandoned, divided=True)
    rows.append((child.state_row, pack_state(cut_off)))
    left = replace(state, abandoned=state.abandoned - abandoned, divided=True)
    rows.append((parent.state_row, pack_state(left)))
    return rows


def _count_abandoned(cut: bytes, high: bytes | None) -> Reads[int | None]:
    table = bytes((TABLE_ABANDONED,))
    low = table + cut
    end = after_prefix(table) if high is None else table + high
    count = 0
    while True:
        page: list[Row] = yield Scan(low, end, MAX_PAGE)
        count += len(page)
        if count > MAX_ABANDONED:
            return None
        if len(page) < MAX_PAGE:
            return count
        low = page[-1][0] + b"\x00"


# --- commands that concern several ranges


def whole(command: c.Command) -> tuple[bytes, bytes] | None:
    """The span of routes whose ranges must all apply the command; None for any other."""
    if not isinstance(command, c.SyncBucket | c.PurgeBucket):
        return None
    low = bucket_prefix(TABLE_VERSION, command.bucket_id)
    return low, after_prefix(low)


def joined(results: Sequence[Any]) -> Any:
    """One result of those of all ranges, of a command that is `whole`."""
    if isinstance(results[0], SyncResult):
        # Whoever compares the epoch sees it if any range has gone further.
        return SyncResult(max(r.epoch for r in results), all(r.empty for r in results))
    return StepResult(all(r.done for r in results))


def part(command: c.DeleteObjects, positions: Sequence[int]) -> c.DeleteObjects:
    """The command for some of its items only."""
    return replace(command, items=[command.items[at] for at in positions])


def add_counts(parts: Sequence[Counts]) -> Counts:
    """The exact sums of the whole store, of those of all its ranges."""
    return Counts(
        max(each.clock_ns for each in parts),
        sum(each.objects for each in parts),
        sum(each.versions for each in parts),
        sum(each.delete_markers for each in parts),
        sum(each.size_bytes for each in parts),
        sum(each.uploads for each in parts),
        sum(each.upload_size_bytes for each in parts),
        sum(each.garbage for each in parts),
        sum(each.abandoned for each in parts),
    )
