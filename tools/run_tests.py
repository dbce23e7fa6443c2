"""Runs the test suites in order, the fast ones first, and stops at the first that fails.

python tools/run_tests.py [--only SUITE ...] [--list]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# name -> pytest arguments, relative to the root. Ordered: what fails fastest comes first.
SUITES: dict[str, list[str]] = {
    "fast": ["tests", "-m", "not (crash or clients or scale or slow or fuzz)"],
    "slow": ["tests", "-m", "slow"],
    "clients": ["tests", "-m", "clients"],
    "crash": ["tests", "-m", "crash"],
    "fuzz": ["tests", "-m", "fuzz"],
    "scale": ["tests", "-m", "scale"],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(SUITES), default=list(SUITES))
    parser.add_argument("--seconds-each", type=int, help="time for each fuzzer, in seconds")
    parser.add_argument("--list", action="store_true", help="print the suites and end")
    options = parser.parse_args()
    if options.list:
        for name, arguments in SUITES.items():
            print(name, " ".join(arguments))
        return 0
    environment = dict(os.environ)
    if options.seconds_each:
        environment["O3_FUZZ_SECONDS"] = str(options.seconds_each)
    took: list[str] = []
    for name in options.only:
        started = time.monotonic()
        print(f"== {name}", flush=True)
        code = subprocess.call(
            [sys.executable, "-m", "pytest", *SUITES[name]], cwd=ROOT, env=environment
        )
        took.append(f"{name} {time.monotonic() - started:.0f} s")
        if code not in {0, 5} or (code == 5 and name == "fast"):
            print(f"suite {name!r} failed; after: {', '.join(took)}", flush=True)
            return 1
    print(f"all suites passed: {', '.join(took)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
