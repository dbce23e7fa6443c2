"""The key ranges of a node: which are here, how one is cut in two, and how a node learns of one
that it has no replica of.

A cut is an entry of the range that is cut (`_range_rows.apply_split`), so all replicas make it at
the same point of history: from there on the upper keys are the child's, with the rows that they
have, and the child's log begins. There is nothing to copy and nothing to wait for.

A replica of a range comes to a node in one of two ways:

- Its replica of the parent applies the SPLIT.
- The directory in range 0 names it, and no range that is here holds any of its keys: this node has
  no replica of the parent, or one that was brought past the SPLIT by a snapshot. The replica begins
  with nothing, votes for nobody, and gets a snapshot. As long as a range here still holds some of
  the keys, its own log may yet write there, and the replica is not made.

The leader of a range tells range 0 of its span; until that is done, whoever takes part in the range
knows it, and others do not need to.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from o3storage.cluster._errors import ClusterError, MembershipRefused, Unavailable
from o3storage.cluster._forwarding import MOVED_AWAY
from o3storage.cluster._leaving import has_left, has_rows, leave, sweep
from o3storage.cluster._moves import (
    MOVES_HIGH,
    MOVES_LOW,
    Move,
    encode_move,
    has_ended,
    move_key,
)
from o3storage.cluster._newcomer import look_for_loss
from o3storage.cluster._node_records import (
    FIRST_VERSION,
    PLACES_VERSION,
    RANGES_VERSION,
    VERSION_KEY,
    NodeRecord,
    NodeState,
    node_key,
)
from o3storage.cluster._range_rows import (
    DIRECTORY_HIGH,
    DIRECTORY_LOW,
    EVERYTHING,
    FIRST_INDEX,
    FIRST_KEY_GROUP,
    FIRST_TERM,
    HOLDERS_HIGH,
    HOLDERS_LOW,
    MAX_RANGES,
    Holders,
    Span,
    Split,
    SplitRefused,
    check_cut,
    directory_key,
    encode_allocate,
    encode_holders,
    encode_publish,
    encode_split,
    group_of_directory_key,
    span_key,
)
from o3storage.cluster._range_sizes import RangeSizes
from o3storage.cluster._ranges import NOWHERE, RangeTable
from o3storage.cluster._reading import READ_FAULTS, left_note
from o3storage.raft.core import NOBODY, Configuration, Role, Tick
from o3storage.runtime import Logger
from o3storage.storage import StoreError, StoreOutOfService
from o3storage.storage.index import IndexFailure

if TYPE_CHECKING:
    from o3storage.cluster._node import Node
    from o3storage.cluster._replica import Replica

PUBLISH_S = 1.0
"""A leader looks so often whether range 0 knows the spans of its ranges."""
FAILED_S = 10.0
"""Something that nobody thought of kept it from that: it says so, and looks again after this."""
RETRY_S = 0.5
"""A damaged block of the index is being rebuilt: a replica is opened again after so long."""
FIRST_LEADER_S = 0.3
"""The parent's leader leads the child too, as soon as the others have it: heartbeats tell them of
the SPLIT every 0.2 s."""
ERASE_AT_ONCE = 2
"""Ranges: when many leave a node, requests come first."""
LEAVE_S = 3.0
"""A replica that range 0 does not list goes after so long. A leader tells range 0 of new members
within PUBLISH_S, and them at once."""
MOST_TICKS = 64
"""More than any election timeout."""

_log = Logger("ranges")


class RangeKeeper:
    """`load`, then `start`; `split`; `close`."""

    def __init__(self, node: Node, table: RangeTable, replicas: dict[int, Replica]) -> None:
        self.directory: dict[int, Span] = {}
        """What range 0 says, as applied here."""
        self.holders: dict[int, Holders] = {}
        """Who has the ranges, likewise; of some perhaps nothing yet."""
        self.moves: dict[int, Move] = {}
        """Replicas that are to move, likewise."""
        self.sizes = RangeSizes(node, table, replicas)
        self._node = node
        self._table = table
        self._replicas = replicas
        self._opening: dict[int, asyncio.Task[None]] = {}
        self._leaving: dict[int, asyncio.Task[bool]] = {}
        """What is being erased. What could not be stays: its rows may be there, so its span is
        taken, and the next start goes on with it."""
        self._left: dict[int, Span] = {}
        """Found at the start: these are still to be erased."""
        self._unlisted: dict[int, tuple[Holders, float]] = {}
        """Ranges with a replica here that range 0 does not list, by what, and since when."""
        self._stays = True
        """This node is not leaving: what a node that leaves still has is the operator's."""
        self._gone: dict[int, None] = {}
        """Ranges that left this disk, as far as nothing of them has come back."""
        self._seen_members: dict[int, tuple[int, bool]] = {}
        """What `_members_changed` saw last."""
        self._swept: dict[int, Span] = {}
        """Ranges that are elsewhere, and of which this disk has no row for certain."""
        self._erasers = asyncio.Semaphore(ERASE_AT_ONCE)
        self._publisher: asyncio.Task[None] | None = None
        self._spare = 0
        """A number that range 0 gave, of a range that did not come to be; 0: none."""
        self._closed = False

    async def load(self) -> None:
        """At the open: spans as the rows say. A log that a crash kept from being begun is begun.
        Raises StoreError, BadBlock, ValueError."""
        store = self._node.store
        await look_for_loss(store)
        spans: dict[int, Span] = {}
        group = FIRST_KEY_GROUP
        while True:
            rows = await store.scan(span_key(group)[:9], b"\x11", 1)
            if not rows:
                break
            group = int.from_bytes(rows[0][0][1:9], "big")
            value = await store.get(span_key(group))
            if value is not None:
                spans[group] = Span.decode(value)
            group += 1
        spans.setdefault(FIRST_KEY_GROUP, EVERYTHING)
        logs = store.groups()
        first = store.log_state(FIRST_KEY_GROUP) if FIRST_KEY_GROUP in logs else None
        empty = first is None or not first.last_index
        if empty:
            value = await store.get(directory_key(FIRST_KEY_GROUP))
            if value is not None:
                spans[FIRST_KEY_GROUP] = Span.decode(value)
        for group in logs:
            note = await store.noted(left_note(group)) if group >= FIRST_KEY_GROUP else None
            if note is not None:
                spans.pop(group, None)
                self._gone[group] = None
                span = has_left(note)
                if span is not None:
                    spans[group] = span
                    self._left[group] = span
        for group in spans:
            if group != FIRST_KEY_GROUP and group not in self._gone:
                store.create_group(group, FIRST_INDEX, FIRST_TERM)
        for group in logs:
            if group not in spans and group > FIRST_KEY_GROUP and group not in self._gone:
                # A replica without state; or its parent applies the SPLIT again, see `on_split`.
                value = await store.get(directory_key(group))
                span = Span.decode(value) if value is not None else EVERYTHING
                if not any(span.overlaps(other) for other in spans.values()):
                    spans[group] = span
        if empty and FIRST_KEY_GROUP in spans and FIRST_KEY_GROUP not in self._left:
            # It was put away, and a range that was cut off it is here, of which range 0 was told
            # first: what it says of this one is too wide.
            others = (span for group, span in spans.items() if group != FIRST_KEY_GROUP)
            if any(spans[FIRST_KEY_GROUP].overlaps(span) for span in others):
                del spans[FIRST_KEY_GROUP]
        self._narrow(spans)
        self._table.fill(spans)

    def _narrow(self, spans: dict[int, Span]) -> None:
        """A row that was lost may have said that a range was cut: a range keeps its low bound, so
        it ends where the next one begins."""
        order = sorted(spans, key=lambda group: spans[group].low)
        for group, following in itertools.pairwise(order):
            span, low = spans[group], spans[following].low
            over = span.low < low and (span.high is None or span.high > low)
            if over and self._node.store.log_state(group).rows_lost:
                spans[group] = span._replace(high=low)

    def to_open(self) -> list[int]:
        """Groups whose replicas are to be opened, after `load`."""
        return [group for group in self._table.here() if group not in self._left]

    def start(self) -> None:
        replication = self._node.replication
        left, self._left = self._left, {}
        for group, span in left.items():
            self._leave(group, span, None)
        if replication is not None:
            replication.on_ranges = self._narrowed
            replication.keeps_nothing_of = self.keeps_nothing_of
            loop = asyncio.get_running_loop()
            self._publisher = loop.create_task(self._publish(), name="publisher of ranges")
        self.sizes.start()

    async def close(self) -> None:
        self._closed = True
        await self.sizes.close()
        tasks = [*self._opening.values(), *self._leaving.values()]
        if self._publisher is not None:
            tasks.append(self._publisher)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- ranges that appear

    def _narrowed(self) -> None:
        """A snapshot took the place of a range here; its keys may be fewer than before."""
        self._swept.clear()
        self._node.look_at_records()

    def on_split(self, group: int, split: Split) -> None:
        """An entry that was applied here cut the range `group`."""
        self._table.put((group, split.lower), (split.child, split.upper))
        self._open(split.child, self._open_child(self._replicas[group], split.child))

    async def read_directory(self) -> None:
        """Range 0, or a span here, has changed. Raises StoreError, BadBlock."""
        store = self._node.store
        rows = await store.scan(DIRECTORY_LOW, DIRECTORY_HIGH, MAX_RANGES)
        self.directory = {group_of_directory_key(key): Span.decode(v) for key, v in rows}
        rows = await store.scan(HOLDERS_LOW, HOLDERS_HIGH, MAX_RANGES)
        self.holders = {group_of_directory_key(key): Holders.decode(v) for key, v in rows}
        rows = await store.scan(MOVES_LOW, MOVES_HIGH, MAX_RANGES)
        self.moves = {group_of_directory_key(key): Move.decode(v) for key, v in rows}
        own = await store.get(node_key(self._node.id))
        if own is not None:
            state = NodeRecord.decode(self._node.id, own).state
            self._stays = state in {NodeState.MEMBER, NodeState.DRAINING}
        for group, span in self.directory.items():
            self._shrink_empty(group, span)
        for group, span in {FIRST_KEY_GROUP: EVERYTHING, **self.directory}.items():
            known = group in self._replicas or group in self._opening or group in self._leaving
            if known or not self._belongs_here(group):
                continue
            if self._table.free_for(group, span):
                self._table.put((group, span))
                self._open(group, self._open_replica(group))
        self.look_away()

    def _belongs_here(self, group: int) -> bool:
        """Whether this node is to have a replica: until range 0 says who has, all do."""
        holders = self.holders.get(group)
        return holders is None or self._node.id in holders.configuration.members()

    def _shrink_empty(self, group: int, span: Span) -> None:
        """A replica without anything stands in the way of no range that was cut off it."""
        replica = self._replicas.get(group)
        if replica is None or replica.span is None or span.high is None:
            return
        empty = not replica.applied and not replica.core.log.last and replica.core.incoming is None
        if empty and (replica.span.high is None or span.high < replica.span.high):
            replica.span = span
            # Entries from before the cut change rows that are another range's now.
            replica.core.wants_snapshot = True
            self._table.put((group, span))

    def _leave(self, group: int, span: Span, replica: Replica | None) -> None:
        self._gone[group] = None
        self._erase(group, leave(self._node, self._table, group, span, replica))

    def _erase(self, group: int, erasing: Coroutine[Any, Any, bool]) -> None:
        def ended(task: asyncio.Task[bool]) -> None:
            if task.cancelled():
                return
            error = task.exception()
            if error is not None:
                _log.error("range.not_erased", range=group, error=error)
            elif task.result():
                del self._leaving[group]
                if not self._closed:
                    self._table.remove(group)
                    self._node.look_at_records()

        async def work() -> bool:
            try:
                async with self._erasers:
                    return await erasing
            finally:
                erasing.close()

        task = asyncio.get_running_loop().create_task(work(), name=f"range {group} leaves")
        self._leaving[group] = task
        task.add_done_callback(ended)

    def _has_left(self, group: int) -> bool:
        """Whether this node is no member for certain: range 0 says so of an entry that is not below
        the last one here that named the members, so nothing was promised as a member since."""
        holders, replica = self.holders.get(group), self._replicas[group]
        core = replica.core
        if holders is None or replica.span is None or not self._stays:
            return False
        if replica.fault or core.incoming is not None:
            return False
        if holders.entry_index < core.configuration_index or holders.configuration.joint:
            return False
        return self._node.id not in holders.configuration.members()

    def _left_for_good(self) -> list[int]:
        """Ranges whose replicas here are to go. What range 0 says may be a moment old: who has just
        become a member and has not heard of it yet is given time to."""
        now_s = asyncio.get_running_loop().time()
        unlisted: dict[int, tuple[Holders, float]] = {}
        for group in self._replicas:
            if self._has_left(group):
                holders = self.holders[group]
                before = self._unlisted.get(group)
                same = before is not None and before[0] == holders
                unlisted[group] = before if before is not None and same else (holders, now_s)
        self._unlisted = unlisted
        return [g for g, (_, since_s) in unlisted.items() if now_s - since_s >= LEAVE_S]

    def look_away(self) -> None:
        """Which ranges other nodes are to be asked for, as far as is known; and what of this disk
        is nobody's any more."""
        for group in self._left_for_good():
            replica = self._replicas.pop(group)
            replica.fail("this node has no replica of the range any more")
            span = self._table.span(group)
            if replica.applied or replica.core.log.last:
                self._leave(group, span, replica)
            else:
                # It was made before range 0 said who has the range. What lies in the span is of
                # one that missed the cut, and nobody else erases it.
                self._erase(group, sweep(self._node, self._table, group, span, replica))
        known = {FIRST_KEY_GROUP: EVERYTHING, **self.directory} if self.holders else {}
        known = {group: span for group, span in known.items() if group in self.holders}
        away = {group: None for group in self._table.here() if self._is_away(group)}
        before = self._table.elsewhere
        self._table.learn(known, away)
        for group in self._table.elsewhere:
            if group not in before and group in self._replicas:
                self._replicas[group].refuse_readers(MOVED_AWAY)

    async def _sweep(self) -> None:
        """Rows that lie in ranges of others are erased: see `_leaving.sweep`. Raises StoreError,
        BadBlock."""
        for group in [group for group in self._table.elsewhere if group not in self._swept]:
            span = self._table.span_anywhere(group)
            if not self._is_free(group, span):
                continue
            if not await has_rows(self._node.store, self._table.row_spans(group, span)):
                self._swept[group] = span
            elif group in self._table.elsewhere and self._is_free(group, span):
                self._table.put((group, span))
                self._erase(group, sweep(self._node, self._table, group, span))
                self.look_away()

    def _is_free(self, group: int, span: Span) -> bool:
        """Whether nothing here has to do with the range or its keys."""
        busy = group in self._replicas or group in self._opening or group in self._leaving
        holders = self.holders.get(group)
        return (
            not busy
            and self._stays
            and holders is not None
            and not holders.configuration.joint
            and self._node.id not in holders.configuration.members()
            and self._table.free_for(group, span)
        )

    def elsewhere(self) -> list[int]:
        """Ranges that other nodes are asked for."""
        return list(self._table.elsewhere)

    def keeps_nothing_of(self, group: int) -> bool:
        """Whether the range left this disk, and nothing that is here can come to name a body that
        was sent to it: no replica of it is back, nor one of a range that was cut off it (such a
        one may have said already that it holds the body)."""
        if group not in self._gone:
            return False
        return not any(self._comes_of(here, group) for here in (*self._replicas, *self._opening))

    def _comes_of(self, group: int, other: int) -> bool:
        """Whether it is the other range, or was cut off it; also if that is not known here."""
        while group > other:
            try:
                parent = self._table.span_anywhere(group).parent
            except KeyError:
                return True
            if not 0 < parent < group:
                return True
            group = parent
        return group == other

    def is_here(self, group: int) -> bool:
        """Whether this node's own replica of the range is to be asked."""
        return group in self._replicas and group not in self._table.elsewhere

    def _is_away(self, group: int) -> bool:
        holders, replica = self.holders.get(group), self._replicas.get(group)
        if holders is None:
            return False
        if replica is None or not replica.applied:
            return True
        core = replica.core
        newer = holders.entry_index > core.configuration_index
        configuration = holders.configuration if newer else core.configuration
        return self._node.id not in configuration.members()

    def _open(self, group: int, work: Coroutine[Any, Any, Any]) -> None:
        if self._closed:
            work.close()
            return
        task = asyncio.get_running_loop().create_task(work, name=f"range {group} begins")
        self._opening[group] = task
        self._swept.pop(group, None)
        task.add_done_callback(lambda _: self._opening.pop(group, None))

    async def _open_replica(self, group: int) -> Replica | None:
        node = self._node
        while True:
            try:
                replica = await node.open_replica(group)
                await replica.start()
            except StoreOutOfService:
                return None
            except READ_FAULTS:
                await asyncio.sleep(RETRY_S)
            except Unavailable as error:
                _log.error("range.not_started", range=group, reason=str(error))
                return None
            else:
                return replica

    async def _open_child(self, parent: Replica, child: int) -> None:
        """`parent` may leave this node meanwhile."""
        log = self._node.store.log_state(child)
        if log.applied_index > FIRST_INDEX:
            # Its parent executes the SPLIT again, though what came after it was kept.
            parent.fail(
                f"range {child} is ahead of its beginning: empty this node's data directory and "
                "let it join again"
            )
            return
        replica = await self._open_replica(child)
        if replica is not None and replica.team is not None:
            assert parent.team is not None
            replica.team.begin(parent.team)
            if parent.leads and not replica.core.sole:
                await self._lead_soon(replica)
        # From here on no restart executes the SPLIT, or what came before it, again.
        with contextlib.suppress(StoreError, IndexFailure):
            await self._node.store.flush()

    @staticmethod
    async def _lead_soon(replica: Replica) -> None:
        await asyncio.sleep(FIRST_LEADER_S)
        for _ in range(MOST_TICKS):
            core = replica.core
            if core.leader != NOBODY or core.role is not Role.FOLLOWER or replica.fault:
                return
            replica.step(Tick(0.0))

    # --- the directory

    async def _publish(self) -> None:
        while True:
            await asyncio.sleep(PUBLISH_S)
            try:
                if self._members_changed() or self._unlisted:
                    self.look_away()
                for group in [group for group in self._replicas if self._has_news(group)]:
                    if group not in self._replicas:
                        continue
                    await self._tell(group)
                    await self._tell_holders(group)
                for group in list(self.moves):
                    await self._end_move(group)
                await self._sweep()
            except (ClusterError, StoreError, *READ_FAULTS) as error:
                _log.debug("ranges.later", reason=str(error))
            except Exception as error:
                _log.error("ranges.failed", error=error)
                await asyncio.sleep(FAILED_S)

    def _members_changed(self) -> bool:
        """Whether some replica here knows of other members than at the last look, or was filled.
        (What range 0 says is looked at when it is read.)"""
        seen = {
            group: (replica.core.configuration_index, replica.applied > 0)
            for group, replica in self._replicas.items()
        }
        changed = seen != self._seen_members
        self._seen_members = seen
        return changed

    def _has_news(self, group: int) -> bool:
        """Whether range 0 may have to be told of the range: asked each second of a thousand."""
        replica = self._replicas[group]
        core, span, told = replica.core, replica.span, self.directory.get(group)
        if span is None:
            return False
        if core.role is not Role.LEADER:
            return told is None and core.leader == NOBODY
        if told is None or told.high != span.high:
            return True
        holders = self.holders.get(group)
        return holders is None or holders.entry_index < core.configuration_index

    async def _tell(self, group: int) -> None:
        """Tell range 0 of a span, if this node leads it, or if nobody does and range 0 knows
        nothing of it: it may need the vote of a node that missed the cut, and which learns of the
        range there. Raises ClusterError."""
        replica = self._replicas[group]
        span = replica.span
        if span is None or span == EVERYTHING:
            return
        known = self.directory.get(group)
        if not replica.leads:
            if known is None and replica.core.leader == NOBODY and replica.applied:
                await self._node.commit(b"", encode_publish(group, span))
            return
        if known is not None and known.high == span.high:
            return
        # What a leader of an earlier term cut is applied here first: what is said is not old.
        if replica.applied >= replica.core.term_start:
            await self._node.commit(b"", encode_publish(group, span))

    async def _tell_holders(self, group: int) -> None:
        """Tell range 0 who has a range, if this node leads it. Raises ClusterError."""
        replica = self._replicas.get(group)
        if replica is None or replica.span is None or not replica.leads:
            return
        core = replica.core
        if self._node.cluster_version < PLACES_VERSION:
            return
        known = self.holders.get(group)
        index = core.configuration_index
        if known is not None and known.entry_index >= index:
            return
        if index <= replica.applied and replica.applied >= core.term_start:
            told = Holders(index, core.configuration)
            await self._node.commit(b"", encode_holders(group, told))

    # --- moving

    async def _end_move(self, group: int) -> None:
        """Tell range 0 that a move is done, or cannot be, if this node leads the range. Raises
        ClusterError."""
        move, known = self.moves.get(group), self.holders.get(group)
        replica = self._replicas.get(group)
        if move is None or known is None or replica is None or not replica.leads:
            return
        if known.entry_index != replica.core.configuration_index:
            return  # it is told first
        value = await self._node.store.get(node_key(move.target))
        target = NodeRecord.decode(move.target, value) if value is not None else None
        if has_ended(move, known, target):
            await self._node.commit(b"", encode_move(group, move, wanted=False))
            _log.info("range.moved", range=group, target=f"{move.target:016x}")

    async def move(self, group: int, source: int, target: int) -> None:
        """Have the replica of the range move from one node to another: begun, when this returns.
        Raises MembershipRefused, Unavailable (also uncertain)."""
        if self._node.cluster_version < PLACES_VERSION:
            raise MembershipRefused(
                "some node runs a release that does not know of replicas that move: install this "
                "one on all nodes (`o3storage node list` shows the releases), then try again"
            )
        await self._propose(b"", encode_move(group, Move(source, target), wanted=True))
        self._node.look_at_records()

    async def stay(self, group: int) -> None:
        """Take back a move that has not ended. Raises MembershipRefused, Unavailable."""
        await self._node.catch_up_system()
        value = await self._read(move_key(group))
        ended = value is not None and await self._propose(
            b"", encode_move(group, Move.decode(value), wanted=False)
        )
        if not ended:
            raise MembershipRefused(f"range {group} is not moving")
        self._node.look_at_records()

    # --- cutting

    async def split(self, cut: bytes) -> int:
        """Cut the range that holds `cut` there; the number of the new one. Raises SplitRefused,
        Unavailable (also uncertain), StorageFull."""
        table, node = self._table, self._node
        await self._check_version()
        try:
            check_cut(cut)
        except ValueError as error:
            raise SplitRefused(str(error)) from None
        route = b"\x20" + cut
        group = table.group_of(route)
        if group != NOWHERE and table.span_anywhere(group).low == cut:
            raise SplitRefused(f"range {group} begins there already")
        child, self._spare = self._spare, 0
        if not child:
            child = await self._propose(b"", encode_allocate())
        try:
            split: Split = await self._propose(route, encode_split(child, cut))
        except SplitRefused:
            if child not in node.store.groups():
                self._spare = child  # for certain there is no such range
            raise
        _log.info("range.split", range=split.upper.parent, child=child)
        node.look_at_records()
        return child

    async def _check_version(self) -> None:
        """A node that does not know of cuts would stop at the first. The version never falls, and
        who does not speak it cannot join. Raises SplitRefused, Unavailable."""
        row = await self._read(VERSION_KEY)
        if (int.from_bytes(row, "big") if row else FIRST_VERSION) < RANGES_VERSION:
            raise SplitRefused(
                "some node runs a release that does not know of several key ranges: install this "
                "one on all nodes (`o3storage node list` shows the releases), then try again"
            )

    async def _read(self, key: bytes) -> bytes | None:
        """A row, for somebody who asked. Raises Unavailable."""
        try:
            return await self._node.store.get(key)
        except READ_FAULTS as error:
            raise Unavailable(str(error)) from error

    async def _propose(self, route: bytes, data: bytes) -> Any:
        outcome = await self._node.commit(route, data, adds=True)
        if outcome.error is not None:
            raise outcome.error
        return outcome.result

    def status(self) -> list[dict[str, Any]]:
        """The ranges that this node knows, in order of their keys; bounds in hexadecimal, sizes
        estimated (None: they are not here)."""
        found = []
        for group in self._table.groups():
            span = self._table.span_anywhere(group)
            away = group in self._table.elsewhere
            replica = self._replicas.get(group) if not away else None
            holders = self.holders.get(group)
            members = holders.configuration if holders is not None else Configuration()
            if replica is not None:
                members = replica.core.configuration
            found.append(
                {
                    "range": group,
                    "low": span.low.hex(),
                    "high": None if span.high is None else span.high.hex(),
                    "parent": span.parent,
                    "leader": self._node.leader_of(group),
                    "voters": list(members.voters),
                    "learners": list(members.learners),
                    "here": replica is not None and replica.applied > 0,
                    "move": self.moves.get(group),
                    "size_bytes": None if away else self.sizes.measure(group),
                }
            )
        return found
