"""Fuzz the decoders of the catalog's commands and rows, and apply, with mutated bytes.

    python -m tests.fuzz.catalog_codec [--seconds 60] [--seed 1]

A decoder returns a value or raises ValueError; what it returned encodes and decodes to itself; and
applying mutated bytes gives an outcome or ValueError.
"""

from __future__ import annotations

import random
import sys

from o3storage import catalog as c
from o3storage.catalog import _wire
from tests.catalog.making import DAY, NOW, World
from tests.catalog.test_codec import DECODERS, PUT, run, sample_rows
from tests.fuzz._campaign import campaign, damage


def lived_in() -> World:
    """A world in which most kinds of commands were submitted."""
    world = World("Enabled")
    world.put(headers={"a": "b"}, metadata={"c": "d"}, tags=[("e", "f")])
    world.put(b"a\0b", 2, checksum=c.Checksum("SHA1", "FULL_OBJECT", bytes(20)))
    world.put(b"k", 3, condition=c.WriteCondition(if_match="*"))
    world.delete()
    upload = world.upload(headers={"x": "y"})
    for number in (1, 2, 3):
        world.part(upload, number, 10 + number)
    world.submit(world.completion(upload, [(1, 10), (3, 10)]))
    other = world.upload(number=2)
    world.part(other, 1, 20)
    world.submit(c.AbortUpload(*world.at, b"k", other, NOW))
    world.submit(c.SetBucketSetting("bucket", "cors", b"doc"))
    world.submit(c.SetBucketVersioning("bucket", "Enabled", world.bucket.bucket_id))
    world.submit(c.SetTags(*world.at, b"a\0b", None, [("x", "y")]))
    world.submit(c.AbandonStream(1, b"k", bytes(16), NOW))
    world.submit(c.PutAccessKey("AKIA", b"sealed", "owner", NOW, "Active"))
    world.submit(c.DeleteObjects(*world.at, NOW, "owner", [c.DeleteItem(b"a\0b")]))
    world.versioning("Suspended")
    world.put(b"n", 30)
    world.chores(NOW + 9 * DAY)
    return world


WORLD = lived_in()
COMMANDS = [_wire.encode(command) for command in (*WORLD.node.submitted, PUT)]
ROWS = [*WORLD.node.rows.values.values(), *sample_rows()]


def step(rng: random.Random) -> str | None:
    data = rng.choice(COMMANDS)
    for _ in range(rng.randrange(1, 4)):
        data = damage(rng, data)
    if not rng.randrange(10):
        data = bytes([rng.randrange(64), 1]) + rng.randbytes(rng.randrange(100))
    try:
        decoded = _wire.decode(data)
    except ValueError:
        pass
    else:
        if _wire.decode(_wire.encode(decoded)) != decoded:
            return f"{data.hex()}: {decoded!r} does not encode to itself"
    run(WORLD, data)
    row = rng.choice(ROWS)
    for _ in range(rng.randrange(1, 4)):
        row = damage(rng, row)
    for decode in DECODERS:
        try:
            decode(row)
        except ValueError:
            continue
    return None


def main() -> int:
    return campaign(__doc__, step, "commands and rows")


if __name__ == "__main__":
    sys.exit(main())
