"""Replicas that move: the new one is filled, the old one leaves the disk."""

from __future__ import annotations

import asyncio
import random

import pytest

from o3storage import catalog
from o3storage.cluster import Node, _leaving
from o3storage.cluster._leaving import ERASING, GONE
from o3storage.cluster._range_keeper import RangeKeeper
from o3storage.cluster._reading import left_note
from o3storage.crypto import StreamRef
from o3storage.raft.core import NOBODY
from o3storage.simulation import run
from tests.cluster.member_rig import Place, Places, patiently
from tests.cluster.support import body_of
from tests.cluster.test_elsewhere import SETTINGS, away, holders, settled, start


async def nothing_of(place: Place, group: int) -> bool:
    """No row of the range, no note but that it is gone."""
    spans = [(b"\x20", b"\x30"), (b"\xfd", b"\xfe")]
    own = b"\x10" + group.to_bytes(8, "big")
    spans.append((own, own + b"\xff"))
    rows = [await place.store.scan(low, high, 5) for low, high in spans]
    return not any(rows) and await place.store.noted(left_note(group)) == GONE


async def moved(places: Places, place: Place, group: int = 1) -> None:
    """Its replica is somewhere else, and nothing of it is left."""
    await places.until(lambda: not place.node.ranges.is_here(group), 60.0)
    await settled(places, group)
    for _ in range(200):
        if group not in place.node._replicas and await nothing_of(place, group):
            return
        await asyncio.sleep(0.1)
    raise AssertionError("it has not left")


def test_a_node_is_drained_and_comes_back() -> None:
    async def main() -> None:
        async with Places(count=4) as places:
            await start(places, 4)
            bucket = await patiently(places[1].bucket)
            bodies = {b"small": body_of(1, 5000), b"large": body_of(2, 900_000)}
            for key, body in bodies.items():
                await patiently(lambda k=key, b=body: places[2].put(bucket, k, b))  # type: ignore[misc]
            version = await places[1].node.query(catalog.head_version(bucket.bucket_id, b"large"))
            stream = StreamRef.unpack(version.body).stream
            first = holders(places)[1]
            for _ in range(2):
                # There and back: the second time nothing stands in the way of what was here before.
                await patiently(lambda: places[1].membership.drain(first.id, shrink=False))
                await moved(places, first)
                await patiently(lambda: places[1].membership.stay(first.id))
                for key, body in bodies.items():
                    assert await patiently(lambda k=key: first.get(bucket, k)) == body  # type: ignore[misc]
                for _ in range(50):
                    if not await first.store.stream_frames(stream):
                        break
                    await asyncio.sleep(0.1)
                assert await first.store.stream_frames(stream) == []
                other = next(p for p in holders(places) if p is not places[1])
                await patiently(lambda o=other: places[1].membership.drain(o.id, shrink=False))  # type: ignore[misc]
                await moved(places, other)
                assert first.node.ranges.is_here(1)
                assert await first.store.noted(left_note(1)) is None
                for key, body in bodies.items():
                    assert await patiently(lambda k=key: other.get(bucket, k)) == body  # type: ignore[misc]
                    assert await patiently(lambda k=key: first.get(bucket, k)) == body  # type: ignore[misc]
                await places.until(lambda: not first.node._replicas[1].team.debt, 60.0)
                assert await first.store.stream_frames(stream) != []
                await patiently(lambda o=other: places[1].membership.stay(o.id))  # type: ignore[misc]

    run(main(), 21)


