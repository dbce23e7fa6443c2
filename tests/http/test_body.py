"""A body that is lent from where it was received."""

from __future__ import annotations

import asyncio

import pytest

from o3storage.http._body import Body
from o3storage.http._chunked import ChunkedDecoder
from o3storage.http._errors import BodyTruncated


class Received:
    """What a connection has received and not used."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self._unread = data
        self._unread_at = at

    def _body_wanted(self) -> None:
        raise AssertionError("it waits for the client")


@pytest.mark.parametrize("before", [b"", b"head"])
@pytest.mark.parametrize("after", [b"", b"GET / HTTP/1.1\r\n"])
def test_a_whole_body_is_lent_and_what_follows_stays(before: bytes, after: bytes) -> None:
    upstream = Received(before + b"content" + after, len(before))
    body = Body(upstream, 7, True, None)
    lent = body.take_now(7)
    assert lent is not None
    assert bytes(lent) == b"content"
    assert body.ended
    assert body.received_bytes == 7
    assert upstream._unread[upstream._unread_at :] == after
    assert body.take_now(7) is None
    assert asyncio.run(body.read_into(memoryview(bytearray(1)))) == 0


@pytest.mark.parametrize(("received", "length", "limit"), [(6, 7, 7), (7, 7, 6), (0, 0, 9)])
def test_nothing_is_lent_of_a_partial_a_large_or_an_empty_body(
    received: int, length: int, limit: int
) -> None:
    upstream = Received(b"x" * received)
    body = Body(upstream, length, True, None)
    assert body.take_now(limit) is None
    assert body.received_bytes == 0
    assert len(upstream._unread) - upstream._unread_at == received


def test_nothing_is_lent_of_a_chunked_body_or_after_an_error() -> None:
    chunked = Body(Received(b"1\r\nx\r\n0\r\n\r\n"), None, True, ChunkedDecoder())
    assert chunked.take_now(100) is None
    failed = Body(Received(b"x"), 1, True, None)
    failed._fail(BodyTruncated("the connection was lost"))
    assert failed.take_now(100) is None
