"""Key ranges are cut in two while clients work and machines fail."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from o3storage.cluster import ClusterError

from ._workload import BUCKETS, KEYS

if TYPE_CHECKING:
    from o3storage.cluster import Node

    from ._world import World

EVERY_SEEDS = 4
"""In one seed of four: the others go on with the one range that they begin with."""
MOST_CUTS = 4
PATIENCE_S = 10.0


def cuts_ranges(seed: int) -> bool:
    return seed % EVERY_SEEDS == 1


async def cut_ranges(world: World) -> None:
    """Some cuts, at keys of the workload, each asked of any node that serves then."""
    if not cuts_ranges(world.seed):
        return
    rng = world.rng("splits")
    count = rng.randint(1, MOST_CUTS)
    for at in sorted(rng.sample(world.bursts, count)):
        pause = at + rng.random() * 0.01 - world.loop.time()
        if pause > 0:
            await asyncio.sleep(pause)
        await world.serving.wait()
        machine = rng.choice([m for m in world.machines if m.life is not None] or world.machines)
        life = machine.life
        if life is None:
            continue
        bucket_id = rng.randint(1, len(BUCKETS))
        key = rng.choice(KEYS).encode()
        machine.trace(f"cut bucket {bucket_id} at {key!r}")
        node = life.opened.node
        cut = node.machine.stream_route(bucket_id, key)[1:]
        task = world.loop.create_task(_cut(node, cut), context=machine.context)
        life.requests[task] = None
        with contextlib.suppress(asyncio.CancelledError):
            done = await task
            machine.trace(f"cut: {done}")
        life.requests.pop(task, None)


async def _cut(node: Node, cut: bytes) -> str:
    """The dead answer nobody, and one that stands still for long is not waited for."""
    try:
        await asyncio.wait_for(node.ranges.split(cut), PATIENCE_S)
    except (ClusterError, TimeoutError) as error:
        return type(error).__name__
    return "done"
