"""Ranges that this node has no replica of: their holders are asked.

    QUERY     group u32, the query as the state machine encodes it
    SUBMIT    count u8, node u64 for each node that holds the body's frames durably (none, unless
              they do not ride with the command), and a batch of one proposal (`_forwarding`)
    answer    status u8, leader u64 as the holder knows it (0: nobody), and by status the answer as
              the state machine encodes it, or a text

All integers are big-endian; bodies are read as `_lending` says. Who holds a range stands in range 0
(`_range_rows`), and may have changed: a holder that is none any more, or whose range was cut, says
so, and nothing was done.

A query runs at the holder, whole, behind a read index that it asks for when the query has come; so
its answer is of one instant, like any other. A command's outcome is what the holder applied.

Invariant: a command that may have been proposed is never sent again.
"""

from __future__ import annotations

import asyncio
import enum
import struct
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from o3storage.cluster import _kinds
from o3storage.cluster._batch import Batch
from o3storage.cluster._errors import ClusterError, LogFull, StorageFull, Unavailable
from o3storage.cluster._fetching import in_order
from o3storage.cluster._forwarding import decode_batch, encode_batch
from o3storage.cluster._lending import Lender, Loan, read_elsewhere
from o3storage.cluster._peer_types import Code, PeerError, PeerUnreachable
from o3storage.cluster._range_rows import Holders, RangeMoved, Span, Split, SplitRefused
from o3storage.cluster._team import NOTHING_WAS_DONE
from o3storage.crypto import StreamRef, StreamSealer
from o3storage.raft.core import NOBODY
from o3storage.runtime.disk import Buffer
from o3storage.runtime.state_machine import Outcome
from o3storage.storage import SealedFrame, StoreError

if TYPE_CHECKING:
    from o3storage.cluster._fetching import Fetcher
    from o3storage.cluster._node import Node
    from o3storage.cluster._replica import Replica
    from o3storage.cluster._replication import Peers, Replication

REFUSE_S = 4.5
"""Nobody who could be asked: a client gets its 503 within 5 s."""
RETRY_S = 0.1
QUERY_S = 5.0
"""For one holder's answer; it refuses by itself before that if it cannot reach a majority."""
SUBMIT_S = 310.0
"""A command that was taken may wait for a body's frames: as long as a replica's own wait, and a
little more (`_team.STUCK_TICKS`)."""

_GROUP = struct.Struct(">I")
_NODE = struct.Struct(">Q")
_ANSWER = struct.Struct(">BQ")
MAX_HELD = 32
"""Members of a range: voters, old and new, and learners."""


class Status(enum.IntEnum):
    DONE = 0
    NOT_HERE = 1
    """No replica that may answer. Nothing was done."""
    MOVED = 2
    """The key belongs to another range. Nothing was done."""
    REFUSED = 3
    """Unavailable. Nothing was done."""
    UNCERTAIN = 4
    """Unavailable; it may have been, or be, done."""
    FULL = 5
    CRAMPED = 6
    """LogFull."""
    SPLIT_REFUSED = 7
    SPLIT = 8
    """DONE, with the result of a SPLIT: child u32, then the values of the two spans' rows."""


