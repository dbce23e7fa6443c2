"""What strikes a machine, and what strikes the network, in one run."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from o3storage.runtime.disk import DiskError
from o3storage.storage import StoreError
from o3storage.storage._groups import unpack_place
from o3storage.storage._volume import BLOCK_BYTES, VolumeKind

from ._faults import Fault, FaultKind
from ._image import SECTOR_BYTES
from ._link import Blocked
from ._machine import CAPACITY_BYTES, Machine
from ._network import Quality, SimNet
from ._workload import BUCKETS, KEYS, Client

if TYPE_CHECKING:
    from ._world import World

FAULT_WAIT_S = 0.4
"""How long an ordered fault may wait for a disk operation to strike."""
FORK_ROUNDS = 14
FORK_STEP_S = 0.1
"""A leader that is cut off steps down after 1 to 2 s, and another is elected after as long: clients
ask both sides of the cut until the last of that is over."""
ROT_BITS = (1, 1, 5, 25)
"""Flipped at once on one machine: one of these."""
LOG_ROT_BITS = (1, 3, 8, 20)
"""The same, in what the next start reads of its log."""
LOG_ROT_ENTRIES = 40
"""Of each group, from its end: the index is flushed every 16 to 150."""
ENTRY_BYTES = 200
"""Where an entry's record begins, and where most of them end."""
REFILLS = 3
"""Power cuts at most while what rotted comes back."""
REFILL_OPERATIONS = 60
"""Of the disk, until the next of them: a fill takes some ten."""
REFILL_S = 1.5
"""Until it comes in any case."""
QUICK_S = 0.02
"""A process that is started again at once."""
COUP_SYNC_S = 0.005
"""Longer than a vote takes to reach who asked for it: what is said too early is lost."""
COUP_WAIT_S = 6.0
COUP_SYNCS = 6
CLOCK_ERROR_S = 840.0
"""How far from the clients' clock all its jumps may take a machine's: beyond 900 s, S3 has a node
refuse what they sign (RequestTimeTooSkewed). 60 s less, for a request that waits while its node
stands still for up to 30 s, and for drift."""

MACHINE_WEIGHTS = {
    "power-cut": 26,
    "power-cut-twice": 6,
    "kill": 10,
    "restart": 5,
    "sync-error": 9,
    "write-error": 7,
    "other-error": 4,
    "slow": 7,
    "stuck": 7,
    "full": 8,
    "clock": 7,
    "flush": 6,
    "rot": 2,
}
"""What strikes one machine by itself, and how often."""
CLUSTER_WEIGHTS = {
    **MACHINE_WEIGHTS,
    "power-cut": 18,
    "kill": 16,
    "pause": 16,
    "power-cut-all": 4,
    "rot": 4,
    "rot-index": 6,
    "rot-log": 8,
    "latent": 5,
    "misdirected": 5,
}
"""What strikes one machine among others."""
NETWORK_WEIGHTS = {
    "partition": 20,
    "partition-leader": 14,
    "one-way": 14,
    "partial": 8,
    "flap": 10,
    "slow-path": 10,
    "break-links": 14,
    "refuse": 6,
    "vanish": 8,
    "fork": 14,
    "coup": 14,
}
LAST_KIND = "rot"
"""What follows it on a machine alone is judged less strictly, so it comes last there."""
ROTTING = (LAST_KIND, "rot-index", "rot-log", "latent", "misdirected")
"""What spoils bytes that were durable: on one machine only, for the others mend it."""
HEADER_BYTES = 8192
"""Spared by all: a volume without its header is as good as lost, and so is its node."""
SPOILT_BYTES = 20_000
"""Smaller volumes hold next to nothing."""
ASTRAY_WAIT_S = 6.0
NOBODYS_KEY = b"astray"
"""Of a note to the disk that nobody reads."""
NOTE_S = 0.5
"""A disk that is stuck or refuses to write is left alone so long."""
FOLLOW_S = 15.0
"""A disk that is full, or out of service, is written to no more."""
INDEX_HEADER_BYTES = 128
"""Of a table of the index: the same."""
FOLLOWERS = 4
"""Writes behind one that went astray until its machine may die: if the last batch of a log was
never written where it belongs, no disk can know that there was one."""


