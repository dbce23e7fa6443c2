"""Runs O3StorageOS with its HTTP port on the host's loopback; Ctrl-C presses the power button."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from machine import Machine, MachineError

DRAIN_S = 40
# As good as for ever: a wait needs some number.
RUN_S = 10**8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernel", type=Path, required=True)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--config", type=Path)
    parsed = parser.parse_args()
    config = parsed.config.read_bytes() if parsed.config else None
    with Machine(
        kernel=parsed.kernel, root=parsed.root, port=parsed.port, config=config, echo=True
    ) as machine:
        try:
            try:
                machine.wait_end(RUN_S)
            except KeyboardInterrupt:
                machine.press_power()
                machine.wait_end(DRAIN_S)
            return machine.status(1)
        except MachineError as error:
            print(str(error).splitlines()[0], file=sys.stderr)
            return 1


if __name__ == "__main__":
    sys.exit(main())
