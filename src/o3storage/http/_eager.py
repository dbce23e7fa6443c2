"""Start a coroutine at once, and make it a task only if it has to wait often.

Most requests are answered from memory without ever waiting, and a small write waits once, for its
sync, or in a cluster first for what its leaders say; a task for each would cost more than parsing
its head, and turns of the loop besides. CPython 3.12 has eager tasks of its own; 3.11 is the floor
here.
"""

from __future__ import annotations

import asyncio
from asyncio.tasks import _enter_task, _leave_task
from collections.abc import Callable, Coroutine, Generator
from typing import Any

MAX_WAITS = 3
"""A small write in a cluster waits so often: for its bucket, for its key, for its entry. From there
on a task costs less, whose steps are C."""


class Started:
    """A coroutine that was started at once and waits. What `asyncio.current_task()` is until a task
    takes over, which happens when it waits more than MAX_WAITS times or is cancelled. Code that
    keeps it (`asyncio.timeout` does) and speaks to it later reaches that task."""

    __slots__ = (
        "_cancels",
        "_coroutine",
        "_loop",
        "_message",
        "_on_end",
        "_waits",
        "_waits_for",
        "error",
        "task",
    )

    def __init__(
        self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, None]
    ) -> None:
        self.task: asyncio.Task[None] | None = None
        self.error: BaseException | None = None
        """What the coroutine raised, once it has ended."""
        self._loop = loop
        self._coroutine = coroutine
        self._on_end: Callable[[Started], None] | None = None
        self._waits = 0
        self._waits_for: asyncio.Future[Any] | None = None
        """The future that our callback is on; None before, after, and once there is a task."""
        self._cancels = 0
        self._message: Any = None

    # --- as a task

    def cancel(self, msg: Any = None) -> bool:
        if self.task is None and self._waits_for is not None:
            waits_for, self._waits_for = self._waits_for, None
            waits_for._asyncio_future_blocking = True  # as a task expects what is yielded to it
            self._hand_over(waits_for)
        if self.task is not None:
            return self.task.cancel(msg)
        self._cancels += 1
        self._message = msg
        return True

    def cancelling(self) -> int:
        return self._cancels if self.task is None else self.task.cancelling()

    def uncancel(self) -> int:
        if self.task is not None:
            return self.task.uncancel()
        self._cancels = max(0, self._cancels - 1)
        return self._cancels

    def done(self) -> bool:
        return self._coroutine.cr_frame is None if self.task is None else self.task.done()  # type: ignore[attr-defined]

    def get_name(self) -> str:
        return "a request" if self.task is None else self.task.get_name()

    # --- its owner's side

    def when_ended(self, on_end: Callable[[Started], None]) -> None:
        """`on_end` is called once the coroutine has ended; `error` then says how. Call this in the
        step that called `start`: it has not ended there."""
        self._on_end = on_end
        if self.task is not None:
            self.task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self.error = asyncio.CancelledError() if task.cancelled() else task.exception()
        self._ended()

    def _ended(self) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end(self)

    # --- running

    def _step(self) -> bool:
        """Run to the next wait. True if the coroutine has ended. Raises what it raises."""
        loop = self._loop
        _enter_task(loop, self)  # type: ignore[arg-type]
        try:
            waits_for = self._coroutine.send(None)
        except StopIteration:
            return True
        finally:
            _leave_task(loop, self)  # type: ignore[arg-type]
        blocking = getattr(waits_for, "_asyncio_future_blocking", False)
        if blocking and self._waits < MAX_WAITS and not self._cancels:
            self._waits += 1
            waits_for._asyncio_future_blocking = False
            self._waits_for = waits_for
            waits_for.add_done_callback(self._wake)
        else:
            self._hand_over(waits_for)
        return False

    def _wake(self, _: asyncio.Future[Any]) -> None:
        if self._waits_for is None:
            return  # a task took over
        self._waits_for = None
        try:
            if not self._step():
                return
        except BaseException as error:
            self.error = error
            self._ended()
            if not isinstance(error, Exception | asyncio.CancelledError):
                raise
            return
        self._ended()

    def _hand_over(self, waits_for: Any) -> None:
        self.task = task = self._loop.create_task(_Rest(self._coroutine, waits_for))
        if self._on_end is not None:
            task.add_done_callback(self._task_ended)
        for _ in range(self._cancels):
            task.cancel(self._message)


class _Rest(Coroutine[Any, Any, None]):
    """A coroutine that has yielded `waits_for` already, to be gone on with by a task. A wrapper
    that is a coroutine itself would lose a cancellation that comes before its own first step."""

    __slots__ = ("_coroutine", "_waits_for")

    def __init__(self, coroutine: Coroutine[Any, Any, None], waits_for: Any) -> None:
        self._coroutine = coroutine
        self._waits_for = [waits_for]

    def send(self, value: Any) -> Any:
        return self._waits_for.pop() if self._waits_for else self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        self._waits_for.clear()
        return self._coroutine.throw(*error)

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, None]:
        raise TypeError("this is for a task only")


def start(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, None]) -> Started | None:
    """Run `coroutine` up to its first wait. None if it has ended (its exception is raised), else
    what goes on with it. Not to be called from within a task."""
    started = Started(loop, coroutine)
    return None if started._step() else started