def test_ranges_that_were_cut_move_each_by_itself_and_restarts_do_no_harm() -> None:
    async def main() -> None:
        async with Places(count=5) as places:
            await start(places)
            bucket = await patiently(places[1].bucket)
            keys = [b"%c" % letter for letter in b"abcdefgh"]
            for key in keys:
                await patiently(lambda k=key: places[3].put(bucket, k, k * 300))  # type: ignore[misc]
            for key in (b"c", b"f"):
                route = places[1].node.machine.stream_route(bucket.bucket_id, key)
                await patiently(lambda r=route: places[2].node.ranges.split(r[1:]))  # type: ignore[misc]
            await settled(places, 1, 2, 3)
            rng = random.Random(1)
            for turn in range(4):
                victim = rng.choice([p for p in places.all if p is not places[1]])
                await patiently(lambda v=victim: places[1].membership.drain(v.id, shrink=False))  # type: ignore[misc]
                await asyncio.sleep(rng.random() * 3)
                if turn % 2:
                    await victim.die()
                    await asyncio.sleep(rng.random() * 3)
                    await victim.up(places[1].host, **SETTINGS)
                for group in (1, 2, 3):
                    await places.until(
                        lambda v=victim, g=group: not v.node.ranges.is_here(g),
                        60.0,  # type: ignore[misc]
                    )
                await settled(places, 1, 2, 3)
                for place in places.all:
                    for key in keys:
                        found = await patiently(lambda p=place, k=key: p.get(bucket, k))  # type: ignore[misc]
                        assert found == key * 300
                await patiently(lambda v=victim: places[1].membership.stay(v.id))  # type: ignore[misc]

            def clean() -> bool:
                """No node has anything of a range that is not its own."""
                return all(
                    group not in p.node._replicas or p.node._replicas[group].applied == 0
                    for p in places.all
                    for group in (1, 2, 3)
                    if not p.node.ranges.is_here(group)
                )

            await settled(places, 1, 2, 3)
            await places.until(clean, 60.0)

    run(main(), 22)


@pytest.mark.parametrize("seed", range(3))
def test_a_crash_while_a_range_is_erased_is_made_good_at_the_start(seed: int) -> None:
    async def main() -> None:
        async with Places(seed, count=4) as places:
            await start(places, 4)
            bucket = await patiently(places[1].bucket)
            for number in range(30):
                key = b"k%d" % number
                await patiently(lambda k=key: places[1].put(bucket, k, body_of(1, 40_000)))  # type: ignore[misc]
            victim = holders(places)[1]
            await patiently(lambda: places[1].membership.drain(victim.id, shrink=False))
            note = None
            while note is None:
                await asyncio.sleep(0.001)
                note = await victim.store.noted(left_note(1))
            assert note[:1] == ERASING
            await asyncio.sleep(seed * 0.004)
            await victim.die()
            await victim.up(places[1].host, **SETTINGS)
            await moved(places, victim)
            assert victim in away(places)
            assert await patiently(lambda: victim.get(bucket, b"k3")) == body_of(1, 40_000)

    run(main(), seed)


def test_a_range_that_could_not_be_erased_keeps_its_span_until_a_start_erases_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    release_bodies = _leaving._release_bodies

    async def main() -> None:
        async with Places(count=4) as places:
            await start(places, 4)
            bucket = await patiently(places[1].bucket)
            await patiently(lambda: places[1].put(bucket, b"k", body_of(1, 40_000)))
            victim = next(p for p in holders(places) if p is not places[1])

            broken = victim.node

            async def unreadable(node: Node, low: bytes, high: bytes) -> None:
                if node is broken:
                    raise ValueError("a row that nobody can read")
                await release_bodies(node, low, high)

            monkeypatch.setattr(_leaving, "_release_bodies", unreadable)
            await patiently(lambda: places[1].membership.drain(victim.id, shrink=False))
            keeper = victim.node.ranges
            await places.until(lambda: 1 in keeper._leaving and keeper._leaving[1].done(), 60.0)
            await patiently(lambda: places[1].membership.stay(victim.id))
            await asyncio.sleep(20)
            assert 1 in keeper._table.here() and 1 not in victim.node._replicas
            assert not keeper._table.free_for(2, keeper._table.span(1))
            assert (await victim.store.noted(left_note(1)))[:1] == ERASING
            assert await patiently(lambda: victim.get(bucket, b"k")) == body_of(1, 40_000)
            await victim.die()
            await victim.up(places[1].host, **SETTINGS)
            await moved(places, victim)
            assert victim in away(places)

    run(main(), 25)


