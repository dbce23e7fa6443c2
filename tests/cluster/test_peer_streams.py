"""Streams: pieces in order under a window, one answer, ends of every kind; heartbeats beside them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from o3storage.cluster import _wire as wire
from o3storage.cluster._peer_streams import InStream
from o3storage.cluster._peer_types import Code, PeerError, PeerLost, PeerUnreachable
from o3storage.cluster._wire import Lane, Unit
from o3storage.runtime.network import Address
from o3storage.simulation import Quality, SimNet
from tests.cluster.peer_rig import (
    PORT,
    Node,
    cluster,
    heartbeat,
    host,
    key,
    play,
    until,
    whole,
)

TAKE, SUM, SLOW, FAIL, EARLY = 1, 2, 3, 4, 5
PIECE = 256 << 10


class Taker:
    """Takes pieces when it is told to."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.head = b""
        self.go = asyncio.Event()
        self.errors: list[Exception] = []
        self.stream: InStream

    async def __call__(self, node: int, head: bytes, stream: InStream) -> bytes:
        self.head, self.stream = head, stream
        await self.go.wait()
        try:
            async for piece in stream:
                self.pieces.append(piece)
                await self.go.wait()
        except (PeerError, PeerLost) as error:
            self.errors.append(error)
            raise
        return b"took %d from %d" % (len(self.pieces), node)


def piece(number: int, size: int = PIECE) -> bytes:
    return number.to_bytes(4, "big").ljust(size, b".")


def received(node: Node) -> int:
    return node.peers._received_bytes


def test_pieces_come_in_order_and_an_answer_goes_back() -> None:
    async def main() -> None:
        one, two = await cluster(SimNet(1), 2)
        taker = Taker()
        taker.go.set()
        two.peers.serve_stream(TAKE, taker)
        stream = await one.peers.open_stream(2, TAKE, b"head")
        sent = [piece(n) for n in range(100)] + [b"end"]
        for number, data in enumerate(sent):
            cut = number % 4
            await stream.write(data[cut:], last=number == 100, head=data[:cut])
        assert await stream.finish(5.0) == b"took 101 from 1"
        assert taker.pieces == sent and taker.head == b"head"
        assert received(two) == 0
        # An empty one, and one whose end is told by `finish`.
        for pieces in ([], [b"x"]):
            taker.pieces = []
            stream = await one.peers.open_stream(2, TAKE, b"")
            for data in pieces:
                await stream.write(data)
            assert await stream.finish(5.0) == b"took %d from 1" % len(pieces)
            assert taker.pieces == pieces
        assert not one.links(2)[1].streams._out and not two.links(1)[1].streams._in

    play(main())


def test_a_writer_waits_for_the_window_and_no_longer() -> None:
    async def main() -> None:
        one, two = await cluster(SimNet(1), 2, stream_window_bytes=4 * PIECE)
        taker = Taker()
        two.peers.serve_stream(TAKE, taker)
        stream = await one.peers.open_stream(2, TAKE, b"")
        written: list[int] = []

        async def write() -> bytes:
            for number in range(20):
                await stream.write(piece(number))
                written.append(number)
            return await stream.finish(60.0)

        writing = asyncio.ensure_future(write())
        await asyncio.sleep(5.0)
        assert len(written) == 4 and stream.unconsumed_bytes == 4 * PIECE
        assert not stream.has_room(1) and received(two) == 4 * PIECE
        taker.go.set()
        assert await writing == b"took 20 from 1"
        assert received(two) == 0

    play(main())


def test_a_stream_that_fails_there_fails_here() -> None:
    async def main() -> None:
        one, two = await cluster(SimNet(1), 2)

        async def refuse(node: int, head: bytes, stream: InStream) -> bytes:
            await anext(stream)
            raise PeerError(88, "superseded")

        async def defect(node: int, head: bytes, stream: InStream) -> bytes:
            raise RuntimeError("a defect")

        two.peers.serve_stream(FAIL, refuse)
        two.peers.serve_stream(SUM, defect)
        for kind, code, why in (
            (FAIL, 88, "superseded"),
            (SUM, Code.FAILED, "failed at the other"),
            (99, Code.UNKNOWN_KIND, "no stream 99"),
        ):
            stream = await one.peers.open_stream(2, kind, b"")
            with pytest.raises(PeerError, match=why) as caught:
                for number in range(100):
                    await stream.write(piece(number))
            assert caught.value.code == code
            with pytest.raises(PeerError, match=why):
                await stream.finish(1.0)
        await until(lambda: received(two) == 0)
        assert not two.links(1)[1].streams._in and not one.links(2)[1].streams._out

    play(main())


