"""The real network on loopback: identities, frames of every size, backpressure, ends, limits."""

from __future__ import annotations

import asyncio
import itertools
import random
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from o3storage import _native
from o3storage.cluster import _tls_network as tls_network
from o3storage.cluster._peer_streams import InStream
from o3storage.cluster._peer_types import MEMBER, PeerOptions
from o3storage.cluster._peers import Peers
from o3storage.cluster._tls_network import TlsLink, TlsNetwork
from o3storage.cluster._wire import Hello, Lane
from o3storage.crypto import NODE_SERVER_NAME, NodeKeys, identity_certificate
from o3storage.raft import core as raft
from o3storage.runtime import SystemEntropy
from o3storage.runtime.network import MAX_FRAME_BYTES, Address, Link, LinkClosed
from o3storage.simulation import SimEntropy
from o3storage.storage import SealedFrame
from tests.fuzz import tls_frames

LOOPBACK = Address("127.0.0.1", 0)
LIMIT_S = 30.0


class Names:
    """Answers for the job pool."""

    async def lookup(self, host: str, port: int) -> list[tuple[int, str, int]]:
        if host == "nowhere":
            raise OSError("no such name")
        return [(2, f"10.0.0.{n % 20}", port) for n in range(40)]


def keys(number: int) -> NodeKeys:
    return NodeKeys.generate(SimEntropy(number))


class End:
    """One end of a link."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.frames: list[bytes] = []
        self.closed = ""
        self.stop_after = 0
        self.changed = asyncio.Event()

    def begin(self) -> End:
        self.link.begin(self._frame, self._closed)
        return self

    def _frame(self, view: memoryview) -> None:
        self.frames.append(bytes(view))
        if len(self.frames) == self.stop_after:
            self.link.pause()
        self.changed.set()

    def _closed(self, error: LinkClosed) -> None:
        assert not self.closed
        self.closed = str(error)
        self.changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


class Pair:
    """Two nodes' networks and one link between them; `far` accepted it."""

    near: End
    far: End

    async def __aenter__(self) -> Pair:
        self.one, self.two = TlsNetwork(keys(1), Names()), TlsNetwork(keys(2), Names())
        self.accepted: asyncio.Queue[Link] = asyncio.Queue()
        self.address = await self.two.listen(LOOPBACK, self.accepted.put_nowait)
        self.near, self.far = await self.link()
        return self

    async def link(self) -> tuple[End, End]:
        near = await self.one.connect(self.address, 5.0)
        async with asyncio.timeout(LIMIT_S):
            return End(near), End(await self.accepted.get())

    async def __aexit__(self, *_: object) -> None:
        await self.one.close()
        await self.two.close()


