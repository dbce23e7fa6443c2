"""An operator at work while machines fail: one that lost its disk is replaced, one is taken out and
comes back as another node, one is drained for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from o3storage.cluster import ClusterError, Membership, node_id

from ._machine import Machine, Member
from ._network import Quality
from ._workload import BUCKETS, KEYS, Client

if TYPE_CHECKING:
    from ._world import World

EVERY_SEEDS = 5
"""In one seed of five: the others keep the members that they begin with."""
JOBS = ("replace", "replace", "remove", "drain")
ASK_S = 10.0
"""Longer than a node takes to refuse what it cannot commit."""
AGAIN_S = 0.5
PATIENCE_S = 150.0
"""Faults last half a minute; after that a job must get done."""
LEAVING, REMOVED = "LEAVING", "REMOVED"
BODY_BYTES = 600_000
SLOW_PATHS = Quality(bytes_per_s=4e5)
"""Over it a body of BODY_BYTES takes longer than its entry, by seconds."""


def operates(seed: int) -> bool:
    return seed % EVERY_SEEDS == EVERY_SEEDS - 1


class Operator:
    """`work` does one job and returns when it is done."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rng = world.rng("operator")
        self._end_s = 0.0

    async def work(self) -> None:
        world, rng = self._world, self._rng
        if not world.clustered or not operates(world.seed):
            return
        at = rng.choice(world.bursts)
        await asyncio.sleep(max(0.0, at - world.loop.time()))
        machine = await world.take_whole(rng)
        self._end_s = world.loop.time() + PATIENCE_S
        job = rng.choice(JOBS)
        world.note_fault(job)
        machine.trace(f"operator: {job}")
        try:
            await {"replace": self._replace, "remove": self._remove, "drain": self._drain}[job](
                machine
            )
            machine.trace(f"operator: {job} is done")
        except TimeoutError:
            world.violation("P5", f"n{machine.number}: {job} is not done in {PATIENCE_S:.0f} s")
        finally:
            world.give_back(machine)

    async def _replace(self, machine: Machine) -> None:
        """Disk and keys are gone; a new node starts in its place, and the old one is given up, in
        either order."""
        old = node_id(machine.keys)
        await self._put_through(machine)
        machine.power_cut("wipe")
        if self._rng.random() < 0.5:
            await self._served(machine)
        await self._ask(
            machine,
            lambda member: member.remove(old, shrink=False, replace=True),
            lambda member: _state(member, old) in {LEAVING, REMOVED},
        )
        await self._served(machine)
        await self._until(machine, lambda member: _state(member, old) == REMOVED)

    async def _put_through(self, machine: Machine) -> None:
        """A large body goes in through this machine while others hear from it slowly. Its disk is
        lost at the instant at which it says that it has it: another one must have it, too."""
        world = self._world
        others = [each for each in world.machines if each is not machine]
        for other in others:
            world.net.set_quality(machine.host, other.host, SLOW_PATHS)
        client = Client(world, "operator")
        client.among = [machine]
        await client.put(self._rng.choice(BUCKETS), self._rng.choice(KEYS), size=BODY_BYTES)
        for other in others:
            world.net.set_quality(machine.host, other.host, None)

    async def _remove(self, machine: Machine) -> None:
        """A node that runs is taken out; then its directory is emptied and it joins anew."""
        old = node_id(machine.keys)
        await self._ask(
            machine,
            lambda member: member.remove(old, shrink=True),
            lambda member: _state(member, old) in {LEAVING, REMOVED},
        )
        await self._until(machine, lambda member: _state(member, old) == REMOVED)
        machine.power_cut("wipe")
        await self._served(machine)

    async def _drain(self, machine: Machine) -> None:
        node = node_id(machine.keys)
        await self._ask(
            machine,
            lambda member: member.drain(node, shrink=True),
            lambda member: _state(member, node) == "DRAINING",
        )
        await asyncio.sleep(self._rng.random() * 6)
        await self._ask(
            machine,
            lambda member: member.stay(node),
            lambda _: False,  # (a record that says so may be older than the draining)
        )

    # --- as an operator does it: any node that answers is asked, again and again

    async def _ask(
        self,
        spared: Machine,
        command: Callable[[Membership], Awaitable[None]],
        done: Callable[[Membership], bool],
    ) -> None:
        """Until a node took the command, or knows of it. Raises TimeoutError."""
        while True:
            machine, member = await self._other(spared)
            life = machine.life
            assert life is not None
            if done(member):
                return
            task = self._world.loop.create_task(_obey(command, member), context=machine.context)
            life.requests[task] = None
            text = await asyncio.gather(task, return_exceptions=True)
            life.requests.pop(task, None)
            if not text[0]:
                return
            machine.trace(f"operator: not yet: {text[0]!r}")
            await asyncio.sleep(AGAIN_S)

    async def _until(self, spared: Machine, done: Callable[[Membership], bool]) -> None:
        """Raises TimeoutError."""
        while True:
            _, member = await self._other(spared)
            if done(member):
                return
            await asyncio.sleep(AGAIN_S)

    async def _other(self, spared: Machine) -> tuple[Machine, Membership]:
        """Some other machine that serves. Raises TimeoutError."""
        while True:
            self._check()
            up = [m for m in self._world.machines if m.life is not None and m is not spared]
            if up:
                machine = self._rng.choice(up)
                assert machine.life is not None
                assert isinstance(machine.life.opened, Member)
                return machine, machine.life.opened.clustered.membership
            await asyncio.sleep(AGAIN_S)

    async def _served(self, machine: Machine) -> None:
        """Raises TimeoutError."""
        while not machine.serving.is_set():
            self._check()
            await asyncio.sleep(AGAIN_S)

    def _check(self) -> None:
        if self._world.loop.time() >= self._end_s:
            raise TimeoutError


async def _obey(command: Callable[[Membership], Awaitable[None]], member: Membership) -> str:
    try:
        await asyncio.wait_for(command(member), ASK_S)
    except (ClusterError, TimeoutError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _state(member: Membership, node: int) -> str:
    record = member.records.get(node)
    return record.state.name if record is not None else ""
