"""Several nodes as one store: any node takes a write, any node answers, one may go. What a member
lacks: `test_team_bodies.py`."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from o3storage import catalog
from o3storage.cluster import Unavailable, _records
from o3storage.cluster._batch import Batch
from o3storage.crypto import wrap_epoch_key
from o3storage.raft.core import Append
from o3storage.simulation import run
from tests.cluster.support import body_of
from tests.cluster.team_support import (
    Member,
    NothingRides,
    Team,
    equal,
    everywhere,
    team,
)

SIZES = [1, 900, 20_000, 32 * 1024, 40_000, 300_000, 700_000]


def test_any_node_takes_a_write_and_any_node_answers() -> None:
    async def main() -> None:
        async with team() as group:
            bucket = await group.members[0].bucket()
            bodies: dict[bytes, bytes] = {}
            for number, size in enumerate(SIZES):
                for member in group.members:
                    key = b"key-%d-%d" % (number, member.seed)
                    bodies[key] = body_of(number, size)
                    await member.put(bucket, key, bodies[key])
                    for reader in group.members:
                        assert await reader.get(bucket, key) == bodies[key]
            await equal(group)
            await everywhere(group, bucket, bodies)

    run(main(), 1)


def test_it_goes_on_without_its_leader_and_takes_it_back() -> None:
    async def main() -> None:
        async with team() as group:
            bucket = await group.members[0].bucket()
            bodies = {b"before": body_of(1, 50_000)}
            await group.members[1].put(bucket, b"before", bodies[b"before"])
            lost = group.leader()
            await group.kill(lost)
            began_s = asyncio.get_running_loop().time()
            for number in range(20):
                key = b"after-%d" % number
                bodies[key] = body_of(number, 3_000 * (number + 1) ** 2)
                member = group.up[number % 2]
                await member.put(bucket, key, bodies[key])
                if not number:
                    assert asyncio.get_running_loop().time() - began_s < 3.0
            await everywhere(group, bucket, bodies)
            await group.restart(lost)
            await equal(group)
            await everywhere(group, bucket, bodies)

    run(main(), 2)


def test_a_minority_refuses_within_five_seconds_with_a_reason_and_comes_back() -> None:
    async def main() -> None:
        async with team(seed=3) as group:
            loop = asyncio.get_running_loop()
            bucket = await group.members[0].bucket()
            await group.leader().put(bucket, b"key", b"before")
            alone = group.leader()
            others = [m for m in group.members if m is not alone]
            group.net.cut([alone.id], [m.id for m in others])

            async def refused(work: Any) -> Unavailable:
                began_s = loop.time()
                with pytest.raises(Unavailable, match=r"replicas of range|not known") as caught:
                    await work
                assert loop.time() - began_s < 5.0
                return caught.value

            # What the old leader appended may yet be found and committed by nobody.
            first = asyncio.ensure_future(refused(alone.put(bucket, b"key", b"lost")))
            reads = asyncio.ensure_future(refused(alone.get(bucket, b"key")))
            assert (await first).uncertain
            assert not (await reads).uncertain
            later = await refused(alone.put(bucket, b"key", b"never"))
            assert not later.uncertain
            assert "only 1 of 3 replicas" in later.reason

            await group.settled(others)
            await others[0].put(bucket, b"key", b"after")
            assert await others[1].get(bucket, b"key") == b"after"
            group.net.heal()
            assert await alone.get(bucket, b"key") == b"after"
            await equal(group)

    run(main(), 3)


def test_a_follower_that_is_cut_off_refuses_and_serves_nothing_stale() -> None:
    async def main() -> None:
        async with team(seed=4) as group:
            bucket = await group.members[0].bucket()
            await group.leader().put(bucket, b"key", b"before")
            alone = next(m for m in group.members if not m.leads(0) and not m.leads(1))
            others = [m for m in group.members if m is not alone]
            group.net.cut([alone.id], [m.id for m in others])
            await others[0].put(bucket, b"key", b"after")
            with pytest.raises(Unavailable):
                await alone.get(bucket, b"key")
            with pytest.raises(Unavailable) as caught:
                await alone.put(bucket, b"key", b"never")
            assert not caught.value.uncertain
            group.net.heal()
            assert await alone.get(bucket, b"key") == b"after"
            await equal(group)

    run(main(), 4)


def test_all_stop_and_start_again() -> None:
    async def main() -> None:
        group = await Team(seed=5).start()
        bucket = await group.members[0].bucket()
        bodies = {b"key-%d" % n: body_of(n, 30_000 * n + 1) for n in range(8)}
        for number, (key, body) in enumerate(bodies.items()):
            await group.members[number % 3].put(bucket, key, body)
        cluster_id = group.members[0].node.cluster_id
        await group.stop()
        await asyncio.gather(*(member.start() for member in group.members))
        await group.settled()
        assert {m.node.cluster_id for m in group.members} == {cluster_id}
        await everywhere(group, bucket, bodies)
        await equal(group)
        await group.stop()

    run(main(), 5)


def test_power_cuts_of_all_lose_nothing_acknowledged() -> None:
    async def main() -> None:
        group = await Team(seed=6).start()
        bucket = await group.members[0].bucket()
        bodies: dict[bytes, bytes] = {}
        for turn in range(4):
            for number in range(6):
                key = b"key-%d-%d" % (turn, number)
                body = body_of(number, 70_000 * number + 100)
                await group.members[number % 3].put(bucket, key, body)
                bodies[key] = body
            rng = random.Random(turn)
            group.net.peers.clear()
            for member in group.members:
                await member.crash(rng)
            await asyncio.gather(*(member.start() for member in group.members))
            await group.settled()
            await everywhere(group, bucket, bodies)
        await equal(group)
        await group.stop()

    run(main(), 6)


def test_a_proposal_whose_leader_is_lost_is_uncertain_and_made_once() -> None:
    """The leader takes it and dies; whatever becomes of it, it is there at most once. Nobody else
    writes, so that the next leader's log stays shorter than what was proposed last."""

    async def main() -> None:
        async with team(seed=7) as group:
            bucket = await group.members[0].bucket()
            follower = group.follower()
            leader = group.leader()
            group.net.drop = lambda m: m.sender == leader.id and isinstance(m, Append)
            puts = []
            for key in (b"key", b"key2", b"key3"):
                puts.append(asyncio.ensure_future(follower.put(bucket, key, b"body")))
                await asyncio.sleep(0.01)
            old = leader.replica().core
            assert old.log.last >= follower.replica().core.log.last + 3
            await group.kill(leader)
            group.net.drop = lambda _: False
            for put in puts:
                with pytest.raises(Unavailable) as caught:
                    await asyncio.wait_for(put, 20)
                assert caught.value.uncertain
            replica = follower.replica()
            assert not replica.status()["waiting"]
            assert replica.applied < old.log.last, "else the test shows nothing"
            # The leader's answer comes late.
            batch = Batch([b""], adds=[False], futures=[asyncio.get_running_loop().create_future()])
            replica.await_outcomes(batch, old.log.last, old.term, {})
            with pytest.raises(Unavailable, match="another leader took over"):
                await asyncio.wait_for(batch.futures[0], 20)
            await follower.put(bucket, b"other", b"body")
            await group.restart(leader)
            await equal(group)
            assert await follower.get(bucket, b"key") is None

    run(main(), 7)


