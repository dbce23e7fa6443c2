"""Fuzz the chunked decoder, fed in random pieces, against the slow plain model.

    python -m tests.fuzz.chunked [--seconds 60] [--seed 1]

Prints the seed and the input of the first disagreement and exits with 1.
"""

from __future__ import annotations

import argparse
import random
import sys
import time

from o3storage.http import BadChunk
from tests.http.head_model import damage, model_chunked, random_chunked
from tests.http.test_chunked import decode


def check(data: bytes, rng: random.Random) -> str | None:
    """What is wrong with the decoder's answer to `data`, or None."""
    expected = model_chunked(data)
    try:
        found = decode(data, rng)
    except BadChunk:
        found = None
    if expected is None:
        return None if found is None else f"accepted as {found!r}"
    content, fields, used = expected
    names = None if fields is None else [(n.decode(), v.decode("latin-1")) for n, v in fields]
    return None if found == (content, names, used) else f"{found!r}, expected {expected!r}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    seed = options.seed
    end = time.monotonic() + options.seconds
    while time.monotonic() < end:
        rng = random.Random(seed)
        data = random_chunked(rng)
        for _ in range(rng.randrange(3)):
            data = damage(rng, data)
        problem = check(data, rng)
        if problem is not None:
            print(f"seed {seed}: {data!r}: {problem}")
            return 1
        seed += 1
    print(f"{seed - options.seed} streams, no disagreement")
    return 0


if __name__ == "__main__":
    sys.exit(main())
