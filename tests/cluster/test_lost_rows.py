"""A block of a member's index is bad, and so is a record of what stood there: the others have the
rows, and the member serves them again by itself."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from o3storage import catalog
from o3storage.cluster import ClusterError
from o3storage.cluster._range_rows import EVERYTHING, span_key
from o3storage.raft.core import SnapshotPiece, TimeoutNow, TransferLeadership
from o3storage.simulation import SimDisk, run
from o3storage.storage import PLACES_LOST, BadBlock, StoreError
from o3storage.storage._install import STAGING_TABLE
from o3storage.storage._records import FRAME, OUTCOME
from o3storage.storage._rows import rows_lost_key
from tests.cluster.support import Rig
from tests.cluster.team_support import Member, Team, equal, streams_of, team
from tests.storage.test_faults import places

KEYS = [b"key-%03d" % number for number in range(60)]


async def sees(member: Member | Rig, bucket: Any) -> list[tuple[bytes, int]]:
    async with asyncio.timeout(2):
        page = await member.node.reads().query(catalog.list_objects(bucket.bucket_id))
    return [(entry[0], entry[3]) for entry in page.entries]


def tables(disk: SimDisk) -> list[str]:
    return [n for n in disk.image.names if n.startswith("index/") and n.endswith(".table")]


def spoil(disk: SimDisk, where: str) -> None:
    """The outcomes of the last write of each key, and what of the index they went to."""
    for path, offset, size in places(disk, OUTCOME)[-len(KEYS) :]:
        disk.rot(path, offset + size // 2)
    for table in tables(disk):
        size = len(disk.image.lookup(table).cached)
        disk.rot(table, size - 20 if where == "a table" else size // 2, 0x10)


async def write(group: Team, bucket: Any) -> None:
    for size in (1, 2):
        for key in KEYS:
            await group.members[0].put(bucket, key, b"x" * size)
    await group.level()


async def is_right_or_nothing(member: Member, bucket: Any) -> bool:
    try:
        assert await sees(member, bucket) == [(key, 2) for key in KEYS]
    except (ClusterError, TimeoutError):
        return False
    return True


@pytest.mark.parametrize("where", ["a table", "a block"])
@pytest.mark.parametrize("led", [False, True], ids=["a follower", "the leader"])
def test_a_member_gets_back_what_its_disk_lost(where: str, *, led: bool) -> None:
    async def main() -> None:
        async with team(seed=61, background=True) as group:
            bucket = await group.members[0].bucket()
            await write(group, bucket)
            lost = group.leader() if led else group.follower()
            await lost.store.flush()
            await group.kill(lost)
            spoil(lost.disk, where)
            group.net.drop = lambda message: isinstance(message, SnapshotPiece)
            await group.restart(lost)
            await group.settled()
            if led and not lost.leads():
                group.leader().replica().step(TransferLeadership(lost.id))
                for _ in range(100):
                    await asyncio.sleep(0.05)
                    if lost.leads():
                        break
            for _ in range(20):
                await is_right_or_nothing(lost, bucket)
                await asyncio.sleep(0.5)
            assert lost.store.stats().spans_lost
            assert lost.replica().status()["rows_lost"] and not lost.leads()
            assert group.leader() is not lost
            await group.members[1].put(bucket, KEYS[0], b"xx")  # (the others serve)
            group.net.drop = lambda _: False
            for _ in range(400):
                if await is_right_or_nothing(lost, bucket):
                    break
                await asyncio.sleep(0.05)
            assert await is_right_or_nothing(lost, bucket)
            assert not lost.store.log_state(1).rows_lost
            await equal(group)
            await group.kill(lost)
            await group.restart(lost)
            await equal(group)
            assert await is_right_or_nothing(lost, bucket)

    run(main(), 61)


def test_who_leads_and_finds_nobody_to_take_over_goes_on() -> None:
    async def main() -> None:
        async with team(seed=62) as group:
            bucket = await group.members[0].bucket()
            await write(group, bucket)
            leader = group.leader()
            others = leader.node._lost_rows
            group.net.drop = lambda message: isinstance(message, TimeoutNow)
            with pytest.raises(StoreError, match="no other node leads"):
                await others.may_lose(b"\x20", b"\x30")
            assert leader.leads()
            await leader.put(bucket, KEYS[0], b"xx")
            group.net.drop = lambda _: False
            assert await others.may_lose(b"\x20", b"\x30") == [1]
            assert not leader.leads()

    run(main(), 62)


def test_a_span_is_of_the_ranges_with_rows_there() -> None:
    async def main() -> None:
        async with team(seed=63) as group:
            others = group.follower().node._lost_rows
            assert others._groups(b"\x01", b"\x02") == []
            assert others._groups(b"\x01", b"\x06") == others._groups(b"\x01", None) == [0, 1]
            assert others._groups(b"\x20", None) == [0, 1]
            assert others._groups(b"\x21k", b"\x21l") == [1]
            assert others._groups(b"\xfe\x02", b"\xfe\x03") == [0]
            assert others._groups(b"\xfe\x01\0\0\0\x01", b"\xfe\x01\0\0\0\x02") == [1]

    run(main(), 63)


@pytest.mark.parametrize("count", [1, 2], ids=["alone", "with a learner"])
def test_who_alone_has_the_rows_refuses_what_it_cannot_read(count: int) -> None:
    async def main() -> None:
        async with team(count, seed=64) as group:
            bucket = await group.members[0].bucket()
            await write(group, bucket)
            if count == 2:
                voter = group.leader().id
                for number in (0, 1):
                    leading = group.leader(number)
                    learners = [m.id for m in group.members if m.id != voter]
                    await leading.replica(number).change_members([voter], learners)
                await group.settled()
            alone = group.leader()
            await alone.store.flush()
            await group.kill(alone)
            spoil(alone.disk, "a block")
            await group.restart(alone)
            for _ in range(3):
                with pytest.raises((ClusterError, BadBlock)):
                    await sees(alone, bucket)
                with pytest.raises(StoreError, match="verify --repair"):
                    await alone.store.repair_index()
            assert not alone.store.log_state(1).rows_lost
            assert alone.leads()

    run(main(), 64)


def test_a_learner_gets_them_back_from_the_one_voter() -> None:
    async def main() -> None:
        async with team(2, seed=68, background=True) as group:
            bucket = await group.members[0].bucket()
            await write(group, bucket)
            voter = group.leader()
            (learner,) = (member for member in group.members if member is not voter)
            for number in (0, 1):
                leading = group.leader(number)
                await leading.replica(number).change_members([voter.id], [learner.id])
            await group.settled()
            await learner.store.flush()
            await group.kill(learner)
            spoil(learner.disk, "a block")
            await group.restart(learner)
            for _ in range(400):
                if await is_right_or_nothing(learner, bucket) and learner.store.stats().spans_lost:
                    break
                await asyncio.sleep(0.05)
            assert learner.store.stats().spans_lost
            await equal(group)
            assert await is_right_or_nothing(learner, bucket)

    run(main(), 68)


@pytest.mark.parametrize("what", ["rows", "a piece"])
def test_what_is_lost_while_a_snapshot_is_installed_is_asked_for_again(what: str) -> None:
    async def main() -> None:
        async with team(seed=65) as group:
            bucket = await group.members[0].bucket()
            await write(group, bucket)
            lost = group.follower()
            store, replica = lost.store, lost.replica()
            install, calls = store.install, 0

            async def lose() -> None:
                """As the repair of a span does."""
                store._core.rows_lost[1] = None
                replica.lose_rows()
                rows = await store.scan(b"\x20", b"\xfd", 1000)
                gone = [(key, None) for key, _ in rows if b"key-01" in key]
                assert gone
                await store._log.write_rows([*gone, (rows_lost_key(1), b"")])

            async def again(*args: Any, **options: Any) -> None:
                nonlocal calls
                calls += 1
                if calls == 1 and what == "a piece":
                    staged = STAGING_TABLE + (1).to_bytes(4, "big")
                    store._core.index.drop_range(staged, staged + b"\xff")
                await install(*args, **options)
                if calls == 1 and what == "rows":
                    await lose()

            store.install = again  # type: ignore[method-assign]
            await lose()
            for _ in range(400):
                if await is_right_or_nothing(lost, bucket):
                    break
                await asyncio.sleep(0.05)
            assert calls == 2 and not store.log_state(1).rows_lost
            await equal(group)
            assert await is_right_or_nothing(lost, bucket)

    run(main(), 65)


def test_frames_whose_places_are_lost_are_fetched_again() -> None:
    async def main() -> None:
        async with team(seed=67) as group:
            bucket = await group.members[0].bucket()
            await write(group, bucket)
            lost = group.follower()
            store = lost.store
            held = len(await store.scan(b"\x01", b"\x02", 1000))
            assert held >= len(KEYS)
            store._core.index.drop_range(b"\x01", b"\x02")
            lost.node._lost_rows.places_lost()
            assert not lost.replica().team.complete
            assert await is_right_or_nothing(lost, bucket)  # (the rows are all here)
            await equal(group)
            assert len(await store.scan(b"\x01", b"\x02", 1000)) >= len(KEYS)

    run(main(), 67)


@pytest.mark.parametrize("when", ["while it runs", "before it starts"])
def test_a_frame_that_rotted_with_its_place_is_fetched_again(when: str) -> None:
    """Its record was its placement, and stands in a volume that no start reads any more."""

    async def main() -> None:
        async with team(seed=69, reload_log_bytes=0) as group:
            bucket = await group.members[0].bucket()
            await write(group, bucket)
            lost = group.follower()
            spoilt = places(lost.disk, FRAME)[-1]
            await group.kill(lost)
            await group.restart(lost)  # (each start begins a new log)
            await group.level()
            await lost.store.flush()
            held = await streams_of(lost)
            path, offset, size = spoilt
            lost.disk.rot(path, offset + size // 2)
            if when == "before it starts":
                lost.store.mend_with_others(None)
            lost.store._spans.wanted(BadBlock(1, b"\x01", b"\x02", "rot"))
            await lost.store.repair_index()
            assert len(await streams_of(lost)) == len(held) - 1
            if when == "before it starts":
                assert lost.replica().team.complete
                await lost.store.flush()
                await group.kill(lost)
                await group.restart(lost)
                assert not lost.store.stats().rotted_records
            assert not lost.replica().team.complete
            assert await is_right_or_nothing(lost, bucket)  # (the rows are all here)
            await equal(group)
            assert await streams_of(lost) == held
            # Nothing is looked for twice.
            for _ in range(2):
                await group.kill(lost)
                await group.restart(lost)
                await group.level()
                await asyncio.sleep(10)
            assert lost.replica().team.complete
            assert await lost.store.noted(PLACES_LOST) is None

    run(main(), 69)


def test_a_range_whose_row_forgot_a_cut_ends_where_the_next_one_begins() -> None:
    async def main() -> None:
        rig = await Rig(66).start()
        bucket = await rig.bucket()
        for key in KEYS:
            await rig.put(bucket, key, b"x")
        cut = rig.node.machine.stream_route(bucket.bucket_id, KEYS[30])[1:]
        child = await rig.node.ranges.split(cut)
        await rig.put(bucket, KEYS[40], b"y")
        right = rig.node._ranges.span(1)
        rows = [(span_key(1), EVERYTHING.encode()), (rows_lost_key(1), b"")]
        await rig.store._log.write_rows(rows)
        await rig.stop()
        await rig.start()
        assert rig.node._ranges.span(1) == right and child in rig.node._ranges.here()
        await rig.stop()

    run(main(), 66)
