"""Fuzz the head parser against the slow plain model.

    python -m tests.fuzz.http_head [--seconds 60] [--seed 1]

Prints the seed and the input of the first disagreement and exits with 1.
"""

from __future__ import annotations

import argparse
import random
import sys
import time

from o3storage.http import BadHead
from o3storage.http._head import parse_head
from tests.http.head_model import damage, model_head, random_head


def check(data: bytes) -> str | None:
    """What is wrong with the parser's answer to `data`, or None."""
    expected = model_head(data)
    try:
        head = parse_head(data)
    except BadHead:
        return None if expected is None else "refused, but it is well-formed"
    if expected is None:
        return "accepted, but it is malformed"
    fields = expected.pop("fields")
    assert isinstance(fields, list)
    if sorted(fields) != sorted(head.headers):
        return f"fields {list(head.headers)}, expected {fields}"
    for name, value in expected.items():
        if getattr(head, name) != value:
            return f"{name} is {getattr(head, name)!r}, expected {value!r}"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    seed = options.seed
    end = time.monotonic() + options.seconds
    while time.monotonic() < end:
        rng = random.Random(seed)
        data = random_head(rng)
        for _ in range(rng.randrange(4)):
            data = damage(rng, data)
        problem = check(data)
        if problem is not None:
            print(f"seed {seed}: {data!r}: {problem}")
            return 1
        seed += 1
    print(f"{seed - options.seed} heads, no disagreement")
    return 0


if __name__ == "__main__":
    sys.exit(main())
