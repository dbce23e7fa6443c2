"""What a member knows of frames that it lacks: in order, whatever order it heard of them in."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from o3storage.cluster import _records
from o3storage.cluster._team import Team
from o3storage.raft.core import COMMAND, UNKNOWN, DataGap, Entry, HoleAnswer
from o3storage.simulation import run


def entry(index: int) -> Entry:
    data = _records.encode_carry(
        0, b"", route=b"", session=0, started_ns=0, stream=index.to_bytes(16, "big"), frames=3
    )
    return Entry(index, 1, COMMAND, data)


class Replica:
    """As much of one as a team asks of its own."""

    group = 1

    def __init__(self) -> None:
        log = SimpleNamespace(last=100, term=lambda _: UNKNOWN)
        self.core = SimpleNamespace(log=log, commit=0)
        self.told: list[DataGap] = []

    def step(self, event: DataGap) -> None:
        self.told.append(event)


class Node:
    """Nothing is here, and nothing comes."""

    def __init__(self) -> None:
        self.questions = self.fetcher = self.awake = self.store = self
        self.wanted: list[int] = []

    def want(self, _: Team, index: int, __: Any) -> None:
        self.wanted.append(index)

    def holds_now(self, _: bytes, __: int) -> bool:
        return False

    def stir(self, _: Any) -> None:
        return

    def note(self, _: bytes, __: bytes | None) -> None:
        return


@given(st.lists(st.tuples(st.sets(st.integers(1, 100), min_size=1), st.integers(0, 100))))
def test_gaps_stay_in_order_and_become_debt_with_the_commit_index(
    steps: Sequence[tuple[set[int], int]],
) -> None:
    async def main() -> None:
        replica, node = Replica(), Node()
        team = Team(replica, node)  # type: ignore[arg-type]
        gaps: set[int] = set()
        debt: set[int] = set()
        for came, commit in steps:
            fresh = sorted(came - debt)
            if not fresh:
                continue
            team.before(HoleAnswer(2, 1, 1, fresh[0], True, [entry(at) for at in fresh]), ())
            gaps |= set(fresh)
            replica.core.commit = max(replica.core.commit, commit)
            team.settle()
            debt |= {at for at in gaps if at <= replica.core.commit}
            gaps -= debt
            assert list(team.gaps) == sorted(gaps)
            assert sorted(team.debt) == sorted(debt)
            assert replica.told[-1] == DataGap(min(gaps, default=0), len(debt))
            assert all(at.to_bytes(16, "big") in team.lacked for at in gaps | debt)
        assert bytes(16) not in team.lacked

    run(main(), 1)
