"""What a run did and found."""

from __future__ import annotations

from dataclasses import dataclass, field

from ._checker import Violation


@dataclass(slots=True)
class Report:
    """What one seed did and found."""

    seed: int
    nodes: int = 1
    virtual_s: float = 0.0
    cpu_s: float = 0.0
    operations: int = 0
    splits: int = 0
    """Key ranges that were cut in two."""
    requests: int = 0
    acknowledged: int = 0
    unknown: int = 0
    seals: int = 0
    frames: int = 0
    """Frames that arrived at nodes."""
    elections: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    violations: list[Violation] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)
    trace_hash: str = ""

    @property
    def fault_count(self) -> int:
        return sum(self.faults.values())

    @property
    def line(self) -> str:
        """The one line of a failing seed."""
        first = str(self.violations[0]).splitlines()[0] if self.violations else "no violation"
        nodes = f" with {self.nodes} nodes" if self.nodes > 1 else ""
        return f"seed {self.seed}{nodes}: {first}"


class GaveUp(Exception):
    """A node cannot be brought back; the run ends here."""
