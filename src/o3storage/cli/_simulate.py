"""`simulate`: nodes under seeded faults on virtual time, and the judgement of each run."""

from __future__ import annotations

import argparse
import gc
import json
import os
import select
import signal
import time
from collections.abc import Generator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from o3storage import _native
from o3storage.runtime import tune_memory
from o3storage.simulation import SeedReport, simulate

from ._store import CommandError
from ._text import Progress, duration_text, table

DEFAULT_SEEDS = 100
"""A minute or so on one core."""
MAX_SEEDS = 1_000_000
"""More would run for days; give another first seed instead."""
MAX_WORKERS = 64
"""More processes than a machine of today has cores for."""
PIPE_BYTES = 1 << 16
"""Read of a worker's results at a time."""


@dataclass(slots=True)
class Result:
    """What a run keeps of one seed: a line of JSON between processes and in a record."""

    seed: int
    failure: str
    """The line of a seed that failed; "" if it held."""
    virtual_s: float
    cpu_s: float
    operations: int
    faults: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, report: SeedReport) -> Result:
        failure = report.line if report.violations else ""
        return cls(
            report.seed,
            failure,
            round(report.virtual_s, 3),
            round(report.cpu_s, 4),
            report.operations,
            report.faults,
        )

    def encode(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":")) + "\n"

    @classmethod
    def decode(cls, line: str) -> Result:
        """Raises ValueError for what `encode` did not write."""
        try:
            return cls(**json.loads(line))
        except TypeError as error:
            raise ValueError(f"not a result of a seed: {error}") from None


def run_seeds(options: argparse.Namespace) -> int:
    """Exit code: 0, or 1 if any seed broke a promise. Raises CommandError."""
    if options.seed is not None and options.seeds is None and options.record is None:
        return _one(options.seed, options.nodes, options.trace)
    if not 1 <= options.workers <= MAX_WORKERS:
        raise CommandError(f"--workers takes 1 to {MAX_WORKERS}")
    tune_memory()  # or what seeds leave behind grows by megabytes each
    first = options.seed or 0
    count = max(1, min(options.seeds or DEFAULT_SEEDS, MAX_SEEDS))
    record = Record(Path(options.record), options.nodes) if options.record else None
    wanted = range(first, first + count)
    known = record.known if record is not None else {}
    progress = Progress("simulate", count)
    began = time.monotonic()
    totals = Totals()
    for seed in wanted:
        if seed in known:
            totals.add(known[seed])
    todo = [seed for seed in wanted if seed not in known]
    results = _side_by_side(todo, options.nodes, options.workers)
    try:
        for result in results:
            totals.add(result)
            if record is not None:
                record.add(result)
            if result.failure:
                print(result.failure, flush=True)
            progress.update(totals.seeds, f"seed {result.seed}, {totals.failed} failed")
    except KeyboardInterrupt:
        progress.done()
        print(totals.text(time.monotonic() - began))
        if record is not None:
            print(f"the same command goes on: {record.path} holds what is done")
        raise
    finally:
        results.close()
    progress.done()
    print(totals.text(time.monotonic() - began))
    return 1 if totals.failed else 0


def _side_by_side(seeds: list[int], nodes: int, workers: int) -> Generator[Result, None, None]:
    """Run seeds in so many processes; results as they come. Raises CommandError if one dies."""
    if workers == 1 or len(seeds) < 2:
        for seed in seeds:
            yield _run(seed, nodes)
        return
    children: dict[int, int] = {}
    """End of the pipe that is read -> process."""
    rest: dict[int, bytes] = {}
    try:
        for number in range(workers):
            if seeds[number::workers]:
                descriptor, process = _start_worker(seeds[number::workers], nodes)
                children[descriptor] = process
                rest[descriptor] = b""
        while children:
            for descriptor in select.select(list(children), [], [])[0]:
                data = os.read(descriptor, PIPE_BYTES)
                if data:
                    *lines, rest[descriptor] = (rest[descriptor] + data).split(b"\n")
                    for line in lines:
                        yield Result.decode(line.decode())
                    continue
                os.close(descriptor)
                _, status = os.waitpid(children.pop(descriptor), 0)
                if status:
                    raise CommandError(f"a worker ended early (wait status {status})")
    finally:
        for descriptor, process in children.items():
            os.close(descriptor)
            os.kill(process, signal.SIGTERM)
            os.waitpid(process, 0)


