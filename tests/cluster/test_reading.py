"""What the core is told of a log that lost entries which had been applied."""

from __future__ import annotations

from typing import Any, cast

import pytest

from o3storage.cluster._reading import log_of
from o3storage.raft.core import UNKNOWN
from o3storage.storage import EntriesGone, HardState, LogState, Store


class LostLog:
    """Entries 1 to 6 of term 2; those in `missing` rotted. Its hard state is of term 4."""

    def __init__(self, missing: list[tuple[int, int]], applied: int) -> None:
        self.state = LogState(1, 6, 2, HardState(4, 0, applied), applied, 6, missing)

    def log_state(self, _: int) -> LogState:
        return self.state

    def term(self, _: int, index: int) -> int:
        if any(low <= index <= high for low, high in self.state.missing):
            raise EntriesGone(f"no term of entry {index}")
        return 2 if index else 0


def log(missing: list[tuple[int, int]], applied: int = 6, **how: Any) -> Any:
    return log_of(cast("Store", LostLog(missing, applied)), 1, **how)


@pytest.mark.parametrize("missing", [[(6, 6)], [(4, 6)]])
def test_the_last_entry_is_asked_back_though_it_was_applied(missing: list[tuple[int, int]]) -> None:
    found = log(missing)
    assert (found.last, found.holes, found.term(6)) == (6, [(6, 6)], UNKNOWN)
    assert found.last_term == 4, "nobody who lacks what was lost gets this node's vote"
    alone = log(missing, alone=True)
    assert (alone.last, alone.floor, alone.holes) == (6, 6, [])


def test_others_that_were_applied_are_not() -> None:
    found = log([(2, 3), (5, 5)])
    assert (found.floor, found.last, found.holes, found.last_term) == (5, 6, [], 2)
    assert log([(2, 3)], applied=2).holes == [(3, 3)]
