"""The chunked decoder under arbitrary splits, against the slow plain model."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o3storage.http import BadChunk, Headers
from o3storage.http._chunked import ChunkedDecoder
from tests.http.head_model import model_chunked, random_chunked


def decode(
    data: bytes, rng: random.Random | None = None
) -> tuple[bytes, list[tuple[str, str]] | None, int] | None:
    """(content, trailers, bytes used) if the stream is whole, None if it is not. Raises BadChunk."""
    decoder = ChunkedDecoder()
    content = bytearray()
    at = 0
    while at < len(data) and not decoder.ended:
        piece = memoryview(data)[at : at + (rng.choice((1, 2, 3, 17, 4000)) if rng else len(data))]
        while len(piece) and not decoder.ended:
            room = rng.choice((0, 1, 2, 100, 5000)) if rng else 100_000
            view = memoryview(bytearray(room))
            used, filled = decoder.decode(piece, view)
            assert used <= len(piece)
            assert filled <= room
            content += view[:filled]
            at += used
            piece = piece[used:]
    if not decoder.ended:
        return None
    trailers = decoder.trailers
    return bytes(content), None if trailers is None else list(trailers), at


def bad(data: bytes) -> None:
    with pytest.raises(BadChunk):
        decode(data)
    with pytest.raises(BadChunk):
        decode(data, random.Random(0))


def test_plain() -> None:
    assert decode(b"5\r\nhello\r\n00A;x=y\r\n0123456789\r\n0\r\n\r\nNEXT") == (
        b"hello0123456789",
        None,
        36,
    )


def test_trailers() -> None:
    found = decode(b"1\r\nx\r\n0\r\nX-Amz-Checksum-CRC32: AAAA==\r\nB: c\r\n\r\n")
    assert found is not None
    assert found[1] == [("x-amz-checksum-crc32", "AAAA=="), ("b", "c")]


def test_seventeen_digits() -> None:
    assert decode(b"0000000000000001\r\nx\r\n0\r\n\r\n") is not None
    bad(b"00000000000000001\r\nx\r\n0\r\n\r\n")
    bad(b"10000000000000000\r\n")


@pytest.mark.parametrize(
    "size", [b"", b"+1", b"-1", b"0x1", b"1_0", b" 1", b"1 ", b"g", b"\xb2", b";a"]
)
def test_malformed_size(size: bytes) -> None:
    bad(size + b"\r\nx\r\n0\r\n\r\n")


def test_bare_lf() -> None:
    bad(b"1\nx\r\n0\r\n\r\n")
    bad(b"1\r\nx\n0\r\n\r\n")
    bad(b"1\r\nx\r\n0\r\n\n")
    bad(b"1\r\nx\r\n0\r\nA: b\n\r\n")


def test_data_longer_than_its_size() -> None:
    bad(b"1\r\nxy\r\n0\r\n\r\n")


def test_control_character_in_an_extension() -> None:
    bad(b"1;a=\0\r\nx\r\n0\r\n\r\n")
    bad(b"1;a=\rb\r\nx\r\n0\r\n\r\n")


def test_endless_lines_are_cut_off() -> None:
    bad(b"1;" + b"a" * 2000)
    bad(b"0\r\n" + b"A: b\r\n" * 4000)
    bad(b"0\r\nA: " + b"b" * 20000)


def test_too_many_or_malformed_trailers() -> None:
    bad(b"0\r\n" + b"A: b\r\n" * 101 + b"\r\n")
    bad(b"0\r\nA b: c\r\n\r\n")
    bad(b"0\r\n folded\r\n\r\n")


def test_an_unfinished_stream_is_not_ended() -> None:
    whole = b"3\r\nabc\r\n0\r\nA: b\r\n\r\n"
    for cut in range(len(whole)):
        assert decode(whole[:cut]) is None


def test_trailer_lines_are_counted_as_they_come() -> None:
    decoder = ChunkedDecoder()
    view = memoryview(bytearray(1))
    decoder.decode(memoryview(b"0\r\n" + b"a: b\r\n" * 100), view)
    with pytest.raises(BadChunk, match="more than 100"):
        decoder.decode(memoryview(b"a: b\r\n"), view)


def test_trailer_names_are_lower_case() -> None:
    decoder = ChunkedDecoder()
    decoder.decode(memoryview(b"0\r\nX-A: v\r\n\r\n"), memoryview(bytearray(1)))
    assert isinstance(decoder.trailers, Headers)
    assert decoder.trailers.get("x-a") == "v"


@given(st.integers(0, 2**32))
@settings(max_examples=1000, deadline=None)
def test_against_the_model(seed: int) -> None:
    rng = random.Random(seed)
    data = random_chunked(rng)
    expected = model_chunked(data)
    try:
        found = decode(data, rng)
    except BadChunk:
        found = None
    if expected is not None:
        content, fields, used = expected
        names = None if fields is None else [(n.decode(), v.decode("latin-1")) for n, v in fields]
        assert found == (content, names, used)
    else:
        assert found is None


@given(st.integers(0, 2**32))
@settings(max_examples=300, deadline=None)
def test_splits_do_not_matter(seed: int) -> None:
    rng = random.Random(seed)
    data = random_chunked(rng)

    def outcome(splits: random.Random | None) -> object:
        try:
            return decode(data, splits)
        except BadChunk:
            return "bad"

    assert outcome(None) == outcome(rng)


def test_the_generator_makes_good_and_bad_streams() -> None:
    rng = random.Random(1)
    good = sum(model_chunked(random_chunked(rng)) is not None for _ in range(1000))
    assert 200 < good < 800