def _run(seed: int, nodes: int) -> Result:
    found = Result.of(simulate(seed, nodes=nodes))
    # The machines of a run, and the bytes of their disks, are a circle. The collector counts
    # objects and not bytes: after 380 seeds of five nodes 1.5 GB had not been looked at.
    gc.collect()
    return found


def _start_worker(seeds: list[int], nodes: int) -> tuple[int, int]:
    """(descriptor of its results, process). No thread runs here yet, so a fork is whole."""
    reading, writing = os.pipe()
    process = os.fork()
    if process:
        os.close(writing)
        return reading, process
    status = 1
    try:
        os.close(reading)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for seed in seeds:
            os.write(writing, _run(seed, nodes).encode().encode())
        status = 0
    finally:
        os._exit(status)  # nothing of what the parent would do at its end


class Record:
    """Results of seeds in a file, a line each, so that a long run can be stopped and go on."""

    def __init__(self, path: Path, nodes: int) -> None:
        """Reads what is there; what was cut off in the middle of a line is run again. Raises
        CommandError if the file is another run's, or no record."""
        self.path = path
        self.known: dict[int, Result] = {}
        head = {"simulate": 1, "version": _native.__version__, "nodes": nodes}
        try:
            data = path.read_bytes() if path.exists() else b""
            whole = data[: data.rfind(b"\n") + 1]
            first, *lines = whole.decode().splitlines() or [""]
            if first and json.loads(first) != head:
                raise CommandError(f"{path} is the record of another run ({first}): name another")
            for line in lines:
                result = Result.decode(line)
                self.known[result.seed] = result
            self._file = path.open("r+b" if data else "wb", buffering=0)
            self._file.truncate(len(whole))
            self._file.seek(0, os.SEEK_END)
            if not first:
                self._file.write(json.dumps(head).encode() + b"\n")
        except OSError as error:
            raise CommandError(f"{path}: {error.strerror}") from None
        except ValueError as error:
            raise CommandError(f"{path} is no record of `simulate`: {error}") from None

    def add(self, result: Result) -> None:
        self._file.write(result.encode().encode())


class Totals:
    """Sums over seeds."""

    def __init__(self) -> None:
        self.seeds = 0
        self.failed = 0
        self.virtual_s = 0.0
        self.cpu_s = 0.0
        self.operations = 0
        self.faults: dict[str, int] = {}

    def add(self, result: Result) -> None:
        self.seeds += 1
        self.failed += bool(result.failure)
        self.virtual_s += result.virtual_s
        self.cpu_s += result.cpu_s
        self.operations += result.operations
        for kind, count in result.faults.items():
            self.faults[kind] = self.faults.get(kind, 0) + count

    def text(self, took_s: float) -> str:
        rows = [[kind, str(self.faults[kind])] for kind in sorted(self.faults)]
        faults = sum(self.faults.values())
        rows.append(["all faults", str(faults)])
        seeds = max(self.seeds, 1)
        return (
            table(["fault", "times"], rows)
            + f"\n{self.seeds} seeds, {self.failed} failed; {self.operations:,} operations, "
            f"{faults:,} faults, {self.virtual_s / 3600:.2f} h of virtual time; per seed "
            f"{self.operations / seeds:.0f} operations, {faults / seeds:.1f} faults, "
            f"{self.virtual_s / seeds:.0f} virtual s, {self.cpu_s / seeds:.2f} s of CPU; "
            f"{duration_text(took_s)} of real time"
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
