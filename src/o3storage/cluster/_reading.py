"""Reading for a replica: rows that a generator asks for, and entries of the log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, cast

from o3storage.cluster import _records
from o3storage.raft.core import (
    CONFIGURATION,
    UNKNOWN,
    Configuration,
    Core,
    Entry,
    HardState,
    Log,
)
from o3storage.runtime.disk import DiskError
from o3storage.runtime.state_machine import First, Get, Read
from o3storage.storage import NOTE_TABLE, EntriesGone, Miss, Snapshot, Store, StoreError
from o3storage.storage.index import BadBlock

MISS: Final = Miss.MISS
REPLAY_BYTES = 1 << 20
"""Entries read at a time while a restart looks at, or applies, what it had not."""

READ_FAULTS = (StoreError, BadBlock, DiskError)
"""What reading rows may raise. Rows of a damaged block are rebuilt from the volumes meanwhile."""


def read_now(store: Store, read: Read, at: Snapshot | None = None) -> Any:
    """What `read` finds, or MISS."""
    kind = type(read)
    if kind is Get:
        return store.get_now(read[0], at=at)
    if kind is First:
        return store.first_now(read[0], at=at)
    return store.scan_now(*cast("tuple[bytes, bytes, int]", read), at=at)


async def read_row(store: Store, read: Read, at: Snapshot | None = None) -> Any:
    """What `read` finds, waiting for the disk if need be."""
    found = read_now(store, read, at)
    if found is not MISS:
        return found
    if isinstance(read, Get):
        return await store.get(read.key, at=at)
    if isinstance(read, First):
        return await store.first(read.prefix, at=at)
    return await store.scan(read.low, read.high, read.limit, at=at)


async def entries_of(store: Store, group: int, low: int, high: int, max_bytes: int) -> list[Entry]:
    """Entries low..high (inclusive) from the store, at least one; [] if the first is not there."""
    try:
        found = store.entries(group, low, high + 1, max_bytes)
        if not isinstance(found, list):
            found = await found
    except EntriesGone:
        return []
    return cast("list[Entry]", found)


def after_hole(missing: Sequence[tuple[int, int]], index: int) -> int:
    for low, high in missing:
        if low <= index <= high:
            return high + 1
    raise EntriesGone(f"entry {index} is neither readable nor known to be missing")


def left_note(group: int) -> bytes:
    """Name of the note that says that a replica left this disk (`_leaving`)."""
    return b"left" + group.to_bytes(4, "big")


def left_row(group: int) -> bytes:
    """The row of that note."""
    return NOTE_TABLE + left_note(group)


async def open_core(store: Store, group: int, node: int) -> tuple[Core, list[Entry]]:
    """The core as the group's log and rows say, and the entries above what is applied that name
    frames. Of a group that left this disk, and was not received anew, only its term and its vote
    are left. Raises StoreError, ValueError (rows or entries nobody wrote)."""
    state = store.log_state(group)
    if await store.noted(left_note(group)) is not None:
        hard = state.hard_state
        emptied = Core(
            node,
            log=Log(0, 0, [], 0, []),
            hard_state=HardState(hard.term, hard.vote, 0),
            applied=0,
            configuration=Configuration(),
            uncertain=state.uncertain,
        )
        emptied.wants_snapshot = True
        return emptied, []
    applied = state.applied_index
    configuration, configuration_index = Configuration(), 0
    row = await store.get(_records.configuration_key(group))
    if row is not None:
        configuration_index = int.from_bytes(row[:8], "big")
        configuration = Configuration.decode(row[8:])
    later: list[tuple[int, Configuration]] = []
    carries: list[Entry] = []
    at = applied + 1
    while at <= state.last_index:
        found = await entries_of(store, group, at, state.last_index, REPLAY_BYTES)
        if not found:
            at = after_hole(state.missing, at)
            continue
        for entry in found:
            if entry.kind == CONFIGURATION:
                later.append((entry.index, Configuration.decode(entry.data)))
            elif _records.carries(entry):
                carries.append(entry)
        at = found[-1].index + 1
    hard = state.hard_state
    alone = all(c.sole_voter(node) for c in (configuration, *(found for _, found in later)))
    core = Core(
        node,
        log=log_of(store, group, alone=alone),
        hard_state=HardState(hard.term, hard.vote, hard.commit),
        applied=applied,
        configuration=configuration,
        configuration_index=configuration_index,
        later_configurations=later,
        uncertain=state.uncertain,
    )
    # (Where nobody else votes, nobody else knows: it serves what there is.)
    core.wants_snapshot = state.rows_lost and not core.sole
    return core, carries


def log_of(store: Store, group: int, *, alone: bool = False) -> Log:
    """What the core has to know of the log: its terms by runs, and its holes. `alone`: nobody else
    votes in the group."""
    state = store.log_state(group)
    floor = state.first_index - 1
    # Holes in what is applied concern only what other nodes may ask for. But of the last entry the
    # term decides votes, and whether what a leader sends follows on it: that one is asked back.
    spared = min(state.applied_index, state.last_index if alone else state.last_index - 1)
    for low, high in state.missing:
        if low <= spared:
            floor = max(floor, min(high, spared))
    holes = [(max(low, floor + 1), high) for low, high in state.missing if high > floor]
    last = max([state.last_index, floor, *(high for _, high in holes)])

    def term(index: int) -> int:
        if any(low <= index <= high for low, high in holes):
            return UNKNOWN
        return store.term(group, index)

    floor_term = 0
    if floor:
        try:
            floor_term = store.term(group, floor)
        except EntriesGone:
            floor_term = 0 if floor < state.last_index else state.last_term
        if not floor_term and floor < last:
            floor_term = UNKNOWN  # (committed, so it is what all others have there)
    runs: list[tuple[int, int]] = []
    index = floor + 1
    while index <= last:
        here = term(index)
        if here == UNKNOWN:
            high = next(high for low, high in holes if low <= index <= high)
            # Not known: as low as it can be, or as high where it ends the log, so that nobody
            # behind it gets this node's vote.
            guess = runs[-1][1] if runs else max(floor_term, 1)
            if high == last:
                guess = max(guess, state.last_term, state.hard_state.term)
            if not runs or runs[-1][1] != guess:
                runs.append((index, guess))
            index = high + 1
            continue
        if not runs or runs[-1][1] != here:
            runs.append((index, here))
        # The end of this run: terms never decrease, so it is found by bisection.
        low = index
        high = next((at - 1 for at, _ in holes if at > index), last)
        while low < high:
            middle = (low + high + 1) // 2
            if term(middle) == here:
                low = middle
            else:
                high = middle - 1
        index = low + 1
    return Log(floor, floor_term, runs, last, holes)
