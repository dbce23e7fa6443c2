"""How fast members that lack much of the log are served, beside the requests of this node.

What a follower lacks and its leader no longer has in memory is read back from the disk, with the
small frames, and sent: by one such append at a time for all ranges of the node, in pieces with
rests between them (`storage.Pace`). While the loop has time they may take a third of it. While
requests queue for the loop their share falls to a floor, and the floor follows a line: what a
member lacks of a range shall become less by PER_S entries a second, whatever the requests add.

Invariants
- A member whose lag does not fall along its line gets more, up to `storage.MAX_SHARE`: nobody falls
  behind for ever.
- A range that cannot go on without the member does not wait for a turn, and does not rest.
- Time is the loop's: under virtual time work takes none, and there are no rests.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from o3storage.runtime import busy_s
from o3storage.storage import MAX_PACE_SHARE, Pace

PER_S = 2_200
"""Entries that a member lacks less each second, while requests queue for the loop: 100,000 small
objects in 45 s. Each costs some 160 us of CPU on both nodes together, so this is 0.35 of a core
beside what the requests themselves need."""
LEAST_SHARE = 0.03
"""Of the loop's time, where that is enough for the line: with compaction's least share of 0.08 a
member was filled nearly twice as fast as its line asks, and requests paid for it."""
REQUESTS_SHARE = 0.3
"""Of the loop's time that goes to other work than this: requests keep it in use. What a node that
does nothing but fill takes beside its share, to send and to hear answers, was 0.1."""
LOOK_S = 0.5
"""The floor is changed this often: it reaches MAX_PACE_SHARE from the least one within 6 s."""
RAISE, LOWER = 1.25, 0.9
PIECE_S, LONGEST_PIECE_S = 0.002, 0.01
"""Of work on the loop between two rests: as `storage.Pace` has it; while steps of it are long."""
NEAR_ENTRIES = 1024
"""Who lacks fewer has caught up, but for what is on its way."""
MAX_LINES = 1024
"""Members of ranges whose lines are kept; the oldest begin anew."""


class CatchUpPace:
    """`begin` a turn, `rest` within it, `end` it."""

    def __init__(self) -> None:
        self.pace = Pace()
        self.pace.floor = LEAST_SHARE
        self.turns = 0
        """Turns taken, for `Node.status`."""
        self._loop = asyncio.get_running_loop()
        self._busy = False
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._lines: dict[tuple[int, int], tuple[float, int]] = {}
        """(group, member) -> when its line begins, and how much it lacked then."""
        self._looked_s = 0.0
        self._others_s = 0.0
        """What the loop had done at `_looked_s` beside this work."""
        self._began_s = 0.0
        self._piece_s = PIECE_S

    async def begin(self, urgent: Callable[[], bool]) -> bool:
        """Wait for a turn. False: there is none to rest in or to end, for it is urgent."""
        while self._busy:
            if urgent():
                return False
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._waiting.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if not self._busy:
                    self._wake_one()  # it was this one's turn
                raise
        if urgent():
            self._wake_one()
            return False
        self._busy = True
        self.turns += 1
        self.pace.begin()
        self._began_s = self._loop.time()
        return True

    async def rest(self) -> None:
        """Let requests have the loop, if this piece has lasted long enough. A rest ends only with
        the step of the loop that others began meanwhile: the longer it was, the longer is the next
        piece, or on a busy loop the share would be less than the floor says."""
        began_s = self._loop.time()
        if began_s - self._began_s < self._piece_s:
            return
        await self.pace.rest()
        self._began_s = self._loop.time()
        share = self.pace.share
        due_s = (self._began_s - began_s) * share / (1 - share)
        self._piece_s = min(max(due_s, PIECE_S), LONGEST_PIECE_S)

    async def end(self) -> None:
        """Rest, and let the next one have its turn."""
        try:
            await self.pace.rest()
        finally:
            self._busy = False
            self._wake_one()

    def gone(self, member: int) -> None:
        """It cannot be reached: its lines end, and ranges may need the others now."""
        for at in [at for at in self._lines if at[1] == member]:
            del self._lines[at]
        waiting, self._waiting = self._waiting, deque()
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    def lacks(self, group: int, member: int, entries: int) -> None:
        """So much of the log the member lacks now."""
        lines, now_s = self._lines, self._loop.time()
        at = (group, member)
        if entries < NEAR_ENTRIES:
            lines.pop(at, None)
            return
        line = lines.get(at)
        if line is None:
            line = lines[at] = (now_s, entries)
            if len(lines) > MAX_LINES:
                del lines[next(iter(lines))]
        if now_s - self._looked_s < LOOK_S:
            return
        pace = self.pace
        others_s = busy_s() - pace.worked_s
        in_use = others_s - self._others_s > REQUESTS_SHARE * (now_s - self._looked_s)
        self._looked_s, self._others_s = now_s, others_s
        began_s, lacked = line
        if entries > lacked - PER_S * (now_s - began_s):
            pace.floor = min(MAX_PACE_SHARE, pace.floor * RAISE)
        else:
            pace.floor = max(LEAST_SHARE, pace.floor * LOWER)
        pace.ceiling = pace.floor if in_use else MAX_PACE_SHARE
        pace.share = min(max(pace.share, pace.floor), pace.ceiling)

    def _wake_one(self) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
