"""Applying entries, and answering queries, in a range that does not hold all keys.

All ranges of a disk share its index, and rows of a key lie where they lay before the range was cut.
So a range must neither see nor touch what is another's: a command whose keys are not all its own is
refused, the same on all replicas, and a scan ends where the range ends.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeVar

from o3storage.cluster import _records
from o3storage.cluster._range_rows import RangeMoved, Span
from o3storage.cluster._ranges import KEYED_TABLES
from o3storage.runtime.state_machine import Outcome, Read, Scan, StateMachine

T = TypeVar("T")
Steps = Generator[Read, Any, T]

FIRST_KEYED, END_OF_KEYED = KEYED_TABLES.start, KEYED_TABLES.stop
MOVED = "the key belongs to another range now"


def apply_within(machine: StateMachine, data: bytes, span: Span) -> Steps[Outcome]:
    """As `_records.apply`. Raises ValueError for bytes nobody wrote."""
    routes = _records.routes(data)
    if routes is None:
        inside = machine.touches_only(data, span.low, span.high)
    else:
        inside = all(span.holds(route[1:]) for route in routes)
    if not inside:
        return _moved()
    return within(_records.apply(machine, data), span)


def _moved() -> Steps[Outcome]:
    yield from ()
    return Outcome(None, RangeMoved(MOVED))


def within(steps: Steps[T], span: Span) -> Steps[T]:
    """The same reads, with the scans cut at the span's ends."""
    try:
        read = next(steps)
        while True:
            if type(read) is Scan and FIRST_KEYED <= read.low[0] < END_OF_KEYED:
                cut = clip(read, span)
                found = [] if cut is None else (yield cut)
            else:
                found = yield read
            read = steps.send(found)
    except StopIteration as stop:
        answer: T = stop.value
        return answer


def clip(scan: Scan, span: Span) -> Scan | None:
    """What of the scan lies in the span; None: nothing."""
    table = scan.low[:1]
    low = max(scan.low, table + span.low)
    high = scan.high if span.high is None else min(scan.high, table + span.high)
    return Scan(low, high, scan.limit) if low < high else None
