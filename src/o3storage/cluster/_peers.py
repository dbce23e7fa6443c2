"""The peers of a node: links to all of them, kept up by themselves, and what is said on them.

    peers = Peers(network, me=id, session=session, admit=judge, hello=introduce, entropy=entropy)
    peers.on_message = receive            # (node, group, message, frames)
    await peers.listen(Address("10.0.0.1", 8081))
    peers.set_peers({2: (identity, (Address("10.0.0.2", 8081),))})
    peers.send(2, group, message, frames)                   # best effort
    answer = await peers.call(2, kind, payload, timeout_s=5.0)

Two links connect each pair: consensus, and bulk. Both nodes connect; of two links of one lane the
one that the lower node id opened stays, of those the newest. Who a peer is says its key; what it
may do says `admit`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from o3storage.cluster import _wire
from o3storage.cluster._peer_link import MAX_SERVED_BYTES, Handler, PeerLink
from o3storage.cluster._peer_streams import OutStream, StreamHandler
from o3storage.cluster._peer_table import Peer
from o3storage.cluster._peer_types import (
    Admission,
    PeerOptions,
    PeerRefused,
    PeerStats,
    PeerUnreachable,
    Verdict,
    refuse,
)
from o3storage.cluster._wire import Hello, Lane
from o3storage.crypto import FRAME_BYTES
from o3storage.raft.core import Append, HoleAnswer, Message, SnapshotPiece
from o3storage.runtime import Logger, Tasks
from o3storage.runtime.clock import Entropy
from o3storage.runtime.disk import Buffer
from o3storage.runtime.network import Address, Link, LinkClosed, Network
from o3storage.storage import SealedFrame

MAX_LINKS = 512
"""Links at a time, two for each peer: far more nodes than a cluster has."""
MAX_NEW_LINKS = 64
"""Links that others opened and that are not ready; the oldest makes room."""
MAX_GUESTS = 16
GUEST_S = 60.0
"""A guest's link is closed after so long: it is for one call."""
MAX_TASKS = 8192
"""Calls and streams that are being served, of all peers."""
MAX_RIDING_BYTES = 8 << 20
"""Frames that ride with one message, as many as the store takes in one append."""
MAX_PROBLEMS = 64
"""Addresses and nodes whose last trouble is remembered for `status`."""
PASSES_WITHIN_S = 10.0
"""A node that has just joined is known to all others within this time."""
SESSIONS_KEPT = 8
NO_MEMBER = "the node is no member any more"
TICK_S = 0.1

_BULKY = (Append, HoleAnswer, SnapshotPiece)
"""Messages that can be large: dropped first."""

_log = Logger("peers")


