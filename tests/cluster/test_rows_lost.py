"""A member that lost rows for good votes by its log, serves nothing, and gets a whole snapshot."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from o3storage import catalog
from o3storage.cluster import ClusterError
from o3storage.cluster._fetching import NONE_HERE
from o3storage.cluster._reading import open_core
from o3storage.raft.core import CONFIGURATION, Configuration, Role, SnapshotPiece, Start
from o3storage.simulation import run
from o3storage.storage import Entry, HardState
from o3storage.storage import _records as records
from o3storage.storage._rows import rows_lost_key
from tests.cluster.split_support import cut, level, listed
from tests.cluster.support import Rig
from tests.cluster.team_support import Member, Team, equal, team
from tests.storage.test_faults import places
from tests.storage.test_rebuild import lose_index

KEYS = [b"key-%d" % number for number in range(12)]


async def write(member: Member, bucket: Any) -> None:
    for key in KEYS:
        await member.put(bucket, key, b"body of " + key)


async def lose_rows(group: Team, member: Member) -> None:
    """As an open finds it where rot took rows that an installed snapshot had left as they were."""
    rows = await member.store.scan(b"\x10", b"\xfe", 10_000)
    assert rows
    lost = [(key, None) for key, _ in rows if b"key-" in key]
    assert lost
    await member.store._log.write_rows([*lost, (rows_lost_key(1), b"")])
    await group.kill(member)


async def sees(member: Member, bucket: Any) -> list[bytes]:
    async with asyncio.timeout(2):
        page = await member.node.reads().query(catalog.list_objects(bucket.bucket_id))
    return [entry[0] for entry in page.entries]


async def reads_all_or_nothing(member: Member, bucket: Any) -> None:
    try:
        assert await sees(member, bucket) == sorted(KEYS)
    except (ClusterError, TimeoutError):
        return


@pytest.mark.parametrize("quiet", [False, True], ids=["at once", "an idle group"])
def test_it_serves_nothing_until_it_has_all_of_it(*, quiet: bool) -> None:
    async def main() -> None:
        async with team(seed=51) as group:
            bucket = await group.members[0].bucket()
            away = group.follower()
            await write(group.leader(), bucket)
            await group.level()
            await lose_rows(group, away)
            if quiet:
                await asyncio.sleep(30)
            others = group.up
            group.net.cut([away.id], [member.id for member in others])
            await group.restart(away)
            assert away.store.log_state(1).rows_lost
            assert away.replica().status()["rows_lost"]
            await reads_all_or_nothing(away, bucket)
            group.net.drop = lambda message: isinstance(message, SnapshotPiece)
            group.net.heal()
            for _ in range(10):  # (it hears of its leader, and what is committed)
                await reads_all_or_nothing(away, bucket)
                await asyncio.sleep(0.5)
            assert away.replica().core.leader
            # Nor does it say that nobody needs a body any more because it knows of none.
            assert away.replica().team.complete
            why = away.node.replication.fetcher._why_missing
            assert why(1, away.replica().applied, bytes(16)) == NONE_HERE
            assert away.store.log_state(1).rows_lost
            group.net.drop = lambda _: False
            for _ in range(400):
                await reads_all_or_nothing(away, bucket)
                if not away.store.log_state(1).rows_lost:
                    break
                await asyncio.sleep(0.05)
            assert not away.store.log_state(1).rows_lost
            assert not away.replica().status()["rows_lost"]
            await equal(group)
            assert await sees(away, bucket) == sorted(KEYS)
            # A restart finds it whole.
            await group.kill(away)
            await group.restart(away)
            assert not away.store.log_state(1).rows_lost
            await equal(group)

    run(main(), 51)


@pytest.mark.parametrize("led", [False, True], ids=["a follower", "the leader"])
def test_its_vote_counts_and_it_does_not_lead(*, led: bool) -> None:
    """One member is away, another lost rows: the third leads with its vote, and heals it."""

    async def main() -> None:
        async with team(seed=52) as group:
            bucket = await group.members[0].bucket()
            await write(group.leader(), bucket)
            await group.level()
            lost = group.leader() if led else group.follower()
            away, whole = (member for member in group.members if member is not lost)
            await lose_rows(group, lost)
            await group.kill(away)
            await group.kill(whole)
            await group.restart(lost)
            await group.restart(whole)
            await group.settled()
            assert whole.leads()
            for _ in range(400):
                if not lost.store.log_state(1).rows_lost:
                    break
                await asyncio.sleep(0.05)
            assert not lost.store.log_state(1).rows_lost
            await equal(group)
            assert await sees(lost, bucket) == sorted(KEYS)
            await group.restart(away)
            await equal(group)

    run(main(), 52)


def test_where_all_lost_rows_nobody_serves_and_each_says_so() -> None:
    async def main() -> None:
        async with team(seed=53) as group:
            bucket = await group.members[0].bucket()
            await write(group.leader(), bucket)
            await group.level()
            for member in list(group.members):
                await lose_rows(group, member)
            for member in list(group.members):
                await group.restart(member)
            await asyncio.sleep(60)
            for member in group.members:
                assert not member.leads()
                assert member.leads(0) or member.replica(0).core.leader
                assert member.replica().status()["rows_lost"]
                with pytest.raises((ClusterError, TimeoutError)):
                    await sees(member, bucket)

    run(main(), 53)


def outcome_that_says(member: Member, key: bytes) -> tuple[str, int, int]:
    """Where the first outcome that writes a row of this key stands on the member's disk."""
    volumes = {volume.path: volume for volume in member.store._core.volumes.values()}
    for path, offset, size in places(member.store._core.disk, records.OUTCOME):
        data = bytes(member.store._core.disk.image.lookup(path).cached)
        header = records.check_record(data, offset)
        body = records.open_body(data, header, volumes[path].sealer, offset, offset)
        if any(key in row and value for row, value in records.decode_rows(body)[0]):
            return path, offset, size
    raise AssertionError


