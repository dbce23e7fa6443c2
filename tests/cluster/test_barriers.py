"""Which reads share a question for a read index."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from o3storage import catalog
from o3storage.cluster import MISS, Unavailable
from o3storage.cluster._barriers import Barriers
from o3storage.raft.core import Heartbeat, ReadRequest, ReadResponse
from o3storage.simulation import run
from tests.cluster.team_support import Member, Team, team


def asker(group: Team) -> Member:
    """Leads nothing."""
    return next(m for m in group.members if not m.leads(0) and not m.leads(1))


def heard(group: Team) -> list[Any]:
    """Messages about reads that are sent from now on."""
    found: list[Any] = []

    def note(message: Any) -> bool:
        if isinstance(message, ReadRequest | ReadResponse | Heartbeat):
            found.append(message)
        return False

    group.net.drop = note
    return found


async def read(member: Member, bucket: Any, key: bytes) -> Any:
    """As a GET does it."""
    reads = member.node.reads()
    found = await reads.query(
        catalog.get_bucket(bucket.name),
        lambda b: catalog.head_version(b.bucket_id, key).route,
    )
    query = catalog.head_version(found.bucket_id, key)
    now = reads.query_now(query)
    return await reads.query(query) if now is MISS else now


def test_both_ranges_of_a_request_are_asked_for_at_once() -> None:
    async def main() -> None:
        async with team(seed=11) as group:
            bucket = await group.members[0].bucket()
            await group.leader().put(bucket, b"key", b"value")
            await group.level()
            member = asker(group)
            loop = asyncio.get_running_loop()
            sent = heard(group)
            began_s = loop.time()
            await read(member, bucket, b"key")
            took_s = loop.time() - began_s
            asked = [m for m in sent if isinstance(m, ReadRequest)]
            assert len(asked) == 2
            # There and back, 0.5 ms each way; one after the other takes twice as long.
            assert took_s < 0.0015
            assert len([m for m in sent if isinstance(m, ReadResponse)]) == 2

    run(main(), 11)


def test_no_question_has_the_token_of_one_before_a_restart() -> None:
    """The answer to that one may be on its way yet: it says less than is asked for now."""

    async def main() -> None:
        async with team(seed=21) as group:
            bucket = await group.members[0].bucket()
            await group.leader().put(bucket, b"key", b"value")
            member = asker(group)
            runs = []
            for _ in range(2):
                await group.level()
                sent = heard(group)
                for _ in range(40):
                    await read(member, bucket, b"key")
                asked = [m for m in sent if isinstance(m, ReadRequest)]
                runs.append({m.token: None for m in asked if m.sender == member.id})
                assert len(runs[-1]) >= 40
                assert all(0 < token < 1 << 63 for token in runs[-1])
                await group.kill(member)
                await group.restart(member)
                await group.settled()
            assert not runs[0].keys() & runs[1].keys()

    run(main(), 21)


def test_requests_that_come_together_share_a_question() -> None:
    async def main() -> None:
        async with team(seed=12) as group:
            bucket = await group.members[0].bucket()
            await group.leader().put(bucket, b"key", b"value")
            await group.level()
            for member in group.members:
                sent = heard(group)
                await asyncio.gather(*(read(member, bucket, b"key") for _ in range(100)))
                asked = [m for m in sent if isinstance(m, ReadRequest)]
                assert len(asked) <= 2
                assert len(sent) <= 20

    run(main(), 12)


def test_an_answer_serves_only_who_came_before_it_was_asked_for() -> None:
    async def main() -> None:
        async with team(seed=13) as group:
            bucket = await group.members[0].bucket()
            await group.leader().put(bucket, b"key", b"value")
            await group.level()
            member = asker(group)
            query = catalog.head_version(bucket.bucket_id, b"key")
            early = member.node.reads()
            assert early.query_now(query) is MISS
            version = await early.query(query)
            assert early.query_now(query) == version, "its own question was answered"
            late = member.node.reads()
            assert late.query_now(query) is MISS
            assert member.node.query_now(query) is MISS
            sent = heard(group)
            assert await late.query(query) == version
            assert [m for m in sent if isinstance(m, ReadRequest)]

    run(main(), 13)


def test_a_read_sees_every_write_that_ended_before_it_began() -> None:
    """At all nodes, while one of them is slow to hear what was committed."""

    async def main() -> None:
        async with team(seed=14) as group:
            bucket = await group.members[0].bucket()
            last = 0

            async def write() -> None:
                nonlocal last
                for number in range(1, 60):
                    await group.members[number % 3].put(bucket, b"key", b"%d" % number)
                    last = number

            async def look(member: Member) -> int:
                seen = 0
                while last < 59:
                    least = last
                    if least:
                        version = await read(member, bucket, b"key")
                        size = len(b"%d" % least)
                        assert version.size_bytes >= size
                        body = await member.get(bucket, b"key")
                        assert int(body) >= least
                        seen += 1
                    await asyncio.sleep(0.0007)
                return seen

            counts = await asyncio.gather(write(), *(look(m) for m in group.members))
            assert all(count > 5 for count in counts[1:] if count is not None)

    run(main(), 14)


def test_a_node_that_is_cut_off_answers_nothing_by_an_old_answer() -> None:
    async def main() -> None:
        async with team(seed=15) as group:
            bucket = await group.members[0].bucket()
            await group.leader().put(bucket, b"key", b"value")
            await group.level()
            alone = asker(group)
            await read(alone, bucket, b"key")
            group.net.cut([alone.id], [m.id for m in group.members if m is not alone])
            with pytest.raises(Unavailable):
                await read(alone, bucket, b"key")

    run(main(), 15)


def test_who_waits_for_the_next_range_does_not_read_a_snapshot_half_installed_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ask, asked = Barriers.ask, asyncio.Event()

    def later(self: Barriers) -> None:
        if self._replica.group == 0 or asked.is_set():
            ask(self)
        else:
            self._due = False

    async def main() -> None:
        async with team(seed=16) as group:
            bucket = await group.members[0].bucket()
            await group.leader().put(bucket, b"key", b"value")
            await group.level()
            member = asker(group)
            monkeypatch.setattr(Barriers, "ask", later)
            found = asyncio.create_task(read(member, bucket, b"key"))
            await asyncio.sleep(0.2)
            replica = member.replica(0)
            await replica.hold_applying()
            asked.set()
            await asyncio.sleep(0.5)
            assert not found.done()
            replica.restored(replica.applied)
            assert (await found).size_bytes == len(b"value")

    run(main(), 16)


def test_a_question_that_is_lost_is_asked_again() -> None:
    async def main() -> None:
        async with team(seed=16) as group:
            bucket = await group.members[0].bucket()
            await group.leader().put(bucket, b"key", b"value")
            await group.level()
            lost: list[Any] = []

            def drop(message: Any) -> bool:
                if isinstance(message, ReadRequest) and len(lost) < 3:
                    lost.append(message)
                    return True
                return False

            group.net.drop = drop
            version = await read(asker(group), bucket, b"key")
            assert version.size_bytes == 5
            assert len(lost) == 3

    run(main(), 16)