class Peers:
    """All methods run on the event loop's thread."""

    def __init__(
        self,
        network: Network,
        *,
        me: int,
        session: int,
        admit: Callable[[Link, Hello], Verdict],
        hello: Callable[[Link], Hello],
        entropy: Entropy,
        options: PeerOptions | None = None,
        versions: tuple[int, int] = (_wire.LOWEST_VERSION, _wire.HIGHEST_VERSION),
    ) -> None:
        """`hello` introduces this node on a link (see `Hello`); `admit` judges the peer's, on both
        sides. Both may be called for links of any lane; they raise nothing."""
        self.me = me
        self.session = session
        self.options = options or PeerOptions()
        self.stats = PeerStats()
        self.on_message: Callable[[int, int, Message, list[SealedFrame]], None] = _unheard
        self.on_up: Callable[[int], None] = _nothing
        """The consensus link to a node is ready. Also after one was replaced by another, behind
        `on_down`: what was sent on the old one may be lost."""
        self.on_down: Callable[[int], None] = _nothing
        self.problems: dict[str, str] = {}
        """Address (or "from HOST", of links from there) -> what is wrong there, for `status`."""
        self._passing: dict[str, float] = {}
        """When a problem that should end by itself was met first, where no warning was given."""
        self.served_bytes = 0
        """Payloads of the calls that are being served."""
        self.waiting_bytes = 0
        """Large answers to calls that wait for room on their links."""
        self._network = network
        self._admit = admit
        self._hello = hello
        self._entropy = entropy
        self._versions = versions
        self._loop = asyncio.get_running_loop()
        self._peers: dict[int, Peer] = {}
        self._links: dict[PeerLink, None] = {}
        self._ready: dict[int, PeerLink] = {}
        """Node -> consensus link."""
        self._handlers: dict[int, tuple[Handler, bool]] = {}
        self._stream_handlers: dict[int, StreamHandler] = {}
        self._to_flush: list[PeerLink] = []
        self._attempts = 0
        self._received_bytes = 0
        self._paused: dict[PeerLink, None] = {}
        self._tasks = Tasks(on_error=lambda error: self.failed("a task", error))
        self._ticker: asyncio.TimerHandle | None = None
        self._ticked_s = self._loop.time()
        self._closed = False

    # --- life

    async def listen(self, address: Address) -> Address:
        """Take links at `address` (port 0: any); returns it as bound. Raises OSError."""
        bound = await self._network.listen(address, self._accepted)
        self._start_ticking()
        return bound

    def set_peers(self, peers: Mapping[int, tuple[bytes, tuple[Address, ...]]]) -> None:
        """The nodes of the cluster: id -> (identity, addresses). Links to them are made and kept;
        those to others are closed. This node's own id is left out."""
        for node in [node for node in self._peers if node not in peers]:
            peer = self._peers.pop(node)
            self._stop_dialing(peer)
            for link in list(peer.links):
                if link is not None:
                    link.close(NO_MEMBER)
        for link in list(self._links):
            # Also what was admitted and is not ready yet, and calls of its own.
            if link.verdict is not None and not link.guest and link.node not in peers:
                link.close(NO_MEMBER)
        for node, (identity, addresses) in peers.items():
            if node == self.me:
                continue
            found = self._peers.get(node)
            if found is None:
                found = self._peers[node] = Peer(node)
            if (found.identity, found.addresses) == (identity, addresses):
                continue
            if found.identity != identity:
                for link in list(found.links):
                    if link is not None and link.link.peer != identity:
                        link.close("the node has another key now")
            found.identity, found.addresses, found.at = identity, addresses, 0
            found.failures = [0, 0]
            for lane in (Lane.CONSENSUS, Lane.BULK):
                if found.links[lane] is None:
                    self._dial_soon(found, lane, first=True)
        self._start_ticking()

    async def close(self) -> None:
        """Close every link and end every call and handler. The network stays. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._ticker is not None:
            self._ticker.cancel()
        for peer in self._peers.values():
            self._stop_dialing(peer)
            for waiters in peer.waiters:
                _release(waiters)
        for link in list(self._links):
            link.close("this node is stopping")
        await self._tasks.close()

    # --- messages of consensus

    def send(
        self, node: int, group: int, message: Message, frames: Sequence[SealedFrame] = ()
    ) -> None:
        """Best effort, in order while the link lives. Dropped while it is down, or while too much
        waits; messages without entries still go then. Pieces of snapshots take the bulk link. Of
        more than MAX_RIDING_BYTES of frames only the first go along: the receiver fetches what it
        lacks. Raises ValueError for a message too large."""
        link = self._ready.get(node)
        if link is not None and type(message) is SnapshotPiece:
            link = self._peers[node].links[Lane.BULK]
        if link is None or not self._has_room(link, message):
            self.stats.messages_dropped += 1
            return
        if len(frames) > _FEW_FRAMES:
            frames = _that_ride(frames)
        self.stats.messages_sent += 1
        pending = link.pending
        if not pending:
            self.flush_soon(link)
        at = len(pending)
        try:
            link.pending_bytes += _wire.encode_message(group, message, frames, pending)
        except ValueError:
            del pending[at:]
            raise
        if link.pending_bytes >= _FLUSH_BYTES:
            link.flush()

    def _has_room(self, link: PeerLink, message: Message) -> bool:
        options = self.options
        unsent = link.link.unsent_bytes + link.pending_bytes
        if unsent < _CALM_BYTES:
            return True
        spare = 0 if isinstance(message, _BULKY) else options.unsent_reserve_bytes
        if unsent > options.max_unsent_bytes + spare:
            return False
        total = sum(other.unsent_bytes for other in self._links)
        return total <= options.max_unsent_all_bytes + spare

    # --- calls

    def serve(self, kind: int, handler: Handler, *, guests: bool = False) -> None:
        """Answer calls of `kind` (u16) with `await handler(node, payload)`. The handler's tasks run
        side by side; PeerError answers an error, any other exception FAILED. A call goes on when
        its caller is gone. `guests`: also for links whose verdict is GUEST."""
        self._handlers[kind] = (handler, guests)

    async def call(
        self,
        node: int,
        kind: int,
        payload: Buffer,
        *,
        timeout_s: float,
        lane: Lane = Lane.CONSENSUS,
    ) -> bytes:
        """Ask `node`. Waits for the bulk link, if only that is missing.
        Raises PeerUnreachable (nothing was sent), PeerLost (it may have been carried out),
        PeerError (its answer)."""
        begun_s = self._loop.time()
        link = await self._link_to(node, lane, timeout_s)
        return await link.call(kind, payload, timeout_s - (self._loop.time() - begun_s))

    async def call_address(
        self, address: Address, kind: int, payload: Buffer, timeout_s: float
    ) -> tuple[bytes, bytes]:
        """Call whoever listens at `address`, on a link of its own: (its identity, its answer).
        `admit` judges it like any other. Raises as `call`; PeerRefused when a side refuses."""
        end_s = self._loop.time() + timeout_s
        try:
            raw = await self._network.connect(address, timeout_s)
        except LinkClosed as error:
            raise PeerUnreachable(str(error)) from None
        link = PeerLink(self, raw, Lane.GUEST)
        self._begin(link)
        try:
            await self._settled(link, end_s - self._loop.time())
            if not link.ready:
                why = link.refused or link.ended or "no hello in time"
                error_type = PeerRefused if link.refused else PeerUnreachable
                raise error_type(f"{address.host}:{address.port}: {why}")
            answer = await link.call(kind, payload, end_s - self._loop.time())
            return raw.peer, answer
        finally:
            link.close("the call is over")

    # --- streams

    def serve_stream(self, kind: int, handler: StreamHandler) -> None:
        """Take streams of `kind` (u16): `await handler(node, head, stream) -> answer`. The handler
        takes pieces without waiting for anything on a bulk link, which may wait for it."""
        self._stream_handlers[kind] = handler

    async def open_stream(
        self, node: int, kind: int, head: bytes, *, timeout_s: float = 5.0
    ) -> OutStream:
        """A new stream to `node`; waits for the bulk link, if only that is missing.
        Raises PeerUnreachable."""
        link = await self._link_to(node, Lane.BULK, timeout_s)
        return link.streams.open(kind, head)

    # --- what there is

    def known(self) -> int:
        """How many nodes of the cluster there are beside this one, as far as it knows."""
        return len(self._peers)

    def is_up(self, node: int) -> bool:
        """Whether the consensus link is ready."""
        return node in self._ready

    def status(self) -> list[dict[str, Any]]:
        """One entry for each peer, by node id."""
        now_s = self._loop.time()
        return [self._peers[node].status(now_s) for node in sorted(self._peers)]

    # --- connecting

    def _dial_soon(self, peer: Peer, lane: int, *, first: bool = False) -> None:
        if self._closed or not peer.addresses or self._peers.get(peer.node) is not peer:
            return
        options = self.options
        if first:
            delay = options.yield_s if self.me > peer.node else 0.0
        else:
            doublings = min(peer.failures[lane], 16)
            delay = min(options.retry_low_s * 2**doublings, options.retry_high_s)
        delay *= self._entropy.uniform(0.5, 1.5)
        retry = peer.retries[lane]
        if retry is not None:
            retry.cancel()
        peer.retries[lane] = self._loop.call_later(delay, self._dial_now, peer, lane)

    def _dial_now(self, peer: Peer, lane: int) -> None:
        peer.retries[lane] = None
        if peer.dialing[lane] is None and peer.links[lane] is None and not self._closed:
            peer.dialing[lane] = self._tasks.spawn(self._dial(peer, lane))

    async def _dial(self, peer: Peer, lane: int) -> None:
        """Try every address, the one that worked last first, until a link is ready."""
        try:
            count = len(peer.addresses)
            for step in range(count):
                at = (peer.at + step) % count
                address = peer.addresses[at]
                problem = await self._try_address(peer, lane, address)
                if peer.links[lane] is not None:
                    if not problem:
                        peer.at = at
                    return
                peer.problem = f"{address.host}:{address.port}: {problem}"
                if peer.addresses[at : at + 1] != (address,):
                    break  # the addresses changed meanwhile
            peer.failures[lane] += 1
        finally:
            peer.dialing[lane] = None
            if peer.links[lane] is None:
                self._dial_soon(peer, lane)

    async def _try_address(self, peer: Peer, lane: int, address: Address) -> str:
        """Empty when a link through `address` is ready, else what is in the way."""
        try:
            raw = await self._network.connect(address, self.options.connect_timeout_s)
        except LinkClosed as error:
            return str(error)
        if self._closed or peer.links[lane] is not None:
            raw.close()
            return "not needed any more"
        if raw.peer != peer.identity:
            raw.close()
            self.note(raw, f"answers with another key than node {peer.node:016x}")
            return "another node answers there"
        link = PeerLink(self, raw, lane, peer.node)
        self._begin(link)
        await self._settled(link, self.options.hello_timeout_s)
        if link.ready:
            return ""
        if not link.ended and not link.refused:
            link.close("no hello in time")
        return link.refused or link.ended

    async def _settled(self, link: PeerLink, timeout_s: float) -> None:
        """Wait until the link is ready, refused or ended, or for `timeout_s`."""
        if link.ready or link.ended:
            return
        settled = link.settled = self._loop.create_future()
        timer = self._loop.call_later(max(timeout_s, 0.0), _wake, settled)
        try:
            await settled
        finally:
            timer.cancel()
            link.settled = None

    def _stop_dialing(self, peer: Peer) -> None:
        for lane in (Lane.CONSENSUS, Lane.BULK):
            retry, peer.retries[lane] = peer.retries[lane], None
            if retry is not None:
                retry.cancel()
            dialing = peer.dialing[lane]
            if dialing is not None:
                dialing.cancel()

    async def _link_to(self, node: int, lane: Lane, timeout_s: float) -> PeerLink:
        peer = self._peers.get(node)
        if lane == Lane.GUEST or self._closed or peer is None or node not in self._ready:
            raise PeerUnreachable(f"there is no link to node {node:016x}")
        link = peer.links[lane]
        if link is None:
            waiter: asyncio.Future[None] = self._loop.create_future()
            peer.waiters[lane].append(waiter)
            timer = self._loop.call_later(timeout_s, _wake, waiter)
            try:
                await waiter
            finally:
                timer.cancel()
                if waiter in peer.waiters[lane]:
                    peer.waiters[lane].remove(waiter)
            link = peer.links[lane]
            if link is None:
                raise PeerUnreachable(f"there is no {lane.name.lower()} link to node {node:016x}")
        return link

    def _accepted(self, raw: Link) -> None:
        new = [link for link in self._links if not link.ready and not link.outgoing]
        if self._closed or len(self._links) >= MAX_LINKS:
            raw.close()
            return
        if len(new) >= MAX_NEW_LINKS:
            new[0].close("too many new links")
        self._begin(PeerLink(self, raw, Lane.CONSENSUS))

    def _begin(self, link: PeerLink) -> None:
        self._links[link] = None
        self._start_ticking()
        link.begin(self._loop.time())

    # --- called by links

    @property
    def busy(self) -> bool:
        return len(self._tasks) >= MAX_TASKS or self.served_bytes >= MAX_SERVED_BYTES

    def versions(self) -> tuple[int, int]:
        return self._versions

    def hello_for(self, link: PeerLink) -> Hello:
        hello = self._hello(link.link)
        hello.node, hello.session, hello.lane = self.me, self.session, link.lane
        if link.outgoing:
            self._attempts += 1
            hello.attempt = self._attempts
        hello.lowest, hello.highest = self._versions
        return hello

    def judge(self, link: PeerLink, hello: Hello) -> Verdict:
        """Whether the peer may have this link; `admit` is asked last."""
        raw = link.link
        if hello.node == self.me:
            if hello.session == self.session:
                self.note(raw, "this node's own address")
                return refuse("this is the same node")
            self._duplicate(raw, self.me)
            return refuse("another process uses this node's id; stop one of the two")
        peer = self._peers.get(hello.node)
        if peer is not None and hello.lane != Lane.GUEST:
            if peer.identity and peer.identity != raw.peer:
                self._duplicate(raw, hello.node)
                return refuse("the cluster knows this node's id with another key")
            if self._superseded(peer, hello.session):
                peer.duplicates += 1
                self._duplicate(raw, hello.node)
                return refuse("a later start of this node is connected; stop one of the two")
        verdict = self._admit(raw, hello)
        if verdict.admission is Admission.REFUSED:
            self.note(raw, f"refused: {verdict.reason}")
        elif verdict.admission is Admission.GUEST:
            guests = [other for other in self._links if other.guest and not other.ended]
            if len(guests) >= MAX_GUESTS:
                return refuse("too many nodes are joining; try again later")
        return verdict

    def _superseded(self, peer: Peer, session: int) -> bool:
        """Whether a later session of the same node is connected now, so two processes live."""
        sessions = peer.sessions
        if not sessions or session == sessions[-1]:
            return False
        live = any(link is not None for link in peer.links)
        if session in sessions:
            if live:
                return True
            sessions.remove(session)
            peer.duplicates += 1
            self.stats.duplicates += 1
        return False

    def _duplicate(self, link: Link, node: int) -> None:
        self.stats.duplicates += 1
        self.note(link, f"a second process, or another key, claims node {node:016x}")

    def note(self, link: Link, problem: str, *, passing: bool = False) -> None:
        """Remember what is wrong with whoever is at the other end, and say it when it is new.
        `passing`: it most likely ends by itself, and is worth a warning only if it does not."""
        host, port = link.address
        place = f"{host}:{port}" if link.outgoing else f"from {host}"
        is_new = self.problems.pop(place, "") != problem
        now_s = self._loop.time()
        if is_new and passing:
            self._passing[place] = now_s
            _log.info("peer.problem", place=place, problem=problem)
        elif is_new or now_s - self._passing.get(place, now_s) >= PASSES_WITHIN_S:
            self._passing.pop(place, None)
            _log.warning("peer.problem", place=place, problem=problem)
        self.problems[place] = problem
        if len(self.problems) > MAX_PROBLEMS:
            oldest = next(iter(self.problems))
            del self.problems[oldest]
            self._passing.pop(oldest, None)

    def link_ready(self, link: PeerLink) -> None:
        self.stats.links_made += 1
        if link.lane == Lane.GUEST:
            return
        peer = self._peers.get(link.node)
        if peer is None:
            # Admitted before `set_peers` named it.
            peer = self._peers[link.node] = Peer(link.node, link.link.peer)
        hello = link.hello
        assert hello is not None
        self._new_session(peer, hello.session)
        lane = link.lane
        old = peer.links[lane]
        if old is not None and self._keeps(peer, old, link):
            link.close("another link of this pair stays")
            return
        if old is not None:
            old.close("another link of this pair takes its place")
        peer.links[lane] = link
        peer.problem = ""
        host = link.link.address.host
        self.problems.pop(f"from {host}", None)
        for address in (*peer.addresses, link.link.address):
            if address.host == host:
                self.problems.pop(f"{host}:{address.port}", None)
        retry, peer.retries[lane] = peer.retries[lane], None
        if retry is not None:
            retry.cancel()
        _release(peer.waiters[lane])
        if lane == Lane.CONSENSUS:
            self._ready[peer.node] = link
            _log.debug("peer.up", node=f"{peer.node:016x}", address=host)
            self.on_up(peer.node)

    def _new_session(self, peer: Peer, session: int) -> None:
        """The node was started anew: what is left of its links is closed."""
        sessions = peer.sessions
        if sessions and sessions[-1] == session:
            return
        for lane in (Lane.CONSENSUS, Lane.BULK):
            old = peer.links[lane]
            if old is not None and old.hello is not None and old.hello.session != session:
                old.close("the node was started anew")
        sessions.append(session)
        del sessions[:-SESSIONS_KEPT]

    def _keeps(self, peer: Peer, old: PeerLink, new: PeerLink) -> bool:
        """Of two links of one lane between the same two processes, both sides keep the same."""
        if old.outgoing != new.outgoing:
            return old.outgoing == (self.me < peer.node)
        return old.attempt > new.attempt

    def link_ended(self, link: PeerLink, reason: str) -> None:
        self._links.pop(link, None)
        self._paused.pop(link, None)
        peer = self._peers.get(link.node)
        lane = link.lane
        if link.lane == Lane.GUEST or peer is None or peer.links[lane] is not link:
            if self._ready.get(link.node) is link:
                self._ready.pop(link.node)
                self.on_down(link.node)
            return
        self.stats.links_lost += 1
        peer.links[lane] = None
        peer.problem = reason
        if self._loop.time() - link.made_s > self.options.retry_high_s:
            peer.failures[lane] = 0
        else:
            peer.failures[lane] += 1
        if lane == Lane.CONSENSUS:
            self._ready.pop(peer.node, None)
            _log.debug("peer.down", node=f"{peer.node:016x}", reason=reason)
            self.on_down(peer.node)
        if peer.dialing[lane] is None:
            self._dial_soon(peer, lane)

    def flush_soon(self, link: PeerLink) -> None:
        if not self._to_flush:
            self._loop.call_soon(self._flush)
        self._to_flush.append(link)

    def _flush(self) -> None:
        links, self._to_flush = self._to_flush, []
        for link in links:
            link.flush()

    def handler(self, kind: int) -> tuple[Handler, bool] | None:
        return self._handlers.get(kind)

    def stream_handler(self, kind: int) -> StreamHandler | None:
        return self._stream_handlers.get(kind)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return self._tasks.spawn(work)

    def failed(self, what: str, error: BaseException) -> None:
        _log.error("peer.handler_failed", what=what, error=error)

    def received(self, link: PeerLink, size_bytes: int) -> None:
        """Pieces of streams came (or, negative, were consumed): the sum is bounded."""
        self._received_bytes += size_bytes
        if size_bytes > 0:
            if self._received_bytes > self.options.max_received_bytes and not link.paused:
                link.paused = True
                self._paused[link] = None
                link.link.pause()
        elif self._paused and self._received_bytes <= self.options.max_received_bytes // 2:
            paused, self._paused = self._paused, {}
            for other in paused:
                other.paused = False
                other.link.resume()

    # --- time

    def _start_ticking(self) -> None:
        if self._ticker is None and not self._closed:
            self._ticked_s = self._loop.time()
            self._ticker = self._loop.call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        now_s = self._loop.time()
        options = self.options
        # After a stall of this process what the peers said waits in the sockets.
        stalled = now_s - self._ticked_s > 10 * TICK_S
        self._ticked_s = now_s
        for link in list(self._links):
            if link.heard or link.paused or stalled:
                link.heard = False
                link.heard_s = now_s
            if link.sent:
                link.sent = False
                link.sent_s = now_s
            if not link.ready:
                if now_s - link.made_s > options.hello_timeout_s:
                    link.close("no hello in time")
                continue
            patience_s = (
                options.dead_after_s if link.lane == Lane.CONSENSUS else options.bulk_dead_after_s
            )
            if now_s - link.heard_s > patience_s:
                link.close(f"nothing heard for {patience_s:g} s")
            elif link.guest and now_s - link.made_s > GUEST_S:
                link.close("a guest stayed too long")
            elif now_s - link.sent_s >= options.alive_every_s:
                link.say_alive()
        self._ticker = self._loop.call_later(TICK_S, self._tick)


_CALM_BYTES = 256 << 10
"""Below this the limits of unsent bytes are not looked at."""
_FLUSH_BYTES = 1 << 20
_FEW_FRAMES = MAX_RIDING_BYTES // (FRAME_BYTES + _wire.SEAL_BYTES)


def _that_ride(frames: Sequence[SealedFrame]) -> Sequence[SealedFrame]:
    left = MAX_RIDING_BYTES
    for count, frame in enumerate(frames):
        left -= len(frame.data)
        if left < 0:
            return frames[:count]
    return frames


def _unheard(node: int, group: int, message: Message, frames: list[SealedFrame]) -> None:
    """Until somebody listens."""


def _nothing(node: int) -> None:
    """Until somebody listens."""


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _release(waiters: list[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        _wake(waiter)
    waiters.clear()
