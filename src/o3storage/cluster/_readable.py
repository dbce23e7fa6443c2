"""Reading: the half of a replica that says when its rows may answer.

Invariants
- A read is answered from what is applied here once that is as much as the leader named after the
  read began, or at once where this node alone decides.
- While rows are lost here, or a snapshot comes in steps (`_held_back`), no read is answered,
  whatever is applied: who waits goes on waiting, until it has waited too long.
"""

from __future__ import annotations

import asyncio

from o3storage.cluster._applying import Applying
from o3storage.cluster._errors import Unavailable
from o3storage.raft.core import Output, ReadIndex, Role, RowsLost


class Readable(Applying):
    """What `_replica.Replica` does for those who read."""

    _token: int
    _reads: dict[int, asyncio.Future[int]]

    def _carry_out(self, outputs: list[Output]) -> None:
        raise NotImplementedError

    def reads_now(self) -> bool:
        """Whether what is applied here may answer a read that starts now, without a round: a sole
        voter's answer follows its own apply, and nobody else acknowledges anything."""
        core = self.core
        return (
            core.role is Role.LEADER
            and not core.progress
            and not self.fault
            and core.commit >= core.term_start
            and self.applied >= core.term_start
        )

    def reads_after(self, count: int) -> bool:
        """Whether what is applied here may answer a read that began when this node had asked
        `count` questions (see `_barriers.py`)."""
        if self.team is None or self.fault or self._held_back:
            return False
        index = self.team.reads.begun_after(count)
        return index is not None and self.applied >= index

    def expect_read(self, count: int) -> None:
        """A read that began then will come: what it needs of others is asked for now."""
        if self.team is not None and not self.reads_now():
            self.team.reads.expect(count)

    async def barrier(self, count: int | None = None) -> None:
        """Return when what is applied here may answer a read that started before the call, or, with
        a `count`, one that began when this node had asked so many questions. Raises Unavailable."""
        if self.reads_now():
            return
        if self.fault:
            raise Unavailable(self.fault)
        if self.team is not None:
            reads = self.team.reads
            count = reads.count() if count is None else count
            index = reads.begun_after(count)
            if index is None:
                index = await reads.index(count)
            if self.applied < index or self._held_back:
                await self.barrier_applied(index)
            return
        self._token += 1
        future: asyncio.Future[int] = self._loop.create_future()
        self._reads[self._token] = future
        self._carry_out(self.core.step(ReadIndex(self._token)))
        await self.barrier_applied(await future)

    async def barrier_applied(self, index: int) -> None:
        """Return when the entry at `index` is applied here. Raises Unavailable."""
        if self.applied >= index and not self._held_back:
            return
        if self.fault:
            raise Unavailable(self.fault)
        future: asyncio.Future[None] = self._loop.create_future()
        self.behind.append((index, future, self.team.now if self.team is not None else 0))
        if self.team is not None:
            self.team.stir()
        await future

    def _wake_behind(self) -> None:
        still = []
        for index, future, since in self.behind:
            if index > self.applied:
                still.append((index, future, since))
            elif not future.done():
                future.set_result(None)
        self.behind = still

    def expire_behind(self, before: int, reason: str) -> None:
        """Who has waited since before that tick is told why."""
        still = []
        for index, future, since in self.behind:
            if since >= before:
                still.append((index, future, since))
            elif not future.done():
                future.set_exception(Unavailable(reason))
        self.behind = still

    def refuse_readers(self, reason: str) -> None:
        """Who waits to read here is told why it cannot: nothing was done."""
        if self.team is not None:
            self.team.reads.fail(reason)
            self.expire_behind(self.team.now + 1, reason)

    # --- rows that are lost

    @property
    def rows_lost(self) -> bool:
        """What was applied here is not all here: it serves nothing before a snapshot came."""
        return self.core.wants_snapshot and self.core.applied > 0

    def lose_rows(self, *, abandoned: bool = False) -> None:
        """What is applied here cannot be trusted any more: from this instant on nothing of it is
        read, applied onto, or led, until a snapshot came. `abandoned`: the one that was being
        installed does not."""
        self.hold()
        self.step(RowsLost(abandoned))
