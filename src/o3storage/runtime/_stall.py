"""How long one step of the event loop takes: the time between two waits for events, in which no
other request is served; a limit on how much one step takes on; and garbage collected in between."""

from __future__ import annotations

import asyncio
import gc
import select
import selectors
from collections.abc import Callable
from heapq import heappop, heappush
from math import ceil
from time import perf_counter

_Events = list[tuple[selectors.SelectorKey, int]]

_EPOLLIN: int = getattr(select, "EPOLLIN", 0)
_EPOLLOUT: int = getattr(select, "EPOLLOUT", 0)

EVENTS_PER_STEP = 64
"""Sockets served in one step; the kernel hands the others out in the next, in turn. Each may bring
a request of 0.1 to 0.2 ms, so that hundreds of busy connections do not make a step of 50 ms. Fewer
make the log's batches smaller: with 24 a PUT at 64 connections took a tenth more CPU."""

LONG_STEP_S = 0.012
"""A step this long is followed by one with fewer sockets: as many as fit into that time at the same
cost. With 512 busy connections steps of 64 requests, and of what they wake, took 12 to 30 ms; steps
at 64 connections are shorter than this, and their batches no smaller."""
LEAST_EVENTS = 16
"""Sockets of a step however long the steps are: something else makes them so."""
MORE_EVENTS = 2
"""So many more than in the step before if that was not long."""

SHARE_WINDOW_S = 0.1
"""What `StallMeter.busy_share` looks back on: a few hundred steps of a busy loop."""


YOUNG_OBJECTS = 4_000
"""Containers made and not gone since the last collection of garbage, from which on one is due when
nobody waits for the loop. Looking at them took 0.8 to 1.7 ms; 10,000, whenever it was their time, 3
to 9 ms, and in a loop that is busy for 85 % of the time the queue behind that lasts ten times as
long. With 1,000 it came at every batch of 64 PUTs, for what they hold until their sync."""
OLDEST_AFTER = 400
"""Collections until the oldest generation, all that survived one, is due as well: as often as in
the interpreter."""
OLDEST_AT_LAST = 10_000
"""The same while the loop is busy, hours of a full load: it is as large as the entries of the log
that are kept make it."""
MOSTLY_IDLE = 0.1
"""Part of the loop's time in use below which it is not busy in that sense."""


PUT_OFF_FROM = 0.5
"""Part of the loop's time in use from which on work that can wait (`StallMeter.put_off`) does:
below, nobody would notice."""


