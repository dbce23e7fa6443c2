"""How much of the event loop's time the background takes beside requests (DESIGN 6).

Interface: `Pace.begin`, `is_long`, `rest`, `ask`.

Work that must run on the loop's thread is done in pieces of a few milliseconds with rests between
them, which are as long as its share of the time asks for. Each rest also measures: a timer that
fires late tells that requests queue for the loop, and the share is halved; on time, it grows again
by a tenth. (Additive increase, multiplicative decrease, as in RFC 5681; what is measured is the
delay, as in RFC 6817.) But a queue is noticed only when it is there: so the share is besides at
most half of the time that other work leaves.

Invariants
- The share never falls below a floor, which rises with the work that waits: the background cannot
  fall behind for ever, however busy the loop is.
- Time is the loop's: under virtual time work takes none, and the rests are those of the byte rate.
"""

from __future__ import annotations

import asyncio

from o3storage.runtime import after_others, busy_s

PIECE_S = 0.002
"""Work on the loop between two rests: a request waits no longer than this for the background."""
MAX_SHARE = 1 / 3
"""Of the loop's time while nobody else wants it: bursts of requests find it mostly free."""
MIN_SHARE = 0.08
"""Of the loop's time while requests queue for it. Compaction takes about a tenth of the CPU of the
PUTs that made the garbage, so this nearly keeps up with a loop full of PUTs, and the floor rises
for the rest. With 0.03 a busy spell left minutes of work to the time after it."""
LATE_S = 0.005
"""A timer this late waited for more than one ordinary step of the loop."""
GROWTH = 1.1
"""Of the share, after a rest that ended on time."""
FREE_PART = 0.5
"""Of the loop's time that other work leaves. With requests on 0.8 of it and a third of it taken for
what waits, the queue grows until a timer is late, again and again. (That a GET's p99 is lower for
it was not shown: 2.6 ms before, 3.7 after, one run each.)"""
WINDOW_S = 0.1
"""What other work takes is seen over this: some dozen rests."""
FULL_FLOOR_BYTES = 4 << 30
"""With so much waiting the floor is MAX_SHARE: as much garbage as four times the log between two
flushes."""


class Pace:
    """The share of one kind of background work."""

    def __init__(self, piece_s: float = PIECE_S, *, makes_up: bool = False) -> None:
        """`makes_up`: what a rest took longer than it was to take is taken off the next one. The
        loop's timers count in milliseconds and fire between two steps, so that rests of few
        milliseconds would leave the work much less than its share."""
        self.piece_s = piece_s
        self._makes_up = makes_up
        self.share = MAX_SHARE
        self.floor = MIN_SHARE
        self.ceiling = MAX_SHARE
        """Set by who has other reasons; not below the floor."""
        self.worked_s = 0.0
        """On the loop, all pieces so far."""
        self._began_s = 0.0
        self._looked_s = 0.0
        self._others_s = 0.0
        """What the loop had done beside this at `_looked_s`."""
        self._free = 1.0
        """FREE_PART of what was left of it since the look before."""
        self._over_s = 0.0
        """What the last rest took longer than it was to take."""

    def ask(self, waiting_bytes: int, *, urgent: bool = False) -> None:
        """So much waits to be worked on; `urgent`: space is short."""
        part = 1.0 if urgent else min(1.0, waiting_bytes / FULL_FLOOR_BYTES)
        self.floor = MIN_SHARE + (MAX_SHARE - MIN_SHARE) * part
        self.share = max(self.share, self.floor)

    def begin(self) -> None:
        """A piece begins."""
        self._began_s = asyncio.get_running_loop().time()

    def is_long(self) -> bool:
        """The piece has lasted long enough: rest."""
        return asyncio.get_running_loop().time() - self._began_s >= self.piece_s

    async def rest(self, least_s: float = 0.0) -> None:
        """End the piece, wait for `least_s` or what the share asks for, begin the next."""
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        # Where a piece waited for the disk, others had the loop: it is not all its own time.
        worked_s = min(now_s - self._began_s, 2 * self.piece_s)
        self.worked_s += worked_s
        rest_s = worked_s * (1 / self.share - 1)
        if self._makes_up:
            rest_s -= self._over_s
        rest_s = max(least_s, rest_s, 0.0)
        await asyncio.sleep(rest_s)
        late_s = loop.time() - now_s - rest_s
        await after_others()
        self._began_s = loop.time()
        self._over_s = self._began_s - now_s - rest_s
        if late_s > LATE_S:
            self.share = max(self.floor, self.share / 2)
        else:
            self.share = min(self.ceiling, self.share * GROWTH)
        if self._began_s - self._looked_s >= WINDOW_S:
            self._look()
        self.share = max(self.floor, min(self.share, self._free))

    def _look(self) -> None:
        others_s = busy_s() - self.worked_s
        part = (others_s - self._others_s) / (self._began_s - self._looked_s)
        self._free = FREE_PART * (1 - part)
        self._looked_s, self._others_s = self._began_s, others_s
