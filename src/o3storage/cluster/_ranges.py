"""Which group holds a row key: range 0 for b"", else the key range whose span holds it.

Spans are over row keys without their table byte, so that one split key cuts all tables.
"""

from __future__ import annotations

from bisect import bisect_right

SYSTEM_GROUP = 0
KEYED_TABLES = range(0x20, 0x30)
"""Tables of the state machine that begin with bucket and key."""
OPEN_STREAM_TABLE = 0xFD
FIRST_KEY_GROUP = 1


class RangeTable:
    """Key ranges in order: (low, group), low inclusive, the first low is b"". No gaps."""

    __slots__ = ("_groups", "_lows")

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

    def group_of(self, route: bytes) -> int:
        """The group for the route (a row key, or b"") of a command or query."""
        if not route:
            return SYSTEM_GROUP
        if len(self._lows) == 1:
            return self._groups[0]
        return self._groups[bisect_right(self._lows, route[1:]) - 1]

    def groups(self) -> list[int]:
        """All groups that hold keys, in key order."""
        return list(self._groups)

    def row_spans(self, group: int) -> list[tuple[bytes, bytes]]:
        """(low, high) of every table's rows that belong to the group, ascending; of this disk's
        own rows none."""
        own = b"\x10" + group.to_bytes(8, "big")
        spans = [(own, own[:8] + bytes((own[8] + 1,)))] if group % 256 != 255 else []
        assert spans, "group numbers that end in 255 are not given out"
        if group == SYSTEM_GROUP:
            return [*spans, (b"\x11", b"\x20"), (b"\xfe\x02", b"\xff")]
        low, high = self.span(group)
        for table in (*KEYED_TABLES, OPEN_STREAM_TABLE):
            end = bytes((table,)) + high if high is not None else bytes((table + 1,))
            spans.append((bytes((table,)) + low, end))
        return spans

    def span(self, group: int) -> tuple[bytes, bytes | None]:
        """(low, high) of a group; high None: to the end."""
        at = self._groups.index(group)
        return self._lows[at], self._lows[at + 1] if at + 1 < len(self._lows) else None
