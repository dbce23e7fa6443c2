"""Applying: the half of a replica that runs committed entries through the state machine, in order.

While every row that an entry reads is in memory, this goes without leaving the loop's turn; a task
does the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any, cast

from o3storage.cluster import _range_rows, _records
from o3storage.cluster._bounded import apply_within
from o3storage.cluster._errors import Unavailable
from o3storage.cluster._range_rows import EVERYTHING, SPLIT_HEAD, Span, Split
from o3storage.cluster._reading import (
    MISS,
    READ_FAULTS,
    REPLAY_BYTES,
    entries_of,
    read_now,
    read_row,
)
from o3storage.cluster._team import Team
from o3storage.raft.core import (
    COMMAND,
    CONFIGURATION,
    NOBODY,
    Apply,
    Core,
    Entry,
    Input,
    PeerLost,
    Restored,
    RowsLost,
)
from o3storage.runtime import StallMeter, may_put_off
from o3storage.runtime.state_machine import Outcome, Read, StateMachine
from o3storage.storage import EntriesGone, EntriesUnread, Store, StoreError

APPLY_STEP = 64
"""Entries applied in one turn of the loop: a few milliseconds at most."""
BUSY_APPLY_STEP = 16
"""The same where others go first: about a millisecond."""
APPLY_WITHIN_S = 0.005
"""What is committed is put off no longer: clients wait for the answer."""
RETRY_S = 0.5
"""A full disk, or a damaged block that is being rebuilt, is looked at again so often."""
OVERTAKEN = "another leader took over; it is not known whether this took effect"
LOST = 3
"""storage.EntryKind.LOST: an entry that `verify --repair` gave up."""


class Applying:
    """What `_replica.Replica` does with entries that the core hands out."""

    group: int
    core: Core
    fault: str
    applied: int
    lost_entries: int
    team: Team | None
    on_records: Callable[[], None] | None
    on_disk_fault: Callable[[str], None]
    behind: list[tuple[int, asyncio.Future[None], int]]
    span: Span | None
    on_split: Callable[[int, Split], None] | None
    _store: Store
    _machine: StateMachine
    _loop: asyncio.AbstractEventLoop
    _waiting: dict[int, tuple[int, asyncio.Future[Outcome]]]
    _queue: deque[Entry]
    _target: int
    _applying: bool
    _apply_due: bool
    _held_back: bool
    _task: asyncio.Task[None] | None

    def step(self, event: Input) -> None:
        raise NotImplementedError

    def fail(self, reason: str) -> None:
        raise NotImplementedError

    def doubt_leader(self) -> None:
        """It does not answer, or says that it does not lead. In a quiescent group nobody expects a
        heartbeat of it, and its node may go on without it (a disk that failed): from now on this
        replica does, and without one the group elects."""
        if self.core.quiescent and self.core.leader not in {NOBODY, self.core.id}:
            self.step(PeerLost(self.core.leader))

    def _forget(self, index: int, error: Unavailable) -> None:
        raise NotImplementedError

    def _wake_behind(self) -> None:
        raise NotImplementedError

    # --- applying

    async def hold_applying(self) -> None:
        """Nothing is applied until `restored`: a snapshot takes the place of what stands."""
        task = self.hold()
        if task is not None:
            await asyncio.gather(task, return_exceptions=True)

    def hold(self) -> asyncio.Task[None] | None:
        """As `hold_applying`; returns the task that was applying, which does nothing any more."""
        self._held_back = True
        task = self._task
        self._queue.clear()
        if not self._applying or task is None:
            return None
        task.cancel()
        return task

    def restored(self, index: int) -> None:
        """Everything up to `index` is applied, through a snapshot. If rows were lost behind it, it
        is as before."""
        self._queue.clear()
        self.applied = self._target = index
        for at in [at for at in self._waiting if at <= index]:
            self._forget(at, Unavailable(OVERTAKEN, uncertain=True))
        if self.team is not None:
            self.team.restored(index)
        if self._store.log_state(self.group).rows_lost and not self.core.sole:
            self._held_back = True
            self.step(Restored(index))
            self.step(RowsLost())
            return
        self._held_back = False
        self._wake_behind()
        if self.on_records is not None:
            self.on_records()
        self.step(Restored(index))
        self._forget_overtaken()

    def overtaken(self, term: int) -> bool:
        """Whether nothing of `term` comes any more that is not applied: what is applied last is of
        a later one, and terms do not fall in a log."""
        return self.core.log.term(self.applied) > term

    def _forget_overtaken(self) -> None:
        """In a range where nobody writes, nothing else would come in their place."""
        for at in [at for at, (term, _) in self._waiting.items() if self.overtaken(term)]:
            self._forget(at, Unavailable(OVERTAKEN, uncertain=True))

    def _release(self, output: Apply) -> None:
        if self._held_back:
            return
        if self._target == output.low - 1 and self._target == self.applied + len(self._queue):
            found = self.core.log.slice(output.low, output.high, 1 << 62)
            if found is not None and len(found) == output.high - output.low + 1:
                self._queue.extend(found)
        self._target = output.high
        if not self._applying:
            if self._yields_to() is None:
                self._apply_ready()
            else:
                self._apply_soon()

    def _yields_to(self) -> StallMeter | None:
        """The meter of a busy loop, if requests that are to be read go before what is committed: on
        a lone node. (In a cluster readers wait for it.)"""
        return may_put_off() if self.team is None else None

    def _apply_soon(self) -> None:
        """In a later turn of the loop."""
        if self._apply_due:
            return
        self._apply_due = True
        meter = self._yields_to()
        if meter is None:
            self._loop.call_soon(self._apply_ready)
        else:
            meter.put_off(partial(self._loop.call_soon, self._apply_ready), APPLY_WITHIN_S)

    def _apply_ready(self) -> None:
        """Apply what is in memory; leave the rest to a task."""
        self._apply_due = False
        if self._applying or self.fault or self._held_back:
            return
        queue = self._queue
        left = APPLY_STEP if self._yields_to() is None else BUSY_APPLY_STEP
        while queue:
            if not left:
                self._apply_soon()
                return
            left -= 1
            entry = queue[0]
            if entry.kind != COMMAND:
                self._apply_other(entry)
                queue.popleft()
                continue
            try:
                generator = self._begin(entry.data)
                read = next(generator)
                while True:
                    found = read_now(self._store, read)
                    if found is MISS:
                        self._apply_later(entry, generator, read)
                        return
                    read = generator.send(found)
            except StopIteration as stop:
                outcome = stop.value
            except READ_FAULTS as error:
                self._apply_later(entry, None, None, error)
                return
            except Exception as error:
                self._diverges(entry, error)
                return
            if not self._finish(entry, outcome):
                return
            queue.popleft()
        if self.applied < self._target:
            self._apply_later(None, None, None)

    def _begin(self, data: bytes) -> _records.Apply:
        """The generator that applies an entry's data. Raises ValueError."""
        if data[:3] == SPLIT_HEAD:
            return _range_rows.apply_split(
                self._machine, self.group, self.span, _records.configuration_key, data
            )
        span = self.span
        if span is None or span == EVERYTHING:
            return _records.apply(self._machine, data)
        return apply_within(self._machine, data, span)

    def check(self, payloads: Sequence[bytes]) -> None:
        """What another node proposes, before it comes into a log: an entry that nobody can apply
        stops every replica of the range, and stops it again at each start. Raises ValueError."""
        for data in payloads:
            if (
                self.span is not None
                and data[:1] == b"\xff"
                and data[2:3] not in _records.OF_RANGES
            ):
                raise ValueError("a command of range 0 for a key range")
            steps = self._begin(data)
            with contextlib.suppress(StopIteration):
                next(steps)  # what a command says is decoded before it reads its first row
            steps.close()

    def _finish(self, entry: Entry, outcome: Outcome) -> bool:
        """Write what an entry did and tell whoever waits for it. False: the disk failed."""
        index = entry.index
        try:
            self._store.apply(self.group, index, outcome.rows, outcome.released)
            if type(outcome.result) is Split:
                self._divide(outcome.result)
        except StoreError as error:
            self.on_disk_fault(str(error))
            return False
        self.applied = index
        if self.team is not None:
            self.team.applied(index, entry.term, outcome)
            if self.on_records is not None and outcome.rows and entry.data[:1] == b"\xff":
                self.on_records()
        waiting = self._waiting.pop(index, None)
        if waiting is not None:
            term, future = waiting
            if not future.done():
                if term == entry.term:
                    future.set_result(outcome)
                else:
                    future.set_exception(Unavailable(OVERTAKEN, uncertain=True))
        if self.behind:
            self._wake_behind()
        return True

    def _divide(self, split: Split) -> None:
        """The upper part of the span is another group's from here on. (Should the disk fail before
        the group's log has its beginning, the next open finds the rows and makes it.)"""
        self.span = split.lower
        self._store.create_group(split.child, _range_rows.FIRST_INDEX, _range_rows.FIRST_TERM)
        if self.on_split is not None:
            self.on_split(self.group, split)

    def _apply_other(self, entry: Entry) -> None:
        rows: list[tuple[bytes, bytes | None]] = []
        if entry.kind == CONFIGURATION:
            value = entry.index.to_bytes(8, "big") + entry.data
            rows.append((_records.configuration_key(self.group), value))
        elif entry.kind == LOST:
            self.lost_entries += 1
        if self._finish(entry, Outcome(rows=rows)) and self._waiting:
            self._forget_overtaken()  # (every term begins with an entry that is no command)

    def _apply_later(
        self,
        entry: Entry | None,
        generator: Generator[Read, Any, Outcome] | None,
        read: Read | None,
        error: Exception | None = None,
    ) -> None:
        self._applying = True
        task = self._loop.create_task(self._apply_slowly(entry, generator, read, error))
        self._task = task

    async def _apply_slowly(
        self,
        entry: Entry | None,
        generator: Generator[Read, Any, Outcome] | None,
        read: Read | None,
        error: Exception | None,
    ) -> None:
        """Apply one entry whose rows are not in memory, or read entries that are not."""
        try:
            if entry is None:
                await self._read_entries()
                return
            while True:
                try:
                    if error is not None:
                        # A block is being rebuilt; the range waits for it, its data is safe.
                        await asyncio.sleep(RETRY_S)
                        error = None
                    outcome = await self._run_entry(entry, generator, read)
                except READ_FAULTS as failure:
                    generator, read, error = None, None, failure
                    if self.fault:
                        return
                else:
                    break
            if self.fault:
                return  # stopped meanwhile; if it leaves this disk, its rows are being erased
            if self._finish(entry, outcome):
                self._queue.popleft()
        except asyncio.CancelledError:
            raise
        except Exception as failure:
            self._diverges(entry, failure)
        finally:
            self._applying = False
            if not self.fault:
                self._apply_soon()

    async def _run_entry(
        self, entry: Entry, generator: Generator[Read, Any, Outcome] | None, read: Read | None
    ) -> Outcome:
        try:
            if generator is None or read is None:
                generator = self._begin(entry.data)
                read = next(generator)
            while True:
                read = generator.send(await read_row(self._store, read))
        except StopIteration as stop:
            outcome: Outcome = stop.value
            return outcome

    async def will_refuse(self, index: int) -> bool:
        """Whether the command at `index` will be refused when it is applied: certain once it is
        next, for then all that comes before it is applied. Raises StoreError, BadBlock, DiskError.
        """
        if self.applied != index - 1 or self._held_back:
            return False
        found = await entries_of(self._store, self.group, index, index, 1)
        if not found or found[0].kind != COMMAND:
            return False
        try:
            outcome = await self._run_entry(found[0], None, None)
        except ValueError:
            return False  # applying it will say so
        same = self.core.log.term(index) == found[0].term
        now = same and self.applied == index - 1 and not self._held_back
        return now and outcome.error is not None

    async def _read_entries(self) -> None:
        low = self.applied + len(self._queue) + 1
        try:
            found = self._store.entries(self.group, low, self._target + 1, REPLAY_BYTES)
            if not isinstance(found, list):
                found = await found
        except EntriesUnread:
            await asyncio.sleep(RETRY_S)  # and once more: nothing is lost, the range waits
            return
        except EntriesGone as error:
            raise ValueError(f"an entry cannot be read: {error}") from error
        self._queue.extend(cast("list[Entry]", found))

    def _diverges(self, entry: Entry | None, error: Exception) -> None:
        """Rather than go on in another way than the other replicas, stop."""
        where = "" if entry is None else f" at entry {entry.index}"
        self.fail(f"range {self.group} stopped{where}: {type(error).__name__}: {error}")
