"""Several nodes in one process: real stores, catalogs and consensus, over a plain network that
delivers after a moment, in order for each pair, and can be cut."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from o3storage.cluster import Node, node_id
from o3storage.cluster._errors import ClusterError
from o3storage.cluster._node import Founder
from o3storage.cluster._peer_types import PeerError, PeerLost, PeerUnreachable
from o3storage.cluster._wire import UNIT_HEAD_BYTES, decode_message, encode_message
from o3storage.raft.core import Message
from o3storage.simulation import SimDisk, SimJobs
from o3storage.storage import SealedFrame
from tests.cluster.support import Rig

DELAY_S = 0.0005


class PlainNet:
    """Who can reach whom."""

    def __init__(self) -> None:
        self.peers: dict[int, PlainPeers] = {}
        self.cut_off: dict[tuple[int, int], None] = {}
        self.messages = 0
        self.drop: Callable[[Message], bool] = lambda _: False

    def reaches(self, a: int, b: int) -> bool:
        return b in self.peers and a in self.peers and (a, b) not in self.cut_off

    def cut(self, *sides: Sequence[int]) -> None:
        """Nothing passes between the sides until `heal`."""
        for one in sides:
            for other in sides:
                if one is not other:
                    for a in one:
                        for b in other:
                            self.cut_off[a, b] = None
        self.tell(up=False)

    def heal(self) -> None:
        self.cut_off.clear()
        self.tell(up=True)

    def leave(self, member: int) -> None:
        """Its process is gone."""
        self.peers.pop(member, None)
        for peers in list(self.peers.values()):
            peers.on_down(member)

    def tell(self, *, up: bool) -> None:
        for a, peers in list(self.peers.items()):
            for b in list(self.peers):
                if a != b and self.reaches(a, b) and self.reaches(b, a):
                    if up:
                        peers.on_up(b)
                elif a != b:
                    peers.on_down(b)


class PlainPeers:
    """`_peers.Peers` for tests."""

    def __init__(self, net: PlainNet, me: int) -> None:
        self.on_message: Callable[[int, int, Message, list[SealedFrame]], None] = _nothing
        self.on_up: Callable[[int], None] = _nothing
        self.on_down: Callable[[int], None] = _nothing
        self.net = net
        self.me = me
        self.stream_handlers: dict[int, Any] = {}
        self.handlers: dict[int, Callable[[int, memoryview], Awaitable[bytes]]] = {}
        net.peers[me] = self

    def send(
        self, node: int, group: int, message: Message, frames: Sequence[SealedFrame] = ()
    ) -> None:
        if not self.net.reaches(self.me, node) or self.net.drop(message):
            return
        self.net.messages += 1
        out: list[Any] = []
        encode_message(group, message, frames, out)
        data = memoryview(b"".join(bytes(part) for part in out))[UNIT_HEAD_BYTES:]
        asyncio.get_running_loop().call_later(DELAY_S, self._deliver, node, data)

    def _deliver(self, node: int, data: memoryview) -> None:
        if self.net.reaches(self.me, node):
            group, message, frames = decode_message(data, self.me, node)
            self.net.peers[node].on_message(self.me, group, message, frames)

    async def call(
        self, node: int, kind: int, payload: Any, *, timeout_s: float, lane: Any = 0
    ) -> bytes:
        net = self.net
        if not net.reaches(self.me, node):
            raise PeerUnreachable("no link")
        await asyncio.sleep(DELAY_S)
        if not net.reaches(self.me, node):
            raise PeerLost("the link broke")
        handler = net.peers[node].handlers[kind]
        try:
            answer = await handler(self.me, memoryview(bytes(payload)))
        except ClusterError:
            raise
        except Exception as error:
            raise PeerError(1, repr(error)) from error
        await asyncio.sleep(DELAY_S)
        if not net.reaches(node, self.me):
            raise PeerLost("the link broke")
        return answer

    def serve(
        self,
        kind: int,
        handler: Callable[[int, memoryview], Awaitable[bytes]],
        *,
        guests: bool = False,
    ) -> None:
        assert kind not in self.handlers
        self.handlers[kind] = handler

    def serve_stream(self, kind: int, handler: Any) -> None:
        self.stream_handlers[kind] = handler

    async def open_stream(
        self, node: int, kind: int, head: bytes, *, timeout_s: float = 5.0
    ) -> PlainStream:
        await asyncio.sleep(DELAY_S)
        if not self.is_up(node):
            raise PeerUnreachable("no link")
        stream = PlainStream(self, node)
        handler = self.net.peers[node].stream_handlers[kind]
        stream.task = asyncio.ensure_future(handler(self.me, head, stream))
        return stream

    def known(self) -> int:
        return len(self.net.peers) - 1

    def is_up(self, node: int) -> bool:
        return self.net.reaches(self.me, node) and self.net.reaches(node, self.me)


class PlainStream:
    """Both ends of a stream."""

    def __init__(self, peers: PlainPeers, node: int) -> None:
        self.peers = peers
        self.node = node
        self.pieces: asyncio.Queue[Any] = asyncio.Queue(32)
        self.task: asyncio.Future[bytes]
        self.ended = False

    def _check(self) -> None:
        if not self.peers.is_up(self.node):
            self.abort()
            raise PeerLost("the link broke")

    async def write(self, piece: Any, last: bool = False, *, head: bytes = b"") -> None:
        self._check()
        while self.pieces.full():
            await asyncio.sleep(DELAY_S)
            self._check()
        self.pieces.put_nowait((head + bytes(piece), last))

    async def finish(self, timeout_s: float) -> bytes:
        for _ in range(int(timeout_s / DELAY_S)):
            self._check()
            if self.task.done():
                return self.task.result()
            await asyncio.sleep(DELAY_S)
        raise PeerLost("too slow")

    def abort(self) -> None:
        self.task.cancel()

    def __aiter__(self) -> PlainStream:
        return self

    async def __anext__(self) -> bytes:
        if self.ended:
            raise StopAsyncIteration
        piece, self.ended = await self.pieces.get()
        return bytes(piece)


def _nothing(*_: Any) -> None:
    return


class Member(Rig):
    """One of several."""

    def __init__(self, net: PlainNet, seed: int, **options: Any) -> None:
        super().__init__(seed, SimDisk(seed), **options)
        self.net = net
        self.id = node_id(self.keys)
        self.founders: list[Founder] = []
        self.bootstrap = True

    async def start(self) -> Member:
        self.store = await self.open_store()
        self.node = await Node.open(
            self.store,
            self.machine,
            keys=self.keys,
            jobs=SimJobs(self.seed),
            clock=self.clock,
            entropy=self.entropy,
            peers=PlainPeers(self.net, self.id),
            bootstrap=self.bootstrap,
            founders=self.founders,
        )
        self.net.tell(up=True)
        return self

    async def _bury(self) -> None:
        self.net.leave(self.id)
        await super()._bury()

    async def stop(self) -> None:
        await self.node.close()
        self.net.leave(self.id)
        await self.store.close()

    def replica(self, group: int = 1) -> Any:
        return self.node._replicas[group]

    def leads(self, group: int = 1) -> bool:
        return bool(self.replica(group).leads)


class Team:
    """Three of them, by default."""

    def __init__(self, count: int = 3, seed: int = 0, **options: Any) -> None:
        self.net = PlainNet()
        self.members = [Member(self.net, seed * 100 + n, **options) for n in range(count)]
        founders = [Founder(m.keys.identity, m.keys.exchange) for m in self.members]
        for member in self.members:
            member.founders = founders
            member.others = count > 2
        self.down: list[Member] = []

    async def start(self) -> Team:
        await asyncio.gather(*(member.start() for member in self.members))
        await self.settled()
        return self

    @property
    def up(self) -> list[Member]:
        return [member for member in self.members if member not in self.down]

    async def settled(self, among: Sequence[Member] | None = None) -> None:
        """Every group has a leader, and every node the cluster's keys."""
        members = self.up if among is None else among
        for _ in range(600):
            if all(m.node.cluster_id for m in members) and all(
                any(m.leads(group) for m in members) for group in (0, 1)
            ):
                return
            await asyncio.sleep(0.05)
        raise AssertionError([m.node.status() for m in members])

    def leader(self, group: int = 1) -> Member:
        return next(m for m in self.up if m.leads(group))

    def follower(self, group: int = 1) -> Member:
        return next(m for m in self.up if not m.leads(group))

    async def kill(self, member: Member) -> None:
        self.down.append(member)
        await member.kill()

    async def restart(self, member: Member) -> None:
        self.down.remove(member)
        await member.start()

    async def level(self, among: Sequence[Member] | None = None) -> None:
        """All have applied the same, and lack nothing."""
        members = self.up if among is None else among
        for _ in range(1200):
            if all(self._level(members, group) for group in (0, 1)):
                return
            await asyncio.sleep(0.05)
        raise AssertionError([m.node.status() for m in members])

    @staticmethod
    def _level(members: Sequence[Member], group: int) -> bool:
        replicas = [m.replica(group) for m in members]
        last = max(r.core.log.last for r in replicas)
        return all(
            r.applied == last and not r.team.gaps and not r.team.debt and r.team.complete
            for r in replicas
        )

    async def catalogs(self, among: Sequence[Member] | None = None) -> list[list[Any]]:
        """All replicated rows of each node (FE 01, which configuration is applied, is each one's
        own: after a snapshot it names the snapshot's index)."""
        found = []
        for member in self.up if among is None else among:
            rows = await member.store.scan(b"\x10", b"\xff", 100_000)
            found.append([row for row in rows if row[0][:2] != b"\xfe\x01"])
        return found

    async def stop(self) -> None:
        for member in self.up:
            await member.stop()


@contextlib.asynccontextmanager
async def team(count: int = 3, seed: int = 0, **options: Any) -> AsyncIterator[Team]:
    found = await Team(count, seed, **options).start()
    try:
        yield found
    finally:
        await found.stop()


class NothingRides:
    """In the place of the frames in memory: an Append goes without them."""

    def get(self, _: bytes) -> None:
        return None

    def put(self, _: Any) -> None:
        return None


async def equal(group: Team) -> None:
    await group.level()
    first, *rest = await group.catalogs()
    for other in rest:
        assert other == first


async def everywhere(group: Team, bucket: Any, bodies: dict[bytes, bytes]) -> None:
    for member in group.up:
        for key, body in bodies.items():
            assert await member.get(bucket, key) == body, (member.seed, key)


async def streams_of(member: Member) -> list[bytes]:
    """Streams with frames on this node's own disk."""
    rows = await member.store._core.index.scan(b"\x01", b"\x02", 100_000)
    return sorted({key[1:17] for key, _ in rows})


async def forget(member: Member, last: int) -> None:
    """Until the member's log no longer has the entry."""
    for _ in range(200):
        await member.store.flush()
        await member.store.compact()
        if member.store.log_state(1).first_index > last:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(member.store.log_state(1))
