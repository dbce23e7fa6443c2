"""What concurrent writers were told, and what the store may therefore hold after a crash.

Each writer owns its keys, so operations on one key never overlap. For a key the store must hold
the last acknowledged state; an operation that was under way when the process died may have taken
effect or not, but nothing in between.
"""

from __future__ import annotations

from dataclasses import dataclass, field

Missing = None
State = bytes | None
"""The digest of the value, or None where there is no object."""


@dataclass(slots=True)
class Key:
    acknowledged: State = Missing
    pending: list[State] = field(default_factory=list)
    """Outcomes of operations whose answer never came."""

    def begin(self, after: State) -> None:
        self.pending.append(after)

    def acknowledge(self, after: State) -> None:
        self.acknowledged = after
        self.pending.clear()

    def refused(self, after: State) -> None:
        """A definite refusal: it did not take effect."""
        self.pending.remove(after)

    def observe(self, found: State) -> str | None:
        """None if `found` is allowed, else what is wrong. What was seen is then settled."""
        if found != self.acknowledged and found not in self.pending:
            return f"holds {_name(found)}, acknowledged was {_name(self.acknowledged)}" + (
                f", under way {[_name(p) for p in self.pending]}" if self.pending else ""
            )
        self.acknowledge(found)
        return None


def _name(state: State) -> str:
    return "nothing" if state is None else state.hex()[:12]