def play(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def test_both_sides_know_each_other_and_the_binding() -> None:
    async def main() -> None:
        async with Pair() as pair:
            near, far = pair.near.link, pair.far.link
            assert near.peer == keys(2).identity and far.peer == keys(1).identity
            assert near.binding == far.binding and len(near.binding) == 32
            assert near.outgoing and not far.outgoing
            assert near.address == pair.address and far.address.host == "127.0.0.1"
            for link in (near, far):
                assert isinstance(link, TlsLink) and link._transport is not None
                sock = link._transport.get_extra_info("socket")
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            other_near, other_far = await pair.link()
            assert other_near.link.binding == other_far.link.binding != near.binding

    play(main())


def test_frames_of_every_size_arrive_whole_and_in_order() -> None:
    async def main() -> None:
        rng = random.Random(1)
        sizes = [0, 1, 3, 4, 5, 100, 16_383, 16_384, 16_385, 65_531, 65_532, 65_536, 200_000]
        sizes += [MAX_FRAME_BYTES, 7, 1_000_000, 0, 12]
        sizes += [rng.randrange(3000) for _ in range(300)]
        async with Pair() as pair:
            near, far = pair.near, pair.far
            sent = []
            # (The first is limited.)
            for size in [8, *sizes]:
                frame = rng.randbytes(size)
                cuts = sorted(rng.randrange(size + 1) for _ in range(rng.randrange(4)))
                ends = [0, *cuts, size]
                pieces = [frame[a:b] for a, b in itertools.pairwise(ends)]
                near.link.send(pieces)
                sent.append(frame)
            far.begin()
            near.begin()
            await far.until(lambda: len(far.frames) == len(sent))
            assert far.frames == sent
            await near.link.drain(0)
            assert near.link.unsent_bytes == 0
            far.link.send([b"back"])
            await near.until(lambda: bool(near.frames))

    play(main())


def test_both_ways_at_once_with_pauses() -> None:
    async def main() -> None:
        async with Pair() as pair:
            ends = [pair.near.begin(), pair.far.begin()]
            frames = [bytes([n % 256]) * (1 + n * 997 % 90_000) for n in range(200)]
            for end in ends:
                end.stop_after = 20
            for frame in [b"first", *frames]:
                for end in ends:
                    end.link.send([frame])
            for end in ends:
                await end.until(lambda end=end: len(end.frames) >= 20)  # type: ignore[misc]
                while len(end.frames) < 201:
                    assert len(end.frames) == end.stop_after
                    end.stop_after += 20
                    end.link.resume()
                    want = min(end.stop_after, 201)
                    await end.until(lambda end=end, want=want: len(end.frames) >= want)  # type: ignore[misc]
                assert end.frames == [b"first", *frames]

    play(main())


def test_a_peer_that_does_not_read_stalls_the_sender_and_nothing_else() -> None:
    async def main() -> None:
        async with Pair() as pair:
            near, far = pair.near.begin(), pair.far.begin()
            near.link.send([b"first"])
            await far.until(lambda: len(far.frames) == 1)
            far.link.pause()
            body = bytes(1 << 20)
            for _ in range(64):
                near.link.send([body])
            drain = asyncio.ensure_future(near.link.drain(1 << 20))
            other, its_far = await pair.link()
            other.begin()
            its_far.begin()
            for _ in range(50):
                other.link.send([b"heartbeat"])
            await its_far.until(lambda: len(its_far.frames) == 50)
            assert not drain.done() and near.link.unsent_bytes > 16 << 20
            far.link.resume()
            async with asyncio.timeout(LIMIT_S):
                await drain
            assert near.link.unsent_bytes <= 1 << 20
            await far.until(lambda: len(far.frames) == 65)

    play(main())


def test_the_end_is_told_once_to_each_side() -> None:
    async def main() -> None:
        async with Pair() as pair:
            near, far = pair.near.begin(), pair.far.begin()
            near.link.send([b"last words"])
            near.link.close()
            near.link.close()
            near.link.send([b"too late"])
            await far.until(lambda: bool(far.closed))
            await near.until(lambda: bool(near.closed))
            assert far.frames == [b"last words"]
            assert far.closed == "closed by the peer" and near.closed == "closed by this side"
            with pytest.raises(LinkClosed):
                await near.link.drain(0)
            with pytest.raises(LinkClosed):
                await far.link.drain(0)
            # What was closed before `begin` is told then.
            other, its_far = await pair.link()
            other.link.close()
            while not its_far.link._ended:  # type: ignore[attr-defined]
                its_far.link._transport.resume_reading()  # type: ignore[attr-defined]
                await asyncio.sleep(0)
            its_far.begin()
            await its_far.until(lambda: bool(its_far.closed))

    play(main())


def test_a_link_closed_with_much_unsent_goes_at_once() -> None:
    async def main() -> None:
        async with Pair() as pair:
            near, far = pair.near.begin(), pair.far.begin()
            near.link.send([b"first"])
            await far.until(lambda: bool(far.frames))
            far.link.pause()
            for _ in range(20):
                near.link.send([bytes(MAX_FRAME_BYTES)])
            drain = asyncio.ensure_future(near.link.drain(0))
            await asyncio.sleep(0)
            near.link.close()
            with pytest.raises(LinkClosed):
                await drain
            assert near.link.unsent_bytes == 0
            far.link.resume()
            await far.until(lambda: bool(far.closed))

    play(main())


def test_nobody_there_and_nobody_answering() -> None:
    async def main() -> None:
        one = TlsNetwork(keys(1), Names())
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with pytest.raises(LinkClosed, match="refused"):
            await one.connect(Address("127.0.0.1", port), 5.0)
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen(1)
            with pytest.raises(LinkClosed, match=r"within 0\.05 s"):
                await one.connect(Address("127.0.0.1", silent.getsockname()[1]), 0.05)
        for host in ("localhost", "fe80::1%lo", "10.0.0.300"):
            with pytest.raises(LinkClosed, match="address"):
                await one.connect(Address(host, 1), 0.05)
        assert not one._links
        await one.close()
        with pytest.raises(LinkClosed, match="closed"):
            await one.connect(Address("127.0.0.1", port), 5.0)

    play(main())


def test_names() -> None:
    async def main() -> None:
        one = TlsNetwork(keys(1), Names())
        found = await one.resolve("many", 8081)
        assert found == [Address(f"10.0.0.{n}", 8081) for n in range(16)]
        with pytest.raises(OSError):
            await one.resolve("nowhere", 8081)

    play(main())


async def raw_client(
    address: Address, config: _native.TlsConfig | None, say: bytes
) -> tuple[bytes, bool]:
    """What the server said to `say` (over TLS with `config`, else in the clear), and whether the
    handshake was done."""
    reader, writer = await asyncio.open_connection(*address)
    answer, done = b"", config is None
    try:
        async with asyncio.timeout(LIMIT_S):
            if config is None:
                writer.write(say)
                writer.write_eof()
                answer = await reader.read()
                return answer, done
            tls = _native.TlsConnection(config, NODE_SERVER_NAME)
            out = bytearray(100_000)
            said = False
            while True:
                if tls.wants_write:
                    writer.write(tls.take())
                wire = await reader.read(65_536)
                if not wire:
                    return answer, done
                while wire:
                    used, made = tls.feed(wire, out)
                    wire, answer = wire[used:], answer + bytes(out[:made])
                if not tls.handshaking and not said:
                    done = said = True
                    tls.send(say)
    except (_native.TlsError, ConnectionError):
        return answer, done
    finally:
        writer.close()


def client_config(**changes: Any) -> _native.TlsConfig:
    chain, key = identity_certificate(keys(3).identity_seed)
    options: dict[str, Any] = {
        "ca_pem": None,
        "chain_pem": chain,
        "key_pem": key,
        "alpn": (tls_network.ALPN,),
        "tls13_only": True,
    }
    return _native.TlsConfig.client(**{**options, **changes})


@pytest.mark.parametrize(
    ("config", "say"),
    [
        (None, b"GET / HTTP/1.1\r\n\r\n"),
        (None, b""),
        (None, b"\x16\x03\x01" + bytes(300)),
        ({"alpn": ("h2",)}, b""),
        ({"alpn": ()}, b""),
        ({"chain_pem": None, "key_pem": None}, b""),
    ],
)
def test_who_does_not_speak_it_gets_no_link(config: Any, say: bytes) -> None:
    async def main() -> None:
        async with Pair() as pair:
            made = None if config is None else client_config(**config)
            answer, _ = await raw_client(pair.address, made, say)
            assert b"HTTP" not in answer
            assert pair.two.stats.handshake_failed == 1
            assert pair.accepted.empty()
            # And the others go on.
            near, far = pair.near.begin(), pair.far.begin()
            near.link.send([b"still here"])
            await far.until(lambda: bool(far.frames))

    play(main())


def test_the_first_frame_is_small_and_none_is_larger_than_allowed() -> None:
    async def main() -> None:
        async with Pair() as pair:
            first = tls_network.FIRST_FRAME_BYTES
            for prefix, size, limit in ((b"", first + 1, first), (b"\0\0\0\1x", 2**31, 2 << 20)):
                say = asyncio.ensure_future(
                    raw_client(pair.address, client_config(), prefix + size.to_bytes(4, "big"))
                )
                far = End(await pair.accepted.get()).begin()
                await far.until(lambda far=far: bool(far.closed))  # type: ignore[misc]
                assert str(limit) in far.closed and str(size) in far.closed
                assert (await say)[1]
            with pytest.raises(ValueError, match="at most"):
                pair.near.link.send([bytes(MAX_FRAME_BYTES), b"x"])

    play(main())


def test_frames_that_come_byte_by_byte_and_an_end_without_a_fin() -> None:
    async def main() -> None:
        async with Pair() as pair:
            reader, writer = await asyncio.open_connection(*pair.address)
            tls = _native.TlsConnection(client_config(), NODE_SERVER_NAME)
            out = bytearray(100_000)
            async with asyncio.timeout(LIMIT_S):
                while tls.handshaking:
                    writer.write(tls.take())
                    if tls.handshaking:
                        tls.feed(await reader.read(65_536), out)
                writer.write(tls.take())
                far = End(await pair.accepted.get()).begin()
                sent = [b"one", b"", b"three" * 10]
                for byte in b"".join(len(frame).to_bytes(4, "big") + frame for frame in sent):
                    tls.send(bytes([byte]))
                    writer.write(tls.take())
                    await writer.drain()
                    await asyncio.sleep(0)  # (each is read by itself)
                await far.until(lambda: len(far.frames) == 3)
                assert far.frames == sent and not far.closed
                tls.close()
                writer.write(tls.take())
                await far.until(lambda: bool(far.closed))
                assert far.closed == "closed by the peer"
                writer.close()

    play(main())


def test_open_handshakes_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls_network, "MAX_HANDSHAKES", 4)

    async def main() -> None:
        async with Pair() as pair:
            streams = [await asyncio.open_connection(*pair.address) for _ in range(10)]
            async with asyncio.timeout(LIMIT_S):
                for reader, _ in streams[:6]:
                    assert await reader.read() == b""
            near, far = await pair.link()
            near.begin()
            far.begin()
            assert pair.two.stats.crowded_out == 7
            for _, writer in streams:
                writer.close()

    play(main())


