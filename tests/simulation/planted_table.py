"""The table of planted defects in docs/simulation.md.

    .venv/bin/python -m tests.simulation.planted_table            run all and print it
    .venv/bin/python -m tests.simulation.planted_table write      and write it into the page

Takes some minutes. `tests/simulation/test_planted.py` holds that the page lists what is planted.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from o3storage.runtime import tune_memory
from o3storage.simulation import SeedReport, simulate
from tests.simulation.planted import PLANTED, Planted
from tests.simulation.planted_cluster import PLANTED_IN_CLUSTER

PAGE = Path(__file__).resolve().parents[2] / "docs" / "simulation.md"
HEAD = (
    "| Defect | Nodes | Must be found within | Found by seed | What broke |\n"
    "|---|---:|---:|---:|---|\n"
)
FIRST_SEED = 1
ALL: list[tuple[Planted, int]] = [
    *((planted, 1) for planted in PLANTED),
    *((planted, 3) for planted in PLANTED_IN_CLUSTER),
]


def first_found(planted: Planted, nodes: int) -> SeedReport | None:
    """The first seed that finds it, of those that must be enough."""
    with pytest.MonkeyPatch.context() as patch:
        planted.plant(patch)
        for seed in range(FIRST_SEED, FIRST_SEED + planted.within):
            report = simulate(seed, nodes=nodes)
            if report.violations:
                return report
    return None


def promise(report: SeedReport) -> str:
    """What broke first. An error that a defect itself raised, because the product changed under it,
    is no finding, nor is a history that is too hard to judge."""
    found = [violation.promise for violation in report.violations]
    assert found[0] not in ("defect", "check"), report.violations[0]
    return found[0]


def row(planted: Planted, nodes: int) -> str:
    report = first_found(planted, nodes)
    assert report is not None, f"not found in {planted.within} seeds: {planted.name}"
    return f"| {planted.name} | {nodes} | {planted.within} | {report.seed} | {promise(report)} |\n"


def rows_of_page(text: str) -> list[str]:
    begin = text.index(HEAD) + len(HEAD)
    end = text.index("\n\n", begin) + 1
    return text[begin:end].splitlines(keepends=True)


def main(arguments: list[str]) -> int:
    tune_memory()
    rows: list[str] = []
    for planted, nodes in ALL:
        rows.append(row(planted, nodes))
        print(rows[-1], end="", flush=True)
    if "write" in arguments:
        text = PAGE.read_text()
        old = "".join(rows_of_page(text))
        PAGE.write_text(text.replace(HEAD + old, HEAD + "".join(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