class Elsewhere:
    """`start`, then `query` and `submit`."""

    def __init__(self, node: Node) -> None:
        self.asked = 0
        """Queries and commands that others were asked, since the start."""
        self.answered = 0
        """Those that were answered for others."""
        self.node = node
        self.lender = Lender(node)
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._closed = False
        self._leaders: dict[int, int] = {}
        """By group, as holders said last."""
        self._turn = 0

    def start(self) -> None:
        replication = self._replication
        replication.peers.serve(_kinds.QUERY, self._serve_query)
        replication.peers.serve(_kinds.SUBMIT, self._serve_submit)
        replication.peers.serve(_kinds.HOLD, self.lender.serve_hold)
        replication.peers.serve(_kinds.LET_GO, self.lender.serve_let_go)

    async def close(self) -> None:
        self._closed = True
        self.lender.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
        """In the background, until this node stops; None: it does."""
        if self._closed:
            work.close()
            return None
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))
        return task

    # --- bodies

    @property
    def peers(self) -> Peers:
        return self._replication.peers

    @property
    def fetcher(self) -> Fetcher:
        return self._replication.fetcher

    def everyone(self) -> list[int]:
        return self._replication.everyone()

    @property
    def _replication(self) -> Replication:
        replication = self.node.replication
        assert replication is not None
        return replication

    def loan(self, group: int) -> Loan:
        """Of bodies of that range, for a reader here."""
        token = int.from_bytes(self.node.entropy.random_bytes(8), "big")
        return Loan(self, group, token)

    def read(
        self, group: int, sealer: StreamSealer, ref: StreamRef, offset: int, length: int
    ) -> AsyncIterator[Buffer]:
        """As `Node.read_stream`, of a range without a replica here."""
        return read_elsewhere(self, group, sealer, ref, offset, length)

    async def hold(self, group: int, streams: Sequence[bytes]) -> Callable[[], None]:
        """As `Node.hold`. Raises Unavailable."""
        loan = self.loan(group)
        await loan.take(streams)
        return loan.end

    # --- the one who asks

    def holders(self, group: int) -> Holders | None:
        """Who has the range, as range 0 says here; None: it does not say."""
        return self.node.ranges.holders.get(group)

    def leader(self, group: int) -> int:
        """Who leads the range, as a holder said last; 0: nobody."""
        return self._leaders.get(group, NOBODY)

    def order(self, group: int) -> list[int]:
        """Nodes to ask, the likely leader first; the others by turns, voters before learners."""
        node, holders = self.node, self.holders(group)
        if holders is None:
            return []
        members = holders.configuration.members()
        self._turn += 1
        at = self._turn % len(members) if members else 0
        turned = [*members[at:], *members[:at]]
        turned.sort(key=lambda member: not holders.configuration.votes(member))
        leader = self._leaders.get(group, NOBODY)
        first = [leader] if leader in members else []
        found = in_order(first, turned, node.id)
        return [member for member in found if self.peers.is_up(member)]

    async def query(self, group: int, query: Any) -> Any:
        """The answer, or its own error. Raises RangeMoved, Unavailable."""
        machine = self.node.machine
        payload = _GROUP.pack(group) + machine.encode_query(query)
        status, body = await self._ask(group, _kinds.QUERY, payload, QUERY_S, writes=False)
        if status is not Status.DONE:
            raise Unavailable(f"the answer of another node cannot be read: status {status}")
        try:
            answer, error = machine.decode_answer(body)
        except ValueError as failure:
            raise Unavailable(f"the answer of another node cannot be read: {failure}") from None
        if error is not None:
            raise error
        return answer

    async def submit(
        self,
        group: int,
        data: bytes,
        frames: Sequence[SealedFrame] = (),
        *,
        adds: bool = False,
        held: Sequence[int] = (),
    ) -> Outcome:
        """The outcome of an encoded command, as a holder applied it, of which only result and error
        are known. `held`: nodes that hold its body durably. Raises Unavailable, StorageFull."""
        batch = Batch([data], [(0, frames)] if frames else [], [adds])
        parts = [bytes((len(held),)), *(_NODE.pack(node) for node in held)]
        payload = b"".join((*parts, encode_batch(group, batch)))
        try:
            status, body = await self._ask(group, _kinds.SUBMIT, payload, SUBMIT_S, writes=True)
        except RangeMoved as moved:
            return Outcome(None, moved)
        try:
            if status is Status.SPLIT:
                return Outcome(_decode_split(body))
            if status is Status.SPLIT_REFUSED:
                return Outcome(None, SplitRefused(body.decode("utf-8", "replace")))
            result, error = self.node.machine.decode_answer(body)
        except ValueError as failure:
            raise Unavailable(
                f"it took effect, but what came of it cannot be read: {failure}", uncertain=True
            ) from None
        return Outcome(result, error)

    async def _ask(
        self, group: int, kind: int, payload: bytes, timeout_s: float, *, writes: bool
    ) -> tuple[Status, bytes]:
        """(status, body) of who answered for certain. Raises RangeMoved, Unavailable,
        StorageFull."""
        node = self.node
        loop = asyncio.get_running_loop()
        end_s = loop.time() + REFUSE_S
        why = "no node that holds it can be reached from this one"
        self.asked += 1
        while True:
            for member in self.order(group):
                left_s = timeout_s if writes else max(end_s - loop.time(), RETRY_S)
                try:
                    answer = await self._call(member, kind, payload, left_s)
                except (ClusterError, ValueError) as error:
                    why = str(error)
                    if writes and not _was_nothing(error):
                        raise Unavailable(
                            f"it is not known whether this took effect: {why}", uncertain=True
                        ) from error
                    continue
                status, leader, body = answer
                if leader != NOBODY:
                    self._leaders[group] = leader
                if status in {Status.DONE, Status.SPLIT, Status.SPLIT_REFUSED}:
                    return status, body
                why = body.decode("utf-8", "replace") or why
                if status is Status.MOVED:
                    raise RangeMoved(why)
                if status is Status.UNCERTAIN:
                    raise Unavailable(why, uncertain=True)
                if status is Status.FULL:
                    raise StorageFull(why)
                if status is Status.CRAMPED:
                    raise LogFull(why)
            if loop.time() >= end_s or node.closing:
                raise Unavailable(f"range {group} is not on this node: {why}; try again")
            await asyncio.sleep(RETRY_S)
            if node.ranges.is_here(group):
                raise RangeMoved("this node holds the range by now")

    async def _call(
        self, member: int, kind: int, payload: bytes, timeout_s: float
    ) -> tuple[Status, int, bytes]:
        """Raises PeerUnreachable, PeerLost, PeerError, ValueError."""
        answer = await self.peers.call(member, kind, payload, timeout_s=timeout_s)
        if len(answer) < _ANSWER.size:
            raise ValueError("an answer that is cut short")
        status, leader = _ANSWER.unpack_from(answer)
        return Status(status), leader, answer[_ANSWER.size :]

    # --- the one who is asked

    def _replica(self, group: int) -> Replica | None:
        """The replica here, if it may answer."""
        replica = self.node.replica_here(group)
        if replica is None or replica.fault or not replica.applied:
            return None
        return replica

    async def _serve_query(self, _: int, body: memoryview) -> bytes:
        if len(body) < _GROUP.size:
            raise ValueError("a query that is cut short")
        (group,) = _GROUP.unpack_from(body)
        node = self.node
        query = node.machine.decode_query(bytes(body[_GROUP.size :]))
        replica = self._replica(group)
        if replica is None or group == 0:
            return _not_here(group)
        leader = replica.core.leader
        self.answered += 1
        try:
            result, error = await node.answer(query, replica), None
        except RangeMoved as moved:
            return _say(Status.MOVED, leader, str(moved))
        except Unavailable as refusal:
            return _say(Status.REFUSED, leader, refusal.reason)
        except ClusterError as refusal:
            return _say(Status.REFUSED, leader, str(refusal))
        except Exception as refusal:
            result, error = None, refusal
        return _ANSWER.pack(Status.DONE, leader) + node.machine.encode_answer(result, error)

    async def _serve_submit(self, _: int, body: memoryview) -> bytes:
        count = body[0] if len(body) else MAX_HELD + 1
        at = 1 + count * _NODE.size
        if count > MAX_HELD or len(body) < at:
            raise ValueError("a command that is cut short")
        held = [_NODE.unpack_from(body, 1 + n * _NODE.size)[0] for n in range(count)]
        group, payloads, framed, adds = decode_batch(body[at:])
        if len(payloads) != 1:
            raise ValueError("one command at a time")
        replica = self._replica(group)
        if replica is None or group == 0:
            return _not_here(group)
        replica.check(payloads)
        leader = replica.core.leader
        self.answered += 1
        try:
            if held:
                # Its entry would wait for frames that too few of the members have, if they changed:
                # who leads knows, and until the entry is in its log they may.
                outcome = await propose_held(replica, payloads[0], held, adds=adds[0])
            else:
                frames = framed[0][1] if framed else ()
                outcome = await replica.submit(payloads[0], frames, adds=adds[0])
        except LogFull as error:
            return _say(Status.CRAMPED, leader, str(error))
        except StorageFull as error:
            return _say(Status.FULL, leader, str(error))
        except Unavailable as error:
            status = Status.UNCERTAIN if error.uncertain else Status.REFUSED
            return _say(status, leader, error.reason)
        except StoreError as error:
            return _say(Status.UNCERTAIN, leader, str(error))
        if type(outcome.error) is RangeMoved:
            return _say(Status.MOVED, leader, str(outcome.error))
        if type(outcome.error) is SplitRefused:
            return _say(Status.SPLIT_REFUSED, leader, str(outcome.error))
        if type(outcome.result) is Split:
            return _ANSWER.pack(Status.SPLIT, leader) + _encode_split(outcome.result)
        machine = self.node.machine
        data = machine.encode_answer(outcome.result, outcome.error)
        return _ANSWER.pack(Status.DONE, leader) + data


