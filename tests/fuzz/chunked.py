"""Fuzz the chunked decoder, fed in random pieces, against the slow plain model.

    python -m tests.fuzz.chunked [--seconds 60] [--seed 1]

Prints the seed and the input of the first disagreement and exits with 1.
"""

from __future__ import annotations

import random
import sys

from o3storage.http import BadChunk
from tests.fuzz._campaign import campaign
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


def step(rng: random.Random) -> str | None:
    data = random_chunked(rng)
    for _ in range(rng.randrange(3)):
        data = damage(rng, data)
    problem = check(data, rng)
    return None if problem is None else f"{data!r}: {problem}"


def main() -> int:
    return campaign(__doc__, step, "streams")


if __name__ == "__main__":
    sys.exit(main())
