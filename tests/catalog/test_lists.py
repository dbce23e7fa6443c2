"""Rules of listings: seeks, markers, early ends, bounded reads. The model test covers contents."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o3storage import catalog as c
from o3storage.catalog import _read_lists, _read_uploads
from o3storage.catalog._limits import LIST_STEP_ROWS
from tests.catalog.making import ETAG, NOW, World
from tests.catalog.model import Bucket, Version


def fill(world: World, keys: list[bytes]) -> None:
    for number, key in enumerate(keys):
        world.put(key, number + 1)


def names(page: c.ListPage) -> list[bytes]:
    return [entry[0] for entry in page.entries]


def test_entry_fields() -> None:
    world = World()
    world.put(b"a", checksum=c.Checksum("CRC64NVME", "FULL_OBJECT", bytes(8)))
    upload = world.upload(b"b")
    world.part(upload, 1, 2, key=b"b")
    world.submit(world.completion(upload, [(1, 10)], b"b"))
    assert world.list().entries == [
        (b"a", NOW, ETAG, 5, "owner", "CRC64NVME", "FULL_OBJECT"),
        (b"b", NOW, f"{ETAG}-1", 10, "owner", "", ""),
    ]
    without = world.list(with_owner=False).entries
    assert [(entry[0], entry[4]) for entry in without] == [(b"a", ""), (b"b", "")]


def test_each_entry_has_its_own_owner() -> None:
    world = World()
    owners = ["one", "one", "two", "", "one", "", ""]
    for number, owner in enumerate(owners):
        world.put(b"%d" % number, number + 1, owner=owner)
    assert [entry[4] for entry in world.list().entries] == owners


def test_max_keys_zero_and_over_a_thousand() -> None:
    world = World()
    fill(world, [b"%04d" % n for n in range(1005)])
    page = world.list(max_keys=0)
    assert (page.entries, page.truncated) == ([], False)
    page = world.list(max_keys=5000)
    assert len(page.entries) == 1000 and page.truncated
    page = world.list(max_keys=5000, after=page.next_after)
    assert names(page) == [b"%04d" % n for n in range(1000, 1005)] and not page.truncated
    assert page.next_after == b""


def test_a_full_page_reads_one_row_more_in_steps() -> None:
    world = World()
    fill(world, [b"%04d" % n for n in range(1200)])
    rows = world.node.rows
    for limit in (10, 1000):
        rows.reads = rows.rows_read = 0
        assert len(world.list(max_keys=limit).entries) == limit
        scans = -(-(limit + 1) // LIST_STEP_ROWS)
        assert (rows.reads, rows.rows_read) == (scans, limit + 1)


@settings(max_examples=60, deadline=None)
@given(
    written=st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=25),
    delimiter=st.sampled_from([b"", b"/"]),
    limit=st.integers(1, 12),
    step=st.integers(1, 4),
)
def test_a_page_is_the_same_in_steps_of_any_size(
    written: list[tuple[int, bool]], delimiter: bytes, limit: int, step: int
) -> None:
    world = World("Enabled")
    for number, (key, gone) in enumerate(written):
        name = b"%d/%d" % (key % 3, key)
        if gone:
            world.delete(name)
        else:
            world.put(name, number)
            world.upload(name, number)
    parts = world.upload(b"parts", 99)
    for number in range(len(written)):
        world.part(parts, number + 1, 1000 + number, key=b"parts")
    at = world.bucket.bucket_id
    queries = [
        c.list_objects(at, b"", delimiter, max_keys=limit),
        c.list_versions(at, b"", delimiter, max_keys=limit),
        c.list_uploads(at, b"", delimiter, max_uploads=limit),
        c.list_parts(at, b"parts", parts, limit=limit),
    ]
    whole = [world.ask(query) for query in queries]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_read_lists, "LIST_STEP_ROWS", step)
        patch.setattr(_read_uploads, "LIST_STEP_ROWS", step)
        assert [world.ask(query) for query in queries] == whole


def test_exactly_max_keys_is_not_truncated() -> None:
    world = World()
    fill(world, [b"a", b"b"])
    assert not world.list(max_keys=2).truncated
    world.versioning("Enabled")
    world.put(b"c")
    world.delete(b"c")
    assert not world.list(max_keys=2).truncated, "what follows is hidden"


def test_a_marker_inside_a_common_prefix_skips_it() -> None:
    world = World()
    fill(world, [b"a/1", b"a/2", b"b", b"c/1"])
    for after in (b"a/", b"a/1", b"a/zzz"):
        page = world.list(delimiter=b"/", after=after)
        assert (page.common_prefixes, names(page)) == ([b"c/"], [b"b"])
    assert names(world.list(after=b"a/1")) == [b"a/2", b"b", b"c/1"]
    assert world.list(delimiter=b"/", after=b"a.").common_prefixes == [b"a/", b"c/"]


def test_a_delimiter_of_several_characters_and_inside_the_prefix() -> None:
    world = World()
    fill(world, [b"x--a--1", b"x--a--2", b"x--b", b"x-c"])
    page = world.list(delimiter=b"--", prefix=b"x--")
    assert (page.common_prefixes, names(page)) == ([b"x--a--"], [b"x--b"])
    page = world.list(delimiter=b"--")
    assert (page.common_prefixes, names(page)) == ([b"x--"], [b"x-c"])
    page = world.list(delimiter=b"-", prefix=b"x-")
    assert page.common_prefixes == [b"x--"] and names(page) == [b"x-c"]


def test_common_prefixes_are_passed_by_seeks_not_scans() -> None:
    world = World()
    fill(world, [b"%02d/%03d" % (n, m) for n in range(50) for m in range(100)])
    rows = world.node.rows
    rows.rows_read = rows.reads = 0
    page = world.list(delimiter=b"/")
    assert page.common_prefixes == [b"%02d/" % n for n in range(50)]
    assert rows.rows_read < 50 * 6 + 64
    assert rows.reads <= 52


def test_many_versions_of_a_key_are_passed_by_a_seek() -> None:
    world = World("Enabled")
    for n in range(3000):
        world.put(b"a", n)
    world.put(b"b")
    rows = world.node.rows
    rows.rows_read = 0
    assert names(world.list(max_keys=10)) == [b"a", b"b"]
    assert rows.rows_read < 50


def test_a_page_of_hidden_keys_ends_early_with_a_marker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_read_lists, "MAX_EXAMINED", 10)
    world = World("Enabled")
    for n in range(25):
        world.delete(b"a/%02d" % n)
    world.put(b"a/99")
    world.put(b"b")
    rows = world.node.rows
    for delimiter, expected in ((b"", ([], [b"a/99", b"b"])), (b"/", ([b"a/"], [b"b"]))):
        after, pages, groups, keys = b"", 0, [], []
        while True:
            rows.rows_read = 0
            page = world.list(delimiter=delimiter, after=after)
            assert rows.rows_read <= 10
            pages += 1
            groups += page.common_prefixes
            keys += names(page)
            if not page.truncated:
                break
            assert page.next_after > after
            after = page.next_after
        assert (groups, keys) == expected
        assert pages >= 3


listed_keys = st.lists(
    st.one_of(
        st.text("ab/-", min_size=1, max_size=5),
        st.builds("{}/{}".format, st.sampled_from("ab"), st.text("ab/-", max_size=4)),
    ).map(str.encode),
    unique=True,
    max_size=30,
)


@settings(max_examples=150, deadline=None)
@given(
    keys=listed_keys,
    hidden=st.sets(st.integers(0, 30)),
    delimiter=st.sampled_from([b"", b"/", b"-/", b"a"]),
    prefix=st.sampled_from([b"", b"a", b"a/", b"-"]),
    examined=st.integers(3, 12),
    limit=st.integers(1, 7),
)
def test_pages_that_end_early_miss_and_repeat_nothing(  # noqa: PLR0917
    keys: list[bytes],
    hidden: set[int],
    delimiter: bytes,
    prefix: bytes,
    examined: int,
    limit: int,
) -> None:
    world = World("Enabled")
    model = Bucket()
    for number, key in enumerate(keys):
        gone = number in hidden
        for _ in range(1 + number % 3):
            world.put(key, 1)
        if gone:
            world.delete(key)
        model.keys[key] = [Version(1, False, gone, NOW, "owner")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_read_lists, "MAX_EXAMINED", examined)
        after, found, groups = b"", [], []
        for _ in range(200):
            page = world.list(prefix=prefix, delimiter=delimiter, after=after, max_keys=limit)
            found += names(page)
            groups += page.common_prefixes
            assert len(page.entries) + len(page.common_prefixes) <= limit
            if not page.truncated:
                break
            after = page.next_after
    assert (found, groups) == model.list(prefix, delimiter, b"", 1000)[:2]


def test_a_page_that_ends_early_behind_a_common_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_read_lists, "MAX_EXAMINED", 3)
    world = World()
    fill(world, [b"a/1", b"a/2", b"a/3", b"a/4", b"b"])
    page = world.list(delimiter=b"/")
    assert (page.common_prefixes, page.truncated) == ([b"a/"], True)
    page = world.list(delimiter=b"/", after=page.next_after)
    assert (page.common_prefixes, names(page), page.truncated) == ([], [b"b"], False)


def test_a_marker_outside_the_prefix() -> None:
    world = World()
    fill(world, [b"a", b"b/1", b"b/2", b"c"])
    assert names(world.list(prefix=b"b", after=b"a")) == [b"b/1", b"b/2"]
    assert names(world.list(prefix=b"b", after=b"c")) == []
    assert names(world.list(prefix=b"b/", after=b"b/1")) == [b"b/2"]


def test_keys_of_highest_bytes_and_other_buckets_stay_apart() -> None:
    world = World()
    other = world.node.drive_now(c.create_bucket(c.CreateBucket("other", "owner", NOW))).bucket
    fill(world, [b"\xff", b"\xff\xff", b"\xff\xff\x00"])
    first = world.bucket
    world.bucket = other
    fill(world, [b"\x01"])
    assert names(world.list()) == [b"\x01"]
    world.bucket = first
    assert names(world.list(prefix=b"\xff\xff")) == [b"\xff\xff", b"\xff\xff\x00"]
    assert names(world.list(after=b"\xff")) == [b"\xff\xff", b"\xff\xff\x00"]


def versions(world: World, **fields: Any) -> c.VersionsPage:
    return world.ask(c.list_versions(world.bucket.bucket_id, **fields))


def test_a_version_marker_that_is_gone_still_marks_its_place() -> None:
    world = World("Enabled")
    orders = [world.put(number=n).order for n in range(4)]
    world.delete(version=orders[2])
    world.delete(version=orders[3])
    page = versions(world, key_marker=b"k", version_marker=orders[2])
    assert [(e[1], e[3]) for e in page.entries] == [(orders[1], True), (orders[0], False)]
    page = versions(world, key_marker=b"k", version_marker=orders[1])
    assert [(e[1], e[3]) for e in page.entries] == [(orders[0], False)]


def test_the_null_version_as_a_version_marker() -> None:
    world = World("Suspended")
    world.put(number=1)
    world.versioning("Enabled")
    world.put(number=2)
    page = versions(world, max_keys=2)
    assert not page.truncated
    page = versions(world, max_keys=1)
    assert page.truncated and page.next_version_marker > 0
    order = page.next_version_marker
    page = versions(world, max_keys=1, key_marker=b"k", version_marker=order)
    assert [e[2] for e in page.entries] == [True] and not page.truncated
    page = versions(world, key_marker=b"k", version_marker=c.NULL)
    assert page.entries == []


def test_versions_without_a_version_marker_skip_the_key_marker() -> None:
    world = World("Enabled")
    fill(world, [b"a", b"a", b"b"])
    page = versions(world, key_marker=b"a")
    assert [e[0] for e in page.entries] == [b"b"]


def test_bucket_is_empty() -> None:
    world = World()
    assert world.ask(c.bucket_is_empty(world.bucket.bucket_id))
    world.upload()
    assert world.ask(c.bucket_is_empty(world.bucket.bucket_id))
    world.put()
    assert not world.ask(c.bucket_is_empty(world.bucket.bucket_id))


def test_uploads_of_one_key_are_listed_by_time_of_initiation() -> None:
    world = World()
    ids = []
    for number in (9, 3, 7):
        ids.append(world.upload(number=number))
        world.node.now_ns += 1
    page = world.ask(c.list_uploads(world.bucket.bucket_id))
    assert [entry[1] for entry in page.entries] == ids
    assert page.entries[0] == (b"k", ids[0], NOW, "owner", "", "")


def test_a_page_of_completed_uploads_ends_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_read_uploads, "MAX_EXAMINED", 6)
    world = World()
    for number in range(15):
        key = b"a/%02d" % number
        upload = world.upload(key, number)
        world.part(upload, 1, number, key=key)
        world.submit(world.completion(upload, [(1, 10)], key))
    last = world.upload(b"a/99", 99)
    marker, upload_marker, groups = b"", b"", []
    for _ in range(10):
        page = world.ask(
            c.list_uploads(
                world.bucket.bucket_id, b"", b"/",
                key_marker=marker, upload_marker=upload_marker,
            )
        )  # fmt: skip
        groups += page.common_prefixes
        if not page.truncated:
            break
        marker, upload_marker = page.next_key_marker, page.next_upload_marker
    assert groups == [b"a/"]
    marker, upload_marker, found = b"", b"", []
    for _ in range(10):
        page = world.ask(
            c.list_uploads(world.bucket.bucket_id, key_marker=marker, upload_marker=upload_marker)
        )
        found += page.entries
        if not page.truncated:
            break
        marker, upload_marker = page.next_key_marker, page.next_upload_marker
    assert [entry[1] for entry in found] == [last]


def test_an_early_end_between_uploads_of_one_key_loses_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_read_uploads, "MAX_EXAMINED", 2)
    world = World()
    for number in range(1, 6):
        upload = world.upload(b"a/k", number)
        world.part(upload, 1, number, key=b"a/k")
        world.submit(world.completion(upload, [(1, 10)], b"a/k"))
    world.upload(b"a/k", 9)
    marker, upload_marker, groups = b"", b"", []
    for _ in range(10):
        page = world.ask(
            c.list_uploads(
                world.bucket.bucket_id, b"", b"/",
                key_marker=marker, upload_marker=upload_marker,
            )
        )  # fmt: skip
        groups += page.common_prefixes
        if not page.truncated:
            break
        marker, upload_marker = page.next_key_marker, page.next_upload_marker
    assert groups == [b"a/"]
