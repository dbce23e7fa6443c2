"""Fuzz the head parser against the slow plain model.

    python -m tests.fuzz.http_head [--seconds 60] [--seed 1]

Prints the seed and the input of the first disagreement and exits with 1.
"""

from __future__ import annotations

import random
import sys

from o3storage.http import BadHead
from o3storage.http._head import parse_head
from tests.fuzz._campaign import campaign
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


def step(rng: random.Random) -> str | None:
    data = random_head(rng)
    for _ in range(rng.randrange(4)):
        data = damage(rng, data)
    problem = check(data)
    return None if problem is None else f"{data!r}: {problem}"


def main() -> int:
    return campaign(__doc__, step, "heads")


if __name__ == "__main__":
    sys.exit(main())
