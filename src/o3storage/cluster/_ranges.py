"""Which group holds a row key: range 0 for b"", else the key range whose span holds it, as far as
the replicas of this node know.

Spans are over row keys without their table byte, so that one split key cuts all tables.
"""

from __future__ import annotations

from bisect import bisect_right

from o3storage.cluster._range_rows import FIRST_KEY_GROUP, Span

__all__ = ["FIRST_KEY_GROUP", "RangeTable"]

SYSTEM_GROUP = 0
KEYED_TABLES = range(0x20, 0x30)
"""Tables of the state machine that begin with bucket and key."""
OPEN_STREAM_TABLE = 0xFD
NOWHERE = -1
"""In place of a group: this node has no replica that holds the key."""


class RangeTable:
    """Key ranges in order: (low, group), low inclusive. A gap is a range that is not here yet."""

    __slots__ = ("_groups", "_lows", "_spans", "several", "version")

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
        self.version = 0
        """Counts the changes."""
        self.several = len(self._lows) > 1
        """Not all keys are in one range."""

    def fill(self, spans: dict[int, Span]) -> None:
        """These are all ranges that are here. Raises ValueError if they overlap."""
        lows: list[bytes] = []
        groups: list[int] = []
        end: bytes | None = b""
        for group, span in sorted(spans.items(), key=lambda item: item[1].low):
            if end is None or span.low < end or group == SYSTEM_GROUP:
                raise ValueError(f"range {group} overlaps another one")
            if span.low > end:
                lows.append(end)
                groups.append(NOWHERE)
            lows.append(span.low)
            groups.append(group)
            end = span.high
        if end is not None:
            lows.append(end)
            groups.append(NOWHERE)
        self._spans = dict(spans)
        self._lows, self._groups = lows, groups
        self.several = len(lows) > 1
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
        return [group for group in self._groups if group != NOWHERE]

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