@pytest.mark.parametrize("index_lost", [False, True])
def test_a_range_that_was_cut_behind_a_lost_outcome_comes_from_the_others(
    *, index_lost: bool
) -> None:
    """Executed again, entries from before the cut would write keys of the upper range."""

    async def main() -> None:
        async with team(seed=56, log_volume_bytes=1 << 22) as group:
            bucket = await group.members[0].bucket()
            away = group.follower()
            if not index_lost:  # the power goes before the index is flushed behind the cut
                away.store.flush = lambda: asyncio.sleep(0)  # type: ignore[method-assign]
            await write(group.leader(), bucket)
            await cut(group.leader().node, bucket, b"key-3")
            await level(group, 2)
            for key in KEYS:
                await group.leader().put(bucket, key, b"newer body of " + key)
            await group.leader().put(bucket, b"key-3x", b"behind the cut")
            await level(group, 2)
            path, offset, size = outcome_that_says(away, b"key-5")
            await group.kill(away)
            away.disk.rot(path, offset + size // 2, 4)
            if index_lost:
                await lose_index(away.disk)
            await group.restart(away)
            assert away.store.log_state(1).rows_lost and away.store.log_state(2).rows_lost
            await level(group, 2)
            for _ in range(400):
                if not any(away.store.log_state(one).rows_lost for one in (1, 2)):
                    break
                await asyncio.sleep(0.05)
            await equal(group)
            assert (await listed(away.node, bucket))[0] == sorted([*KEYS, b"key-3x"])
            for key in KEYS:
                assert await away.get(bucket, key) == b"newer body of " + key

    run(main(), 56)


def test_one_alone_serves_what_there_is() -> None:
    async def main() -> None:
        rig = await Rig(54).start()
        bucket = await rig.bucket()
        await rig.put(bucket, b"key", b"body")
        await rig.store._log.write_rows([(rows_lost_key(1), b"")])
        await rig.stop()
        await rig.start()
        assert rig.store.log_state(1).rows_lost
        assert not rig.node._replicas[1].status()["rows_lost"]
        page = await rig.node.reads().query(catalog.list_objects(bucket.bucket_id))
        assert [entry[0] for entry in page.entries] == [b"key"]
        await rig.stop()

    run(main(), 54)


def test_one_alone_that_is_back_before_its_first_entry_leads() -> None:
    """An index that was rebuilt begins before the entry by which the range came to be."""

    async def main() -> None:
        rig = await Rig(55).start()
        node = rig.node.id
        entry = Entry(1, 1, CONFIGURATION, Configuration((node,)).encode())
        await rig.store.append(9, HardState(1, node, 0), [entry])
        rig.store._core.rows_lost[9] = None
        core, _ = await open_core(rig.store, 9, node)
        core.step(Start())
        assert core.sole and core.role is Role.LEADER
        await rig.stop()

    run(main(), 55)
