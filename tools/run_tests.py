"""Runs the test suites, as many parts side by side as there are cores, and stops at the first that
fails.

python tools/run_tests.py [--only SUITE ...] [--jobs N] [--seconds-each S] [--list]

Each part is a process of its own. Its output is kept and printed whole when it ends; with one job
it is printed as it comes. A part that measures runs alone.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent

STILL_RUNNING_S = 60
"""How often the names of what runs are printed."""
ENDING_S = 20
"""How long a part that is told to end has for its own cleaning up."""
MAX_JOBS = 4
"""More parts side by side would not end sooner: the longest one bounds the whole."""
PART_LIMIT_S = 2700
"""A part that takes so long hangs: the longest takes some minutes. Fuzzers are told how long they
run and have no limit here."""


@dataclass(frozen=True)
class Part:
    """One process. `alone`: nothing runs beside it."""

    suite: str
    name: str
    command: tuple[str, ...]
    alone: bool = False

    @property
    def title(self) -> str:
        return f"{self.suite} ({self.name})" if self.name else self.suite


def tests(suite: str, name: str, *arguments: str, alone: bool = False) -> Part:
    # Without pytest's cache: parts that run side by side would write the same file.
    pytest = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider")
    return Part(suite, name, (*pytest, *arguments), alone)


def divided(suite: str, marked: str, apart: Mapping[str, str]) -> list[Part]:
    """A suite in parts: one for each path of `apart`, and one for all other tests, so that each
    test is in exactly one of them, also one that is written tomorrow."""
    others = [f"--ignore={path}" for path in apart.values()]
    parts = [tests(suite, name, path, "-m", marked) for name, path in apart.items()]
    return [*parts, tests(suite, "the rest", "tests", *others, "-m", marked)]


def halved(suite: str, words: str, some: str, others: str) -> list[Part]:
    """A suite with a folder of its own in two parts: the tests whose names have one of `words`, and
    those without."""
    return [
        tests(suite, some, f"tests/{suite}", "-m", suite, "-k", words),
        tests(suite, others, f"tests/{suite}", "-m", suite, "-k", f"not ({words})"),
    ]


# In this order: first what fails fastest, then what takes longest, so that the cores are busy to
# the end.
PARTS: list[Part] = [
    Part("lint", "", ("make", "lint")),
    *divided(
        "fast",
        "not (crash or clients or scale or slow or fuzz)",
        {"cluster": "tests/cluster", "storage": "tests/storage"},
    ),
    *halved("fuzz", "http or s3 or sigv4 or chunked or xml", "http and s3", "the rest"),
    *divided(
        "slow",
        "slow",
        {
            "simulation": "tests/simulation/test_world.py",
            "planted defects": "tests/simulation/test_planted.py",
            "cluster": "tests/cluster",
            "raft": "tests/raft",
            "storage": "tests/storage",
        },
    ),
    *halved("clients", "tls", "tls", "http"),
    tests("crash", "", "tests/crash", "-m", "crash"),
    tests("scale", "", "tests/scale", "-m", "scale"),
    # It compares its network with Linux's by the clock.
    Part("os", "", ("make", "-C", "os", "os-test"), alone=True),
]
SUITES = list(dict.fromkeys(part.suite for part in PARTS))


@dataclass
class Running:
    part: Part
    process: subprocess.Popen[bytes]
    output: IO[bytes] | None
    """Where its output is kept, None if it goes straight to the terminal."""
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started


def start(part: Part, environment: Mapping[str, str], *, keep: bool) -> Running:
    print(f"== {part.title}: started", flush=True)
    output = tempfile.TemporaryFile() if keep else None  # noqa: SIM115 - open until it is shown
    process = subprocess.Popen(
        part.command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT if keep else None,
        start_new_session=True,  # so that it is ended with all that it started
    )
    return Running(part, process, output)


def show(running: Running, verdict: str) -> None:
    """The kept output, whole."""
    print(f"== {running.part.title}: {verdict} after {running.seconds:.0f} s", flush=True)
    if running.output is not None:
        running.output.seek(0)
        sys.stdout.write(running.output.read().decode(errors="replace"))
        running.output.close()
    sys.stdout.flush()


def hangs(running: Running) -> bool:
    return running.part.suite != "fuzz" and running.seconds > PART_LIMIT_S


def end(all_running: list[Running]) -> None:
    """End these with all that they started: first as Ctrl-C does, so that they clean up."""
    for number in (signal.SIGINT, signal.SIGKILL):
        for running in all_running:
            if running.process.poll() is None or number == signal.SIGKILL:
                try:
                    os.killpg(running.process.pid, number)
                except ProcessLookupError:
                    continue
        give_up = time.monotonic() + ENDING_S
        while time.monotonic() < give_up and any(r.process.poll() is None for r in all_running):
            time.sleep(0.1)


def run(parts: list[Part], jobs: int, environment: Mapping[str, str]) -> int:
    waiting = list(parts)
    at_work: list[Running] = []
    took: list[str] = []
    began = said = time.monotonic()
    try:
        while waiting or at_work:
            while waiting and len(at_work) < jobs:
                if at_work and (waiting[0].alone or at_work[0].part.alone):
                    break
                at_work.append(start(waiting.pop(0), environment, keep=jobs > 1))
            end([running for running in at_work if hangs(running)])
            ended = [running for running in at_work if running.process.poll() is not None]
            ended.sort(key=lambda running: running.process.returncode == 0)  # failures first
            for running in ended:
                at_work.remove(running)
                took.append(f"{running.part.title} {running.seconds:.0f} s")
                # (A part that collects no test has a code of its own, and fails too.)
                if running.process.returncode != 0:
                    show(running, "FAILED")
                    print(f"{running.part.title} failed; after: {', '.join(took)}", flush=True)
                    return 1
                show(running, "passed")
            if not ended:
                time.sleep(0.2)
            if at_work and time.monotonic() - said > STILL_RUNNING_S:
                said = time.monotonic()
                names = ", ".join(f"{r.part.title} {r.seconds:.0f} s" for r in at_work)
                print(f"== running: {names}", flush=True)
    finally:
        end(at_work)
    print(f"all suites passed in {time.monotonic() - began:.0f} s: {', '.join(took)}", flush=True)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=SUITES, default=SUITES)
    parser.add_argument(
        "--jobs",
        type=int,
        default=min(MAX_JOBS, os.cpu_count() or 1),
        help="parts side by side; as many as there are cores, at most 4, by default",
    )
    parser.add_argument("--seconds-each", type=int, help="time for each fuzzer, in seconds")
    parser.add_argument("--list", action="store_true", help="print the parts and end")
    options = parser.parse_args()
    parts = [part for part in PARTS if part.suite in options.only]
    if options.list:
        for part in parts:
            print(f"{part.title}: {' '.join(part.command)}")
        return 0
    environment = dict(os.environ)
    if options.seconds_each:
        environment["O3_FUZZ_SECONDS"] = str(options.seconds_each)
    if options.jobs > 1:
        environment["O3_FUZZ_TOGETHER"] = "1"  # the parts are what runs side by side
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        return run(parts, max(1, options.jobs), environment)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
