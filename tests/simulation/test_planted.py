"""The simulator finds planted defects, each within the stated number of seeds."""

from __future__ import annotations

import pytest

from o3storage.simulation import simulate
from tests.simulation.planted import Planted, small_steps
from tests.simulation.planted_table import ALL, FIRST_SEED, PAGE, first_found, promise, rows_of_page

FEW_SEEDS = 30
"""What takes more is left to `python -m tests.simulation.planted_table`, which runs all."""
QUICK = [(planted, nodes) for planted, nodes in ALL if planted.within <= FEW_SEEDS]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("planted", "nodes"), QUICK, ids=[planted.plant.__name__ for planted, _ in QUICK]
)
def test_planted_defect_is_found(planted: Planted, nodes: int) -> None:
    report = first_found(planted, nodes)
    assert report is not None, f"not found in {planted.within} seeds: {planted.name}"
    assert promise(report)


@pytest.mark.parametrize("nodes", [1, 3])
def test_without_a_defect_the_first_seed_passes(nodes: int) -> None:
    assert not simulate(FIRST_SEED, nodes=nodes).violations


@pytest.mark.parametrize("nodes", [1, 3])
def test_listings_in_small_steps_show_one_instant(
    nodes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `steps_of_a_listing_at_several_instants` breaks."""
    small_steps(monkeypatch)
    for seed in range(FIRST_SEED, FIRST_SEED + 3):
        assert not simulate(seed, nodes=nodes).violations


def test_the_page_lists_what_is_planted() -> None:
    told = []
    for line in rows_of_page(PAGE.read_text()):
        name, nodes, within, seed, broke = (cell.strip() for cell in line.strip("|\n").split("|"))
        assert 0 < int(seed) <= int(within) and broke, line
        told.append((name, int(nodes), int(within)))
    assert told == [(planted.name, nodes, planted.within) for planted, nodes in ALL]