def propose_held(
    replica: Replica, data: bytes, held: Sequence[int], *, adds: bool
) -> asyncio.Future[Outcome]:
    """As `Replica.submit`, of a command whose body only those nodes hold: proposed in this turn of
    the loop, and only if they are a majority of the members by the configuration that it comes to
    stand behind in the log. Then no later change of members is committed before a majority of the
    old and of the new ones has the body.

    Raises Unavailable, also where this replica does not lead, and StorageFull: nothing was done
    then; or the future does."""
    if not replica.core.configuration.decided(held):
        raise Unavailable("the range's members changed during the upload; try again")
    future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    replica.propose(Batch([data], adds=[adds], futures=[future]))
    return future


def _not_here(group: int) -> bytes:
    return _say(Status.NOT_HERE, NOBODY, f"it holds no replica of range {group}")


def _say(status: Status, leader: int, text: str) -> bytes:
    return _ANSWER.pack(status, leader) + text.encode()


def _was_nothing(error: Exception) -> bool:
    """For certain nothing was done."""
    if isinstance(error, PeerError):
        return error.code in NOTHING_WAS_DONE or error.code == Code.UNKNOWN_KIND
    return isinstance(error, PeerUnreachable)


def _encode_split(split: Split) -> bytes:
    lower, upper = split.lower.encode(), split.upper.encode()
    head = _GROUP.pack(split.child) + struct.pack(">H", len(lower))
    return b"".join((head, lower, upper))


def _decode_split(body: bytes) -> Split:
    """Raises ValueError."""
    if len(body) < 6:
        raise ValueError("a cut that is cut short")
    child, size = struct.unpack_from(">IH", body)
    return Split(child, Span.decode(body[6 : 6 + size]), Span.decode(body[6 + size :]))
