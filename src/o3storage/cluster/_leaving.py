"""A replica that is no member of its range any more leaves the disk: its rows, the frames that they
name, and its log go. Its term and vote stay, for ever: a promise is kept by who does not remember
anything else.

    note left<group u32>    1 and the value of the span: it is being erased, of these keys
                            2: it is gone; the range may come back only as a snapshot

The first note is durable before the first row goes, and a start that finds it goes on. Until the
last frame and the last row are gone the span counts as held by this disk, so no other range with
any of its keys is made here (`RangeTable.free_for`): what a cut gave to another range is never
erased with the one that it was cut off. The second note goes in the batch that installs a snapshot
(`_snapshots`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from o3storage.cluster import _records
from o3storage.cluster._range_rows import Span
from o3storage.cluster._reading import READ_FAULTS, left_note
from o3storage.crypto import StreamRef
from o3storage.runtime import Logger
from o3storage.storage import Store, StoreOutOfService

if TYPE_CHECKING:
    from o3storage.cluster._node import Node
    from o3storage.cluster._ranges import RangeTable
    from o3storage.cluster._replica import Replica

ERASING, GONE = b"\x01", b"\x02"
PAGE_ROWS = 256
PAUSE_S = 0.002
"""Between pages: requests come first."""
RETRY_S = 0.5
"""A damaged block is being rebuilt, or the disk is full: looked at again so often."""
MAX_HELD = 1000
"""Released streams that readers still hold, or that are still being reaped (promise P8)."""
STREAM_BYTES = 16

_log = Logger("ranges")


def has_left(note: bytes | None) -> Span | None:
    """The span that is still to be erased, by the note. Raises ValueError."""
    return Span.decode(note[1:]) if note is not None and note[:1] == ERASING else None


async def leave(
    node: Node, table: RangeTable, group: int, span: Span, replica: Replica | None
) -> bool:
    """Erase the range from this disk. `replica`: was stopped (`Replica.fail`) and is in nobody's
    hands any more; None: a start goes on with it. False: the disk failed, and there may be rows
    left."""
    store = node.store

    async def erase() -> None:
        nonlocal replica
        if replica is not None:
            await store.note(left_note(group), ERASING + span.encode())
            await _close(replica)
            replica = None
        spans = table.row_spans(group, span)
        for low, high in spans:
            await _release_bodies(node, low, high)
        await store.erase(group, spans, [(_records.configuration_key(group), None)])
        await store.note(left_note(group), GONE)

    return await _until_done(erase, group, "range.left")


async def has_rows(store: Store, spans: Sequence[tuple[bytes, bytes]]) -> bool:
    """Raises StoreError, BadBlock."""
    for low, high in spans:
        if await store.scan(low, high, 1):
            return True
    return False


async def sweep(
    node: Node, table: RangeTable, group: int, span: Span, replica: Replica | None = None
) -> bool:
    """Erase what lies in the span of a range that never came here: it was cut off one whose replica
    here missed that, and got a snapshot of the lower keys. Nothing was promised of these rows; a
    start after a crash finds what is left. `replica`: one without anything, as of `leave`. False:
    as of `leave`."""
    spans = table.row_spans(group, span)

    async def erase() -> None:
        nonlocal replica
        if replica is not None:
            await _close(replica)
            replica = None
        for low, high in spans:
            await _release_bodies(node, low, high)
        await node.store.erase(group, spans, [])

    return await _until_done(erase, group, "range.swept")


async def _close(replica: Replica) -> None:
    if replica.team is not None:
        replica.team.gaps.clear()
        replica.team.debt.clear()
        await replica.team.close()
    await replica.close()


async def _until_done(erase: Callable[[], Awaitable[None]], group: int, event: str) -> bool:
    """Whether it was done; if not, the disk is out of service."""
    while True:
        try:
            await erase()
        except StoreOutOfService:
            return False
        except READ_FAULTS as error:
            _log.debug("range.not_erased", range=group, reason=str(error))
            await asyncio.sleep(RETRY_S)
        else:
            _log.info(event, range=group)
            return True


async def _release_bodies(node: Node, low: bytes, high: bytes) -> None:
    """Returns when no frame of them is here any more, so when their last readers have ended: a
    range that came back before that would count frames as its own that go then."""
    store = node.store
    held: dict[bytes, None] = {}
    at: bytes | None = low
    while at is not None:
        rows = await store.scan(at, high, PAGE_ROWS)
        released: dict[bytes, None] = {}
        for key, value in rows:
            if key[0] == _records.TABLE_OPEN_STREAM:
                streams = [key[-STREAM_BYTES:]]
            else:
                streams = [
                    StreamRef.unpack(body).stream for body in node.machine.bodies(key, value)
                ]
            for stream in streams:
                store.release_again(stream)
                released[stream] = None
        at = rows[-1][0] + b"\x00" if len(rows) == PAGE_ROWS else None
        await asyncio.sleep(PAUSE_S)
        held |= await _still_here(store, released)
        while held and (at is None or len(held) > MAX_HELD):
            await asyncio.sleep(RETRY_S)
            held = await _still_here(store, held)


async def _still_here(store: Store, streams: Iterable[bytes]) -> dict[bytes, None]:
    """Raises StoreError, BadBlock."""
    return {
        s: None for s in streams if store.frames_held_now(s) != 0 and await store.stream_frames(s)
    }
