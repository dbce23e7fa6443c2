"""Queries and answers as bytes. That every query and every answer of the catalog comes back as it was
is held by `executor.Rows`, through which all tests of the catalog go."""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from o3storage import catalog as c
from o3storage.catalog import _errors, _queries, _read_system, _types, _values

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 64), 1 << 64),
    st.binary(max_size=30),
    st.text(st.characters(), max_size=10),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.text(max_size=4), inner, max_size=3),
    ),
    max_leaves=12,
)


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value
    if not isinstance(value, list | tuple | dict):
        return 0
    return 1 + max([_depth(item) for item in inner], default=0)


@given(values.filter(lambda value: _depth(value) < _values.MAX_DEPTH))
def test_values_come_back_as_they_were(value: Any) -> None:
    got, error = _values.decode_answer(_values.encode_answer(value, None))
    assert error is None
    assert got == value
    assert repr(got) == repr(value)  # (True is not 1, a list no tuple)


@given(st.binary(max_size=80))
def test_bytes_that_nobody_wrote_are_refused_or_mean_something(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        _values.decode_answer(data)
    with contextlib.suppress(ValueError):
        _values.decode_query(data)


@given(values.filter(lambda value: _depth(value) < _values.MAX_DEPTH), st.data())
def test_what_is_cut_short_is_refused(value: Any, data: st.DataObject) -> None:
    whole = _values.encode_answer(value, None)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(ValueError, match=r"cut short|nobody wrote"):
        _values.decode_answer(whole[:cut])
    with pytest.raises(ValueError, match=r"bytes behind|nobody wrote"):
        _values.decode_answer(whole + b"\x00")


def test_too_deep_and_too_long_are_refused() -> None:
    deep: Any = 1
    for _ in range(_values.MAX_DEPTH + 1):
        deep = [deep]
    with pytest.raises(ValueError, match="too deep"):
        _values.decode_answer(_values.encode_answer(deep, None))
    many = bytes((_values.LIST,)) + (_values.MAX_ITEMS + 1).to_bytes(4, "big")
    with pytest.raises(ValueError, match="too long"):
        _values.decode_answer(bytes((_values.TUPLE, 0, 0, 0, 2)) + many)


def test_every_type_of_an_answer_and_every_query_of_a_key_range_has_a_number() -> None:
    """One that is added and forgotten there would work on nodes with a replica only."""
    errors = {kind for kind, _ in _values._ERRORS}
    for _, kind in inspect.getmembers(_errors, inspect.isclass):
        assert kind in errors or not issubclass(kind, c.CatalogError)
    records = set(_values._RECORDS)
    for _, kind in inspect.getmembers(_types, inspect.isclass):
        if kind.__module__ == _types.__name__:
            assert kind in records or kind is _types.WriteCondition
    known = set(_values._FUNCTIONS)
    made = (
        c.head_version(1, b"k"),
        c.list_objects(1),
        c.list_versions(1),
        c.bucket_is_empty(1),
        c.get_upload(1, b"k", b"u"),
        c.list_uploads(1),
        c.list_parts(1, b"k", b"u"),
        c.get_part(1, b"k", b"u", 1),
        c.counts(),
        c.range_bucket_epoch(1),
        c.chores(1),
        c.is_abandoned(1, b"k", b"s"),
    )
    assert {query.parts[0] for query in made} <= known
    public = [name for name, _ in inspect.getmembers(_queries, inspect.isfunction)]
    of_range_0 = [function for function in vars(_read_system).values() if callable(function)]
    for name in public:
        function = next((f for f in known if f.__name__ == name), None)
        of_0 = any(getattr(f, "__name__", "") == name for f in of_range_0)
        assert function is not None or of_0 or name in {"bucket_prefix", "keyed"}, name


def test_a_query_of_range_0_and_strange_values_are_not_sent() -> None:
    with pytest.raises(ValueError, match="not a query of a key range"):
        _values.encode_query(c.get_bucket("b"))
    with pytest.raises(ValueError, match="no value of an answer"):
        _values.encode_answer(object(), None)
    with pytest.raises(ValueError, match="no value of an answer"):
        _values.encode_answer(None, RuntimeError("x"))


def test_the_bytes_do_not_change() -> None:
    """Nodes of several releases speak to each other."""
    assert _values.encode_query(c.head_version(1, b"k")).hex() == (
        "00000700000003040000000c2000000000000000016b000000070000000403010104000000016b0001"
    )
    assert _values.encode_answer(c.StepResult(True), None).hex() == "0700000002090f0200"
    assert _values.encode_answer(None, c.NoSuchKey(b"k", 5)).hex() == (
        "0700000002000b08070000000304000000016b03010501"
    )
