"""One machine's index is removed at the end of a run: its volumes alone have to bring it back."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from o3storage.storage import Store

if TYPE_CHECKING:
    from ._machine import Machine
    from ._world import World

ONE_IN = 8
"""Seeds: it takes a start, and a second look at all rows and bodies."""
INDEX_DIR = "index"
OUTAGE_S = 0.5


def rebuilds(seed: int) -> bool:
    """Drawn, so that it meets all that seeds differ in by their remainders."""
    return random.Random(f"{seed}/rebuild").randrange(ONE_IN) == 0


async def rebuild_one(world: World) -> None:
    """Take one machine's power and its index, and wait until it serves again. It may have lost
    rows, and have to ask others for them, only where bits had flipped; and frames it may fetch
    only for a range that moved to it meanwhile."""
    machine = world.rng("rebuilt").choice(world.machines)
    held = _votes_in(machine)
    await _start_without_index(machine)
    assert machine.life is not None
    lost = rows_lost(machine.life.opened.store)
    await world._converge()
    if machine.rotten:
        return
    if lost:
        text = f"n{machine.number} rebuilt its index and lacks rows of ranges {lost}"
        world.violation("P1", text)
    if _votes_in(machine) - held:
        return  # a range moved here meanwhile, and its frames had to come from others
    fetched = machine.life.opened.node.status()["frames_fetched"]
    if fetched:
        text = f"n{machine.number} rebuilt its index and fetched {fetched} frames that it held"
        world.violation("P1", text)


def rows_lost(store: Store) -> list[int]:
    """Ranges of which the store knows that it lost rows."""
    return [group for group in store.groups() if store.log_state(group).rows_lost]


def _votes_in(machine: Machine) -> set[int]:
    """Ranges of which the machine is a full member, and those alone hold all that they should."""
    assert machine.life is not None
    node = machine.life.opened.node
    return {group["group"] for group in node.status()["groups"] if node.id in group["voters"]}


async def _start_without_index(machine: Machine) -> None:
    machine.power_cut("power cut", outage_s=OUTAGE_S)
    disk = machine.disk
    for name in await disk.list_dir(INDEX_DIR):
        await disk.unlink(f"{INDEX_DIR}/{name}")
    await disk.sync_dir(INDEX_DIR)
    machine.trace("its index is gone")
    await machine.serving.wait()
