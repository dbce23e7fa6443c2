"""Rules of writing, deleting and reading objects, one test each."""

from __future__ import annotations

import pytest

from o3storage import catalog as c
from tests.catalog.making import DAY, ETAG, NOW, World, body, stream

OTHER = f"{7:032x}"


def test_put_then_head_returns_every_field() -> None:
    world = World()
    checksum = c.Checksum("SHA256", "FULL_OBJECT", bytes(range(32)))
    result = world.put(
        checksum=checksum,
        headers={"content-type": "text/plain", "cache-control": "no-store"},
        metadata={"colour": "grün"},
        tags=[("k", "v"), ("empty", "")],
        blake3=bytes(range(32)),
    )
    info = world.head()
    assert info == c.VersionInfo(
        b"k", result.order, True, False, NOW, "owner", 5, ETAG, body(1), bytes(range(32)),
        checksum=checksum, headers={"content-type": "text/plain", "cache-control": "no-store"},
        metadata={"colour": "grün"}, tags=[("k", "v"), ("empty", "")],
    )  # fmt: skip
    assert result.version_id is None and info.version_id == "null"


def test_an_unversioned_overwrite_releases_the_old_stream_and_keeps_one_row() -> None:
    world = World()
    world.put(number=1)
    rows = len(world.node.rows.keys)
    world.put(number=2, size_bytes=9)
    assert world.node.released == [stream(1)]
    assert len(world.node.rows.keys) == rows
    assert world.head().size_bytes == 9
    assert (world.counts().objects, world.counts().versions, world.counts().size_bytes) == (1, 1, 9)


def test_without_versioning_one_row_is_read_and_nothing_searched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()

    def searched(prefix: bytes) -> None:
        raise AssertionError(f"a search for {prefix!r}")

    monkeypatch.setattr(world.node.rows, "first", searched)
    world.put(number=1)
    world.put(number=2, condition=c.WriteCondition(if_match="*"))
    assert world.head().body == body(2)
    world.delete()
    with pytest.raises(c.NoSuchKey):
        world.head()


def test_what_was_written_before_versioning_is_found_after_it() -> None:
    world = World()
    world.put(number=1)
    world.versioning("Enabled")
    assert world.head().body == body(1)
    world.put(number=2)
    assert world.head().body == body(2)
    assert world.head(version=c.NULL).body == body(1)


def test_an_empty_object_has_no_stream() -> None:
    world = World()
    world.put(size_bytes=0, body=b"")
    world.put(number=2)
    assert world.node.released == []
    with pytest.raises(ValueError, match="without a body"):
        world.put(size_bytes=1, body=b"")


def test_enabled_keeps_every_version_newest_first() -> None:
    world = World("Enabled")
    orders = [world.put(number=n).order for n in (1, 2, 3)]
    assert orders == sorted(set(orders))
    assert world.head().order == orders[2]
    for order in orders:
        assert world.head(version=order).order == order
    assert world.head(version=orders[0]).is_latest is False
    assert world.head(version=orders[2]).is_latest is True
    assert world.node.released == []
    assert world.counts().objects == 1 and world.counts().versions == 3


def test_version_order_never_goes_back_with_the_proposers_clock() -> None:
    world = World("Enabled")
    first = world.put().order
    world.node.now_ns -= DAY
    second = world.put().order
    assert second == first + 1
    assert world.head().modified_ns == NOW - DAY


def test_suspended_replaces_only_the_null_version() -> None:
    world = World()
    world.put(number=1)
    world.versioning("Enabled")
    kept = world.put(number=2).order
    world.versioning("Suspended")
    replaced = world.put(number=3)
    assert replaced.version_id == "null"
    assert world.node.released == [stream(1)]
    world.put(number=4)
    assert world.node.released == [stream(1), stream(3)]
    assert world.head(version=kept).body == body(2)
    assert world.head(version=c.NULL).body == body(4)
    assert world.counts().versions == 2


def test_a_null_version_below_numbered_ones_is_found_and_deleted() -> None:
    world = World("Suspended")
    world.put(number=1)
    world.versioning("Enabled")
    world.put(number=2)
    assert world.head(version=c.NULL).body == body(1)
    assert world.delete(version=c.NULL).version_id == "null"
    with pytest.raises(c.NoSuchVersion):
        world.head(version=c.NULL)
    world.versioning("Suspended")
    world.put(number=3)
    assert world.head(version=c.NULL).body == body(3)
    assert world.node.released == [stream(1)]


def test_a_null_version_does_not_answer_to_its_order() -> None:
    world = World("Suspended")
    order = world.put().order
    with pytest.raises(c.NoSuchVersion):
        world.head(version=order)
    assert world.delete(version=order).existed is False


def test_delete_in_an_unversioned_bucket_removes() -> None:
    world = World()
    world.put()
    result = world.delete()
    assert (result.existed, result.delete_marker, result.version_id) == (True, False, None)
    assert world.node.released == [stream(1)]
    assert world.delete().existed is False
    with pytest.raises(c.NoSuchKey) as caught:
        world.head()
    assert caught.value.marker_version_id is None


