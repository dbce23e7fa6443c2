"""The history checker on histories known to be good and bad, and on random ones."""

from __future__ import annotations

import math
import random

import pytest

from o3storage.simulation import (
    MARKER,
    History,
    Kind,
    Operation,
    Page,
    Result,
    Violation,
    check_key,
)
from o3storage.simulation import check as check_history
from o3storage.simulation._checker import step

INF = math.inf


def op(
    kind: Kind,
    call: float,
    ret: float,
    *,
    value: int = 0,
    seen: int | None = None,
    result: Result = Result.OK,
    **fields: object,
) -> Operation:
    op.number += 1  # type: ignore[attr-defined]
    return Operation(
        op.number,  # type: ignore[attr-defined]
        "c",
        kind,
        "b",
        "k",
        call,
        ret,
        result,
        value=value,
        seen=seen,
        **fields,  # type: ignore[arg-type]
    )


op.number = 0  # type: ignore[attr-defined]


def put(call: float, ret: float, value: int, **fields: object) -> Operation:
    return op(Kind.PUT, call, ret, value=value, **fields)  # type: ignore[arg-type]


def read(call: float, ret: float, seen: int | None) -> Operation:
    return op(Kind.READ, call, ret, seen=seen)


def delete(call: float, ret: float, **fields: object) -> Operation:
    return op(Kind.DELETE, call, ret, **fields)  # type: ignore[arg-type]


def unknown(call: float, value: int, deadline: float = INF) -> Operation:
    return put(call, deadline, value, result=Result.UNKNOWN)


GOOD: dict[str, list[Operation]] = {
    "nothing": [],
    "one after the other": [put(0, 1, 1), read(2, 3, 1), delete(4, 5), read(6, 7, None)],
    "a read during a write sees old": [put(0, 1, 1), put(2, 5, 2), read(3, 4, 1), read(6, 7, 2)],
    "a read during a write sees new": [put(0, 1, 1), put(2, 5, 2), read(3, 4, 2)],
    "racing writes, either wins": [put(0, 3, 1), put(1, 2, 2), read(4, 5, 1), read(6, 7, 1)],
    "a delete racing a write, then nothing": [
        put(0, 3, 1),
        delete(0.5, 3),
        read(4, 5, None),
        read(6, 7, None),
    ],
    "an unknown write that happened": [put(0, 1, 1), unknown(2, 2), read(3, 4, 1), read(5, 6, 2)],
    "an unknown write that did not": [put(0, 1, 1), unknown(2, 2), read(3, 4, 1), read(9, 10, 1)],
    "an unknown write that took effect late": [
        put(0, 1, 1),
        unknown(2, 2),
        put(3, 4, 3),
        read(5, 6, 3),
        read(7, 8, 2),
    ],
    "one winner of two": [
        put(0, 4, 1, condition="absent"),
        put(1, 3, 2, condition="absent", result=Result.REFUSED),
        read(5, 6, 1),
    ],
    "if-match": [
        put(0, 1, 1),
        put(2, 3, 2, condition="match", expected=1),
        put(4, 5, 3, condition="match", expected=1, result=Result.REFUSED),
        read(6, 7, 2),
    ],
    "refused by an unknown write": [
        unknown(0, 1),
        put(1, 2, 2, condition="absent", result=Result.REFUSED),
        read(3, 4, 1),
    ],
}
BAD: dict[str, list[Operation]] = {
    "a lost write": [put(0, 1, 1), read(2, 3, None)],
    "a stale read": [put(0, 1, 1), put(2, 3, 2), read(4, 5, 1)],
    "a value from nowhere": [put(0, 1, 1), read(2, 3, 7)],
    "a read before the write": [read(0, 1, 1), put(2, 3, 1)],
    "reads go back": [put(0, 1, 1), put(2, 9, 2), read(3, 4, 2), read(5, 6, 1)],
    "an undone delete": [put(0, 1, 1), delete(2, 3), read(4, 5, 1)],
    "a late unknown write after its deadline": [
        put(0, 1, 1),
        unknown(2, 2, 3),
        put(4, 5, 3),
        read(6, 7, 2),
    ],
    "an unknown write that comes and goes": [
        put(0, 1, 1),
        unknown(2, 2),
        read(3, 4, 2),
        read(5, 6, 1),
    ],
    "two winners": [
        put(0, 4, 1, condition="absent"),
        put(1, 3, 2, condition="absent"),
    ],
    "refused for nothing": [put(0, 1, 1, condition="absent", result=Result.REFUSED)],
    "if-match of what was replaced": [
        put(0, 1, 1),
        put(2, 3, 2),
        put(4, 5, 3, condition="match", expected=1),
    ],
    "a write that is certain not to have happened": [
        put(0, 1, 1),
        put(2, 3, 2, result=Result.NEVER),
        read(4, 5, 2),
    ],
}


