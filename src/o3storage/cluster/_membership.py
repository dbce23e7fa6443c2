"""This node's place in the cluster: who the other nodes are, whom it lets in, and what it does so
that every range has its replicas where they belong.

What is true stands in range 0 (`_node_records`); this object follows the rows as they are applied
here and keeps what must be known at once: who may connect, where the others are, which epoch keys
there are. The file `members` (`_members_file`) serves until range 0 is here.

Each range's leader asks `_placement` for its own range (`_placing`). The leader of range 0 ends
the removal of nodes, with a new epoch, and raises the version that the cluster speaks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from o3storage.cluster import _facts, _join, _kinds, _members_file, _node_records, _spreading
from o3storage.cluster._admission import Gate
from o3storage.cluster._errors import (
    ClusterError,
    MembershipRefused,
    SecretRefused,
    StorageFull,
    Unavailable,
)
from o3storage.cluster._introductions import Introductions
from o3storage.cluster._members_file import Members, Stage
from o3storage.cluster._node import number_of
from o3storage.cluster._node_records import (
    FIRST_VERSION,
    MAX_NODE_ROWS,
    SHRINK,
    Announcement,
    NodeRecord,
    NodeState,
)
from o3storage.cluster._peer_types import PeerError
from o3storage.cluster._placement import REPLICAS, SYSTEM_REPLICAS
from o3storage.cluster._placing import Placing
from o3storage.cluster._ranges import SYSTEM_GROUP
from o3storage.cluster._secret import ClusterSecret
from o3storage.cluster._whereabouts import Whereabouts
from o3storage.cluster._wire import HIGHEST_VERSION, LOWEST_VERSION
from o3storage.crypto import EpochKeys, NodeKeys, wrap_epoch_key
from o3storage.raft.core import NOBODY
from o3storage.runtime import Logger
from o3storage.runtime.clock import Clock, Entropy
from o3storage.runtime.disk import Disk
from o3storage.runtime.network import Address, Network
from o3storage.storage import Store

if TYPE_CHECKING:
    from o3storage.cluster._node import Node
    from o3storage.cluster._peers import Peers
    from o3storage.cluster._range_keeper import RangeKeeper
    from o3storage.cluster._replica import Replica

FOLLOW_S = 0.2
"""Rows of range 0 that were applied are looked at so often."""
DRIVE_EVERY = 3
"""Members of the ranges led here are looked at every so many times."""
PATIENCE = 10
"""Looks at range 0 before it is said that its records are waited for."""
BACKOFF_S = 2.0
"""After a proposal of the membership's own that failed."""
MAX_EPOCH_ROWS = 100_000
"""Epochs times nodes: far more than that is a fault."""


_log = Logger("membership")


def _ignore(text: str) -> None:
    """Until somebody listens."""


@dataclass(slots=True)
class ClusterOptions:
    """How a node meets others. `listen`: for peers; its port may be 0. `peers`: nodes to join, by
    address or name; a node with any never makes a cluster of its own. `secret`: who knows it may
    join; None: nobody may. `disk`: where the file `members` lies. `say`: tells the operator what a
    node waits for."""

    disk: Disk
    listen: Address
    must_listen: bool = True
    """Whether a port that is taken keeps the node from starting, though it has no peers yet."""
    peers: tuple[Address, ...] = ()
    secret: ClusterSecret | None = None
    reached_at: tuple[str, ...] = ()
    """Hosts under which others reach this node, if not that of `listen`."""
    host: str = ""
    url: str = ""
    replicas: int = REPLICAS
    system_replicas: int = SYSTEM_REPLICAS
    everywhere: bool = False
    """Every node holds a replica of every range, those beyond `replicas` as learners; off: no range
    has more than `replicas`, and a node that holds none has others asked (`_elsewhere`)."""
    say: Callable[[str], None] = field(default=_ignore)
    joinable: bool = True
    """Off while this node is not ready to let others in."""


