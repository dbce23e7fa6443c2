"""Key ranges that are cut in two: on one node, and on three."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o3storage import catalog
from o3storage.catalog import DeleteItem, DeleteObjects, PutObject
from o3storage.cluster import ClusterError, Node, Unavailable, _applying, _records
from o3storage.cluster._newcomer import LOST, look_for_loss, never_lost
from o3storage.cluster._range_rows import (
    EVERYTHING,
    FIRST_INDEX,
    RangeMoved,
    Span,
    SplitRefused,
    encode_publish,
)
from o3storage.runtime.disk import DiskFault
from o3storage.simulation import SimDisk, run
from o3storage.storage import HardState, Miss, StoreStats
from tests.cluster.support import OWNER, Rig, body_of, rig
from tests.cluster.team_support import Team, forget, team

KEYS = [b"%c%d" % (letter, n) for letter in b"abcdef" for n in range(5)]


async def cut(node: Node, bucket: catalog.BucketInfo, key: bytes) -> int:
    return await node.ranges.split(node.machine.stream_route(bucket.bucket_id, key)[1:])


async def put(r: Rig, bucket: catalog.BucketInfo, key: bytes, size: int = 0) -> Any:
    """An empty object, unless `size`."""
    if size:
        return await r.put(bucket, key, body_of(len(key), size))
    command = PutObject(
        bucket.bucket_id, bucket.epoch, key, r.clock.wall_ns(), OWNER, 0, "0" * 32, bytes(32)
    )
    return await r.node.submit(command)


async def listed(node: Node, bucket: catalog.BucketInfo, limit: int = 1000, **how: Any) -> Any:
    """(keys, common prefixes, pages) of a whole listing, page after page."""
    keys: list[bytes] = []
    prefixes: list[bytes] = []
    pages = 0
    after = b""
    while True:
        query = catalog.list_objects(bucket.bucket_id, after=after, max_keys=limit, **how)
        page = await node.query(query)
        keys += [entry[0] for entry in page.entries]
        prefixes += page.common_prefixes
        pages += 1
        if not page.truncated:
            return keys, prefixes, pages
        assert page.next_after and page.next_after != after
        after = page.next_after


async def sums(node: Node) -> catalog.Counts:
    groups = [one["range"] for one in node.ranges.status()]
    return catalog.add_counts([await node.query(catalog.counts(group)) for group in groups])


def test_a_cut_range_goes_on_in_two_parts() -> None:
    async def main() -> None:
        async with rig() as r:
            bucket = await r.bucket()
            for key in KEYS:
                await put(r, bucket, key)
            large = body_of(7, 100_000)
            await r.put(bucket, b"e9", large)
            before = await sums(r.node)
            assert await cut(r.node, bucket, b"c0") == 2
            assert await cut(r.node, bucket, b"e0") == 3
            assert await sums(r.node) == before
            assert [one["range"] for one in r.node.ranges.status()] == [1, 2, 3]
            keys, _, pages = await listed(r.node, bucket)
            assert keys == [*KEYS[:25], b"e9", *KEYS[25:]] and pages == 3
            assert await r.get(bucket, b"e9") == large
            for key in (b"b9", b"c0", b"d9", b"f9"):
                await put(r, bucket, key, size=3_000)
                assert await r.get(bucket, key) == body_of(2, 3_000)
            await r.node.submit(
                DeleteObjects(
                    bucket.bucket_id,
                    bucket.epoch,
                    r.clock.wall_ns(),
                    OWNER,
                    [DeleteItem(key) for key in (b"f9", b"a0", b"nothing", b"c0")],
                )
            )
            assert await r.get(bucket, b"c0") is None and await r.get(bucket, b"f9") is None
            assert (await sums(r.node)).objects == before.objects
            await r.stop()
            await r.start()
            keys, _, pages = await listed(r.node, bucket)
            assert len(keys) == before.objects and pages == 3
            await put(r, bucket, b"c0")
            assert (await sums(r.node)).objects == before.objects + 1

    run(main(), 1)


@pytest.mark.parametrize("synced", [True, False])
def test_a_crash_right_after_the_cut(synced: bool) -> None:
    async def main() -> None:
        for seed in range(6):
            r = await Rig(seed).start()
            bucket = await r.bucket()
            for key in KEYS[:12]:
                await put(r, bucket, key)
            child = await cut(r.node, bucket, b"b0")
            if synced:
                await put(r, bucket, b"z")
            await r.crash(random.Random(seed))
            await r.start()
            spans = {one["range"]: one["low"] for one in r.node.ranges.status()}
            assert list(spans) == [1, child]
            await put(r, bucket, b"b7")
            keys, _, _ = await listed(r.node, bucket)
            wanted = [*KEYS[:10], b"b7", *KEYS[10:12]] + ([b"z"] if synced else [])
            assert keys == sorted(wanted)
            await r.stop()

    run(main(), 2)


def test_cuts_that_are_refused_change_nothing() -> None:
    async def main() -> None:
        async with rig() as r:
            bucket = await r.bucket()
            await put(r, bucket, b"m")
            await cut(r.node, bucket, b"m")
            with pytest.raises(SplitRefused, match="begins there already"):
                await cut(r.node, bucket, b"m")
            with pytest.raises(SplitRefused, match="through a key"):
                await r.node.ranges.split(bytes(8) + b"half a key")
            assert len(r.node.ranges.status()) == 2

    run(main(), 3)


def test_a_cut_that_cannot_read_its_own_disk_says_so_to_who_asked_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def get(_key: bytes) -> bytes:
        raise DiskFault("no sector")

    async def main() -> None:
        async with rig() as r:
            bucket = await r.bucket()
            with monkeypatch.context() as patch:
                patch.setattr(r.node.store, "get", get)
                with pytest.raises(Unavailable, match="no sector"):
                    await cut(r.node, bucket, b"m")
                with pytest.raises(Unavailable, match="no sector"):
                    await r.node.ranges.stay(1)
            assert await cut(r.node, bucket, b"m") == 2

    run(main(), 3)


def test_a_range_refuses_and_does_not_see_what_another_holds() -> None:
    async def main() -> None:
        async with rig() as r:
            bucket = await r.bucket()
            before = await put(r, bucket, b"x")
            await cut(r.node, bucket, b"m")
            parent = r.node._replicas[1]
            late = PutObject(bucket.bucket_id, bucket.epoch, b"y", 1, OWNER, 0, "0" * 32, bytes(32))
            outcome = await parent.submit(r.machine.encode(late))
            assert isinstance(outcome.error, RangeMoved) and not outcome.rows
            stream = bytes(16)
            route = r.machine.stream_route(bucket.bucket_id, b"y")
            for data in (
                _records.encode_open(route, 1, 1, stream),
                _records.encode_close([_records.stream_key(route, stream)], release=True),
            ):
                outcome = await parent.submit(data)
                assert isinstance(outcome.error, RangeMoved) and not outcome.rows
            # The lower part has nothing of the bucket; and it is the first that is asked.
            assert await r.node.query(catalog.bucket_is_empty(bucket.bucket_id))
            # An order is above all that were given before the cut, whatever time it says.
            assert (await r.node.submit(late)).order > before.order
            assert (await listed(r.node, bucket))[0] == [b"x", b"y"]

    run(main(), 11)


def test_a_node_that_comes_late_to_the_table_finds_the_way() -> None:
    """The command goes to the parent and is refused there; the node knows better by then."""

    async def main() -> None:
        async with rig() as r:
            bucket = await r.bucket()
            table = r.node._ranges
            body = body_of(3, 5_000)
            upload, command = await r.upload(bucket, b"x", body)
            await cut(r.node, bucket, b"m")
            spans = dict(table._spans)
            table.fill({1: EVERYTHING})
            entry = r.node._replicas[1].submit

            def submit(*args: Any, **how: Any) -> Any:
                table.fill(spans)
                return entry(*args, **how)

            r.node._replicas[1].submit = submit  # type: ignore[method-assign]
            await r.node.submit(command, upload.frames)
            assert await r.get(bucket, b"x") == body
            assert r.node.status()["open_streams_to_collect"] == 0

    run(main(), 12)


@pytest.mark.parametrize("vote", [False, True])
def test_a_log_that_a_crash_kept_from_its_beginning_is_begun(vote: bool) -> None:
    async def main() -> None:
        r = await Rig(5).start()
        bucket = await r.bucket()
        await put(r, bucket, b"x")
        store = r.store

        def create(group: int, *_: int) -> None:
            if vote:  # what volumes said of such a log that began before it
                store.append(group, HardState(4, r.node.id), [])

        store.create_group = create  # type: ignore[method-assign]
        r.node._replicas[1].on_split = None
        with contextlib.suppress(ClusterError):
            await cut(r.node, bucket, b"m")
        command = catalog.CreateBucket("other", OWNER, r.clock.wall_ns())
        await r.node.submit(command)  # the outcome is durable with its entry
        await r.kill()
        await r.start()
        assert [one["range"] for one in r.node.ranges.status()] == [1, 2]
        assert r.store.log_state(2).first_index == FIRST_INDEX + 1
        assert r.store.log_state(2).hard_state.term > 4 * vote
        await put(r, bucket, b"y")
        assert (await listed(r.node, bucket))[0] == [b"x", b"y"]
        await r.stop()

    run(main(), 13)


def test_a_range_of_the_directory_waits_until_its_keys_are_free() -> None:
    async def main() -> None:
        async with rig() as r:
            bucket = await r.bucket()
            low = r.machine.stream_route(bucket.bucket_id, b"m")[1:]
            span = Span(low, None, 1)
            await r.node.commit(b"", encode_publish(7, span))
            await r.node.ranges.read_directory()
            assert r.node.ranges.directory == {7: span} and 7 not in r.node._replicas
            # What is said later than it was true changes nothing.
            narrow = Span(low, low + b"z", 1)
            assert (await r.node.commit(b"", encode_publish(7, narrow))).result
            assert not (await r.node.commit(b"", encode_publish(7, span))).result
            assert await cut(r.node, bucket, b"c") == 2

    run(main(), 14)


def test_settings_reach_every_part_and_a_bucket_goes_from_all() -> None:
    async def main() -> None:
        async with rig() as r:
            bucket, other = await r.bucket(), await r.bucket("other")
            for key in (b"a", b"x"):
                await put(r, bucket, key)
                await put(r, other, key)
            await cut(r.node, bucket, b"m")
            await cut(r.node, other, b"m")
            bucket = await r.drive(catalog.set_versioning("bucket", "Enabled", r.clock.wall_ns()))
            for key in (b"a", b"x"):
                assert (await put(r, bucket, key)).versioned
            with pytest.raises(catalog.BucketNotEmpty):
                await r.drive(catalog.delete_bucket("other", r.clock.wall_ns()))
            other = await r.node.query(catalog.get_bucket("other"))
            for key in (b"a", b"x"):
                await put(r, other, key)  # it was taken back, in both
            command = DeleteObjects(
                other.bucket_id,
                other.epoch,
                r.clock.wall_ns(),
                OWNER,
                [DeleteItem(b"x"), DeleteItem(b"a")],
            )
            results = await r.node.submit(command)
            assert [one.existed for one in results] == [True, True]
            await r.drive(catalog.delete_bucket("other", r.clock.wall_ns()))
            with pytest.raises(catalog.StaleEpoch):
                await put(r, other, b"x")
            for group in [one["range"] for one in r.node.ranges.status()]:
                after = b""
                commands, after = await r.node.query(
                    catalog.chores(r.clock.wall_ns(), after, group=group)
                )
                for chore in commands:
                    assert (await r.node.submit(chore)).done

    run(main(), 4)


def test_an_upload_goes_with_its_key() -> None:
    async def main() -> None:
        async with rig() as r:
            bucket = await r.bucket()
            uploads = {key: bytes((at,)) * 16 for at, key in enumerate((b"a", b"n", b"z"), 1)}
            for key, upload_id in uploads.items():
                await r.node.submit(
                    catalog.CreateUpload(
                        bucket.bucket_id, bucket.epoch, key, upload_id, r.clock.wall_ns(), OWNER
                    )
                )
            stream = r.node.new_stream(bucket.bucket_id, b"z")
            await stream.write(body_of(1, 262_144), False)  # announced in the parent
            await cut(r.node, bucket, b"n")
            await stream.write(b"the end", True)
            part = catalog.PutPart(
                bucket.bucket_id,
                bucket.epoch,
                b"z",
                uploads[b"z"],
                1,
                r.clock.wall_ns(),
                262_151,
                "0" * 32,
                bytes(32),
                stream.ref.pack(),
                stream.started_ns,
            )
            await r.node.submit(part, stream.frames)
            found, marker = [], (b"", b"")
            for _ in range(9):
                page = await r.node.query(
                    catalog.list_uploads(
                        bucket.bucket_id,
                        key_marker=marker[0],
                        upload_marker=marker[1],
                        max_uploads=1,
                    )
                )
                found += [entry[0] for entry in page.entries]
                marker = page.next_key_marker, page.next_upload_marker
                if not page.truncated:
                    break
            assert found == [b"a", b"n", b"z"]
            assert (await sums(r.node)).uploads == 3
            await r.settle()
            assert r.node.status()["open_streams_to_collect"] == 0

    run(main(), 5)


async def level(group: Team, ranges: int) -> None:
    """All have so many key ranges, have applied the same and lack nothing; their rows are equal."""
    numbers = list(range(ranges + 1))
    for _ in range(1200):
        if all(list(m.node._replicas) and len(m.node._replicas) > ranges for m in group.up) and all(
            group._level(group.up, number) and any(m.leads(number) for m in group.up)
            for number in numbers
        ):
            break
        await asyncio.sleep(0.05)
    else:
        raise AssertionError([m.node.status() for m in group.up])
    first, *others = await group.catalogs()
    assert all(other == first for other in others)


def test_three_nodes_cut_a_range_while_they_write() -> None:
    async def main() -> None:
        for seed in range(3):
            async with team(seed=40 + seed) as group:
                bucket = await group.members[0].bucket()
                bodies: dict[bytes, bytes] = {}

                async def write(member: Any, mark: bytes) -> None:
                    for number in range(40):
                        key = KEYS[(number * 7) % 30] + mark
                        body = body_of(number, 300 + 9_000 * (number % 5))
                        await member.put(bucket, key, body)
                        bodies[key] = body
                        await asyncio.sleep(0.01)

                async def cuts() -> None:
                    for member, key in zip(group.members, (b"c0", b"e0", b"b0"), strict=True):
                        await asyncio.sleep(0.1)
                        await cut(member.node, bucket, key)

                writers = [write(m, b"-%d" % n) for n, m in enumerate(group.members)]
                await asyncio.gather(cuts(), *writers)
                await level(group, 4)
                for member in group.members:
                    assert (await listed(member.node, bucket, 7))[0] == sorted(bodies)
                    for key in sorted(bodies)[::11]:
                        assert await member.get(bucket, key) == bodies[key]
                await asyncio.sleep(5)  # (virtual) until the directory is known to all
                assert all(len(m.node.ranges.directory) == 4 for m in group.members)

    run(main(), 7)


@pytest.mark.parametrize("away_before", [True, False])
@pytest.mark.parametrize("fresh", [False, True])
def test_a_member_that_missed_the_cut_gets_both_parts_by_snapshot(
    fresh: bool, away_before: bool
) -> None:
    async def main() -> None:
        async with team(seed=50, reload_log_bytes=0, keep_log_bytes=0) as group:
            bucket = await group.members[0].bucket()
            bodies = {key + b"-early": body_of(n, 700 * n + 1) for n, key in enumerate(KEYS)}
            for key, body in bodies.items():
                await group.members[0].put(bucket, key, body)
            away = group.follower()
            await group.level()
            last = away.store.log_state(1).last_index
            if not away_before:
                await cut(group.leader().node, bucket, b"e0")
                await level(group, 2)
            await group.kill(away)
            await group.settled()
            member = group.up[0]
            await cut(member.node, bucket, b"c0")
            if away_before:
                await cut(member.node, bucket, b"e0")
            for number, key in enumerate(KEYS * 3):
                bodies[key] = body_of(number, 400 + (number % 7) * 900)
                await member.put(bucket, key, bodies[key])
            for other in group.up:
                await forget(other, last)
            if fresh:
                away.disk = SimDisk(9950)
                away.bootstrap = False
            await group.restart(away)
            await level(group, 3)
            for other in (m for m in list(group.up) if m is not away):
                await group.kill(other)
                await group.settled()
                break
            assert (await listed(away.node, bucket))[0] == sorted(bodies)
            for key in sorted(bodies)[::7]:
                assert await away.get(bucket, key) == bodies[key]
            await away.put(bucket, b"f-last", b"body")

    run(main(), 8)


@pytest.mark.parametrize("disk", ["whole", "without index", "lost something"])
@pytest.mark.parametrize("again", [False, True])
def test_a_member_that_missed_the_cut_votes_in_the_new_range(again: bool, disk: str) -> None:
    """One of the two that made the cut is gone for good, at once. (`again`: the one that missed it
    starts once more before it has the vote to give. `disk`: if it lost something once, it cannot
    know that it never took part.)"""
    lost = disk == "lost something"

    async def main() -> None:
        async with team(seed=80, reload_log_bytes=0, keep_log_bytes=0) as group:
            bucket = await group.members[0].bucket()
            for key in KEYS:
                await group.members[0].put(bucket, key, body_of(1, 900))
            await group.level()
            away = group.follower()
            if disk == "lost something":
                await away.store.note(LOST, b"")
            last = away.store.log_state(1).last_index
            await away.store.flush()
            await group.kill(away)
            if disk == "without index":
                for name in await away.disk.list_dir("index"):
                    if not name.endswith(".table"):
                        away.disk.rot(f"index/{name}", 40)
            await group.settled()
            left = next(m for m in group.up if not m.leads(1))
            gone = group.leader()
            child = await cut(gone.node, bucket, b"c0")
            for key in KEYS * 3:
                await gone.put(bucket, key, body_of(2, 900))
            await group.level()
            assert child in left.node._replicas and not left.node.ranges.directory
            await group.kill(gone)
            await forget(left, last)
            await group.restart(away)
            await group.settled()
            if again:
                while child not in away.node._replicas:
                    await asyncio.sleep(0.001)
                await group.kill(away)
                await group.restart(away)
                await group.settled()
            await asyncio.sleep(20)  # (virtual)
            assert left.leads(child) is not lost
            if lost:
                assert not away.replica(child).core.configuration.voters
                return
            await level(group, 2)
            await away.put(bucket, b"f-last", b"body")
            assert (await listed(away.node, bucket))[0] == sorted([*KEYS, b"f-last"])

    run(main(), 15)


def test_a_rebuild_that_did_not_find_everything_is_a_loss() -> None:
    async def main() -> None:
        r = await Rig(16).start()
        for stats, lost in (
            (StoreStats(index_rebuilt=True), False),
            (StoreStats(index_rebuilt=True, rebuilt_in_part=True), True),
        ):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(r.store, "stats", lambda stats=stats: stats)
                await look_for_loss(r.store)
            await r.store.note(b"other", b"")  # the first one is durable with it
            assert await never_lost(r.store) is not lost
        await r.stop()

    run(main(), 16)


def test_the_leader_dies_right_after_the_cut() -> None:
    async def main() -> None:
        for seed in range(4):
            async with team(seed=60 + seed) as group:
                bucket = await group.members[0].bucket()
                for key in KEYS[:8]:
                    await put(group.members[0], bucket, key)
                leader = group.leader()
                await cut(leader.node, bucket, b"b0")
                await group.kill(leader)
                member = group.up[0]
                for _ in range(100):
                    try:
                        await put(member, bucket, b"a0")
                        await put(member, bucket, b"b9")
                        break
                    except ClusterError:
                        await asyncio.sleep(0.1)
                assert (await listed(member.node, bucket))[0] == sorted([*KEYS[:8], b"b9"])
                await group.restart(leader)
                await level(group, 2)

    run(main(), 9)


def test_what_a_member_lacks_is_looked_for_in_the_part_that_was_cut_off() -> None:
    async def main() -> None:
        async with team(seed=70) as group:
            bucket = await group.members[0].bucket()
            for key in KEYS[:12]:
                await group.members[0].put(bucket, key, body_of(1, 3_000))
            member = group.follower()
            member.replica(1).team.mark_incomplete()
            child = await cut(group.leader().node, bucket, b"b0")
            while child not in member.node._replicas:
                await asyncio.sleep(0.001)
            assert member.replica(child).team._marked
            await put(member, bucket, b"b9")  # (something is appended after the mark)
            await group.kill(member)
            await group.settled()
            await group.restart(member)
            assert member.replica(child).team._marked
            await level(group, 2)
            others = [m.replica(child).team for m in group.members if m is not member]
            assert not any(other._marked for other in others)

    run(main(), 10)


def test_a_part_begins_though_the_other_left_this_node_meanwhile() -> None:
    async def main() -> None:
        async with team(seed=71) as group:
            bucket = await group.members[0].bucket()
            member = group.follower()
            keeper, parent = member.node.ranges, member.replica(1)
            opened = keeper._open_replica
            tasks: list[Any] = []

            async def slowly(number: int) -> Any:
                tasks.append(asyncio.current_task())
                found = await opened(number)
                del member.node._replicas[1]  # as `look_away` has it
                return found

            keeper._open_replica = slowly  # type: ignore[method-assign]
            await cut(group.leader().node, bucket, b"b0")
            while not tasks:
                await asyncio.sleep(0.001)
            await tasks[0]  # with the flush that keeps the cut from being made again
            member.node._replicas[1] = parent

    run(main(), 10)


def test_a_replica_that_was_stopped_while_it_applied_the_cut_does_not_make_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may be leaving this node: its rows are erased then, and the other part would begin with
    what is left of them."""
    monkeypatch.setattr(_applying, "read_now", lambda *_: Miss.MISS)

    async def main() -> None:
        async with team(seed=72) as group:
            bucket = await group.members[0].bucket()
            member = group.follower()
            await group.level()
            replica = member.replica(1)
            entered, goes_on = asyncio.Event(), asyncio.Event()
            apply_entry = replica._run_entry

            async def slowly(*how: Any) -> Any:
                entered.set()
                await goes_on.wait()  # a row that it reads is on the disk
                return await apply_entry(*how)

            replica._run_entry = slowly
            child = await cut(group.leader().node, bucket, b"b0")
            await entered.wait()
            replica.fail("this node has no replica of the range any more")
            goes_on.set()
            await asyncio.sleep(1)
            assert child not in member.store.groups()
            assert child not in member.node._replicas

    run(main(), 10)


