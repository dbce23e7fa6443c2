"""Start a coroutine at once, and make it a task only if it has to wait.

Most requests are answered from memory without ever waiting; a task for each would cost more than
parsing its head, and a turn of the loop besides. CPython 3.12 has eager tasks of its own; 3.11 is
the floor here.
"""

from __future__ import annotations

import asyncio
from asyncio.tasks import _enter_task, _leave_task
from collections.abc import Coroutine, Generator
from typing import Any


class FirstStep:
    """What `asyncio.current_task()` is while a coroutine runs its first step. Code that keeps it
    (`asyncio.timeout` does) and speaks to it later reaches the task that was made meanwhile."""

    __slots__ = ("_cancels", "_message", "task")

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self._cancels = 0
        self._message: Any = None

    def cancel(self, msg: Any = None) -> bool:
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
        return self.task is not None and self.task.done()

    def get_name(self) -> str:
        return "first step of a request" if self.task is None else self.task.get_name()


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


def start(
    loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, None]
) -> asyncio.Task[None] | None:
    """Run `coroutine` up to its first wait. None if it has ended (its exception is raised), else
    the task that runs the rest. Not to be called from within a task."""
    step = FirstStep()
    _enter_task(loop, step)  # type: ignore[arg-type]
    try:
        waits_for = coroutine.send(None)
    except StopIteration:
        return None
    finally:
        _leave_task(loop, step)  # type: ignore[arg-type]
    step.task = task = loop.create_task(_Rest(coroutine, waits_for))
    for _ in range(step._cancels):
        task.cancel(step._message)
    return task
