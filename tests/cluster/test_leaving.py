"""Nodes that are removed, replaced and drained, and those that lost what they held."""

from __future__ import annotations

import asyncio

import pytest

from o3storage.cluster import (
    MembershipRefused,
    Unavailable,
)
from o3storage.simulation import run
from tests.cluster.member_rig import Places, patiently


def test_removal_below_the_replication_factor_is_refused() -> None:
    async def main() -> None:
        async with Places() as places:
            await places.start(3)
            await places.until_voters(1, 2, 3)
            with pytest.raises(MembershipRefused, match="--shrink"):
                await places[1].membership.remove(places[3].id, shrink=False)
            assert places[2].membership.records[places[3].id].state.name == "MEMBER"

    run(main(), 10)


def test_a_removed_node_stays_out_and_a_new_epoch_begins() -> None:
    async def main() -> None:
        async with Places(count=4) as places:
            await places.start(4)
            await places.until_voters(1, 2, 3, groups=(0,))
            gone = places[2].id
            await places[1].membership.remove(gone, shrink=False)
            await places.until(lambda: places[1].states()["10.0.0.2"] == "removed")
            await places.until_voters(1, 3, 4)
            for number in (1, 3, 4):
                await places.until(lambda n=number: places[n].node._epochs.newest == 2)
            assert places[2].node._epochs.newest == 1, "who left does not get the new key"
            bucket = await patiently(places[3].bucket)
            upload, _command = await places[4].upload(bucket, b"k", b"v")
            assert upload.ref.epoch == 2
            # It is started again by accident: nobody talks to it.
            await places[2].down()
            await places[2].up("10.0.0.1")
            await asyncio.sleep(5)
            assert not any(places[n].membership.up(gone) for n in (1, 3, 4))
            assert any(
                "removed" in text for text in places[2].membership.status()["problems"].values()
            ), places[2].membership.status()
            with pytest.raises(Unavailable):
                await places[2].put(bucket, b"k", b"v")

    run(main(), 11)


def test_a_removed_node_cannot_join_again_under_its_old_keys() -> None:
    async def main() -> None:
        async with Places(count=4) as places:
            await places.start(4)
            await places.until_voters(1, 2, 3, groups=(0,))
            await places[1].membership.remove(places[4].id, shrink=False)
            await places.until(lambda: places[1].states()["10.0.0.4"] == "removed")
            await places[4].down()
            keys = places[4].keys
            places[4].fresh()
            places[4].keys = keys
            with pytest.raises(MembershipRefused, match="was removed"):
                await places[4].up("10.0.0.1")
            places[4].fresh()
            await places[4].up("10.0.0.1")  # with new ones it may

    run(main(), 12)


def test_a_dead_node_is_replaced_by_a_new_one() -> None:
    async def main() -> None:
        async with Places(count=4) as places:
            await places.start(3)
            await places.until_voters(1, 2, 3)
            bucket = await patiently(places[1].bucket)
            await patiently(lambda: places[1].put(bucket, b"k", b"v"))
            dead = places[3].id
            await places[3].die()
            await patiently(lambda: places[1].membership.remove(dead, shrink=False, replace=True))
            await asyncio.sleep(5)
            assert dead in places[1].voters(1), "it keeps its place until another has it"
            await places[4].up("10.0.0.2")
            await places.until_voters(1, 2, 4)
            await places.until(lambda: places[1].states()["10.0.0.3"] == "removed")
            assert await patiently(lambda: places[4].get(bucket, b"k")) == b"v"

    run(main(), 13)


def test_draining_the_leader_hands_over_and_moves_its_votes() -> None:
    async def main() -> None:
        async with Places(count=4) as places:
            await places.start(4)
            await places.until_voters(1, 2, 3, groups=(0,))
            await places[2].membership.drain(places[1].id, shrink=False)
            await places.until(lambda: places[1].id not in places[2].voters(0))
            await places.until(lambda: places[1].id not in places[2].voters(1))
            for group in (0, 1):
                assert places[2].voters(group) == sorted(places[n].id for n in (2, 3, 4))
            # It is still a node, and serves.
            bucket = await patiently(places[1].bucket)
            assert bucket.name == "bucket"
            await patiently(lambda: places[3].membership.stay(places[1].id))
            await places.until(lambda: places[2].states()["10.0.0.1"] == "member")

    run(main(), 14)


def test_shrinking_from_three_to_two() -> None:
    async def main() -> None:
        async with Places() as places:
            await places.start(3)
            await places.until_voters(1, 2, 3)
            await places[3].die()
            victim = next(
                n
                for n, r in places[1].membership.records.items()
                if r.announced.addresses[0].host == "10.0.0.3"
            )
            await patiently(lambda: places[1].membership.remove(victim, shrink=True))
            await places.until(lambda: places[1].states()["10.0.0.3"] == "removed")
            bucket = await patiently(places[2].bucket)
            await patiently(lambda: places[2].put(bucket, b"k", b"v"))

    run(main(), 15)


def test_a_node_that_lost_its_volumes_does_not_come_back_under_its_name() -> None:
    async def main() -> None:
        async with Places() as places:
            await places.start(3)
            await places.until_voters(1, 2, 3)
            await places[3].down()
            kept = await places[3].disk.list_dir("")
            assert "members" in kept
            for folder in ("volumes", "index"):
                for name in await places[3].disk.list_dir(folder):
                    await places[3].disk.unlink(f"{folder}/{name}")
            with pytest.raises(Unavailable, match="lost its volumes"):
                await places[3].up("10.0.0.1")
            # Not even when that file is gone as well.
            await places[3].disk.unlink("members")
            with pytest.raises(MembershipRefused, match="data is gone"):
                await places[3].up("10.0.0.1")

    run(main(), 16)
