"""Key ranges that are cut in two: on one node."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o3storage import catalog
from o3storage.catalog import DeleteItem, DeleteObjects, PutObject
from o3storage.cluster import ClusterError, Unavailable, _records
from o3storage.cluster._newcomer import look_for_loss, never_lost
from o3storage.cluster._range_rows import (
    EVERYTHING,
    FIRST_INDEX,
    RangeMoved,
    Span,
    SplitRefused,
    encode_publish,
)
from o3storage.runtime.disk import DiskFault
from o3storage.simulation import run
from o3storage.storage import HardState, StoreStats
from tests.cluster.split_support import KEYS, cut, listed, put, sums
from tests.cluster.support import OWNER, Rig, body_of, rig


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