class Membership:
    """`prepare`, then `join` if need be; `attach` when the replicas are here, `start`, `close`."""

    def __init__(
        self,
        keys: NodeKeys,
        *,
        node: int,
        options: ClusterOptions,
        network: Network,
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        self.node = node
        self.options = options
        self.cluster_id = b""
        self.version = FIRST_VERSION
        self.records: dict[int, NodeRecord] = {}
        """All that range 0 has here, with those that were removed."""
        self.shared: dict[str, bytes] = {}
        """Values that all nodes share, as applied here."""
        self.on_shared: Callable[[str], None] = _ignore
        """A shared value has changed."""
        self.facts: Callable[[], dict[str, Any]] = dict
        """What this node says of itself to others' `status`."""
        self.bound: Address | None = None
        self.gate = Gate(self)
        self._file = _members_file.MembersFile(options.disk)
        self.introductions = Introductions(self)
        self.whereabouts = Whereabouts(self, network)
        self.peers: Peers
        self.keys = keys
        self._network = network
        self._clock = clock
        self._entropy = entropy
        self._epochs = EpochKeys()
        self.members: Members | None = None
        self.known_hosts: dict[str, None] = {}
        """Where members of this cluster were last known to be."""
        self._store: Store
        self.ranges: RangeKeeper
        self._spreading = _spreading.Spreading(self)
        self.replicas_here: dict[int, Replica] = {}
        """The node's own, by group; empty until `attach`."""
        self._tasks: list[asyncio.Task[None]] = []
        self._seen_applied = -1
        self._placing = Placing(self)
        self._busy_until_s = 0.0
        self._waiting_for: str = ""
        self._removed_note = ""

    # --- before the replicas

    async def prepare(self, peers: Peers, *, holds_data: bool) -> bool:
        """Read what is remembered and listen. True: this node must `join` before anything else.
        Raises Unavailable (also when the port is taken), SecretRefused, DiskError."""
        self.peers = peers
        options = self.options
        peers.serve(_kinds.JOIN, self._serve_join, guests=True)
        peers.serve(_kinds.FACTS, self._serve_facts)
        peers.serve(_kinds.MEMBERS, self.introductions.serve)
        members = self.members = await _members_file.load(options.disk)
        if members is not None and members.stage is Stage.HOLDING and not holds_data:
            raise Unavailable(
                "this node has lost its volumes and must not come back under its old name: remove "
                "it from the cluster (o3storage node replace), and start with an empty data "
                "directory to join anew"
            )
        if members is not None and members.stage is not Stage.ASKING:
            self.cluster_id = members.cluster_id
        try:
            self.bound = await peers.listen(options.listen)
        except OSError as error:
            if options.must_listen or options.peers or (members and members.nodes):
                raise Unavailable(
                    f"cannot listen for other nodes on {_join.show(options.listen)} "
                    f"({error.strerror or error}); choose another --peer-port"
                ) from None
            _log.warning(
                "peers.not_listening",
                address=_join.show(options.listen),
                reason=str(error),
                hint="no node can join until this one is started with another --peer-port",
            )
        must_join = not holds_data and not self.cluster_id and bool(options.peers)
        if must_join and options.secret is None:
            raise SecretRefused(
                "to join a cluster its secret is needed: set O3_CLUSTER_SECRET (or "
                "O3_CLUSTER_SECRET_FILE), or give --join TOKEN, which the first node prints"
            )
        if self.cluster_id:
            self.show_peers()
        return must_join

    async def join(self) -> None:
        """Ask until this node is a member. Raises MembershipRefused, DiskError."""
        options = self.options
        if self.members is None:
            # Kept before anybody is asked: see `_members_file.Stage`.
            self.members = Members(Stage.ASKING, self._clock.wall_ns())
            await self._file.save(self.members)
        record = NodeRecord(
            self.node,
            self.keys.identity,
            self.keys.exchange,
            self.members.joined_ns,
            announced=self.announcement(),
        )

        def say(reason: str) -> None:
            self._waiting_for = reason
            options.say(f"waiting to join a cluster: {reason}")

        cluster_id, nodes = await _join.join(
            self.peers,
            self._network,
            options.peers,
            record,
            own=self.own_addresses(),
            entropy=self._entropy,
            say=say,
        )
        self._waiting_for = ""
        nodes.pop(self.node, None)
        self.cluster_id = cluster_id
        self.members = Members(Stage.JOINED, record.joined_ns, cluster_id, nodes)
        await self._file.save(self.members)
        self.show_peers()
        options.say(f"joined cluster {cluster_id.hex()[:8]}; receiving its records")

    async def check_cluster(self, store: Store) -> None:
        """A node with data that was told of peers: are they of its own cluster?
        Raises WrongCluster."""
        own_id = await store.get(_node_records.CLUSTER_ID_KEY) or self.cluster_id
        options = self.options
        if not options.peers or not own_id:
            return
        self.cluster_id = own_id
        await self._read_records(store)
        await self.whereabouts.check_peers(own_id, self._all_known_hosts())

    # --- with the replicas

    def attach(self, node: Node) -> None:
        """The replicas are open; from now on what range 0 says here is followed."""
        self._store = node.store
        self._epochs = node._epochs
        self.replicas_here = node._replicas
        self.ranges = node.ranges
        self._placing.awake = node.replication.awake if node.replication is not None else None

    async def received(self) -> None:
        """Return when range 0 is here, with this node in it."""
        waiting = _join.Waiting(self.options.say)
        await self.follow()
        for _ in range(PATIENCE):
            if self.node in self.records:
                return
            await asyncio.sleep(FOLLOW_S)
            await self.follow()
        while self.node not in self.records:
            up = self.introductions.reached()
            problems = "; ".join(self.peers.problems.values())
            waiting.because(
                "waiting for the cluster's records"
                + ("" if up else f"; no other node can be reached: {problems or 'no answer'}")
            )
            await self.introductions.tend()
            await asyncio.sleep(FOLLOW_S)
            await self.follow()

    async def _propose(self, data: bytes) -> Any:
        """Commit a command in range 0; its result. Raises its error, Unavailable, StorageFull."""
        outcome = await self.replicas_here[SYSTEM_GROUP].submit(data)
        if outcome.error is not None:
            raise outcome.error
        return outcome.result

    async def follow(self) -> None:
        """Take over what was applied to range 0 since the last call. Raises StoreError."""
        replica = self.replicas_here.get(SYSTEM_GROUP)
        applied = replica.applied if replica is not None else 0
        if applied == self._seen_applied:
            return
        if replica is not None and replica.rows_lost and self.records:
            return  # what was known before is nearer to what is right
        self._seen_applied = applied
        try:
            await self._read_records(self._store)
            await self._remember()
        except BaseException:
            self._seen_applied = -1  # a damaged block is rebuilt; then they are read again
            raise

    async def _read_records(self, store: Store) -> None:
        cluster_id = await store.get(_node_records.CLUSTER_ID_KEY)
        if cluster_id:
            self.cluster_id = cluster_id
        version = await store.get(_node_records.VERSION_KEY)
        self.version = int.from_bytes(version, "big") if version else FIRST_VERSION
        low, high = _node_records.NODES_LOW, _node_records.NODES_HIGH
        rows = await store.scan(low, high, MAX_NODE_ROWS + 1)
        records: dict[int, NodeRecord] = {}
        for key, value in rows:
            node = _node_records.node_of_key(key)
            records[node] = NodeRecord.decode(node, value)
        self.records = records
        prefix, end = _node_records.epoch_prefix(), _node_records.EPOCHS_HIGH
        for key, value in await store.scan(prefix, end, MAX_EPOCH_ROWS):
            epoch, node = _node_records.split_epoch_key(key)
            if node == self.node and epoch not in self._epochs:
                self._epochs.unwrap(epoch, value, self.keys.exchange_secret)
        head = _node_records.shared_key("")
        for key, value in await store.scan(head, b"\xfe\x07", MAX_NODE_ROWS):
            name = key[len(head) :].decode()
            if self.shared.get(name) != value:
                self.shared[name] = value
                self.on_shared(name)

    async def _remember(self) -> None:
        """The file follows the rows, so that a restart finds the others without range 0. Who was
        removed has a row that says so: a node without one was added later than these rows know (a
        disk that lost some is filled again by the others, which must be found for it)."""
        if self.node not in self.records:
            return
        before = self.members
        nodes = {
            node: known
            for node, known in (before.nodes if before is not None else {}).items()
            if node not in self.records
        }
        nodes |= {
            record.node: (record.identity, record.announced)
            for record in self.live()
            if record.node != self.node
        }
        joined_ns = before.joined_ns if before else self.records[self.node].joined_ns
        members = Members(Stage.HOLDING, joined_ns, self.cluster_id, nodes)
        if self.introductions.drop_known() or members != before:
            self.members = members
            self.show_peers()
            await self._file.save(members)

    def live(self) -> list[NodeRecord]:
        """All nodes but those that were removed, by id."""
        return [
            self.records[node]
            for node in sorted(self.records)
            if self.records[node].state is not NodeState.REMOVED
        ]

    def show_peers(self) -> None:
        """Whom there are to be links to."""
        members = self.members
        if members is None:
            return
        self.known_hosts = self._all_known_hosts()
        known = self.introductions.heard | members.nodes
        self.peers.set_peers(
            {
                node: (identity, announced.addresses + self.whereabouts.moved_to(node, announced))
                for node, (identity, announced) in known.items()
            }
        )

    def _all_known_hosts(self) -> dict[str, None]:
        known: dict[str, None] = {}
        if self.members is not None:
            for _identity, announced in self.members.nodes.values():
                known |= {address.host: None for address in announced.addresses}
        for record in self.live():
            if record.node != self.node:
                known |= {address.host: None for address in record.announced.addresses}
        return known

    # --- others ask

    async def _serve_join(self, node: int, payload: memoryview) -> bytes:
        if not self.cluster_id or SYSTEM_GROUP not in self.replicas_here:
            raise PeerError(_join.NOT_YET, "it waits to join a cluster itself")
        if not self.options.joinable:
            raise PeerError(_join.NOT_YET, "it is starting")
        try:
            record = _join.decode_request(bytes(payload))
        except ValueError as error:
            raise PeerError(_join.NEVER, f"its request cannot be read: {error}") from None
        if record.node != node or number_of(record.identity) != node:
            raise PeerError(_join.NEVER, "it asks for another node than itself")
        await self.follow()
        if self.node not in self.records:
            raise PeerError(_join.NOT_YET, "it has not received the cluster's records yet")
        epochs = [
            (epoch, wrap_epoch_key(self._epochs.key(epoch), epoch, record.exchange, self._entropy))
            for epoch in self._epochs.all()
        ]
        try:
            await self._propose(_node_records.encode_add(record, epochs))
        except MembershipRefused as error:
            again = "try again" in str(error)
            raise PeerError(_join.NOT_YET if again else _join.NEVER, str(error)) from None
        except (Unavailable, StorageFull) as error:
            raise PeerError(_join.NOT_YET, str(error)) from None
        await self.follow()
        _log.info("node.joined", node=f"{node:016x}")
        return _join.encode_welcome(self.cluster_id, self.live())

    async def _serve_facts(self, _node: int, _payload: memoryview) -> bytes:
        return _facts.encode(self)

    # --- what this node does by itself

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._run(), name="membership"),
            loop.create_task(self.whereabouts.keep_looking(), name="looking for nodes"),
        ]

    async def close(self) -> None:
        """Idempotent. The peers stay open."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        count = 0
        while True:
            await asyncio.sleep(FOLLOW_S)
            count += 1
            try:
                await self.follow()
                if count % DRIVE_EVERY == 0:
                    await self.introductions.tend()
                    self._placing.step()
                    if loop.time() >= self._busy_until_s:
                        await self._tend()
            except (ClusterError, OSError) as error:
                self._busy_until_s = loop.time() + BACKOFF_S
                _log.debug("membership.later", reason=str(error))
            except Exception as error:
                self._busy_until_s = loop.time() + BACKOFF_S
                _log.error("membership.failed", error=error)

    async def _tend(self) -> None:
        """Proposals that are due; each is checked again when it is applied."""
        own = self.records.get(self.node)
        if own is None:
            return
        if own.state is not NodeState.REMOVED and own.announced != self.announcement():
            await self._propose(_node_records.encode_announce(self.node, self.announcement()))
            await self.follow()
        system = self.replicas_here.get(SYSTEM_GROUP)
        if system is None or system.core.leader != self.node:
            return
        live = self.live()
        common = min(record.announced.highest for record in live)
        if common > self.version:
            await self._propose(_node_records.encode_raise(common))
        for record in live:
            if record.state is NodeState.LEAVING and not _spreading.is_needed(self, record.node):
                await self._remove(record.node)
                return
        await self._spreading.begin(live)

    async def _remove(self, node: int) -> None:
        epoch = self._epochs.newest + 1
        key = EpochKeys.generate(self._entropy)
        wrapped = [
            (record.node, wrap_epoch_key(key, epoch, record.exchange, self._entropy))
            for record in self.live()
            if record.node != node
        ]
        await self._propose(_node_records.encode_remove(node, epoch, wrapped))
        _log.info("node.removed", node=f"{node:016x}", epoch=epoch)
        await self.follow()

    # --- the operator's commands

    async def drain(self, node: int, *, shrink: bool) -> None:
        """No range is to keep a voter on the node. Raises MembershipRefused, Unavailable."""
        await self._set_state(node, NodeState.DRAINING, shrink=shrink)

    async def remove(self, node: int, *, shrink: bool, replace: bool = False) -> None:
        """The node is to leave, for good. `replace`: also when too few remain; it then keeps its
        replicas until a new node has them. Raises MembershipRefused, Unavailable."""
        await self._set_state(node, NodeState.LEAVING, shrink=shrink, replace=replace)

    async def stay(self, node: int) -> None:
        """Take back `drain`, or `remove` before it is done. Raises MembershipRefused,
        Unavailable."""
        await self._propose(_node_records.encode_state(node, NodeState.MEMBER))
        await self.follow()

    async def _set_state(
        self, node: int, state: NodeState, *, shrink: bool, replace: bool = False
    ) -> None:
        least = 0 if shrink or replace else self.options.replicas
        flags = SHRINK if shrink else 0
        await self._propose(_node_records.encode_state(node, state, flags=flags, least=least))
        await self.follow()

    async def share(self, name: str, value: bytes) -> None:
        """Replace a value that all nodes share. Raises Unavailable, StorageFull."""
        await self._propose(_node_records.encode_share(name, value))
        await self.follow()

    # --- facts

    def announcement(self) -> Announcement:
        """What this node says of itself."""
        options = self.options
        return Announcement(
            LOWEST_VERSION, HIGHEST_VERSION, options.host, options.url, self.own_addresses()
        )

    def own_addresses(self) -> tuple[Address, ...]:
        bound = self.bound or self.options.listen
        hosts = self.options.reached_at or (bound.host,)
        return tuple(Address(host, bound.port) for host in hosts)

    def token(self) -> str | None:
        """What `--join` takes on another machine, or None when nobody may join."""
        secret = self.options.secret
        return secret.token(self.own_addresses()) if secret and self.bound else None

    async def gather_facts(self) -> dict[int, dict[str, Any]]:
        """What every node that can be reached says of itself, by id."""
        return await _facts.gather(self)

    def status(self) -> dict[str, Any]:
        """Plain data for `status` and `node list`."""
        return _facts.status(self)

    def leads(self, group: int = SYSTEM_GROUP) -> bool:
        """Whether this node leads the range, as far as it knows."""
        replica = self.replicas_here.get(group)
        return replica is not None and replica.leads

    def why_no_writes(self) -> str | None:
        """What of the cluster is in the way of writes here, or None."""
        for group, replica in self.replicas_here.items():
            if group != SYSTEM_GROUP and not self.ranges.is_here(group):
                continue
            if replica.core.leader == NOBODY and replica.team is not None:
                return replica.team.why()
        return None

    def replicas(self) -> int:
        """Of all ranges, on all nodes, as far as is known here."""
        found = {g: r.core.configuration for g, r in self.replicas_here.items()}
        if not found:
            return 0
        for group in self.ranges.elsewhere():
            if group in self.ranges.holders:
                found[group] = self.ranges.holders[group].configuration
        return sum(len(configuration.members()) for configuration in found.values())

    def up(self, node: int) -> bool:
        return node == self.node or self.peers.is_up(node)
