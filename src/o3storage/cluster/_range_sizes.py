"""Key ranges are cut when they have grown: the leader of a range measures it, looks for a key in
its middle, and proposes the cut like an operator (`_range_keeper.RangeKeeper.split`).

How large a range is, and where its middle lies, is estimated from what this disk's index knows
without reading (`Store.measure`, `Store.sample`): a few hundred look-ups in memory. Then one row is
read, or two, to find a key that is really there. Nothing stops meanwhile. A cut in the wrong place
does no harm: a part that is still too large is cut again.

A range of one bucket and one key, however many versions that has, cannot be cut.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from o3storage.cluster._errors import ClusterError
from o3storage.cluster._range_rows import BUCKET_BYTES, END, SplitRefused
from o3storage.cluster._ranges import KEYED_TABLES, OPEN_STREAM_TABLE
from o3storage.cluster._reading import READ_FAULTS
from o3storage.runtime import Logger
from o3storage.storage.index import IndexFailure

if TYPE_CHECKING:
    from o3storage.cluster._node import Node
    from o3storage.cluster._ranges import RangeTable
    from o3storage.cluster._replica import Replica

RANGE_BYTES = 1 << 30
"""Rows of a range, in tables, above which it is cut. A member that missed much gets a snapshot of
a range: at this size that is no more than the log that is kept for it instead
(`StoreOptions.keep_log_bytes`), and ten seconds of a link of 1 Gbit/s. Rows that are written over
and over wait for merges in at most half as many bytes. 2,048 ranges are 2 TiB of rows,
some four thousand million objects."""
LOOK_S = 5.0
"""Ranges are measured so often, where the index was flushed since, or another leader came: a flush
is what makes tables grow, and comes with 32 MiB of rows."""
PAUSE_S = 0.002
"""Between ranges: each takes some tenths of a millisecond."""
RETRY_S = 10.0
"""After a cut that was refused, or of which it is not known, or while a voter is missing."""
UNCUT_S = 600.0
"""After no key was found to cut at."""
FOLLOWS_ENTRIES = 256
"""A voter this close to the end of the log gets the cut by the log."""
AFTER_KEY = b"\x00\x01"
"""In place of a key's terminator: above all rows of the key, below those of every greater key."""

_log = Logger("ranges")


