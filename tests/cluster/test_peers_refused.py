"""Who is refused, as what somebody is taken, and what strangers can do: nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from o3storage.cluster import _wire as wire
from o3storage.cluster._peer_types import (
    MEMBER,
    Code,
    PeerError,
    PeerLost,
    PeerRefused,
    PeerUnreachable,
)
from o3storage.cluster._wire import Lane, Unit
from o3storage.runtime.network import Address
from o3storage.simulation import SimNet
from tests.cluster.peer_rig import (
    ECHO,
    GUEST_ROLE,
    PORT,
    SLOW,
    Node,
    cluster,
    echo,
    heartbeat,
    host,
    key,
    open_links,
    play,
    until,
    whole,
)


def test_a_node_that_is_no_member_any_more_is_cut_off() -> None:
    async def main() -> None:
        one, two, three = await cluster(SimNet(1), 3)
        one.knows(three)
        assert not one.peers.is_up(2) and [p["node"] for p in one.peers.status()] == [3]
        assert one.seen[-1] == ("down", 2)
        await until(lambda: not two.peers.is_up(1))

    play(main())


def test_a_link_that_was_admitted_does_not_come_up_after_its_node_was_removed() -> None:
    async def main() -> None:
        net = SimNet(1)
        one, two = [await Node(net, n).listen() for n in (1, 2)]
        one.knows(two)
        two.knows(one)
        while not any(link.verdict is MEMBER for link in two.peers._links):
            await asyncio.sleep(0.00001)
        assert not any(link.ready for link in two.peers._links)
        two.cluster = b"one that is no member of it"
        two.peers.set_peers({})
        await asyncio.sleep(1.0)
        assert two.peers.status() == []

    play(main())


def test_a_member_that_is_removed_is_cut_off_in_a_call_on_a_link_of_its_own() -> None:
    async def main() -> None:
        one, two, three = await cluster(SimNet(1), 3)

        async def never(_: int, __: memoryview) -> bytes:
            await asyncio.sleep(3600.0)
            return b""

        one.peers.serve(SLOW, never)
        calls = [
            asyncio.ensure_future(
                node.peers.call_address(Address(host(1), PORT), SLOW, b"", timeout_s=60.0)
            )
            for node in (two, three)
        ]
        await asyncio.sleep(1.0)
        one.knows(three)
        await asyncio.sleep(1.0)
        assert calls[0].done() and not calls[1].done(), "the other one is a member"
        with pytest.raises(PeerLost):
            await calls[0]
        calls[1].cancel()

    play(main())


def test_who_is_refused_is_told_why() -> None:
    async def main() -> None:
        net = SimNet(1)
        one, two = [await Node(net, n).listen() for n in (1, 2)]
        two.cluster = b"other"
        one.knows(two)
        two.knows(one)
        await asyncio.sleep(10.0)
        assert not one.peers.is_up(2) and not two.peers.is_up(1)
        assert "another cluster" in one.peers.status()[0]["problem"]
        assert "another cluster" in two.peers.status()[0]["problem"]
        assert any("another cluster" in problem for problem in one.peers.problems.values())
        assert one.peers.stats.links_refused and one.peers.stats.malformed == 0
        assert open_links(one) <= 4
        two.cluster = one.cluster
        await until(lambda: whole(one, 2) and whole(two, 2))
        await until(lambda: not any("another cluster" in p for p in one.peers.problems.values()))

    play(main())


def test_the_highest_common_version_is_used_or_none() -> None:
    async def main() -> None:
        net = SimNet(1)
        one = await Node(net, 1, versions=(1, 4)).listen()
        two = await Node(net, 2, versions=(2, 3)).listen()
        three = await Node(net, 3, versions=(5, 6)).listen()
        for node in (one, two, three):
            node.knows(one, two, three)
        await until(lambda: one.peers.is_up(2) and two.peers.is_up(1))
        await asyncio.sleep(5.0)
        by_node = {peer["node"]: peer for peer in one.peers.status()}
        assert by_node[2]["lanes"]["consensus"]["version"] == 3
        assert by_node[2]["versions"] == [2, 3]
        assert not by_node[3]["up"]
        assert "1 to 4" in by_node[3]["problem"] and "5 to 6" in by_node[3]["problem"]
        two.peers.send(1, 0, heartbeat(2, 1))
        await until(lambda: len(one.heard) == 1)

    play(main())


def test_a_guest_may_call_what_is_for_guests_and_nothing_else() -> None:
    async def main() -> None:
        net = SimNet(1)
        (one,) = await cluster(net, 1)
        one.peers.serve(ECHO, echo, guests=True)
        one.peers.serve(SLOW, echo)
        guest = Node(net, 2, role=GUEST_ROLE)
        place = Address(host(1), PORT)
        assert await guest.peers.call_address(place, ECHO, b"hi", 5.0) == (key(1), b"hi")
        with pytest.raises(PeerError, match="members only") as caught:
            await guest.peers.call_address(place, SLOW, b"hi", 5.0)
        assert caught.value.code == Code.NOT_ALLOWED
        guest.cluster = b"x"
        with pytest.raises(PeerRefused, match="another cluster"):
            await guest.peers.call_address(place, ECHO, b"hi", 5.0)
        with pytest.raises(PeerUnreachable):
            await guest.peers.call_address(Address(host(9), PORT), ECHO, b"hi", 5.0)
        await until(lambda: open_links(one) == open_links(guest) == 0)
        # A link of members' lanes is not for guests.
        guest.cluster = one.cluster
        guest.peers.set_peers({1: (key(1), (place,))})
        await asyncio.sleep(5.0)
        assert "not a member" in guest.peers.status()[0]["problem"]
        assert one.peers.status() == []

    play(main())


@pytest.mark.parametrize(
    ("unit", "why"),
    [
        (wire.pack_unit(Unit.MESSAGE, 1) + b"\x09", "a message where none belongs"),
        (wire.OPEN.pack(Unit.OPEN, 6, 1, 1), "a stream where none belongs"),
        (wire.pack_unit(Unit.PART, 2) + b"\0x", "a part where none belongs"),
        (wire.CALL.pack(Unit.CALL, 6 + 70_000, 1, ECHO) + bytes(70_000), "too long"),
        (wire.pack_unit(Unit.HELLO, 0), "belongs"),
        (wire.pack_unit(77, 0), "belongs"),
        (b"\1", "cut short"),
        (wire.pack_unit(Unit.CALL, 600), "600 bytes"),
    ],
)
def test_a_guest_that_breaks_the_protocol_is_cut_off_and_counted(unit: bytes, why: str) -> None:
    async def main() -> None:
        net = SimNet(1)
        one, _ = await cluster(net, 2)
        closed: list[str] = []
        before = one.peers.stats.links_lost
        one.peers.serve(SLOW, echo)
        guest = Node(net, 3, role=GUEST_ROLE)
        raw = await guest.network.connect(Address(host(1), PORT), 5.0)
        from o3storage.cluster._peer_link import PeerLink

        link = PeerLink(guest.peers, raw, Lane.GUEST)
        guest.peers._begin(link)
        await until(lambda: link.ready)
        theirs = next(other for other in one.peers._links if other.guest)
        end, theirs._end = theirs._end, lambda reason: (closed.append(reason), end(reason))  # type: ignore
        raw.send([bytes([link.version]), unit])
        await until(lambda: bool(link.ended))
        assert one.peers.stats.malformed == 1
        assert len(closed) == 1 and why in closed[0]
        assert whole(one, 2) and one.peers.stats.links_lost == before

    play(main())


def test_a_stranger_that_says_nothing_or_nonsense_is_closed() -> None:
    async def main() -> None:
        net = SimNet(1)
        (one,) = await cluster(net, 1)
        stranger = net.network(host(9), key(9))
        closed: list[str] = []

        async def connect() -> Any:
            link = await stranger.connect(Address(host(1), PORT), 5.0)
            link.begin(lambda frame: None, lambda error: closed.append(str(error)))
            return link

        loop = asyncio.get_running_loop()
        await connect()
        begun = loop.time()
        await until(lambda: len(closed) == 1)
        assert 4.0 < loop.time() - begun < 7.0
        for frame in (b"", b"\0", b"GET / HTTP/1.1\r\n\r\n", b"\0\1\0\0\0\6O3PX\1\1", bytes(5000)):
            link = await connect()
            link.send([frame])
        await until(lambda: len(closed) == 6, 3.0)
        assert one.peers.stats.malformed == 5
        # However many come, the newest are heard.
        links = [await connect() for _ in range(100)]
        await asyncio.sleep(0.5)
        assert len(one.peers._links) == 64
        assert links[0].closed and not links[-1].closed

    play(main())


def test_nothing_more_is_taken_from_who_was_refused() -> None:
    async def main() -> None:
        net = SimNet(1)
        (one,) = await cluster(net, 1)
        stranger = net.network(host(9), key(9))
        link = await stranger.connect(Address(host(1), PORT), 5.0)
        frames: list[bytes] = []
        closed: list[str] = []
        link.begin(lambda view: frames.append(bytes(view)), lambda error: closed.append(str(error)))
        hello = wire.encode_hello(wire.Hello(node=9, cluster=b"x"))
        link.send([b"\0" + wire.pack_unit(Unit.HELLO, len(hello)) + hello])
        await until(lambda: len(frames) == 1)
        assert b"another cluster" in frames[0]
        for _ in range(10):
            link.send([bytes(2 << 20)])
        await until(lambda: bool(closed), 2.0)
        assert one.peers.stats.frames_received == 1 and one.peers.stats.malformed == 0

    play(main())


def test_two_processes_with_one_identity_are_noticed() -> None:
    async def main() -> None:
        net = SimNet(1)
        one, two = await cluster(net, 2)
        copy = await Node(net, 2, session=999, at=7).listen()
        copy.knows(one)
        await until(lambda: copy.peers.is_up(1))
        await until(lambda: bool(one.peers.stats.duplicates))
        await asyncio.sleep(10.0)
        status = one.peers.status()[0]
        assert status["duplicates"] and status["up"]
        assert "stop one of the two" in two.peers.status()[0]["problem"]
        # The later one is gone: the first may come back.
        copy.kill()
        await until(lambda: whole(two, 2))

    play(main())


def test_an_address_of_this_node_and_another_with_its_id() -> None:
    async def main() -> None:
        net = SimNet(1)
        one = await Node(net, 1).listen()
        other = await Node(net, 1, session=5, at=4).listen()
        other.role = 1
        for place, why in ((host(1), "the same node"), (host(4), "another process")):
            with pytest.raises(PeerRefused, match=why):
                await one.peers.call_address(Address(place, PORT), ECHO, b"", 5.0)
        assert "the same node" in one.peers.problems[f"{host(1)}:{PORT}"]
        assert other.peers.stats.duplicates
        assert "stop one" in one.peers.problems[f"{host(4)}:{PORT}"]

    play(main())


def test_an_id_with_another_key_is_refused() -> None:
    async def main() -> None:
        net = SimNet(1)
        one, two = await cluster(net, 2)
        thief = await Node(net, 2, session=5, at=6, identity=b"t" * 32).listen()
        thief.knows(one)
        await asyncio.sleep(5.0)
        assert not thief.peers.is_up(1)
        assert "another key" in thief.peers.status()[0]["problem"]
        assert any("claims node" in problem for problem in one.peers.problems.values())
        assert whole(two, 2)

    play(main())


def test_the_right_key_with_another_id_is_refused() -> None:
    async def main() -> None:
        net = SimNet(1)
        one = await Node(net, 1).listen()
        await Node(net, 5, at=2, identity=key(2)).listen()
        one.peers.set_peers({2: (key(2), (Address(host(2), PORT),))})
        await asyncio.sleep(5.0)
        assert not one.peers.is_up(2) and [peer["node"] for peer in one.peers.status()] == [2]
        assert "node 0000000000000005" in one.peers.status()[0]["problem"]

    play(main())


def test_a_frame_of_another_version_than_agreed_ends_the_link() -> None:
    async def main() -> None:
        one, two = await cluster(SimNet(1), 2)
        one.links(2)[Lane.CONSENSUS].link.send([b"\x09" + wire.pack_unit(Unit.ALIVE, 0)])
        await until(lambda: two.peers.stats.malformed == 1)
        assert "version 9" in two.peers.status()[0]["problem"]
        await until(lambda: whole(one, 2) and whole(two, 2))

    play(main())
