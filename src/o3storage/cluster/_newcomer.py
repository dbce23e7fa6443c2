"""Whether a replica without any state may vote in its range.

It never may where its disk could have forgotten what it promised. But a member that was away when a
range was cut, and that a snapshot brought past the cut, never took part in the new range: it votes
there like any voter with an empty log. Without that, who was there for the cut cannot lose one more
of them: the new range would have no leader for ever.

This is certain when

- a snapshot gave up the range's keys here, to a replica that had state and no holes, and
- this disk has never lost a record of its log, in any of its lives: what is not here never was.

Both are notes of the disk. A disk that lost something says so for ever. One whose index was rebuilt
(`verify --return-disk` has it so) lost nothing by that: the volumes hold the notes, too, and the
rebuild says where they do not hold everything.
"""

from __future__ import annotations

from collections.abc import Iterable

from o3storage.cluster._range_rows import Span
from o3storage.storage import Store

LOST = b"lost something"


def _passed(group: int) -> bytes:
    return b"passed" + group.to_bytes(4, "big")


async def look_for_loss(store: Store) -> None:
    """At the open, before any replica: durable with whatever is appended next (and what was lost
    is found again until then). Raises StoreError, BadBlock."""
    stats = store.stats()
    lost = (
        stats.rotted_records > 0
        or stats.rebuilt_in_part
        or stats.spans_lost > 0
        or any(
            state.uncertain or state.missing or state.rows_lost
            for state in map(store.log_state, store.groups())
        )
    )
    if lost and await store.noted(LOST) is None:
        store.note(LOST, b"")


async def never_lost(store: Store) -> bool:
    """Whether this disk has never lost a record of its log. Raises StoreError, BadBlock."""
    return await store.noted(LOST) is None


async def note_passed(store: Store, group: int, old: Span, new: Span) -> None:
    """A snapshot is about to bring `group` from the keys of `old` to those of `new`: ranges of
    the keys between were cut off while this node was away. Raises StoreError, BadBlock."""
    assert new.high is not None and (old.high is None or new.high < old.high)
    known = await store.noted(_passed(group))
    given_up = Span(new.high, Span.decode(known).high if known is not None else old.high)
    await store.note(_passed(group), given_up.encode())


async def never_here(store: Store, groups: Iterable[int], span: Span) -> bool:
    """Whether a range of `span`, of which nothing is here, certainly never was. `groups`: those
    that may have given up its keys. Raises StoreError, BadBlock."""
    if not await never_lost(store):
        return False
    for group in groups:
        known = await store.noted(_passed(group))
        if known is not None:
            given_up = Span.decode(known)
            inside = given_up.high is None or (span.high is not None and span.high <= given_up.high)
            if span.low >= given_up.low and inside:
                return True
    return False
