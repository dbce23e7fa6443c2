"""The watch over consensus: what it calls a violation, and what it lets pass."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from o3storage.cluster import Unavailable
from o3storage.cluster._applying import LOST, Applying
from o3storage.raft.core import COMMAND, Entry
from o3storage.simulation._safety import SafetyLog, watch_safety


def replica(node: int, *, group: int = 1, applied: int = 0, team: object = None) -> Any:
    core = SimpleNamespace(id=node)
    return SimpleNamespace(group=group, core=core, applied=applied, team=team)


def test_a_term_has_one_leader() -> None:
    log = SafetyLog()
    told: list[tuple[int, int, int]] = []
    log.on_elected = lambda *what: told.append(what)
    log.elected(replica(1), 5)
    log.elected(replica(1), 5)  # (the same one: a message of it was taken twice)
    log.elected(replica(2, group=2), 5)
    log.elected(replica(2), 6)
    assert not log.found and told == [(1, 5, 0), (1, 5, 0), (2, 5, 0), (1, 6, 0)]
    log.elected(replica(2), 5)
    assert [promise for promise, _, _ in log.found] == ["P4"] and log.elections == 5


@pytest.mark.parametrize(
    ("index", "term", "kind", "data", "violations"),
    [
        (4, 2, COMMAND, b"one", 0),
        (4, 3, COMMAND, b"one", 1),
        (4, 2, COMMAND, b"two", 1),
        (4, 3, LOST, b"", 0),
        (5, 2, COMMAND, b"next", 1),
    ],
)
def test_an_index_holds_one_entry_behind_the_one_before_it(
    index: int, term: int, kind: int, data: bytes, violations: int
) -> None:
    log = SafetyLog()
    log.applied(replica(1, applied=3), Entry(4, 2, COMMAND, b"one"))
    log.applied(replica(2, applied=3), Entry(index, term, kind, data))
    assert len(log.found) == violations


def test_a_replica_that_stops_is_told_of_but_not_one_that_ends() -> None:
    log = SafetyLog()
    for reason in ("the node is stopping", "simulated write error at 4096 of 'volumes/1.log'"):
        log.failed(reason)
    assert not log.found
    log.failed("range 1 stopped at entry 4: ValueError: impossible sums")
    log.failed("range 1 stopped at entry 4: ValueError: impossible sums")
    log.failed("range 1: a snapshot cannot be used: it does not say which keys it is of")
    assert len(log.found) == 2


def test_errors_that_nobody_catches_are_told_of_unless_they_have_a_name() -> None:
    log = SafetyLog()
    loop = asyncio.new_event_loop()
    try:
        for named in (Unavailable("no leader"), TimeoutError(), OSError(5, "gone")):
            log.unhandled(loop, {"exception": named})
        log.unhandled(loop, {"message": "a task was destroyed"})
        assert not log.found
        log.unhandled(loop, {"exception": KeyError("x")})
    finally:
        loop.close()
    assert log.found == [("defect", 0, "nobody catches KeyError('x')")]


def test_the_product_is_as_it_was_afterwards() -> None:
    before = Applying._finish
    with watch_safety(SafetyLog()):
        assert Applying._finish is not before
    assert Applying._finish is before