class RangeSizes:
    """`start`, `close`. What is set here holds from the next look on."""

    def __init__(self, node: Node, table: RangeTable, replicas: dict[int, Replica]) -> None:
        self.limit_bytes = RANGE_BYTES
        self.look_s = LOOK_S
        self.retry_s = RETRY_S
        self.cuts = 0
        """Made here since the start."""
        self._node = node
        self._table = table
        self._replicas = replicas
        self._seen: dict[int, tuple[int, int]] = {}
        """Range -> (flushes of the index, term of the range) when it was looked at."""
        self._not_before_s: dict[int, float] = {}
        """Range -> when it is looked at again, whatever happens."""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._run(), name="sizes of ranges")

    async def close(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def measure(self, group: int) -> int:
        """Estimated bytes of the range's rows in tables. KeyError: it is not here."""
        store = self._node.store
        return sum(store.measure(low, high) for low, high in self._spans(group))

    def _spans(self, group: int) -> list[tuple[bytes, bytes]]:
        spans = self._table.row_spans(group)
        return [span for span in spans if _is_keyed(span[0][0])]

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self.look_s)
            for group in self._table.here():
                if not self._is_due(group):
                    continue
                try:
                    await self._look(group)
                except Exception as error:
                    # (This must not end with one range that has something wrong.)
                    self._wait(group, UNCUT_S)
                    _log.error("range.not_measured", range=group, error=error)
                await asyncio.sleep(PAUSE_S)

    def _is_due(self, group: int) -> bool:
        """Whether this node leads the range, and it may have grown since it was looked at."""
        replica = self._replicas.get(group)
        if replica is None or not replica.leads:
            return False
        until_s = self._not_before_s.get(group)
        if until_s is not None:
            if asyncio.get_running_loop().time() < until_s:
                return False
            del self._not_before_s[group]
            return True
        seen = self._node.store.stats().flushes, replica.core.term
        before = self._seen.get(group)
        self._seen[group] = seen
        return seen != before

    def _all_follow(self, replica: Replica) -> bool:
        """Whether every voter is there and close. One that gets only a snapshot of what comes after
        a cut has no vote in the new range until its leader has sent it one of that, too: with
        another voter gone for good nobody would lead it. A cut can wait."""
        core, replication = replica.core, self._node.replication
        if replication is None:
            return True
        return all(
            replication.peers.is_up(node) and progress.match + FOLLOWS_ENTRIES >= core.log.last
            for node, progress in core.progress.items()
            if core.configuration.votes(node)
        )

    def _wait(self, group: int, pause_s: float) -> None:
        self._not_before_s[group] = asyncio.get_running_loop().time() + pause_s

    async def _look(self, group: int) -> None:
        size = self.measure(group)
        if size <= self.limit_bytes:
            return
        if not self._all_follow(self._replicas[group]):
            self._wait(group, self.retry_s)
            return
        try:
            # Before, so that a cut depends on nothing that a disk may lose soon after it; and what
            # is in memory counts where the middle is looked for.
            await self._node.store.flush()
            cut = await self.find_cut(group)
            if cut is None:
                self._wait(group, UNCUT_S)
                _log.warning(
                    "range.not_cut", range=group, size_bytes=size, reason="no key in its middle"
                )
                return
            child = await self._node.ranges.split(cut)
        except SplitRefused as error:
            self._wait(group, self.retry_s)
            _log.info("range.not_cut", range=group, size_bytes=size, reason=str(error))
        except (ClusterError, IndexFailure, *READ_FAULTS) as error:
            self._wait(group, self.retry_s)
            _log.debug("range.not_cut", range=group, size_bytes=size, reason=str(error))
        else:
            self.cuts += 1
            _log.info("range.cut_by_size", range=group, child=child, size_bytes=size)

    async def find_cut(self, group: int) -> bytes | None:
        """Where to cut the range so that about half of its bytes are on each side, at a key that it
        holds; None: it has no two keys. Raises StoreError, BadBlock, DiskError, KeyError."""
        store = self._node.store
        span = self._table.span(group)
        spans = self._spans(group)
        samples: list[tuple[bytes, int]] = []
        for low, high in spans:
            samples += store.sample(low, high)
        at = middle(samples)
        if at is None:
            return None
        first = await self._first_key(spans, span.low)
        cut = await self._first_key(spans, at)
        if cut is not None and cut == first:
            # All up to the middle is the first key's: cut behind it.
            cut = await self._first_key(spans, cut[: -len(END)] + AFTER_KEY)
        return cut

    async def _first_key(self, spans: Sequence[tuple[bytes, bytes]], at: bytes) -> bytes | None:
        """The bound below the first key, in any table, that has a row from `at` on."""
        cuts: list[bytes] = []
        for low, high in spans:
            rows = await self._node.store.scan(max(low, low[:1] + at), high, 1)
            cuts += [cut for cut in map(cut_before, (row[0] for row in rows)) if cut is not None]
        return min(cuts, default=None)


def _is_keyed(table: int) -> bool:
    return table in KEYED_TABLES or table == OPEN_STREAM_TABLE


def middle(samples: Sequence[tuple[bytes, int]]) -> bytes | None:
    """Of (row key, bytes from there on): the last one, in the order of keys without their table
    byte, before which at most half of the bytes lie; without its table byte. None for none."""
    left = sum(size for _, size in samples) / 2
    found: bytes | None = None
    for row, size in sorted(samples, key=lambda each: each[0][1:]):
        if left < 0:
            break
        found = row[1:]
        left -= size
    return found


def cut_before(row: bytes) -> bytes | None:
    """The bound right below all rows of the key that this row, of a keyed table, is of."""
    end = row.find(END, 1 + BUCKET_BYTES)
    return None if end <= 1 + BUCKET_BYTES else row[1 : end + len(END)]
