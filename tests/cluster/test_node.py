"""A node alone: commands, queries, restarts, faults of the disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from o3storage import catalog
from o3storage.catalog import DeleteObject, NoSuchBucket, PreconditionFailed, WriteCondition
from o3storage.cluster import MISS, StorageFull, Unavailable, _applying, _queries
from o3storage.crypto import NodeKeys
from o3storage.simulation import Fault, SimDisk, SimEntropy, run
from o3storage.storage import Snapshot
from tests.cluster.support import OWNER, Rig, body_of, rig


def test_the_first_start_makes_two_groups_of_one_voter() -> None:
    async def main() -> None:
        async with rig() as r:
            assert r.store.groups() == [0, 1]
            groups = r.node.status()["groups"]
            assert [g["role"] for g in groups] == ["leader", "leader"]
            assert all(g["voters"] == [r.node.id] for g in groups)
            assert len(r.node.cluster_id) == 16
            assert r.node.write_refusal() is None

    run(main(), 1)


def test_a_restart_keeps_identity_keys_and_data() -> None:
    async def main() -> None:
        r = await Rig(2).start()
        b = await r.bucket()
        await r.put(b, b"k", b"hello")
        cluster_id, node_id = r.node.cluster_id, r.node.id
        for end in (r.stop, r.kill, r.crash):
            await end()
            await r.start()
            assert (r.node.cluster_id, r.node.id) == (cluster_id, node_id)
            assert await r.get(b, b"k") == b"hello"
            assert r.node.status()["epoch"] == 1
        await r.stop()

    run(main(), 2)


def test_every_start_is_a_new_term_and_applies_nothing_twice() -> None:
    async def main() -> None:
        r = await Rig(3).start()
        b = await r.bucket()
        for number in range(20):
            await r.put(b, b"k%d" % number, b"x")
        before = await r.node.query(catalog.counts())
        term = r.node.status()["groups"][1]["term"]
        await r.kill()
        await r.start()
        assert await r.node.query(catalog.counts()) == before
        assert r.node.status()["groups"][1]["term"] == term + 1
        await r.stop()

    run(main(), 3)


def test_a_crash_during_the_first_start_leaves_a_store_that_starts() -> None:
    async def main(after: int) -> None:
        r = Rig(after)
        task = asyncio.get_running_loop().create_task(r.start())
        await asyncio.sleep(after * 0.0001)
        disk = r.disk.crash()
        await asyncio.gather(task, return_exceptions=True)
        r.disk = disk
        await r.start()
        b = await r.bucket()
        await r.put(b, b"k", b"v")
        assert await r.get(b, b"k") == b"v"
        await r.stop()

    for after in range(0, 40, 3):
        run(main(after), after)


def test_commands_raise_their_own_errors_and_write_nothing_then() -> None:
    async def main() -> None:
        async with rig(4) as r:
            b = await r.bucket()
            await r.put(b, b"k", b"one")
            condition = WriteCondition(if_none_match="*")
            with pytest.raises(PreconditionFailed):
                await r.put(b, b"k", b"two", condition=condition)
            assert await r.get(b, b"k") == b"one"
            with pytest.raises(NoSuchBucket):
                await r.node.query(catalog.get_bucket("other"))

    run(main(), 4)


def test_concurrent_submits_share_syncs() -> None:
    async def main() -> None:
        async with rig(5) as r:
            b = await r.bucket()
            appends, batches = r.store.stats().appends, r.store.stats().batches
            await asyncio.gather(*(r.put(b, b"k%d" % n, b"x" * 100) for n in range(200)))
            assert r.store.stats().appends - appends <= 5
            assert r.store.stats().batches - batches <= 5
            sums = await r.node.query(catalog.counts())
            assert sums.objects == 200

    run(main(), 5)


def test_one_winner_of_racing_conditional_writes() -> None:
    async def main() -> None:
        async with rig(6) as r:
            b = await r.bucket()
            condition = WriteCondition(if_none_match="*")
            puts = (r.put(b, b"k", b"%d" % n, condition=condition) for n in range(20))
            results = await asyncio.gather(*puts, return_exceptions=True)
            winners = [n for n, x in enumerate(results) if not isinstance(x, Exception)]
            assert len(winners) == 1
            assert await r.get(b, b"k") == b"%d" % winners[0]
            assert sum(isinstance(x, PreconditionFailed) for x in results) == 19

    run(main(), 6)


def test_query_now_answers_from_memory() -> None:
    async def main() -> None:
        async with rig(7) as r:
            b = await r.bucket()
            await r.put(b, b"k", b"x")
            version = r.node.query_now(catalog.head_version(b.bucket_id, b"k"))
            assert version is not MISS
            assert version.size_bytes == 1  # type: ignore[union-attr]
            with pytest.raises(catalog.NoSuchKey):
                r.node.query_now(catalog.head_version(b.bucket_id, b"other"))

    run(main(), 7)


ROWS = 3000
"""More than fits the blocks that opening an index reads."""


async def with_rows_on_disk(seed: int) -> tuple[Rig, catalog.BucketInfo]:
    r = await Rig(seed).start()
    b = await r.bucket()
    await asyncio.gather(*(r.put(b, b"k%04d" % n, b"x") for n in range(ROWS)))
    await r.stop()
    r.disk.cached_share = 0.0
    await r.start()
    return r, b


def test_rows_that_are_only_on_disk_are_waited_for() -> None:
    async def main() -> None:
        r, b = await with_rows_on_disk(8)
        keys = [b"k%04d" % n for n in range(0, ROWS, 300)]
        queries = [catalog.head_version(b.bucket_id, key) for key in keys]
        assert MISS in [r.node.query_now(query) for query in queries]
        versions = await asyncio.gather(*(r.node.query(query) for query in queries))
        assert [v.size_bytes for v in versions] == [1] * 10
        # Applying reads such rows too, and keeps the order while it waits.
        puts = [r.put(b, b"k%04d" % (n * 7 % ROWS), b"%d" % n) for n in range(200)]
        await asyncio.gather(*puts)
        for number in (0, 1, 77, 199):
            assert await r.get(b, b"k%04d" % (number * 7 % ROWS)) == b"%d" % number
        assert (await r.node.query(catalog.counts())).objects == ROWS
        await r.stop()

    run(main(), 8)


def test_a_query_sees_one_instant() -> None:
    async def main() -> None:
        r, b = await with_rows_on_disk(9)
        listing = asyncio.ensure_future(r.node.query(catalog.list_objects(b.bucket_id)))
        await asyncio.sleep(0)
        assert not listing.done()
        await r.put(b, b"k0990", b"longer")
        await r.put(b, b"k0500x", b"new")
        page = await listing
        # Both happened after the listing's instant, or (had they been first) both would show.
        assert [e[0] for e in page.entries] == [b"k%04d" % n for n in range(1000)]
        assert {e[3] for e in page.entries} == {1}
        await r.stop()

    run(main(), 9)


class Pins:
    """The snapshots that a store gave."""

    def __init__(self, r: Rig, patch: pytest.MonkeyPatch) -> None:
        self.taken: list[Snapshot] = []
        original = r.store.snapshot

        def snapshot() -> Snapshot:
            self.taken.append(original())
            return self.taken[-1]

        patch.setattr(r.store, "snapshot", snapshot)

    def released(self) -> bool:
        for snapshot in self.taken:
            with pytest.raises(ValueError, match="released"):
                snapshot.check()
        return bool(self.taken)


def test_a_long_listing_shows_one_instant_though_keys_change_between_its_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        r = await Rig(12).start()
        b = await r.bucket()
        keys = [b"k%04d" % n for n in range(1000)]
        await asyncio.gather(*(r.put(b, key, b"x") for key in keys))
        pins = Pins(r, monkeypatch)
        steps = 0

        async def let_others() -> None:
            nonlocal steps
            steps += 1
            for number in range(0, 1000, 100):
                await r.put(b, keys[number], b"longer %d" % steps)
            await r.put(b, b"k%04dx" % (990 - steps), b"new")
            command = DeleteObject(b.bucket_id, b.epoch, keys[-steps], r.clock.wall_ns(), OWNER)
            await r.node.submit(command)

        monkeypatch.setattr(_queries, "let_others", let_others)
        page = await r.node.query(catalog.list_objects(b.bucket_id))
        assert steps == 1000 // _queries.STEP_ROWS
        assert [entry[0] for entry in page.entries] == keys
        assert {entry[3] for entry in page.entries} == {1} and not page.truncated
        assert len(pins.taken) == 1 and pins.released()
        await r.stop()

    run(main(), 12)


def test_a_long_listing_lets_others_in_and_one_that_is_given_up_pins_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        r = await Rig(13).start()
        b = await r.bucket()
        await asyncio.gather(*(r.put(b, b"k%04d" % n, b"x") for n in range(1000)))
        pins = Pins(r, monkeypatch)
        listing = asyncio.ensure_future(r.node.query(catalog.list_objects(b.bucket_id)))
        await asyncio.sleep(0)
        version = await r.node.query(catalog.head_version(b.bucket_id, b"k0001"))
        assert version.size_bytes == 1
        assert not listing.done() and len(pins.taken) == 1
        listing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await listing
        assert pins.released()
        # One that is short needs neither a turn of the loop nor a pin.
        short = r.node.query(catalog.list_objects(b.bucket_id, max_keys=250))
        with pytest.raises(StopIteration) as end:
            short.send(None)
        assert len(end.value.value.entries) == 250
        assert len(pins.taken) == 1
        await r.stop()

    run(main(), 13)


def test_on_a_busy_loop_what_is_committed_waits_for_requests_that_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put_off: list[Callable[[], object]] = []

    class Meter:
        def put_off(self, schedule: Callable[[], object], most_s: float) -> None:
            assert most_s <= 0.005
            put_off.append(schedule)

    async def main() -> None:
        r = await Rig(14).start()
        b = await r.bucket()
        monkeypatch.setattr(_applying, "may_put_off", Meter)
        puts = [asyncio.ensure_future(r.put(b, b"k%02d" % n, b"x")) for n in range(40)]
        await asyncio.sleep(5)
        assert len(put_off) == 1 and not any(put.done() for put in puts)
        steps = []
        while put_off:
            put_off.pop()()
            await asyncio.sleep(1)
            steps.append(sum(put.done() for put in puts))
        assert steps == [16, 32, 40]
        assert [(await r.node.query(catalog.head_version(b.bucket_id, b"k39"))).size_bytes] == [1]
        await r.stop()

    run(main(), 14)


def test_a_failed_sync_takes_the_node_out_of_service() -> None:
    async def main() -> None:
        r = await Rig(10).start()
        b = await r.bucket()
        await r.put(b, b"before", b"x")
        r.disk.inject(Fault("sync"))
        with pytest.raises(Unavailable) as refused:
            await r.put(b, b"k", b"x")
        assert refused.value.uncertain, "it may be on the disk, so it is never proposed again"
        with pytest.raises(Unavailable) as refused:
            await r.put(b, b"k2", b"x")
        assert not refused.value.uncertain
        assert r.node.write_refusal()
        with pytest.raises(Unavailable):
            await r.node.query(catalog.get_bucket("bucket"))
        await r.stop()

    run(main(), 10)


def test_a_full_disk_refuses_bodies_and_takes_deletes() -> None:
    async def main() -> None:
        r = await Rig(11, SimDisk(11, capacity_bytes=24 << 20), reserve_bytes=4 << 20).start()
        b = await r.bucket()
        kept = []
        with pytest.raises(StorageFull):
            for number in range(1000):
                await r.put(b, b"%d" % number, body_of(number, 300_000))
                kept.append(b"%d" % number)
                await r.store._space.refresh()
        assert kept
        # Where a large body does not fit small ones may, until the reserve is reached.
        with pytest.raises(StorageFull):
            for _ in range(1000):
                await r.put(b, b"small", body_of(0, 20_000))
                await r.store._space.refresh()
        # Nor may what has no body use up the room that deletes need.
        with pytest.raises(StorageFull):
            await r.node.submit(
                catalog.PutObject(
                    b.bucket_id, b.epoch, b"empty", r.clock.wall_ns(), OWNER, 0, "0" * 32, bytes(32)
                )
            )
        await r.node.submit(DeleteObject(b.bucket_id, b.epoch, kept[0], r.clock.wall_ns(), OWNER))
        assert await r.get(b, kept[0]) is None
        assert await r.get(b, kept[1]) == body_of(1, 300_000)
        # Space comes back: writes go on by themselves.
        r.disk.capacity_bytes = 64 << 20
        await r.store._space.refresh()
        await r.put(b, b"small", b"x")
        assert await r.get(b, b"small") == b"x"
        await r.stop()

    run(main(), 11)


def test_writes_wait_while_rows_come_faster_than_they_are_flushed() -> None:
    async def main() -> None:
        rig = await Rig(crowded_memtable_bytes=40_000).start()
        bucket = await rig.bucket()
        written = 0
        while not rig.store.crowded:
            await rig.put(bucket, b"%d" % written, b"value")
            written += 1
        waiting = asyncio.ensure_future(rig.put(bucket, b"more", b"value"))
        await asyncio.sleep(1.0)
        assert not waiting.done()
        await rig.store.flush()
        await waiting
        while not rig.store.crowded:
            await rig.put(bucket, b"%d" % written, b"value")
            written += 1
        with pytest.raises(Unavailable, match="slow down"):
            await rig.put(bucket, b"never", b"value")
        assert rig.node.write_refusal() is None  # reads and the node itself go on
        await rig.stop()

    run(main(), 16)


def test_another_nodes_store_is_not_opened() -> None:
    async def main() -> None:
        r = await Rig(12).start()
        await r.bucket()
        await r.stop()
        disk_key = r.keys.disk_key
        other = NodeKeys.generate(SimEntropy(99))
        r.keys = NodeKeys(other.identity_seed, other.exchange_secret, disk_key)
        with pytest.raises(Unavailable, match="another node"):
            await r.start()

    run(main(), 12)


def test_closing_finishes_what_is_proposed_and_refuses_the_rest() -> None:
    async def main() -> None:
        r = await Rig(13).start()
        b = await r.bucket()
        upload, command = await r.upload(b, b"k", b"x")
        under_way = asyncio.ensure_future(r.node.submit(command, upload.frames))
        await asyncio.sleep(0)
        await r.node.close()
        await under_way
        with pytest.raises(Unavailable):
            await r.node.submit(command)
        assert r.node.write_refusal() == "the node is stopping"
        await r.store.close()
        await r.start()
        assert await r.get(b, b"k") == b"x"
        await r.stop()

    run(main(), 13)


def test_a_command_that_no_version_wrote_stops_the_range_rather_than_diverge() -> None:
    async def main() -> None:
        r = await Rig(14).start()
        await r.bucket()
        replica = r.node._replicas[1]
        with pytest.raises(Unavailable):
            await replica.submit(b"\x00nonsense")
        assert "stopped at entry" in replica.fault
        with pytest.raises(Unavailable):
            await r.node.query(catalog.counts())
        await r.stop()

    run(main(), 14)
