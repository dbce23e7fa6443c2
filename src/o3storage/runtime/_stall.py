"""How long one step of the event loop takes: the time between two waits for events, in which no
other request is served."""

from __future__ import annotations

import asyncio
import selectors
from time import perf_counter

_Events = list[tuple[selectors.SelectorKey, int]]


class StallMeter(selectors.DefaultSelector):
    """A selector that measures what the loop does between two waits.

    `longest_s` is the longest step since `take_longest_s` was last called; `slow_steps` counts
    steps over `slow_s`.
    """

    def __init__(self, slow_s: float = 0.02) -> None:
        super().__init__()
        self.slow_s = slow_s
        self.longest_s = 0.0
        self.longest_ever_s = 0.0
        self.slow_steps = 0
        self.busy_s = 0.0
        self._woken_at: float | None = None

    def select(self, timeout: float | None = None) -> _Events:
        """Wait for events, as the loop asks."""
        woken_at = self._woken_at
        if woken_at is not None:
            step_s = perf_counter() - woken_at
            self.busy_s += step_s
            if step_s > self.longest_s:
                self.longest_s = step_s
                self.longest_ever_s = max(self.longest_ever_s, step_s)
            if step_s > self.slow_s:
                self.slow_steps += 1
        events = super().select(timeout)
        self._woken_at = perf_counter()
        return events

    def take_longest_s(self) -> float:
        """The longest step since the last call, in seconds."""
        longest_s, self.longest_s = self.longest_s, 0.0
        return longest_s


def new_event_loop(meter: StallMeter) -> asyncio.AbstractEventLoop:
    """An event loop that `meter` measures, for `asyncio.Runner(loop_factory=...)`."""
    return asyncio.SelectorEventLoop(meter)
