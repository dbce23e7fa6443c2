"""The loop of a fuzzer: seeds in order, the first finding printed with its seed, exit 1.

A fuzzer gives `step(rng)`: it makes one input from `rng`, feeds it, and returns None or, for a
finding, the input and what is wrong with it. Any exception that leaves `step` is a finding too;
panics of the native module are no `Exception`, so all but an interrupt are caught.
"""

from __future__ import annotations

import argparse
import faulthandler
import random
import time
import traceback
from collections.abc import Callable

Step = Callable[[random.Random], str | None]


def campaign(doc: str | None, step: Step, unit: str) -> int:
    """Run `step` on ascending seeds for --seconds; 1 after a finding, else 0."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    faulthandler.enable()
    seed = options.seed
    end = time.monotonic() + options.seconds
    while time.monotonic() < end:
        try:
            finding = step(random.Random(seed))
        except KeyboardInterrupt:
            raise
        except BaseException:
            finding = traceback.format_exc()
        if finding is not None:
            print(f"seed {seed}: {finding}")
            return 1
        seed += 1
    print(f"{seed - options.seed} {unit}, no finding")
    return 0


def damage(rng: random.Random, data: bytes) -> bytes:
    """`data` with one byte or a few flipped, set, removed, put in, repeated or moved."""
    made = bytearray(data)
    at = rng.randrange(len(made)) if made else 0
    size = rng.choice([1, 1, 1, 2, 4, 8, 16])
    kind = rng.randrange(8)
    if kind <= 1 and made:
        made[at] ^= 1 << rng.randrange(8)
    elif kind == 2 and made:
        made[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
    elif kind == 3:
        del made[at : at + size]
    elif kind == 4:
        made[at:at] = rng.randbytes(size)
    elif kind == 5:
        made[at:at] = made[at : at + size]
    elif kind == 6:
        made[at : at + size] = made[-size:]
    else:
        del made[at:]
    return bytes(made)
