"""Fuzz the peer protocol: damaged hellos and messages into their decoders, damaged frames into the
links of a node, from strangers, guests and members.

    python -m tests.fuzz.peer_wire [--seconds 60] [--seed 1]

A decoder returns what encodes to the same bytes, or raises WireError. A link that gets a damaged
frame goes on or is closed with a reason; the node goes on serving the others, and when the link is
gone nothing of it is left.
"""

from __future__ import annotations

import asyncio
import random
import sys
from typing import Any

from o3storage.cluster import _wire as wire
from o3storage.cluster._peer_link import PeerLink
from o3storage.cluster._peer_streams import InStream
from o3storage.cluster._peer_types import PeerError, PeerLost
from o3storage.cluster._wire import Hello, Lane, Unit, WireError
from o3storage.raft import core as raft
from o3storage.runtime.network import Address
from o3storage.simulation import SimNet
from o3storage.storage import SealedFrame
from tests.cluster.peer_rig import GUEST_ROLE, PORT, Node, cluster, host, key, play, until
from tests.fuzz._campaign import campaign, damage

ENTRIES = [raft.Entry(11 + n, 3, n % 4, b"e" * (n * 7)) for n in range(3)]
FRAMES = [SealedFrame(b"s" * 16, n, n == 1, 5 + n, bytes(21 + n)) for n in range(2)]
MEMBERS = raft.Configuration((1, 2, 3), (1, 2), (4,))
MESSAGES: list[tuple[raft.Message, list[SealedFrame]]] = [
    (raft.VoteRequest(1, 2, 3, 4, 5, True), []),
    (raft.VoteResponse(1, 2, 3, True), []),
    (raft.Append(1, 2, 3, 10, 3, ENTRIES, 9, 4), FRAMES),
    (raft.Append(1, 2, 3, 10, 3, [], 9), []),
    (raft.AppendResponse(1, 2, 3, 4, 5, True, 6, 7, 8, 9, True, 10, 11), []),
    (raft.Heartbeat(1, 2, 3, 4, 5, True), []),
    (raft.HeartbeatResponse(1, 2, 3, 4, True, 5), []),
    (raft.SnapshotPiece(1, 2, 3, 4, 5, MEMBERS, 6, b"rows", True), []),
    (raft.SnapshotResponse(1, 2, 3, 4, 5, True), []),
    (raft.TimeoutNow(1, 2, 3), []),
    (raft.ReadRequest(1, 2, 3, 4, True), []),
    (raft.ReadResponse(1, 2, 3, 4, 5), []),
    (raft.HoleQuery(1, 2, 3, 4, 5), []),
    (raft.HoleAnswer(1, 2, 3, 11, True, ENTRIES), FRAMES),
]


def unit(kind: int, body: bytes) -> bytes:
    return wire.pack_unit(kind, len(body)) + body


def encoded(message: raft.Message, frames: list[SealedFrame], group: int = 7) -> bytes:
    out: list[Any] = []
    wire.encode_message(group, message, frames, out)
    return b"".join(out)


HELLO = wire.encode_hello(
    Hello(b"c" * 16, 1, (Address("10.0.0.1", 1), Address("::1", 2)), b"p" * 32, 1, 2, 0, 3)
)
UNITS = [
    *(encoded(message, frames) for message, frames in MESSAGES),
    unit(Unit.HELLO, HELLO),
    unit(Unit.ADMITTED, b"\0"),
    unit(Unit.REFUSED, b"why"),
    unit(Unit.ALIVE, b""),
    *(wire.CALL.pack(Unit.CALL, 6 + 4, 1000 + n, n % 3) + b"data" for n in range(4)),
    wire.ANSWER.pack(Unit.ANSWER, 4 + 4, 1) + b"data",
    wire.ERROR.pack(Unit.ERROR, 6 + 4, 1, 77) + b"text",
    *(wire.OPEN.pack(Unit.OPEN, 6 + 4, n, 1 + n % 2) + b"head" for n in (1, 2, 500)),
    *(wire.PIECE.pack(Unit.PIECE, 5 + 90, n, 0) + b"p" * 90 for n in (1, 2, 500)),
    wire.PIECE.pack(Unit.PIECE, 5 + 9, 1, 1) + b"p" * 9,
    wire.CREDIT.pack(Unit.CREDIT, 8, 1, 3),
    wire.ANSWER.pack(Unit.RESULT, 4 + 4, 1) + b"data",
    wire.ERROR.pack(Unit.RESET, 6 + 4, 1, 5) + b"text",
    wire.ERROR.pack(Unit.FAILED, 6 + 4, 1, 5) + b"text",
    unit(Unit.PART, b"\0" + unit(Unit.ALIVE, b"")),
    unit(Unit.PART, b"\1" + unit(Unit.ALIVE, b"")),
    unit(99, b"?"),
]