class Tripwire(Fault):
    """No fault of its own: calls `pull` when the disk begins its n-th operation from now."""

    def __init__(self, after: int, pull: Any) -> None:
        super().__init__("", after=after)
        self._pull = pull

    def strikes(self, operation: str, path: str, offset: int = 0) -> bool:
        del operation, path, offset
        self.after -= 1
        if self.after == 0:
            self._pull()
        return False


def draw(rng: random.Random, weights: dict[str, int], count: int) -> list[str]:
    """`count` kinds, in the order in which they strike."""
    return rng.choices(list(weights), list(weights.values()), k=count)


def _size_bytes(machine: Machine, path: str) -> int:
    """Of what was written to a file and is on the disk."""
    node = machine.disk.image.lookup(path)
    return min(len(node.durable), len(node.cached))


def _files(machine: Machine, prefix: str, suffix: str, more_than_bytes: int) -> list[str]:
    names = machine.disk.image.names
    return sorted(
        path
        for path, node in names.items()
        if node is not None
        and path.startswith(prefix)
        and path.endswith(suffix)
        and _size_bytes(machine, path) > more_than_bytes
    )


def _written_volumes(machine: Machine) -> list[str]:
    """Those that nobody is writing to."""
    return _files(machine, "volumes/", "", SPOILT_BYTES)[:-3]


def _tables(machine: Machine) -> list[str]:
    return _files(machine, "index/", ".table", INDEX_HEADER_BYTES)


