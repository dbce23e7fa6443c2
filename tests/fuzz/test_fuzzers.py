"""Runs every fuzzer of this folder for a set time each: O3_FUZZ_SECONDS, 10 by default.

A fuzzer is a module with `main() -> int` that takes --seconds and prints seed and input of what it
finds. As many run side by side as the machine has cores.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

pytestmark = pytest.mark.fuzz

HERE = Path(__file__).resolve().parent
SECONDS = os.environ.get("O3_FUZZ_SECONDS") or "10"
FUZZERS = sorted(p.stem for p in HERE.glob("*.py") if not p.stem.startswith(("test_", "_")))
Ended = subprocess.CompletedProcess[str]


def run(name: str) -> Ended:
    return subprocess.run(
        [sys.executable, "-m", f"tests.fuzz.{name}", "--seconds", SECONDS],
        cwd=HERE.parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def runs() -> dict[str, Future[Ended]]:
    pool = ThreadPoolExecutor(os.cpu_count() or 1)
    return {name: pool.submit(run, name) for name in FUZZERS}


@pytest.mark.parametrize("name", FUZZERS)
def test_finds_nothing(name: str, runs: dict[str, Future[Ended]]) -> None:
    done = runs[name].result()
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
