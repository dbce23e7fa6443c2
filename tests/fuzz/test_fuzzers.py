"""Runs every fuzzer of this folder for a set time each: O3_FUZZ_SECONDS, 10 by default.

A fuzzer is a module with `main() -> int` that takes --seconds and prints seed and input of what it
finds. As many run side by side as the machine has cores, or O3_FUZZ_TOGETHER.
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
SECONDS = float(os.environ.get("O3_FUZZ_SECONDS") or 10)
SHORTER = {"catalog_codec", "s3_request", "tls_frames"}
"""These get a third: what they feed has passed another reader with a fuzzer of its own, or is
rustls's to read."""
FUZZERS = sorted(p.stem for p in HERE.glob("*.py") if not p.stem.startswith(("test_", "_")))
TOGETHER = int(os.environ.get("O3_FUZZ_TOGETHER") or os.cpu_count() or 1)
Ended = subprocess.CompletedProcess[str]


def run(name: str) -> Ended:
    seconds = SECONDS / 3 if name in SHORTER else SECONDS
    return subprocess.run(
        [sys.executable, "-m", f"tests.fuzz.{name}", "--seconds", str(seconds)],
        cwd=HERE.parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest) -> dict[str, Future[Ended]]:
    """Of the fuzzers that were asked for: `-k` may leave some out."""
    pool = ThreadPoolExecutor(TOGETHER)
    asked = {item.name for item in request.session.items}
    names = [name for name in FUZZERS if f"{test_finds_nothing.__name__}[{name}]" in asked]
    return {name: pool.submit(run, name) for name in names}


@pytest.mark.parametrize("name", FUZZERS)
def test_finds_nothing(name: str, runs: dict[str, Future[Ended]]) -> None:
    done = runs[name].result()
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