def test_range_0_is_told_again_after_something_unforeseen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        async with Places(count=5) as places:
            await start(places)
            bucket = await patiently(places[1].bucket)
            await patiently(lambda: places[1].put(bucket, b"k", b"1"))
            source, target = holders(places)[0], away(places)[0]
            told = RangeKeeper._tell_holders
            failed: dict[RangeKeeper, None] = {}

            async def once(keeper: RangeKeeper, group: int) -> None:
                if keeper not in failed:
                    failed[keeper] = None
                    raise ValueError("a row that nobody can read")
                await told(keeper, group)

            monkeypatch.setattr(RangeKeeper, "_tell_holders", once)
            await patiently(lambda: source.node.ranges.move(1, source.id, target.id))
            await moved(places, source)
            await places.until(lambda: not any(p.node.ranges.moves for p in places.all), 60.0)
            assert failed

    run(main(), 26)


def deaf(place: Place, group: int = 1) -> None:
    """The replica hears nobody any more: who reads or writes by it waits."""
    place.node._replicas[group].receive = lambda *_: None  # type: ignore[method-assign]


async def read(place: Place, bucket: catalog.BucketInfo, key: bytes) -> int:
    """Bytes of the version, found as a GET does it: its range is asked with the bucket's."""
    reads = place.node.reads()
    found = await reads.query(
        catalog.get_bucket(bucket.name),
        lambda b: catalog.head_version(b.bucket_id, key).route,
    )
    version = await reads.query(catalog.head_version(found.bucket_id, key))
    return version.size_bytes


def test_who_waits_to_read_by_a_replica_that_leaves_is_answered_by_another() -> None:
    """Its bucket's range is still here; its key's, which is asked in the same turn, is not."""

    async def main() -> None:
        async with Places(count=5) as places:
            await start(places)
            bucket = await patiently(places[1].bucket)
            await patiently(lambda: places[1].put(bucket, b"k", b"123"))
            source = next(p for p in holders(places) if not p.node._replicas[1].leads)
            target = away(places)[0]
            assert await read(source, bucket, b"k") == 3
            deaf(source)
            await patiently(lambda: source.node.ranges.move(1, source.id, target.id))
            loop = asyncio.get_running_loop()
            waiting: list[asyncio.Task[int]] = []
            while source.node.ranges.is_here(1):
                assert not any(task.done() for task in waiting)
                waiting.append(loop.create_task(read(source, bucket, b"k")))
                await asyncio.sleep(0.05)
            assert waiting
            assert await asyncio.gather(*waiting) == [3] * len(waiting)

    run(main(), 27)


def test_who_waits_to_write_by_a_replica_that_leaves_has_it_done_by_another() -> None:
    """Also of several ranges at once."""

    async def main() -> None:
        async with Places(count=5) as places:
            await start(places)
            bucket = await patiently(places[1].bucket)
            for key in (b"a", b"m"):
                await patiently(lambda k=key: places[1].put(bucket, k, b"123"))  # type: ignore[misc]
            route = places[1].node.machine.stream_route(bucket.bucket_id, b"m")
            await patiently(lambda: places[1].node.ranges.split(route[1:]))
            await settled(places, 1, 2)
            source = next(p for p in holders(places) if not p.node._replicas[1].leads)
            target = away(places)[0]
            deaf(source)
            core = source.node._replicas[1].core
            await places.until(lambda: core.leader == NOBODY)
            await patiently(lambda: source.node.ranges.move(1, source.id, target.id))
            items = [catalog.DeleteItem(key) for key in (b"a", b"m")]
            now_ns = source.clock.wall_ns()
            several = catalog.DeleteObjects(bucket.bucket_id, bucket.epoch, now_ns, "root", items)
            whole = catalog.SyncBucket(bucket.bucket_id, bucket.epoch, "", "active", now_ns)
            one = catalog.DeleteObject(bucket.bucket_id, bucket.epoch, b"a", now_ns, "root")
            assert source.node.ranges.is_here(1)
            await asyncio.gather(
                source.node.submit(several), source.node.submit(one), source.node.submit(whole)
            )
            assert not source.node.ranges.is_here(1)
            for key in (b"a", b"m"):
                assert await places[1].get(bucket, key) is None

    run(main(), 28)
