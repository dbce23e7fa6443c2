"""Ranges with fewer replicas than there are nodes: every node answers for every key."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from o3storage import catalog
from o3storage.catalog import DeleteItem, DeleteObjects
from o3storage.cluster import ClusterError, SplitRefused, Unavailable
from o3storage.cluster._range_keeper import RangeKeeper
from o3storage.cluster._range_rows import Span
from o3storage.cluster._ranges import NOWHERE, RangeTable, route_table
from o3storage.crypto import StreamRef
from o3storage.simulation import run
from tests.cluster.member_rig import Place, Places, patiently
from tests.cluster.support import body_of

REPLICAS = 3
SETTINGS: dict[str, Any] = {"everywhere": False, "replicas": REPLICAS}


# --- routes


bounds = st.lists(st.sampled_from("bcdefghij"), max_size=6, unique=True).map(sorted)


@st.composite
def told(draw: st.DrawFn) -> tuple[dict[int, Span], dict[int, Span], dict[int, Span]]:
    """The true spans, those that are here, and what is known of others: some too wide, for they
    were cut since, and some not at all."""
    cuts = [cut.encode() for cut in draw(bounds)]
    ends = [*cuts, None]
    true = {at + 1: Span(low, high) for at, (low, high) in enumerate(zip([b"", *cuts], ends))}
    here: dict[int, Span] = {}
    known: dict[int, Span] = {}
    for group, span in true.items():
        where = draw(st.sampled_from(["here", "known", "both", "neither"]))
        if where in {"here", "both"}:
            here[group] = span
        if where in {"known", "both"}:
            old = draw(
                st.sampled_from([end for end in ends if end is None or end >= (span.high or b"z")])
            )
            known[group] = Span(span.low, old if span.high is not None else None)
    return true, here, known


@given(told())
def test_a_route_is_right_or_the_one_that_knows_better_or_nowhere(
    spans: tuple[dict[int, Span], dict[int, Span], dict[int, Span]],
) -> None:
    true, here, known = spans
    table = route_table(here, known)
    assert table[0][0] == b""
    lows = [low for low, _ in table]
    assert lows == sorted(set(lows))
    for letter in "abcdefghijk":
        key = letter.encode()
        found = [group for low, group in table if low <= key][-1]
        owner = next(group for group, span in true.items() if span.holds(key))
        if owner in here:
            assert found == owner
            continue
        below = [(span.low, group) for group, span in {**known, **here}.items() if span.low <= key]
        nearest = max(below)[1] if below else NOWHERE
        if nearest != NOWHERE and {**known, **here}[nearest].holds(key):
            assert found == nearest
        else:
            assert found == NOWHERE
        # Never one that was cut off above the key, nor one whose keys are all here.
        assert found in {NOWHERE, owner} or true[found].low <= key
        if owner in known:
            assert found == owner


def test_a_replica_that_is_not_to_be_asked_keeps_its_span_on_the_disk() -> None:
    table = RangeTable([(b"", 1)])
    assert not table.elsewhere
    table.learn({1: Span(b"", b"m"), 2: Span(b"m", None, 1)}, {1: None})
    assert table.groups() == [1, 2]
    assert table.here() == [1]
    assert list(table.elsewhere) == [1, 2]
    assert [table.group_of(b"\x20" + key) for key in (b"a", b"m", b"z")] == [1, 2, 2]
    assert table.span(1) == Span(b"", None)
    assert table.span_anywhere(1) == Span(b"", b"m")
    assert not table.free_for(2, Span(b"m", None))
    version = table.version
    table.learn({1: Span(b"", b"m"), 2: Span(b"m", None, 1)}, {1: None})
    assert table.version == version
    table.learn({1: Span(b"", b"m"), 2: Span(b"m", None, 1)}, {})
    assert table.groups() == [1]  # (what is here is right until a cut is applied)
    assert not table.elsewhere


# --- five nodes, three replicas


async def start(places: Places, count: int = 5) -> None:
    await places[1].up(**SETTINGS)
    for number in range(2, count + 1):
        await places[number].up(places[1].host, **SETTINGS)
    await settled(places, 1)


async def settled(places: Places, *groups: int) -> None:
    """Every node knows who holds these ranges, and they are as many as wanted."""

    def known(place: Place, group: int) -> bool:
        holders = place.node.ranges.holders.get(group)
        if holders is None or holders.configuration.joint:
            return False
        voters = holders.configuration.voters
        return len(voters) == len(holders.configuration.members()) == REPLICAS

    up = [place for place in places.all if place.clustered]
    await places.until(lambda: all(known(p, g) for p in up for g in groups), 60.0)


def away(places: Places, group: int = 1) -> list[Place]:
    return [p for p in places.all if p.clustered and not p.node.ranges.is_here(group)]


def holders(places: Places, group: int = 1) -> list[Place]:
    return [p for p in places.all if p.clustered and p.node.ranges.is_here(group)]


def test_every_node_writes_and_reads_and_lists_what_three_hold() -> None:
    async def main() -> None:
        async with Places(count=5) as places:
            await start(places)
            strangers = away(places)
            assert len(strangers) == 2
            bucket = await patiently(strangers[0].bucket)
            bodies: dict[bytes, bytes] = {}
            for number, place in enumerate(places.all):
                for size in (0, 10, 30_000, 700_000):
                    if size == 0:
                        continue
                    key = b"%d-%d" % (number, size)
                    bodies[key] = body_of(number, size)
                    await patiently(lambda p=place, k=key: p.put(bucket, k, bodies[k]))  # type: ignore[misc]
            for place in places.all:
                for key, body in bodies.items():
                    assert await patiently(lambda p=place, k=key: p.get(bucket, k)) == body  # type: ignore[misc]
                page = await place.node.query(catalog.list_objects(bucket.bucket_id, max_keys=5))
                assert [entry[0] for entry in page.entries] == sorted(bodies)[:5]
                assert page.truncated
                assert await place.get(bucket, b"none") is None
            for place in strangers:
                assert place.node._replicas[1].applied == 0
                rows = await place.store.scan(b"\x20", b"\x30", 10)
                assert rows == []
                assert place.node._elsewhere.asked > 0
            # Nothing of the bodies lies where no replica is.
            version = await places[1].node.query(
                catalog.head_version(bucket.bucket_id, b"0-700000")
            )
            stream = version.body[:16]
            for place in strangers:
                assert await place.store.stream_frames(stream) == []

    run(main(), 11)


def test_refusals_come_back_as_they_are() -> None:
    async def main() -> None:
        async with Places(count=5) as places:
            await start(places)
            stranger = away(places)[0]
            bucket = await patiently(stranger.bucket)
            condition = catalog.WriteCondition(if_none_match="*")
            await patiently(lambda: stranger.put(bucket, b"k", b"1"))
            with pytest.raises(catalog.PreconditionFailed) as refused:
                await stranger.put(bucket, b"k", b"2", condition=condition)
            assert refused.value.which == "If-None-Match"
            assert await stranger.get(bucket, b"k") == b"1"
            with pytest.raises(catalog.NoSuchVersion):
                await stranger.node.query(catalog.head_version(bucket.bucket_id, b"k", 77))
            deleted = await stranger.node.submit(
                DeleteObjects(
                    bucket.bucket_id,
                    bucket.epoch,
                    stranger.clock.wall_ns(),
                    "root",
                    [DeleteItem(b"k"), DeleteItem(b"other")],
                )
            )
            assert [each.existed for each in deleted] == [True, False]
            assert await stranger.get(bucket, b"k") is None

    run(main(), 12)


def test_a_cut_asked_of_a_stranger_and_keys_of_both_parts() -> None:
    async def main() -> None:
        async with Places(count=5) as places:
            await start(places)
            stranger, other = away(places)
            bucket = await patiently(stranger.bucket)
            for key in (b"a", b"m", b"z"):
                await patiently(lambda k=key: stranger.put(bucket, k, k * 40_000))  # type: ignore[misc]
            route = stranger.node.machine.stream_route(bucket.bucket_id, b"m")
            child = await stranger.node.ranges.split(route[1:])
            assert child == 2
            # At once, before range 0 was told of it.
            for place in (stranger, other, *holders(places)):
                for key in (b"a", b"m", b"z"):
                    assert await patiently(lambda p=place, k=key: p.get(bucket, k)) == key * 40_000  # type: ignore[misc]
            await settled(places, 1, 2)
            with pytest.raises(SplitRefused, match="begins there already"):
                await stranger.node.ranges.split(route[1:])
            with pytest.raises(SplitRefused, match="through a key"):
                await stranger.node.ranges.split(route[1:-1])
            page = await other.node.query(catalog.list_objects(bucket.bucket_id))
            assert [entry[0] for entry in page.entries] == [b"a"]  # (a page ends with its range)
            rest = await other.node.query(
                catalog.list_objects(bucket.bucket_id, after=page.next_after)
            )
            assert [entry[0] for entry in rest.entries] == [b"m", b"z"]
            # What concerns a whole bucket goes to both parts.
            for key in (b"a", b"m", b"z"):
                command = catalog.DeleteObject(
                    bucket.bucket_id, bucket.epoch, key, other.clock.wall_ns(), "root"
                )
                await patiently(lambda c=command: other.node.submit(c))  # type: ignore[misc]
            await other.drive(catalog.delete_bucket("bucket", other.clock.wall_ns()))
            with pytest.raises(catalog.NoSuchBucket):
                await stranger.node.query(catalog.get_bucket("bucket"))

    run(main(), 13)


def test_a_get_at_an_empty_replica_is_answered_by_the_holders_once_they_are_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Range 0 tells of a new range before it tells who holds it. Until then a stranger has an
    empty replica of it, which a GET asks beside its bucket's range."""
    tell, told = RangeKeeper._tell_holders, asyncio.Event()

    async def later(self: RangeKeeper, group: int) -> None:
        if group != 2 or told.is_set():
            await tell(self, group)

    monkeypatch.setattr(RangeKeeper, "_tell_holders", later)

    async def main() -> None:
        async with Places(count=5) as places:
            await start(places)
            stranger = away(places)[0]
            bucket = await patiently(stranger.bucket)
            await patiently(lambda: stranger.put(bucket, b"z", b"value"))
            route = stranger.node.machine.stream_route(bucket.bucket_id, b"m")
            assert await stranger.node.ranges.split(route[1:]) == 2
            await places.until(lambda: stranger.node.ranges.is_here(2))
            reads = stranger.node.reads()
            query = catalog.head_version(bucket.bucket_id, b"z")
            first = asyncio.create_task(
                reads.query(catalog.get_bucket(bucket.name), lambda _: query.route)
            )
            await asyncio.sleep(0.5)
            assert not first.done()
            told.set()
            assert (await first).bucket_id == bucket.bucket_id
            assert not stranger.node.ranges.is_here(2)
            assert (await reads.query(query)).size_bytes == len(b"value")

    run(main(), 20)


