"""Is a history linearizable? (Herlihy and Wing, 1990.)

The search is Wing and Gong's with Lowe's memo of (operations placed, state), as in Porcupine; it
runs key by key, since linearizability composes (Horn and Kroening, "Faster linearizability checking
via P-compositionality", 2015). An operation of unknown outcome may be placed anywhere between its
call and its deadline, or nowhere.

A page of a listing is a read of each key that it covers (checked key by key), and all those reads
must have one instant in common: that is checked against bounds which follow from real time alone.
"""

from __future__ import annotations

import bisect
import contextlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

from ._history import MARKER, History, Kind, Operation, Page, Result

MAX_STATES = 200_000
"""States tried for one key before the check gives up: a history of a run needs a few hundred."""

CONTEXT = 16
"""Operations of the key, up to the one that fits nowhere, that a violation shows."""

State = tuple[int, ...]
"""Versions of a key, newest first: values, and MARKER for each delete marker."""


@dataclass(frozen=True, slots=True)
class Violation:
    """What is wrong, and the operations that show it."""

    promise: str
    text: str
    operations: tuple[Operation, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.promise}: {self.text}", *(f"    {op}" for op in self.operations)]
        return "\n".join(lines)


class TooHardError(RuntimeError):
    """MAX_STATES were tried for one key without an answer."""


def step(state: State, op: Operation, versioned: bool) -> State | None:
    """The state after `op`, None if the operation cannot have its result in this state."""
    kind = op.kind
    top = state[0] if state and state[0] > 0 else None
    known = op.result is Result.OK
    if kind is Kind.READ:
        return state if op.seen == top else None
    if kind is Kind.PUT:
        holds = True
        if op.condition == "absent":
            holds = top is None
        elif op.condition == "match":
            holds = top == op.expected
        if op.result is Result.REFUSED:
            return None if holds else state
        if not holds:
            return None if known else state
        return (op.value, *state) if versioned else (op.value,)
    if kind is Kind.DELETE:
        return (MARKER, *state) if versioned else ()
    if kind is Kind.READ_VERSION:
        return state if (op.value in state) == (op.seen is not None) else None
    if kind is Kind.REMOVE_VERSION:
        return tuple(value for value in state if value != op.value)
    return state if state == op.seen_versions else None


def check_key(operations: Iterable[Operation], versioned: bool) -> Violation | None:
    """Whether the operations of one key (ordered by call or not) are linearizable. Raises
    TooHardError."""
    ops = sorted(
        (
            op
            for op in operations
            if op.result is not Result.NEVER
            and (op.writes or op.result not in (Result.UNKNOWN, Result.PENDING))
        ),
        key=lambda op: op.call_s,
    )
    # Writes of unknown outcome that nobody saw the value of most likely never happened: without
    # them the search is short. Only where it fails they may be what explains the rest.
    seen = {value for op in ops for value in (op.seen, op.expected, *op.seen_versions) if value}
    likely = [
        op
        for op in ops
        if op.result in (Result.OK, Result.REFUSED) or op.kind is not Kind.PUT or op.value in seen
    ]
    if len(likely) < len(ops):
        with contextlib.suppress(TooHardError):
            if _search(likely, versioned) is None:
                return None
    return _search(ops, versioned)


def _search(ops: list[Operation], versioned: bool) -> Violation | None:
    count = len(ops)
    required = [op.result in (Result.OK, Result.REFUSED) for op in ops]
    goal = sum(1 << i for i in range(count) if required[i])
    optional = [i for i in range(count) if not required[i]]
    below = _put_before(ops)
    deepest, deepest_mask = -1, 0
    deepest_state: State = ()
    seen: set[tuple[int, State]] = set()
    stack: list[tuple[int, State, float]] = [(0, (), -math.inf)]
    while stack:
        mask, state, latest_s = stack.pop()
        if mask & goal == goal:
            return None
        if (mask, state) in seen:
            continue
        seen.add((mask, state))
        if len(seen) > MAX_STATES:
            raise TooHardError(f"{ops[0].bucket}/{ops[0].key}: {MAX_STATES} states tried")
        placed = (mask & goal).bit_count()
        if placed > deepest:
            deepest, deepest_state, deepest_mask = placed, state, mask
        # Candidates: called before every operation that is not placed yet has returned.
        earliest_return = math.inf
        candidates: list[int] = []
        first = (~mask & (mask + 1)).bit_length() - 1
        for i in range(first, count):
            op = ops[i]
            if op.call_s > earliest_return:
                break
            if mask >> i & 1:
                continue
            candidates.append(i)
            if required[i] and op.return_s < earliest_return:
                earliest_return = op.return_s
        next_states: list[tuple[int, State, float]] = []
        for i in candidates:
            op = ops[i]
            if op.call_s > earliest_return or op.return_s < latest_s:
                continue
            if below[i] & ~mask:
                continue
            after = step(state, op, versioned)
            if after is None:
                continue
            found = (mask | 1 << i, after, max(latest_s, op.call_s))
            asks = not op.writes or op.result is Result.REFUSED
            if asks and required[i] and _none_expires(ops, optional, mask, op.call_s):
                # It changes nothing and may stand here: no need to try it anywhere else.
                next_states = [found]
                break
            next_states.append(found)
        stack.extend(reversed(next_states))
    left = [ops[i] for i in range(count) if required[i] and not deepest_mask >> i & 1]
    stuck = min(left, key=lambda op: op.return_s)
    context = [op for op in ops if op.call_s <= stuck.return_s]
    return Violation(
        "P4",
        f"{stuck.bucket}/{stuck.key} is not linearizable: with the key at "
        f"{_text(deepest_state)} operation {stuck.number} cannot be placed",
        tuple(dict.fromkeys([*context[-CONTEXT:], stuck])),
    )