def test_delete_in_a_versioned_bucket_writes_a_marker() -> None:
    world = World("Enabled")
    order = world.put().order
    result = world.delete()
    assert result.delete_marker and result.version_id == c.version_id(result.order)
    with pytest.raises(c.NoSuchKey) as caught:
        world.head()
    assert caught.value.marker_version_id == result.version_id
    with pytest.raises(c.MethodNotAllowed) as refused:
        world.head(version=result.order)
    assert refused.value.order == result.order
    assert world.head(version=order).order == order
    assert (world.counts().objects, world.counts().delete_markers) == (0, 1)
    assert world.delete(version=result.order).delete_marker
    assert world.head().order == order
    assert (world.counts().objects, world.counts().delete_markers) == (1, 0)


def test_delete_of_a_missing_key_still_writes_a_marker_when_versioned() -> None:
    world = World("Enabled")
    result = world.delete()
    assert result.delete_marker and not result.existed
    assert world.counts().versions == 1


def test_delete_in_a_suspended_bucket_replaces_the_null_version_by_a_null_marker() -> None:
    world = World("Suspended")
    world.put(number=1)
    result = world.delete()
    assert result.delete_marker and result.version_id == "null"
    assert world.node.released == [stream(1)]
    assert world.counts().versions == 1
    with pytest.raises(c.MethodNotAllowed):
        world.head(version=c.NULL)


def test_deleting_the_newest_version_brings_back_the_one_below() -> None:
    world = World("Enabled")
    first = world.put(number=1).order
    second = world.put(number=2).order
    world.delete(version=second)
    assert world.head().order == first
    assert world.counts().objects == 1
    world.delete(version=first)
    assert world.counts() == c.Counts(clock_ns=second)


def test_deleting_a_version_above_a_marker_leaves_no_object() -> None:
    world = World("Enabled")
    world.put(number=1)
    world.delete()
    top = world.put(number=2).order
    assert world.counts().objects == 1
    world.delete(version=top)
    assert world.counts().objects == 0


@pytest.mark.parametrize("versioning", ["", "Enabled", "Suspended"])
def test_if_none_match_star(versioning: str) -> None:
    world = World(versioning)
    condition = c.WriteCondition(if_none_match="*")
    world.put(condition=condition)
    before = dict(world.node.rows.values)
    with pytest.raises(c.PreconditionFailed) as caught:
        world.put(number=2, condition=condition)
    assert caught.value.which == "If-None-Match"
    assert caught.value.current_order == world.head().order
    assert world.node.rows.values == before
    world.delete()
    world.put(number=3, condition=condition)


def test_if_none_match_etag() -> None:
    world = World()
    world.put()
    with pytest.raises(c.PreconditionFailed):
        world.put(condition=c.WriteCondition(if_none_match=ETAG))
    world.put(condition=c.WriteCondition(if_none_match=OTHER))


def test_if_match() -> None:
    world = World("Enabled")
    with pytest.raises(c.NoSuchKey):
        world.put(condition=c.WriteCondition(if_match=ETAG))
    with pytest.raises(c.NoSuchKey):
        world.put(condition=c.WriteCondition(if_match="*"))
    world.put()
    world.put(condition=c.WriteCondition(if_match=ETAG))
    world.put(condition=c.WriteCondition(if_match="*"))
    with pytest.raises(c.PreconditionFailed) as caught:
        world.put(condition=c.WriteCondition(if_match=OTHER))
    assert caught.value.which == "If-Match"
    marker = world.delete()
    with pytest.raises(c.NoSuchKey) as hidden:
        world.put(condition=c.WriteCondition(if_match=ETAG))
    assert hidden.value.marker_version_id == marker.version_id


def test_conditions_of_deletes() -> None:
    world = World()
    with pytest.raises(c.NoSuchKey):
        world.delete(condition=c.WriteCondition(if_match=ETAG))
    world.delete(condition=c.WriteCondition(if_match_size=3))
    world.put()
    for condition, which in (
        (c.WriteCondition(if_match=OTHER), "If-Match"),
        (c.WriteCondition(if_match_size=4), "x-amz-if-match-size"),
        (c.WriteCondition(if_match_modified_ns=NOW + 10**9), "x-amz-if-match-last-modified-time"),
    ):
        with pytest.raises(c.PreconditionFailed) as caught:
            world.delete(condition=condition)
        assert caught.value.which == which
    exact = c.WriteCondition(if_match=ETAG, if_match_size=5, if_match_modified_ns=NOW + 999)
    assert world.delete(condition=exact).existed


