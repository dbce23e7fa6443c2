"""Nodes that join, come back and are kept out, each started as its command would. Those that leave:
`test_leaving.py`; strangers: `test_strangers.py`."""

from __future__ import annotations

import asyncio
import contextlib
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from o3storage.cluster import (
    ClusterError,
    MembershipRefused,
    SecretRefused,
    SplitRefused,
    Unavailable,
    WrongCluster,
)
from o3storage.cluster._membership import Membership
from o3storage.cluster._node_records import NodeState
from o3storage.cluster._placing import caught_up
from o3storage.cluster._wire import HIGHEST_VERSION
from o3storage.runtime.network import Address
from o3storage.simulation import SimDisk, run
from tests.cluster.member_rig import PORT, SECRET, Places, Stranger, patiently
from tests.cluster.support import body_of

NEXT = HIGHEST_VERSION + 1
"""What a later release will speak."""


def test_one_command_alone_makes_a_cluster_of_one() -> None:
    async def main() -> None:
        async with Places() as places:
            first = await places[1].up()
            assert first.voters(0) == first.voters(1) == [first.id]
            assert len(first.membership.cluster_id) == 16
            bucket = await first.bucket()
            await first.put(bucket, b"k", b"v")
            await first.down()
            await first.up()
            assert await first.get(bucket, b"k") == b"v"

    run(main(), 1)


def test_three_commands_make_one_cluster() -> None:
    async def main() -> None:
        async with Places() as places:
            await places.start(2)
            # Of two the second is a learner.
            await places.until(lambda: places[1].node._replicas[1].core.configuration.learners)
            assert places[1].voters(0) == [places[1].id]
            await places[3].up("10.0.0.1,10.0.0.2")
            await places.until_voters(1, 2, 3)
            ids = {bytes(p.membership.cluster_id) for p in places.all}
            assert len(ids) == 1
            bucket = await patiently(places[2].bucket)
            body = body_of(1, 1000)
            await patiently(lambda: places[3].put(bucket, b"k", body))
            for place in places.all:
                assert await patiently(lambda place=place: place.get(bucket, b"k")) == body

    run(main(), 2)


def test_the_order_of_starting_does_not_matter() -> None:
    async def main() -> None:
        async with Places() as places:
            waiting = [
                asyncio.get_running_loop().create_task(places[n].up("10.0.0.1,10.0.0.2,10.0.0.3"))
                for n in (3, 2)
            ]
            await asyncio.sleep(20)
            assert not any(task.done() for task in waiting), "they never make a cluster themselves"
            assert "waiting to join a cluster" in places[2].said[0]
            assert any("it waits to join a cluster itself" in line for line in places[3].said)
            await places[1].up()
            await asyncio.gather(*waiting)
            await places.until_voters(1, 2, 3)

    run(main(), 3)


def test_the_same_commands_again_after_all_were_stopped() -> None:
    async def main() -> None:
        async with Places() as places:
            await places.start(3)
            await places.until_voters(1, 2, 3)
            bucket = await patiently(places[1].bucket)
            await patiently(lambda: places[1].put(bucket, b"k", b"v"))
            for place in places.all:
                await place.down()
            # In another order; two of them are a majority.
            await places[3].up("10.0.0.1")
            await places[2].up("10.0.0.1")
            assert await patiently(lambda: places[2].get(bucket, b"k")) == b"v"
            await places[1].up()
            await places.until(lambda: all(places[2].membership.up(p.id) for p in places.all))
            assert places[1].membership.cluster_id == places[2].membership.cluster_id

    run(main(), 4)


def test_rows_that_went_back_do_not_hide_the_other_members() -> None:
    """A disk that lost entries of range 0 is filled again by the others: it must know them."""

    async def main() -> None:
        async with Places() as places:
            await places.start(3)
            await places.until_voters(1, 2, 3)
            member = places[1].membership
            await places.until(lambda: len(member.members.nodes) == 2)
            records = dict(member.records)
            member.records = {places[1].id: records[places[1].id]}
            await member._remember()
            assert list(member.members.nodes) == sorted([places[2].id, places[3].id])
            gone = records[places[3].id]
            member.records[gone.node] = replace(gone, state=NodeState.REMOVED)
            await member._remember()
            assert list(member.members.nodes) == [places[2].id]

    run(main(), 4)


def test_without_the_secret_nobody_joins() -> None:
    async def main() -> None:
        async with Places() as places:
            await places[1].up()
            with pytest.raises(SecretRefused, match="O3_CLUSTER_SECRET"):
                await places[2].up("10.0.0.1", secret=None)
            other = asyncio.get_running_loop().create_task(
                places[2].up("10.0.0.1", secret=SECRET[::-1])
            )
            await asyncio.sleep(10)
            assert not other.done() and len(places[1].membership.records) == 1
            assert any("secret" in line for line in places[2].said), places[2].said
            other.cancel()
            await asyncio.gather(other, return_exceptions=True)

    run(main(), 5)


