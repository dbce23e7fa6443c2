"""In which order a member fetches what it lacks, and what becomes of what nobody wants any more."""

from __future__ import annotations

import asyncio
from typing import Any

from o3storage.cluster._fetching import RETRY_S, Fetcher, Wanted
from o3storage.simulation import run

FETCH_S = 1.0


class Team:
    """As much of one as the fetcher asks."""

    group = 1

    def __init__(self) -> None:
        self.gaps: dict[int, Wanted] = {}
        self.debt: dict[int, Wanted] = {}
        self.came: list[tuple[float, int]] = []
        self.lost: dict[int, None] = {}
        """Nobody has these."""

    def lack(self, fetcher: Fetcher, index: int, *, committed: bool) -> None:
        wanted = Wanted(index.to_bytes(16, "big"), 1, 0, index)
        (self.debt if committed else self.gaps)[index] = wanted
        fetcher.want(self, index, wanted)  # type: ignore[arg-type]

    def wants(self, index: int, wanted: Wanted) -> bool:
        return self.gaps.get(index) == wanted or self.debt.get(index) == wanted

    def may_fetch(self, _: int) -> bool:
        return True

    async def needless(self, _: int) -> bool:
        return False

    def fetched(self, index: int, _: Wanted) -> None:
        self.gaps.pop(index, None)
        self.debt.pop(index, None)
        self.came.append((asyncio.get_running_loop().time(), index))


def fetcher_of(team: Team) -> Fetcher:
    fetcher = Fetcher(None)  # type: ignore[arg-type]

    async def fetch(_: Any, wanted: Wanted) -> bool:
        await asyncio.sleep(FETCH_S)
        return wanted.at not in team.lost

    fetcher._fetch = fetch  # type: ignore[method-assign]
    return fetcher


def test_what_keeps_an_entry_from_being_committed_does_not_wait_for_all_that_is_owed() -> None:
    async def main() -> None:
        team = Team()
        fetcher = fetcher_of(team)
        for index in range(400):
            team.lack(fetcher, index, committed=True)
        fetcher.start()
        await asyncio.sleep(10)
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        team.lack(fetcher, 1000, committed=False)
        while team.gaps:
            await asyncio.sleep(0.01)
        assert loop.time() - began_s <= 2 * FETCH_S + RETRY_S
        assert len(team.debt) > 300
        await asyncio.sleep(110 * FETCH_S)
        assert not team.debt and len(team.came) == 401
        await fetcher.close()

    run(main(), 1)


def test_what_is_owed_is_fetched_beside_entries_whose_frames_nobody_has() -> None:
    async def main() -> None:
        team = Team()
        team.lost = dict.fromkeys(range(1000, 1100))
        fetcher = fetcher_of(team)
        for index in team.lost:
            team.lack(fetcher, index, committed=False)
        for index in range(60):
            team.lack(fetcher, index, committed=True)
        fetcher.start()
        await asyncio.sleep(25 * FETCH_S)
        assert not team.debt
        team.lost.clear()
        await asyncio.sleep(60 * FETCH_S)
        assert not team.gaps and not fetcher.waiting
        await fetcher.close()

    run(main(), 2)


def test_what_became_a_debt_meanwhile_lets_the_others_go_first() -> None:
    async def main() -> None:
        team = Team()
        fetcher = fetcher_of(team)
        for index in range(500):
            team.lack(fetcher, index, committed=False)
        team.debt, team.gaps = team.gaps, {}
        team.lack(fetcher, 1000, committed=False)
        fetcher.start()
        await asyncio.sleep(4 * FETCH_S)
        assert not team.gaps and len(team.debt) > 450
        await fetcher.close()

    run(main(), 3)


def test_what_nobody_wants_any_more_does_not_pile_up() -> None:
    """Much that a member lacks is overwritten before it may be fetched."""

    async def main() -> None:
        team = Team()
        fetcher = fetcher_of(team)
        most = 0
        for index in range(20_000):
            team.lack(fetcher, index, committed=True)
            team.debt.pop(index - 100, None)
            most = max(most, fetcher.waiting)
        assert most <= 500
        assert set(team.debt) == {want[1] for want in fetcher._debts if want[1] in team.debt}

    run(main(), 4)
