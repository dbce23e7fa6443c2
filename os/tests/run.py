"""Runs the tests of O3StorageOS: `run.py fast` or `run.py full`, or with names of test modules.

The kernel must have been built. The test image (the interpreter, the test programs, a small C
program for everything that Python cannot do) is built here, so that it is always the current one.
"""

from __future__ import annotations

import os
import sys
import time
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tools")]


def main() -> int:
    lane, names = sys.argv[1], sys.argv[2:]
    if lane not in {"fast", "full"}:
        print("the lane is 'fast' or 'full'", file=sys.stderr)
        return 2
    os.environ["O3_LANE"] = lane
    import support

    started = time.monotonic()
    support.build_test_image()
    loader = unittest.TestLoader()
    if names:
        suite = loader.loadTestsFromNames(names)
    else:
        suite = loader.discover(str(HERE), pattern="test_*.py", top_level_dir=str(HERE))
    result = unittest.TextTestRunner(verbosity=2).run(suite)
    failed = len(result.failures) + len(result.errors)
    failed += len(result.unexpectedSuccesses)
    expected = len(result.expectedFailures)
    passed = max(0, result.testsRun - failed - expected - len(result.skipped))
    support.write_figures(time.monotonic() - started)
    for test, _ in result.expectedFailures:
        print(f"known not to hold yet: {test.id()}")
    print(f"\n{passed} passed, {failed} failed, {len(result.skipped)} skipped")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
