"""What the index tests share: small options, opening, the model."""

from __future__ import annotations

import random

from hypothesis import strategies as st

from o3storage.simulation import SimDisk, SimEntropy, SimJobs
from o3storage.storage.index import Index, IndexOptions

DISK_KEY = b"k" * 32
SMALL = IndexOptions(
    block_bytes=128,
    table_bytes=2048,
    cache_bytes=4096,
    level0_tables=3,
    level0_stall_tables=8,
    level1_bytes=8192,
    level_ratio=2,
    background=False,
)
"""A few hundred rows fill three levels."""

PREFIX = 4


def prefix_length(key: bytes) -> int:
    return min(PREFIX, len(key))


async def open_index(disk, seed=0, options: IndexOptions = SMALL, key=DISK_KEY, **kwargs) -> Index:
    return await Index.open(
        disk,
        "data/index",
        disk_key=key,
        jobs=SimJobs(seed),
        random_bytes=SimEntropy(f"{seed}/{random.random()}").random_bytes,
        options=options,
        prefix_length=prefix_length,
        **kwargs,
    )


def apply(model: dict[bytes, bytes], rows) -> None:
    for key, value in rows:
        if value is None:
            model.pop(key, None)
        else:
            model[key] = value


def drop(model: dict[bytes, bytes], low: bytes, high: bytes | None) -> None:
    for key in [k for k in model if low <= k and (high is None or k < high)]:
        del model[key]


async def all_rows(index: Index, at=None) -> dict[bytes, bytes]:
    return dict(await index.scan(b"", None, 1 << 20, at=at))


def files_of(disk: SimDisk) -> dict[str, bytes]:
    """The files of the index as they are in the cache."""
    return {
        path.removeprefix("data/index/"): bytes(node.cached)
        for path, node in disk.image.names.items()
        if node is not None and path.startswith("data/index/")
    }


def random_rows(rng: random.Random, keys: int, count: int, value_bytes: int = 40):
    return [
        (
            b"%04d/%d" % (rng.randrange(keys), rng.randrange(3)),
            rng.randbytes(rng.randrange(value_bytes)) if rng.random() < 0.8 else None,
        )
        for _ in range(count)
    ]


KEYS = st.builds(
    lambda head, tail: b"%04d" % head + tail,
    st.integers(0, 40),
    st.sampled_from([b"", b"\0", b"/a", b"/b", b"\xff"]),
)
VALUES = st.none() | st.binary(max_size=40)
BATCHES = st.lists(st.tuples(KEYS, VALUES), min_size=1, max_size=25)


async def filled(disk: SimDisk, rows: int = 600, seed: int = 7):
    """An index with three levels, its model."""
    rng = random.Random(seed)
    index = await open_index(disk, seed)
    model: dict[bytes, bytes] = {}
    for n in range(rows // 50):
        batch = random_rows(rng, 300, 50)
        index.write(batch)
        apply(model, batch)
        await index.flush(b"%d" % n)
        if n % 2:
            await index.merge()
    return index, model
