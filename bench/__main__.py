"""python -m bench [NAME ...]: run measurements and print their tables; `all` or no name runs all.

Each states what was synced, the load, and the client's own CPU, and compares with a reference in
the same run. Figures of different machines, or of a busy one, are not comparable; ratios are. At
the end stands each goal beside what was measured.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time

from ._result import Result, verdicts

MEASUREMENTS = {
    "requests": ("server CPU per signed request: GET, PUT, HEAD, LIST", 60),
    "cold_get": ("server CPU per GET whose body is not in the page cache", 30),
    "group_commit": ("PUT rate with the real sync, without any, and with a slow one", 60),
    "half_database": ("PUT and GET latency against the same front over SQLite", 150),
    "bodies": ("large PUT and GET against a plain loop over the same primitives", 60),
    "rows_vs_sqlite": ("rows in the engine alone against SQLite (WAL, synchronous=FULL)", 420),
    "cluster": ("three local nodes against one: CPU, idle, catching up", 430),
    "elections": ("three nodes, half an hour of full load, one large upload: elections", 1900),
    "objects_vs_sqlite": ("whole objects in the engine against rows of SQLite", 150),
    "large_store": ("a million objects: gets, and pages of listings at half of the peak", 240),
    "sustained": ("70 % of peak for 10 minutes: latencies and the event loop's stalls", 870),
    "http_floor": ("the HTTP layer alone, trivial handler", 60),
    "native": ("the native module's primitives", 30),
}
"""What each measures, and about how many seconds it takes."""


def main() -> int:
    lines = "\n".join(
        f"  {name:16} {what} (about {seconds} s)" for name, (what, seconds) in MEASUREMENTS.items()
    )
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        epilog=f"measurements:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    parser.add_argument(
        "--seconds",
        type=float,
        help="length of each timed part, to try a measurement briefly; goals are for the default",
    )
    options = parser.parse_args()
    names = options.names
    if not names or names == ["all"]:
        names = list(MEASUREMENTS)
    unknown = set(names) - set(MEASUREMENTS)
    if unknown:
        parser.error(f"no measurement is called {', '.join(sorted(unknown))}")
    results: list[Result] = []
    for name in names:
        load = os.getloadavg()[0]
        print(f"== {name}: {MEASUREMENTS[name][0]} (load of this machine before: {load:.2f})")
        sys.stdout.flush()
        started = time.monotonic()
        found = importlib.import_module(f"bench.{name}").main(seconds=options.seconds)
        results += found or []
        print(f"-- {name} took {time.monotonic() - started:.0f} s\n", flush=True)
    if results:
        print(verdicts(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
