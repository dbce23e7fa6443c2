"""Which group holds a row key: range 0 for b"", else the key range whose span holds it, as far as
the replicas of this node know; and of what none of them holds, as far as range 0 says.

Spans are over row keys without their table byte, so that one split key cuts all tables.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping

from o3storage.cluster._range_rows import FIRST_KEY_GROUP, Span

__all__ = ["FIRST_KEY_GROUP", "RangeTable"]

SYSTEM_GROUP = 0
KEYED_TABLES = range(0x20, 0x30)
"""Tables of the state machine that begin with bucket and key."""
OPEN_STREAM_TABLE = 0xFD
NOWHERE = -1
"""In place of a group: this node knows none that holds the key."""


class RangeTable:
    """Key ranges in order: (low, group), low inclusive. A gap is a range that nobody told this node
    of yet."""

    __slots__ = ("_away", "_groups", "_known", "_lows", "_spans", "elsewhere", "several", "version")

    def __init__(self, ranges: list[tuple[bytes, int]]) -> None:
        """`ranges`: (low, group) ascending by low. ValueError for gaps, doubles or range 0."""
        self._lows = [low for low, _ in ranges]
        self._groups = [group for _, group in ranges]
        if not ranges or self._lows[0] != b"":
            raise ValueError("the first range begins at the empty key")
        if self._lows != sorted(set(self._lows)) or len(set(self._groups)) != len(self._groups):
            raise ValueError("ranges overlap")
        if SYSTEM_GROUP in self._groups:
            raise ValueError("range 0 holds no keys")
        highs = [*self._lows[1:], None]
        self._spans = {
            group: Span(low, high)
            for low, high, group in zip(self._lows, highs, self._groups, strict=True)
        }
        self._known: dict[int, Span] = {}
        self._away: dict[int, None] = {}
        self.elsewhere: dict[int, None] = {}
        """Groups that hold keys and are to be asked at other nodes."""
        self.version = 0
        """Counts the changes."""
        self.several = len(self._lows) > 1
        """Not all keys are in one range."""

    def fill(self, spans: dict[int, Span]) -> None:
        """These are all ranges that are here. Raises ValueError if they overlap."""
        end: bytes | None = b""
        for group, span in sorted(spans.items(), key=lambda item: item[1].low):
            if end is None or span.low < end or group == SYSTEM_GROUP:
                raise ValueError(f"range {group} overlaps another one")
            end = span.high
        self._spans = dict(spans)
        self._arrange()

    def remove(self, group: int) -> None:
        """Nothing of the range is on this disk any more."""
        self._spans.pop(group, None)
        self._arrange()

    def learn(self, known: Mapping[int, Span], away: Mapping[int, None]) -> None:
        """What range 0 says of all ranges. `away`: those with a replica here that is not to be
        asked: it is not filled yet, or it is no member any more."""
        if known != self._known or away != self._away:
            self._known, self._away = dict(known), dict(away)
            self._arrange()

    def _arrange(self) -> None:
        here = {group: span for group, span in self._spans.items() if group not in self._away}
        found = route_table(here, self._known)
        self._lows = [low for low, _ in found]
        self._groups = [group for _, group in found]
        self.elsewhere = {g: None for g in self._groups if g != NOWHERE and g not in here}
        self.several = len(found) > 1
        self.version += 1

    def put(self, *changes: tuple[int, Span]) -> None:
        """These ranges hold these spans now. Raises ValueError if that overlaps; then nothing has
        changed."""
        self.fill({**self._spans, **dict(changes)})

    def free_for(self, group: int, span: Span) -> bool:
        """Whether no other range that is here overlaps the span."""
        return not any(
            other != group and known.overlaps(span) for other, known in self._spans.items()
        )

    def within(self, low: bytes, high: bytes) -> list[int]:
        """Groups of the keys low <= key < high, in order; NOWHERE for those that are not here."""
        first = bisect_right(self._lows, low) - 1
        found = []
        for at in range(first, len(self._lows)):
            if self._lows[at] >= high:
                break
            found.append(self._groups[at])
        return found

    def group_of(self, route: bytes) -> int:
        """The group for the route (a row key, or b"") of a command or query; NOWHERE."""
        if not route:
            return SYSTEM_GROUP
        if len(self._lows) == 1:
            return self._groups[0]
        return self._groups[bisect_right(self._lows, route[1:]) - 1]

    def groups(self) -> list[int]:
        """All groups that hold keys, in key order."""
        return [group for group in dict.fromkeys(self._groups) if group != NOWHERE]

    def here(self) -> list[int]:
        """Groups with a replica here, in key order; also with one that is not to be asked."""
        return sorted(self._spans, key=lambda group: self._spans[group].low)

    def row_spans(self, group: int, span: Span | None = None) -> list[tuple[bytes, bytes]]:
        """(low, high) of every table's rows that belong to the group, ascending; of this disk's
        own rows none. `span`: of its keys, if not the one known here."""
        own = b"\x10" + group.to_bytes(8, "big")
        spans = [(own, own[:8] + bytes((own[8] + 1,)))] if group % 256 != 255 else []
        assert spans, "group numbers that end in 255 are not given out"
        if group == SYSTEM_GROUP:
            return [*spans, (b"\x11", b"\x20"), (b"\xfe\x02", b"\xff")]
        low, high, _ = span or self.span(group)
        for table in (*KEYED_TABLES, OPEN_STREAM_TABLE):
            end = bytes((table,)) + high if high is not None else bytes((table + 1,))
            spans.append((bytes((table,)) + low, end))
        return spans

    def span(self, group: int) -> Span:
        """Of a group's keys. KeyError: it is not here."""
        return self._spans[group]

    def span_anywhere(self, group: int) -> Span:
        """Of a group's keys, as far as this node knows. KeyError: nobody told it."""
        if group in self._spans and group not in self._away:
            return self._spans[group]
        return self._known[group] if group in self._known else self._spans[group]


def route_table(here: Mapping[int, Span], known: Mapping[int, Span]) -> list[tuple[bytes, int]]:
    """(low, group) in order, from b"" on, each up to the next: of spans that are `here`, which do
    not overlap and are right, and of what is `known` of all, which may be old. A range keeps its
    low bound, and what was cut off it begins above: so whoever begins nearest below a key is the
    one to ask, and if that one ends below the key, a cut was not told yet: NOWHERE."""
    table: list[tuple[bytes, int]] = []

    def add(low: bytes, group: int) -> None:
        while table and table[-1][0] >= low:
            table.pop()  # an end that was told before the cut below it
        table.append((low, group))

    add(b"", NOWHERE)
    for group, span in sorted({**known, **here}.items(), key=lambda item: item[1].low):
        add(span.low, group)
        if span.high is not None:
            add(span.high, NOWHERE)
    lows = [low for low, _ in table]
    groups = [group for _, group in table]
    for group, span in sorted(here.items(), key=lambda item: item[1].low):
        # What is here takes the place of whatever else is said of its keys.
        behind = groups[bisect_right(lows, span.high) - 1] if span.high is not None else NOWHERE
        first = bisect_left(lows, span.low)
        last = len(lows) if span.high is None else bisect_right(lows, span.high)
        ends = [] if span.high is None else [span.high]
        lows[first:last] = [span.low, *ends]
        groups[first:last] = [group, *([behind] if ends else [])]
    return [
        (low, group)
        for at, (low, group) in enumerate(zip(lows, groups, strict=True))
        if at == 0 or groups[at - 1] != group
    ]