class MachineFaults:
    """`strike(kind, machine)` returns when the fault is over (not when the machine is up again)."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._dice = world.dice

    async def strike(self, kind: str, machine: Machine) -> None:
        fault: Callable[[Machine], Awaitable[None]] = getattr(self, kind.replace("-", "_"))
        await fault(machine)

    async def _cut_soon(self, machine: Machine, how: str) -> None:
        """Cut when the disk begins one of its next operations, or a little after."""
        dice, loop = self._dice, self._world.loop
        deaths = machine.deaths

        def pull() -> None:
            delay = dice.random() * 0.0003 if dice.random() < 0.7 else 0.0
            loop.call_later(delay, cut)

        def cut() -> None:
            if machine.deaths == deaths and machine.life is not None:
                machine.power_cut(how)

        machine.disk.inject(Tripwire(1 + dice.randrange(14), pull))
        await asyncio.sleep(FAULT_WAIT_S)
        cut()

    async def power_cut(self, machine: Machine) -> None:
        await self._cut_soon(machine, "power cut")

    async def kill(self, machine: Machine) -> None:
        await self._cut_soon(machine, "kill")

    async def power_cut_twice(self, machine: Machine) -> None:
        """The second one strikes the recovery from the first."""
        await self._cut_soon(machine, "power cut")
        while machine.is_starting:
            disk = machine.disk
            if disk.operations:
                for _ in range(self._dice.randrange(40)):
                    await asyncio.sleep(0.0001)
                if machine.life is None and machine.disk is disk:
                    machine.power_cut("power cut")
                return
            await asyncio.sleep(0.001)

    async def power_cut_all(self, machine: Machine) -> None:
        """The power of all machines goes at one instant."""
        del machine
        for each in self._world.machines:
            if each.life is not None and not each.astray:
                each.power_cut("power cut")

    async def restart(self, machine: Machine) -> None:
        """A clean stop; sometimes the power goes right after it."""
        if machine.life is None:
            return
        await machine.stop()
        if self._dice.random() < 0.5:
            machine.disk = machine.disk.crash(self._dice)
        await machine.start()

    async def pause(self, machine: Machine) -> None:
        """The process stands still for 5 to 30 s, and goes on as if nothing had been."""
        life = machine.life
        if life is None:
            return
        machine.pause()
        await asyncio.sleep(5.0 + 25.0 * self._dice.random() ** 3)
        if machine.life is life:
            machine.resume()
            machine.trace("goes on")

    async def sync_error(self, machine: Machine) -> None:
        await self._error(machine, "sync")

    async def write_error(self, machine: Machine) -> None:
        await self._error(machine, "write")

    async def other_error(self, machine: Machine) -> None:
        operations = ("allocate", "sync_dir", "open", "truncate", "unlink", "read")
        await self._error(machine, self._dice.choice(operations))

    async def _error(self, machine: Machine, operation: str) -> None:
        """One error; if it took the disk out of service, an operator looks after a while."""
        dice = self._dice
        disk = machine.disk
        disk.inject(Fault(operation, FaultKind.ERROR, after=dice.randrange(6)))
        await asyncio.sleep(FAULT_WAIT_S + dice.random() * 0.5)
        disk.faults.clear()
        if machine.disk is disk and machine.refusal():
            machine.trace(f"out of service: {machine.refusal()}")
            machine.power_cut(dice.choice(("kill", "power cut")))

    async def slow(self, machine: Machine) -> None:
        dice = self._dice
        for operation in ("read", "write", "sync"):
            fault = Fault(
                operation, FaultKind.SLOW, count=dice.randrange(20), delay_s=dice.random() * 0.3
            )
            machine.disk.inject(fault)
        await asyncio.sleep(FAULT_WAIT_S)

    async def stuck(self, machine: Machine) -> None:
        dice = self._dice
        disk = machine.disk
        operation = dice.choice(("write", "sync", "sync", "read"))
        disk.inject(Fault(operation, FaultKind.STUCK, after=dice.randrange(4)))
        await asyncio.sleep(FAULT_WAIT_S + dice.random() * 2)
        disk.faults.clear()
        disk.release_stuck()

    async def full(self, machine: Machine) -> None:
        dice = self._dice
        disk = machine.disk
        room = dice.choice((0, 100_000, 1_500_000, 3_000_000))
        disk.capacity_bytes = disk.image.used_bytes() + dice.randrange(room + 1)
        await asyncio.sleep(0.5 + dice.random() * 3)
        # (If the power went meanwhile it is another object, as full as this one.)
        machine.disk.capacity_bytes = CAPACITY_BYTES

    async def clock(self, machine: Machine) -> None:
        dice = self._dice
        seconds = dice.choice((0.001, 1, 60, 500)) * (dice.random() * 2 - 1)
        delta_ns = int(seconds * 1e9)
        ahead_ns = machine.clock.wall_ns() - self._world.client_clock.wall_ns()
        if abs(ahead_ns + delta_ns) > CLOCK_ERROR_S * 1e9:
            # Jumps add up, and nobody sets the clock right again: this one goes the other way.
            delta_ns = -delta_ns
        machine.clock.jump(delta_ns)

    async def flush(self, machine: Machine) -> None:
        """Not a fault by itself: the power goes while the index is being flushed."""
        life = machine.life
        if life is None:
            return

        async def flush() -> None:
            with contextlib.suppress(StoreError, DiskError):
                await life.opened.store.flush()

        task = self._world.loop.create_task(flush(), context=machine.context)
        await self._cut_soon(machine, "power cut")
        await asyncio.gather(task, return_exceptions=True)

    async def rot(self, machine: Machine) -> None:
        """Bits flip in files that are not being written to."""
        for path, at in self._places(machine, _written_volumes(machine), HEADER_BYTES):
            machine.disk.rot(path, at, 1 << self._dice.randrange(8))

    async def rot_index(self, machine: Machine) -> None:
        """Bits flip in the tables of the index."""
        for path, at in self._places(machine, _tables(machine), INDEX_HEADER_BYTES):
            machine.disk.rot(path, at, 1 << self._dice.randrange(8))

    async def latent(self, machine: Machine) -> None:
        """Places of volumes that are not being written to, or of the index, cannot be read any
        more, each a physical sector of 4 KiB."""
        volumes = self._dice.random() < 0.7
        names = _written_volumes(machine) if volumes else _files(machine, "index/", "", 0)
        for path, at in self._places(machine, names, HEADER_BYTES if volumes else 0):
            block = at - at % BLOCK_BYTES
            for sector in range(block, block + BLOCK_BYTES, SECTOR_BYTES):
                machine.disk.fail_sector(path, sector)

    def _places(
        self, machine: Machine, names: Sequence[str], header_bytes: int
    ) -> Iterator[tuple[str, int]]:
        """As many (path, offset) as one of ROT_BITS says, each in one of these files behind its
        header."""
        names = [path for path in names if _size_bytes(machine, path) > header_bytes]
        if not names:
            return
        dice = self._dice
        machine.rotten = True
        for _ in range(dice.choice(ROT_BITS)):
            path = dice.choice(names)
            machine.spoilt[path] = None
            yield path, dice.randrange(header_bytes, _size_bytes(machine, path))

    async def rot_log(self, machine: Machine) -> None:
        """Bits flip in what the next start reads of its log: entries and outcomes are lost, and
        come back from the others. The power goes, and goes again while they come."""
        dice, world = self._dice, self._world
        if machine.life is None:
            return
        machine.rotten = machine.astray = True
        client = Client(world, f"rot-{world.loop.time():.3f}")
        client.patience_s = 1.0
        try:
            client.among = [machine]
            await self._put_some(client)
            if machine.life is None:
                return
            self._spoil_log(machine)
            await self._write_behind(machine, client)
        finally:
            machine.astray = False
        client.among = [each for each in world.machines if each is not machine]
        for _ in range(dice.randint(1, REFILLS)):
            if machine.life is not None:
                machine.power_cut("power cut", outage_s=QUICK_S + dice.random() ** 3)
            await self._put_some(client)
            await machine.serving.wait()
            over = asyncio.Event()
            machine.disk.inject(Tripwire(1 + dice.randrange(REFILL_OPERATIONS), over.set))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), REFILL_S)
        if machine.life is not None:
            machine.power_cut("power cut")

    async def _write_behind(self, machine: Machine, client: Client) -> None:
        """Until its disk took FOLLOWERS writes more. (Of the last batch of a log no disk can know
        that it is gone.) What the client puts may all go to other machines: so, notes as well."""
        disk, loop = machine.disk, self._world.loop
        wanted = disk.operations.get("write", 0) + FOLLOWERS
        end_s = loop.time() + FOLLOW_S
        while machine.disk is disk and loop.time() < end_s:
            if disk.operations.get("write", 0) >= wanted:
                return
            await self._put_some(client)
            if machine.life is not None:
                note = machine.life.opened.store.note
                with contextlib.suppress(StoreError, DiskError, TimeoutError):
                    await asyncio.wait_for(note(NOBODYS_KEY, b""), NOTE_S)
                    continue
            await asyncio.sleep(NOTE_S)

    async def _put_some(self, client: Client) -> None:
        for _ in range(self._dice.randint(1, 4)):
            await client.put(self._dice.choice(BUCKETS), self._dice.choice(KEYS))
            await asyncio.sleep(0.02)

    def _spoil_log(self, machine: Machine) -> None:
        assert machine.life is not None
        dice, store = self._dice, machine.life.opened.store
        floor = store._flusher.mark.floor_volume
        read = [
            volume
            for number, volume in sorted(store._core.volumes.items())
            if volume.kind is VolumeKind.LOG
            and number >= floor
            and volume.size_bytes > HEADER_BYTES
            and volume.path in machine.disk.image.names
        ]
        places = [
            unpack_place(place)
            for group in store._core.groups.values()
            for place in list(group.places)[-LOG_ROT_ENTRIES:]
            if place
        ]
        for _ in range(dice.choice(LOG_ROT_BITS)):
            if places and dice.random() < 0.7:
                number, at = dice.choice(places)
                at += dice.randrange(ENTRY_BYTES)
                volume = store._core.volumes.get(number)
            else:
                volume = dice.choice(read) if read else None
                at = dice.randrange(HEADER_BYTES, volume.size_bytes) if volume else 0
            if volume is None or volume.path not in machine.disk.image.names:
                continue
            if HEADER_BYTES <= at < len(machine.disk.image.lookup(volume.path).cached):
                machine.spoilt[volume.path] = None
                machine.disk.rot(volume.path, at, 1 << dice.randrange(8))

    async def misdirected(self, machine: Machine) -> None:
        """A write ends, without an error, in another place of its file: what belongs there is
        spoiled, and where it belongs is what was there before."""
        loop, disk = self._world.loop, machine.disk
        fault = Fault(
            "write",
            FaultKind.MISDIRECTED,
            path_prefix="volumes/",
            after=self._dice.randrange(4),
            from_offset=HEADER_BYTES,
        )
        machine.rotten = machine.astray = True
        disk.inject(fault)
        try:
            await asyncio.sleep(ASTRAY_WAIT_S * self._dice.random())
            fault.count = 0
            client = Client(self._world, f"astray-{loop.time():.3f}")
            client.among, client.patience_s = [machine], 1.0
            await self._write_behind(machine, client)
        finally:
            machine.astray = False
            if fault.struck_path:
                machine.spoilt[fault.struck_path] = None


class NetworkFaults:
    """`strike(kind)` returns when the network is whole again."""

    def __init__(self, world: World, net: SimNet) -> None:
        self._world = world
        self._net = net
        self._dice = world.rng("network faults")
        self._hosts = [machine.host for machine in world.machines]

    async def strike(self, kind: str) -> None:
        fault: Callable[[], Awaitable[None]] = getattr(self, kind.replace("-", "_"))
        await fault()
        self._net.heal()

    async def _last(self) -> None:
        """Mostly shorter than the keep-alive time of links, sometimes longer."""
        await asyncio.sleep(
            self._dice.choice((0.3, 1.0, 3.0, 3.0, 9.0)) * (0.5 + self._dice.random())
        )

    def _split(self) -> tuple[list[str], list[str]]:
        """A minority and the rest."""
        hosts = list(self._hosts)
        self._dice.shuffle(hosts)
        count = self._dice.randint(1, (len(hosts) - 1) // 2)
        return hosts[:count], hosts[count:]

    def _pair(self) -> tuple[str, str]:
        one, other = self._dice.sample(self._hosts, 2)
        return one, other

    async def partition(self) -> None:
        self._net.partition(*self._split())
        await self._last()

    async def partition_leader(self) -> None:
        """Whoever leads a key range is cut off from all others."""
        leader = self._world.leader()
        host = leader.host if leader is not None else self._dice.choice(self._hosts)
        self._net.partition([host], [other for other in self._hosts if other != host])
        await self._last()

    async def one_way(self) -> None:
        """Nothing comes out of some machines, or nothing gets in."""
        few, rest = self._split()
        if self._dice.random() < 0.5:
            few, rest = rest, few
        how = self._dice.choice((Blocked.STALL, Blocked.VANISH))
        for source in few:
            for target in rest:
                self._net.block(source, target, how)
        await self._last()

    async def partial(self) -> None:
        """Two machines do not see each other; all others see both."""
        one, other = self._pair()
        self._net.block(one, other)
        self._net.block(other, one)
        await self._last()

    async def flap(self) -> None:
        few, rest = self._split()
        for _ in range(self._dice.randint(3, 12)):
            self._net.partition(few, rest)
            await asyncio.sleep(self._dice.random() * 0.8)
            self._net.heal()
            await asyncio.sleep(self._dice.random() * 0.8)

    async def slow_path(self) -> None:
        one, other = self._pair()
        slow = Quality(
            delay_s=self._dice.choice((0.001, 0.02, 0.2)),
            jitter_s=self._dice.choice((0.001, 0.05)),
            bytes_per_s=self._dice.choice((1e5, 1e6, 1e8)),
        )
        self._net.set_quality(one, other, slow)
        if self._dice.random() < 0.5:
            self._net.set_quality(other, one, slow)
        await self._last()

    async def break_links(self) -> None:
        for _ in range(self._dice.randint(1, 5)):
            self._net.break_links(*self._pair())
            await asyncio.sleep(self._dice.random() * 0.5)

    async def refuse(self) -> None:
        """Links break and new ones are hard to make."""
        lossy = Quality(connect_failure_share=0.7)
        for one in self._hosts:
            for other in self._hosts:
                if one != other:
                    self._net.set_quality(one, other, lossy)
        self._net.break_links(*self._pair())
        await self._last()

    async def vanish(self) -> None:
        self._net.partition(*self._split(), how=Blocked.VANISH)
        await self._last()

    async def fork(self) -> None:
        """Whoever leads is cut off while clients write to it and to the others, and read from it:
        its log ends in entries that never come to be. Then the same happens to the next one."""
        world = self._world
        for _ in range(self._dice.randint(1, 2)):
            leader = world.leader()
            if leader is None:
                await asyncio.sleep(1.0)
                continue
            rest = [machine for machine in world.machines if machine is not leader]
            self._net.partition([leader.host], [machine.host for machine in rest])
            await self._ask_both(leader, rest)
            self._net.heal()
            await asyncio.sleep(self._dice.random() * 0.2)

    async def _ask_both(self, leader: Machine, rest: list[Machine]) -> None:
        dice = self._dice
        client = Client(self._world, f"fork-{self._world.loop.time():.3f}")
        bucket, key = dice.choice(BUCKETS), dice.choice(KEYS)
        for number in range(FORK_ROUNDS):
            began_s = self._world.loop.time()
            client.patience_s = FORK_STEP_S / 2
            if number < FORK_ROUNDS // 3:
                client.among = [leader]
                await client.put(bucket, dice.choice(KEYS))
            elif number >= FORK_ROUNDS // 2:
                client.among = rest
                await client.put(bucket, key)
                client.among = [leader]
                await client.get(bucket, key)
            took_s = self._world.loop.time() - began_s
            await asyncio.sleep(max(0.0, 1.5 * FORK_STEP_S - took_s))

    async def coup(self) -> None:
        """The power of whoever leads goes, and it comes back to an election: who is elected is cut
        off at that instant, and those who voted lose their power and come back at once, beside the
        first one, which asks for their votes in the same term."""
        world, net = self._world, self._net
        old = world.leader()
        if old is None:
            return
        rest = [machine for machine in world.machines if machine is not old]
        over = asyncio.Event()

        def strike(new: Machine) -> None:
            if over.is_set():
                return
            over.set()
            others = [machine for machine in world.machines if machine is not new]
            net.partition([new.host], [machine.host for machine in others])
            for machine in others:
                if machine is not old:
                    net.unblock(old.host, machine.host)
                    net.unblock(machine.host, old.host)
                    if machine.life is not None and not machine.astray:
                        machine.power_cut("power cut", outage_s=QUICK_S)

        def elected(group: int, term: int, number: int) -> None:
            del term
            new = world.machines[number - 1]
            if group and new is not old:
                # Not in the turn of the one who was elected: what it says leaves it first.
                world.loop.call_soon(strike, new, context=contextvars.Context())

        world.safety.on_elected = elected
        try:
            for machine in rest:
                slow = Fault("sync", FaultKind.SLOW, count=COUP_SYNCS, delay_s=COUP_SYNC_S)
                machine.disk.inject(slow)
            net.partition([old.host], [machine.host for machine in rest])
            if old.life is not None and not old.astray:
                old.power_cut("power cut", outage_s=QUICK_S)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), COUP_WAIT_S)
                await asyncio.sleep(2.0 + 2.0 * self._dice.random())
        finally:
            world.safety.on_elected = None
