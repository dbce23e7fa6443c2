"""A group of cores over plain models of disk and network, with the invariants of Raft (figure 3 of
the paper) checked after every step. Tests only."""

from __future__ import annotations

import json
import random
from collections import deque
from dataclasses import dataclass, field

from o3storage.raft.core import (
    COMMAND,
    CONFIGURATION,
    Accepted,
    Append,
    AppendResponse,
    Apply,
    ChangeConfiguration,
    Compact,
    Configuration,
    Core,
    DataGap,
    DropMissing,
    Entry,
    Fetch,
    Fetched,
    HardState,
    Log,
    Message,
    Options,
    Persist,
    Persisted,
    PieceStored,
    Propose,
    ReadIndex,
    ReadReady,
    ReadRefused,
    Refused,
    Restore,
    Restored,
    Role,
    RoleChanged,
    Send,
    SnapshotData,
    SnapshotNeeded,
    Start,
    StorePiece,
    Tick,
    VoteResponse,
)


class Violation(AssertionError):
    """An invariant of Raft does not hold."""


@dataclass
class Durable:
    """What a node's disk holds. `entries` above `floor`; a hole has no entry but is counted."""

    hard_state: HardState = field(default_factory=HardState)
    floor: int = 0
    floor_term: int = 0
    configuration: Configuration = field(default_factory=Configuration)
    state: dict[int, bytes] = field(default_factory=dict)
    """The state machine's state at `floor`: index -> command."""
    entries: dict[int, Entry] = field(default_factory=dict)
    last: int = 0
    last_term: int = 0
    uncertain: bool = False

    def write(self, persist: Persist, cluster: Cluster) -> None:
        if cluster.check and persist.entries:
            first = persist.entries[0].index - 1
            held = self.entries.get(first)
            before = held.term if held else self.floor_term if first == self.floor else -1
            cluster.remember_entries(before, persist.entries)
        if persist.hard_state is not None:
            self.hard_state = persist.hard_state
        if persist.entries:
            first = persist.entries[0].index
            for index in [i for i in self.entries if i >= first]:
                del self.entries[index]
            for entry in persist.entries:
                self.entries[entry.index] = entry
            self.last, self.last_term = persist.entries[-1].index, persist.entries[-1].term
        for entry in persist.fills:
            self.entries[entry.index] = entry


class Node:
    """One core, its disk, and what is under way between them."""

    def __init__(self, cluster: Cluster, node: int, durable: Durable) -> None:
        self.cluster = cluster
        self.id = node
        self.durable = durable
        self.up = False
        self.core: Core | None = None
        self.writes: deque[Persist] = deque()
        self.held: list[Send] = []
        self.entries: dict[int, Entry] = {}
        self.state: dict[int, bytes] = {}
        self.applied = 0
        self.fetches: deque[Fetch | SnapshotNeeded] = deque()
        self.pieces: list[bytes] = []
        self.snapshots: dict[int, tuple[int, int, Configuration, list[bytes]]] = {}
        self.reads: dict[int, int] = {}
        self.refused_reads: list[int] = []
        self.ready_reads: list[tuple[int, int]] = []
        self.roles: list[RoleChanged] = []
        self.accepted: list[Accepted] = []
        self.refused: list[Refused] = []
        self.led: tuple[int, int] | None = None
        self.restore: Restore | None = None
        self.debt = 0
        """Frames that it owes since it was made; a random run pays them once, for good."""

    def start(self) -> None:
        d = self.durable
        runs: list[tuple[int, int]] = []
        holes: list[tuple[int, int]] = []
        index = d.floor + 1
        while index <= d.last:
            entry = d.entries.get(index)
            if entry is None:
                high = index
                while high < d.last and high + 1 not in d.entries:
                    high += 1
                holes.append((index, high))
                term = runs[-1][1] if runs else (d.floor_term or 1)
                if high == d.last:
                    term = max(term, d.last_term)
                if not runs or runs[-1][1] != term:
                    runs.append((index, term))
                index = high + 1
                continue
            if not runs or runs[-1][1] != entry.term:
                runs.append((index, entry.term))
            index += 1
        later = [
            (i, Configuration.decode(e.data))
            for i, e in sorted(d.entries.items())
            if e.kind == CONFIGURATION
        ]
        self.entries = dict(d.entries)
        self.state = dict(d.state)
        self.applied = d.floor
        self.up = True
        self.writes.clear()
        self.held.clear()
        self.fetches.clear()
        self.restore = None
        self.core = Core(
            self.id,
            log=Log(d.floor, d.floor_term, runs, d.last, holes),
            hard_state=HardState(d.hard_state.term, d.hard_state.vote, d.hard_state.commit),
            applied=d.floor,
            configuration=d.configuration,
            configuration_index=d.floor,
            later_configurations=later,
            uncertain=d.uncertain,
            options=self.cluster.options,
        )
        self.cluster.step(self, Start())
        if self.debt:
            self.cluster.step(self, DataGap(0, self.debt))

    def crash(self, rng: random.Random | None = None) -> None:
        """Unpersisted writes are lost, but a prefix of them may have reached the disk."""
        self.up = False
        if rng is not None:
            for _ in range(rng.randint(0, len(self.writes))):
                write = self.writes.popleft()
                if isinstance(write, Persist):
                    self.durable.write(write, self.cluster)
        self.core = None
        self.led = None
        self.reads.clear()


