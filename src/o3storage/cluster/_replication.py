"""Replication on one node: one timer for all its groups, messages in and out by group, and the
calls that nodes make to each other for proposals and frames.

A node without peers has no `Replication`; nothing here runs for it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from o3storage.cluster import _kinds
from o3storage.cluster._awake import Awake
from o3storage.cluster._barriers import Questions
from o3storage.cluster._batch import Batch
from o3storage.cluster._catch_up_pace import CatchUpPace
from o3storage.cluster._data import BodyReceiver, Sending
from o3storage.cluster._errors import LogFull, StorageFull, Unavailable
from o3storage.cluster._fetching import Fetcher
from o3storage.cluster._forwarding import Answer, Status, decode_batch, encode_answer, small_frame
from o3storage.cluster._peer_streams import InStream, OutStream
from o3storage.cluster._ranges import RangeTable
from o3storage.cluster._reading import READ_FAULTS
from o3storage.cluster._repair import Repair
from o3storage.raft.core import NOBODY, Message, PeerLost, TransferLeadership
from o3storage.runtime import Logger
from o3storage.runtime.clock import Entropy
from o3storage.runtime.disk import Buffer
from o3storage.storage import SealedFrame, Store

if TYPE_CHECKING:
    from o3storage.cluster._replica import Replica

TICK_S = 0.1
"""Unit of time of the groups: a heartbeat every 2, an election after 10 to 20 without one. Stalls
of the loop stay far below, and a lost leader is replaced within 2 s."""
HAND_OVER_S, HAND_OVER_LOOKS = 0.5, 50
"""A node that stops hands its leaderships over so quickly, or the others elect."""
GIVE_WAY_S = 60.0
"""A range is led by someone else at most so often because disks are full: each time costs it some
hundredths of a second."""
MAX_RELEASED = 65_536
"""Streams remembered as released while frames of theirs may be on their way."""
RIDING_BYTES = 16 << 20
"""Small frames kept in memory for followers of all groups; older ones are read again."""
RIDING_OVERHEAD_BYTES = 384
"""What Python needs for one of them beside its data (measured at 300): a million frames of one byte
would be 16 MiB of data and 300 MB of memory."""


class Peers(Protocol):
    """What replication needs of `_peers.Peers`."""

    on_message: Callable[[int, int, Message, list[SealedFrame]], None]
    on_up: Callable[[int], None]
    on_down: Callable[[int], None]

    def send(
        self, node: int, group: int, message: Message, frames: Sequence[SealedFrame] = ()
    ) -> None: ...

    async def call(
        self, node: int, kind: int, payload: Buffer, *, timeout_s: float, lane: Any = ...
    ) -> bytes: ...

    def serve(
        self,
        kind: int,
        handler: Callable[[int, memoryview], Coroutine[Any, Any, bytes]],
        *,
        guests: bool = False,
    ) -> None: ...

    async def open_stream(
        self, node: int, kind: int, head: bytes, *, timeout_s: float = ...
    ) -> OutStream: ...

    def serve_stream(
        self, kind: int, handler: Callable[[int, bytes, InStream], Coroutine[Any, Any, bytes]]
    ) -> None: ...

    def known(self) -> int: ...

    def is_up(self, node: int) -> bool: ...


class RidingFrames:
    """Small frames of late entries, by stream; the oldest go first. (A plain dict passes over all
    that went before whenever it is asked for its first: 0.1 ms for one of a million.)"""

    __slots__ = ("_bytes", "_frames")

    def __init__(self) -> None:
        self._frames: OrderedDict[bytes, SealedFrame] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._frames)

    def get(self, stream: bytes) -> SealedFrame | None:
        return self._frames.get(stream)

    def put(self, frame: SealedFrame) -> None:
        frames = self._frames
        if frame.stream in frames:
            return
        frames[frame.stream] = frame
        self._bytes += len(frame.data) + RIDING_OVERHEAD_BYTES
        while self._bytes > RIDING_BYTES:
            _, oldest = frames.popitem(last=False)
            self._bytes -= len(oldest.data) + RIDING_OVERHEAD_BYTES


_log = Logger("replication")

_TOKENS_OF_RUN = 1 << 40
_RUNS = 1 << 23
"""A token has 63 bits: the run's, then those that count."""


