"""Listings whose pages end where ranges end, put together, are the listing of one range."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from o3storage import catalog as c
from o3storage.catalog import _read_lists, _read_uploads
from o3storage.catalog._keys import TABLE_VERSION, keyed
from o3storage.cluster._bounded import within
from o3storage.cluster._range_rows import Span
from tests.catalog.making import World

_KEYS = ["a", "a/", "a/a", "a/b", "a/b/a", "a/b/b", "a/é", "ab", "b", "b/a", "b/b", "é", "é/a"]
KEYS = st.sampled_from([key.encode() for key in _KEYS])
PREFIXES = st.sampled_from([b"", b"", b"", b"a", b"a/", b"b/", b"c"])
DELIMITERS = st.sampled_from([b"", b"/", b"/", b"a/", b"\xc3\xa9"])


class Ranges:
    """Rows of one node, answered as by ranges that are cut at some keys."""

    def __init__(self, world: World, cuts: list[bytes]) -> None:
        self.world = world
        rows = [keyed(TABLE_VERSION, world.bucket.bucket_id, cut)[1:] for cut in sorted(set(cuts))]
        self.bounds = [b"", *rows]

    def ask(self, query: Any) -> Any:
        at = bisect_right(self.bounds, query.route[1:]) - 1
        low = self.bounds[at]
        high = self.bounds[at + 1] if at + 1 < len(self.bounds) else None
        span = Span(low, high)
        return self.world.node.rows.query(lambda: within(query(high), span))


def make(world: World, actions: list[tuple[bytes, int]]) -> None:
    for number, (key, action) in enumerate(actions, 1):
        if action == 3:
            world.upload(key, number)
        elif action:
            world.put(key, number)
        else:
            world.delete(key)


@example(  # A page that ends among the delete markers of a prefix that lives.
    "Enabled", [(b"a/a", 0), (b"a/b", 0), (b"a/b/a", 1)], [], b"", b"/", b"", 5, 2
)
@settings(max_examples=250, deadline=None)
@given(
    versioning=st.sampled_from(["", "Enabled", "Enabled", "Suspended"]),
    actions=st.lists(st.tuples(KEYS, st.sampled_from([0, 0, 1, 2, 3])), max_size=25),
    cuts=st.lists(KEYS, max_size=5),
    prefix=PREFIXES,
    delimiter=DELIMITERS,
    after=st.one_of(st.just(b""), st.just(b""), KEYS),
    size=st.integers(1, 5),
    examined=st.sampled_from([2, 3, 7, 10_000]),
)
def test_pages_of_many_ranges_are_those_of_one(  # noqa: PLR0917
    versioning: str,
    actions: list[tuple[bytes, int]],
    cuts: list[bytes],
    prefix: bytes,
    delimiter: bytes,
    after: bytes,
    size: int,
    examined: int,
) -> None:
    world = World(versioning)
    make(world, actions)
    bucket = world.bucket.bucket_id
    ranges = Ranges(world, cuts)
    whole = world.ask(c.list_objects(bucket, prefix, delimiter, after))
    whole_versions = world.ask(c.list_versions(bucket, prefix, delimiter, key_marker=after))
    whole_uploads = world.ask(c.list_uploads(bucket, prefix, delimiter, key_marker=after))
    limit = 4 * len(actions) + 10
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_read_lists, "MAX_EXAMINED", examined)
        patch.setattr(_read_uploads, "MAX_EXAMINED", examined)
        for v1 in (False, True):
            entries, groups, marker = [], [], after
            for _ in range(limit):
                page = ranges.ask(c.list_objects(bucket, prefix, delimiter, marker, size))
                assert len(page.entries) + len(page.common_prefixes) <= size
                entries += page.entries
                groups += page.common_prefixes
                if not page.truncated:
                    break
                marker = page.next_after
                if v1 and not delimiter and page.entries:
                    marker = page.entries[-1][0]
            else:
                raise AssertionError("no end")
            assert entries == whole.entries and groups == whole.common_prefixes
        found: list[Any] = []
        groups, marker, version = [], after, None
        for _ in range(limit):
            page = ranges.ask(
                c.list_versions(
                    bucket,
                    prefix,
                    delimiter,
                    key_marker=marker,
                    version_marker=version,
                    max_keys=size,
                )
            )
            assert len(page.entries) + len(page.common_prefixes) <= size
            found += page.entries
            groups += page.common_prefixes
            if not page.truncated:
                break
            marker, version = page.next_key_marker, page.next_version_marker or None
        else:
            raise AssertionError("no end")
        assert found == whole_versions.entries and groups == whole_versions.common_prefixes
        found, groups, marker, upload = [], [], after, b""
        for _ in range(limit):
            page = ranges.ask(
                c.list_uploads(
                    bucket,
                    prefix,
                    delimiter,
                    key_marker=marker,
                    upload_marker=upload,
                    max_uploads=size,
                )
            )
            assert len(page.entries) + len(page.common_prefixes) <= size
            found += page.entries
            groups += page.common_prefixes
            if not page.truncated:
                break
            marker, upload = page.next_key_marker, page.next_upload_marker
        else:
            raise AssertionError("no end")
        assert found == whole_uploads.entries and groups == whole_uploads.common_prefixes