def test_an_early_answer_ends_the_writing() -> None:
    async def main() -> None:
        one, two = await cluster(SimNet(1), 2)

        async def early(node: int, head: bytes, stream: InStream) -> bytes:
            return b"enough"

        two.peers.serve_stream(EARLY, early)
        stream = await one.peers.open_stream(2, EARLY, b"")
        for number in range(200):
            await stream.write(piece(number))
        assert stream.answered and stream.sent_bytes < 100 * PIECE
        assert await stream.finish(1.0) == b"enough"
        assert received(two) == 0

    play(main())


def test_a_stream_given_up_is_seen_there() -> None:
    async def main() -> None:
        one, two = await cluster(SimNet(1), 2)
        taker = Taker()
        two.peers.serve_stream(TAKE, taker)
        stream = await one.peers.open_stream(2, TAKE, b"")
        for number in range(5):
            await stream.write(piece(number))
        stream.abort("the client went away")
        stream.abort()
        with pytest.raises(PeerLost):
            await stream.write(b"more")
        with pytest.raises(PeerLost):
            await stream.finish(1.0)
        await asyncio.sleep(1.0)
        taker.go.set()
        await until(lambda: bool(taker.errors))
        assert isinstance(taker.errors[0], PeerError) and "went away" in str(taker.errors[0])
        assert taker.pieces == []
        await until(lambda: not two.links(1)[1].streams._in)
        assert received(two) == 0

    play(main())


def test_a_lost_link_ends_both_sides() -> None:
    async def main() -> None:
        net = SimNet(1)
        one, two = await cluster(net, 2, stream_window_bytes=2 * PIECE)
        taker = Taker()
        two.peers.serve_stream(TAKE, taker)
        stream = await one.peers.open_stream(2, TAKE, b"")

        async def write() -> None:
            for number in range(50):
                await stream.write(piece(number))

        writing = asyncio.ensure_future(write())
        await asyncio.sleep(1.0)
        net.break_links(host(1), host(2))
        with pytest.raises(PeerLost, match="lost"):
            await writing
        with pytest.raises(PeerLost):
            await stream.finish(1.0)
        with pytest.raises(PeerUnreachable):
            await one.peers.open_stream(2, TAKE, b"", timeout_s=0.01)
        taker.go.set()
        await until(lambda: bool(taker.errors))
        assert isinstance(taker.errors[0], PeerLost)
        assert received(two) == 0
        await until(lambda: whole(one, 2) and whole(two, 2))

    play(main())


def test_an_answer_that_does_not_come() -> None:
    async def main() -> None:
        one, two = await cluster(SimNet(1), 2)
        taker = Taker()
        two.peers.serve_stream(TAKE, taker)
        stream = await one.peers.open_stream(2, TAKE, b"")
        with pytest.raises(PeerLost, match="within 2 s"):
            await stream.finish(2.0)
        taker.go.set()
        await until(lambda: not two.links(1)[1].streams._in)

    play(main())


def test_many_streams_share_a_link_in_turns() -> None:
    async def main() -> None:
        net = SimNet(1)
        one, two = await cluster(net, 2)
        net.set_quality(host(1), host(2), Quality(bytes_per_s=2e6))
        order: list[int] = []

        async def take(node: int, head: bytes, stream: InStream) -> bytes:
            async for _ in stream:
                order.append(head[0])
            return head

        two.peers.serve_stream(TAKE, take)

        async def upload(number: int) -> None:
            stream = await one.peers.open_stream(2, TAKE, bytes([number]))
            for at in range(10):
                await stream.write(piece(at), last=at == 9)
            assert await stream.finish(600.0) == bytes([number])

        await asyncio.gather(*(upload(number) for number in range(20)))
        # Nobody is far ahead of the others (but who found the link empty).
        for end in range(40, 200, 20):
            counts = [order[:end].count(number) for number in range(1, 20)]
            assert max(counts) - min(counts) <= 3, counts
        assert one.links(2)[Lane.BULK].unsent_bytes == 0

    play(main())


