"""What the clients of a run saw: operations with the instants of call and return, and values.

Times are virtual seconds. No two events have the same instant: where the loop's clock stands still,
each event is a nanosecond after the one before it, so that the order of events is never lost.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass

TICK_S = 1e-9
"""Apart from its neighbours by at least this much is every event."""

MARKER = 0
"""Stands for any delete marker where a listing of versions shows one."""


class Kind(enum.Enum):
    PUT = "put"
    """A new version (also by completing a multipart upload); `condition` may refuse it."""
    DELETE = "delete"
    """The key goes; in a versioned bucket a delete marker is put on top."""
    READ = "read"
    """GET, HEAD or the key's place in a page of a listing."""
    READ_VERSION = "read-version"
    REMOVE_VERSION = "remove-version"
    VERSIONS = "versions"
    """All versions of the key, as a listing of versions shows them."""


class Result(enum.Enum):
    PENDING = "pending"
    OK = "ok"
    REFUSED = "refused"
    """A condition did not hold (412), or had nothing to hold on (404): nothing was changed."""
    NEVER = "never"
    """It is certain that nothing happened."""
    UNKNOWN = "unknown"
    """It may have happened between the call and `return_s`, or never."""


@dataclass(slots=True, eq=False)
class Operation:
    """One operation on one key. Values are positive numbers, a delete's marker is -number."""

    number: int
    client: str
    kind: Kind
    bucket: str
    key: str
    call_s: float
    return_s: float = math.inf
    result: Result = Result.PENDING
    value: int = 0
    """PUT: what is written. READ_VERSION, REMOVE_VERSION: which version."""
    condition: str = ""
    """PUT: "" none, "absent" (If-None-Match: *), "match" (If-Match: `expected`)."""
    expected: int = 0
    seen: int | None = None
    """READ: the value, None for "no such key". READ_VERSION: the value or None."""
    seen_versions: tuple[int, ...] = ()
    """VERSIONS: newest first, MARKER for delete markers."""

    @property
    def writes(self) -> bool:
        return self.kind in (Kind.PUT, Kind.DELETE, Kind.REMOVE_VERSION)

    def __str__(self) -> str:
        what = f"{self.kind.value} {self.bucket}/{self.key}"
        if self.value:
            what += f" value {self.value}"
        if self.condition:
            what += f" if {self.condition}" + (f" {self.expected}" if self.expected else "")
        outcome = self.result.value
        if self.result is Result.OK and self.kind in (Kind.READ, Kind.READ_VERSION):
            outcome = "nothing" if self.seen is None else f"value {self.seen}"
        if self.kind is Kind.VERSIONS:
            outcome = str(list(self.seen_versions))
        end = "never" if self.return_s == math.inf else f"{self.return_s:.9f}"
        return f"[{self.call_s:.9f} .. {end}] {self.client} {what} -> {outcome}"


@dataclass(slots=True)
class Page:
    """One page of a listing of current objects: every key k with low < k <= high is in `seen`
    with its value or is not there. `high` "" means to the end of the bucket."""

    bucket: str
    client: str
    call_s: float
    return_s: float
    low: str
    high: str
    seen: dict[str, int]

    def covers(self, key: str) -> bool:
        return key > self.low and (not self.high or key <= self.high)

    def __str__(self) -> str:
        span = f"({self.low!r}, {self.high or 'end'!r}]"
        return f"[{self.call_s:.9f} .. {self.return_s:.9f}] {self.client} list {self.bucket} {span}"


class History:
    """`call` and the three ways in which a call ends."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last_s = -1.0
        self.operations: list[Operation] = []
        self.pages: list[Page] = []

    def now(self) -> float:
        """This instant; later than every one asked for before."""
        self._last_s = max(self._clock(), self._last_s + TICK_S)
        return self._last_s

    def call(
        self, client: str, kind: Kind, bucket: str, key: str, **fields: int | str
    ) -> Operation:
        operation = Operation(
            len(self.operations) + 1,
            client,
            kind,
            bucket,
            key,
            self.now(),
            **fields,  # type: ignore[arg-type]
        )
        self.operations.append(operation)
        return operation

    def ends(self, operation: Operation, result: Result) -> None:
        operation.result = result
        operation.return_s = self.now()

    def page(self, page: Page) -> None:
        """A page, which is also a read of each key that the run uses and the page covers (added by
        the checker, which knows all keys)."""
        self.pages.append(page)

    def settle_unknown(self, now_s: float) -> None:
        """A process ended and its successor serves: what was unknown has happened by now or never
        will."""
        for operation in self.operations:
            if operation.result is Result.UNKNOWN and operation.return_s == math.inf:
                operation.return_s = now_s
