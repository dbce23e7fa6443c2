"""One simulated machine: a disk that outlives its processes, the keys, a clock, a network address,
and the process that runs now.

A process is opened as the server opens it (`server.open_node`), in a context of its own, so that
the loop can pause it. When it dies its disk and its network answer nothing any more; its tasks are
ended in that vacuum, and the next process starts on what the disk kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from o3storage.catalog import Catalog, prefix_length
from o3storage.cluster import (
    Clustered,
    ClusterError,
    ClusterOptions,
    decides_alone,
    node_id,
    open_clustered,
    others_have_rows,
)
from o3storage.crypto import NodeKeys
from o3storage.runtime.disk import DiskError
from o3storage.runtime.network import Address
from o3storage.s3 import Service, ServiceConfig
from o3storage.server import ROOT_OWNER, Credentials, Housekeeping, OpenedNode, RootKey, open_node
from o3storage.storage import (
    Problem,
    Store,
    StoreError,
    StoreFull,
    StoreOptions,
    VerifyReport,
    verify,
)
from o3storage.storage._store import INDEX_DIR
from o3storage.storage._volume import parse_name

from ._clock import SimEntropy
from ._disk import SimDisk
from ._growth import compact_often, compacts_often, flush_often, make_small
from ._jobs import SimJobs
from ._loop import OWNER
from ._network import SimNetwork
from ._report import GaveUp
from ._requests import HOST, KEY_ID, REGION, SECRET

if TYPE_CHECKING:
    from ._world import World

CAPACITY_BYTES = 96 << 20
PEER_PORT = 9001
BURY_S = 1.0
"""How long the tasks of a dead process may take to end."""
MAX_STARTS = 12
"""Starts in a row that may fail before the run gives up."""


def small_options() -> StoreOptions:
    """Volumes so small that half a minute of work seals, flushes and compacts many."""
    return StoreOptions(
        log_volume_bytes=384 << 10,
        first_log_volume_bytes=128 << 10,
        bulk_volume_bytes=2 << 20,
        bulk_allocate_bytes=512 << 10,
        flush_entries=150,
        flush_log_bytes=1 << 20,
        reserve_bytes=2 << 20,
        scrub_every_s=12.0,
    )


@dataclass(slots=True)
class Member(OpenedNode):
    """A node among others."""

    clustered: Clustered


@dataclass(slots=True)
class Life:
    """A process: from its start to its death."""

    opened: OpenedNode
    service: Service
    housekeeping: Housekeeping
    network: SimNetwork | None
    requests: dict[asyncio.Future[Any], None] = field(default_factory=dict)


class Machine:
    """`start`, then what happens to it; `number` counts from 1."""

    def __init__(self, world: World, number: int) -> None:
        seed = world.seed
        mark: int | str = seed if number == 1 else f"{seed}/{number}"
        self.world = world
        self.number = number
        self.host = f"10.0.0.{number}"
        self.clock = world.clock_of(number)
        self.entropy = SimEntropy(mark)
        self.founder = number == 1
        """Its first node made the cluster; every other one joins it."""
        self._mark = mark
        self._cached_share = 0.5 if seed % 3 else 1.0
        self.keys = NodeKeys.generate(self.entropy)
        self.disk = SimDisk(mark, capacity_bytes=CAPACITY_BYTES, cached_share=self._cached_share)
        self.options = small_options()
        if seed % 3 == 0:
            # Who missed some entries gets a snapshot, and the index is flushed again and again.
            self.options.keep_log_bytes = 1
            self.options.flush_entries = 16
            self.options.log_volume_bytes = self.options.first_log_volume_bytes = 64 << 10
        if (seed + number) % 2 == 0:
            self.options.reload_log_bytes = 0  # nothing below the replay floor is looked at
        if world.ranges_grow:
            flush_often(self.options)
        if compacts_often(seed):
            compact_often(self.options)
        self.serving = asyncio.Event()
        self.life: Life | None = None
        self.deaths = 0
        self.rotten = False
        """Bytes that were durable were spoilt: reads may be refused on a node alone, and `verify`
        may find something."""
        self.spoilt: dict[str, None] = {}
        """The files in which they were."""
        self.rows: dict[bytes, bytes] = {}
        """The replicated ones, when all replicas were compared last."""
        self.groups: dict[int, None] = {}
        """Of which it had a replica then."""
        self.astray = False
        """A write went astray, and nothing that shows it was written yet."""
        self.lossy = False
        """`verify --repair` had to give something up."""
        self.context = contextvars.copy_context()
        self.context.run(OWNER.set, number)
        self._starting: asyncio.Task[None] | None = None
        self._young: SimNetwork | None = None
        """Of the process that is being started."""

    @property
    def is_starting(self) -> bool:
        return self.life is None and self._starting is not None and not self.serving.is_set()

    def trace(self, text: str) -> None:
        self.world.trace(text if not self.world.clustered else f"n{self.number} {text}")

    # --- life

    async def start(self) -> None:
        """Open the rooms; an operator mends what a start asks to be mended. Raises GaveUp."""
        await self.world.loop.create_task(self._start(), context=self.context)

    async def _start(self) -> None:
        world = self.world
        for _ in range(MAX_STARTS):
            disk = self.disk
            network = self._young = world.network_of(self)
            try:
                if network is None:
                    opened = await open_node(
                        disk,
                        keys=self.keys,
                        jobs=SimJobs(f"{world.seed}/{self.deaths}"),
                        clock=self.clock,
                        entropy=self.entropy,
                        options=self.options,
                    )
                else:
                    opened = await self._open_member(disk, network)
            except (StoreError, ClusterError, DiskError) as error:
                self.trace(f"start failed: {type(error).__name__}: {error}")
                self._young = None
                if network is not None:
                    network.kill()
                await self._mend(disk, error)
                continue
            if self.disk is not disk:
                await self._bury(opened)
                continue
            self._young = None
            self.serve(opened, network)
            return
        raise GaveUp(f"{MAX_STARTS} starts failed")

    async def _open_member(self, disk: SimDisk, network: SimNetwork) -> OpenedNode:
        """A node among others: the first machine's makes the cluster, the others' join it."""
        jobs = SimJobs(f"{self.world.seed}/{self.number}/{self.deaths}")
        store = await Store.open(
            disk,
            disk_key=self.keys.disk_key,
            jobs=jobs,
            clock=self.clock,
            entropy=self.entropy,
            options=self.options,
            prefix_length=prefix_length,
            others=await others_have_rows(disk),
        )
        machines = self.world.machines
        others = [Address(each.host, PEER_PORT) for each in machines if each is not self]
        cluster = ClusterOptions(
            disk,
            Address(self.host, PEER_PORT),
            peers=() if self.founder else tuple(others),
            secret=self.world.secret,
            replicas=self.world.replicas,
            everywhere=not self.world.sparse,
            system_replicas=len(machines),
            say=self.trace,
        )
        try:
            clustered = await open_clustered(
                store,
                Catalog(),
                keys=self.keys,
                jobs=jobs,
                clock=self.clock,
                entropy=self.entropy,
                network=network,
                options=cluster,
            )
        except BaseException:
            await store.close()
            raise
        return Member(store, clustered.node, clustered)

    def serve(self, opened: OpenedNode, network: SimNetwork | None) -> None:
        service = Service(
            opened.node,
            credentials=Credentials(opened.node, [RootKey(KEY_ID, SECRET)]),
            clock=self.clock,
            entropy=self.entropy,
            config=ServiceConfig(region=REGION, root_owner=ROOT_OWNER, listened=(HOST,)),
        )
        housekeeping = Housekeeping(opened.node, self.clock)
        housekeeping.start()
        if self.world.ranges_grow:
            make_small(opened.node)
        self.life = Life(opened, service, housekeeping, network)
        self.trace("serving")
        self.serving.set()
        self.world.on_serving()

    async def _mend(self, disk: SimDisk, error: Exception) -> None:
        """What an operator does when a start fails: more space, `verify --return-disk`, and, where
        bits have rotted, `verify --repair`."""
        if self.disk is not disk:
            return  # the power went again
        disk.capacity_bytes = CAPACITY_BYTES
        if isinstance(error, StoreFull):
            return
        disk.faults.clear()
        disk.release_stuck()
        if self.rotten:
            self.lossy = True
        try:
            report = await self._run_verify(disk, return_disk=True, repair=self.rotten)
        except (StoreError, DiskError) as failure:
            if self.disk is not disk:
                return
            raise GaveUp(f"{error}; verify: {failure}") from failure
        if self.disk is not disk:
            return  # the power went while it was being checked
        self.trace(f"verify: {report.problem_count} problems, returned {report.returned}")
        # An index that the start which failed was building is begun anew by the next one.
        bad: list[Problem] = [p for p in report.problems if "half-built" not in p.detail]
        if bad and not self.rotten:
            problem = bad[0]
            self.world.violation(
                "P6",
                f"verify at an offline disk: {problem.kind} {problem.where}: {problem.detail}",
            )
            raise GaveUp(str(error))
        if report.out_of_service and not report.returned:
            with contextlib.suppress(DiskError):
                await disk.unlink("OUT_OF_SERVICE")
                await disk.sync_dir("")

    # --- death

    def power_cut(self, how: str, *, outage_s: float | None = None) -> None:
        """The process is gone at this instant, with `power cut` what was not synced, and with
        `wipe` the whole disk and the node's keys: another node starts in its place, after
        `outage_s` or a time that is drawn."""
        life, self.life = self.life, None
        self.resume()
        self.serving.clear()
        self.world.on_dead()
        self.deaths += 1
        self.trace(f"{how} {self.deaths}")
        dice = self.world.dice
        network = life.network if life is not None else self._young
        if network is not None:
            if how == "kill":
                network.kill()
            else:
                network.power_off()
        self.disk = self.disk.kill() if how == "kill" else self.disk.crash(dice)
        if how == "wipe":
            self.founder = False
            self.keys = NodeKeys.generate(self.entropy)
            self.disk = SimDisk(
                f"{self._mark}/{self.deaths}",
                capacity_bytes=CAPACITY_BYTES,
                cached_share=self._cached_share,
            )
        if life is not None:
            self._starting = self.world.loop.create_task(self._restart(life, outage_s))

    async def _restart(self, life: Life, outage_s: float | None) -> None:
        try:
            for task in life.requests:
                task.cancel()
            await asyncio.gather(*life.requests, return_exceptions=True)
            await life.housekeeping.stop()
            await self._bury(life.opened)
            longest_s = self.world.scale.longest_outage_s
            await asyncio.sleep(
                self.world.dice.random() * longest_s if outage_s is None else outage_s
            )
            await self.start()
        except Exception as error:
            self.world.fail(error)

    async def _bury(self, opened: OpenedNode) -> None:
        """End the tasks of a dead process; nothing of this reaches its disk any more, so it may
        well wait for ever."""
        rooms: list[Any] = [opened.store]
        rooms.append(opened.clustered if isinstance(opened, Member) else opened.node)
        for room in rooms:
            with contextlib.suppress(StoreError, ClusterError, DiskError, TimeoutError):
                await asyncio.wait_for(room.close(), BURY_S)

    async def stop(self) -> None:
        """A graceful end: what is in flight is finished."""
        life, self.life = self.life, None
        self.serving.clear()
        self.world.on_dead()
        if life is None:
            return
        await asyncio.gather(*life.requests, return_exceptions=True)
        await life.housekeeping.stop()
        with contextlib.suppress(StoreError, ClusterError, DiskError):
            opened = life.opened
            await (opened.clustered if isinstance(opened, Member) else opened.node).close()
            await opened.store.close()
        if life.network is not None:
            await life.network.close()

    def pause(self) -> None:
        """The process stands still (SIGSTOP) until `resume`; its machine goes on."""
        self.world.loop.pause(self.number)

    def resume(self) -> None:
        self.world.loop.resume(self.number)

    def heal_disk(self) -> None:
        self.disk.faults.clear()
        self.disk.release_stuck()
        self.disk.capacity_bytes = CAPACITY_BYTES

    def refusal(self) -> str | None:
        return self.life.opened.node.write_refusal() if self.life else None

    def debt(self, group: int) -> int:
        """Entries whose frames are not all here, as the replica knows."""
        if self.life is None:
            return 0
        team = self.life.opened.node._replicas[group].team
        return 0 if team is None else len(team.gaps) + len(team.debt) + (not team.complete)

    # --- the offline check

    async def verify(self) -> None:
        """The node has stopped: its disk must be clean."""
        bad = [p for p in (await self._run_verify(self.disk)).problems if not self._excused(p)]
        if bad:
            problem = bad[0]
            where = f"n{self.number} {problem.where}" if self.world.clustered else problem.where
            self.world.violation(
                "P3", f"verify: {problem.kind} {where}: {problem.detail} (of {len(bad)})"
            )

    def _excused(self, problem: Problem) -> bool:
        """A node alone keeps what was spoilt. One among others took it from them, but for what is
        only history by now and goes with its volume."""
        if not self.rotten or not self.world.clustered:
            return self.rotten
        if problem.kind == "frame":
            # Its stream's release rotted, and with it the end of its placement.
            stream = bytes.fromhex(problem.where.split()[1])
            return not any(stream in value for value in self.rows.values())
        if problem.kind == "uncertain":
            return int(problem.where.split()[1]) not in self.groups
        if problem.kind == "entries":
            return problem.detail.endswith("in the rows")
        if problem.kind == "index":
            return any(path.startswith(f"{INDEX_DIR}/") for path in self.spoilt)
        numbers = [name[1] for path in self.spoilt if (name := parse_name(path.split("/")[-1]))]
        names = [*self.spoilt, *(f"volume {number} at" for number in numbers)]
        return any(name in problem.where for name in names)

    async def _run_verify(
        self, disk: SimDisk, *, return_disk: bool = False, repair: bool = False
    ) -> VerifyReport:
        return await verify(
            disk,
            disk_key=self.keys.disk_key,
            jobs=SimJobs(self.world.seed),
            clock=self.clock,
            entropy=self.entropy,
            prefix_length=prefix_length,
            return_disk=return_disk,
            repair=repair,
            decides_alone=await decides_alone(disk, node_id(self.keys)) if repair else None,
        )
