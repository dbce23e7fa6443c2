"""Several nodes as one store: any node takes a write, any node answers, one may go."""

from __future__ import annotations

import asyncio
from typing import Any

from o3storage.simulation import run
from tests.cluster.support import body_of
from tests.cluster.team_support import Team, team

SIZES = [1, 900, 20_000, 32 * 1024, 40_000, 300_000, 700_000]


async def equal(group: Team) -> None:
    await group.level()
    first, *rest = await group.catalogs()
    for other in rest:
        assert other == first


async def everywhere(group: Team, bucket: Any, bodies: dict[bytes, bytes]) -> None:
    for member in group.up:
        for key, body in bodies.items():
            assert await member.get(bucket, key) == body, (member.seed, key)


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