def _put_before(ops: list[Operation]) -> list[int]:
    """For each operation those, as bits, that are certainly before it: of two versions that one
    listing of versions showed, the older one was put first."""
    puts = {op.value: i for i, op in enumerate(ops) if op.kind is Kind.PUT}
    before = [0] * len(ops)
    for op in ops:
        if op.kind is Kind.VERSIONS and op.result is Result.OK:
            shown = [puts[value] for value in op.seen_versions if value in puts]
            for newer, older in pairwise(shown):
                before[newer] |= 1 << older
    return before


def _none_expires(ops: list[Operation], optional: list[int], mask: int, call_s: float) -> bool:
    """Placing an operation called at `call_s` now takes no other operation's last chance."""
    return all(mask >> i & 1 or ops[i].return_s >= call_s for i in optional)


def _text(state: State) -> str:
    return "[" + ", ".join(str(v) if v else "marker" for v in state) + "]"


# --- listings


class Bounds:
    """When a key may have shown a value, by real time alone: necessary, not sufficient."""

    def __init__(self, operations: list[Operation]) -> None:
        took = [op for op in operations if op.result is Result.OK and op.writes]
        self._puts = {op.value: op for op in operations if op.kind is Kind.PUT}
        self._sure = [op for op in took if op.kind is not Kind.REMOVE_VERSION]
        self._sure_puts = [op for op in took if op.kind is Kind.PUT]
        self._removals = [
            op
            for op in operations
            if op.kind in (Kind.DELETE, Kind.REMOVE_VERSION) and op.result is not Result.NEVER
        ]
        self._revives = any(op.kind is Kind.REMOVE_VERSION for op in operations)
        self._absent_never = self._spans_never_absent()

    def _spans_never_absent(self) -> list[tuple[float, float]]:
        spans = []
        for put in self._sure_puts:
            end = min(
                (op.call_s for op in self._removals if op.return_s > put.call_s),
                default=math.inf,
            )
            if end > put.return_s:
                spans.append((put.return_s, end))
        return spans

    def shows(self, value: int | None, at_s: float) -> bool:
        """Whether the key may have shown `value` (None: nothing) at this instant."""
        if value is None:
            return not any(low < at_s < high for low, high in self._absent_never)
        put = self._puts.get(value)
        if put is None or at_s < put.call_s:
            return False
        return self._revives or at_s <= self._gone_by(put)

    def _gone_by(self, put: Operation) -> float:
        return min((op.return_s for op in self._sure if op.call_s > put.return_s), default=math.inf)

    def instants(self, value: int | None) -> list[float]:
        """Where the answer of `shows` becomes yes."""
        if value is None:
            return [high for _, high in self._absent_never]
        put = self._puts.get(value)
        return [] if put is None else [put.call_s]


def check_page(page: Page, bounds: dict[str, Bounds]) -> Violation | None:
    """Whether one instant between call and return could have shown all of the page."""
    covered = [(key, page.seen.get(key)) for key in bounds if page.covers(key)]
    strange = [key for key in page.seen if key not in bounds]
    if strange:
        return Violation("P4", f"{page} shows keys that nobody wrote: {strange}")
    instants = {page.call_s}
    for key, value in covered:
        instants.update(
            at for at in bounds[key].instants(value) if page.call_s <= at <= page.return_s
        )
    for at in sorted(instants):
        if all(bounds[key].shows(value, at) for key, value in covered):
            return None
    shown = dict(covered)
    return Violation("P4", f"no one instant shows this page: {page}: {shown}")


def check(history: History, versioned: Callable[[str], bool]) -> list[Violation]:
    """All violations of a history. `versioned` says which buckets keep versions."""
    by_key: dict[tuple[str, str], list[Operation]] = {}
    for op in history.operations:
        by_key.setdefault((op.bucket, op.key), []).append(op)
    bounds: dict[str, dict[str, Bounds]] = {}
    for (bucket, key), ops in by_key.items():
        bounds.setdefault(bucket, {})[key] = Bounds(ops)
    keys = {bucket: sorted(found) for bucket, found in bounds.items()}
    violations: list[Violation] = []
    number = len(history.operations)
    for page in history.pages:
        found = check_page(page, bounds.get(page.bucket, {}))
        if found is not None:
            violations.append(found)
        names = keys.get(page.bucket, [])
        for key in names[bisect.bisect_right(names, page.low) :]:
            if page.high and key > page.high:
                break
            number += 1
            by_key[page.bucket, key].append(
                Operation(
                    number,
                    f"{page.client} (page)",
                    Kind.READ,
                    page.bucket,
                    key,
                    page.call_s,
                    page.return_s,
                    Result.OK,
                    seen=page.seen.get(key),
                )
            )
    for (bucket, _), ops in by_key.items():
        found = check_key(ops, versioned(bucket))
        if found is not None:
            violations.append(found)
    return violations