def test_a_first_node_without_a_secret_lets_nobody_in() -> None:
    async def main() -> None:
        async with Places() as places:
            await places[1].up(secret=None)
            assert places[1].membership.token() is None
            other = asyncio.get_running_loop().create_task(places[2].up("10.0.0.1"))
            await asyncio.sleep(5)
            assert not other.done()
            assert any("was given no cluster secret" in line for line in places[2].said)
            other.cancel()
            await asyncio.gather(other, return_exceptions=True)

    run(main(), 6)


def test_a_member_comes_back_without_the_secret() -> None:
    async def main() -> None:
        async with Places() as places:
            await places.start(3)
            await places.until_voters(1, 2, 3)
            await places[2].down()
            await places[2].up("10.0.0.1", secret=None)
            await places.until(lambda: places[1].membership.up(places[2].id))

    run(main(), 7)


def test_data_of_another_cluster_is_refused() -> None:
    async def main() -> None:
        async with Places() as places:
            await places[1].up()
            await places[2].up()  # by mistake without --peers: a cluster of its own
            await places[2].down()
            with pytest.raises(WrongCluster, match="empty data directory"):
                await places[2].up("10.0.0.1")
            # Without --peers it goes on with what it has.
            await places[2].up()

    run(main(), 8)


def test_another_cluster_on_a_known_address_is_reported() -> None:
    async def main() -> None:
        async with Places() as places:
            await places.start(3)
            await places.until_voters(1, 2, 3)
            await places[3].down()
            places[3].fresh()
            await places[3].up()  # its disk was lost, and it is started as the first node
            await places.until(lambda: places[1].membership.status()["other_clusters"])
            found = places[1].membership.status()["other_clusters"]
            assert list(found) == [f"10.0.0.3:{PORT}"]
            assert found[f"10.0.0.3:{PORT}"] == places[3].membership.cluster_id.hex()

    run(main(), 9)


def test_a_node_that_moved_is_found_at_its_new_address() -> None:
    async def main() -> None:
        async with Places(count=4) as places:
            await places.start(3)
            await places.until_voters(1, 2, 3)
            await places[3].down()
            places[3].host = "10.0.0.9"
            await places[3].up("10.0.0.1")
            await places.until(lambda: places[1].states().get("10.0.0.9") == "member")
            await places.until(lambda: places[1].membership.up(places[3].id))

    run(main(), 17)


def test_all_nodes_moved_at_once_and_find_each_other_by_name() -> None:
    async def main() -> None:
        async with Places() as places:
            places.net.name("store.example", [p.host for p in places.all])
            await places.start(3)
            await places.until_voters(1, 2, 3)
            for place in places.all:
                await place.down()
                place.host = place.host.replace("10.0.0.", "10.0.7.")
            places.net.name("store.example", [p.host for p in places.all])
            for place in places.all:
                await place.up("store.example")
            await places.until(
                lambda: set(places[2].states()) == {"10.0.7.1", "10.0.7.2", "10.0.7.3"}, 60
            )
            bucket = await patiently(places[3].bucket)
            assert bucket.name == "bucket"

    run(main(), 26)


def test_the_version_rises_once_every_node_speaks_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        async with Places() as places:
            await places.start(3)
            await places.until_voters(1, 2, 3)
            await places[3].down()
            monkeypatch.setattr("o3storage.cluster._membership.HIGHEST_VERSION", NEXT)
            await places.until(
                lambda: (
                    [
                        r.announced.highest
                        for r in places[1].membership.live()
                        if r.node != places[3].number_of()
                    ]
                    == [NEXT, NEXT]
                )
            )
            await asyncio.sleep(5)
            assert places[2].membership.version == NEXT - 1, "the third has not said yet"
            await places[3].up("10.0.0.1")
            await places.until(lambda: all(p.membership.version == NEXT for p in places.all))

    run(main(), 27)


def test_no_range_is_cut_while_a_node_does_not_know_of_cuts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        async with Places() as places:
            for module in ("_membership", "_node"):
                monkeypatch.setattr(f"o3storage.cluster.{module}.HIGHEST_VERSION", 1)
            await places.start(3)
            await places.until_voters(1, 2, 3)
            bucket = await patiently(places[1].bucket)
            ranges = places[2].node.ranges
            cut = places[1].machine.stream_route(bucket.bucket_id, b"m")[1:]
            with pytest.raises(SplitRefused, match="install this one on all nodes"):
                await ranges.split(cut)
            # Two nodes are upgraded; the third is not.
            monkeypatch.setattr("o3storage.cluster._membership.HIGHEST_VERSION", 2)
            ignorant = places[3].membership
            monkeypatch.setattr(
                ignorant,
                "announcement",
                lambda: replace(Membership.announcement(ignorant), highest=1),
            )
            await asyncio.sleep(5)
            with pytest.raises(SplitRefused, match="install this one on all nodes"):
                await ranges.split(cut)
            monkeypatch.delattr(ignorant, "announcement")
            await places.until(lambda: all(p.membership.version == 2 for p in places.all))
            assert await patiently(lambda: ranges.split(cut)) == 2

    run(main(), 29)


