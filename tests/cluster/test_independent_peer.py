"""A peer written from docs/protocol.md alone: it shares no code with the codec under test."""

from __future__ import annotations

import asyncio
import struct
from typing import Any

from o3storage.cluster._peer_streams import InStream
from o3storage.cluster._peer_types import PeerError
from o3storage.raft import core as raft
from o3storage.runtime.network import Address, Link
from o3storage.simulation import SimNet
from o3storage.storage import SealedFrame
from tests.cluster.peer_rig import CLUSTER, PORT, Node, host, key, play, until

THEY, WE = 2, 9
VERSION = 3
"""The highest of the page."""


class Stranger:
    """Node 9, in plain bytes. `units` is what came on a link, as (kind, body)."""

    def __init__(self, link: Link, lane: int, attempt: int) -> None:
        self.link, self.lane = link, lane
        self.units: list[tuple[int, bytes]] = []
        self.versions: list[int] = []
        self.closed = ""
        link.begin(self.frame, lambda error: setattr(self, "closed", str(error)))
        address = b"10.0.0.9"
        self.say(
            0,
            1,
            b"O3PP\x01\x04"
            + struct.pack(">QQQBBBBH", WE, 77, attempt, lane, 2, len(CLUSTER), 1, 32)
            + CLUSTER
            + link.binding
            + struct.pack(">BH", len(address), PORT)
            + address
            + b"what a later version adds",
        )

    def frame(self, view: memoryview) -> None:
        data = bytes(view)
        self.versions.append(data[0])
        at = 1
        while at < len(data):
            kind, size = struct.unpack_from(">BI", data, at)
            assert at + 5 + size <= len(data)
            if kind != 4:
                self.units.append((kind, data[at + 5 : at + 5 + size]))
            at += 5 + size
        assert at == len(data) > 1

    def say(self, version: int, *units: Any) -> None:
        pairs = zip(units[::2], units[1::2], strict=True)
        made = b"".join(struct.pack(">BI", kind, len(body)) + body for kind, body in pairs)
        self.link.send([bytes([version]) + made])

    async def opened(self) -> None:
        await until(lambda: len(self.units) == 2)
        (kind, hello), admitted = self.units
        assert (kind, admitted, self.versions) == (1, (2, b"\0"), [0, VERSION])
        assert hello[:4] == b"O3PP" and hello[4] == 1 and hello[5] == VERSION
        node, session, attempt, lane, role, cluster, count, proof = struct.unpack_from(
            ">QQQBBBBH", hello, 6
        )
        assert (node, session, attempt, lane, role, count) == (THEY, 200, 0, self.lane, 0, 0)
        assert hello[36 : 36 + cluster] == CLUSTER
        assert hello[36 + cluster : 36 + cluster + proof] == self.link.binding
        assert len(hello) == 36 + cluster + proof
        self.units.clear()
        self.say(VERSION, 2, b"\0")

    async def next(self, count: int = 1) -> list[tuple[int, bytes]]:
        await until(lambda: len(self.units) >= count)
        found, self.units = self.units[:count], self.units[count:]
        return found


async def echo(node: int, payload: memoryview) -> bytes:
    if payload == b"no":
        raise PeerError(300, "not now")
    return b"%d says " % node + bytes(payload)


async def count(node: int, head: bytes, stream: InStream) -> bytes:
    if head == b"no":
        raise PeerError(301, "not this")
    size = 0
    async for piece in stream:
        size += len(piece)
    return head + b" %d" % size


