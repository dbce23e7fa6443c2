"""One replica of one group: drives the consensus core over the store, and the state machine over
what the core hands out.

All proposals of one turn of the loop become one append; the store joins the appends of all groups
into one sync. Committed entries are applied in order and, while every row they read is in memory,
without leaving the loop's turn.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from o3storage.cluster._alone import went_back
from o3storage.cluster._applying import OVERTAKEN, RETRY_S
from o3storage.cluster._batch import Batch
from o3storage.cluster._errors import LogFull, StorageFull, Unavailable
from o3storage.cluster._newcomer import never_here
from o3storage.cluster._range_rows import Span, Split
from o3storage.cluster._readable import Readable
from o3storage.cluster._reading import entries_of, open_core
from o3storage.cluster._team import Team
from o3storage.raft.core import (
    Accepted,
    Append,
    AppendResponse,
    Apply,
    ChangeConfiguration,
    Core,
    DropMissing,
    Entry,
    Fetch,
    Fetched,
    HoleAnswer,
    Input,
    Message,
    Output,
    Persist,
    Persisted,
    Propose,
    ReadReady,
    ReadRefused,
    Refusal,
    Refused,
    Restore,
    Retire,
    Role,
    RoleChanged,
    Send,
    SnapshotNeeded,
    Start,
    StorePiece,
)
from o3storage.runtime.state_machine import Outcome, StateMachine
from o3storage.storage import Entry as StoredEntry
from o3storage.storage import HardState as StoredHardState
from o3storage.storage import SealedFrame, Store, StoreError, StoreFull

if TYPE_CHECKING:
    from o3storage.cluster._replication import Replication

APPEND_BYTES = 1 << 20
"""Proposals of one append: what one batch of the log holds."""
MAX_WAITING = 32_768
"""Proposals in flight: several times the connections that a node accepts."""

CHANGE_S, CHANGE_LOOK_S = 30.0, 0.05
"""A change of members is waited for so long; it goes on by itself."""
CLOSE_S, CLOSE_TRIES = 1.0, 20
"""What is proposed to others is waited for so long when the node stops."""
NO_SPACE = "the disk is full: delete something, or give it more space"

_BRINGING = (Append, HoleAnswer)
"""Messages with entries."""


class Replica(Readable):
    """A group's replica on this node. `open`, then `submit` and `barrier`; all on one loop."""

    def __init__(
        self,
        group: int,
        core: Core,
        store: Store,
        machine: StateMachine,
        replication: Replication | None = None,
        *,
        span: Span | None = None,
    ) -> None:
        """Use `open`."""
        self.on_disk_fault: Callable[[str], None] = self.fail
        """Called when the store refuses to write: all replicas of the disk stop then."""
        self.group = group
        self.core = core
        self.lost_entries = 0
        """Entries that `verify --repair` had to give up, applied as nothing."""
        self.fault = ""
        """Why this replica serves nothing any more; empty while it does."""
        self._store = store
        self._machine = machine
        self._loop = asyncio.get_running_loop()
        self.team = Team(self, replication) if replication is not None else None
        """Dealings with the group's other members; None for a node by itself."""
        self.span = span
        """Keys of a key range, as its log says up to what is applied; None for range 0."""
        self.on_split: Callable[[int, Split], None] | None = None
        """Called when an applied entry cut this range."""
        self.on_records: Callable[[], None] | None = None
        """Called when an applied command of the cluster's own wrote rows."""
        # proposals of this turn of the loop
        self._payloads: list[bytes] = []
        self._futures: list[asyncio.Future[Outcome]] = []
        self._frames: list[SealedFrame] = []
        self._gathered_bytes = 0
        self._flush_due = False
        self._space_known = False
        self._full = False
        self._batch: Batch | None = None
        self._token = 0
        self._replication = replication
        self._proposing = 0
        self._changes: dict[int, Refusal | None] = {}
        # writes and messages under way
        self._writes: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._held: deque[tuple[Persist, list[SealedFrame]]] = deque()  # the disk is full
        self._gated: deque[Send] = deque()
        # proposals whose entries are not applied yet: index -> (term, future)
        self._waiting: dict[int, tuple[int, asyncio.Future[Outcome]]] = {}
        # entries to apply: those in memory, in order, up to the index the core released
        self._queue: deque[Entry] = deque()
        self.applied = core.applied
        self._target = core.applied
        self._applying = False  # a task waits for the disk
        self._held_back = self.rows_lost
        """Nothing is applied or read: rows are lost, or a snapshot comes, in steps."""
        self._apply_due = False
        self._task: asyncio.Task[None] | None = None
        self._reads: dict[int, asyncio.Future[int]] = {}
        self.behind: list[tuple[int, asyncio.Future[None], int]] = []
        """(index, future, since when in ticks) of who waits until so much is applied."""

    # --- opening

    @classmethod
    async def open(
        cls,
        group: int,
        node: int,
        store: Store,
        machine: StateMachine,
        replication: Replication | None = None,
        *,
        span: Span | None = None,
    ) -> Replica:
        """The replica as its log and rows say. It does nothing before `start`.
        Raises StoreError, ValueError (rows or entries nobody wrote)."""
        core, carries = await open_core(store, group, node)
        replica = cls(group, core, store, machine, replication, span=span)
        if replica.team is not None:
            replica.team.recover(carries)
            await replica.team.remember()
            never_voted = not core.configuration.voters and not core.wants_snapshot
            if span is not None and replication is not None and never_voted:
                core.newcomer = await never_here(store, replication.ranges.here(), span)
        return replica

    async def start(self) -> None:
        """Take part. A sole voter leads, and has applied all that was committed, on return.
        Raises Unavailable, StoreError."""
        uncertain = self.core.uncertain
        rows_lost = self._store.log_state(self.group).rows_lost
        behind = went_back(self.core, self._replication, rows_lost=rows_lost)
        if behind:
            self.core.wants_snapshot |= rows_lost
            self._held_back = self.rows_lost
        else:
            if rows_lost and not self.core.sole:  # (perhaps since `open`)
                self.core.wants_snapshot = self._held_back = True
            self._carry_out(self.core.step(Start()))
        if self.team is not None:
            self.team.settle()  # the core hears what is missing before it answers anybody
        if self.core.sole and not behind:
            if self.core.role is not Role.LEADER:
                raise Unavailable(
                    f"range {self.group} lost entries that it had acknowledged; run "
                    "`o3storage verify --repair` to see and decide what is given up"
                )
            if uncertain:
                await self._store.clear_uncertain(self.group)
            await self.barrier_applied(self.core.term_start)

    async def close(self) -> None:
        """Wait for what is proposed, then stop. Idempotent; new proposals are refused."""
        self._flush()
        if self._held:
            self.fail("the disk is full and the node is stopping")
        if self.team is not None and not self.core.sole:
            left = CLOSE_TRIES
            while self._waiting and left and not self.fault:
                left -= 1
                await asyncio.sleep(CLOSE_S / CLOSE_TRIES)
            self.fail("the node is stopping")
        if self._waiting and not self.fault:
            # (Their clients may be gone; what they proposed is finished all the same.)
            with contextlib.suppress(Unavailable):
                await self.barrier_applied(max(self._waiting))
        self.fault = self.fault or "the node is stopping"
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    # --- proposals

    def submit(
        self, data: bytes, frames: Sequence[SealedFrame] = (), *, adds: bool = False
    ) -> asyncio.Future[Outcome]:
        """Propose `data`; the future holds the outcome of applying it here. With frames, or when
        it `adds` something new, it is refused on a full disk.

        Raises, or the future does: Unavailable, StorageFull."""
        if self.fault:
            raise Unavailable(self.fault)
        adds = adds or bool(frames)
        core = self.core
        if core.progress or core.role is not Role.LEADER:
            if self.team is None:
                raise Unavailable(f"range {self.group} has no leader just now; try again")
            return self.team.submit(data, frames, adds=adds)
        if adds and not self._space_known:
            # Asked once for all proposals of a turn of the loop.
            self._space_known = True
            self._full = self._store.space().full
        if self._held or (adds and self._full):
            self._space_known = False
            raise StorageFull(NO_SPACE)
        if len(self._waiting) + len(self._futures) >= MAX_WAITING:
            raise Unavailable("too many writes are waiting for the disk; slow down")
        future: asyncio.Future[Outcome] = self._loop.create_future()
        self._payloads.append(data)
        self._futures.append(future)
        size = len(data)
        if frames:
            self._frames.extend(frames)
            for frame in frames:
                size += len(frame.data)
        self._gathered_bytes += size
        if self._gathered_bytes >= APPEND_BYTES:
            self._flush()
        elif not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)
        return future

    def _flush(self) -> None:
        self._flush_due = False
        self._space_known = False
        payloads = self._payloads
        if not payloads:
            return
        self._payloads = []
        self._gathered_bytes = 0
        if self.fault:
            futures, self._futures, self._frames = self._futures, [], []
            for future in futures:
                if not future.done():
                    future.set_exception(Unavailable(self.fault))
            return
        if self._held or self._store.log_full:
            # Before the core takes them: its log must follow on the disk, so they would wait.
            futures, self._futures, self._frames = self._futures, [], []
            for future in futures:
                if not future.done():
                    future.set_exception(StorageFull(NO_SPACE))
            return
        self._proposing = token = self.next_token()
        self._carry_out(self.core.step(Propose(token, payloads)))

    @property
    def leads(self) -> bool:
        """A proposal made now would be appended here."""
        core = self.core
        return core.role is Role.LEADER and not core.transfer_target and not self.fault

    def propose(self, batch: Batch) -> tuple[int, int]:
        """Append a batch at once, as the leader (see `leads`): index of its first entry, term.
        Raises, and then nothing was appended: StorageFull, LogFull, Unavailable, ValueError."""
        self._flush()
        if not self.leads:
            raise Unavailable(self.fault or "another node leads the range")
        if self._held or self._store.log_full:
            raise LogFull(NO_SPACE)
        if any(batch.adds) and self._store.space().full:
            raise StorageFull(NO_SPACE)
        if len(self._waiting) + len(batch.payloads) > MAX_WAITING:
            raise Unavailable("too many writes are waiting for the disk; slow down")
        if not batch.futures:
            self.check(batch.payloads)
        self._futures = batch.futures
        self._frames = batch.frames()
        self._batch = batch
        self._proposing = token = self.next_token()
        outputs = self.core.step(Propose(token, batch.payloads, batch.riding_bytes()))
        accepted = outputs[0]
        assert isinstance(accepted, Accepted)
        self._carry_out(outputs)
        return accepted.low, accepted.term

    def await_outcomes(
        self, batch: Batch, low: int, term: int, recent: dict[int, tuple[int, Outcome]]
    ) -> None:
        """The batch is in the leader's log from `low` on: its outcomes are what is applied here.
        `recent`: outcomes of entries that were applied before this was known."""
        for index, future in enumerate(batch.futures, start=low):
            found = recent.get(index)
            if index > self.applied and not self.overtaken(term):
                self._forget(index, Unavailable(OVERTAKEN, uncertain=True))
                self._waiting[index] = (term, future)
            elif future.done():
                continue
            elif found is not None and found[0] == term:
                future.set_result(found[1])
            else:
                future.set_exception(Unavailable(OVERTAKEN, uncertain=True))
        if self.team is not None:
            self.team.wait_for(low, low + len(batch.futures) - 1)

    def awaits(self, low: int, high: int) -> bool:
        """Whether somebody waits for one of these entries."""
        return any(index in self._waiting for index in range(low, high + 1))

    def forget_waiting(self, low: int, high: int, error: Unavailable) -> None:
        """Nobody waits for these entries any more."""
        for index in range(low, high + 1):
            self._forget(index, error)

    def _forget(self, index: int, error: Unavailable) -> None:
        waiting = self._waiting.pop(index, None)
        if waiting is not None and not waiting[1].done():
            waiting[1].set_exception(error)

    async def change_members(
        self, voters: Sequence[int], learners: Sequence[int] = (), *, timeout_s: float = CHANGE_S
    ) -> None:
        """Return once these are the members; new voters catch up first. Only where this replica
        leads. Raises Unavailable: uncertain when the change was begun."""
        token = self.next_token()
        self._changes[token] = None
        self.step(ChangeConfiguration(token, tuple(voters), tuple(learners)))
        refused = self._changes.pop(token)
        if refused is Refusal.NO_CHANGE:
            return
        if refused is not None:
            raise Unavailable(refused.value)
        core = self.core
        wanted = tuple(sorted(voters)), tuple(sorted(learners))
        for _ in range(int(timeout_s / CHANGE_LOOK_S)):
            now = core.configuration
            done = not now.joint and core.configuration_index <= self.applied
            if done and (now.voters, now.learners) == wanted:
                return
            if self.fault or core.role is not Role.LEADER:
                raise Unavailable(self.fault or "another node leads the range", uncertain=True)
            await asyncio.sleep(CHANGE_LOOK_S)
        raise Unavailable("the new members have not caught up yet", uncertain=True)

    # --- what the core says

    def step(self, event: Input) -> None:
        """One input to the core, and what follows from it."""
        if not self.fault:
            self._carry_out(self.core.step(event))

    def next_token(self) -> int:
        if self._replication is not None:
            return self._replication.next_token()
        self._token += 1
        return self._token

    def _carry_out(self, outputs: list[Output]) -> None:
        team = self.team
        if team is not None and not team.awake:
            team.stir()
        for output in outputs:
            kind = type(output)
            if kind is Persist:
                self._persist(cast("Persist", output))
            elif kind is Apply:
                self._release(cast("Apply", output))
            elif kind is Accepted:
                self._accepted(cast("Accepted", output))
            else:
                self._carry_out_rarer(output)

    def _carry_out_rarer(self, output: Output) -> None:
        if isinstance(output, Send):
            if output.after_ticket:
                self._gated.append(output)
            else:
                self._send(output.message)
        elif isinstance(output, Refused):
            if output.token != self._proposing:
                self._changes[output.token] = output.reason
                return
            futures, self._futures, self._frames = self._futures, [], []
            for future in futures:
                if not future.done():
                    future.set_exception(Unavailable(output.reason.value))
        elif isinstance(output, ReadReady):
            if self.team is not None:
                self.team.reads.ready(output.tokens, output.index)
            for token in output.tokens:
                read = self._reads.pop(token, None)
                if read is not None and not read.done():
                    read.set_result(output.index)
        elif isinstance(output, ReadRefused):
            if self.team is not None:
                self.team.reads.refused(output.tokens)
            for token in output.tokens:
                read = self._reads.pop(token, None)
                if read is not None and not read.done():
                    read.set_exception(Unavailable("leadership of the range is moving"))
        elif isinstance(output, Fetch):
            self._fetch(output)
        elif isinstance(output, RoleChanged):
            pass
        elif isinstance(output, DropMissing):
            self._store.drop_missing(self.group, output.low)
        else:
            assert self.team is not None, f"{output} in a group of one"
            if isinstance(output, SnapshotNeeded):
                self.team.snapshots.needed(output)
            elif isinstance(output, StorePiece | Restore):
                self.team.snapshots.arrived(output)

    def _accepted(self, output: Accepted) -> None:
        if output.token != self._proposing:
            return  # a change of members
        waiting, term = self._waiting, output.term
        futures, self._futures = self._futures, []
        for index, future in enumerate(futures, start=output.low):
            waiting[index] = (term, future)
        batch, self._batch = self._batch, None
        if batch is not None and self.team is not None:
            self.team.accepted(output.low, batch)

    def _persist(self, output: Persist) -> None:
        frames, self._frames = self._frames, []
        if self.team is not None and not frames:
            # (An entry that rot had taken comes back with its frames like any other.)
            frames = self.team.frames_for([*output.fills, *output.entries])
        if self._held:
            self._held.append((output, frames))
        else:
            self._write(output, frames)

    def _write(self, output: Persist, frames: list[SealedFrame]) -> None:
        hard = output.hard_state
        state = StoredHardState(hard.term, hard.vote, hard.commit) if hard is not None else None
        try:
            # Room for the frames was checked before the proposal; what is in the log of the core
            # must follow on the disk, so it may use the reserve.
            if output.fills:
                future = self._store.fill(self.group, cast("list[StoredEntry]", output.fills))
            if output.entries or state is not None or frames or not output.fills:
                # (After the fills, if there are any: it is durable when they are.)
                future = self._store.append(
                    self.group,
                    state,
                    cast("list[StoredEntry]", output.entries),
                    frames,
                    use_reserve=True,
                )
        except StoreFull:
            if not self._held:
                self._loop.call_later(RETRY_S, self._retry_held)
            self._held.appendleft((output, frames))
            return
        except StoreError as error:
            self.on_disk_fault(str(error))
            return
        except ValueError as error:
            # Later writes would say to the core that this one is durable as well.
            self.fail(f"range {self.group} stopped: its log is not what it was taken for: {error}")
            return
        self._writes.append((output.ticket, future))
        future.add_done_callback(self._written)

    def _retry_held(self) -> None:
        held, self._held = self._held, deque()
        while held and not self.fault:
            self._write(*held.popleft())
            if self._held:
                self._held.extend(held)
                return

    async def none_held(self) -> None:
        """Return when no append waits for space on the disk."""
        for _ in iter(lambda: bool(self._held) and not self.fault, False):
            await asyncio.sleep(RETRY_S)

    def _written(self, ended: asyncio.Future[None]) -> None:
        """Some append is durable, or failed; tickets count in order."""
        error = None if ended.cancelled() else ended.exception()
        if ended.cancelled() or error is not None:
            # Whatever became of those before it: this disk is out of service.
            self.on_disk_fault(str(error or "a write was cancelled"))
            return
        done = 0
        writes = self._writes
        while writes and writes[0][1].done() and not writes[0][1].cancelled():
            if writes[0][1].exception() is not None:
                return  # its own call says so
            done = writes.popleft()[0]
        if not done or self.fault:
            return
        gated = self._gated
        ready: list[Message] = []
        while gated and gated[0].after_ticket <= done:
            message = gated.popleft().message
            if ready and answers_also(message, ready[-1]):
                ready[-1] = message
            else:
                ready.append(message)
        for message in ready:
            self._send(message)
        self._carry_out(self.core.step(Persisted(done)))

    def _send(self, message: Message) -> None:
        assert self.team is not None, "a group with other members needs a network"
        self.team.send(message)

    def _fetch(self, output: Fetch) -> None:
        if self.team is not None:
            self.team.filling.want(output)
            return

        async def fetch() -> None:
            found = await entries_of(
                self._store, self.group, output.low, output.high, output.max_bytes
            )
            self.step(Fetched(output.peer, found, output.hole))

        self._loop.create_task(fetch(), name=f"fetch entries of range {self.group}")

    def receive(self, message: Message, frames: Sequence[SealedFrame] = ()) -> None:
        """A message of another node's core, with the frames that ride with its entries."""
        if self.fault or self.team is None:
            return
        if type(message) in _BRINGING:
            self.team.before(message, frames)
        self._carry_out(self.core.step(message))
        self.team.settle()

    # --- faults

    def fail(self, reason: str) -> None:
        """Nothing more is written, acknowledged or answered here (promise P6)."""
        if self.fault:
            return
        self.fault = reason
        self.core.step(Retire())
        self._gated.clear()
        self._held.clear()
        waiting = [future for _, future in self._waiting.values()]
        self._waiting.clear()
        # Entries in flight may be on the disk: they are never proposed again.
        for future in waiting:
            if not future.done():
                future.set_exception(Unavailable(reason, uncertain=True))
        futures, self._futures, self._payloads = self._futures, [], []
        behind, self.behind = self.behind, []
        reads, self._reads = self._reads, {}
        refused: list[asyncio.Future[Any]] = [*futures, *(b[1] for b in behind), *reads.values()]
        if self.team is not None:
            self.team.fail(reason)
        for refusal in refused:
            if not refusal.done():
                refusal.set_exception(Unavailable(reason))

    def stalled(self, reason: str) -> None:
        """Appends have been waiting for space for seconds. They stay in the log and are written
        once there is some; until then nobody waits for them."""
        waiting = [future for _, future in self._waiting.values()]
        self._waiting.clear()
        for future in waiting:
            if not future.done():
                future.set_exception(Unavailable(reason, uncertain=True))
        behind, self.behind = self.behind, []
        for _, reader, _ in behind:
            if not reader.done():
                reader.set_exception(Unavailable(reason))

    def status(self) -> dict[str, Any]:
        core = self.core
        return {
            "group": self.group,
            "role": core.role.value,
            "leader": core.leader,
            "term": core.term,
            "commit": core.commit,
            "applied": self.applied,
            "last": core.log.last,
            "voters": list(core.configuration.voters),
            "learners": list(core.configuration.learners),
            "waiting": len(self._waiting),
            "members": self.team.status() if self.team is not None else [],
            "repair_debt": len(self.team.debt) if self.team is not None else 0,
            "uncertain": core.uncertain,
            "rows_lost": self.rows_lost,
            "missing": [list(hole) for hole in core.log.holes],
            "lost_entries": self.lost_entries,
            "fault": self.fault,
        }


def answers_also(later: Message, earlier: Message) -> bool:
    """Whether the later of two answers says all that the earlier one does: appends that one sync
    made durable need one answer."""
    return (
        type(later) is AppendResponse
        and type(earlier) is AppendResponse
        and later.to == earlier.to
        and later.term == earlier.term
        and not later.rejected
        and not earlier.rejected
        and later.match >= earlier.match
        and later.data >= earlier.data
        and later.round >= earlier.round
    )