def damaged(rng: random.Random, data: bytes) -> bytes:
    for _ in range(rng.randrange(1, 4)):
        data = damage(rng, data)
    return data


def decoders(rng: random.Random) -> str | None:
    message, frames = rng.choice(MESSAGES)
    body = damaged(rng, encoded(message, frames)[wire.UNIT_HEAD_BYTES :])
    try:
        group, found, riding = wire.decode_message(memoryview(body), 1, 2)
    except WireError:
        pass
    else:
        if encoded(found, riding, group)[wire.UNIT_HEAD_BYTES :] != body:
            return f"{body.hex()}: {found!r} does not encode to these bytes"
    body = damaged(rng, HELLO)
    try:
        hello = wire.decode_hello(memoryview(body))
    except WireError:
        pass
    else:
        made = wire.encode_hello(hello)
        if body[: len(made)] != made:
            return f"{body.hex()}: {hello!r} does not encode to these bytes"
    frame = damaged(rng, b"\1" + b"".join(rng.choices(UNITS, k=rng.randrange(1, 4))))
    try:
        units = wire.split_units(memoryview(frame))
    except WireError:
        pass
    else:
        if frame[1:] != b"".join(unit(kind, bytes(body)) for kind, body in units):
            return f"{frame.hex()}: the units do not make the frame"
    return None


def random_frame(rng: random.Random, version: int) -> bytes:
    """As it should be; or damaged, heads of units and all; or damaged inside its units."""
    units = rng.choices(UNITS, k=rng.randrange(1, 4))
    how = rng.randrange(3)
    if how == 0:
        return damaged(rng, bytes([version]) + b"".join(units))
    if how == 1:
        units = [unit(made[0], damaged(rng, made[wire.UNIT_HEAD_BYTES :])) for made in units]
    return bytes([version]) + b"".join(units)


async def links(seed: int) -> str | None:
    """One node among two that behave and one that does not."""
    rng = random.Random(seed)
    net = SimNet(seed)
    escaped: list[str] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: escaped.append(repr(context.get("exception") or context["message"]))
    )
    good, victim = await cluster(net, 2)

    async def echo(node: int, payload: memoryview) -> bytes:
        await asyncio.sleep(rng.random() / 100)
        return bytes(payload)

    async def take(node: int, head: bytes, stream: InStream) -> bytes:
        try:
            async for _ in stream:
                await asyncio.sleep(rng.random() / 100)
        except (PeerError, PeerLost):
            return b"cut"
        return b"whole"

    async def early(node: int, head: bytes, stream: InStream) -> bytes:
        await asyncio.sleep(rng.random() / 10)
        return b"enough"

    victim.peers.serve(1, echo)
    victim.peers.serve(2, echo, guests=True)
    victim.peers.serve_stream(1, take)
    victim.peers.serve_stream(2, early)
    evil = Node(net, 3, role=rng.choice([0, GUEST_ROLE]))
    place = Address(host(2), PORT)
    for _ in range(rng.randrange(1, 4)):
        lane = Lane.GUEST if evil.role == GUEST_ROLE else rng.choice(list(Lane))
        link = PeerLink(evil.peers, await evil.network.connect(place, 5.0), lane)
        if rng.randrange(4):
            evil.peers._begin(link)
            await until(lambda link=link: link.ready or bool(link.ended))  # type: ignore[misc]
        else:
            link.link.begin(lambda frame: None, lambda error: None)
        for _ in range(rng.randrange(1, 30)):
            link.link.send([random_frame(rng, link.version or rng.randrange(3))])
        # The node serves the others meanwhile.
        if await good.peers.call(2, 1, b"hello", timeout_s=5.0) != b"hello":
            return "another node's call was answered wrong"
        await asyncio.sleep(rng.random())
        if rng.randrange(2):
            link.close("enough")
            link.link.close()
    await evil.peers.close()
    await evil.network.close()
    if escaped:
        return f"escaped: {escaped}"
    await asyncio.sleep(70.0)
    left = [link for link in victim.peers._links if link.link.peer == key(3)]
    if left or victim.peers._received_bytes or len(victim.peers._tasks):
        return f"left over: {left}, {victim.peers._received_bytes} bytes, {victim.peers._tasks}"
    if not (good.peers.is_up(2) and victim.peers.is_up(1)):
        return "a link between two that behave was lost"
    if good.peers.stats.links_lost or good.peers.stats.malformed:
        return "the node that behaves was cut off"
    await good.peers.close()
    await victim.peers.close()
    return None


def step(rng: random.Random) -> str | None:
    if rng.randrange(8):
        return decoders(rng)
    seed = rng.randrange(2**32)
    try:
        finding: str | None = play(links(seed), seed)
    except Exception as error:
        error.add_note(f"links({seed})")
        raise
    return finding and f"links({seed}): {finding}"


def main() -> int:
    return campaign(__doc__, step, "hellos, messages and links")


if __name__ == "__main__":
    sys.exit(main())