def test_a_peer_that_was_written_from_the_page() -> None:
    async def main() -> None:
        net = SimNet(1)
        node = await Node(net, THEY).listen()
        node.peers.serve(5, echo)
        node.peers.serve_stream(6, count)
        ours = net.network(host(WE), key(WE))
        place = Address(host(THEY), PORT)
        main_link = Stranger(await ours.connect(place, 5.0), 0, 1)
        bulk = Stranger(await ours.connect(place, 5.0), 1, 2)
        await main_link.opened()
        await bulk.opened()
        await until(lambda: node.peers.is_up(WE))

        # Messages, both ways.
        sealed = SealedFrame(b"s" * 16, 3, True, 2, b"f" * 18)
        append = raft.Append(THEY, WE, 5, 9, 4, [raft.Entry(10, 5, 2, b"entry")], 8, 6)
        node.peers.send(WE, 7, append, [sealed])
        expected = (
            struct.pack(">BIQQQQQII", 3, 7, 5, 9, 4, 8, 6, 1, 1)
            + struct.pack(">QQBI", 10, 5, 2, 5)
            + b"entry"
            + b"s" * 16
            + struct.pack(">IBI", 3, 1, 2)
            + b"f" * 18
        )
        assert await main_link.next() == [(5, expected)]
        members = raft.Configuration((1, 2), (3,), (4,), (3,))
        pairs: list[tuple[bytes, raft.Message]] = [
            (
                struct.pack(">BIQQQB", 1, 7, 5, 4, 3, 3),
                raft.VoteRequest(WE, THEY, 5, 4, 3, True, True),
            ),
            (struct.pack(">BIQB", 2, 7, 5, 1), raft.VoteResponse(WE, THEY, 5, True)),
            (
                struct.pack(">BIQ8QB", 4, 7, 5, 1, 2, 3, 4, 5, 6, 8, 9, 3),
                raft.AppendResponse(WE, THEY, 5, 1, 2, True, 3, 4, 5, 6, True, 8, 9),
            ),
            (struct.pack(">BIQQQB", 5, 7, 5, 1, 2, 1), raft.Heartbeat(WE, THEY, 5, 1, 2, True)),
            (
                struct.pack(">BIQQQB", 6, 7, 5, 1, 2, 1),
                raft.HeartbeatResponse(WE, THEY, 5, 1, True, 2),
            ),
            (
                struct.pack(">BIQQQQBH5B5Q", 7, 7, 5, 1, 2, 3, 1, 45, 1, 2, 1, 1, 1, 1, 2, 3, 4, 3)
                + b"rows",
                raft.SnapshotPiece(WE, THEY, 5, 1, 2, members, 3, b"rows", True),
            ),
            (
                struct.pack(">BIQQQB", 8, 7, 5, 1, 2, 1),
                raft.SnapshotResponse(WE, THEY, 5, 1, 2, True),
            ),
            (struct.pack(">BIQ", 9, 7, 5), raft.TimeoutNow(WE, THEY, 5)),
            (struct.pack(">BIQQ", 10, 7, 5, 1), raft.ReadRequest(WE, THEY, 5, 1, True)),
            (
                struct.pack(">BIQQ", 10, 7, 5, 1 << 63 | 1),
                raft.ReadRequest(WE, THEY, 5, 1, False),
            ),
            (struct.pack(">BIQQQ", 11, 7, 5, 1, 2), raft.ReadResponse(WE, THEY, 5, 1, 2)),
            (struct.pack(">BIQQQ", 12, 7, 5, 1, 2), raft.HoleQuery(WE, THEY, 5, 1, 2)),
            (
                struct.pack(">BIQQBII", 13, 7, 5, 3, 1, 1, 0) + struct.pack(">QQBI", 3, 1, 0, 0),
                raft.HoleAnswer(WE, THEY, 5, 3, True, [raft.Entry(3, 1, 0, b"")]),
            ),
        ]
        main_link.say(VERSION, *(part for body, _ in pairs for part in (5, body)))
        await until(lambda: len(node.heard) == len(pairs))
        assert node.heard == [(WE, 7, message, []) for _, message in pairs]

        # Calls, both ways.
        main_link.say(
            VERSION, 6, struct.pack(">IH", 41, 5) + b"hi", 6, struct.pack(">IH", 42, 5) + b"no"
        )
        main_link.say(VERSION, 6, struct.pack(">IH", 43, 99))
        answers = dict(await main_link.next(3))
        assert answers[7] == struct.pack(">I", 41) + b"9 says hi"
        main_link.say(VERSION, 6, struct.pack(">IH", 42, 5) + b"no")
        assert await main_link.next() == [(8, struct.pack(">IH", 42, 300) + b"not now")]
        call = asyncio.ensure_future(node.peers.call(WE, 8, b"question", timeout_s=5.0))
        [(kind, asked)] = await main_link.next()
        number, what = struct.unpack_from(">IH", asked)
        assert (kind, what, asked[6:]) == (6, 8, b"question")
        main_link.say(VERSION, 7, struct.pack(">I", number) + b"answer")
        assert await call == b"answer"

        # A call that is larger than a frame comes in parts.
        call = asyncio.ensure_future(node.peers.call(WE, 8, b"x" * 3_000_000, timeout_s=5.0))
        (first, one), (second, two) = await main_link.next(2)
        assert (first, one[0], second, two[0]) == (15, 0, 15, 1)
        whole = one[1:] + two[1:]
        kind, size, number, what = struct.unpack_from(">BIIH", whole)
        assert (kind, size, what) == (6, 3_000_006, 8) and whole[11:] == b"x" * 3_000_000
        answer = struct.pack(">BII", 7, 3_000_004, number) + b"y" * 3_000_000
        main_link.say(VERSION, 15, b"\0" + answer[:2_000_000])
        main_link.say(VERSION, 15, b"\1" + answer[2_000_000:])
        assert await call == b"y" * 3_000_000

        # Streams, both ways.
        bulk.say(
            VERSION, 9, struct.pack(">IH", 1, 6) + b"head", 10, struct.pack(">IB", 1, 0) + b"abc"
        )
        assert await bulk.next() == [(11, struct.pack(">II", 1, 3))]
        bulk.say(VERSION, 10, struct.pack(">IB", 1, 1) + b"de")
        assert await bulk.next() == [(12, struct.pack(">I", 1) + b"head 5")]
        bulk.say(VERSION, 9, struct.pack(">IH", 2, 6) + b"no")
        assert await bulk.next() == [(14, struct.pack(">IH", 2, 301) + b"not this")]
        bulk.say(VERSION, 9, struct.pack(">IH", 3, 6), 13, struct.pack(">IH", 3, 5) + b"why")
        assert await bulk.next() == [(14, struct.pack(">IH", 3, 5) + b"why")]
        stream = await node.peers.open_stream(WE, 4, b"theirs")
        await stream.write(b"p" * 10)
        (opened, head), (came, piece) = await bulk.next(2)
        number, what = struct.unpack_from(">IH", head)
        assert (opened, what, head[6:]) == (9, 4, b"theirs")
        assert (came, piece) == (10, struct.pack(">IB", number, 0) + b"p" * 10)
        bulk.say(VERSION, 11, struct.pack(">II", number, 10))
        await until(lambda: stream.unconsumed_bytes == 0)
        ending = asyncio.ensure_future(stream.finish(5.0))
        assert await bulk.next() == [(10, struct.pack(">IB", number, 1))]
        bulk.say(VERSION, 12, struct.pack(">I", number) + b"done")
        assert await ending == b"done"
        assert node.peers.stats.malformed == 0 and not main_link.closed

        # Without a sign of life the node gives the link up; with one it does not.
        loop = asyncio.get_running_loop()
        begun = loop.time()
        while not main_link.closed:
            bulk.say(VERSION, 4, b"")
            await asyncio.sleep(0.4)
        assert 2.5 < loop.time() - begun < 4.0 and not bulk.closed

        # No common version: told which are spoken, in the frame that every version can read.
        other = Stranger.__new__(Stranger)
        other.units, other.versions, other.closed = [], [], ""
        other.link = await ours.connect(place, 5.0)
        other.link.begin(other.frame, lambda error: setattr(other, "closed", str(error)))
        other.say(0, 1, b"O3PP\x05\x06" + b"a body of version 5")
        await until(lambda: bool(other.units))
        [(kind, reason)] = other.units
        assert (kind, other.versions) == (3, [0])
        assert b"1 to 3" in reason and b"5 to 6" in reason
        await node.peers.close()

    play(main())