def test_frames_that_did_not_ride_are_fetched() -> None:
    async def main() -> None:
        async with team(seed=8) as group:
            bucket = await group.members[0].bucket()
            for member in group.members:
                member.node.replication.riding = NothingRides()
                member.node.replication.read_riding_now = lambda _: None
            bodies = {b"key-%d" % n: body_of(n, 1000 + n) for n in range(10)}
            for number, (key, body) in enumerate(bodies.items()):
                await group.members[number % 3].put(bucket, key, body)
            await equal(group)
            await everywhere(group, bucket, bodies)
            fetched = [m.node.replication.fetcher.fetched_frames for m in group.members]
            assert sum(fetched) >= 20

    run(main(), 8)


def test_racing_conditional_writes_at_all_nodes_have_one_winner() -> None:
    async def main() -> None:
        async with team(seed=9) as group:
            bucket = await group.members[0].bucket()

            async def attempt(member: Member, number: int) -> bool:
                try:
                    await member.put(
                        bucket,
                        b"key",
                        b"%d" % number,
                        condition=catalog.WriteCondition(if_none_match="*"),
                    )
                except catalog.CatalogError:
                    return False
                return True

            won = await asyncio.gather(
                *(attempt(group.members[n % 3], n) for n in range(12)), return_exceptions=False
            )
            assert sum(won) == 1
            bodies = {await m.get(bucket, b"key") for m in group.members}
            assert bodies == {b"%d" % won.index(True)}

    run(main(), 9)


def test_a_graceful_stop_hands_leadership_over() -> None:
    async def main() -> None:
        group = await Team(seed=10).start()
        bucket = await group.members[0].bucket()
        loop = asyncio.get_running_loop()
        leaving = group.leader()
        group.down.append(leaving)
        began_s = loop.time()
        await leaving.stop()
        await group.up[0].put(bucket, b"key", b"body")
        assert loop.time() - began_s < 0.5
        await group.stop()

    run(main(), 10)


def test_members_are_changed_from_one_to_three_and_a_learner_follows() -> None:
    async def main() -> None:
        group = Team(seed=11)
        one, two, three = group.members
        two.bootstrap = three.bootstrap = False
        for member in group.members:
            member.founders = []
            await member.start()
        bucket = await one.bucket()
        bodies = {b"early-%d" % n: body_of(n, 20_000 * n + 1) for n in range(5)}
        for key, body in bodies.items():
            await one.put(bucket, key, body)
        with pytest.raises(Unavailable, match="not received"):
            await two.put(bucket, b"key", b"too early")
        # What membership does when it adds a node: its copy of the epoch's key.
        kek = one.node._epochs.key(1)
        rows = [
            (_records.epoch_key(1, m.id), wrap_epoch_key(kek, 1, m.keys.exchange, m.entropy))
            for m in (two, three)
        ]
        await one.replica(0).submit(_records.encode_set(rows))
        for number in (0, 1):
            await one.node.change_members(number, [one.id], [two.id])
        await group.level([one, two])
        await two.put(bucket, b"by a learner", b"body")
        assert await two.get(bucket, b"by a learner") == b"body"
        bodies[b"by a learner"] = b"body"
        everyone = [m.id for m in group.members]
        for number in (0, 1):
            await one.node.change_members(number, everyone)
            await one.node.change_members(number, everyone)
        await equal(group)
        await everywhere(group, bucket, bodies)
        with pytest.raises(Unavailable) as caught:
            await two.node.change_members(1, [two.id])
        assert not caught.value.uncertain
        status = one.node.status()["groups"][1]
        assert [m["repair_debt"] for m in status["members"]] == [0, 0]
        await group.kill(one)
        await group.settled()
        await two.put(bucket, b"without the first", b"body")
        await everywhere(group, bucket, bodies)
        await group.stop()

    run(main(), 11)
