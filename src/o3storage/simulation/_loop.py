"""A seeded asyncio event loop whose time is virtual: it jumps to the next timer when nothing is
ready, so that hours of simulated waiting take no real time and a run is reproduced by its seed.

It has no selector, no threads, no signals and no name look-up: code under simulation gets its
network and disk as simulated twins. Callbacks keep asyncio's order (first in, first out), so the
only sources of variety are the seeded delays of the twins.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import random
from asyncio import base_events
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")

OWNER: contextvars.ContextVar[object] = contextvars.ContextVar("owner", default=None)
"""Whose code is running: the simulated process, which can be paused. Tasks and callbacks inherit it
from where they are made."""

MAX_TURNS = 2_000_000
"""Turns of the loop after which a run counts as hung: the longest test of today takes a tenth. It
finds what is busy for ever without time passing."""
DEFAULT_LIMIT_S = 7 * 24 * 3600.0
"""Virtual seconds after which a run counts as hung: nothing that is simulated waits a week."""


class SimDeadlockError(RuntimeError):
    """Nothing is ready and no timer is set, but the main coroutine has not finished."""


class SimTimeoutError(RuntimeError):
    """Virtual time passed the limit of the run."""


class _Selector:
    """What `BaseEventLoop._run_once` asks for I/O events. Waiting moves the virtual clock."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        self._loop.turns += 1
        if self._loop.turns > MAX_TURNS:
            raise SimTimeoutError(f"{MAX_TURNS} turns of the loop: {self._loop.describe_stall()}")
        if timeout is None:
            raise SimDeadlockError(self._loop.describe_stall())
        if timeout > 0:
            self._loop.advance()
        return []


class SimLoop(base_events.BaseEventLoop):
    """A virtual-time loop. `rng(name)` gives each simulated part its own seeded generator, so that
    one more draw in one part does not shift the choices of all others."""

    def __init__(self, seed: int, *, limit_s: float = DEFAULT_LIMIT_S) -> None:
        super().__init__()
        self.seed = seed
        self.limit_s = limit_s
        self.turns = 0
        self._now_s = 0.0
        self._selector = _Selector(self)
        self._task_count = 0
        self._scheduled: list[asyncio.TimerHandle]
        self._ready: deque[asyncio.Handle]
        self._held: dict[object, list[asyncio.Handle]] = {}
        """What the paused processes would do, in order."""
        self.set_task_factory(self._make_task)

    def time(self) -> float:
        """Virtual seconds since the start of the run."""
        return self._now_s

    def rng(self, name: str) -> random.Random:
        return random.Random(f"{self.seed}/{name}")

    def advance(self) -> None:
        """Jump to the next timer (the loop asks for this when nothing is ready)."""
        when = self._scheduled[0].when()
        if when > self.limit_s:
            raise SimTimeoutError(
                f"virtual time passed {self.limit_s} s (seed {self.seed}): {self.describe_stall()}"
            )
        self._now_s = max(self._now_s, when)

    # --- processes that stand still

    def pause(self, owner: object) -> None:
        """Hold everything that runs on behalf of `owner` (see OWNER), as SIGSTOP does, until
        `resume`: nothing is lost, and time goes on. Idempotent."""
        if owner in self._held:
            return
        held = self._held[owner] = []
        ready = self._ready
        for at, handle in enumerate(ready):
            if _owner(handle) == owner:
                held.append(handle)
                # The loop counts what it found ready: the place must stay.
                ready[at] = asyncio.Handle(_nothing, (), self, contextvars.Context())
        held.extend(sorted(timer for timer in self._scheduled if _owner(timer) == owner))
        self._scheduled[:] = [timer for timer in self._scheduled if _owner(timer) != owner]
        heapq.heapify(self._scheduled)

    def resume(self, owner: object) -> None:
        """Go on, with what was ready first and then all timers that are overdue. Idempotent."""
        for handle in self._held.pop(owner, ()):
            if isinstance(handle, asyncio.TimerHandle):
                heapq.heappush(self._scheduled, handle)
            else:
                self._ready.append(handle)

    def is_paused(self, owner: object) -> bool:
        return owner in self._held

    def call_soon(  # type: ignore[override]
        self,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        if self._held and _owner(handle) in self._held:
            self._held[_owner(handle)].append(handle)
        else:
            self._ready.append(handle)
        return handle

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        timer._scheduled = True  # type: ignore[attr-defined]
        if self._held and _owner(timer) in self._held:
            self._held[_owner(timer)].append(timer)
        else:
            heapq.heappush(self._scheduled, timer)
        return timer

    # --- what went wrong

    def describe_stall(self) -> str:
        """Who is waiting for what; for error messages."""
        lines = [f"deadlock at {self._now_s:.6f} s of seed {self.seed}; pending tasks:"]
        for task in _ordered_tasks(self):
            frames = task.get_stack(limit=1)
            at = f"{frames[-1].f_code.co_filename}:{frames[-1].f_lineno}" if frames else "?"
            lines.append(f"  {task.get_name()} {_coroutine_name(task)} at {at}")
        return "\n".join(lines)

    def _make_task(
        self,
        loop: asyncio.AbstractEventLoop,
        coro: Coroutine[Any, Any, T] | Generator[Any, None, T],
        **kwargs: Any,
    ) -> asyncio.Future[T]:
        self._task_count += 1
        task: asyncio.Task[T] = asyncio.Task(coro, loop=loop, **kwargs)
        task.set_name(f"sim-{self._task_count:07d}")
        return task

    # --- what BaseEventLoop leaves to its subclasses

    def _process_events(self, event_list: list[Any]) -> None:
        assert not event_list

    def _write_to_self(self) -> None:
        """No other thread to wake up: `call_soon_threadsafe` is `call_soon` here."""

    def run_in_executor(self, *_: Any) -> Any:  # type: ignore[override]
        raise RuntimeError("no executors: use the native job pool (runtime.jobs)")

    async def getaddrinfo(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("no name look-up in a simulation: use the simulated network")


def _nothing() -> None:
    """Stands in the place of a callback that is held."""


def _owner(handle: asyncio.Handle) -> object:
    context: contextvars.Context = handle._context  # type: ignore[attr-defined]
    return context.get(OWNER)


def _coroutine_name(task: asyncio.Task[Any]) -> str:
    return getattr(task.get_coro(), "__qualname__", repr(task.get_coro()))


def _ordered_tasks(loop: SimLoop) -> list[asyncio.Task[Any]]:
    """All unfinished tasks in order of creation (`all_tasks` is a set, ordered by address)."""
    return sorted(asyncio.all_tasks(loop), key=asyncio.Task.get_name)


def run(coro: Coroutine[Any, Any, T], seed: int, *, limit_s: float = DEFAULT_LIMIT_S) -> T:
    """Run `coro` to its end on a new virtual-time loop and return its result. Tasks that are left
    over are cancelled, in order of creation. Raises SimDeadlockError, SimTimeoutError."""
    loop = SimLoop(seed, limit_s=limit_s)
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(loop.create_task(coro))
    finally:
        try:
            _cancel_rest(loop)
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            asyncio.set_event_loop(None)
            loop.close()


def _cancel_rest(loop: SimLoop) -> None:
    rest = _ordered_tasks(loop)
    for task in rest:
        task.cancel()

    async def gather_rest() -> None:
        await asyncio.gather(*rest, return_exceptions=True)

    if rest:
        loop.run_until_complete(loop.create_task(gather_rest()))