class Cluster:
    """Steps nodes one input at a time; `network` holds what was sent and not yet delivered."""

    def __init__(
        self, voters: int = 3, *, options: Options | None = None, extra: int = 0, check: bool = True
    ) -> None:
        self.options = options or Options()
        self.network: list[Message] = []
        self.check = check
        self.log: list[str] = []
        # what the invariants remember
        self.leaders: dict[int, int] = {}
        self.known: dict[tuple[int, int], tuple[bytes, int]] = {}
        self.committed: dict[int, tuple[int, bytes]] = {}
        self.commit_terms: dict[int, int] = {}
        self.max_committed = 0
        self.steps = 0
        self.tokens = 0
        first = Configuration(tuple(range(1, voters + 1)))
        self.nodes: dict[int, Node] = {}
        for node in range(1, voters + extra + 1):
            durable = Durable(configuration=first if node <= voters else Configuration())
            self.nodes[node] = Node(self, node, durable)

    def start(self) -> Cluster:
        for node in self.nodes.values():
            node.start()
        return self

    # --- running

    def step(self, node: Node, event: object) -> list[object]:
        assert node.core is not None
        before_commit = node.core.commit
        outputs = node.core.step(event)  # type: ignore[arg-type]
        self.steps += 1
        for output in outputs:
            self.carry_out(node, output)
        if self.check:
            self.check_invariants(node, before_commit)
        return list(outputs)

    def carry_out(self, node: Node, output: object) -> None:
        if isinstance(output, Persist):
            node.writes.append(output)
            if output.entries:
                first = output.entries[0].index
                for index in [i for i in node.entries if i >= first]:
                    del node.entries[index]
            for entry in [*output.entries, *output.fills]:
                node.entries[entry.index] = entry
        elif isinstance(output, Send):
            if output.after_ticket:
                node.held.append(output)
            else:
                self.leave(node, output.message)
        elif isinstance(output, Apply):
            self.apply(node, output)
        elif isinstance(output, Fetch):
            node.fetches.append(output)
        elif isinstance(output, ReadReady):
            for token in output.tokens:
                if token in node.reads:
                    asked = node.reads.pop(token)
                    node.ready_reads.append((token, output.index))
                    if output.index < asked:
                        raise Violation(f"stale read index {output.index} < {asked}")
        elif isinstance(output, ReadRefused):
            node.refused_reads.extend(output.tokens)
            for token in output.tokens:
                node.reads.pop(token, None)
        elif isinstance(output, RoleChanged):
            node.roles.append(output)
        elif isinstance(output, Accepted):
            node.accepted.append(output)
        elif isinstance(output, Refused):
            node.refused.append(output)
        elif isinstance(output, SnapshotNeeded):
            node.fetches.append(output)
        elif isinstance(output, StorePiece):
            if output.number == 0:
                node.pieces = []
            node.pieces.append(output.data)
            self.later(node, PieceStored(output.session, output.number))
        elif isinstance(output, Restore):
            node.restore = output
            self.later(node, Restored(output.index))
        elif isinstance(output, DropMissing):
            for index in [i for i in node.entries if i >= output.low]:
                del node.entries[index]
            node.durable.last = output.low - 1
            below = node.durable.entries.get(output.low - 1)
            node.durable.last_term = below.term if below else node.durable.floor_term
            for index in [i for i in node.durable.entries if i >= output.low]:
                del node.durable.entries[index]
        else:
            raise TypeError(output)

    def later(self, node: Node, event: object) -> None:
        """Storing a piece takes a while; it completes with the node's writes."""
        node.writes.append(event)  # type: ignore[arg-type]

    def apply(self, node: Node, output: Apply) -> None:
        if output.low != node.applied + 1:
            raise Violation(f"node {node.id} applies {output.low} after {node.applied}")
        for index in range(output.low, output.high + 1):
            entry = node.entries[index]
            durable = node.durable.entries.get(index)
            if durable is None or durable.term != entry.term:
                raise Violation(f"node {node.id} applies entry {index}, which is not durable")
            self.remember_commit(index, entry)
            if entry.kind == COMMAND:
                node.state[index] = entry.data
        node.applied = output.high

    def leave(self, node: Node, message: Message) -> None:
        """A message leaves: what it says must be durable by now."""
        durable = node.durable
        if self.check and isinstance(message, VoteResponse) and message.granted and not message.pre:
            state = durable.hard_state
            # A later term makes this vote worthless, but then the term must be durable too.
            if state.term < message.term or (
                state.term == message.term and state.vote != message.to
            ):
                raise Violation(f"node {node.id} sends a vote that is not durable")
        if (
            self.check
            and isinstance(message, AppendResponse)
            and message.match > max(durable.last, durable.floor)
        ):
            raise Violation(f"node {node.id} acknowledges {message.match}, not durable")
        if self.check and isinstance(message, Append):
            self.remember_entries(message.prev_term, message.entries)
        if message.to in self.nodes:
            self.network.append(message)

    def serve_snapshot(self, node: Node, output: SnapshotNeeded) -> None:
        assert node.core is not None
        if output.number == 0 or output.peer not in node.snapshots:
            term = node.core.log.term(node.applied)
            configuration = node.core.configurations[0][1]
            for index, later in node.core.configurations:
                if index <= node.applied:
                    configuration = later
            data = json.dumps({str(i): d.decode() for i, d in node.state.items()}).encode()
            size = max(1, len(data) // 3 + 1)
            pieces = [data[at : at + size] for at in range(0, len(data), size)]
            node.snapshots[output.peer] = (node.applied, term, configuration, pieces)
        index, term, configuration, pieces = node.snapshots[output.peer]
        if output.number < len(pieces):
            last = output.number == len(pieces) - 1
            event = SnapshotData(
                output.peer, index, term, configuration, output.number, pieces[output.number], last
            )
            self.step(node, event)

    # --- what a test does

    def deliver(self, number: int = 0) -> None:
        message = self.network.pop(number)
        node = self.nodes[message.to]
        if node.up:
            self.step(node, message)

    def write(self, node: Node) -> None:
        """The oldest write under way becomes durable."""
        item = node.writes.popleft()
        if isinstance(item, Persist):
            node.durable.write(item, self)
            for held in [h for h in node.held if h.after_ticket <= item.ticket]:
                node.held.remove(held)
                self.leave(node, held.message)
            self.step(node, Persisted(item.ticket))
            return
        if isinstance(item, Restored):
            assert node.restore is not None and node.core is not None
            restore, d = node.restore, node.durable
            d.floor, d.floor_term = restore.index, restore.index_term
            if restore.keep:
                d.entries = {i: e for i, e in d.entries.items() if i > restore.index}
                node.entries = {i: e for i, e in node.entries.items() if i > restore.index}
            else:
                d.last, d.last_term = restore.index, restore.index_term
                d.entries = {}
                node.entries = {}
            d.hard_state = restore.hard_state
            d.configuration = restore.configuration
            d.uncertain = d.uncertain and restore.configuration.votes(node.id)
            d.state = {int(i): v.encode() for i, v in json.loads(b"".join(node.pieces)).items()}
            node.state = dict(d.state)
            node.applied = restore.index
        self.step(node, item)

    def fetch(self, node: Node) -> None:
        """Answer a Fetch from the log as it is now (it may have been cut since)."""
        wanted = node.fetches.popleft()
        if isinstance(wanted, SnapshotNeeded):
            self.serve_snapshot(node, wanted)
            return
        entries: list[Entry] = []
        size = 0
        for index in range(wanted.low, wanted.high + 1):
            entry = node.entries.get(index)
            if entry is None or (entries and size + len(entry.data) > wanted.max_bytes):
                break
            entries.append(entry)
            size += len(entry.data) + 64
        self.step(node, Fetched(wanted.peer, entries, wanted.hole))

    def flush(self, node: Node) -> None:
        while node.up and (node.writes or node.fetches):
            if node.writes:
                self.write(node)
            else:
                self.fetch(node)

    def settle(self, limit: int = 10_000) -> None:
        """Everything under way completes, in order, without loss."""
        for _ in range(limit):
            if self.network:
                self.deliver()
            busy = [n for n in self.nodes.values() if n.up and (n.writes or n.fetches)]
            for node in busy:
                self.flush(node)
            if not busy and not self.network:
                return
        raise AssertionError("does not settle")

    def tick(self, node: int, times: int = 1, sample: float = 0.5) -> None:
        for _ in range(times):
            if self.nodes[node].up:
                self.step(self.nodes[node], Tick(sample))

    def tick_all(self, times: int = 1, samples: dict[int, float] | None = None) -> None:
        """Time passes for all, and messages flow between the ticks."""
        for _ in range(times):
            for node in self.nodes:
                self.tick(node, 1, (samples or {}).get(node, 0.1 * node % 1))
            self.settle()

    def elect(self, node: int) -> Node:
        """Make `node` the leader by letting its timer run out first."""
        found = self.nodes[node]
        assert found.core is not None
        for _ in range(3):
            for other in self.nodes.values():
                if other.core is not None:
                    other.core.election_elapsed = self.options.election_ticks
            found.core.election_elapsed = found.core.timeout
            self.tick(node)
            self.settle()
            if found.core.role is Role.LEADER:
                return found
        raise AssertionError(f"node {node} was not elected")

    def leader(self) -> Node | None:
        leading = [
            n for n in self.nodes.values() if n.core is not None and n.core.role is Role.LEADER
        ]
        return max(leading, key=lambda n: n.core.term if n.core else 0, default=None)

    def propose(self, node: int, *payloads: bytes) -> list[object]:
        self.tokens += 1
        return self.step(self.nodes[node], Propose(self.tokens, list(payloads)))

    def read(self, node: int) -> int:
        self.tokens += 1
        self.nodes[node].reads[self.tokens] = self.max_committed
        self.step(self.nodes[node], ReadIndex(self.tokens))
        return self.tokens

    def compact(self, node: int) -> None:
        """Flush the state machine and drop the log below."""
        found = self.nodes[node]
        core, d = found.core, found.durable
        assert core is not None
        index = min(found.applied, d.last)
        if index <= d.floor:
            return
        for number in range(d.floor + 1, index + 1):
            entry = d.entries.pop(number)
            if entry.kind == COMMAND:
                d.state[number] = entry.data
            if entry.kind == CONFIGURATION:
                d.configuration = Configuration.decode(entry.data)
            d.floor_term = entry.term
        d.floor = index
        for number in [i for i in found.entries if i <= index]:
            del found.entries[number]
        self.step(found, Compact(index))

    def isolate(self, *nodes: int) -> None:
        """Drop what is under way between these and the others."""
        self.network = [m for m in self.network if (m.to in nodes) == (m.sender in nodes)]

    # --- figure 3 of the paper

    def remember_commit(self, index: int, entry: Entry) -> None:
        seen = self.committed.get(index)
        if seen is None:
            self.committed[index] = (entry.term, entry.data)
        elif seen != (entry.term, entry.data):
            raise Violation(f"State Machine Safety: index {index}: {seen} and {entry}")

    def remember_entries(self, before: int, entries: list[Entry]) -> None:
        """Log Matching: an (index, term) that left a node or is durable names one entry and the
        term `before` it, for ever. (What was only in memory at a crash never existed.)"""
        for entry in entries:
            pair = (entry.index, entry.term)
            seen = self.known.get(pair)
            if seen is None:
                self.known[pair] = (entry.data, before)
            elif seen[0] != entry.data or (seen[1] >= 0 and before >= 0 and seen[1] != before):
                raise Violation(f"Log Matching: {pair}: {seen} and {(entry.data, before)}")
            before = entry.term

    def check_invariants(self, node: Node, before_commit: int) -> None:
        core = node.core
        assert core is not None
        log = core.log
        if core.role is Role.LEADER:
            # Election Safety
            holder = self.leaders.setdefault(core.term, core.id)
            if holder != core.id:
                raise Violation(f"Election Safety: {holder} and {core.id} lead term {core.term}")
            if node.led is None or node.led[0] != core.term:
                # Leader Completeness
                for index, (term, _) in self.committed.items():
                    if self.commit_terms.get(index, 0) >= core.term or index <= log.floor:
                        continue
                    if log.term(index) != term:
                        raise Violation(
                            f"Leader Completeness: leader {core.id} of term {core.term} has "
                            f"{log.term(index)} at {index}, committed with {term}"
                        )
            elif log.last < node.led[1]:
                raise Violation(f"Leader Append-Only: {core.id} cut its log")
            node.led = (core.term, log.last)
            for voter in core.configuration.voters:
                if self.nodes[voter].debt:
                    raise Violation(f"node {voter} was made a voter and owes frames")
        else:
            node.led = None
        if core.commit > before_commit:
            for index in range(before_commit + 1, core.commit + 1):
                entry = node.entries.get(index)
                if entry is None or log.term(index) < 0:
                    continue
                fresh = index not in self.committed
                self.remember_commit(index, entry)
                if fresh:
                    self.commit_terms[index] = core.term
                    self.check_held_by_majority(core, index, entry)
            self.max_committed = max(self.max_committed, core.commit)
        for index, term in ((core.commit, log.term(core.commit)),):
            seen = self.committed.get(index)
            if seen is not None and term >= 0 and index > log.floor and seen[0] != term:
                raise Violation(f"node {core.id} committed {index} of term {term}, not {seen[0]}")

    def check_held_by_majority(self, core: Core, index: int, entry: Entry) -> None:
        """What is committed is on the disks of a majority of every voter set in force."""
        holders = []
        for other in self.nodes.values():
            d = other.durable
            held = d.entries.get(index)
            if d.floor >= index or (held is not None and held.term == entry.term):
                holders.append(other.id)
        # The newest configuration in the leader's log decides, for earlier entries too (6).
        for voters in (core.configuration.voters, core.configuration.outgoing):
            if voters and 2 * len([v for v in voters if v in holders]) <= len(voters):
                raise Violation(f"index {index} is committed but only on the disks of {holders}")

    def check_equal(self) -> None:
        """At the end all members agree."""
        states = {node.id: node.state for node in self.nodes.values() if node.up}
        first = next(iter(states.values()))
        for node, state in states.items():
            assert state == first, f"node {node} differs"


def commands(node: Node) -> list[bytes]:
    return [node.state[i] for i in sorted(node.state)]


def held_appends(cluster: Cluster, to: int) -> list[Append]:
    return [m for m in cluster.network if isinstance(m, Append) and m.to == to]


def core_of(node: Node):  # type: ignore[no-untyped-def]
    assert node.core is not None
    return node.core


def with_log(terms: list[int], *, term: int | None = None, vote: int = 0) -> Durable:
    durable = Durable()
    for index, entry_term in enumerate(terms, start=1):
        durable.entries[index] = Entry(index, entry_term, COMMAND, b"%d@%d" % (index, entry_term))
    durable.last = len(terms)
    durable.last_term = terms[-1] if terms else 0
    durable.hard_state = HardState(term if term is not None else (terms or [0])[-1], vote, 0)
    return durable


def cluster_with_logs(logs: dict[int, list[int]], terms: dict[int, int] | None = None) -> Cluster:
    cluster = Cluster(len(logs), options=Options(quiesce_ticks=0))
    for node, log in logs.items():
        durable = with_log(log, term=(terms or {}).get(node))
        durable.configuration = cluster.nodes[node].durable.configuration
        cluster.nodes[node].durable = durable
    return cluster.start()


def change(cluster: Cluster, node: int, voters: tuple[int, ...], learners: tuple[int, ...] = ()):  # type: ignore[no-untyped-def]
    cluster.tokens += 1
    return cluster.step(cluster.nodes[node], ChangeConfiguration(cluster.tokens, voters, learners))
