"""What one replica of several does with the others: messages and the frames that ride with them,
proposals handed to the leader, time, and what it lacks of bodies.

A group without other nodes has none of this (`Replica.team` is None) and runs no timer.

Invariants
- A batch that may have been appended anywhere is never proposed again.
- The core knows of every entry in its log whose frames are not durable here before it answers the
  append that brought the entry.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from o3storage.cluster import _records
from o3storage.cluster._audit import look_through
from o3storage.cluster._barriers import REFUSE_TICKS, Barriers
from o3storage.cluster._batch import Batch
from o3storage.cluster._errors import ClusterError, LogFull, StorageFull, Unavailable
from o3storage.cluster._fetching import Wanted, in_order
from o3storage.cluster._filling import Filling
from o3storage.cluster._forwarding import MOVED_AWAY, Answer, Status, decode_answer, encode_batch
from o3storage.cluster._peer_types import Code, PeerError
from o3storage.cluster._reading import READ_FAULTS
from o3storage.cluster._snapshots import Snapshots
from o3storage.raft.core import (
    COMMAND,
    NOBODY,
    UNKNOWN,
    Append,
    Compact,
    Core,
    DataGap,
    Entry,
    HoleAnswer,
    Message,
    Tick,
)
from o3storage.runtime.state_machine import Outcome
from o3storage.storage import SealedFrame

if TYPE_CHECKING:
    from o3storage.cluster._replica import Replica
    from o3storage.cluster._replication import Replication

REFUSE_S = 4.5
"""A write that finds no leader is refused after so long: a client gets its 503 within 5 s."""
RETRY_S = 0.05
"""A leader is looked for again so often."""
STUCK_TICKS = 3000
"""What waits for its entry in a group that does have a leader is given up after so long."""
HOUSEKEEPING_TICKS = 10
DEBT_LOOK_S = 1.0
CLEAN_LOOKS = 5
"""So many looks without anything missing, and the disk need not remember that there was."""
MESSAGE_BYTES = 1 << 20
"""Entries and frames of one Append on the wire; a larger one is sent as several."""
MAX_FORWARDING = 32_768
"""Proposals under way to the leader, as many as a leader lets wait."""
MAX_BATCH = 4096
"""Proposals of one batch: a few milliseconds of work in one turn of the loop."""
RECENT_OUTCOMES = 4096
"""Outcomes remembered while the leader's answers are on their way: an entry may be applied here
before this node hears that it was its own."""
LAGS_ENTRIES = 4096
"""Who lacks more than so much that is committed hears first what became of it: frames that were
released meanwhile need not be fetched."""
NOTHING_WAS_DONE = (Code.UNKNOWN_KIND, Code.NOT_ALLOWED, Code.BUSY)


class Team:
    """One replica's dealings with the other members of its group."""

    def __init__(self, replica: Replica, node: Replication) -> None:
        self.gaps: dict[int, Wanted] = {}
        """Entries above the commit index whose frames are not durable here, ascending."""
        self._unsorted = False
        self.debt: dict[int, Wanted] = {}
        """Committed entries whose frames are missing: repair debt."""
        self.lacked: dict[bytes, int] = {}
        """Where the streams of gaps and debt stand there. Others stay until nothing is missing."""
        self.lags = False
        """The leader's last Append left out much that is committed."""
        self.complete = True
        """All that is applied here was looked through for missing frames."""
        self.snapshots = Snapshots(replica, node)
        self.filling = Filling(replica, node)
        self._marked = False
        """This disk remembers that something may be missing, should it start again."""
        self._clean_ticks = 0
        self._audit: asyncio.Task[None] | None = None
        self._owed = 0
        self.awake = False  # see `Awake`
        self._replica = replica
        self._node = node
        self._core = replica.core
        self._loop = asyncio.get_running_loop()
        self._told = (0, 0)
        self._arrived: dict[bytes, SealedFrame] = {}
        """What came with the message that is being taken, by stream; empty between messages."""
        self._rode: dict[int, SealedFrame] = {}
        """The same for entries that are new here, by index."""
        self._now = 0
        self._lost_ticks = 0
        # proposals
        self._batch = Batch([])
        """Of this turn of the loop."""
        self._batch_bytes = 0
        self.forwarding = 0
        """Proposals on their way to the leader."""
        self._recent: dict[int, tuple[int, Outcome]] = {}
        self._deadlines: deque[tuple[int, int, int]] = deque()
        self._tasks: dict[asyncio.Task[None], None] = {}
        self.reads = Barriers(replica, node.questions, self.why)

    # --- time

    def stir(self) -> None:
        self._node.awake.stir(self)

    def tick(self, sample: float) -> None:
        core = self._core
        self._now += 1
        self._replica.step(Tick(sample))
        self.settle()
        self._lost_ticks = 0 if core.leader != NOBODY else self._lost_ticks + 1
        if self._deadlines and self._now >= self._deadlines[0][0]:
            self._expire_waiting()
        self.reads.tick(self._now)
        if self._now % HOUSEKEEPING_TICKS == 0:
            self._keep_house()
        if self._replica.behind:
            limit = REFUSE_TICKS if self._lost_ticks else STUCK_TICKS
            self._replica.expire_behind(self._now - limit, self.why())

    @property
    def now(self) -> int:
        """Ticks since the start."""
        return self._now

    @property
    def idle(self) -> bool:
        """A tick would do nothing: the group is quiescent and nobody waits."""
        return (
            self._core.quiescent
            and not self._deadlines
            and self.reads.idle
            and not self._marked
            and not self._replica.behind
            and self.snapshots.idle
        )

    @property
    def core(self) -> Core:
        return self._core

    @property
    def group(self) -> int:
        return self._replica.group

    def holders(self, session: int) -> list[int]:
        """Who may have the frames of a stream: the leader, the stream's coordinator (whose id its
        `session` tells), the other members."""
        core = self._core
        members = core.configuration.members()
        coordinator = [node for node in members if node & 0xFFFFFFFF == session >> 32]
        first = [core.leader, *coordinator]
        return in_order(first, list(members), core.id)

    def why(self) -> str:
        """Why nothing goes on here; for the client and the operator."""
        core = self._core
        voters = core.configuration.voters
        up = sum([v == core.id or self._node.peers.is_up(v) for v in voters])
        group = self._replica.group
        if not voters:
            return f"this node has not received range {group} yet; try again"
        if up * 2 <= len(voters):
            return (
                f"only {up} of {len(voters)} replicas of range {group} can be reached from this "
                "node, which is no majority; it goes on by itself when more of them can be"
            )
        return f"range {group} has no leader just now; try again"

    def status(self) -> list[dict[str, Any]]:
        """The other members as this node knows them, for `Replica.status`; marks only where it
        leads."""
        core = self._core
        return [
            {
                "node": f"{node:016x}",
                "votes": core.configuration.votes(node),
                "up": self._node.peers.is_up(node),
                **(self._progress(node) if node in core.progress else {}),
            }
            for node in core.configuration.members()
            if node != core.id
        ]

    def _progress(self, node: int) -> dict[str, Any]:
        progress = self._core.progress[node]
        return {
            "match": progress.match,
            "data": progress.data,
            "behind": self._core.log.last - progress.match,
            "repair_debt": progress.debt,
            "state": progress.state.value,
        }

    def _keep_house(self) -> None:
        """Now and then: what of the log is gone, what others still need of it."""
        core, store, group = self._core, self._node.store, self._replica.group
        self.snapshots.prune()
        floor = store.log_state(group).first_index - 1
        if floor > core.log.floor:
            self._replica.step(Compact(floor))
        lowest = min([p.match for p in core.progress.values()], default=core.log.last)
        store.keep_entries_from(group, lowest + 1 if lowest < core.log.last else None)
        if not core.uncertain and store.log_state(group).uncertain:
            # It was made a learner, or got a snapshot: its old promises cannot matter any more.
            store.clear_uncertain(group)
        if self._marked and not self._replica.fault:
            clean = self.complete and not self.gaps and not self.debt
            self._clean_ticks = self._clean_ticks + 1 if clean else 0
            if self._clean_ticks >= CLEAN_LOOKS:
                self._marked = False
                store.note(_note_name(self.group), None)

    def mark_incomplete(self) -> None:
        """Durable with whatever is appended next: frames may be missing here."""
        self._clean_ticks = 0
        if not self._marked:
            self._marked = True
            self.stir()
            self._node.store.note(_note_name(self.group), b"")

    async def remember(self) -> None:
        """At the start: did the last run leave something missing, or the disk lose records? (One
        that rotted may have said where frames are.)"""
        store = self._node.store
        stats = store.stats()
        if await store.noted(_note_name(self.group)) is not None:
            self._marked = True
            self.look_through()
        elif (
            stats.rotted_records
            or stats.index_rebuilt
            or self._core.uncertain
            or await self._parent_was_incomplete()
        ):
            self.mark_incomplete()
            self.look_through()

    async def _parent_was_incomplete(self) -> bool:
        """What was missing when this range was cut off may be missing of its keys."""
        span = self._replica.span
        if span is None or not span.parent:
            return False
        return await self._node.store.noted(_note_name(span.parent)) is not None

    def begin(self, parent: Team) -> None:
        """This range was cut off the other just now, and with it perhaps what is missing there."""
        sure = parent.complete and parent.group not in self._node.fetcher.believed
        if parent._marked or parent.gaps or parent.debt or not sure:
            self.mark_incomplete()
            self.look_through()

    def look_through(self) -> None:
        """Find what is missing of all that is applied; until then it is not known."""
        self.complete = False
        if self._audit is not None:
            self._audit.cancel()
        self._audit = self._loop.create_task(self._look_through())

    async def _look_through(self) -> None:
        await look_through(self, self._node)
        self.complete = True
        self.settle()

    async def debt_below(self, limit: int) -> None:
        """Return once fewer bodies than that are missing."""
        for _ in iter(lambda: len(self.debt) >= limit, False):
            await asyncio.sleep(DEBT_LOOK_S)

    def owe(self, stream: bytes, frames: int) -> None:
        """A row that is applied here names these frames, and they are not here."""
        if (known := self.debt.get(self.lacked.get(stream, 0))) and known.stream == stream:
            return
        self._owed -= 1
        self.debt[self._owed] = wanted = Wanted(stream, frames, 0, self._replica.applied)
        self.lacked[stream] = self._owed
        self._node.fetcher.want(self, self._owed, wanted)
        self.settle()

    def restored(self, index: int) -> None:
        """A snapshot took the place of everything up to `index`."""
        for missing in (self.gaps, self.debt):
            for at in [at for at in missing if at <= index]:
                del missing[at]
        self.look_through()
        self.settle()

    # --- messages

    def send(self, message: Message) -> None:
        peers, group = self._node.peers, self._replica.group
        if type(message) is Append and message.entries:
            for part, frames in self._parts(message):
                peers.send(part.to, group, part, frames)
        else:
            peers.send(message.to, group, message)

    def _parts(self, message: Append) -> Iterator[tuple[Append, list[SealedFrame]]]:
        """The message with its frames, cut into several where it would be too large."""
        frames: list[SealedFrame] = []
        entries: list[Entry] = []
        size = 0
        prev_index, prev_term = message.prev_index, message.prev_term
        for entry in message.entries:
            if entry.riding_bytes:
                frame = self._riding(entry)
                if frame is not None:
                    frames.append(frame)
            entries.append(entry)
            size += len(entry.data) + entry.riding_bytes
            if size >= MESSAGE_BYTES:
                yield self._part(message, prev_index, prev_term, entries), frames
                prev_index, prev_term = entry.index, entry.term
                entries, frames, size = [], [], 0
        if entries:
            yield self._part(message, prev_index, prev_term, entries), frames

    @staticmethod
    def _part(message: Append, prev_index: int, prev_term: int, entries: list[Entry]) -> Append:
        if len(entries) == len(message.entries):
            return message
        return replace(message, prev_index=prev_index, prev_term=prev_term, entries=entries)

    def _riding(self, entry: Entry) -> SealedFrame | None:
        """The small frame of an entry, if it is at hand; else the receiver fetches it."""
        carried = _records.carried(entry.data)
        if carried is None:
            return None
        frame = self._node.riding.get(carried.stream)
        return frame if frame is not None else self._node.read_riding_now(carried.stream)

    def before(self, message: Message, frames: Sequence[SealedFrame]) -> None:
        """Before the core takes a message: what it brings, and what it leaves missing here."""
        core, log = self._core, self._core.log
        self._arrived = {}
        if type(message) is HoleAnswer:
            # Entries that rot took come back; the frames beside them may be gone as well.
            for entry in message.entries:
                if log.term(entry.index) == UNKNOWN:
                    self._note(entry)
            self._tell()
            return
        if type(message) is not Append or message.term < core.term:
            return
        last = message.prev_index + len(message.entries)
        self.lags = message.commit > last + LAGS_ENTRIES
        if not message.entries:
            return
        restoring = core.incoming is not None and core.incoming.restoring
        known = min(core.commit, log.ceiling)
        here = log.term(message.prev_index)
        # (As `raft.core` judges it: rot may have taken the term of what is applied.)
        agrees = message.prev_index < known or here == message.prev_term
        agrees = agrees or (here == UNKNOWN and message.prev_index == known)
        if restoring or core.retired or not agrees:
            return
        self._arrived = {frame.stream: frame for frame in frames}
        for entry in message.entries:
            if entry.index > known and log.term(entry.index) != entry.term:
                self._note(entry)
        self._tell()

    def _note(self, entry: Entry) -> None:
        """An entry that comes into the log: are its frames here?"""
        index = entry.index
        self.gaps.pop(index, None)
        carried = _records.carried(entry.data) if entry.kind == COMMAND else None
        if carried is None or not carried.frames:
            return
        frame = self._arrived.get(carried.stream)
        if frame is not None and carried.rides and frame.number == 0:
            entry.riding_bytes = len(frame.data)
            self._rode[index] = frame
        elif not self._node.holds_now(carried.stream, carried.frames):
            wanted = Wanted(carried.stream, carried.frames, carried.session, index)
            self._unsorted |= bool(self.gaps) and next(reversed(self.gaps)) > index
            self.gaps[index] = wanted
            self.lacked[carried.stream] = index
            self.mark_incomplete()
            self._node.fetcher.want(self, index, wanted)

    def frames_for(self, entries: Sequence[Entry]) -> list[SealedFrame]:
        """What the message that is being taken brought for these entries."""
        rode = self._rode
        if not rode:
            return []
        return [rode.pop(entry.index) for entry in entries if entry.index in rode]

    def settle(self) -> None:
        """After a step: entries that were cut away, or committed, count differently."""
        if self._arrived:
            self._arrived, self._rode = {}, {}
        if not self.gaps and not self.debt:
            self.lacked.clear()
            if self._told == (0, 0):
                return
        core = self._core
        while self.gaps:
            last = next(reversed(self.gaps))
            if last <= core.log.last:
                break
            del self.gaps[last]
        for first in list(takewhile(core.commit.__ge__, self.gaps)):
            self.debt[first] = self.gaps.pop(first)
        self._tell()

    def _tell(self) -> None:
        if self._unsorted:
            self.gaps, self._unsorted = dict(sorted(self.gaps.items())), False
        told = (next(iter(self.gaps), 0), len(self.debt) + (not self.complete))
        if told != self._told:
            self._told = told
            self._replica.step(DataGap(*told))

    def fetched(self, index: int, wanted: Wanted) -> None:
        """Those frames are durable here now, or nobody needs them any more."""
        for missing in (self.gaps, self.debt):
            if missing.get(index) == wanted:
                del missing[index]
        self.settle()

    async def needless(self, index: int) -> bool:
        """Whether nobody needs the frames of the entry at `index`: it will be refused. (Nobody may
        have them: its proposal was late, and the stream was given up before.)"""
        try:
            return index in self.gaps and await self._replica.will_refuse(index)
        except READ_FAULTS:
            return False

    def may_fetch(self, index: int) -> bool:
        """False: the frames of that entry are better fetched later, see LAGS_ENTRIES."""
        leader = self._core.leader
        return not (self.lags and index in self.debt and leader not in (NOBODY, self._core.id))

    def wants(self, index: int, wanted: Wanted) -> bool:
        return self.gaps.get(index) == wanted or self.debt.get(index) == wanted

    def recover(self, entries: Sequence[Entry]) -> None:
        """Entries of the log above what is applied, at the start."""
        for entry in entries:
            self._note(entry)

    # --- proposals

    def submit(
        self, data: bytes, frames: Sequence[SealedFrame], *, adds: bool
    ) -> asyncio.Future[Outcome]:
        """As `Replica.submit`, wherever the leader is."""
        batch = self._batch
        if self.forwarding + len(batch.payloads) >= MAX_FORWARDING:
            raise Unavailable("too many writes are waiting for the range's leader; slow down")
        future: asyncio.Future[Outcome] = self._loop.create_future()
        if not batch.payloads:
            self._loop.call_soon(self._flush, batch)
        if frames:
            batch.framed.append((len(batch.payloads), frames))
        batch.payloads.append(data)
        batch.adds.append(adds)
        batch.futures.append(future)
        self._batch_bytes += len(data) + sum([len(frame.data) for frame in frames])
        if self._batch_bytes >= MESSAGE_BYTES or len(batch.payloads) >= MAX_BATCH:
            self._flush(batch)
        return future

    def _flush(self, batch: Batch) -> None:
        if batch is not self._batch:
            return  # it grew large and went before
        self._batch = Batch([])
        self._batch_bytes = 0
        if not self._replica.leads:
            self.forward(batch)
            return
        try:
            self._replica.propose(batch)
        except StorageFull as error:
            if self._node.give_way(self._replica):
                self.forward(batch)
                return
            if isinstance(error, LogFull):
                batch.fail(error)
                return
            batch.refuse_adding(error)
            if batch.payloads:
                self._batch = batch
                self._flush(batch)
        except ClusterError as error:
            batch.fail(error)

    def accepted(self, low: int, batch: Batch) -> None:
        """This node leads, and its log holds the batch from `low` on."""
        riding: dict[int, None] = {}
        for number, frames in batch.framed:
            riding[number] = None
            for frame in frames:
                self._node.riding.put(frame)
        for number, data in enumerate(batch.payloads):
            if number not in riding and data[:1] == b"\xff":
                self._note(Entry(low + number, self._core.term, COMMAND, data))
        if batch.futures:
            self.wait_for(low, low + len(batch.payloads) - 1)
        if self.gaps:
            self._tell()

    def wait_for(self, low: int, high: int) -> None:
        """Futures wait for these entries: not for ever."""
        self._deadlines.append((self._now + REFUSE_TICKS, low, high))
        self.stir()

    def _expire_waiting(self) -> None:
        """Proposals that may have been appended, but whose entry does not come: unknown."""
        later: deque[tuple[int, int, int]] = deque()
        while self._deadlines and self._deadlines[0][0] <= self._now:
            due, low, high = self._deadlines.popleft()
            if self._replica.applied >= high or not self._replica.awaits(low, high):
                continue
            stuck = self._now - due >= STUCK_TICKS - REFUSE_TICKS
            if self._lost_ticks or stuck:
                why = f"it is not known whether this took effect: {self.why()}"
                self._replica.forget_waiting(low, high, Unavailable(why, uncertain=True))
            else:
                later.append((due, low, high))
        self._deadlines.extendleft(reversed(later))

    def forward(self, batch: Batch) -> None:
        """This node does not lead: hand the batch to who does."""
        task = self._loop.create_task(self._forward(batch))
        self._tasks[task] = None
        task.add_done_callback(self._forwarded)

    def _forwarded(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        if not self._tasks:
            self._recent.clear()

    async def _forward(self, batch: Batch) -> None:
        count = len(batch.payloads)
        self.forwarding += count
        try:
            await self._find_leader(batch)
        except ClusterError as error:
            batch.fail(error)
        except BaseException:
            # (Also when the node stops.) What was sent may be in somebody's log.
            batch.fail(Unavailable("the node is stopping", uncertain=True))
            raise
        finally:
            self.forwarding -= count

    async def _find_leader(self, batch: Batch) -> None:
        """Until somebody took the batch, or refused it, or nobody can be found for too long.
        Raises ClusterError."""
        replica, node = self._replica, self._node
        deadline_s = self._loop.time() + REFUSE_S
        payload = b""
        while not replica.fault:
            left_s = deadline_s - self._loop.time()
            leader = self._core.leader
            if replica.leads:
                try:
                    replica.propose(batch)
                    return
                except StorageFull:
                    if not node.give_way(replica):
                        raise
            if left_s <= 0:
                raise Unavailable(self.why())
            if replica.group in node.ranges.elsewhere:
                raise Unavailable(MOVED_AWAY)
            if leader not in (NOBODY, self._core.id) and node.peers.is_up(leader):
                payload = payload or encode_batch(replica.group, batch)
                answer = await self._ask_leader(leader, payload, left_s)
                if answer is None or answer.status is Status.NOT_LEADER:
                    replica.doubt_leader()
                elif answer.status is Status.TAKEN:
                    replica.await_outcomes(batch, answer.low, answer.term, self._recent)
                    return
                elif answer.status is Status.FULL:
                    batch.refuse_adding(StorageFull(answer.text))
                    payload = b""
                    if not batch.payloads:
                        return
                    continue
                elif answer.status is Status.CRAMPED:
                    raise StorageFull(answer.text)
                else:
                    raise Unavailable(answer.text)
            await asyncio.sleep(min(RETRY_S, left_s))
        raise Unavailable(replica.fault)

    async def _ask_leader(self, leader: int, payload: bytes, left_s: float) -> Answer | None:
        """None: it was not asked, for certain. Raises Unavailable (uncertain)."""
        try:
            answer = await self._node.propose_to(leader, payload, max(left_s, 0.5))
            return decode_answer(answer)
        except (ClusterError, ValueError) as error:
            if isinstance(error, PeerError) and error.code in NOTHING_WAS_DONE:
                return None
            if getattr(error, "uncertain", True):
                raise Unavailable(
                    f"it is not known whether this took effect: {error}", uncertain=True
                ) from error
            return None

    def applied(self, index: int, term: int, outcome: Outcome) -> None:
        """An entry was applied here; perhaps one that this node proposed without knowing yet."""
        if outcome.released:
            self._node.note_released(outcome.released)
            if self.debt:
                self._forgive(outcome.released)
        if outcome.error is not None and (self.gaps or self.debt):
            # What was refused needs no frames; the core hears of it at the next tick.
            self.gaps.pop(index, None)
            self.debt.pop(index, None)
        if self._tasks:
            recent = self._recent
            recent[index] = (term, outcome)
            if len(recent) > RECENT_OUTCOMES:
                del recent[next(iter(recent))]

    def _forgive(self, released: Sequence[bytes]) -> None:
        """Nobody needs these streams' frames from here on; the core hears of it at the next tick.
        (Who missed much finds most of what was overwritten meanwhile missing at the others too.)"""
        for stream in released:
            index = self.lacked.pop(stream, 0)
            wanted = self.debt.get(index)
            if wanted is not None and wanted.stream == stream:
                del self.debt[index]

    # --- the end

    def fail(self, reason: str) -> None:
        self.reads.fail(reason)
        self._deadlines.clear()

    async def close(self) -> None:
        """No batch is under way any more."""
        await self.filling.close()
        await self.snapshots.close()
        tasks = [*self._tasks, *([self._audit] if self._audit is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _note_name(group: int) -> bytes:
    return b"incomplete" + group.to_bytes(4, "big")
