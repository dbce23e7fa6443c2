"""Row keys keep the order of what they are made of."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from o3storage import catalog as c
from o3storage.catalog import _keys as k

names = st.one_of(
    st.binary(max_size=12), st.lists(st.sampled_from(b"\x00\x01a\xfe\xff"), max_size=6).map(bytes)
)
ids = st.integers(0, (1 << 64) - 1)
orders = st.integers(0, (1 << 63) - 1)


@given(names, names)
def test_escape_keeps_order_and_is_never_a_prefix(one: bytes, two: bytes) -> None:
    assert (k.escape(one) < k.escape(two)) == (one < two)
    assert (k.escape(one) == k.escape(two)) == (one == two)
    if one != two:
        assert not k.escape(two).startswith(k.escape(one))


@given(names)
def test_unescape_undoes_escape(name: bytes) -> None:
    assert k.unescape(k.escape_open(name)) == name
    assert k.escape(name) == k.escape_open(name) + k.END


@given(names)
def test_unescape_refuses_what_no_escape_wrote(text: bytes) -> None:
    try:
        plain = k.unescape(text)
    except ValueError:
        return
    assert k.escape_open(plain) == text


@given(names, names)
def test_open_escape_keeps_prefixes(prefix: bytes, rest: bytes) -> None:
    assert k.escape_open(prefix + rest).startswith(k.escape_open(prefix))


@given(st.tuples(ids, names, orders), st.tuples(ids, names, orders))
def test_version_rows_sort_by_bucket_key_then_newest_first(
    one: tuple[int, bytes, int], two: tuple[int, bytes, int]
) -> None:
    left, right = (one[0], one[1], -one[2]), (two[0], two[1], -two[2])
    assert (k.version_row(*one) < k.version_row(*two)) == (left < right)


@given(names, st.binary(max_size=8))
def test_after_prefix_is_the_end_of_a_prefix(prefix: bytes, rest: bytes) -> None:
    prefix = b"\x20" + prefix
    end = k.after_prefix(prefix)
    assert prefix + rest < end
    assert not end.startswith(prefix)
    stripped = end[:-1] + bytes((end[-1] - 1,))
    assert prefix.startswith(stripped)


@given(ids, names, orders, st.binary(min_size=16, max_size=16))
def test_prefix_length_covers_the_escaped_key(
    bucket_id: int, key: bytes, order: int, subject: bytes
) -> None:
    length = len(k.keyed(k.TABLE_VERSION, bucket_id, key))
    for row in (
        k.version_row(bucket_id, key, order),
        k.upload_row(bucket_id, key, subject),
        k.part_row(bucket_id, key, subject, 77),
        k.chore_row(bucket_id, key, 1, subject),
        k.abandoned_row(bucket_id, key, subject),
        k.keyed(k.TABLE_NULL, bucket_id, key),
    ):
        assert c.prefix_length(row) == length
        assert k.split_keyed(row) == (bucket_id, key, row[length:])
    for row in (k.named(k.TABLE_BUCKET, key), k.range_row(1, 2, 3), b""):
        assert c.prefix_length(row) == len(row)


@given(st.binary(max_size=30))
def test_split_of_random_bytes(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        k.split_keyed(data)
    c.prefix_length(data)


def test_tables_are_above_those_of_the_storage_engine() -> None:
    tables = [value for name, value in vars(k).items() if name.startswith("TABLE_")]
    assert len(set(tables)) == len(tables) and min(tables) >= 0x10


def test_one_split_key_cuts_all_tables() -> None:
    """All rows of a smaller key are below, all of a greater one above, in every keyed table."""
    for table in (k.TABLE_VERSION, k.TABLE_NULL, k.TABLE_UPLOAD, k.TABLE_PART, k.TABLE_CHORE):
        split = k.keyed(table, 1, b"m")
        assert k.keyed(table, 1, b"lz") + b"\xff" * 20 < split < k.keyed(table, 1, b"m\x00")


def test_row_of_an_oldest_slot() -> None:
    assert k.slot(0) == k.OLDEST_SLOT
    with pytest.raises(ValueError):
        k.unescape(b"a\x00b")
