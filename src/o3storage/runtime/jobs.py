"""Pure jobs: heavy computation over lent buffers, on native threads that never take the
interpreter lock.

A job is an object of the native module with `run() -> result`, whose buffers it borrows until it
completes. `Jobs.run` completes on the event loop. Simulated jobs run the same native code in place
and complete at a seeded virtual time.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol, TypeVar

T_co = TypeVar("T_co", covariant=True)


class Job(Protocol[T_co]):
    """A unit of pure work made by the native module, e.g. `_native.SealJob(...)`."""

    def run(self) -> T_co:
        """Do the work in the calling thread (small inputs, tests, simulation)."""
        ...


class Jobs(Protocol):
    def run(self, job: Job[T_co]) -> Awaitable[T_co]:
        """Run `job` on the pool. Jobs start in order of submission, complete in any order.
        Cancelling the awaitable neither ends the job nor returns its buffers early."""
        ...
