"""One node: its replicas, the routing of commands and queries to them, and bodies.

A node alone is two groups of one voter, range 0 and the first key range, through the same code as a
node among others.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from o3storage.cluster import _bodies, _direct, _records
from o3storage.cluster._barriers import NO_COUNT, Reads
from o3storage.cluster._bounded import within
from o3storage.cluster._collector import Collector
from o3storage.cluster._data import Fanout
from o3storage.cluster._elsewhere import Elsewhere
from o3storage.cluster._errors import BodyDamaged, BodyMissing, ClusterError, Unavailable
from o3storage.cluster._node_records import FIRST_VERSION, VERSION_KEY
from o3storage.cluster._range_keeper import RangeKeeper
from o3storage.cluster._range_rows import EVERYTHING, RangeMoved
from o3storage.cluster._ranges import FIRST_KEY_GROUP, NOWHERE, SYSTEM_GROUP, RangeTable
from o3storage.cluster._reading import MISS, READ_FAULTS, read_now, read_row
from o3storage.cluster._replica import Replica
from o3storage.cluster._replication import Peers, Replication
from o3storage.cluster._streams import StreamUpload, UploadFrames
from o3storage.cluster._wire import HIGHEST_VERSION
from o3storage.crypto import (
    EpochKeyMissing,
    EpochKeys,
    NodeKeys,
    StreamRef,
    StreamSealer,
    wrap_epoch_key,
)
from o3storage.raft.core import Configuration
from o3storage.runtime.clock import Clock, Entropy
from o3storage.runtime.disk import Buffer
from o3storage.runtime.jobs import Jobs
from o3storage.runtime.state_machine import Outcome, Read, StateMachine
from o3storage.storage import (
    BadBlock,
    Entry,
    EntryKind,
    HardState,
    Miss,
    SealedFrame,
    Snapshot,
    Store,
)

FIRST_EPOCH = 1
ROOM_PATIENCE_S = 5.0
"""How long a write waits for flushes and merges before it is refused."""
ROOM_POLL_S = 0.01
MAX_EPOCH_ROWS = 10_000
"""Epoch keys read at open: one for every removal of a node; far more than that is a fault."""
RECORDS_RETRY_S = 0.5
"""Range 0 was not to be had: its records are looked at again."""
REROUTE_S, REROUTE_LOOK_S = 4.5, 0.01
"""A key whose range is not here yet, or has just begun, is waited for so long: a client gets its
503 within 5 s."""
MOVED_LOOK_S = 0.1
"""A leader tells range 0 of a cut within a second or so."""
MAX_MENDS = 16
"""Damaged blocks of the index that an open waits for: it reads a handful of rows."""

T_co = TypeVar("T_co", covariant=True)


class Founder(NamedTuple):
    """A node that is there from a cluster's beginning: its public keys."""

    identity: bytes
    exchange: bytes

    @property
    def node(self) -> int:
        return number_of(self.identity)


class Query(Protocol[T_co]):
    """What `query` runs: a fresh read-only generator each time it is called (catalog.Query)."""

    @property
    def route(self) -> bytes:
        """The row key that decides which range answers; b"" for range 0."""
        ...

    @property
    def group(self) -> int | None:
        """The range that answers, if not the one of the route."""
        ...

    def __call__(self, border: bytes | None = None) -> Generator[Read, Any, T_co]:
        """`border`: where the answering range ends, a row key without its table byte; None: it
        does not."""
        ...


