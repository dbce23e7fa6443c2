"""python -m bench [NAME ...]: run measurements and print their tables.

Each states what was synced, the load, and the client's own CPU, and compares with a reference in
the same run. Figures of different machines, or of a busy one, are not comparable; ratios are.
"""

from __future__ import annotations

import argparse
import importlib
import sys

MEASUREMENTS = {
    "requests": "server CPU per signed request: GET, PUT, HEAD, LIST",
    "group_commit": "PUT rate with the real sync, without any, and with a slow one",
    "half_database": "PUT and GET latency against the same front over SQLite",
    "bodies": "large PUT and GET against a plain loop over the same primitives",
    "index_vs_sqlite": "the index alone against SQLite (WAL, synchronous=FULL)",
    "http_floor": "the HTTP layer alone, trivial handler",
    "native": "the native module's primitives",
}


def main() -> int:
    lines = "\n".join(f"  {name:16} {what}" for name, what in MEASUREMENTS.items())
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        epilog=f"measurements:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    options = parser.parse_args()
    unknown = set(options.names) - set(MEASUREMENTS)
    if unknown:
        parser.error(f"no measurement is called {', '.join(sorted(unknown))}")
    for name in options.names or MEASUREMENTS:
        print(f"== {name}: {MEASUREMENTS[name]}", flush=True)
        module = importlib.import_module(f"bench.{name}")
        module.main()
        print(flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