def test_a_handshake_has_a_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls_network, "HANDSHAKE_TIMEOUT_S", 0.01)

    async def main() -> None:
        async with Pair() as pair:
            reader, writer = await asyncio.open_connection(*pair.address)
            async with asyncio.timeout(LIMIT_S):
                assert await reader.read() == b""
            writer.close()
            assert pair.two.stats.handshake_failed == 1

    play(main())


def test_damaged_bytes_on_the_way_end_the_link() -> None:
    """A proxy that flips one bit: TLS notices, and nothing of it is handed on."""

    async def main() -> None:
        async with Pair() as pair:
            flip = asyncio.Event()

            async def relay(reader: Any, writer: Any, damage: bool) -> None:
                while data := await reader.read(65_536):
                    if damage and flip.is_set():
                        data = data[:-1] + bytes([data[-1] ^ 1])
                    writer.write(data)
                writer.close()

            async def proxy(reader: Any, writer: Any) -> None:
                on, back = await asyncio.open_connection(*pair.address)
                await asyncio.gather(relay(reader, back, True), relay(on, writer, False))

            server = await asyncio.start_server(proxy, "127.0.0.1", 0)
            pair.address, real = Address(*server.sockets[0].getsockname()), pair.address
            address, pair.address = pair.address, real
            near_link = await pair.one.connect(address, 5.0)
            near, far = End(near_link).begin(), End(await pair.accepted.get()).begin()
            near.link.send([b"good"])
            await far.until(lambda: bool(far.frames))
            flip.set()
            near.link.send([b"bad"])
            await far.until(lambda: bool(far.closed))
            assert far.frames == [b"good"] and "TLS failed" in far.closed
            await near.until(lambda: bool(near.closed))
            server.close()

    play(main())


