"""The codec of the peer protocol: what was encoded comes back; what nobody wrote is refused."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o3storage.cluster import _wire as wire
from o3storage.cluster._wire import Hello, Unit, WireError
from o3storage.raft import core as raft
from o3storage.runtime.network import Address
from o3storage.storage import SealedFrame

ME, SENDER = 7, 9

u64 = st.integers(0, 2**64 - 1)
u32 = st.integers(0, 2**32 - 1)
positive = st.integers(1, 2**63)
flag = st.booleans()
data = st.binary(max_size=200)
frames = st.lists(
    st.builds(
        lambda stream, number, last, sealed: SealedFrame(
            stream, number, last, len(sealed) - 16, sealed
        ),
        st.binary(min_size=16, max_size=16),
        u32,
        flag,
        st.binary(min_size=17, max_size=300),
    ),
    max_size=3,
)


@st.composite
def entries(draw: Any, above: int) -> list[raft.Entry]:
    terms = draw(st.lists(st.tuples(positive, st.integers(0, 3), data), max_size=4))
    return [
        raft.Entry(above + 1 + at, term, kind, body) for at, (term, kind, body) in enumerate(terms)
    ]


@st.composite
def appends(draw: Any) -> raft.Append:
    previous = draw(st.integers(0, 2**40))
    found = draw(entries(previous))
    return raft.Append(SENDER, ME, draw(u64), previous, draw(u64), found, draw(u64), draw(u64))


@st.composite
def hole_answers(draw: Any) -> raft.HoleAnswer:
    low = draw(st.integers(1, 2**40))
    return raft.HoleAnswer(SENDER, ME, draw(u64), low, draw(flag), draw(entries(low - 1)))


def made(kind: Any, *fields: Any) -> Any:
    return st.builds(kind, st.just(SENDER), st.just(ME), u64, *fields)


configurations = st.lists(positive, min_size=1, max_size=7, unique=True).map(
    lambda ids: raft.Configuration(tuple(sorted(ids)))
)
plain = st.one_of(
    made(raft.VoteRequest, u64, u64, flag, flag),
    made(raft.VoteResponse, flag, flag),
    made(raft.AppendResponse, u64, u64, flag, u64, u64, u64, u64, flag, u64, u64),
    made(raft.Heartbeat, u64, u64, flag),
    made(raft.HeartbeatResponse, u64, flag, u64),
    made(raft.SnapshotPiece, u64, u64, configurations, u64, data, flag),
    made(raft.SnapshotResponse, u64, u64, flag),
    made(raft.TimeoutNow),
    made(raft.ReadRequest, st.integers(0, (1 << 63) - 1), flag),
    made(raft.ReadResponse, u64, u64),
    made(raft.HoleQuery, u64, u64),
)
messages = st.one_of(
    st.tuples(plain, st.just([])),
    st.tuples(appends(), frames),
    st.tuples(hole_answers(), frames),
)


def encoded(group: int, message: raft.Message, with_frames: Any = ()) -> bytes:
    out: list[Any] = []
    size = wire.encode_message(group, message, with_frames, out)
    unit = b"".join(out)
    assert len(unit) == size
    return unit


def body_of(unit: bytes) -> memoryview:
    [(kind, body)] = wire.split_units(memoryview(b"\1" + unit))
    assert kind == Unit.MESSAGE
    return body


@given(u32, messages)
def test_messages_come_back(group: int, sent: Any) -> None:
    message, riding = sent
    body = body_of(encoded(group, message, riding))
    assert wire.decode_message(body, SENDER, ME) == (group, message, riding)


def test_every_message_of_the_core_has_a_codec() -> None:
    # (By name: a dataclass with slots is a second class beside the one that was written.)
    kinds = {kind.__name__ for kind in raft.Message.__subclasses__()}
    coded = [*wire._ENCODERS, raft.Append, raft.HoleAnswer]
    assert kinds == {kind.__name__ for kind in coded}
    assert len(wire._DECODERS) == len(kinds)


@given(messages, st.data())
def test_no_message_is_read_from_a_part_of_one(sent: Any, draw: Any) -> None:
    message, riding = sent
    body = body_of(encoded(1, message, riding))
    cut = draw.draw(st.integers(0, len(body) - 1))
    try:
        found = wire.decode_message(body[:cut], SENDER, ME)
    except WireError:
        return
    # A piece of a snapshot ends where its unit does: it is the unit that has a length.
    assert (
        isinstance(message, raft.SnapshotPiece) and found[1].data == message.data[: cut - len(body)]
    )


@given(messages, st.binary(min_size=1, max_size=8))
def test_nothing_follows_a_message(sent: Any, more: bytes) -> None:
    message, riding = sent
    body = memoryview(bytes(body_of(encoded(1, message, riding))) + more)
    if isinstance(message, raft.SnapshotPiece):
        return
    with pytest.raises(WireError):
        wire.decode_message(body, SENDER, ME)


@settings(max_examples=300)
@given(messages, st.data())
def test_damaged_messages_are_refused_or_whole(sent: Any, draw: Any) -> None:
    message, riding = sent
    made = bytearray(body_of(encoded(1, message, riding)))
    for _ in range(draw.draw(st.integers(1, 3))):
        made[draw.draw(st.integers(0, len(made) - 1))] = draw.draw(st.integers(0, 255))
    try:
        group, found, with_frames = wire.decode_message(memoryview(made), SENDER, ME)
    except WireError:
        return
    assert bytes(body_of(encoded(group, found, with_frames))) == bytes(made)


def test_counts_that_promise_more_than_there_is() -> None:
    append = raft.Append(SENDER, ME, 1, 0, 0, [], 0)
    body = bytearray(body_of(encoded(1, append)))
    for at in (len(body) - 8, len(body) - 4):
        large = bytearray(body)
        struct.pack_into(">I", large, at, 0xFFFFFFFF)
        with pytest.raises(WireError, match="more"):
            wire.decode_message(memoryview(large), SENDER, ME)


def test_entries_with_a_gap_or_out_of_order() -> None:
    for indexes in ((5, 7), (6, 5), (5, 5), (4, 5)):
        entries = [raft.Entry(index, 1, 0, b"") for index in indexes]
        append = raft.Append(SENDER, ME, 1, 4, 1, entries, 0)
        with pytest.raises(WireError):
            wire.decode_message(body_of(encoded(1, append)), SENDER, ME)


def test_frames_ride_with_entries_only() -> None:
    frame = SealedFrame(bytes(16), 0, True, 1, bytes(17))
    with pytest.raises(ValueError, match="carries no frames"):
        encoded(1, raft.TimeoutNow(SENDER, ME, 1), [frame])
    frame.plain_size = 2
    with pytest.raises(ValueError, match="not as long"):
        encoded(1, raft.Append(SENDER, ME, 1, 0, 0, [], 0), [frame])


def test_a_message_has_a_largest_size() -> None:
    entry = raft.Entry(1, 1, 0, bytes(wire.MAX_UNIT_BYTES))
    with pytest.raises(ValueError, match="at most"):
        encoded(1, raft.Append(SENDER, ME, 1, 0, 0, [entry], 0))


hellos = st.builds(
    Hello,
    st.binary(max_size=32),
    st.integers(0, 255),
    st.lists(
        st.builds(
            Address, st.sampled_from(["10.0.0.1", "::1", "fe80::1%eth0"]), st.integers(0, 65535)
        ),
        max_size=16,
    ).map(tuple),
    st.binary(max_size=512),
    st.integers(1, 2**64 - 1),
    u64,
    st.integers(0, 2),
    u64,
    st.just(1),
    st.integers(1, 255),
)


@given(hellos, st.binary(max_size=20))
def test_hellos_come_back(hello: Hello, later: bytes) -> None:
    """Also with bytes behind them, which a later version adds."""
    body = wire.encode_hello(hello)
    assert len(body) <= wire.MAX_HELLO_BYTES
    assert wire.decode_hello(memoryview(body + later)) == hello
    for cut in range(0, len(body), 7):
        with pytest.raises(WireError):
            wire.decode_hello(memoryview(body[:cut]))


def test_hellos_that_break_a_rule() -> None:
    good = wire.encode_hello(Hello(node=1))
    for bad, why in (
        (b"GET /" + good, "not O3Storage"),
        (good[:4] + b"\0\1" + good[6:], "impossible versions"),
        (good[:4] + b"\3\2" + good[6:], "impossible versions"),
        (wire.encode_hello(Hello(node=0)), "limit"),
        (wire.encode_hello(Hello(node=1, lane=3)), "limit"),
        (good + bytes(wire.MAX_HELLO_BYTES), "size"),
    ):
        with pytest.raises(WireError, match=why):
            wire.decode_hello(memoryview(bad))
    for hello in (
        Hello(node=1, cluster=bytes(33)),
        Hello(node=1, proof=bytes(513)),
        Hello(node=1, addresses=(Address("1.1.1.1", 1),) * 17),
        Hello(node=1, addresses=(Address("1" * 65, 1),)),
    ):
        with pytest.raises(ValueError):
            wire.encode_hello(hello)


@given(st.lists(st.tuples(st.integers(0, 255), data), min_size=1, max_size=5), st.data())
def test_units_come_back(units: list[tuple[int, bytes]], draw: Any) -> None:
    frame = b"\1" + b"".join(wire.pack_unit(kind, len(body)) + body for kind, body in units)
    assert wire.split_units(memoryview(frame)) == units
    ends = [0]
    for _, body in units:
        ends.append(ends[-1] + wire.UNIT_HEAD_BYTES + len(body))
    cut = draw.draw(st.integers(0, len(frame) - 1))
    if cut - 1 not in ends[1:]:
        with pytest.raises(WireError):
            wire.split_units(memoryview(frame[:cut]))


def test_texts_are_short_and_printable() -> None:
    long = wire.text_bytes("é" * 600)
    assert len(long) == wire.MAX_TEXT_BYTES
    assert wire.text_of(memoryview(long)) == "é" * 256
    assert "\x1b" not in wire.text_of(memoryview(b"a\x1b[2J"))
    with pytest.raises(WireError):
        wire.text_of(memoryview(bytes(513)))
