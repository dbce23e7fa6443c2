"""One node: its replicas, the routing of commands and queries to them, and bodies.

A node alone is two groups of one voter, range 0 and the first key range, through the same code as a
node among others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

from o3storage.cluster import _bodies, _records
from o3storage.cluster._barriers import Reads
from o3storage.cluster._collector import Collector
from o3storage.cluster._commands import Commands
from o3storage.cluster._elsewhere import Elsewhere
from o3storage.cluster._errors import ClusterError, Unavailable
from o3storage.cluster._lost_rows import LostRows, mended
from o3storage.cluster._node_records import FIRST_VERSION, VERSION_KEY
from o3storage.cluster._own_bodies import OwnBodies
from o3storage.cluster._queries import MAX_DISK_SCANS, Queries
from o3storage.cluster._range_keeper import RangeKeeper
from o3storage.cluster._range_rows import EVERYTHING
from o3storage.cluster._ranges import FIRST_KEY_GROUP, SYSTEM_GROUP, RangeTable
from o3storage.cluster._reading import READ_FAULTS
from o3storage.cluster._replica import Replica
from o3storage.cluster._replication import Peers, Replication
from o3storage.cluster._streams import StreamUpload
from o3storage.cluster._wire import HIGHEST_VERSION
from o3storage.crypto import (
    EpochKeys,
    NodeKeys,
    wrap_epoch_key,
)
from o3storage.raft.core import Configuration, Role
from o3storage.runtime.clock import Clock, Entropy
from o3storage.runtime.jobs import Jobs
from o3storage.runtime.state_machine import Outcome, StateMachine
from o3storage.storage import (
    Entry,
    EntryKind,
    HardState,
    Store,
)

FIRST_EPOCH = 1
MAX_EPOCH_ROWS = 10_000
"""Epoch keys read at open: one for every removal of a node; far more than that is a fault."""
RECORDS_RETRY_S = 0.5
"""Range 0 was not to be had: its records are looked at again."""


class Founder(NamedTuple):
    """A node that is there from a cluster's beginning: its public keys."""

    identity: bytes
    exchange: bytes

    @property
    def node(self) -> int:
        return number_of(self.identity)