class Replication:
    """One node's side. `start` once the replicas are open."""

    def __init__(
        self,
        node: int,
        peers: Peers,
        store: Store,
        entropy: Entropy,
        replicas: dict[int, Replica],
        *,
        ranges: RangeTable,
        bodies: Callable[[bytes, bytes], Sequence[bytes]],
        run: int,
    ) -> None:
        """`replicas` by group: the node's own table, which may grow. `ranges`: their spans.
        `bodies(key, value)`: packed references of the bodies that a row names. `run`: a random
        number of this run of the node."""
        self._token = run % _RUNS * _TOKENS_OF_RUN
        self.ranges = ranges
        self.spans = ranges.row_spans
        self.bodies = bodies
        self.id = node
        self.peers = peers
        self.store = store
        self.riding = RidingFrames()
        self.sending = Sending()
        self.fetcher = Fetcher(self)
        self.catch_up = CatchUpPace()
        self.repair = Repair(self)
        self.replicas = replicas
        self.awake = Awake()
        self.questions = Questions()
        """For read indexes, of all groups of this node."""
        self.up_listeners: list[Callable[[int], None]] = []
        self.down_listeners: list[Callable[[int], None]] = []
        self.on_ranges: Callable[[], None] = _nothing
        """A range holds other keys than before."""
        self.keeps_nothing_of: Callable[[int], bool] = _never
        """Whether a range left this disk for good (`RangeKeeper.keeps_nothing_of`)."""
        self.writing: dict[bytes, None] = {}
        """Streams whose frames are being stored here: by one writer at a time."""
        self._released: OrderedDict[bytes, None] = OrderedDict()
        self._gave_way: dict[int, tuple[float, int]] = {}
        """group -> when another voter may be asked to lead it, and how many were."""
        self._bodies: dict[asyncio.Task[None], None] = {}
        self._entropy = entropy
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def next_token(self) -> int:
        """Never given out before, by this run of the node or one before it, to this replica or one
        that it stands in for: an answer that comes late is not taken for one to a later question.
        """
        self._token += 1
        return self._token

    def start(self) -> None:
        self.peers.serve(_kinds.PROPOSE, self._serve_propose)
        self.peers.serve(_kinds.FRAMES, self.fetcher.serve)
        self.peers.serve_stream(_kinds.BODY, BodyReceiver(self).serve)
        self.peers.on_message = self._on_message
        self.peers.on_up = self._on_up
        self.peers.on_down = self._on_down
        self.fetcher.start()
        self.store.on_bad_frame(self.repair.wanted)
        self._timer = self._loop.call_later(TICK_S, self._tick)

    async def hand_over(self) -> None:
        """Before a stop: others lead what this node leads, if they can within HAND_OVER_S."""
        leading = [r for r in self.replicas.values() if r.leads and r.core.progress]
        for replica in leading:
            target = best_successor(replica)
            if target != NOBODY:
                replica.step(TransferLeadership(target))
        for _ in range(HAND_OVER_LOOKS):
            if not any(replica.core.transfer_target for replica in leading):
                return
            await asyncio.sleep(HAND_OVER_S / HAND_OVER_LOOKS)

    def give_way(self, replica: Replica) -> bool:
        """It leads, and this node's disk is full: another voter is asked to, in turn, for its disk
        may not be. If all are, one is asked in GIVE_WAY_S, and the others are refused. Whether one
        was."""
        now_s = self._loop.time()
        due_s, asked = self._gave_way.get(replica.group, (0.0, 0))
        able = successors(replica)
        if not able or now_s < due_s or not replica.leads:
            return False
        self._gave_way[replica.group] = (now_s + GIVE_WAY_S, asked + 1)
        _log.info("range.gives_way", range=replica.group, reason="the disk is full")
        replica.step(TransferLeadership(able[asked % len(able)]))
        return True

    async def close(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        await self.fetcher.close()
        await self.repair.close()
        bodies = list(self._bodies)
        for task in bodies:
            task.cancel()
        await asyncio.gather(*bodies, return_exceptions=True)
        for replica in list(self.replicas.values()):
            if replica.team is not None:
                await replica.team.close()

    # --- time and messages

    def _tick(self) -> None:
        if self._closed:
            return
        self._timer = self._loop.call_later(TICK_S, self._tick)
        for team in self.awake.due(self.replicas):
            try:
                team.tick(self._entropy.uniform(0.0, 1.0))
            except Exception as error:
                # One that cannot go on must not keep the others from their heartbeats.
                self.replicas[team.group].fail(f"range {team.group} stopped at a tick: {error!r}")

    def _on_message(
        self, node: int, group: int, message: Message, frames: list[SealedFrame]
    ) -> None:
        if self._closed or message.sender != node or message.to != self.id:
            return
        replica = self.replicas.get(group)
        if replica is None:
            return
        try:
            replica.receive(message, frames)
        except (ValueError, AssertionError) as error:
            # What no correct node sends: rather than go on from a state that cannot be, stop.
            replica.fail(f"range {group} stopped at a message of node {node:016x}: {error!r}")

    def _on_up(self, node: int) -> None:
        for replica in list(self.replicas.values()):
            core = replica.core
            learns = node in core.progress and not core.configuration.votes(node)
            if core.quiescent and learns:
                # A voter that hears no leader asks, and a learner waits to be told. What was sent
                # to it before is lost; that wakes the leader.
                replica.step(PeerLost(node))
        for listener in self.up_listeners:
            listener(node)

    def _on_down(self, node: int) -> None:
        for replica in list(self.replicas.values()):
            if replica.team is not None:
                replica.step(PeerLost(node))
        self.catch_up.gone(node)
        for listener in self.down_listeners:
            listener(node)

    # --- proposals

    async def propose_to(self, leader: int, payload: bytes, timeout_s: float) -> bytes:
        return await self.peers.call(leader, _kinds.PROPOSE, payload, timeout_s=timeout_s)

    async def _serve_propose(self, sender: int, body: memoryview) -> bytes:
        group, payloads, framed, adds = decode_batch(body)
        replica = self.replicas.get(group)
        if replica is None or self._closed or not replica.leads:
            return encode_answer(Answer(Status.NOT_LEADER))
        if sender not in replica.core.configuration.members():
            # It would wait for outcomes that nobody sends it: it is to ask a member.
            return encode_answer(Answer(Status.NOT_LEADER))
        try:
            low, term = replica.propose(Batch(payloads, list(framed), adds))
        except StorageFull as error:
            if self.give_way(replica):
                return encode_answer(Answer(Status.NOT_LEADER))
            status = Status.CRAMPED if isinstance(error, LogFull) else Status.FULL
            return encode_answer(Answer(status, text=str(error)))
        except Unavailable as error:
            return encode_answer(Answer(Status.BUSY, text=error.reason))
        return encode_answer(Answer(Status.TAKEN, low, term))

    # --- frames

    def status(self) -> dict[str, Any]:
        """Counters for `Node.status`."""
        return {
            "frames_fetched": self.fetcher.fetched_frames,
            "frames_repaired": self.repair.repaired_frames,
            "frames_not_repaired": self.repair.unrepaired_frames,
        }

    def everyone(self) -> list[int]:
        """All other members of this node's groups, whether they can be reached or not."""
        found: dict[int, None] = {}
        for replica in self.replicas.values():
            for member in replica.core.configuration.members():
                if member != self.id:
                    found[member] = None
        return list(found)

    def keep(self, task: asyncio.Task[None]) -> None:
        """A body on its way to a member; it ends with the node at the latest."""
        self._bodies[task] = None
        task.add_done_callback(lambda done: self._bodies.pop(done, None))

    def note_released(self, streams: Sequence[bytes]) -> None:
        """An entry released them; frames of theirs that still come are of no use."""
        for stream in streams:
            self._released[stream] = None
        while len(self._released) > MAX_RELEASED:
            self._released.popitem(last=False)

    def was_released(self, stream: bytes) -> bool:
        return stream in self._released

    def stored_late(self, stream: bytes, group: int = 0) -> bool:
        """Frames were placed: not for ever, if their stream was released meanwhile, or if their
        range left this disk (nothing here names them, so nothing would ever release them); then
        False. `group`: the range that they were sent to; 0: of a version that is here."""
        left = self.keeps_nothing_of(group)
        if left or stream in self._released:
            self.store.release_again(stream)
        return not left

    def holds_now(self, stream: bytes, frames: int) -> bool:
        """All frames of the stream are placed here, as far as memory says."""
        try:
            return (self.store.frames_held_now(stream) or 0) >= frames
        except READ_FAULTS:
            return False

    def read_riding_now(self, stream: bytes) -> SealedFrame | None:
        """The only frame of a small stream, if it needs no disk I/O."""
        try:
            data = self.store.read_frame_now(stream, 0)
        except READ_FAULTS:
            return None
        return small_frame(stream, bytes(data)) if data is not None else None

    async def read_riding(self, stream: bytes) -> SealedFrame | None:
        try:
            return small_frame(stream, bytes(await self.store.read_frame(stream, 0)))
        except READ_FAULTS:
            return None


def _nothing() -> None:
    """Until the node listens."""


def _never(_: int) -> bool:
    """Until the node says what has left it."""
    return False


def successors(replica: Replica) -> list[int]:
    """Voters that may lead in this one's place, who is furthest first."""
    core = replica.core
    able = [
        (progress.match, -node)
        for node, progress in core.progress.items()
        if core.configuration.votes(node) and progress.active and not progress.uncertain
    ]
    return [-node for _, node in sorted(able, reverse=True)]


def best_successor(replica: Replica) -> int:
    """The voter that is furthest, or NOBODY."""
    return next(iter(successors(replica)), NOBODY)
