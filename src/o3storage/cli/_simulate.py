"""`simulate`: nodes under seeded faults on virtual time, and the judgement of each run."""

from __future__ import annotations

import argparse
import time

from o3storage.runtime import tune_memory
from o3storage.simulation import SeedReport, simulate

from ._text import Progress, duration_text, table

DEFAULT_SEEDS = 100
"""A minute or so on one core."""
MAX_SEEDS = 1_000_000
"""More would run for days; give another first seed instead."""


def run_seeds(options: argparse.Namespace) -> int:
    """Exit code: 0, or 1 if any seed broke a promise."""
    if options.seed is not None and options.seeds is None:
        return _one(options.seed, options.nodes, options.trace)
    tune_memory()  # or what seeds leave behind grows by megabytes each
    first = options.seed or 0
    count = max(1, min(options.seeds or DEFAULT_SEEDS, MAX_SEEDS))
    progress = Progress("simulate", count)
    began = time.monotonic()
    totals = Totals()
    for done, seed in enumerate(range(first, first + count), start=1):
        report = simulate(seed, nodes=options.nodes)
        totals.add(report)
        if report.violations:
            print(report.line, flush=True)
        progress.update(done, f"seed {seed}, {totals.failed} failed")
    progress.done()
    print(totals.text(time.monotonic() - began))
    return 1 if totals.failed else 0


class Totals:
    """Sums over seeds."""

    def __init__(self) -> None:
        self.seeds = 0
        self.failed = 0
        self.virtual_s = 0.0
        self.operations = 0
        self.faults: dict[str, int] = {}

    def add(self, report: SeedReport) -> None:
        self.seeds += 1
        self.failed += bool(report.violations)
        self.virtual_s += report.virtual_s
        self.operations += report.operations
        for kind, count in report.faults.items():
            self.faults[kind] = self.faults.get(kind, 0) + count

    def text(self, took_s: float) -> str:
        rows = [[kind, str(self.faults[kind])] for kind in sorted(self.faults)]
        rows.append(["all faults", str(sum(self.faults.values()))])
        return (
            table(["fault", "times"], rows)
            + f"\n{self.seeds} seeds, {self.failed} failed; {self.operations:,} operations in "
            f"{duration_text(self.virtual_s)} of virtual time, {duration_text(took_s)} of real time"
        )


def _one(seed: int, nodes: int, trace: bool) -> int:
    report = simulate(seed, nodes=nodes, keep_trace=trace)
    for line in report.trace:
        print(line)
    if not trace:
        for violation in report.violations:
            print(violation)
    faults = ", ".join(f"{count} {kind}" for kind, count in sorted(report.faults.items()))
    print(
        f"seed {seed}: {report.operations} operations ({report.acknowledged} acknowledged, "
        f"{report.unknown} of unknown outcome), faults: {faults}; {report.virtual_s:.1f} s of "
        f"virtual time, {report.cpu_s:.2f} s of CPU; trace {report.trace_hash[:16]}"
    )
    print(f"{len(report.violations)} violations" if report.violations else "all promises held")
    return 1 if report.violations else 0
