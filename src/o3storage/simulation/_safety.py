"""Watches consensus over all nodes of a run: what no node can see by itself (figure 3 of the Raft
paper), and what a node that found itself in a state that cannot be would hide by stopping.

- Election Safety: one leader a term.
- State Machine Safety: an index of a group holds the same entry wherever it is applied, in every
  life of every node, and each applies it behind the one before it.
- No replica stops at what no correct node does; no task ends with an error that nobody named.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from o3storage._native import blake3
from o3storage.cluster import ClusterError
from o3storage.cluster._applying import LOST, Applying
from o3storage.cluster._replica import Replica
from o3storage.raft.core import Entry, Output, Role, RoleChanged
from o3storage.runtime.network import LinkClosed
from o3storage.runtime.state_machine import Outcome
from o3storage.storage import StoreError

from ._loop import OWNER

NAMED_ERRORS = (StoreError, ClusterError, LinkClosed, OSError, TimeoutError, asyncio.CancelledError)
"""What a task of a process that dies, or of a link that ends, may end with."""
STOPPED = (" stopped", "cannot be used")
"""In the reason of a replica that found what cannot be; others tell of the disk or of the end."""

Elected = Callable[[int, int, int], None]
"""(group, term, machine)"""


class SafetyLog:
    """What was seen, and what of it must not be: (promise, machine or 0, text)."""

    def __init__(self) -> None:
        self.found: list[tuple[str, int, str]] = []
        self.elections = 0
        self.on_elected: Elected | None = None
        """Called at the instant at which a replica becomes leader, in its own turn."""
        self._leaders: dict[tuple[int, int], int] = {}
        self._applied: dict[tuple[int, int], tuple[int, bytes]] = {}

    def elected(self, replica: Replica, term: int) -> None:
        group, node = replica.group, replica.core.id
        self.elections += 1
        before = self._leaders.setdefault((group, term), node)
        if before != node:
            self._find("P4", f"range {group} has two leaders in term {term}")
        if self.on_elected is not None:
            self.on_elected(group, term, _owner())

    def applied(self, replica: Applying, entry: Entry) -> None:
        if entry.kind == LOST and replica.team is None:
            return  # (Nobody else has what it stood for.)
        group, index = replica.group, entry.index
        if index != replica.applied + 1:
            self._find("P4", f"range {group} applies {index} behind {replica.applied}")
        this = entry.term, blake3(bytes((entry.kind,)) + entry.data)
        before = self._applied.setdefault((group, index), this)
        if before != this:
            terms = f"one of term {before[0]} and one of term {this[0]}"
            self._find("P4", f"range {group} applies two entries at index {index}: {terms}")

    def failed(self, reason: str) -> None:
        if any(word in reason for word in STOPPED):
            self._find("P5", reason)

    def unhandled(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """The loop's handler of what nobody catches."""
        error = context.get("exception")
        if isinstance(error, Exception) and not isinstance(error, NAMED_ERRORS):
            self._find("defect", f"nobody catches {error!r}")

    def _find(self, promise: str, text: str) -> None:
        found = promise, _owner(), text
        if found not in self.found:
            self.found.append(found)


def _owner() -> int:
    owner = OWNER.get()
    return owner if isinstance(owner, int) else 0


@contextlib.contextmanager
def watch_safety(log: SafetyLog) -> Iterator[None]:
    """While open, all replicas tell the log when they lead, apply, and stop."""
    rarer, finish, fail = Replica._carry_out_rarer, Applying._finish, Replica.fail

    def watched_rarer(self: Replica, output: Output) -> None:
        rarer(self, output)
        if isinstance(output, RoleChanged) and output.role is Role.LEADER:
            log.elected(self, output.term)

    def watched_finish(self: Applying, entry: Entry, outcome: Outcome) -> bool:
        log.applied(self, entry)
        return finish(self, entry, outcome)

    def watched_fail(self: Replica, reason: str) -> None:
        if not self.fault:
            log.failed(reason)
        fail(self, reason)

    patches: list[tuple[Any, str, Any]] = [
        (Replica, "_carry_out_rarer", watched_rarer),
        (Applying, "_finish", watched_finish),
        (Replica, "fail", watched_fail),
    ]
    before = [owner.__dict__[name] for owner, name, _ in patches]
    for owner, name, watched in patches:
        setattr(owner, name, watched)
    try:
        yield
    finally:
        for (owner, name, _), original in zip(patches, before, strict=True):
            setattr(owner, name, original)
