"""Defects that the simulator must find: each is a patch of the product for one run, never in it.

They stand for classes of mistakes: durability that is claimed too early, state that is applied
twice, never, or answered before it is there, garbage that is still needed, keys used twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from o3storage.catalog import PutObject, Query, _read_lists
from o3storage.cluster import Node, _bodies, _queries, _records
from o3storage.cluster._collector import Collector
from o3storage.cluster._replica import Replica
from o3storage.runtime.state_machine import Outcome
from o3storage.simulation import SimEntropy, SimFile
from o3storage.simulation._machine import Machine
from o3storage.storage import Store
from o3storage.storage._bulk import BulkWriter
from o3storage.storage._flush import Flusher
from o3storage.storage._mark import Mark

Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Planted:
    """`within`: how many seeds, from the first on, are enough to find it."""

    name: str
    plant: Callable[[Patch], None]
    within: int


PLANTED: list[Planted] = []


def planted(within: int) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    def note(plant: Callable[[Patch], None]) -> Callable[[Patch], None]:
        PLANTED.append(Planted((plant.__doc__ or plant.__name__).rstrip("."), plant, within))
        return plant

    return note


@planted(5)
def skipped_log_sync(patch: Patch) -> None:
    """Log batches are written without a sync."""

    async def unsynced(self: SimFile, offset: int, buffers: Any) -> None:
        await self.write(offset, buffers)
        if not offset:  # the header of a volume
            await self.sync()

    patch.setattr(SimFile, "write_sync", unsynced)


@planted(10)
def skipped_bulk_sync(patch: Patch) -> None:
    """An entry is proposed before the frames of its body are synced."""

    async def unsynced(self: BulkWriter) -> None:
        waiting = []
        while self._syncs and self._syncs[0][0] <= self._items_done:
            waiting.append(self._syncs.popleft()[1])
        for future in waiting:
            if not future.done():
                future.set_result(None)

    patch.setattr(BulkWriter, "_sync_some", unsynced)


@planted(5)
def acknowledged_before_durable(patch: Patch) -> None:
    """A proposal is acknowledged when it is queued."""
    original = Replica.submit

    def submit(
        self: Replica, data: bytes, frames: Any = (), *, adds: bool = False
    ) -> asyncio.Future[Outcome]:
        future = original(self, data, frames, adds=adds)
        if self.group and frames:
            early: asyncio.Future[Outcome] = self._loop.create_future()

            def run() -> None:
                generator = _records.apply(self._machine, data)
                try:
                    read = next(generator)
                    while True:
                        found = _bodies_read(self, read)
                        read = generator.send(found)
                except StopIteration as stop:
                    if not early.done():
                        early.set_result(stop.value)
                except Exception as error:
                    if not early.done():
                        early.set_exception(error)

            run()
            future.add_done_callback(lambda f: f.cancelled() or f.exception())
            return early
        return future

    patch.setattr(Replica, "submit", submit)


def _bodies_read(replica: Replica, read: Any) -> Any:
    from o3storage.cluster._reading import MISS, read_now

    found = read_now(replica._store, read)
    if found is MISS:
        raise RuntimeError("not in memory")
    return found


@planted(5)
def double_apply(patch: Patch) -> None:
    """Each twentieth put of an object is applied twice."""
    original = Replica._finish
    count = [0]

    def finish(self: Replica, entry: Any, outcome: Outcome) -> bool:
        done = original(self, entry, outcome)
        count[0] += 1
        if done and outcome.rows and outcome.error is None and count[0] % 20 == 0:
            generator = _records.apply(self._machine, entry.data)
            try:
                read = next(generator)
                while True:
                    read = generator.send(_bodies_read(self, read))
            except StopIteration as stop:
                if stop.value.rows:
                    self._store._core.write_rows(stop.value.rows)
            except Exception:
                return done
        return done

    patch.setattr(Replica, "_finish", finish)


@planted(10)
def replay_from_wrong_floor(patch: Patch) -> None:
    """A flush records an applied index that is one too high."""
    original = Mark.encode

    def encode(self: Mark) -> bytes:
        applied = self.applied
        self.applied = {group: index + 1 for group, index in applied.items()}
        try:
            return original(self)
        finally:
            self.applied = applied

    patch.setattr(Mark, "encode", encode)


@planted(10)
def floor_too_high(patch: Patch) -> None:
    """A flush sets the replay floor behind the volume that is being written."""

    def floor(self: Flusher) -> int:
        return self.log.volume.volume + 1

    patch.setattr(Flusher, "floor", floor)


@planted(10)
def orphans_by_age(patch: Patch) -> None:
    """Streams that are open for a while are collected without asking whether they are in use."""
    original = Collector._run

    async def run(self: Collector) -> None:
        async def age() -> None:
            low = bytes((_records.TABLE_OPEN_STREAM,))
            high = bytes((_records.TABLE_OPEN_STREAM + 1,))
            while True:
                await asyncio.sleep(0.0005)
                for key, _ in await self._node.store.scan(low, high, 100):
                    command = _records.encode_close([key], release=True)
                    self._node.replica_of(b"\x00" + key[1:]).submit(command)

        task = asyncio.get_running_loop().create_task(age())
        try:
            await original(self)
        finally:
            task.cancel()

    patch.setattr(Collector, "_run", run)


class FixedSalt(SimEntropy):
    """Stream ids stay random, but their salts, and with them their keys, are all the same."""

    def random_bytes(self, size: int) -> bytes:
        data = super().random_bytes(size)
        return data[:16] + b"s" * 32 if size == 48 else data


@planted(2)
def reused_stream_key(patch: Patch) -> None:
    """All streams are sealed with one key, from the same nonce on."""
    original = Machine.serve

    def serve(self: Machine, opened: Any, network: Any) -> None:
        seed, now_s = self.world.seed, self.world.loop.time()
        opened.node.entropy = FixedSalt(f"{seed}/{self.deaths}/{now_s}")
        original(self, opened, network)

    patch.setattr(Machine, "serve", serve)


@planted(5)
def stale_query(patch: Patch) -> None:
    """Queries answer from a snapshot that is up to a second old."""

    async def query(self: Node, query: Query[Any], *_: Any) -> Any:
        from o3storage.cluster._reading import read_row

        now = asyncio.get_running_loop().time()
        taken = self.__dict__.get("stale")
        if taken is None or now - taken[0] > 1.0:
            taken = self.__dict__["stale"] = (now, self.store.snapshot())
        generator = query()
        try:
            read = next(generator)
            while True:
                read = generator.send(await read_row(self.store, read, taken[1]))
        except StopIteration as stop:
            return stop.value

    from o3storage.cluster import MISS

    patch.setattr(Node, "query_now", lambda self, query, *_: MISS)
    patch.setattr(Node, "query", query)


@planted(10)
def listing_of_unapplied_state(patch: Patch) -> None:
    """Listings are answered from the state of the listing before."""
    from o3storage.cluster import MISS
    from o3storage.cluster._reading import read_row

    now_original, original = Node.query_now, Node.query

    def is_listing(query: Any) -> bool:
        return repr(query) == "Query(list_objects)"

    def query_now(self: Node, query: Query[Any], *rest: Any) -> Any:
        return MISS if is_listing(query) else now_original(self, query, *rest)

    async def query(self: Node, query: Query[Any], *rest: Any) -> Any:
        if not is_listing(query):
            return await original(self, query, *rest)
        before = self.__dict__.get("listed")
        self.__dict__["listed"] = self.store.snapshot()
        if before is None:
            return await original(self, query, *rest)
        generator = query()
        try:
            read = next(generator)
            while True:
                read = generator.send(await read_row(self.store, read, before))
        except StopIteration as stop:
            return stop.value
        finally:
            before.release()

    patch.setattr(Node, "query_now", query_now)
    patch.setattr(Node, "query", query)


def small_steps(patch: Patch) -> None:
    """Listings are read in steps of two rows, and others have time to write in between."""
    patch.setattr(_read_lists, "LIST_STEP_ROWS", 2)
    patch.setattr(_queries, "STEP_ROWS", 2)

    async def let_others() -> None:
        await asyncio.sleep(0.02)

    patch.setattr(_queries, "let_others", let_others)


@planted(15)
def steps_of_a_listing_at_several_instants(patch: Patch) -> None:
    """A listing that is read in steps reads each of them as of its own time."""
    small_steps(patch)
    original = _queries.read_now

    def read_now(store: Store, read: Any, at: Any = None) -> Any:
        return original(store, read)

    patch.setattr(_queries, "read_now", read_now)


@planted(3)
def condition_checked_too_early(patch: Patch) -> None:
    """If-None-Match is checked at the head of the request and not when the entry is applied."""
    original = Node.submit

    async def submit(self: Node, command: Any, frames: Any = ()) -> Any:
        if isinstance(command, PutObject) and getattr(command, "condition", None) is not None:
            command.condition = None
        return await original(self, command, frames)

    patch.setattr(Node, "submit", submit)


@planted(5)
def frames_in_wrong_order(patch: Patch) -> None:
    """A body of several frames is sent without its second one."""
    original = _bodies.read_stream

    async def read_stream(*args: Any, **kw: Any) -> Any:
        number = 0
        async for piece in original(*args, **kw):
            number += 1
            if number != 2:
                yield piece

    patch.setattr(_bodies, "read_stream", read_stream)
    patch.setattr(Node, "send_stream", Node.read_stream)  # (which is another way to the same bytes)


@planted(10)
def fault_ignored(patch: Patch) -> None:
    """A failed sync of the log is tried again, and the second try is believed."""
    original = SimFile.write_sync

    async def again(self: SimFile, offset: int, buffers: Any) -> None:
        try:
            await original(self, offset, buffers)
        except OSError:
            await self.sync()

    patch.setattr(SimFile, "write_sync", again)


@planted(10)
def lost_entry(patch: Patch) -> None:
    """One committed entry in fifty is never applied on restart."""
    original = Store.apply

    def apply(self: Store, group: int, index: int, rows: Any, released: Any = ()) -> None:
        if group and rows and index % 50 == 0:
            rows = []
        original(self, group, index, rows, released)

    patch.setattr(Store, "apply", apply)