def test_little_waits_inside_the_link() -> None:
    async def main() -> None:
        net = SimNet(1)
        one, two = await cluster(net, 2)
        net.set_quality(host(1), host(2), Quality(bytes_per_s=1e6))
        taker = Taker()
        taker.go.set()
        two.peers.serve_stream(TAKE, taker)
        streams = [await one.peers.open_stream(2, TAKE, b"") for _ in range(10)]
        most = 0

        async def upload(stream: Any) -> None:
            nonlocal most
            for at in range(8):
                await stream.write(piece(at))
                most = max(most, one.links(2)[Lane.BULK].unsent_bytes)
            await stream.finish(600.0)

        await asyncio.gather(*map(upload, streams))
        assert most <= (1 << 20) + PIECE + 100

    play(main())


@pytest.mark.parametrize("separate", [True, False])
def test_bulk_data_does_not_delay_heartbeats(separate: bool) -> None:
    """Over a link of 4 MB/s that streams keep full, heartbeats take no longer than without them.
    The other way round (calls on the bulk link) the same measure shows the delay."""

    async def main() -> None:
        net = SimNet(1)
        one, two = await cluster(net, 2)
        net.set_quality(host(1), host(2), Quality(bytes_per_s=4e6, spike_share=0.0))
        loop = asyncio.get_running_loop()
        taker = Taker()
        taker.go.set()
        two.peers.serve_stream(TAKE, taker)
        came: list[float] = []
        two.peers.on_message = lambda *what: came.append(loop.time() - what[2].commit / 1e9)

        async def ping(node: int, payload: memoryview) -> bytes:
            came.append(loop.time() - int.from_bytes(payload, "big") / 1e9)
            return b""

        two.peers.serve(SLOW, ping)

        async def upload() -> None:
            stream = await one.peers.open_stream(2, TAKE, b"")
            for at in range(40):
                await stream.write(piece(at))
            await stream.finish(600.0)

        uploads = asyncio.gather(*(upload() for _ in range(8)))
        while not uploads.done():
            now = int(loop.time() * 1e9)
            if separate:
                one.peers.send(2, 0, heartbeat(1, 2, now))
            else:
                payload = now.to_bytes(8, "big")
                await one.peers.call(2, SLOW, payload, timeout_s=60.0, lane=Lane.BULK)
            await asyncio.sleep(0.05)
        await uploads
        assert loop.time() > 15.0 and len(came) > 40
        late = sorted(came)[len(came) * 9 // 10]
        assert late < 0.01 if separate else 0.05 < late < 1.0
        assert one.seen == [("up", 2)] and two.seen == [("up", 1)]

    play(main())


def test_what_handlers_do_not_take_is_bounded_over_all_streams() -> None:
    async def main() -> None:
        net = SimNet(1)
        nodes = await cluster(net, 3, max_received_bytes=16 * PIECE)
        one = nodes[0]
        takers = []

        async def take(node: int, head: bytes, stream: InStream) -> bytes:
            takers.append(taker := Taker())
            return await taker(node, head, stream)

        one.peers.serve_stream(TAKE, take)

        async def upload(node: Node) -> bytes:
            stream = await node.peers.open_stream(1, TAKE, b"")
            for at in range(40):
                await stream.write(piece(at))
            return await stream.finish(600.0)

        uploads = asyncio.gather(*(upload(node) for node in nodes[1:] for _ in range(5)))
        await asyncio.sleep(30.0)
        # (One frame of a link may bring several pieces.)
        assert 16 * PIECE <= received(one) <= 16 * PIECE + 2 * (2 << 20)
        assert not uploads.done() and len(takers) == 10
        assert all(whole(node, 3) for node in nodes)
        for taker in takers:
            taker.go.set()
        while not uploads.done():
            await asyncio.sleep(0.1)
            for taker in takers:
                taker.go.set()
        assert all(answer.startswith(b"took 40") for answer in await uploads)
        assert received(one) == 0

    play(main())


def damage(change: Callable[[Any], bytes]) -> str:
    """Why two's link to one was closed, after one sent that on the bulk link."""

    async def main() -> str:
        net = SimNet(1)
        one, two = await cluster(net, 2, stream_window_bytes=2 * PIECE)
        two.peers.serve_stream(TAKE, Taker())
        stream = await one.peers.open_stream(2, TAKE, b"")
        await stream.write(piece(0))
        await asyncio.sleep(1.0)
        reasons: list[str] = []
        theirs = two.links(1)[Lane.BULK]
        end = theirs._end
        theirs._end = lambda reason: (reasons.append(reason), end(reason))
        mine = one.links(2)[Lane.BULK]
        mine.link.send([bytes([mine.version]), change(stream)])
        await until(lambda: bool(reasons))
        assert two.peers.stats.malformed == 1
        await until(lambda: whole(one, 2) and whole(two, 2))
        return reasons[0]

    result: str = play(main())
    return result


def test_streams_that_break_the_protocol_close_the_link() -> None:
    def pieces(count: int, last_at: int = -1) -> Callable[[Any], bytes]:
        return lambda stream: b"".join(
            wire.PIECE.pack(Unit.PIECE, 5 + PIECE, stream.number, at == last_at) + bytes(PIECE)
            for at in range(count)
        )

    assert "window" in damage(pieces(7))
    assert "behind the last" in damage(pieces(2, 0))
    assert "cannot be opened" in damage(lambda s: wire.OPEN.pack(Unit.OPEN, 6, s.number, TAKE))
    assert "head" in damage(lambda s: wire.pack_unit(Unit.PIECE, 2) + b"xx")
    assert "limit" in damage(lambda s: wire.PIECE.pack(Unit.PIECE, 5, s.number, 2))
    assert "wrong size" in damage(lambda s: wire.pack_unit(Unit.CREDIT, 2) + b"xx")
    assert "message" in damage(lambda s: wire.pack_unit(Unit.MESSAGE, 1) + b"x")


def test_credit_for_what_was_not_sent_closes_the_link() -> None:
    async def main() -> None:
        one, two = await cluster(SimNet(1), 2)
        two.peers.serve_stream(TAKE, Taker())
        stream = await one.peers.open_stream(2, TAKE, b"")
        await stream.write(b"abc")
        await asyncio.sleep(1.0)
        theirs = two.links(1)[Lane.BULK]
        theirs.queue((wire.CREDIT.pack(Unit.CREDIT, 8, stream.number, 4),), 13)
        await until(lambda: one.peers.stats.malformed == 1)
        with pytest.raises(PeerLost):
            await stream.finish(1.0)

    play(main())


def test_a_stream_has_limits_of_its_own() -> None:
    async def main() -> None:
        one, two = await cluster(SimNet(1), 2)
        two.peers.serve_stream(TAKE, Taker())
        stream = await one.peers.open_stream(2, TAKE, b"")
        with pytest.raises(ValueError, match="at most"):
            await stream.write(bytes(wire.MAX_PIECE_BYTES + 1))
        with pytest.raises(ValueError, match="too long"):
            await one.peers.open_stream(2, TAKE, bytes(wire.MAX_STREAM_HEAD_BYTES + 1))
        await stream.write(b"x", last=True)
        with pytest.raises(ValueError, match="last piece"):
            await stream.write(b"y")
        with pytest.raises(PeerUnreachable):
            await one.peers.open_stream(9, TAKE, b"")

    play(main())


def test_only_the_bulk_link_is_missing() -> None:
    """`open_stream` and calls wait for it; that it does not come is definite."""

    async def main() -> None:
        net = SimNet(1)
        one, two = await cluster(net, 2)
        taker = Taker()
        taker.go.set()
        two.peers.serve_stream(TAKE, taker)
        one.links(2)[Lane.BULK].close("for the test")
        assert one.peers.is_up(2)
        stream = await one.peers.open_stream(2, TAKE, b"", timeout_s=10.0)
        assert await stream.finish(1.0) == b"took 0 from 1"
        one.links(2)[Lane.BULK].close("for the test")
        one.peers.set_peers({2: (key(2), (Address(host(2), PORT + 1),))})
        two.peers.set_peers({1: (key(1), (Address(host(1), PORT + 1),))})
        with pytest.raises(PeerUnreachable):
            await one.peers.open_stream(2, TAKE, b"", timeout_s=0.001)

    play(main())