class Node(Commands, Queries, OwnBodies):
    """`open`, then `submit`, `query`, `new_stream`, `read_stream`; `close` at the end."""

    def __init__(
        self,
        store: Store,
        machine: StateMachine,
        *,
        keys: NodeKeys,
        jobs: Jobs,
        clock: Clock,
        entropy: Entropy,
        peers: Peers | None = None,
        founders: Sequence[Founder] = (),
    ) -> None:
        """Use `open`."""
        self.store = store
        self.jobs = jobs
        self._crowd = _bodies.Crowd()
        self._disk_scans = asyncio.Semaphore(MAX_DISK_SCANS)
        self.clock = clock
        self.entropy = entropy
        self.id = node_id(keys)
        run = int.from_bytes(entropy.random_bytes(8), "big")
        self.session = (self.id & 0xFFFFFFFF) << 32 | run & 0xFFFFFFFF
        """Names this node and this run of it, in the rows of streams that it opens."""
        self.cluster_id = b""
        self.machine = machine
        self._keys = keys
        self._epochs = EpochKeys()
        self.cluster_version = FIRST_VERSION
        """What all nodes speak, as applied here."""
        self._ranges = RangeTable([(b"", FIRST_KEY_GROUP)])
        self._replicas: dict[int, Replica] = {}
        self._collector = Collector(self)
        self._closing = False
        self.replication: Replication | None = None
        """Dealings with other nodes; None for a node that has no network."""
        self._lost_rows: LostRows | None = None
        if peers is not None:
            self._lost_rows = LostRows(store, peers, self._ranges, self._replicas)
            self.replication = Replication(
                self.id,
                peers,
                store,
                entropy,
                self._replicas,
                ranges=self._ranges,
                bodies=machine.bodies,
                run=run,
            )
        self.ranges = RangeKeeper(self, self._ranges, self._replicas)
        self._elsewhere = Elsewhere(self)
        self._founders = founders or (Founder(keys.identity, keys.exchange),)
        self._records_task: asyncio.Task[None] | None = None
        self._records_due = asyncio.Event()

    # --- life

    @classmethod
    async def open(
        cls,
        store: Store,
        state_machine: StateMachine,
        *,
        keys: NodeKeys,
        jobs: Jobs,
        clock: Clock,
        entropy: Entropy,
        peers: Peers | None = None,
        bootstrap: bool = True,
        founders: Sequence[Founder] = (),
    ) -> Node:
        """Bring up every group that the store holds. On an empty store, unless `bootstrap` is off,
        make range 0 and the first key range, with the `founders` as their voters (by default this
        node alone; several must all be opened with the same founders). On return everything that
        this node acknowledged by itself is applied. `peers`: the way to other nodes; without it
        this node stays alone. Raises Unavailable, StoreError, ValueError (rows or entries nobody
        wrote), crypto.SealError (the store belongs to another node)."""

        async def attempt() -> Node:
            node = cls(
                store,
                state_machine,
                keys=keys,
                jobs=jobs,
                clock=clock,
                entropy=entropy,
                peers=peers,
                founders=founders,
            )
            try:
                await node._open(bootstrap)
            except BaseException:
                for replica in node._replicas.values():
                    await replica.close()
                raise
            return node

        return await mended(store, attempt)

    async def _open(self, bootstrap: bool) -> None:
        if self._lost_rows is not None:
            self.store.mend_with_others(self._lost_rows)
        # A crash in the middle of the first start leaves only some: make the others.
        first = (SYSTEM_GROUP, FIRST_KEY_GROUP)
        fresh = [group for group in first if group not in self.store.groups()]
        if fresh and bootstrap:
            await asyncio.gather(*(self._bootstrap(group) for group in fresh))
        await self.ranges.load()
        for group in (SYSTEM_GROUP, *self.ranges.to_open()):
            await self.open_replica(group)
        for replica in self._replicas.values():
            if self.replication is None and not replica.core.configuration.votes(self.id):
                raise Unavailable(
                    "this data was written by another node: start with that node's node.keys, or "
                    "with an empty data directory"
                )
        if self._lost_rows is not None:
            await self._lost_rows.begin()
        self.store.on_out_of_service(lambda error: self._disk_failed(str(error)))
        self.store.on_no_space(self._disk_stalled)
        if self.replication is not None:
            self._replicas[SYSTEM_GROUP].on_records = self._records_due.set
            self.replication.start()
            self._elsewhere.start()
        await asyncio.gather(*(replica.start() for replica in self._replicas.values()))
        system = self._replicas[SYSTEM_GROUP].core
        if self.replication is None or (system.sole and system.role is Role.LEADER):
            await self._open_records()
        if self.replication is not None:
            self._records_task = asyncio.get_running_loop().create_task(
                self._follow_records(bootstrap), name="records of range 0"
            )
        self._collector.start()
        self.ranges.start()

    async def open_replica(self, group: int) -> Replica:
        """This node's replica of a group, which does nothing before it is started. Raises
        StoreError, ValueError."""
        replica = await Replica.open(
            group,
            self.id,
            self.store,
            self.machine.of_group(group),
            self.replication,
            span=self._ranges.span(group) if group != SYSTEM_GROUP else None,
        )
        if replica.span not in {None, EVERYTHING} and not replica.core.log.last:
            # Entries from before the cut change rows that are another range's now.
            replica.core.wants_snapshot = True
        self._replicas[group] = replica
        replica.on_disk_fault = self._disk_failed
        replica.on_split = self.ranges.on_split
        return replica

    def _disk_failed(self, reason: str) -> None:
        """A write or sync failed: this node leads, votes and acknowledges nothing on that disk."""
        for replica in self._replicas.values():
            replica.fail(reason)

    def _disk_stalled(self, reason: str) -> None:
        """The log found no space for seconds: those who wait for it are told so (promise P6)."""
        for replica in self._replicas.values():
            replica.stalled(reason)

    async def _bootstrap(self, group: int) -> None:
        """The first entry of a group says who votes in it."""
        voters = tuple(sorted(founder.node for founder in self._founders))
        first = Entry(1, 1, EntryKind.CONFIGURATION, Configuration(voters).encode())
        await self.store.append(group, HardState(1, min(voters), 1), [first])

    async def _open_records(self) -> None:
        """The cluster's id, the founders' records and the epoch keys: made once, then read."""
        store = self.store
        kek = EpochKeys.generate(self.entropy)
        wanted = [(_records.CLUSTER_ID_KEY, self.entropy.random_bytes(16))]
        if await store.get(_records.CLUSTER_ID_KEY) is None:
            wanted.append((VERSION_KEY, HIGHEST_VERSION.to_bytes(2, "big")))
        for founder in self._founders:
            node, exchange = founder.node, founder.exchange
            wrapped = wrap_epoch_key(kek, FIRST_EPOCH, exchange, self.entropy)
            record = _records.node_record(founder.identity, exchange, self.clock.wall_ns(), "")
            wanted.append((_records.epoch_key(FIRST_EPOCH, node), wrapped))
            wanted.append((_records.node_key(node), record))
        missing = [row for row in wanted if await store.get(row[0]) is None]
        if missing:
            await self._replicas[SYSTEM_GROUP].submit(_records.encode_set(missing))
        await self._read_records()

    def look_at_records(self) -> None:
        """Something of range 0, or a span here, may have changed."""
        self._records_due.set()

    async def _read_records(self) -> None:
        store = self.store
        self.cluster_id = await store.get(_records.CLUSTER_ID_KEY) or b""
        version = await store.get(VERSION_KEY)
        self.cluster_version = int.from_bytes(version, "big") if version else FIRST_VERSION
        prefix = _records.epoch_prefix()
        high = prefix[:-1] + bytes((prefix[-1] + 1,))
        for key, value in await store.scan(prefix, high, MAX_EPOCH_ROWS):
            epoch, node = _records.split_epoch_key(key)
            if node == self.id and epoch not in self._epochs:
                self._epochs.unwrap(epoch, value, self._keys.exchange_secret)

    async def _follow_records(self, bootstrap: bool) -> None:
        """Read the cluster's records whenever range 0 changed them; founders make the first."""
        while True:
            self._records_due.clear()
            try:
                system = self._replicas[SYSTEM_GROUP]
                if not (system.rows_lost and self.cluster_id):
                    await self._read_records()
                if not system.rows_lost:  # (what it says then is not to be acted upon)
                    await self.ranges.read_directory()
                if bootstrap and not self.cluster_id:
                    await self._replicas[SYSTEM_GROUP].barrier()
                    if await self.store.get(_records.CLUSTER_ID_KEY) is None:
                        await self._open_records()
            except (ClusterError, *READ_FAULTS):
                await asyncio.sleep(RECORDS_RETRY_S)
                continue
            await self._records_due.wait()

    async def close(self) -> None:
        """Refuse new work, finish what is proposed, stop. The store stays open. Idempotent."""
        if self._closing:
            return
        self._closing = True
        task, self._records_task = self._records_task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self._collector.close()
        await self.ranges.close()
        await self._elsewhere.close()
        if self.replication is not None:
            await self.replication.hand_over()
        await asyncio.gather(*(replica.close() for replica in self._replicas.values()))
        if self.replication is not None:
            await self.replication.close()

    def members(self) -> tuple[int, ...]:
        """Every node of the cluster: all are members of range 0."""
        return self._replicas[SYSTEM_GROUP].core.configuration.members()

    async def catch_up(self) -> None:
        """Everything that was committed before the call is applied here. Raises Unavailable."""
        here = [r for r in self._replicas.values() if r.group not in self._ranges.elsewhere]
        await asyncio.gather(*(replica.barrier() for replica in here))

    async def catch_up_system(self) -> None:
        """The same, of range 0. Raises Unavailable."""
        await self._replicas[SYSTEM_GROUP].barrier()

    async def change_members(
        self, group: int, voters: Sequence[int], learners: Sequence[int] = ()
    ) -> None:
        """See `Replica.change_members`. Raises Unavailable."""
        await self._replicas[group].change_members(voters, learners)

    # --- queries and bodies

    def reads(self) -> Reads:
        """For the queries of one request, which has arrived."""
        return Reads(self, self.replication.questions.asked if self.replication is not None else 0)

    def new_stream(self, bucket_id: int, key: bytes) -> StreamUpload:
        """A body for (bucket, key), sealed under the newest epoch. Raises EpochKeyMissing."""
        if not len(self._epochs):
            raise Unavailable("this node has not received the cluster's keys yet; try again")
        epoch = self._epochs.newest
        route = self.machine.stream_route(bucket_id, key)
        return StreamUpload(self, route, self.clock.wall_ns(), epoch, self._epochs.key(epoch))

    def announce(self, upload: StreamUpload) -> asyncio.Future[Outcome]:
        """Commit the row of a stream that will have frames of its own. Raises Unavailable,
        StorageFull."""
        command = _records.encode_open(
            upload.route, self.session, upload.started_ns, upload.ref.stream
        )
        loop = asyncio.get_running_loop()
        return loop.create_task(self.commit(upload.route, command, adds=True))

    def give_up(self, row_key: bytes, route: bytes) -> None:
        """See that an open stream that nothing will name is collected, some time."""
        self._collector.add(row_key, route)

    # --- facts

    def key_ranges(self) -> list[int]:
        """Groups of the key ranges that this node knows, in order of their keys."""
        return self._ranges.groups()

    def write_refusal(self) -> str | None:
        """Why writes are refused now, or None."""
        if self._closing:
            return "the node is stopping"
        for replica in self._replicas.values():
            if replica.fault:
                return replica.fault
        return None

    def status(self) -> dict[str, Any]:
        """Plain data for /health, metrics and `o3storage status`."""
        return {
            "node_id": f"{self.id:016x}",
            "cluster_id": self.cluster_id.hex(),
            "active_nodes": 1,
            "total_replicas": len(self._replicas),
            "epoch": self._epochs.newest if len(self._epochs) else 0,
            **(self.replication.status() if self.replication is not None else {}),
            "open_streams_to_collect": self._collector.waiting,
            "streams_collected": self._collector.collected,
            "groups": [
                replica.status()
                for group, replica in self._replicas.items()
                if replica.applied or group not in self._ranges.elsewhere
            ],
        }


def node_id(keys: NodeKeys) -> int:
    """The node's number in its groups: 63 bits of its identity, never 0."""
    return number_of(keys.identity)


def number_of(identity: bytes) -> int:
    """`node_id` by the node's public key."""
    return int.from_bytes(identity[:8], "big") >> 1 or 1