class _Model:
    """A bucket as a plain dict."""

    def __init__(self) -> None:
        self.keys: dict[bytes, int] = {}

    def listing(self, prefix: bytes, delimiter: bytes) -> tuple[list[bytes], list[bytes]]:
        keys, prefixes = [], {}
        for key in sorted(self.keys):
            if not key.startswith(prefix):
                continue
            at = key.find(delimiter, len(prefix)) if delimiter else -1
            if at >= 0:
                prefixes[key[: at + len(delimiter)]] = None
            else:
                keys.append(key)
        return keys, list(prefixes)


NAMES = [b"a", b"a/", b"a/b", b"a/b/c", b"a/c", b"ab", b"b/x", b"b\x00", b"b\x00\x01", b"c/y"]
actions = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from(NAMES)),
        st.tuples(st.just("delete"), st.lists(st.sampled_from(NAMES), min_size=1, unique=True)),
        st.tuples(st.just("cut"), st.sampled_from(NAMES)),
        st.tuples(
            st.just("list"),
            st.tuples(
                st.sampled_from([b"", b"a", b"a/", b"b"]),
                st.sampled_from([b"", b"/"]),
                st.sampled_from([1, 2, 1000]),
            ),
        ),
    ),
    min_size=1,
    max_size=25,
)


