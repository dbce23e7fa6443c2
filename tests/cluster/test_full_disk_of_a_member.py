"""A member whose disk has no room for an entry that it took, and which gets a snapshot meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any

from o3storage.raft.core import Append
from o3storage.simulation import run
from o3storage.storage import StoreFull
from tests.cluster.support import body_of
from tests.cluster.team_support import equal, everywhere, forget, team


def test_entries_that_wait_for_space_go_to_the_log_before_a_snapshot_does() -> None:
    """They were written behind it, where they did not follow on the log: the member took nothing
    but snapshots from then on."""

    async def main() -> None:
        unforeseen: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, what: unforeseen.append(what))
        async with team(seed=62, reload_log_bytes=0, keep_log_bytes=0) as group:
            bucket = await group.members[0].bucket()
            away = group.follower()
            others = [member for member in group.members if member is not away]
            await group.level()
            last = away.store.log_state(1).last_index
            group.net.cut([away.id], [member.id for member in others])
            await group.settled(others)
            bodies = {b"key-%d" % number: body_of(number, 20_000) for number in range(40)}
            late: list[Append] = []
            for key, body in bodies.items():
                await others[0].put(bucket, key, body)
                if not late:
                    core = group.leader().replica().core
                    entries = core.log.slice(last + 1, last + 1, 1 << 20)
                    terms = core.term, last, core.log.term(last)
                    late.append(Append(core.id, away.id, *terms, entries, last))
                # (Their log goes on in further volumes.)
            await group.level(others)
            for other in others:
                await forget(other, last)

            store: Any = away.store
            append, stage = store.append, store.stage_piece
            full = False

            def append_if_room(*what: Any, **how: Any) -> Any:
                if full:
                    raise StoreFull("no space")
                return append(*what, **how)

            async def stage_piece(*what: Any) -> None:
                # The last message of before the cut comes while the snapshot does.
                nonlocal full
                full = True
                if late:
                    away.replica().receive(late.pop(), [])
                await stage(*what)

            store.append, store.stage_piece = append_if_room, stage_piece
            group.net.heal()
            await asyncio.sleep(20)
            assert full and not late, "else the test shows nothing"
            full = False
            store.stage_piece = stage
            await equal(group)
            sent = sum(member.replica().team.snapshots.sent for member in others)
            await others[0].put(bucket, b"last", b"body")
            bodies[b"last"] = b"body"
            await equal(group)
            await everywhere(group, bucket, bodies)
            assert sum(member.replica().team.snapshots.sent for member in others) == sent
            assert not unforeseen

    run(main(), 62)
