"""Nodes that were away while others came, and must hear of them from those whom they know."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from o3storage.cluster import _introductions
from o3storage.cluster._introductions import MAX_NODES, decode, encode
from o3storage.cluster._node import number_of
from o3storage.cluster._node_records import Announcement, NodeRecord, NodeState
from o3storage.raft.core import Role, TransferLeadership
from o3storage.simulation import run
from tests.cluster.member_rig import Place, Places, Stranger, patiently


def leads(place: Place, group: int = 0) -> bool:
    return place.node._replicas[group].core.role is Role.LEADER


async def lead(places: Places, place: Place, among: list[Place], group: int = 0) -> None:
    """Have `place` lead the range, as one of `among` that can reach each other."""
    for _ in range(60):
        if leads(place, group):
            return
        for other in among:
            if leads(other, group):
                other.node._replicas[group].step(TransferLeadership(place.id))
        await asyncio.sleep(0.5)
    raise AssertionError("it does not come to lead")


def knows(place: Place, other: Place) -> bool:
    return other.number_of() in place.membership.records


async def replaced_while_away(places: Places, away: list[int]) -> None:
    """Nodes 1 to 5 vote; some are cut off, 6 comes and takes the place of 3, and leads range 0."""
    apart = [places[n] for n in away]
    rest = [p for p in places.all if p not in apart]
    for place in apart:
        places.net.partition([place.host], [p.host for p in places.all if p is not place])
    new = await places[6].up("10.0.0.1")
    await patiently(lambda: places[1].membership.remove(places[3].id, shrink=True))
    await places.until(lambda: new.id in places[1].voters(0), 60)
    await lead(places, new, rest)
    await asyncio.sleep(30)
    assert leads(new)
    assert not any(knows(place, new) for place in apart)


@pytest.mark.parametrize("away", [[5], [4, 5]], ids=["one", "two"])
def test_who_was_away_hears_of_a_new_leader_from_the_others(away: list[int]) -> None:
    """They refused it for ever, and with it all that range 0 had to say. Two of them know no more
    than one."""

    async def main() -> None:
        async with Places(count=6) as places:
            await places.start(5)
            await places.until_voters(1, 2, 3, 4, 5, groups=(0,))
            await replaced_while_away(places, away)
            places.net.heal()
            new = places[6]
            stale = [places[n] for n in away]
            await places.until(
                lambda: all(knows(p, new) and p.membership.up(new.id) for p in stale)
            )
            await asyncio.sleep(10)
            assert leads(new)
            core = new.node._replicas[0].core
            for place in stale:
                assert place.node._replicas[0].core.leader == new.id
                assert place.node._replicas[0].core.commit == core.commit
                assert not place.membership.introductions.heard, "rows alone count"
            # And the one that left stays out, here too.
            gone = places[3].id
            await places.until(lambda: new.states()["10.0.0.3"] == "removed", 60)
            await places.until(lambda: not any(p.membership.up(gone) for p in stale))
            bucket = await patiently(stale[0].bucket)
            await patiently(lambda: stale[0].put(bucket, b"k", b"v"))

    run(main(), 71)


def test_who_comes_back_elsewhere_finds_a_new_leader() -> None:
    """The leader does not find it, so nobody knocks; the others are found at their old places."""

    async def main() -> None:
        async with Places(count=6) as places:
            await places.start(5)
            await places.until_voters(1, 2, 3, 4, 5, groups=(0,))
            await replaced_while_away(places, [5])
            stale, new = places[5], places[6]
            await stale.down()
            places.net.heal()
            stale.host = "10.0.0.95"
            await stale.up()
            await places.until(lambda: knows(stale, new) and stale.membership.up(new.id))
            await places.until(lambda: "10.0.0.95" in new.states())
            assert leads(new)

    run(main(), 75)


def test_a_newcomer_whose_whole_range_is_led_by_a_later_one_gets_it() -> None:
    """It knows only those who were members when it joined."""

    async def main() -> None:
        async with Places(count=4) as places:
            await places.start(3)
            await places.until_voters(1, 2, 3)
            # It joins, and before it receives anything it is away.
            places.net.partition(["10.0.0.2", "10.0.0.3"], ["10.0.0.4"])
            joining = asyncio.get_running_loop().create_task(places[4].up("10.0.0.1"))
            await places.until(lambda: knows(places[1], places[4]))
            places.net.partition(["10.0.0.1"], ["10.0.0.4"])
            await places[2].die()
            old = places[2].number_of()
            places[2].fresh()
            await patiently(lambda: places[1].membership.remove(old, shrink=True, replace=True))
            await places[2].up("10.0.0.1")
            await places.until(lambda: places[2].id in places[1].voters(0), 60)
            await lead(places, places[2], places.all[:3])
            if joining.done():
                joining.result()
            places.net.heal()
            await asyncio.wait_for(joining, 40)
            assert knows(places[4], places[2])

    run(main(), 72)


def test_a_removed_node_stays_out_whatever_a_stale_one_says() -> None:
    """Of two that were asked one has not heard of the removal."""

    async def main() -> None:
        async with Places(count=3) as places:
            await places.start(3)
            await places.until_voters(1, 2, 3)
            stranger = Stranger(places, None)
            record = replace(stranger.record(), announced=Announcement())
            node, introduced = record.node, places[3].membership.introductions
            says = Announcement(addresses=())
            stale = (b"", {node: (record.identity, says)}, [])
            newer: Any = (b"", {}, [node])
            introduced._take([stale])
            assert introduced.knows(node, record.identity)
            assert not introduced.knows(node, b"x" * 32)
            introduced._take([newer])
            assert not introduced.heard, "it was told so later"
            for answers in ([stale, newer], [newer, stale]):
                introduced._take(answers)
                assert not introduced.heard
            introduced._take([stale])
            gone = replace(record, state=NodeState.REMOVED)
            places[3].membership.records[node] = gone
            assert introduced.drop_known() and not introduced.heard
            introduced._take([stale])
            assert not introduced.heard, "here it is known to have left"
            await stranger.close()

    run(main(), 73)


def test_nobody_but_a_member_is_told_and_asked() -> None:
    """Who only claims to belong here is refused, and makes nobody believe in it."""

    async def main() -> None:
        async with Places(count=3) as places:
            await places.start(3)
            await places.until_voters(1, 2, 3)
            asked: list[int] = []
            for place in places.all:
                introduced = place.membership.introductions

                async def ask(node: int, ask: Any = introduced._ask) -> Any:
                    asked.append(node)
                    return await ask(node)

                introduced._ask = ask  # type: ignore[method-assign]
            await asyncio.sleep(20)
            assert not asked, "nothing is amiss"
            stranger = Stranger(places, None)
            stranger.cluster = places[1].membership.cluster_id
            for _ in range(10):
                with pytest.raises(Exception, match="does not know it as a member"):
                    await stranger.ask(34, b"")
                await asyncio.sleep(1)
            await asyncio.sleep(10)
            assert asked and set(asked) == {places[2].id, places[3].id}
            assert len(asked) <= 6, "every few seconds, however often it knocks"
            assert not places[1].membership.introductions.heard
            await stranger.close()

    run(main(), 74)


keys = st.binary(min_size=32, max_size=32)


@given(st.dictionaries(keys, st.sampled_from(NodeState), max_size=MAX_NODES))
def test_an_answer_survives_its_encoding(states: dict[bytes, NodeState]) -> None:
    records = {
        number_of(key): NodeRecord(number_of(key), key, key, 7, state)
        for key, state in states.items()
    }
    cluster, members, gone = decode(encode(b"c" * 16, records))
    removed = {n for n, r in records.items() if r.state is NodeState.REMOVED}
    assert cluster == b"c" * 16 and set(gone) == removed
    assert set(members) == set(records) - removed
    assert all(members[n] == (records[n].identity, Announcement()) for n in members)


@given(st.binary(max_size=300), st.integers(0, 400), st.integers(0, 255))
def test_bytes_that_nobody_wrote_are_refused(data: bytes, at: int, value: int) -> None:
    key = b"k" * 32
    records = {number_of(key): NodeRecord(number_of(key), key, key, 7)}
    records[9] = NodeRecord(9, key, key, 7, NodeState.REMOVED)
    whole = bytearray(encode(b"c" * 16, records))
    whole[at % len(whole)] = value
    for given_bytes in (data, bytes(whole)):
        try:
            _cluster, members, _gone = decode(given_bytes)
        except ValueError:
            continue
        assert all(number_of(identity) == node for node, (identity, _) in members.items())


def test_more_than_a_cluster_has_is_refused() -> None:
    made = {}
    for number in range(MAX_NODES + 1):
        key = number.to_bytes(32, "little")
        made[number_of(key)] = NodeRecord(number_of(key), key, key, 7)
    with pytest.raises(ValueError, match="more members"):
        decode(encode(b"c" * 16, made))
    with pytest.raises(ValueError, match="too many nodes"):
        decode((_introductions.MAX_NODE_ROWS + 1).to_bytes(2, "big"))
    with pytest.raises(ValueError, match="its key"):
        decode(encode(b"c" * 16, {5: NodeRecord(5, b"k" * 32, b"x" * 32, 7)}))
