"""What the beginnings of log volumes say of a group, where records between them are gone: a volume
that is kept for its frames stands beside later ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from o3storage.storage._batches import FLAG_RESTATED, GroupInfo
from o3storage.storage._groups import EntryCache, GroupLog
from o3storage.storage._replay import Replay


def replayed(*said: int, first: int = 0, last: int = 0) -> GroupLog:
    """A group of which entries first..last were read, applied up to 29, after these restatements
    of its last index."""
    core: Any = SimpleNamespace(groups={}, stats=SimpleNamespace(lost_entries=0))
    replay = Replay(core, SimpleNamespace(applied={1: 29}), lambda _: None)  # type: ignore[arg-type]
    group = core.groups[1] = GroupLog(1, EntryCache(1000))
    group.applied_index = 29
    if last:
        group.reset(first - 1, 4)
        group.applied_index = 29
        replay._seen.add(1)
        for index in range(first, last + 1):
            group.terms.append(4)
            group.places.append(index)
            group.sizes.append(9)
    for index in said:
        replay._restated(GroupInfo(1, FLAG_RESTATED, 0, 0, 0, index, 4, 4, 0, 29, 29))
    replay._write = lambda: None  # type: ignore[method-assign]
    replay.finish()
    return group


@pytest.mark.parametrize("said", [(29,), (30, 29), (30, 30, 29, 29), (31, 30, 29)])
def test_a_log_that_went_back_has_lost_nothing(said: tuple[int, ...]) -> None:
    """It left this disk, with entries that nobody applied."""
    group = replayed(*said)
    assert (group.last_index, group.last_term, group.missing) == (29, 4, [])


def test_entries_that_are_there_stay_below_where_it_went_back() -> None:
    group = replayed(29, first=25, last=31)
    assert (group.first_index, group.last_index, group.missing) == (25, 29, [])
    assert list(group.places) == [25, 26, 27, 28, 29]


def test_entries_that_are_not_there_are_missing() -> None:
    group = replayed(29, 31)
    assert (group.last_index, group.missing) == (31, [(30, 31)])
