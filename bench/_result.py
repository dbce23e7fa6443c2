"""What a measurement found, beside its goal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from o3storage.cli._text import table


@dataclass(frozen=True, slots=True)
class Result:
    """One figure. `at_least`: the goal is a lower bound."""

    what: str
    measured: float
    goal: float
    unit: str = ""
    at_least: bool = False

    @property
    def met(self) -> bool:
        return self.measured >= self.goal if self.at_least else self.measured <= self.goal


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def verdicts(results: Sequence[Result]) -> str:
    rows = [
        [
            result.what,
            f"{number(result.measured)} {result.unit}".strip(),
            f"{'>=' if result.at_least else '<='} {number(result.goal)}",
            "met" if result.met else "MISSED",
        ]
        for result in results
    ]
    return table(["what", "measured", "goal", ""], rows)