@pytest.mark.parametrize("name", GOOD)
def test_good_histories(name: str) -> None:
    assert check_key(GOOD[name], False) is None


@pytest.mark.parametrize("name", BAD)
def test_bad_histories(name: str) -> None:
    found = check_key(BAD[name], False)
    assert found is not None and found.promise == "P4" and "cannot be placed" in str(found)


def test_versions() -> None:
    gone = delete(4, 5)
    ops = [
        put(0, 1, 1),
        put(2, 3, 2),
        gone,
        read(6, 7, None),
        op(Kind.READ_VERSION, 8, 9, value=1, seen=1),
        op(Kind.VERSIONS, 10, 11, seen_versions=(MARKER, 2, 1)),
        op(Kind.REMOVE_VERSION, 12, 13, value=1),
        op(Kind.READ_VERSION, 14, 15, value=1, seen=None),
        op(Kind.VERSIONS, 16, 17, seen_versions=(MARKER, 2)),
    ]
    assert check_key(ops, True) is None
    ops[5].seen_versions = (MARKER, 1, 2)
    assert check_key(ops, True) is not None
    ops[5].seen_versions = (MARKER, 2, 1)
    ops[7].seen = 1
    assert check_key(ops, True) is not None, "a removed version is read again"


def test_many_unknown_writes_that_a_listing_shows_are_judged_at_once() -> None:
    """All of them overlap: without the order that the listing tells there are 2 to the 40 ways."""
    count = 40
    writes = [unknown(number / 100, number) for number in range(1, count + 1)]
    shown = tuple(range(count, 0, -1))
    late = op(Kind.VERSIONS, 10, 11, seen_versions=shown)
    assert check_key([*writes, late], True) is None
    # The first read saw a value that by then had another one above it.
    reads = [read(20, 21, count), read(12, 13, 3)]
    found = check_key([*writes, late, *reads], True)
    assert isinstance(found, Violation)


def test_a_version_that_was_written_twice_is_found() -> None:
    assert check_key([put(0, 1, 1), op(Kind.VERSIONS, 2, 3, seen_versions=(1, 1))], True)


# --- random histories: made from a true order, so they are linearizable; then damaged


def random_history(rng: random.Random, versioned: bool) -> list[Operation]:
    """Operations placed at random instants, each with a call before and a return after."""
    state: tuple[int, ...] = ()
    ops: list[Operation] = []
    values: list[int] = []
    for point in range(1, rng.randrange(4, 40)):
        width = rng.choice((0.4, 0.4, 3.0, 8.0))
        call, ret = point - rng.random() * width, point + rng.random() * width
        roll = rng.random()
        found: Operation
        if roll < 0.4:
            condition = rng.choice(("", "", "absent", "match"))
            expected = rng.choice(values) if values else 0
            if condition == "match" and not expected:
                condition = ""
            values.append(len(values) + 1)
            found = put(call, ret, values[-1], condition=condition, expected=expected)
            if step(state, found, versioned) is None:
                found.result = Result.REFUSED
        elif roll < 0.5:
            found = delete(call, ret)
        elif versioned and values and roll < 0.6:
            value = rng.choice(values)
            seen = value if value in state else None
            found = op(Kind.READ_VERSION, call, ret, value=value, seen=seen)
        else:
            found = read(call, ret, state[0] if state and state[0] > 0 else None)
        after = step(state, found, versioned)
        assert after is not None
        if found.kind in (Kind.PUT, Kind.DELETE) and rng.random() < 0.15:
            # Nobody heard of it: it happened, or it did not.
            happened = found.result is Result.OK and rng.random() < 0.5
            found.result = Result.UNKNOWN
            found.return_s = rng.choice((INF, ret))
            if not happened:
                after = state
        state = after
        ops.append(found)
    rng.shuffle(ops)
    return ops