def test_stale_epoch_tells_which_side_is_behind() -> None:
    world = World()
    old = world.bucket
    world.versioning("Enabled")
    new = world.bucket
    assert new.epoch == old.epoch + 1
    world.bucket = old
    with pytest.raises(c.StaleEpoch) as caught:
        world.put()
    assert caught.value.current > caught.value.epoch
    world.bucket = new
    world.node.submit_now(c.SetBucketVersioning("bucket", "Suspended"))
    world.bucket = world.ask(c.get_bucket("bucket"))
    with pytest.raises(c.StaleEpoch) as behind:
        world.put()
    assert behind.value.current < behind.value.epoch
    world.bucket = world.node.drive_now(c.sync_bucket("bucket", NOW))
    assert world.put().version_id == "null"


def test_a_range_that_never_saw_the_bucket_says_so() -> None:
    world = World()
    world.bucket.bucket_id = 99
    with pytest.raises(c.StaleEpoch) as caught:
        world.put()
    assert caught.value.current == 0


def test_set_tags_changes_tags_only() -> None:
    world = World("Enabled")
    first = world.put(number=1, headers={"content-type": "a/b"}, metadata={"m": "1"}).order
    second = world.put(number=2, tags=[("old", "1")]).order
    result = world.submit(c.SetTags(*world.at, b"k", first, [("a", "1"), ("b", "2")]))
    assert result.version_id == c.version_id(first)
    info = world.head(version=first)
    assert info.tags == [("a", "1"), ("b", "2")]
    assert (info.headers, info.metadata) == ({"content-type": "a/b"}, {"m": "1"})
    assert world.submit(c.SetTags(*world.at, b"k", None, [])).order == second
    assert world.head().tags == []
    marker = world.delete().order
    with pytest.raises(c.NoSuchKey):
        world.submit(c.SetTags(*world.at, b"k", None, []))
    with pytest.raises(c.MethodNotAllowed):
        world.submit(c.SetTags(*world.at, b"k", marker, []))
    with pytest.raises(c.NoSuchVersion):
        world.submit(c.SetTags(*world.at, b"k", 5, []))


def test_delete_objects_answers_each_item() -> None:
    world = World("Enabled")
    kept = world.put(b"a").order
    world.put(b"b")
    results = world.submit(
        c.DeleteObjects(
            *world.at, NOW, "owner",
            [
                c.DeleteItem(b"a", kept),
                c.DeleteItem(b"b", None, c.WriteCondition(if_match=OTHER)),
                c.DeleteItem(b"c"),
                c.DeleteItem(b"d", c.NULL),
            ],
        )
    )  # fmt: skip
    assert results[0].existed and results[0].order == kept
    assert isinstance(results[1], c.PreconditionFailed)
    assert results[2].delete_marker
    assert not results[3].existed and results[3].version_id == "null"
    assert world.counts().versions == 2


def test_delete_batches_keep_order_per_key_and_never_repeat_a_key() -> None:
    items = [c.DeleteItem(b"%d" % (n % 7)) for n in range(300)] + [
        c.DeleteItem(b"x%d" % n) for n in range(300)
    ]
    batches = c.delete_batches(items)
    assert sorted(at for batch in batches for at in batch) == list(range(600))
    seen: dict[bytes, int] = {}
    for batch in batches:
        assert 0 < len(batch) <= c.MAX_DELETES_PER_COMMAND
        assert len({items[at].key for at in batch}) == len(batch)
        for at in batch:
            assert seen.get(items[at].key, -1) < at
            seen[items[at].key] = at


def test_a_thousand_distinct_deletes_take_ten_commands() -> None:
    assert len(c.delete_batches([c.DeleteItem(b"%d" % n) for n in range(1000)])) == 10


def test_an_old_stream_is_refused() -> None:
    world = World()
    with pytest.raises(c.StreamExpired):
        world.put(started_ns=NOW - 7 * DAY - 1)
    world.put(started_ns=NOW - 7 * DAY)
    # By the range's clock, not the proposer's.
    world.put(b"other", 2)
    world.node.now_ns -= DAY
    with pytest.raises(c.StreamExpired):
        world.put(started_ns=NOW - 7 * DAY - 1)


def test_same_commands_give_same_rows() -> None:
    def run() -> dict[bytes, bytes]:
        world = World()
        world.put(metadata={"b": "1", "a": "2"})
        world.versioning("Enabled")
        upload = world.upload(headers={"x": "y"})
        world.part(upload, 1, 5)
        world.submit(world.completion(upload, [(1, 10)]))
        world.delete()
        return world.node.rows.values

    assert run() == run()


def test_version_ids() -> None:
    text = c.version_id(NOW)
    assert len(text) == 20 and c.parse_version_id(text) == NOW
    assert c.parse_version_id("null") == c.NULL
    for bad in ("", "nul", text[:-1], text + "0", text.upper() + "x", "0" * 20, "g" * 20,
                ("0" if text[0] != "0" else "1") + text[1:]):  # fmt: skip
        with pytest.raises(c.InvalidVersionId):
            c.parse_version_id(bad)
    with pytest.raises(ValueError, match="out of range"):
        c.version_id(0)