def test_the_loop_is_not_held_by_large_frames() -> None:
    """No step encrypts or hands to the transport more than STEP_BYTES and what TLS adds."""

    async def main() -> None:
        async with Pair() as pair:
            near, far = pair.near.begin(), pair.far.begin()
            near.link.send([b"first"])
            assert isinstance(near.link, TlsLink)
            transport = near.link._transport
            assert transport is not None
            written: list[int] = []
            write = transport.write

            class Watch:
                def __getattr__(self, name: str) -> Any:
                    return getattr(transport, name)

                def write(self, data: bytes) -> None:
                    written.append(len(data))
                    write(data)

            near.link._transport = Watch()  # type: ignore[assignment]
            for _ in range(4):
                near.link.send([b"head", bytes(MAX_FRAME_BYTES - 4)])
            await far.until(lambda: len(far.frames) == 5)
            near.link._transport = transport
            assert sum(written) > 4 * MAX_FRAME_BYTES
            assert max(written) <= tls_network.STEP_BYTES + tls_network.OVERHEAD_BYTES

    play(main())


def test_peers_over_tls() -> None:
    """Three nodes: messages with frames, calls, a stream; one leaves and comes back."""

    class Node:
        def __init__(self, number: int, session: int) -> None:
            self.id = number
            self.network = TlsNetwork(keys(number), Names())
            self.changed = asyncio.Event()
            self.heard: list[Any] = []
            self.peers = Peers(
                self.network,
                me=number,
                session=session,
                admit=lambda link, hello: MEMBER,
                hello=lambda link: Hello(cluster=b"c"),
                entropy=SystemEntropy(),
                options=PeerOptions(yield_s=0.01, retry_low_s=0.01),
            )
            self.peers.on_message = self.on_message
            self.peers.on_up = self.peers.on_down = lambda node: self.changed.set()
            self.peers.serve(1, self.echo)
            self.peers.serve_stream(1, self.take)
            self.address = LOOPBACK

        def on_message(self, *what: Any) -> None:
            self.heard.append(what)
            self.changed.set()

        async def echo(self, node: int, payload: memoryview) -> bytes:
            return bytes(payload)

        async def take(self, node: int, head: bytes, stream: InStream) -> bytes:
            digest = _native.Digester(md5=False, sha256=True, blake3=False)
            async for piece in stream:
                digest.update(piece)
            return digest.finish()["sha256"]

        async def start(self) -> Node:
            self.address = await self.peers.listen(LOOPBACK)
            return self

        async def until(self, condition: Callable[[], bool]) -> None:
            async with asyncio.timeout(LIMIT_S):
                while not condition():
                    self.changed.clear()
                    await self.changed.wait()

        async def stop(self) -> None:
            await self.peers.close()
            await self.network.close()

    def introduce(nodes: list[Node]) -> None:
        table = {node.id: (keys(node.id).identity, (node.address,)) for node in nodes}
        for node in nodes:
            node.peers.set_peers(table)

    async def main() -> None:
        nodes = [await Node(number, number).start() for number in (1, 2, 3)]
        introduce(nodes)
        one, two, three = nodes
        await one.until(lambda: one.peers.is_up(2) and one.peers.is_up(3))
        await three.until(lambda: three.peers.is_up(2))
        sealed = SealedFrame(b"s" * 16, 0, True, 4096, b"x" * 4112)
        entries = [raft.Entry(1, 1, 0, b"command")]
        one.peers.send(2, 7, raft.Append(1, 2, 1, 0, 0, entries, 0), [sealed])
        await two.until(lambda: len(two.heard) == 1)
        assert two.heard == [(1, 7, raft.Append(1, 2, 1, 0, 0, entries, 0), [sealed])]
        big = random.Random(1).randbytes(3 << 20)
        for lane in (Lane.CONSENSUS, Lane.BULK):
            assert await two.peers.call(3, 1, big, timeout_s=LIMIT_S, lane=lane) == big
        stream = await one.peers.open_stream(3, 1, b"head")
        piece = random.Random(2).randbytes(256 << 10)
        for number in range(128):
            await stream.write(piece, last=number == 127)
        assert await stream.finish(LIMIT_S) == _native.sha256(piece * 128)
        await three.stop()
        await one.until(lambda: not one.peers.is_up(3))
        again = await Node(3, 33).start()
        introduce([one, two, again])
        await one.until(lambda: one.peers.is_up(3))
        assert await one.peers.call(3, 1, b"hello", timeout_s=LIMIT_S) == b"hello"
        for node in (one, two, again):
            await node.stop()

    play(main())


@pytest.mark.parametrize("seed", range(12))
def test_frames_over_a_pipe_that_cuts_delays_stalls_and_damages(seed: int) -> None:
    assert tls_frames.step(random.Random(seed)) is None