@pytest.mark.parametrize("versioned", [False, True])
def test_random_linearizable_histories_pass(versioned: bool) -> None:
    for seed in range(400):
        ops = random_history(random.Random(f"{seed}/{versioned}"), versioned)
        found = check_key(ops, versioned)
        assert found is None, f"seed {seed}: {found}"


def by_brute_force(ops: list[Operation], versioned: bool) -> bool:
    """All orders, without memo or cleverness; for histories of a few operations."""
    ops = [o for o in ops if o.writes or o.result is not Result.UNKNOWN]

    def go(left: list[Operation], state: tuple[int, ...], latest: float) -> bool:
        sure = [o for o in left if o.result is not Result.UNKNOWN]
        if not sure:
            return True
        first_return = min(o.return_s for o in sure)
        for o in left:
            if o.call_s > first_return or o.return_s < latest:
                continue
            after = step(state, o, versioned)
            rest = [x for x in left if x is not o]
            if after is not None and go(rest, after, max(latest, o.call_s)):
                return True
        return False

    return go(ops, (), -INF)


def test_mutated_histories_are_judged_as_by_brute_force() -> None:
    bad = 0
    for seed in range(600):
        rng = random.Random(seed)
        ops = random_history(rng, False)[:7]
        reads = [o for o in ops if o.kind is Kind.READ]
        if reads:
            rng.choice(reads).seen = rng.choice([None, 1, 2, 3])
        sure = by_brute_force(ops, False)
        bad += not sure
        assert (check_key(ops, False) is None) == sure, f"seed {seed}"
    assert bad > 100, "the mutations must break some"


# --- listings


def history(ops: list[Operation], pages: list[Page]) -> list[Violation]:
    found = History(lambda: 0.0)
    found.operations, found.pages = ops, pages
    return check_history(found, lambda _bucket: False)


def key(name: str, operation: Operation) -> Operation:
    operation.key = name
    return operation


def test_a_page_shows_one_instant() -> None:
    ops = [key("a", put(0, 1, 1)), key("b", put(2, 3, 2))]
    good = Page("b", "c", 4, 5, "", "", {"a": 1, "b": 2})
    assert history(ops, [good]) == []
    for seen in ({"a": 1}, {"b": 2}, {}, {"a": 2, "b": 2}):
        assert history(ops, [Page("b", "c", 4, 5, "", "", seen)]), seen


def test_a_page_that_mixes_two_instants_is_found() -> None:
    """Each key by itself is fine: `a` was there before it went, `b` came after `a` had gone."""
    ops = [key("a", put(0, 1, 1)), key("a", delete(3, 4)), key("b", put(5, 6, 2))]
    page = Page("b", "c", 2, 8, "", "", {"a": 1, "b": 2})
    found = history(ops, [page])
    assert len(found) == 1 and "no one instant" in str(found[0])
    for seen in ({"a": 1}, {}, {"b": 2}):
        assert history(ops, [Page("b", "c", 2, 8, "", "", seen)]) == [], seen


def test_a_page_covers_only_its_span() -> None:
    ops = [key("a", put(0, 1, 1)), key("b", put(0, 1, 2)), key("c", put(0, 1, 3))]
    assert history(ops, [Page("b", "c", 2, 3, "a", "b", {"b": 2})]) == []
    assert history(ops, [Page("b", "c", 2, 3, "a", "", {"b": 2})])


def test_events_never_share_an_instant() -> None:
    found = History(lambda: 1.0)
    instants = [found.now() for _ in range(100)]
    assert len(set(instants)) == 100 and instants == sorted(instants)


def test_what_was_unknown_has_a_deadline_once_the_next_process_serves() -> None:
    found = History(lambda: 1.0)
    lost = found.call("c", Kind.PUT, "b", "k", value=1)
    lost.result = Result.UNKNOWN
    found.settle_unknown(5.0)
    later = found.call("c", Kind.PUT, "b", "k", value=2)
    later.result = Result.UNKNOWN
    assert lost.return_s == 5.0 and later.return_s == INF