class Node:
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
        if peers is not None:
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
        mends = 0
        while True:
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
                return node
            except BaseException as error:
                for replica in node._replicas.values():
                    await replica.close()
                # A node without its own rows cannot start; they are rebuilt from the volumes.
                if not isinstance(error, BadBlock) or mends == MAX_MENDS:
                    raise
            await store.repair_index()
            mends += 1

    async def _open(self, bootstrap: bool) -> None:
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
        self.store.on_out_of_service(lambda error: self._disk_failed(str(error)))
        self.store.on_no_space(self._disk_stalled)
        if self.replication is not None:
            self._replicas[SYSTEM_GROUP].on_records = self._records_due.set
            self.replication.start()
            self._elsewhere.start()
        await asyncio.gather(*(replica.start() for replica in self._replicas.values()))
        if self.replication is None or self._replicas[SYSTEM_GROUP].core.sole:
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
                await self._read_records()
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

    async def change_members(
        self, group: int, voters: Sequence[int], learners: Sequence[int] = ()
    ) -> None:
        """See `Replica.change_members`. Raises Unavailable."""
        await self._replicas[group].change_members(voters, learners)

    # --- commands

    @property
    def closing(self) -> bool:
        return self._closing

    def replica_here(self, group: int) -> Replica | None:
        """The replica of a range, if this node has one that may be asked."""
        return None if group in self._ranges.elsewhere else self._replicas.get(group)

    def leader_of(self, group: int) -> int:
        """As far as this node knows, or was told when it asked last; 0: nobody."""
        replica = self.replica_here(group)
        return replica.core.leader if replica is not None else self._elsewhere.leader(group)

    def replica_of(self, route: bytes) -> Replica:
        """Of the range of a route. Raises Unavailable: it is not here (yet)."""
        replica = self.replica_here(self._ranges.group_of(route))
        if replica is None:
            raise Unavailable("this node has not received the range of that key yet; try again")
        return replica

    async def find_range(self, route: bytes, group: int | None = None) -> Replica | int:
        """Of the range of a route, or of that group, once it is known: the replica here, or the
        group, if other nodes are to be asked. Raises Unavailable."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + REROUTE_S
        while True:
            at = self._ranges.group_of(route) if group is None else group
            if at in self._ranges.elsewhere:
                return at
            replica = self._replicas.get(at)
            if replica is not None:
                return replica
            if self._closing or loop.time() >= end_s:
                raise Unavailable("this node has not received the range of that key yet; try again")
            await asyncio.sleep(REROUTE_LOOK_S)

    async def _commit_in(
        self,
        where: Replica | int,
        data: bytes,
        frames: Sequence[SealedFrame] = (),
        *,
        adds: bool,
    ) -> Outcome:
        """In that range, here or elsewhere; its outcome may be RangeMoved. Raises Unavailable,
        StorageFull."""
        if isinstance(where, int):
            held: Sequence[int] = ()
            if isinstance(frames, UploadFrames) and not frames:
                held = frames.upload.held
            return await self._elsewhere.submit(where, data, frames, adds=adds, held=held)
        return await where.submit(data, frames, adds=adds)

    async def submit(self, command: Any, frames: Sequence[SealedFrame] = ()) -> Any:
        """Commit a command and return its result, or raise its error, of applying it here.

        `frames`: `StreamUpload.frames` of the body that the command names, if any. A command may be
        submitted again with the same frames after an error of its own.
        Raises Unavailable (see `uncertain` there), StorageFull."""
        if self.store.crowded:
            await self._room()
        machine = self.machine
        if self._ranges.several:
            if machine.whole(command) is not None:
                return await self._submit_whole(command)
            items = machine.items(command)
            if items is not None:
                return await self._submit_items(command, items)
        version = self._ranges.version
        route = machine.route(command)
        data = machine.encode(command)
        if isinstance(frames, UploadFrames):
            upload = frames.upload
            flags = 0
            if upload.has_row:
                flags = _records.CLOSE_ON_SUCCESS
            if frames:
                flags |= _records.OPEN_ON_ERROR
            ref = upload.ref
            data = _records.encode_carry(
                flags,
                data,
                route=upload.route,
                session=self.session,
                started_ns=upload.started_ns,
                stream=ref.stream,
                frames=_bodies.frame_count(ref),
            )
            upload.submitted = True
            outcome = await self.commit(route, data, frames, adds=True)
            if outcome.error is not None:
                upload.has_row = True
                raise outcome.error
            upload.has_row = False
            return outcome.result
        adds = machine.adds(command)
        outcome = await self.commit(route, data, frames, adds=adds)
        if self._ranges.version != version:
            # The range was cut meanwhile.
            if machine.whole(command) is not None:
                return await self._submit_whole(command)
            items = machine.items(command)
            if items is not None and type(outcome.error) is RangeMoved:
                return await self._submit_items(command, items)
        if outcome.error is not None:
            raise outcome.error
        return outcome.result

    async def commit(
        self, route: bytes, data: bytes, frames: Sequence[SealedFrame] = (), *, adds: bool = False
    ) -> Outcome:
        """Commit an encoded command in the range of its route; its outcome here. Where the range
        was cut before the command was applied, that is a definite refusal, and it goes to the range
        that holds the route now. Raises Unavailable, StorageFull."""
        end_s = 0.0
        while True:
            version = self._ranges.version
            group = self._ranges.group_of(route)
            replica = self._replicas.get(group)
            if replica is None or group in self._ranges.elsewhere:
                where = await self.find_range(route)
                outcome = await self._commit_in(where, data, frames, adds=adds)
            else:
                where = replica
                outcome = await replica.submit(data, frames, adds=adds)
            if type(outcome.error) is not RangeMoved:
                return outcome
            if isinstance(where, int):
                end_s = await self._moved_away(version, end_s)
            elif self._ranges.version == version:
                raise Unavailable("the range of that key is moving; try again")

    async def _moved_away(self, version: int, end_s: float) -> float:
        """A range elsewhere was cut, or is held by others now: return when range 0 may say more.
        Returns when to give up, which `end_s` is unless 0. Raises Unavailable."""
        loop = asyncio.get_running_loop()
        end_s = end_s or loop.time() + REROUTE_S
        if loop.time() >= end_s or self._closing:
            raise Unavailable("the range of that key is moving; try again")
        if self._ranges.version == version:
            await asyncio.sleep(MOVED_LOOK_S)
        return end_s

    async def _submit_whole(self, command: Any) -> Any:
        """A command that every range of a span must apply, each for itself. A range that is cut off
        one which has applied it began with what that did, and applying it again changes nothing."""
        machine = self.machine
        span = machine.whole(command)
        assert span is not None
        low, high = span[0][1:], span[1][1:]
        data, adds = machine.encode(command), machine.adds(command)
        results: dict[int, Any] = {}
        end_s = 0.0
        while True:
            todo = [group for group in self._ranges.within(low, high) if group not in results]
            if not todo:
                return machine.joined(list(results.values()))
            if todo[0] == NOWHERE:
                at = self._ranges.version
                await self._moved_on(at)
                continue
            version = self._ranges.version
            where = await self.find_range(b"", todo[0])
            outcome = await self._commit_in(where, data, adds=adds)
            if type(outcome.error) is RangeMoved:
                if isinstance(where, int):
                    end_s = await self._moved_away(version, end_s)
                continue
            if outcome.error is not None:
                raise outcome.error
            results[todo[0]] = outcome.result

    async def _moved_on(self, version: int) -> None:
        """Return when another range is here than at that version of the table. Raises
        Unavailable."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + REROUTE_S
        while self._ranges.version == version:
            if self._closing or loop.time() >= end_s:
                raise Unavailable("this node has not received the range of that key yet; try again")
            await asyncio.sleep(REROUTE_LOOK_S)

    async def _submit_items(self, command: Any, routes: Sequence[bytes]) -> list[Any]:
        """A command that is cut into one for each range. Once one was applied, what happens to the
        others is told item by item."""
        machine = self.machine
        results: list[Any] = [None] * len(routes)
        pending = list(range(len(routes)))
        end_s = 0.0
        while pending:
            group = self._ranges.group_of(routes[pending[0]])
            mine = [at for at in pending if self._ranges.group_of(routes[at]) == group]
            version = self._ranges.version
            where = await self.find_range(routes[mine[0]])
            if group != (where if isinstance(where, int) else where.group):
                continue
            part = machine.part(command, mine)
            outcome = await self._commit_in(where, machine.encode(part), adds=machine.adds(part))
            if type(outcome.error) is RangeMoved:
                if isinstance(where, int):
                    end_s = await self._moved_away(version, end_s)
                continue
            if outcome.error is not None and len(pending) == len(routes):
                raise outcome.error
            found = outcome.result if outcome.error is None else [outcome.error] * len(mine)
            for at, result in zip(mine, found, strict=True):
                results[at] = result
            done = dict.fromkeys(mine)
            pending = [at for at in pending if at not in done]
        return results

    async def _room(self) -> None:
        """Return when the store takes writes without more memory. Raises Unavailable."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + ROOM_PATIENCE_S
        while self.store.crowded:
            if loop.time() >= end_s:
                raise Unavailable("the disk does not keep up with the writes; slow down")
            await asyncio.sleep(ROOM_POLL_S)

    # --- queries

    def query_now(self, query: Query[T_co], count: int = NO_COUNT) -> T_co | Miss:
        """The answer, if it needs neither the disk nor other nodes; else MISS: await `query`.
        `count`: see `Reads`. Raises the query's own errors."""
        group = query.group
        if group is None:
            group = self._ranges.group_of(query.route)
        replica = self._replicas.get(group)
        if replica is None or not (replica.reads_now() or replica.reads_after(count)):
            return Miss.MISS
        return self._read_memory(query, replica)

    def reads(self) -> Reads:
        """For the queries of one request, which has arrived."""
        return Reads(self, self.replication.questions.asked if self.replication is not None else 0)

    @staticmethod
    def _steps(query: Query[T_co], replica: Replica) -> Generator[Read, Any, T_co]:
        """The query's reads, of what the range holds."""
        span = replica.span
        if span is None or span == EVERYTHING:
            return query()
        return within(query(span.high), span)

    def _read_memory(self, query: Query[T_co], replica: Replica) -> T_co | Miss:
        store = self.store
        generator = self._steps(query, replica)
        try:
            read = next(generator)
            while True:
                found = read_now(store, read)
                if found is MISS:
                    generator.close()
                    return Miss.MISS
                read = generator.send(found)
        except StopIteration as stop:
            answer: T_co = stop.value
            return answer
        except READ_FAULTS as error:
            raise Unavailable(str(error)) from error

    async def query(
        self,
        query: Query[T_co],
        count: int | None = None,
        ahead: Callable[[T_co], bytes] | None = None,
    ) -> T_co:
        """The answer, as of one instant between call and return; with a `count` (see `Reads`) as of
        one since that was noted. `ahead`: the route of what will be asked next, by the answer.
        Raises the query's own errors, Unavailable."""
        if count is None:
            answer = self.query_now(query)
            if answer is not MISS:
                return answer
        end_s = 0.0
        while True:
            version = self._ranges.version
            group = self._ranges.group_of(query.route) if query.group is None else query.group
            replica = self._replicas.get(group)
            if replica is None or group in self._ranges.elsewhere:
                where = await self.find_range(query.route, query.group)
                if isinstance(where, int):
                    try:
                        elsewhere: T_co = await self._elsewhere.query(where, query)
                        return elsewhere
                    except RangeMoved:
                        end_s = await self._moved_away(version, end_s)
                        continue
                replica = where
            if count is None or not replica.reads_after(count):
                other = None
                if ahead is not None and count is not None and not replica.reads_now():
                    other = self._read_next(query, replica, ahead)
                    if other is not None:
                        other.expect_read(count)
                await replica.barrier(count)
                if other is not None and count is not None and not other.reads_after(count):
                    # It was asked in the same turn: most likely it is answered by now.
                    await other.barrier(count)
            if query.group is not None or self._ranges.group_of(query.route) == replica.group:
                break
        return await self._answer(query, replica)

    async def answer(self, query: Query[T_co], replica: Replica) -> T_co:
        """As `query`, of a range with a replica here. Raises also RangeMoved: it does not hold the
        query's keys, or not any more."""
        await replica.barrier()
        span = replica.span
        if query.group is None:
            if span is None or not span.holds(query.route[1:]):
                raise RangeMoved("the key belongs to another range now")
        elif query.group != replica.group:
            raise RangeMoved("another range was asked")
        return await self._answer(query, replica)

    async def _answer(self, query: Query[T_co], replica: Replica) -> T_co:
        if self.replication is not None:
            # The barrier was for the others' sake; the rows may well be in memory.
            answer = self._read_memory(query, replica)
            if answer is not MISS:
                return answer
        snapshot: Snapshot = self.store.snapshot()
        try:
            generator = self._steps(query, replica)
            read = next(generator)
            while True:
                read = generator.send(await read_row(self.store, read, snapshot))
        except StopIteration as stop:
            found: T_co = stop.value
            return found
        except READ_FAULTS as error:
            raise Unavailable(str(error)) from error
        finally:
            snapshot.release()

    def _read_next(
        self, query: Query[T_co], replica: Replica, ahead: Callable[[T_co], bytes]
    ) -> Replica | None:
        """Of the range that will be read next, by what is here of the answer. (If that is not so
        any more, the right one is asked later.)"""
        groups = self._ranges.groups()
        if len(groups) == 1:
            return self.replica_here(groups[0])
        try:
            found = self._read_memory(query, replica)
        except Exception:
            return None  # the query says so once it may
        return None if found is MISS else self.replica_here(self._ranges.group_of(ahead(found)))

    # --- bodies

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

    def fan_out(self, upload: StreamUpload) -> Fanout | None:
        """The way of a large body to the other members, if there are any. Raises Unavailable."""
        group = self._ranges.group_of(upload.route)
        stream = upload.ref.stream
        if group in self._ranges.elsewhere:
            assert self.replication is not None

            def configuration() -> Configuration:
                holders = self.ranges.holders.get(group)
                return holders.configuration if holders is not None else Configuration()

            return Fanout(self.replication, group, stream, configuration, own=False)
        team = self.replica_of(upload.route).team
        if team is None or self.replication is None or len(team.core.configuration.members()) < 2:
            return None
        core = team.core
        return Fanout(self.replication, group, stream, lambda: core.configuration)

    def holds(self, route: bytes) -> bool:
        """Whether this node has a replica of the route's range, or knows no other who has."""
        return self._ranges.group_of(route) not in self._ranges.elsewhere

    def group_of(self, route: bytes) -> int:
        """The range of a route, as far as this node knows; below zero: it knows none."""
        return self._ranges.group_of(route)

    def give_up(self, row_key: bytes, route: bytes) -> None:
        """See that an open stream that nothing will name is collected, some time."""
        self._collector.add(row_key, route)

    def _sealer(self, ref: StreamRef) -> StreamSealer:
        try:
            key = self._epochs.key(ref.epoch)
        except EpochKeyMissing as error:
            # A node was removed, and a new epoch began: its key comes with range 0, any moment.
            raise Unavailable(f"{error}; try again") from None
        return StreamSealer(key, ref.salt, ref.stream)

    def read_small_now(self, ref: StreamRef) -> bytes | None:
        """The whole body of at most one frame, verified, if it needs no disk I/O; else None.
        Raises BodyMissing, BodyDamaged, Unavailable."""
        try:
            return _bodies.read_small_now(self.store, self._sealer(ref), ref)
        except (BodyMissing, BodyDamaged):
            if self.replication is None:
                raise
            return None  # `read_stream` asks the others

    def read_stream(
        self,
        ref: StreamRef,
        offset: int = 0,
        length: int | None = None,
        owner: tuple[int, bytes] | None = None,
    ) -> AsyncIterator[Buffer]:
        """Verified plaintext [offset, offset + length) in pieces of at most 256 KiB; by default to
        the end. Nothing is yielded before it was verified. Close the iterator if it is not read to
        its end. `owner`: the (bucket id, key) whose body it is, so that a node without its range
        knows whom to ask. Raises BodyMissing, BodyDamaged, Unavailable."""
        size = ref.size_bytes if length is None else length
        if self._ranges.elsewhere and (group := self._away(owner)) != NOWHERE:
            return self._elsewhere.read(group, self._sealer(ref), ref, offset, size)
        return _bodies.read_stream(
            self.store,
            self.jobs,
            self._sealer(ref),
            ref,
            offset=offset,
            length=size,
            repair=self.replication.repair if self.replication is not None else None,
            crowd=self._crowd,
        )

    def _away(self, owner: tuple[int, bytes] | None) -> int:
        """The range of a (bucket id, key), if it is elsewhere; else NOWHERE."""
        if owner is None:
            return NOWHERE
        group = self._ranges.group_of(self.machine.stream_route(*owner))
        return group if group in self._ranges.elsewhere else NOWHERE

    def send_stream(
        self, ref: StreamRef, offset: int, length: int, owner: tuple[int, bytes] | None = None
    ) -> AsyncIterator[Buffer | _direct.DirectPiece]:
        """As `read_stream`, for a body that goes to a plain socket."""
        if self._ranges.elsewhere and (group := self._away(owner)) != NOWHERE:
            return self._elsewhere.read(group, self._sealer(ref), ref, offset, length)
        return _direct.send_stream(
            self.store,
            self.jobs,
            self._sealer(ref),
            ref,
            offset=offset,
            length=length,
            repair=self.replication.repair if self.replication is not None else None,
            crowd=self._crowd,
        )

    async def hold(
        self, bodies: Sequence[bytes], owner: tuple[int, bytes] | None = None
    ) -> Callable[[], None]:
        """What packed references name stays readable, on this node or at a holder of its `owner`'s
        range, until the returned function is called, once, though it is released meanwhile.
        Raises Unavailable."""
        streams = [StreamRef.unpack(body).stream for body in bodies if body]
        if self._ranges.elsewhere and (group := self._away(owner)) != NOWHERE:
            return await self._elsewhere.hold(group, streams)
        for stream in streams:
            self.store.pin(stream)

        def let_go() -> None:
            for stream in streams:
                self.store.unpin(stream)

        return let_go

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
            "groups": [replica.status() for replica in self._replicas.values()],
        }


def node_id(keys: NodeKeys) -> int:
    """The node's number in its groups: 63 bits of its identity, never 0."""
    return number_of(keys.identity)


def number_of(identity: bytes) -> int:
    """`node_id` by the node's public key."""
    return int.from_bytes(identity[:8], "big") >> 1 or 1