def test_a_new_cluster_takes_nobody_who_does_not_know_of_cuts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        async with Places() as places:
            first = await places[1].up()
            bucket = await first.bucket()
            cut = first.machine.stream_route(bucket.bucket_id, b"m")[1:]
            assert await first.node.ranges.split(cut) == 2
            monkeypatch.setattr("o3storage.cluster._membership.HIGHEST_VERSION", 1)
            with pytest.raises(MembershipRefused, match="install the release that the cluster"):
                await places[2].up("10.0.0.1")

    run(main(), 30)


def test_a_peer_port_that_is_taken_keeps_only_those_from_starting_who_need_it() -> None:
    async def main() -> None:
        async with Places() as places:
            taken = Stranger(places, None, number=1)
            await taken.peers.listen(Address("10.0.0.1", PORT))
            with pytest.raises(Unavailable, match="choose another --peer-port"):
                await places[1].up()
            # The port was not asked for: a node alone serves without.
            await places[1].up(must_listen=False)
            assert places[1].membership.token() is None
            assert places[1].membership.status()["listening"] == ""
            await places[1].down()
            await taken.close()

    run(main(), 28)


def test_a_value_that_all_nodes_share() -> None:
    async def main() -> None:
        async with Places() as places:
            await places.start(3)
            await places.until_voters(1, 2, 3)
            told: list[str] = []
            places[3].membership.on_shared = told.append
            await patiently(lambda: places[2].membership.share("root key", b"secret"))
            await places.until(lambda: places[3].membership.shared.get("root key") == b"secret")
            assert told == ["root key"]

    run(main(), 18)


def test_status_says_who_leads_and_who_is_behind() -> None:
    async def main() -> None:
        async with Places() as places:
            await places.start(3)
            await places.until_voters(1, 2, 3)
            await places.until(lambda: all(places[2].membership.up(p.id) for p in places.all))
            places[3].membership.facts = lambda: {"version": "x"}
            facts = await places[2].membership.gather_facts()
            assert sorted(facts) == sorted(p.id for p in places.all)
            assert facts[places[3].id]["version"] == "x"
            led = [g["group"] for f in facts.values() for g in f["leads"]]
            assert sorted(led) == [0, 1]
            nodes = places[2].membership.status()["nodes"]
            assert [n["up"] for n in nodes] == [True] * 3
            await places[1].die()
            await places.until(
                lambda: not places[2].membership.up(places[2].membership.node) or True
            )
            await places.until(
                lambda: [n["up"] for n in places[2].membership.status()["nodes"]].count(True) == 2
            )

    run(main(), 19)


def test_two_processes_with_one_identity_are_noticed() -> None:
    async def main() -> None:
        async with Places(count=4) as places:
            await places.start(3)
            await places.until_voters(1, 2, 3)
            # The data directory of the third was copied to a fourth machine, and both run.
            copy = places[4]
            copy.keys, copy.entropy = places[3].keys, places[4].entropy
            await places[3].down()
            copy.disk = SimDisk(4, image=deepcopy(places[3].disk.image))
            await places[3].up("10.0.0.1")
            with contextlib.suppress(ClusterError):
                await asyncio.wait_for(copy.up("10.0.0.1"), 20)

            def noticed() -> bool:
                return any(
                    n["duplicates"] or "claims" in " ".join(s["problems"].values())
                    for number in (1, 2, 3)
                    for s in [places[number].membership.status()]
                    for n in s["nodes"]
                )

            await places.until(noticed)

    run(main(), 20)


@pytest.mark.parametrize(
    ("changes", "up", "caught"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"debt": 1}, True, False),
        ({"uncertain": True}, True, False),
        ({"data": 743}, True, False),
        ({"data": 744}, True, True),
    ],
)
def test_who_has_caught_up(changes: dict[str, Any], up: bool, caught: bool) -> None:
    facts = {"debt": 0, "uncertain": False, "data": 1000, **changes}
    core = SimpleNamespace(
        progress={2: SimpleNamespace(**facts)}, log=SimpleNamespace(last=1000), term_start=5
    )
    peers = SimpleNamespace(is_up=lambda node: up)
    found = caught_up(peers, SimpleNamespace(core=core))  # type: ignore[arg-type]
    assert found == {2: caught}
    core.term_start = 1001  # a leader that has committed nothing in its term knows too little
    assert caught_up(peers, SimpleNamespace(core=core)) == {2: False}  # type: ignore[arg-type]
