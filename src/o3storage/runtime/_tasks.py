"""Ordered tasks: what `asyncio.TaskGroup` and `asyncio.wait` do, without walking sets, so that a
simulated run depends on its seed alone and not on addresses in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextvars import ContextVar
from functools import partial
from math import inf
from time import perf_counter
from types import TracebackType
from typing import Any, TypeVar

from o3storage.runtime._stall import may_put_off

T = TypeVar("T")

STEP_WITHIN_S = 0.006
"""A step of long work waits no longer for requests that keep coming. A listing of 1,000 keys has
eight: with 20 ms its p99 rose to 130 ms, with 5 a GET's p99 from 2.3 to 3.2."""
WORK_WITHIN_S = 0.015
"""From the beginning of a long piece of work; then its steps take turns with what is ready."""

_waits_until_s: ContextVar[float] = ContextVar("_waits_until_s", default=inf)
"""Until when the steps of the task's piece of work wait (`perf_counter`)."""


class Tasks:
    """A group of tasks that live no longer than it.

    As a context (`async with Tasks() as tasks`) the end waits for all; the first error cancels the
    others, in order of their start, and is raised. For a long-lived owner: `spawn` as needed, and
    `await tasks.close()`, which cancels all and waits. With `on_error` an error of one task is
    given to it and the others go on.
    """

    def __init__(self, on_error: Callable[[BaseException], None] | None = None) -> None:
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._on_error = on_error
        self._error: BaseException | None = None
        self._owner: asyncio.Task[Any] | None = None
        self._interrupted_owner = False
        self._closing = False
        self._idle: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, work: Coroutine[Any, Any, T], *, name: str | None = None) -> asyncio.Task[T]:
        """Start `work` as a task of this group. RuntimeError once the group is closing."""
        if self._closing:
            work.close()
            raise RuntimeError("this group of tasks is closing")
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks[task] = None
        task.add_done_callback(self._on_done)
        return task

    def _on_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)
        self._take_error(task)
        if not self._tasks and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def _take_error(self, task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            return
        if self._on_error is not None:
            self._on_error(error)
        elif self._error is None:
            self._error = error
            self._closing = True
            self._cancel_all()
            # The owner may be waiting for something that will now never come.
            if self._owner is not None and not self._owner.done():
                self._interrupted_owner = True
                self._owner.cancel()

    def _cancel_all(self) -> None:
        for task in list(self._tasks):
            task.cancel()

    async def close(self) -> None:
        """Cancel all tasks and wait until they have ended. An error that no `on_error` took is
        raised. Idempotent."""
        self._closing = True
        self._cancel_all()
        await self._all_done()
        self._raise_error()

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    async def _all_done(self) -> None:
        interrupted: asyncio.CancelledError | None = None
        while self._tasks:
            try:
                # Not `wait_any`: a task counts as ended when `_on_done` has seen it, and that is
                # called a step after it is done.
                self._idle = asyncio.get_running_loop().create_future()
                await self._idle
            except asyncio.CancelledError as error:
                # Ours to pass on, but only when no task of the group is left behind.
                interrupted = error
                self._closing = True
                self._cancel_all()
        if interrupted is not None:
            raise interrupted

    async def __aenter__(self) -> Tasks:
        self._owner = asyncio.current_task()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        owner, self._owner = self._owner, None
        ours = False
        if self._interrupted_owner and owner is not None:
            self._interrupted_owner = False
            # Unless someone else cancelled the owner too: that goes first.
            ours = owner.uncancel() == 0 and isinstance(error, asyncio.CancelledError)
        if error is not None:
            self._closing = True
            self._cancel_all()
        await self._all_done()
        if error is None or ours:
            self._raise_error()
        self._error = None


async def let_others() -> None:
    """Between two steps of one long piece of work: whatever is ready goes first, and on a busy
    loop requests that come meanwhile, too (for STEP_WITHIN_S at most). A turn of the loop takes
    some 25 us itself: steps should be several times as long."""
    meter = may_put_off()
    left_s = _waits_until_s.get() - perf_counter()
    if meter is None or left_s <= 0:
        await asyncio.sleep(0)
        return
    turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    meter.put_off(partial(_resolve, turn), min(STEP_WITHIN_S, left_s))
    await turn


async def after_others() -> None:
    """Before a long piece of work: on a busy loop as `let_others`, else nothing. Its steps
    (`let_others`) wait until WORK_WITHIN_S from now at most: it ends while requests keep coming."""
    _waits_until_s.set(perf_counter() + WORK_WITHIN_S)
    if may_put_off() is not None:
        await let_others()


def _resolve(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_result(None)


async def wait_any(futures: Sequence[asyncio.Future[Any]]) -> None:
    """Wait until one of `futures` is done. Cancelling the wait cancels none of them."""
    if not futures or any(future.done() for future in futures):
        return
    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wake(_: asyncio.Future[Any]) -> None:
        if not waiter.done():
            waiter.set_result(None)

    for future in futures:
        future.add_done_callback(wake)
    try:
        await waiter
    finally:
        for future in futures:
            future.remove_done_callback(wake)
