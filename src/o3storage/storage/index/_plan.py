"""Which merge comes next. Pure: looks at a view, touches nothing.

Levels below 0 hold sorted tables with disjoint spans; level 0 holds what flushes wrote. Merges go
from a level to the next one, table by table, so that the work at a time is bounded (the leveled
scheme of LevelDB's implementation notes).
"""

from __future__ import annotations

from dataclasses import dataclass

from ._table import Table
from ._types import IndexOptions
from ._view import Drop, Level, View, covers

MAX_LEVEL = 7
LEVEL0_AT_ONCE = 8
"""Tables of level 0 that one merge takes: bounds its memory at one chunk each."""


@dataclass(slots=True)
class Plan:
    """One merge: `upper` (newest first) and `lower` become new tables of `target`. With nothing to
    rewrite (`move`), the tables of `upper` just change their level. With `discard`, the tables
    hold nothing but dropped rows and go."""

    upper: list[list[Table]]
    """Sources, newest first; each is a list of tables in order of keys."""
    lower: list[Table]
    target: int
    move: bool = False
    discard: bool = False

    def tables(self) -> list[Table]:
        return [table for source in self.upper for table in source] + self.lower


def span(tables: list[Table]) -> tuple[bytes, bytes]:
    """From the first key to behind the last."""
    return (
        min(table.first for table in tables),
        max(table.last for table in tables) + b"\0",
    )


def level_limit(options: IndexOptions, level: int) -> int:
    """Bytes of a level (1 and up) above which its tables move down."""
    return int(options.level1_bytes * options.level_ratio ** (level - 1))


def next_plan(
    view: View, drops: list[Drop], options: IndexOptions, cursors: dict[int, bytes]
) -> Plan | None:
    """The most urgent merge. `drops` are those that are durable (a table may only lose rows to
    them); `cursors` remembers for each level the key behind its last merge."""
    plan = _dropped(view, drops)
    if plan is None and len(view.level0) >= options.level0_tables:
        plan = _from_level0(view)
    if plan is None:
        plan = _from_fullest(view, options, cursors)
    if plan is None:
        plan = _rewrite(view, drops)
    return plan


def _level(view: View, level: int) -> Level:
    return view.levels[level - 1] if level <= len(view.levels) else Level([])


def _is_idle(tables: list[Table]) -> bool:
    return not any(table.merging or table.suspect for table in tables)


def _dropped(view: View, drops: list[Drop]) -> Plan | None:
    """Tables of which no row is left."""
    if not drops:
        return None
    gone = [
        table
        for table in view.tables()
        if not table.merging and covers(drops, table, table.first, table.last + b"\0")
    ]
    return Plan([gone], [], 0, discard=True) if gone else None


def _from_level0(view: View) -> Plan | None:
    oldest_first = view.level0[::-1]
    moving: list[Table] = []
    for table in oldest_first:
        low, high = table.first, table.last + b"\0"
        apart = all(other.last < low or high <= other.first for other in moving)
        if not apart or _level(view, 1).overlapping(low, high) or not _is_idle([table]):
            break
        moving.append(table)
    if moving:
        return Plan([moving], [], 1, move=True)
    taken = oldest_first[:LEVEL0_AT_ONCE]
    # Tables of one flush share their sequences: all of them or none.
    oldest_left = oldest_first[LEVEL0_AT_ONCE:]
    while oldest_left and oldest_left[0].info.min_sequence <= taken[-1].max_sequence:
        taken.append(oldest_left.pop(0))
    low, high = span(taken)
    lower = _level(view, 1).overlapping(low, high)
    if not _is_idle(taken + lower):
        return None
    return Plan([[table] for table in reversed(taken)], lower, 1)


def _from_fullest(view: View, options: IndexOptions, cursors: dict[int, bytes]) -> Plan | None:
    best, best_ratio = 0, 1.0
    for number, level in enumerate(view.levels, 1):
        ratio = level.size_bytes / level_limit(options, number)
        if number < MAX_LEVEL and ratio > best_ratio and any(_is_idle([t]) for t in level.tables):
            best, best_ratio = number, ratio
    if not best:
        return None
    level = view.levels[best - 1]
    after = cursors.get(best, b"")
    order = [t for t in level.tables if t.first >= after] + [
        t for t in level.tables if t.first < after
    ]
    for table in order:
        low, high = span([table])
        lower = _level(view, best + 1).overlapping(low, high)
        if _is_idle([table, *lower]):
            cursors[best] = high
            return Plan([[table]], lower, best + 1, move=not lower)
    return None


def _rewrite(view: View, drops: list[Drop]) -> Plan | None:
    """A table that still holds dropped rows, so that drops do not stay for ever."""
    for low, high, sequence in drops:
        if view.level0 and any(
            table.info.applied < sequence
            and table.last >= low
            and not (high and table.first >= high)
            for table in view.level0
        ):
            return _from_level0_merge(view)
        for number, level in enumerate(view.levels, 1):
            for table in level.overlapping(low, high):
                if table.info.applied < sequence and _is_idle([table]):
                    return Plan([[table]], [], number)
    return None


def _from_level0_merge(view: View) -> Plan | None:
    low, high = span(view.level0)
    lower = _level(view, 1).overlapping(low, high)
    if not _is_idle(view.level0 + lower):
        return None
    return Plan([[table] for table in view.level0], lower, 1)


def may_forget_deletions(view: View, plan: Plan) -> bool:
    """Whether no table outside the merge may hold older rows of its span."""
    low, high = span(plan.tables())
    inside = {table.info.number for table in plan.tables()}
    if any(
        table.info.number not in inside
        and table.last >= low
        and table.first < high
        and table.info.min_sequence <= max(t.max_sequence for t in plan.tables())
        for table in view.level0
    ):
        return False
    return not any(
        table.info.number not in inside
        for level in view.levels[plan.target :]
        for table in level.overlapping(low, high)
    )


def retired_drops(view: View, drops: list[Drop]) -> list[int]:
    """Sequences of durable drops that no table needs any more."""
    return [
        sequence
        for low, high, sequence in drops
        if not any(
            table.info.applied < sequence
            and table.last >= low
            and (high is None or table.first < high)
            for table in view.tables()
        )
    ]
