"""The simulator finds planted defects, each within the stated number of seeds.

Run with `-s` for the table of docs/simulation.md.
"""

from __future__ import annotations

import pytest

from o3storage.simulation import SeedReport, simulate
from tests.simulation.planted import PLANTED, Planted
from tests.simulation.planted_cluster import PLANTED_IN_CLUSTER

FIRST_SEED = 1


def first_found(planted: Planted, nodes: int) -> tuple[int, SeedReport] | None:
    with pytest.MonkeyPatch.context() as patch:
        planted.plant(patch)
        for tried in range(1, planted.within + 1):
            report = simulate(FIRST_SEED + tried - 1, nodes=nodes)
            if report.violations:
                return tried, report
    return None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("planted", "nodes"),
    [*((planted, 1) for planted in PLANTED), *((planted, 3) for planted in PLANTED_IN_CLUSTER)],
    ids=[planted.plant.__name__ for planted in (*PLANTED, *PLANTED_IN_CLUSTER)],
)
def test_planted_defect_is_found(
    planted: Planted, nodes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    found = first_found(planted, nodes)
    assert found is not None, f"not found in {planted.within} seeds: {planted.name}"
    tried, report = found
    first = str(report.violations[0]).splitlines()[0]
    with capsys.disabled():
        print(f"\n| {planted.name} | {planted.within} | {tried} | {first[:90]} |")


def test_without_a_defect_the_first_seed_passes() -> None:
    assert not simulate(FIRST_SEED).violations
