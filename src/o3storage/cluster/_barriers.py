"""Reads of one group on one node: which of them share a question for a read index.

A read that began at t may be answered from what is applied here up to an index that the leader gave
for a question asked after t: all that was acknowledged before t lies below it. So every question of
a node has a number, counted over all its groups (`Questions`); a request notes the
count when it begins, and any question with a higher number serves it, in every group that it reads.
One question of a group is under way at a time; what comes meanwhile shares the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from o3storage.cluster._errors import Unavailable
from o3storage.raft.core import NOBODY, ReadIndex, Role
from o3storage.storage import Miss

if TYPE_CHECKING:
    from o3storage.cluster._node import Node
    from o3storage.cluster._queries import Query
    from o3storage.cluster._replica import Replica

T_co = TypeVar("T_co", covariant=True)

REFUSE_TICKS = 45
"""A read that finds no leader waits so long (4.5 s), then it is refused: a client gets its 503
within 5 s."""
ASK_AGAIN_TICKS = 5
"""A question that got no answer was lost on its way: it is asked again."""

MAX_GATHERED = 256
"""Reads that wait while others still come in, at most: a few milliseconds of them."""

NO_COUNT = 1 << 62
"""More questions than were ever asked: no answer is new enough."""

Waiting = tuple[int, asyncio.Future[int]]
"""Since when, in ticks; who waits for the index."""


class Reads:
    """The queries of one request. They may be answered by what this node asked its ranges' leaders
    after the request had come, be it for an earlier query of it or for other requests: it notes
    how many questions there had been by then (`_barriers.py`)."""

    __slots__ = ("_count", "_node")

    def __init__(self, node: Node, count: int) -> None:
        self._node = node
        self._count = count

    def query_now(self, query: Query[T_co]) -> T_co | Miss:
        """As `Node.query_now`."""
        return self._node.query_now(query, self._count)

    async def query(self, query: Query[T_co], ahead: Callable[[T_co], bytes] | None = None) -> T_co:
        """As `Node.query`, of one instant since the request came."""
        return await self._node.query(query, self._count, ahead)


class Questions:
    """Of all groups of a node: how many were asked, and when those that are wanted go out. They go
    together, so that those for one leader share a frame; under a load only when a turn of the loop
    brought no more reads, so that more of them share a question."""

    __slots__ = ("_came", "_due", "_loop", "asked")

    def __init__(self) -> None:
        self.asked = 0
        self._came = 0
        self._due: list[Barriers] = []
        self._loop = asyncio.get_running_loop()

    def want(self, barriers: Barriers) -> None:
        if not self._due:
            self._loop.call_soon(self._ask, 1)
            self._came = 0
        self._due.append(barriers)

    def came(self) -> None:
        """One more read waits for a question that is wanted."""
        self._came += 1

    def _ask(self, seen: int) -> None:
        came = self._came
        if seen < came < MAX_GATHERED:
            self._loop.call_soon(self._ask, came)
            return
        due, self._due = self._due, []
        for barriers in due:
            barriers.ask()


class Barriers:
    """`begun_after` or `index`, then wait until so much is applied."""

    __slots__ = (
        "_ahead",
        "_answered",
        "_asked",
        "_asked_at",
        "_due",
        "_index",
        "_loop",
        "_next",
        "_now",
        "_number",
        "_questions",
        "_replica",
        "_token",
        "_why",
    )

    def __init__(self, replica: Replica, questions: Questions, why: Callable[[], str]) -> None:
        """`why`: the reason that a client is told when there is no answer."""
        self._replica = replica
        self._questions = questions
        self._why = why
        self._loop = asyncio.get_running_loop()
        self._now = 0
        self._token = 0
        """Of the question under way; 0: there is none."""
        self._number = 0
        self._asked_at = 0
        self._asked: list[Waiting] = []
        self._answered = 0
        """Number of the last question that was answered, and the answer."""
        self._index = 0
        self._next: list[Waiting] = []
        self._ahead = False
        """A question is wanted though nobody waits yet."""
        self._due = False

    @property
    def idle(self) -> bool:
        return not self._token and not self._next

    def count(self) -> int:
        """Of the questions that this node has asked: what a read that begins now notes."""
        return self._questions.asked

    def begun_after(self, count: int) -> int | None:
        """The index for a read that began when `count` questions had been asked, if it is known."""
        return self._index if self._answered > count else None

    def index(self, count: int) -> asyncio.Future[int]:
        """The same, once it is known. The future raises Unavailable."""
        future: asyncio.Future[int] = self._loop.create_future()
        if self._token and self._number > count:
            self._asked.append((self._now, future))
        else:
            self._next.append((self._now, future))
            if not self._token:
                self._ask_soon()
                self._questions.came()
        return future

    def expect(self, count: int) -> None:
        """Such a read will come: ask now."""
        if self._answered <= count and not (self._token and self._number > count):
            self._ahead = True
            self._ask_soon()

    def _ask_soon(self) -> None:
        if not self._token and not self._due:
            self._due = True
            self._questions.want(self)

    def ask(self) -> None:
        """Called by `Questions`."""
        self._due = False
        core = self._replica.core
        if self._token or not (self._next or self._ahead) or self._replica.fault:
            return
        if core.leader == NOBODY and core.role is not Role.LEADER:
            if self._replica.team is not None:
                self._replica.team.stir()  # at the next tick
            return
        self._ahead = False
        self._asked, self._next = self._next, []
        self._asked_at = self._now
        self._questions.asked += 1
        self._number = self._questions.asked
        self._token = self._replica.next_token()
        self._replica.step(ReadIndex(self._token))

    def ready(self, tokens: Sequence[int], index: int) -> None:
        if self._token in tokens:
            self._token = 0
            self._answered, self._index = self._number, index
            asked, self._asked = self._asked, []
            for _, future in asked:
                if not future.done():
                    future.set_result(index)
            if self._next or self._ahead:
                self._ask_soon()

    def refused(self, tokens: Sequence[int]) -> None:
        """Leadership moves: asked again at the next tick."""
        if self._token in tokens:
            self._token = 0
            self._next = self._asked + self._next
            self._asked = []

    def tick(self, now: int) -> None:
        self._now = now
        if self.idle:
            return
        if self._token and now - self._asked_at >= ASK_AGAIN_TICKS:
            self._replica.core.forwarded.pop(self._token, None)
            self.refused((self._token,))
            self._replica.doubt_leader()
        late = [item for item in self._next if now - item[0] >= REFUSE_TICKS]
        if late:
            self._next = [item for item in self._next if now - item[0] < REFUSE_TICKS]
            _refuse(late, self._why())
        if self._next:
            self._ask_soon()

    def fail(self, reason: str) -> None:
        """Nobody is answered here any more."""
        waiting, self._asked, self._next = self._asked + self._next, [], []
        self._token = 0
        _refuse(waiting, reason)


def _refuse(waiting: Sequence[Waiting], reason: str) -> None:
    for _, future in waiting:
        if not future.done():
            future.set_exception(Unavailable(reason))
