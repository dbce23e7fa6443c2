"""A voter whose promises are in doubt: it hears who leads, and it votes again once a committed
change has made it a learner."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from o3storage.cluster._placing import doubted
from o3storage.simulation import run
from tests.cluster.member_rig import Place, Places, patiently
from tests.cluster.support import body_of
from tests.cluster.team_support import team
from tests.cluster.test_elsewhere import SETTINGS, away, holders, settled, start
from tests.cluster.test_moves import leader_of

IDLE_S = 20.0
"""Longer than it takes a group to become quiescent."""


def doubted_once(place: Any) -> None:
    """The next start finds all groups in doubt, as when a batch lost its header and its trailer."""
    opened = place.open_store

    async def open_store() -> Any:
        store = await opened()
        for log in store._core.groups.values():
            log.uncertain = True
        place.open_store = opened
        return store

    place.open_store = open_store


def in_doubt(place: Place) -> bool:
    """As long as a restart would find it so."""
    return any(
        replica.core.uncertain or place.store.log_state(group).uncertain
        for group, replica in place.node._replicas.items()
    )


def test_a_voter_whose_promises_are_in_doubt_answers_beside_a_quiescent_leader() -> None:
    async def main() -> None:
        async with team(seed=23) as group:
            member = next(m for m in group.members if not m.leads(0) and not m.leads(1))
            bucket = await group.leader().bucket()
            await group.leader().put(bucket, b"key", b"body")
            await group.level()
            await group.kill(member)
            await asyncio.sleep(IDLE_S)
            assert group.leader().replica().core.quiescent
            doubted_once(member)
            await group.restart(member)
            await asyncio.sleep(IDLE_S)
            assert member.replica().core.uncertain
            assert await member.get(bucket, b"key") == b"body"

    run(main(), 23)


@pytest.mark.parametrize("idle", [False, True])
def test_a_voter_in_doubt_votes_again_without_an_operator(idle: bool) -> None:
    async def main() -> None:
        async with Places() as places:
            await places.start(3)
            await places.until_voters(1, 2, 3)
            bucket = await patiently(places[1].bucket)
            for place in (places[2], places[3]):
                # (One after the other: of three, two count.)
                await patiently(lambda p=place: p.put(bucket, b"key", body_of(1, 4000)))  # type: ignore[misc]
                await place.die()
                if idle:
                    await asyncio.sleep(IDLE_S)
                doubted_once(place)
                await place.up(places[1].host)
                await places.until(lambda p=place: not in_doubt(p), 60.0)  # type: ignore[misc]
                await places.until_voters(1, 2, 3)
            # Those two are a majority.
            await places[1].die()
            await patiently(lambda: places[2].put(bucket, b"then", b"body"), 30.0)
            assert await patiently(lambda: places[3].get(bucket, b"then")) == b"body"

    run(main(), 71 + idle)


def test_a_learner_in_doubt_is_told_of_the_members_again() -> None:
    async def main() -> None:
        async with Places(count=3) as places:
            await places.start(2)
            first, second = places[1], places[2]
            await places.until(
                lambda: second.id in first.node._replicas[1].core.configuration.learners
            )
            await second.die()
            doubted_once(second)
            await second.up(first.host)
            await places.until(lambda: not in_doubt(second), 60.0)
            last = first.node._replicas[1].core.log.last
            await asyncio.sleep(IDLE_S)
            assert first.node._replicas[1].core.log.last == last, "told once"
            await places[3].up(first.host)
            await places.until_voters(1, 2, 3)

    run(main(), 73)


def test_a_replica_moves_while_another_voter_is_in_doubt() -> None:
    async def main() -> None:
        async with Places(count=5) as places:
            await start(places)
            bucket = await patiently(places[1].bucket)
            await patiently(lambda: places[1].put(bucket, b"key", body_of(1, 300_000)))
            leader = leader_of(places)
            source, shaken = (p for p in holders(places) if p is not leader)
            target, asked = away(places)
            await shaken.die()
            await patiently(lambda: asked.node.ranges.move(1, source.id, target.id))
            doubted_once(shaken)
            await shaken.up(leader.host, **SETTINGS)
            await places.until(lambda: not any(p.node.ranges.moves for p in places.all), 60.0)
            await settled(places, 1)
            assert target.node.ranges.is_here(1) and shaken.node.ranges.is_here(1)
            assert not in_doubt(shaken)
            assert await patiently(lambda: target.get(bucket, b"key")) == body_of(1, 300_000)

    run(main(), 74)


@pytest.mark.parametrize(
    ("changes", "found"), [({}, True), ({"uncertain": False}, False), ({"match": 6}, False)]
)
def test_whom_the_leader_takes_for_in_doubt(changes: dict[str, Any], found: bool) -> None:
    facts = {"uncertain": True, "match": 7, **changes}
    core = SimpleNamespace(progress={2: SimpleNamespace(**facts)}, configuration_index=7)
    assert (2 in doubted(SimpleNamespace(core=core))) == found  # type: ignore[arg-type]
