"""Nodes join, leave, die and are cut off at random while keys are written: at the end all that was
acknowledged is on every node, and all agree on who is in the cluster."""

from __future__ import annotations

import asyncio
import os
import random
from typing import Any

import pytest

from o3storage.cluster import ClusterError
from o3storage.simulation import run
from tests.cluster.member_rig import Place, Places, patiently

SEEDS = int(os.environ.get("O3_MEMBERSHIP_SEEDS", "4"))
COUNT = 5
STEPS = 14


class Chaos:
    """One run: what was asked for, and what was acknowledged."""

    def __init__(self, seed: int, places: Places) -> None:
        self.rng = random.Random(seed)
        self.places = places
        self.acknowledged: dict[bytes, bytes] = {}
        self.joining: dict[int, asyncio.Task[Any]] = {}
        self.leaving: dict[int, None] = {}
        self.log: list[str] = []
        self.number = 0
        self.bucket: Any = None

    def running(self) -> list[Place]:
        return [p for p in self.places.all if p.clustered is not None]

    def living(self) -> list[Place]:
        """Running, and not on their way out."""
        return [p for p in self.running() if p.seed not in self.leaving]

    async def write(self) -> None:
        while True:
            await asyncio.sleep(self.rng.random() * 0.5)
            living = self.living()
            if not living:
                continue
            place = self.rng.choice(living)
            self.number += 1
            key = b"key %d" % self.number
            try:
                await place.put(self.bucket, key, key * 3)
            except (ClusterError, OSError, AttributeError, ValueError):
                continue
            self.acknowledged[key] = key * 3

    async def step(self) -> None:
        what = self.rng.choice(["join", "join", "kill", "drain", "stay", "remove", "cut", "heal"])
        number = self.rng.randint(2, COUNT)
        place = self.places[number]
        self.log.append(f"{what} {number}")
        if what == "join" and place.clustered is None and number not in self.joining:
            if number in self.leaving:
                return
            peers = ",".join(p.host for p in self.places.all if p is not place)
            task = asyncio.get_running_loop().create_task(place.up(peers))
            self.joining[number] = task
            task.add_done_callback(lambda _task: self.joining.pop(number, None))
        elif what == "kill" and place.clustered is not None:
            # At most one at a time, so that there is a majority to go on.
            known = self.places[1].membership.live()
            if len(self.running()) == len(known) >= 3:
                await place.die()
        elif what in {"drain", "stay", "remove"} and place.clustered is not None:
            await self.operator(what, place)
        elif what == "cut" and len(self.running()) == len(self.places[1].membership.live()) > 2:
            others = [p.host for p in self.places.all if p is not place]
            self.places.net.partition([place.host], others)
        elif what == "heal":
            self.places.net.heal()

    async def operator(self, what: str, place: Place) -> None:
        member = self.places[1].membership
        try:
            if what == "drain":
                await member.drain(place.id, shrink=False)
            elif what == "stay":
                await member.stay(place.id)
                self.leaving.pop(place.seed, None)
            else:
                await member.remove(place.id, shrink=False)
                self.leaving[place.seed] = None
        except ClusterError as error:
            self.log.append(f"  refused: {error}")

    async def settle(self) -> None:
        """Everything heals; who belongs to the cluster runs."""
        self.places.net.heal()
        first = self.places[1]
        peers = ",".join(p.host for p in self.places.all)
        for place in self.places.all:
            if place.clustered is None and place.seed not in self.joining:
                members = {r.node for r in first.membership.live()}
                if self.number_of(place) in members:
                    await asyncio.wait_for(place.up(peers), 60)
        for task in list(self.joining.values()):
            await asyncio.wait_for(task, 60)
        await self.places.until(self.at_rest, 120)

    @staticmethod
    def number_of(place: Place) -> int:
        from o3storage.cluster import node_id

        return node_id(place.keys)

    def at_rest(self) -> bool:
        """No change is under way, and who holds a range has applied the same as the others."""
        member = self.places[1].membership
        live = {r.node: r.state.name for r in member.live()}
        if len([s for s in live.values() if s == "MEMBER"]) >= 3 and "LEAVING" in live.values():
            return False
        places = [p for p in self.running() if p.id in live]
        if not all(p.membership.records == member.records for p in places):
            return False
        for group in (0, 1):
            holding = [p for p in places if group == 0 or p.node.ranges.is_here(group)]
            if len(holding) < (len(places) if group == 0 else min(len(places), 3)):
                return False
            replicas = [p.node._replicas[group] for p in holding]
            if any(r.applied != replicas[0].applied for r in replicas):
                return False
            if any(r.core.configuration.joint for r in replicas):
                return False
        return True

    async def judge(self) -> None:
        first = self.places[1]
        live = {r.node: r for r in first.membership.live()}
        assert len({p.membership.cluster_id for p in self.running()}) == 1
        for place in self.running():
            if place.id not in live:
                assert not first.membership.up(place.id), "a removed node is talked to"
                continue
            for key, body in self.acknowledged.items():
                found = await patiently(lambda p=place, k=key: p.get(self.bucket, k))
                assert found == body, (place.host, key, found)
        for group in (0, 1):
            holder = first
            if group and not first.node.ranges.is_here(group):
                holder = next(p for p in self.running() if p.node.ranges.is_here(group))
            configuration = holder.node._replicas[group].core.configuration
            assert len(configuration.voters) % 2 == 1
            assert set(configuration.members()) <= set(live)


@pytest.mark.parametrize("seed", range(1, SEEDS + 1))
def test_members_come_and_go(seed: int) -> None:
    async def main() -> None:
        async with Places(seed, COUNT) as places:
            await places.start(3)
            await places.until_voters(1, 2, 3)
            chaos = Chaos(seed, places)
            chaos.bucket = await patiently(places[1].bucket)
            writer = asyncio.get_running_loop().create_task(chaos.write())
            try:
                for _ in range(STEPS):
                    await chaos.step()
                    await asyncio.sleep(chaos.rng.random() * 6)
                await chaos.settle()
                writer.cancel()
                await asyncio.gather(writer, return_exceptions=True)
                await asyncio.sleep(2)
                await chaos.judge()
            except BaseException:
                print("\n".join(chaos.log))
                raise
            finally:
                writer.cancel()
            assert len(chaos.acknowledged) > 5

    run(main(), seed)
