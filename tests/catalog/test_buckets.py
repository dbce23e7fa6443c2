"""Buckets, access keys and settings: range 0, and the procedures over all ranges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from o3storage import catalog as c
from o3storage.cluster._snapshots import PIECE_BYTES
from o3storage.storage import MAX_PIECE_BYTES
from o3storage.storage._types import MAX_ROW_VALUE_BYTES
from tests.catalog.making import DAY, NOW, World
from tests.support.memory_node import MemoryNode


def make(node: MemoryNode, name: str, owner: str = "owner") -> c.CreateBucketResult:
    return node.drive_now(c.create_bucket(c.CreateBucket(name, owner, NOW, "eu-1")))


def test_create_is_idempotent_for_its_owner_only() -> None:
    node = MemoryNode()
    first = make(node, "b")
    assert first.created and first.bucket.region == "eu-1"
    again = make(node, "b")
    assert not again.created and again.bucket == first.bucket
    with pytest.raises(c.BucketExists) as caught:
        make(node, "b", "other")
    assert caught.value.owner == "owner"
    assert node.query_now(c.get_bucket("b")) == first.bucket
    with pytest.raises(c.NoSuchBucket):
        node.query_now(c.get_bucket("c"))


def test_bucket_ids_are_never_reused() -> None:
    node = MemoryNode()
    seen = set()
    for _ in range(4):
        seen.add(make(node, "b").bucket.bucket_id)
        node.drive_now(c.delete_bucket("b", NOW))
    assert len(seen) == 4


def test_delete_refuses_versions_and_markers_and_reverts() -> None:
    world = World("Enabled")
    world.put()
    order = world.delete().order
    before = world.bucket
    with pytest.raises(c.BucketNotEmpty):
        world.node.drive_now(c.delete_bucket("bucket", NOW))
    world.bucket = world.ask(c.get_bucket("bucket"))
    assert not world.bucket.deleting and world.bucket.epoch == before.epoch + 2
    assert world.ask(c.pending_buckets()) == []
    world.put(number=2)
    assert world.head().order > order


def test_delete_with_open_uploads_only_collects_them() -> None:
    world = World()
    upload = world.upload()
    world.part(upload, 1, 1)
    done = world.upload(b"done", 2)
    world.part(done, 1, 2, key=b"done")
    world.submit(world.completion(done, [(1, 10)], b"done"))
    world.delete(b"done")
    world.node.drive_now(c.delete_bucket("bucket", NOW))
    with pytest.raises(c.NoSuchBucket):
        world.ask(c.get_bucket("bucket"))
    assert world.ask(c.list_buckets("owner")).buckets == []
    world.chores()
    world.chores()  # the purge made a chore of the parts
    assert sorted(world.node.released) == [n.to_bytes(16, "big") for n in (1, 2)]
    world.chores(NOW + 9 * DAY)
    assert world.counts() == c.Counts(clock_ns=world.counts().clock_ns)
    assert len(world.node.rows.keys) == 2, "the counter and the range's sums"


def test_a_fenced_bucket_answers_fenced_and_reverts() -> None:
    world = World()
    world.put()
    marked = world.submit(c.BeginDeleteBucket("bucket"))
    sync = c.SyncBucket(marked.bucket_id, marked.epoch, "", "fenced", NOW)
    assert world.submit(sync) == c.SyncResult(marked.epoch, False)
    for epoch in (world.bucket.epoch, marked.epoch):
        world.bucket.epoch = epoch
        with pytest.raises(c.BucketFenced):
            world.put(number=2)
    world.bucket.epoch = marked.epoch + 1  # reverted in range 0, the range does not know yet
    with pytest.raises(c.StaleEpoch):
        world.put(number=2)
    with pytest.raises(c.BucketBusy):
        world.node.drive_now(c.sync_bucket("bucket", NOW))
    with pytest.raises(c.BucketBusy):
        world.submit(c.SetBucketVersioning("bucket", "Enabled"))
    with pytest.raises(c.BucketBusy):
        world.submit(c.SetBucketSetting("bucket", "cors", b"x"))
    with pytest.raises(c.BucketBusy):
        make(world.node, "bucket")
    world.node.drive_now(c.resume_delete(*world.ask(c.pending_buckets())[0], NOW))
    world.bucket = world.ask(c.get_bucket("bucket"))
    world.put(number=2)


def test_a_late_copy_of_the_settings_does_not_bring_a_bucket_back() -> None:
    world = World()
    old = world.bucket
    late = c.SyncBucket(old.bucket_id, old.epoch + 5, "", "active", NOW)
    world.node.drive_now(c.delete_bucket("bucket", NOW))
    world.submit(late)
    world.bucket.epoch += 5
    with pytest.raises(c.StaleEpoch) as caught:
        world.put()
    assert caught.value.current > caught.value.epoch
    with pytest.raises(c.NoSuchBucket):
        world.node.drive_now(c.sync_bucket("bucket", NOW))


def interrupted(node: MemoryNode, steps: Any, commands: int) -> None:
    """Drive a procedure for some steps, as if its node died then."""
    step = next(steps)
    for _ in range(commands):
        try:
            result = node.query_now(step) if isinstance(step, c.Query) else node.submit_now(step)
            step = steps.send(result)
        except (StopIteration, c.CatalogError):
            return


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("done", range(6))
def test_a_deletion_cut_short_is_driven_to_its_end_or_back(done: int, full: bool) -> None:
    world = World()
    if full:
        world.put()
    interrupted(world.node, c.delete_bucket("bucket", NOW), done)
    for bucket_id, name, gone in world.ask(c.pending_buckets()):
        world.node.drive_now(c.resume_delete(bucket_id, name, gone, NOW))
    assert world.ask(c.pending_buckets()) == []
    if full or done == 0:
        world.bucket = world.node.drive_now(c.sync_bucket("bucket", NOW))
        world.put(number=2)
    else:
        with pytest.raises(c.NoSuchBucket):
            world.ask(c.get_bucket("bucket"))
        with pytest.raises(c.StaleEpoch):
            world.put(number=2)


def test_a_stale_decision_cannot_end_or_revert_a_later_deletion() -> None:
    world = World()
    first = world.submit(c.BeginDeleteBucket("bucket"))
    world.submit(c.RevertDeleteBucket("bucket", first.bucket_id, first.epoch))
    second = world.submit(c.BeginDeleteBucket("bucket"))
    with pytest.raises(c.BucketBusy):
        world.submit(c.FinishDeleteBucket("bucket", first.bucket_id, first.epoch))
    kept = world.submit(c.RevertDeleteBucket("bucket", first.bucket_id, first.epoch))
    assert kept.deleting and kept.epoch == second.epoch
    assert world.submit(c.FinishDeleteBucket("bucket", 77, 1)) is None


def test_two_deletions_at_once_both_end_well() -> None:
    world = World()
    one = c.delete_bucket("bucket", NOW)
    two = c.delete_bucket("bucket", NOW)
    step_one, step_two = next(one), next(two)
    for _ in range(2):
        step_one = one.send(world.submit(step_one))
        step_two = two.send(world.submit(step_two))
    for steps, step in ((one, step_one), (two, step_two)):
        with pytest.raises(StopIteration):
            while True:
                step = steps.send(world.submit(step))
    with pytest.raises(c.NoSuchBucket):
        world.ask(c.get_bucket("bucket"))


def test_settings_are_set_and_removed_without_a_new_epoch() -> None:
    world = World()
    epoch = world.bucket.epoch
    bucket = world.submit(c.SetBucketSetting("bucket", "cors", b"<doc/>"))
    assert bucket.settings == {"cors": b"<doc/>"} and bucket.epoch == epoch
    world.submit(c.SetBucketSetting("bucket", "tagging", b""))
    assert world.ask(c.get_bucket("bucket")).settings == {"cors": b"<doc/>", "tagging": b""}
    world.submit(c.SetBucketSetting("bucket", "cors", None))
    world.submit(c.SetBucketSetting("bucket", "cors", None))
    assert world.ask(c.get_bucket("bucket")).settings == {"tagging": b""}
    for n in range(31):
        world.submit(c.SetBucketSetting("bucket", f"s{n}", b""))
    with pytest.raises(c.InvalidBucketState):
        world.submit(c.SetBucketSetting("bucket", "one-more", b""))


def test_the_settings_of_a_bucket_fit_into_a_row_and_into_a_piece_of_a_snapshot() -> None:
    """32 of 64 KiB were taken: a row of 2 MiB, which no log record and no snapshot can hold."""
    world = World()
    large = bytes(64 * 1024)
    for n in range(8):
        world.submit(c.SetBucketSetting("bucket", f"s{n}", large))
    with pytest.raises(c.InvalidBucketState):
        world.submit(c.SetBucketSetting("bucket", "one-more", b"x"))
    world.submit(c.SetBucketSetting("bucket", "s0", None))
    world.submit(c.SetBucketSetting("bucket", "s1", b"smaller"))
    world.submit(c.SetBucketSetting("bucket", "one-more", large))
    row = world.node.rows.get(b"\x11bucket")
    assert len(row) + PIECE_BYTES < min(MAX_ROW_VALUE_BYTES, MAX_PIECE_BYTES)


def test_list_buckets_pages_by_name_and_prefix() -> None:
    node = MemoryNode()
    for name in ("b1", "a", "b2", "b3", "c"):
        make(node, name)
    make(node, "foreign", "other")
    page = node.query_now(c.list_buckets("owner", limit=2))
    assert ([b.name for b in page.buckets], page.next_after) == (["a", "b1"], "b1")
    page = node.query_now(c.list_buckets("owner", after="b1"))
    assert ([b.name for b in page.buckets], page.next_after) == (["b2", "b3", "c"], None)
    page = node.query_now(c.list_buckets("owner", prefix="b", after="b1", limit=1))
    assert ([b.name for b in page.buckets], page.next_after) == (["b2"], "b2")
    assert node.query_now(c.list_buckets("owner", prefix="b", after="c")).buckets == []
    assert node.query_now(c.list_buckets("own")).buckets == []


def test_a_page_of_buckets_does_not_hold_their_settings() -> None:
    """A thousand with 64 KiB of CORS rules and as many tags would take 128 MiB."""
    node = MemoryNode()
    for name in ("a", "b"):
        make(node, name)
        node.submit_now(c.SetBucketSetting(name, "cors", bytes(600 if name == "a" else 10)))
    page = node.query_now(c.list_buckets("owner"))
    assert [(b.name, b.region, b.settings) for b in page.buckets] == [
        ("a", "eu-1", {}),
        ("b", "eu-1", {}),
    ]
    assert [len(node.query_now(c.get_bucket(n)).settings["cors"]) for n in "ab"] == [600, 10]


def test_access_keys() -> None:
    node = MemoryNode()
    node.submit_now(c.PutAccessKey("k2", b"sealed", "owner", NOW))
    node.submit_now(c.PutAccessKey("k1", b"sealed", "owner", NOW, "Inactive"))
    node.submit_now(c.PutAccessKey("x", b"other", "other", NOW))
    key = node.query_now(c.get_access_key("k2"))
    assert key == c.AccessKey("k2", b"sealed", "owner", NOW, "Active")
    assert "sealed" not in repr(key)
    with pytest.raises(c.AccessKeyExists):
        node.submit_now(c.PutAccessKey("x", b"", "owner", NOW))
    node.submit_now(c.PutAccessKey("k2", b"new", "owner", NOW))
    page = node.query_now(c.list_access_keys("owner"))
    assert [(k.key_id, k.secret) for k in page.keys] == [("k1", b"sealed"), ("k2", b"new")]
    page = node.query_now(c.list_access_keys(None, limit=2))
    assert ([k.key_id for k in page.keys], page.next_after) == (["k1", "k2"], "k2")
    page = node.query_now(c.list_access_keys(None, after="k2"))
    assert ([k.key_id for k in page.keys], page.next_after) == (["x"], None)
    node.submit_now(c.RemoveAccessKey("k2"))
    with pytest.raises(c.NoSuchAccessKey):
        node.query_now(c.get_access_key("k2"))
    with pytest.raises(c.NoSuchAccessKey):
        node.submit_now(c.RemoveAccessKey("k2"))
    assert [k.key_id for k in node.query_now(c.list_access_keys("owner")).keys] == ["k1"]


def test_cluster_settings() -> None:
    node = MemoryNode()
    assert node.query_now(c.get_cluster_setting("id")) is None
    node.submit_now(c.SetClusterSetting("id", b"\x00"))
    assert node.query_now(c.get_cluster_setting("id")) == b"\x00"
    node.submit_now(c.SetClusterSetting("id", None))
    assert node.query_now(c.get_cluster_setting("id")) is None


def test_routes() -> None:
    world = World()
    catalog = world.node.catalog
    assert catalog.route(c.CreateBucket("b", "o", NOW)) == b""
    assert c.get_bucket("b").route == b""
    put = c.PutObject(1, 1, b"k", NOW, "o", 0, "0" * 32, bytes(32))
    head = c.head_version(1, b"k")
    delete = c.DeleteObjects(1, 1, NOW, "o", [c.DeleteItem(b"k")])
    assert catalog.route(put) == head.route == catalog.route(delete) != b""
    assert head.route.startswith(catalog.route(c.SyncBucket(1, 1, "", "active", NOW)))
    assert catalog.route(c.PurgeBucket(1, NOW)) != b""


@pytest.mark.parametrize(
    "make_command",
    [
        lambda bucket_id: c.BeginDeleteBucket("bucket", bucket_id),
        lambda bucket_id: c.SetBucketVersioning("bucket", "Enabled", bucket_id),
        lambda bucket_id: c.SetBucketSetting("bucket", "cors", b"x", bucket_id),
        lambda bucket_id: c.SetBucketSetting("bucket", "cors", None, bucket_id),
    ],
)
def test_a_change_of_one_bucket_is_not_made_to_its_successor(
    make_command: Callable[[int], c.Command],
) -> None:
    world = World()
    old = world.bucket.bucket_id
    world.node.drive_now(c.delete_bucket("bucket", NOW, old))
    new = make(world.node, "bucket", "somebody else").bucket
    assert new.bucket_id != old
    with pytest.raises(c.NoSuchBucket):
        world.submit(make_command(old))
    assert world.ask(c.get_bucket("bucket")) == new
    assert world.ask(c.pending_buckets()) == []
    world.submit(make_command(new.bucket_id))