class StallMeter(selectors.DefaultSelector):
    """A selector that measures what the loop does between two waits, and hands it at most
    EVENTS_PER_STEP events at a time, fewer after a long step.

    `longest_s` is the longest step since `take_longest_s` was last called; `slow_steps` counts
    steps over `slow_s`. `busy_share` is the part of the last SHARE_WINDOW_S, or of what is longer
    and ended with the last step, in which the loop was not waiting.

    `put_off` gives requests that are to be read precedence over work that somebody waits for less:
    first come, first served, a request waits for all that came before it, and on a loop that is
    busy for 85 % of the time that is a GET's p90.
    """

    def __init__(self, slow_s: float = 0.02) -> None:
        super().__init__()
        self.slow_s = slow_s
        self.longest_s = 0.0
        self.longest_ever_s = 0.0
        self.slow_steps = 0
        self.busy_s = 0.0
        self.busy_share = 0.0
        self._most = EVENTS_PER_STEP
        """Sockets of the next step."""
        self._found = 0
        """Sockets of this step."""
        self._put_off: list[tuple[float, int, Callable[[], object]]] = []
        """What waits for a step that brings no request: a heap by how long it may."""
        self._put_offs = 0
        self.collects = False
        """Whether garbage is collected when nothing waits, so that the interpreter, whose
        thresholds are to be well above YOUNG_OBJECTS, seldom has to while requests do."""
        self._window_at = perf_counter()
        self._window_busy_s = 0.0
        self._woken_at: float | None = None
        # The standard library's selector always asks for all events at once; where it is not made
        # as it has been since 3.4, it goes on doing so.
        self._poll = getattr(getattr(self, "_selector", None), "poll", None)
        self._keys: dict[int, selectors.SelectorKey] = getattr(self, "_fd_to_key", {})
        if _EPOLLIN == 0 or not hasattr(self, "_fd_to_key"):
            self._poll = None

    def select(self, timeout: float | None = None) -> _Events:
        """Wait for events, as the loop asks."""
        woken_at = self._woken_at
        if woken_at is not None:
            now = perf_counter()
            step_s = now - woken_at
            self.busy_s += step_s
            window_s = now - self._window_at
            if window_s >= SHARE_WINDOW_S:
                self.busy_share = (self.busy_s - self._window_busy_s) / window_s
                self._window_at = now
                self._window_busy_s = self.busy_s
            if step_s > self.longest_s:
                self.longest_s = step_s
                self.longest_ever_s = max(self.longest_ever_s, step_s)
            if step_s > self.slow_s:
                self.slow_steps += 1
            if step_s > LONG_STEP_S:
                fits = int(self._found * LONG_STEP_S / step_s)
                self._most = max(LEAST_EVENTS, min(self._most, fits))
            elif self._most < EVENTS_PER_STEP:
                self._most = min(EVENTS_PER_STEP, self._most + MORE_EVENTS)
        if self._put_off:
            return self._select_and_release(timeout)
        if self.collects and timeout != 0 and gc.get_count()[0] >= YOUNG_OBJECTS:
            events = self._select(0)
            self._woken_at = perf_counter()
            if not events:
                self._collect()
            return events
        events = self._select(timeout)
        self._woken_at = perf_counter()
        return events

    def put_off(self, schedule: Callable[[], object], most_s: float) -> None:
        """Call `schedule`, which is to have the loop do something soon, in the first step in which
        nothing else is ready, or after `most_s`; of several the one that may wait least first."""
        self._put_offs += 1
        heappush(self._put_off, (perf_counter() + most_s, self._put_offs, schedule))

    def _select_and_release(self, timeout: float | None) -> _Events:
        events = self._select(0)
        now = self._woken_at = perf_counter()
        waiting = self._put_off
        if not events and timeout != 0:  # (0: callbacks are ready, or a timer is due)
            heappop(waiting)[2]()
        while waiting and waiting[0][0] <= now:
            heappop(waiting)[2]()
        return events

    def _collect(self) -> None:
        """What is new, and now and then what is old. What survived once is not looked at a second
        time soon: as a generation of its own it is hundreds of thousands of containers after a
        hundred collections, 19 ms for 400,000 in a script."""
        collections = gc.get_count()[2]
        enough = OLDEST_AFTER if self.busy_share < MOSTLY_IDLE else OLDEST_AT_LAST
        gc.collect(1 if collections < enough else 2)

    def _select(self, timeout: float | None) -> _Events:
        poll = self._poll
        if poll is None:
            return super().select(timeout)
        if timeout is None:
            wait_s = -1.0
        elif timeout <= 0:
            wait_s = 0.0
        else:
            wait_s = ceil(timeout * 1e3) * 1e-3  # epoll counts in milliseconds: never too early
        keys = self._keys
        events: _Events = []
        for descriptor, mask in poll(wait_s, self._most):
            key = keys.get(descriptor)
            if key is not None:
                found = 0
                if mask & ~_EPOLLIN:
                    found |= selectors.EVENT_WRITE
                if mask & ~_EPOLLOUT:
                    found |= selectors.EVENT_READ
                events.append((key, found & key.events))
        self._found = len(events)
        return events

    def take_longest_s(self) -> float:
        """The longest step since the last call, in seconds."""
        longest_s, self.longest_s = self.longest_s, 0.0
        return longest_s


def _running_meter() -> StallMeter | None:
    """None for a loop without a meter, as in tests and under virtual time."""
    meter = getattr(asyncio.get_running_loop(), "_selector", None)
    return meter if isinstance(meter, StallMeter) else None


def may_put_off() -> StallMeter | None:
    """The running loop's meter while it is so busy that work which can wait should; else None."""
    meter = _running_meter()
    return meter if meter is not None and meter.busy_share > PUT_OFF_FROM else None


def busy_share() -> float:
    """`StallMeter.busy_share` of the running loop; 0.0 for a loop without a meter."""
    meter = _running_meter()
    return meter.busy_share if meter is not None else 0.0


def busy_s() -> float:
    """How long the running loop was not waiting, up to its last step; 0.0 as for `busy_share`."""
    meter = _running_meter()
    return meter.busy_s if meter is not None else 0.0


def new_event_loop(meter: StallMeter) -> asyncio.AbstractEventLoop:
    """An event loop that `meter` measures, for `asyncio.Runner(loop_factory=...)`."""
    return asyncio.SelectorEventLoop(meter)