def test_an_upload_that_failed_elsewhere_is_collected() -> None:
    async def main() -> None:
        async with Places(count=5) as places:
            await start(places)
            stranger = away(places)[0]
            bucket = await patiently(stranger.bucket)
            upload, _ = await stranger.upload(bucket, b"k", body_of(1, 600_000))
            stream = upload.ref.stream
            held = [p for p in holders(places) if await p.store.stream_frames(stream)]
            assert len(held) >= 2
            upload.discard()

            async def gone() -> bool:
                left = [await p.store.stream_frames(stream) for p in holders(places)]
                rows = [await p.store.scan(b"\xfd", b"\xfe", 10) for p in holders(places)]
                return not any(left) and not any(rows)

            for _ in range(100):
                if await gone():
                    break
                await asyncio.sleep(0.5)
            assert await gone()
            assert stranger.node._collector.waiting == 0

    run(main(), 14)


def test_a_body_read_elsewhere_stays_readable_to_its_end() -> None:
    """Its version is replaced meanwhile, and all frames collected; a reader that dies keeps them for
    a while, and no longer."""

    async def main() -> None:
        async with Places(count=5) as places:
            await start(places)
            stranger = away(places)[0]
            bucket = await patiently(stranger.bucket)
            body = body_of(1, 3_000_000)
            await patiently(lambda: stranger.put(bucket, b"k", body))
            version = await stranger.node.query(catalog.head_version(bucket.bucket_id, b"k"))
            ref = StreamRef.unpack(version.body)
            owner = bucket.bucket_id, b"k"

            async def lent() -> int:
                return sum([p.node._elsewhere.lender.loans for p in places.all])

            reader = stranger.node.read_stream(ref, owner=owner)
            got = [bytes(await anext(reader))]
            assert await lent() == 1
            release = await stranger.node.hold([version.body, version.body], owner)
            assert await lent() == 2
            other = stranger.node.read_stream(ref, owner=owner)
            await anext(other)
            await patiently(lambda: stranger.put(bucket, b"k", b"new"))
            await asyncio.sleep(100)
            assert await lent() == 3
            async for piece in reader:
                got.append(bytes(piece))
            assert b"".join(got) == body
            release()
            # The node of the other reader dies.
            await stranger.die()
            await asyncio.sleep(5)
            held = [p for p in holders(places) if await p.store.stream_frames(ref.stream)]
            assert len(held) == 1
            await asyncio.sleep(60)
            assert await lent() == 0
            for place in holders(places):
                assert await place.store.stream_frames(ref.stream) == []
            with contextlib.suppress(BaseException):
                await other.aclose()  # type: ignore[attr-defined]

    run(main(), 16)


