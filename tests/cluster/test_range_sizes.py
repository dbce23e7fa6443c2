"""Key ranges that are cut because they have grown."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from o3storage.catalog import Catalog, CreateUpload
from o3storage.catalog._keys import abandoned_row, chore_row, keyed, part_row, version_row
from o3storage.cluster import Node, SplitRefused, _range_sizes
from o3storage.cluster._range_rows import COUNTER_KEY, check_cut
from o3storage.cluster._range_sizes import RANGE_BYTES, cut_before, middle
from o3storage.simulation import run
from tests.cluster.split_support import level, listed, put, sums
from tests.cluster.support import OWNER, Rig, body_of, rig
from tests.cluster.team_support import team

LIMIT = 24 << 10
KEYS = [b"%c/%03d" % (letter, n) for letter in b"abcdef" for n in range(200)]


def hasten(node: Node, limit_bytes: int = LIMIT) -> None:
    node.ranges.sizes.limit_bytes = limit_bytes
    node.ranges.sizes.look_s = 0.2
    node.ranges.sizes._seen.clear()


def spans(node: Node) -> dict[int, int]:
    """Range -> bytes."""
    return {group: node.ranges.sizes.measure(group) for group in node.key_ranges()}


async def last_number(node: Node) -> int:
    return int.from_bytes(await node.store.get(COUNTER_KEY) or b"\1", "big")


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"\x20", b"\x23", b"\xfd"]), st.binary(max_size=3), st.integers(1, 50)
        ),
        max_size=40,
    )
)
def test_about_half_lies_before_the_middle(drawn: list[tuple[bytes, bytes, int]]) -> None:
    samples = [(table + bound, size) for table, bound, size in drawn]
    found = middle(samples)
    if not samples:
        assert found is None
        return
    assert found is not None and found in [row[1:] for row, _ in samples]
    total = sum(size for _, size in samples)
    before = sum(size for row, size in samples if row[1:] < found)
    after = sum(size for row, size in samples if row[1:] > found)
    assert 2 * before <= total and 2 * after <= total


@given(st.integers(0, 2**64 - 1), st.binary(min_size=1, max_size=20), st.integers(0, 2**40))
def test_a_row_tells_the_bound_below_its_key(bucket: int, key: bytes, number: int) -> None:
    wanted = keyed(0x20, bucket, key)[1:]
    check_cut(wanted)
    some = number.to_bytes(16, "big")
    for row in (
        version_row(bucket, key, number),
        part_row(bucket, key, some, number % 10_000),
        chore_row(bucket, key, 1, some),
        abandoned_row(bucket, key, some),
        keyed(0x21, bucket, key),
    ):
        assert cut_before(row) == wanted
    assert cut_before(bytes(9)) is None


def test_a_range_that_grows_is_cut_until_each_part_is_small() -> None:
    async def main() -> None:
        async with rig() as r:
            bucket = await r.bucket()
            for number, key in enumerate(KEYS):
                await put(r, bucket, key, size=400 if number % 90 == 0 else 0)
            assert spans(r.node) == {1: 0}, "what is in memory does not count"
            await r.store.flush()
            before = await sums(r.node)
            size = spans(r.node)[1]
            assert size > 2 * LIMIT
            await r.settle(10)
            assert len(spans(r.node)) == 1, "the limit is a gigabyte"
            assert r.node.ranges.sizes.limit_bytes == RANGE_BYTES
            hasten(r.node)
            await r.settle(10)
            parts = spans(r.node)
            assert size / LIMIT <= len(parts) <= 4 * size / LIMIT
            assert max(parts.values()) <= LIMIT and sum(parts.values()) <= 1.2 * size
            assert min(parts.values()) >= LIMIT / 8
            assert r.node.ranges.sizes.cuts == len(parts) - 1
            assert await sums(r.node) == before
            assert (await listed(r.node, bucket))[0] == KEYS
            assert await last_number(r.node) == len(parts)
            await r.settle(30)
            assert spans(r.node) == parts, "nothing more is cut"
            await r.stop()
            await r.start()
            assert list(spans(r.node)) == list(parts)
            assert (await listed(r.node, bucket))[0] == KEYS

    run(main(), 1)


def test_a_range_of_one_key_is_left_as_it_is() -> None:
    async def main() -> None:
        async with rig() as r:
            bucket = await r.bucket()
            for number in range(600):
                upload = b"%016d" % number
                await r.node.submit(
                    CreateUpload(
                        bucket.bucket_id, bucket.epoch, b"k", upload, r.clock.wall_ns(), OWNER
                    )
                )
            await r.store.flush()
            assert spans(r.node)[1] > LIMIT
            hasten(r.node)
            await r.settle(5)
            assert list(spans(r.node)) == [1] and await last_number(r.node) == 1
            # Another key behind it, and one before: the first is then alone in its part.
            for key in (b"z", b"a"):
                await put(r, bucket, key)
            await r.store.flush()
            await r.settle(_range_sizes.UNCUT_S + 20)
            bounds = [one["low"] for one in r.node.ranges.status()]
            prefix = r.machine.stream_route(bucket.bucket_id, b"k")[1:].hex()
            assert prefix in bounds and len(bounds) == 3
            assert (await listed(r.node, bucket))[0] == [b"a", b"z"]

    run(main(), 2)


def nothing_read(answer: str) -> Any:
    yield from ()
    return answer


def test_a_cut_that_is_refused_costs_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with rig() as r:
            bucket = await r.bucket()
            for key in KEYS:
                await put(r, bucket, key)
            await r.store.flush()
            refusals = 3
            real = Catalog.split

            def refuse(machine: Catalog, *args: Any) -> Any:
                nonlocal refusals
                if not refusals:
                    return real(machine, *args)
                refusals -= 1
                return nothing_read("not now")

            monkeypatch.setattr(Catalog, "split", refuse)
            for _ in range(3):
                with pytest.raises(SplitRefused, match="not now"):
                    await r.node.ranges.split(r.machine.stream_route(bucket.bucket_id, b"c")[1:])
            assert await last_number(r.node) == 2
            hasten(r.node, spans(r.node)[1] - 1)
            await r.settle(5)
            assert list(spans(r.node)) == [1, 2]

    run(main(), 3)


def test_three_nodes_cut_what_grows_while_they_write() -> None:
    async def main() -> None:
        async with team(seed=80) as group:
            bucket = await group.members[0].bucket()
            for member in group.members:
                hasten(member.node)
            bodies: dict[bytes, bytes] = {}

            async def write(member: Rig, share: list[bytes]) -> None:
                for number, key in enumerate(share):
                    bodies[key] = body_of(number, 200 + 9_000 * (number % 5 == 0))
                    await member.put(bucket, key, bodies[key])
                    await asyncio.sleep(0.02)
                    if number % 40 == 39:
                        await asyncio.gather(*(m.store.flush() for m in group.members))

            writers = [write(m, KEYS[n::9]) for n, m in enumerate(group.members)]
            await asyncio.gather(*writers)
            await asyncio.gather(*(m.store.flush() for m in group.members))
            await asyncio.sleep(10)
            ranges = len(group.members[0].node.key_ranges())
            assert ranges >= 3
            assert sum(m.node.ranges.sizes.cuts for m in group.members) == ranges - 1
            await level(group, ranges)
            for member in group.members:
                assert (await listed(member.node, bucket))[0] == sorted(bodies)
                for key in sorted(bodies)[::29]:
                    assert await member.get(bucket, key) == bodies[key]

    run(main(), 4)


def test_nothing_is_cut_while_a_voter_is_away() -> None:
    async def main() -> None:
        async with team(seed=81) as group:
            bucket = await group.members[0].bucket()
            for key in KEYS[::3]:
                await put(group.members[0], bucket, key)
            away = group.follower()
            await group.kill(away)
            await group.settled()
            for member in group.up:
                await member.store.flush()
                hasten(member.node)
            await asyncio.sleep(60)
            assert all(list(spans(member.node)) == [1] for member in group.up)
            await group.restart(away)
            await group.level()
            await asyncio.sleep(60)
            assert all(len(spans(member.node)) > 1 for member in group.up)
            await level(group, len(spans(away.node)))
            assert (await listed(away.node, bucket))[0] == KEYS[::3]

    run(main(), 6)


def test_nothing_is_cut_on_a_disk_that_is_full() -> None:
    async def main() -> None:
        async with rig(background=True, reserve_bytes=4 << 20, reserve_ratio=1.0) as r:
            bucket = await r.bucket()
            for key in KEYS:
                await put(r, bucket, key)
            await r.store.flush()
            await r.settle(10)
            r.disk.capacity_bytes = r.disk.image.used_bytes() + (2 << 20)
            await r.settle(10)
            assert r.store.space().full
            hasten(r.node)
            await r.settle(70)
            assert list(spans(r.node)) == [1] and r.node.ranges.sizes.cuts == 0
            r.disk.capacity_bytes = 1 << 30
            await r.settle(70)
            assert len(spans(r.node)) > 2

    run(main(), 5)
