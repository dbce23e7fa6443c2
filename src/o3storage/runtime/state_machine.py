"""The contract between a replicated log and the pure state machine it drives.

The state machine does no I/O: a command or query is a generator that yields the rows it wants to
read and is sent what was found, so that the same code runs over an index on disk, over a dict in a
test, and over a simulated disk. `cluster` drives such generators; `catalog` writes them; neither
imports the other.

    def apply(...) -> Generator[Read, ReadResult, Outcome]:
        row = yield Get(key)            # bytes | None
        newest = yield First(prefix)    # tuple[key, value] | None
        rows = yield Scan(low, high, n) # list[tuple[key, value]], at most n, low <= key < high
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

Row = tuple[bytes, bytes]


class Get(NamedTuple):
    """Read one row. Result: its value, or None."""

    key: bytes


class First(NamedTuple):
    """Read the first row whose key starts with `prefix`, in byte order. Result: (key, value) or
    None. `prefix` must end where the index's bloom prefix ends (the escaped key's terminator)."""

    prefix: bytes


class Scan(NamedTuple):
    """Read at most `limit` rows with low <= key < high, ascending. Result: list of (key, value)."""

    low: bytes
    high: bytes
    limit: int


Read = Get | First | Scan
ReadResult = Any
"""bytes | None for Get, Row | None for First, list[Row] for Scan."""


@dataclass(slots=True)
class Outcome:
    """What applying one command did. A refused command writes nothing and carries its `error`."""

    result: Any = None
    error: Exception | None = None
    rows: list[tuple[bytes, bytes | None]] = field(default_factory=list)
    """Rows to write, or to delete (None), all or nothing."""
    released: list[bytes] = field(default_factory=list)
    """Stream ids whose frames no row names any more."""


class StateMachine(Protocol):
    """Deterministic: equal state and command bytes give equal outcomes on every replica. Encoded
    commands never begin with byte 0xFF, and rows never with 0xFD to 0xFF: those are the cluster's.
    """

    def route(self, command: Any) -> bytes:
        """The row key that decides which range takes the command (b"" for range 0)."""
        ...

    def encode(self, command: Any) -> bytes: ...

    def adds(self, command: Any) -> bool:
        """Whether the command stores something new, and is therefore refused on a full disk even
        when it carries no body. What frees space, or ends what was begun, is not."""
        ...

    def of_group(self, group: int) -> StateMachine:
        """The machine that applies the entries of that group: its own rows differ by group."""
        ...

    def touches_only(self, data: bytes, low: bytes, high: bytes | None) -> bool:
        """Whether all keys that an encoded command touches lie in low <= route < high (routes
        without their table byte, high None: the end); of a command that is `whole`: whether any
        key of it does. Raises ValueError."""
        ...

    def whole(self, command: Any) -> tuple[bytes, bytes] | None:
        """(low, high) if every range that holds a part of this span of routes must apply the
        command, each for itself. Applying it again, or to a range that began with the rows of one
        that had applied it, changes nothing."""
        ...

    def joined(self, results: Sequence[Any]) -> Any:
        """The result of a command that is `whole`, of those of all ranges."""
        ...

    def items(self, command: Any) -> Sequence[bytes] | None:
        """Routes of the items of a command that may be cut into several (`part`), whose result is
        a list with one element for each item; None for any other."""
        ...

    def part(self, command: Any, positions: Sequence[int]) -> Any:
        """The command for some of its items."""
        ...

    def split(
        self, child: int, cut: bytes, high: bytes | None
    ) -> Generator[Read, ReadResult, list[tuple[bytes, bytes | None]] | str]:
        """This group's keys from `cut` up to `high` (row keys without their table byte; None: the
        end) belong to group `child` from now on. Returns the rows that change by this, which are
        the two groups' own; or, as text, why it cannot be done now."""
        ...

    def encode_query(self, query: Any) -> bytes:
        """A query of a key range as bytes, for another node to run. Raises ValueError."""
        ...

    def decode_query(self, data: bytes) -> Any:
        """Raises ValueError."""
        ...

    def encode_answer(self, result: Any, error: Exception | None) -> bytes:
        """What a query or command answered, or refused with. Raises ValueError: it is none of
        the state machine's."""
        ...

    def decode_answer(self, data: bytes) -> tuple[Any, Exception | None]:
        """(result, error). Raises ValueError."""
        ...

    def apply(self, data: bytes) -> Generator[Read, ReadResult, Outcome]:
        """Apply an encoded command. Raises ValueError for bytes that no version of this program
        wrote (the replica then stops rather than diverge)."""
        ...

    def stream_route(self, bucket_id: int, key: bytes) -> bytes:
        """The row key that routes every command which may name a stream of this (bucket, key)."""
        ...

    def bodies(self, key: bytes, value: bytes) -> Sequence[bytes]:
        """Packed references of the bodies that a row names: their frames belong to it."""
        ...

    def abandon(self, route: bytes, stream: bytes, proposed_ns: int) -> Any:
        """The command that gives up a stream opened under `route` (of `stream_route`). Its result
        has a `state`: "more" (submit it again), "named" (a row names it: leave it) or "abandoned"
        (nothing will ever name it: its frames may go)."""
        ...