def test_without_a_majority_of_the_holders_a_stranger_refuses_within_five_seconds() -> None:
    async def main() -> None:
        async with Places(count=5) as places:
            await start(places)
            stranger = away(places)[0]
            bucket = await patiently(stranger.bucket)
            await patiently(lambda: stranger.put(bucket, b"k", b"1"))
            down = [p for p in holders(places) if p is not places[1]][:2]
            for place in down:
                await place.die()
            await asyncio.sleep(3)
            loop = asyncio.get_running_loop()
            begun_s = loop.time()
            with pytest.raises(Unavailable):
                await stranger.get(bucket, b"k")
            assert loop.time() - begun_s < 6.5
            begun_s = loop.time()
            with pytest.raises(Unavailable):
                await stranger.put(bucket, b"k", b"2")
            assert loop.time() - begun_s < 10
            for place in down:
                await place.up(places[1].host, **SETTINGS)
            found = await patiently(lambda: stranger.get(bucket, b"k"), 60.0)
            assert found in {b"1", b"2"}  # (what was not known to be done may have been)

    run(main(), 15)


@pytest.mark.parametrize("seed", range(4))
def test_one_key_of_racing_writers_at_all_nodes_while_holders_die(seed: int) -> None:
    """What was acknowledged stays; a read sees what was acknowledged before it began."""

    async def main() -> None:
        async with Places(seed, count=5) as places:
            await start(places)
            bucket = await patiently(places[1].bucket)
            rng = random.Random(seed)
            done: list[int] = [0]
            tried: dict[int, bytes] = {}

            async def write(number: int) -> None:
                place = rng.choice([p for p in places.all if p.clustered])
                body = b"%d" % number
                tried[number] = body
                with contextlib.suppress(ClusterError):
                    await place.put(bucket, b"one", body)
                    done.append(number)

            async def check() -> None:
                place = rng.choice([p for p in places.all if p.clustered])
                before = done[-1]
                with contextlib.suppress(ClusterError):
                    found = await place.get(bucket, b"one")
                    if before:
                        assert found is not None
                        assert int(found) >= before

            for number in range(1, 60):
                await write(number)
                await check()
                if number % 15 == 5:
                    victim = rng.choice([p for p in holders(places) if p is not places[1]])
                    await victim.die()
                elif number % 15 == 10:
                    for place in places.all:
                        if not place.clustered:
                            await place.up(places[1].host, **SETTINGS)
            for place in places.all:
                if not place.clustered:
                    await place.up(places[1].host, **SETTINGS)
            assert len(done) > 30
            for place in places.all:
                found = await patiently(lambda p=place: p.get(bucket, b"one"), 60.0)  # type: ignore[misc]
                assert int(found) >= done[-1]

    run(main(), seed)
