"""Fuzz the index's files: blocks, tables, manifest, and a whole index on a damaged disk.

    python -m tests.fuzz.index_blocks [--seconds 60] [--seed 1]

Damage gives BlockError, BadBlock or IndexDamaged; what is read is what was written; the native
module never panics (a panic is no Exception, so nothing here hides it).
"""

from __future__ import annotations

import random
import sys

from o3storage.runtime.disk import DiskError
from o3storage.simulation import SimDisk, run
from o3storage.storage.index import BadBlock, IndexDamaged, IndexKeyWrong
from o3storage.storage.index._manifest import decode_edits
from tests.fuzz._campaign import campaign, damage
from tests.storage.index.support import open_index, random_rows
from tests.storage.index.test_blocks import damaged, exercise, make_run
from tests.storage.index.test_manifest import KEY, THREE, make_file

DIRECTORY = "data/index/"


def blocks(rng: random.Random) -> str | None:
    """Plain blocks as no writer makes them, into every function that takes one."""
    rows = [
        (rng.randbytes(rng.randrange(1, 9)), rng.choice([None, rng.randbytes(rng.randrange(9))]))
        for _ in range(rng.randrange(1, 50))
    ]
    block = make_run(rows).block()
    for _ in range(10):
        exercise(damaged(block, rng), rng.choice(rows)[0])
    return None


def manifest(rng: random.Random) -> str | None:
    """A damaged manifest is refused, or gives the edits up to one that a crash could have torn."""
    data = make_file(THREE)
    for _ in range(rng.randrange(1, 3)):
        if rng.randrange(3):
            data = damage(rng, data)
        else:
            at = rng.randrange(len(data) // 512 + 1) * 512
            data = data[:at] + bytes(512) + data[at + 512 :]
    try:
        found = list(decode_edits(data, 3, KEY))
    except (IndexDamaged, IndexKeyWrong):
        return None
    return None if found == THREE[: len(found)] and found else f"{data.hex()}: {found!r}"


async def make_image(seed: int) -> tuple[SimDisk, dict[bytes, bytes]]:
    """A closed index of a few tables on several levels, and its rows."""
    rng = random.Random(seed)
    disk = SimDisk(seed)
    index = await open_index(disk, seed)
    model: dict[bytes, bytes] = {}
    for number in range(6):
        rows = random_rows(rng, 60, 50)
        index.write(rows)
        for key, value in rows:
            model.pop(key, None)
            if value is not None:
                model[key] = value
        await index.flush(b"%d" % number)
        if number in {3, 4}:
            await index.merge()
    await index.close()
    return disk, model


def rot(rng: random.Random, disk: SimDisk) -> list[tuple[str, int, int]]:
    """One to three flipped bits in the files of the index."""
    flipped = []
    files = sorted(path for path in disk.image.names if path.startswith(DIRECTORY))
    for _ in range(rng.randrange(1, 4)):
        path = rng.choice(files)
        # The end of a manifest is zero-filled room; what matters stands before it.
        used = len(bytes(disk.image.lookup(path).cached).rstrip(b"\0"))
        at, mask = rng.randrange(used), 1 << rng.randrange(8)
        disk.rot(path, at, mask)
        flipped.append((path, at, mask))
    return flipped


async def index_on_a_damaged_disk(seed: int) -> str | None:
    rng = random.Random(seed)
    disk, model = await make_image(rng.randrange(8))
    flipped = rot(rng, disk)
    try:
        index = await open_index(disk, seed)
    except (IndexDamaged, IndexKeyWrong, DiskError):
        return None
    problem = None
    bad = 0
    for key in [*model, *(b"%04d" % rng.randrange(60) for _ in range(5))]:
        try:
            found = await index.get(key)
        except BadBlock as error:
            bad += 1
            if not (error.key_low <= key and (error.key_high is None or key < error.key_high)):
                problem = f"{key!r} is outside of the span that is said to be bad: {error}"
            continue
        if found != model.get(key):
            problem = f"{key!r} is {found!r}, expected {model.get(key)!r}"
    try:
        rows = await index.scan(b"", None, 1 << 20)
    except BadBlock:
        pass
    else:
        if rows != sorted(model.items()):
            problem = "a scan gave other rows"
    if bad and not await index.verify():
        problem = "bad blocks that verify does not see"
    await index.close()
    return f"{flipped}: {problem}" if problem else None


def step(rng: random.Random) -> str | None:
    for part in (blocks, manifest):
        finding = part(rng)
        if finding is not None:
            return finding
    seed = rng.randrange(1 << 40)
    return run(index_on_a_damaged_disk(seed), seed)


def main() -> int:
    return campaign(__doc__, step, "damaged indexes")


if __name__ == "__main__":
    sys.exit(main())