@given(actions)
@settings(max_examples=40, deadline=None)
def test_several_ranges_are_one_dict(steps: list[tuple[str, Any]]) -> None:
    async def main() -> None:
        async with rig() as r:
            bucket = await r.bucket()
            model = _Model()
            for what, value in steps:
                if what == "put":
                    await put(r, bucket, value)
                    model.keys[value] = 1
                elif what == "delete":
                    command = DeleteObjects(
                        bucket.bucket_id,
                        bucket.epoch,
                        r.clock.wall_ns(),
                        OWNER,
                        [DeleteItem(key) for key in value],
                    )
                    results = await r.node.submit(command)
                    assert [one.existed for one in results] == [k in model.keys for k in value]
                    for key in value:
                        model.keys.pop(key, None)
                elif what == "cut":
                    try:
                        await cut(r.node, bucket, value)
                    except SplitRefused:
                        assert r.node.ranges.status()
                else:
                    prefix, delimiter, limit = value
                    keys, prefixes, _ = await listed(
                        r.node, bucket, limit, prefix=prefix, delimiter=delimiter
                    )
                    assert (keys, prefixes) == model.listing(prefix, delimiter)
            total = await sums(r.node)
            assert (total.objects, total.versions) == (len(model.keys), len(model.keys))

    run(main(), 6)


spans = st.builds(
    lambda low, size, parent: Span(low, None if size is None else low + size, parent),
    st.binary(max_size=30),
    st.one_of(st.none(), st.binary(min_size=1, max_size=5)),
    st.integers(0, 2**32 - 1),
)


@given(spans, st.data())
def test_a_span_survives_its_encoding_and_no_other_bytes_do(span: Span, data: Any) -> None:
    value = span.encode()
    assert Span.decode(value) == span
    at = data.draw(st.integers(0, len(value) - 1))
    with pytest.raises(ValueError):
        Span.decode(value[:at])
    with pytest.raises(ValueError):
        Span.decode(value + b"\0")


@given(spans, spans)
def test_spans_overlap_where_a_key_lies_in_both(one: Span, other: Span) -> None:
    low = max(one.low, other.low)
    assert one.overlaps(other) == (one.holds(low) and other.holds(low)) == other.overlaps(one)
    assert EVERYTHING.overlaps(one)
