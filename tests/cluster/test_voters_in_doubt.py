"""A voter that may not campaign comes back to a group that is idle: it hears who leads."""

from __future__ import annotations

import asyncio
from typing import Any

from o3storage.simulation import run
from tests.cluster.team_support import team

IDLE_S = 20.0
"""Longer than it takes a group to become quiescent."""


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
            opened = member.open_store

            async def open_store() -> Any:
                store = await opened()
                for log in store._core.groups.values():
                    log.uncertain = True  # as when a batch lost its header and its trailer
                return store

            member.open_store = open_store  # type: ignore[method-assign]
            await group.restart(member)
            await asyncio.sleep(IDLE_S)
            assert member.replica().core.uncertain
            assert await member.get(bucket, b"key") == b"body"

    run(main(), 23)
