"""The cluster's own commands and rows."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from o3storage.cluster import RangeTable, _records
from o3storage.runtime.state_machine import Get, Outcome

ROUTE = b"\x20" + bytes(8) + b"key\x00\x00"
STREAM = bytes(range(16))


class Machine:
    def apply(self, data: bytes) -> Any:
        yield Get(b"\x20x")
        if data == b"fail":
            return Outcome(error=KeyError("refused"))
        return Outcome(data, None, [(b"\x20x", data)])


def run_apply(data: bytes, rows: dict[bytes, bytes] | None = None) -> Outcome:
    generator = _records.apply(Machine(), data)  # type: ignore[arg-type]
    try:
        read = next(generator)
        while True:
            assert isinstance(read, Get)
            read = generator.send((rows or {}).get(read.key))
    except StopIteration as stop:
        outcome: Outcome = stop.value
        return outcome


def carry(flags: int, command: bytes) -> bytes:
    return _records.encode_carry(
        flags, command, route=ROUTE, session=7, started_ns=9, stream=STREAM, frames=3
    )


def test_a_plain_command_is_the_state_machines() -> None:
    assert run_apply(b"put").rows == [(b"\x20x", b"put")]


def test_set_writes_only_what_is_not_there() -> None:
    data = _records.encode_set([(b"\xfe\x02", b"a"), (b"\xfe\x03k", b"b")])
    assert run_apply(data, {b"\xfe\x02": b"older"}).rows == [(b"\xfe\x03k", b"b")]
    with pytest.raises(ValueError, match="only the cluster's"):
        run_apply(_records.encode_set([(b"\x20", b"a")]))


def test_open_and_close() -> None:
    opened = run_apply(_records.encode_open(ROUTE, 7, 9, STREAM))
    ((key, value),) = opened.rows
    assert value is not None
    row = _records.unpack_stream_row(key, value)
    assert row == _records.OpenStream(key, ROUTE, STREAM, 7, 9)
    close = _records.encode_close([key], release=True)
    outcome = run_apply(close, {key: value})
    assert (outcome.rows, outcome.released) == ([(key, None)], [STREAM])
    assert run_apply(close).released == [], "closed before: nothing is released twice"
    kept = run_apply(_records.encode_close([key], release=False), {key: value})
    assert (kept.rows, kept.released) == ([(key, None)], [])


def test_a_carry_says_which_frames_it_names() -> None:
    found = _records.carried(carry(_records.OPEN_ON_ERROR, b"put"))
    assert found == _records.Carried(STREAM, 3, True, 7)
    assert _records.carried(carry(0, b"put")) == _records.Carried(STREAM, 3, False, 7)
    assert _records.carried(b"put") is None
    assert _records.carried(_records.encode_close([], release=True)) is None
    with pytest.raises(ValueError, match="cut short"):
        _records.carried(carry(0, b"")[:-1])


def test_an_entry_of_before_replication_applies_as_it_did() -> None:
    counted = carry(_records.CLOSE_ON_SUCCESS, b"put")
    at = counted.index(STREAM) + 16
    old = counted[:3] + bytes((_records.CLOSE_ON_SUCCESS,)) + counted[4:at] + counted[at + 4 :]
    assert run_apply(old).rows == run_apply(counted).rows
    assert _records.carried(old) == _records.Carried(STREAM, 0, False, 7)


def test_carry_closes_on_success_and_opens_on_error() -> None:
    key = _records.stream_key(ROUTE, STREAM)
    both = _records.CLOSE_ON_SUCCESS | _records.OPEN_ON_ERROR
    assert run_apply(carry(0, b"put")).rows == [(b"\x20x", b"put")]
    assert run_apply(carry(both, b"put")).rows == [(b"\x20x", b"put"), (key, None)]
    failed = run_apply(carry(both, b"fail"))
    assert isinstance(failed.error, KeyError)
    assert [k for k, _ in failed.rows] == [key]
    assert run_apply(carry(_records.CLOSE_ON_SUCCESS, b"fail")).rows == []


@given(st.binary(max_size=80))
def test_nothing_but_value_error_for_bytes_nobody_wrote(tail: bytes) -> None:
    for head in (
        b"\xff",
        b"\xff\x01",
        b"\xff\x01\x01",
        b"\xff\x01\x02",
        b"\xff\x01\x03",
        b"\xff\x01\x04",
    ):
        try:
            run_apply(head + tail)
        except ValueError:
            continue


@given(st.data())
def test_no_prefix_of_a_command_is_a_command(data: st.DataObject) -> None:
    whole = data.draw(
        st.sampled_from(
            [
                _records.encode_set([(b"\xfe\x02", b"abc")]),
                _records.encode_open(ROUTE, 7, 9, STREAM),
                _records.encode_close([b"\xfdkey"], release=True),
            ]
        )
    )
    cut = data.draw(st.integers(1, len(whole) - 1))
    with pytest.raises(ValueError):
        run_apply(whole[:cut])


def test_keys_of_epochs_and_nodes_go_both_ways() -> None:
    assert _records.split_epoch_key(_records.epoch_key(3, 99)) == (3, 99)
    assert _records.node_key(1) != _records.node_key(2)


def test_ranges_route_by_key_without_the_table_byte() -> None:
    table = RangeTable([(b"", 1), (b"m", 5), (b"t", 3)])
    assert table.group_of(b"") == 0
    for tail, group in (
        (b"", 1),
        (b"a", 1),
        (b"lz", 1),
        (b"m", 5),
        (b"sz", 5),
        (b"t", 3),
        (b"z", 3),
    ):
        for byte in (b"\x20", b"\x25", b"\xfd"):
            assert table.group_of(byte + tail) == group
    assert table.span(5)[:2] == (b"m", b"t")
    assert table.span(3)[:2] == (b"t", None)
    assert RangeTable([(b"", 1)]).group_of(b"\x20anything") == 1
    for wrong in ([], [(b"a", 1)], [(b"", 1), (b"", 2)], [(b"", 1), (b"b", 1)], [(b"", 0)]):
        with pytest.raises(ValueError):
            RangeTable(wrong)
