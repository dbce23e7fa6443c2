"""The driver of one group over a plain model of the store: order, batching, waiting, faults."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from o3storage.cluster import StorageFull, Unavailable
from o3storage.cluster._applying import APPLY_STEP
from o3storage.cluster._replica import MAX_WAITING, Replica
from o3storage.raft.core import Configuration, Log, Persist
from o3storage.runtime.state_machine import First, Get, Outcome, Scan
from o3storage.simulation import run
from o3storage.storage import (
    EntriesGone,
    EntriesUnread,
    Entry,
    EntryKind,
    HardState,
    LogState,
    Miss,
    SealedFrame,
    StoreFull,
    StoreOutOfService,
    StoreSpace,
)
from o3storage.storage.index import BadBlock


class ModelStore:
    """A log and rows in memory. Writes become durable when the test says so, or at once."""

    def __init__(self) -> None:
        self.entries_held: list[Entry] = [
            Entry(1, 1, EntryKind.CONFIGURATION, Configuration((7,)).encode())
        ]
        self.hard = HardState(1, 7, 1)
        self.rows: dict[bytes, bytes] = {}
        self.applied: list[int] = []
        self.applied_index = 0
        self.appends: list[tuple[list[Entry], list[SealedFrame]]] = []
        self.futures: list[asyncio.Future[None]] = []
        self.hold = False
        self.full = False
        self.cramped = False
        self.broken = ""
        self.misses = False
        self.reads: list[bytes] = []
        self.missing: list[tuple[int, int]] = []

    def log_state(self, group: int) -> LogState:
        last = self.entries_held[-1]
        return LogState(
            1, last.index, last.term, self.hard, self.applied_index, last.index, self.missing
        )

    def term(self, group: int, index: int) -> int:
        return self.entries_held[index - 1].term if index else 0

    def entries(self, group: int, lo: int, hi: int, max_bytes: int) -> list[Entry]:
        found = self.entries_held[lo - 1 : hi - 1]
        if not found:
            raise EntriesGone("none")
        return found

    def append(
        self,
        group: int,
        hard: HardState | None,
        entries: list[Entry],
        frames: Any = (),
        *,
        use_reserve: bool = False,
    ) -> asyncio.Future[None]:
        if self.broken:
            raise StoreOutOfService(self.broken)
        if self.cramped:
            raise StoreFull("no space left")
        assert use_reserve
        self.entries_held.extend(entries)
        if hard is not None:
            self.hard = hard
        self.appends.append((list(entries), list(frames)))
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.futures.append(future)
        if not self.hold:
            asyncio.get_running_loop().call_soon(self.durable)
        return future

    def durable(self, count: int = 1 << 30) -> None:
        for future in self.futures[:count]:
            if not future.done():
                future.set_result(None)
        del self.futures[:count]

    @property
    def log_full(self) -> bool:
        return self.cramped

    async def clear_uncertain(self, group: int) -> None:
        return None

    def get_now(self, key: bytes, at: Any = None) -> Any:
        self.reads.append(key)
        return Miss.MISS if self.misses else self.rows.get(key)

    async def noted(self, name: bytes) -> bytes | None:
        return None

    async def get(self, key: bytes, at: Any = None) -> bytes | None:
        await asyncio.sleep(0)
        return self.rows.get(key)

    def first_now(self, prefix: bytes, at: Any = None) -> Any:
        return Miss.MISS if self.misses else self._first(prefix)

    async def first(self, prefix: bytes, at: Any = None) -> Any:
        await asyncio.sleep(0)
        return self._first(prefix)

    def _first(self, prefix: bytes) -> Any:
        return next((row for row in sorted(self.rows.items()) if row[0].startswith(prefix)), None)

    def scan_now(self, lo: bytes, hi: bytes, limit: int, at: Any = None) -> Any:
        return Miss.MISS if self.misses else self._scan(lo, hi, limit)

    async def scan(self, lo: bytes, hi: bytes, limit: int, at: Any = None) -> Any:
        await asyncio.sleep(0)
        return self._scan(lo, hi, limit)

    def _scan(self, lo: bytes, hi: bytes, limit: int) -> Any:
        return [row for row in sorted(self.rows.items()) if lo <= row[0] < hi][:limit]

    def apply(self, group: int, index: int, rows: Any, released: Any = ()) -> None:
        if self.broken:
            raise StoreOutOfService(self.broken)
        assert index == self.applied_index + 1
        self.applied_index = index
        self.applied.append(index)
        for key, value in rows:
            if value is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = value

    def space(self) -> StoreSpace:
        return StoreSpace(100, 0, 0 if self.full else 100, 10, self.full)


class Appender:
    """Each command appends itself to one row, by a read of each kind."""

    def apply(self, data: bytes) -> Any:
        before = (yield Get(b"\x20log")) or b""
        assert (yield First(b"\x20l")) == ((b"\x20log", before) if before else None)
        assert len((yield Scan(b"\x20", b"\x21", 10))) == (1 if before else 0)
        if data == b"refused":
            return Outcome(error=ValueError("refused"))
        if data == b"broken":
            raise RuntimeError("a row contradicts another")
        return Outcome(data, None, [(b"\x20log", before + data)])


async def start(store: ModelStore) -> Replica:
    replica = await Replica.open(1, 7, store, Appender())  # type: ignore[arg-type]
    await replica.start()
    return replica


def test_proposals_of_one_turn_are_one_append_and_keep_their_order() -> None:
    async def main() -> None:
        store = ModelStore()
        replica = await start(store)
        before = len(store.appends)
        outcomes = await asyncio.gather(*(replica.submit(b"%d," % n) for n in range(40)))
        assert len(store.appends) == before + 1
        assert [o.result for o in outcomes] == [b"%d," % n for n in range(40)]
        assert store.rows[b"\x20log"] == b"".join(b"%d," % n for n in range(40))

    asyncio.run(main())


def test_nothing_is_acknowledged_or_applied_before_it_is_durable() -> None:
    async def main() -> None:
        store = ModelStore()
        replica = await start(store)
        store.hold = True
        first = replica.submit(b"a")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        second = replica.submit(b"b")
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(store.futures) == 2, "the next batch gathers while the first is written"
        assert not first.done() and b"\x20log" not in store.rows
        store.durable(1)
        await first
        assert not second.done()
        assert store.rows[b"\x20log"] == b"a"
        store.durable()
        await second

    asyncio.run(main())


def test_appends_that_end_out_of_order_count_in_order() -> None:
    async def main() -> None:
        store = ModelStore()
        replica = await start(store)
        store.hold = True
        first = replica.submit(b"a")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        second = replica.submit(b"b")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        store.futures[1].set_result(None)
        for _ in range(4):
            await asyncio.sleep(0)
        assert not second.done()
        store.futures[0].set_result(None)
        await asyncio.gather(first, second)

    asyncio.run(main())


def test_frames_go_with_the_append_of_their_entry() -> None:
    async def main() -> None:
        store = ModelStore()
        replica = await start(store)
        frame = SealedFrame(bytes(16), 0, True, 1, bytes(17))
        await asyncio.gather(replica.submit(b"a"), replica.submit(b"b", [frame]))
        entries, frames = store.appends[-1]
        assert [e.data for e in entries] == [b"a", b"b"]
        assert frames == [frame]

    asyncio.run(main())


def test_a_large_gathering_is_cut_into_appends() -> None:
    async def main() -> None:
        store = ModelStore()
        replica = await start(store)
        before = len(store.appends)
        await asyncio.gather(*(replica.submit(bytes(400_000)) for _ in range(9)))
        sizes = [len(entries) for entries, _ in store.appends[before:]]
        assert sizes == [3, 3, 3]

    asyncio.run(main())


def test_rows_that_are_not_in_memory_are_waited_for_in_order() -> None:
    async def main() -> None:
        store = ModelStore()
        replica = await start(store)
        store.misses = True
        outcomes = await asyncio.gather(*(replica.submit(b"%d," % n) for n in range(10)))
        assert [o.result for o in outcomes] == [b"%d," % n for n in range(10)]
        assert store.rows[b"\x20log"] == b"0,1,2,3,4,5,6,7,8,9,"
        store.misses = False
        await replica.submit(b"end")
        assert store.applied == list(range(1, store.applied_index + 1))

    asyncio.run(main())


def test_a_long_queue_is_applied_in_steps_that_leave_the_loop_to_others() -> None:
    async def main() -> None:
        store = ModelStore()
        replica = await start(store)
        store.hold = True
        futures = [replica.submit(b"x") for _ in range(5 * APPLY_STEP)]
        await asyncio.sleep(0)
        store.durable()
        longest, turns = 0, 0
        before = store.applied_index
        while not futures[-1].done():
            await asyncio.sleep(0)
            longest = max(longest, store.applied_index - before)
            before = store.applied_index
            turns += 1
        assert longest <= 2 * APPLY_STEP
        assert turns >= 3

    asyncio.run(main())


def test_a_refused_command_writes_nothing_and_counts() -> None:
    async def main() -> None:
        store = ModelStore()
        replica = await start(store)
        outcome = await replica.submit(b"refused")
        assert isinstance(outcome.error, ValueError)
        assert store.rows.keys() == {b"\xfe\x01\x00\x00\x00\x01"}
        assert replica.applied == store.applied_index

    asyncio.run(main())


def test_a_machine_that_fails_stops_the_replica() -> None:
    async def main() -> None:
        store = ModelStore()
        replica = await start(store)
        with pytest.raises(Unavailable) as refused:
            await replica.submit(b"broken")
        assert refused.value.uncertain
        assert "stopped at entry 3" in replica.fault
        with pytest.raises(Unavailable):
            replica.submit(b"a")

    asyncio.run(main())


def test_a_failed_write_fails_what_waits_and_is_never_repeated() -> None:
    async def main() -> None:
        store = ModelStore()
        replica = await start(store)
        store.hold = True
        first = replica.submit(b"a")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        appends = len(store.appends)
        second = replica.submit(b"b")
        store.futures[0].set_exception(StoreOutOfService("sync failed"))
        results = await asyncio.gather(first, second, return_exceptions=True)
        assert [type(x) for x in results] == [Unavailable, Unavailable]
        assert [x.uncertain for x in results] == [True, True]  # type: ignore[union-attr]
        assert len(store.appends) <= appends + 1
        assert b"\x20log" not in store.rows
        assert not replica.reads_now()
        with pytest.raises(Unavailable):
            await replica.barrier()

    asyncio.run(main())


def test_any_failed_write_ends_the_service_though_an_older_one_hangs() -> None:
    async def main() -> None:
        store = ModelStore()
        replica = await start(store)
        store.hold = True
        first = replica.submit(b"a")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        second = replica.submit(b"b")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        store.futures[1].set_exception(StoreOutOfService("sync failed"))
        results = await asyncio.gather(first, second, return_exceptions=True)
        assert [x.uncertain for x in results] == [True, True]  # type: ignore[union-attr]
        await replica.close()

    asyncio.run(main())


def test_a_store_that_is_out_of_service_refuses_at_once() -> None:
    async def main() -> None:
        store = ModelStore()
        replica = await start(store)
        store.broken = "disk gone"
        with pytest.raises(Unavailable):
            await replica.submit(b"a")
        assert replica.fault == "disk gone"

    asyncio.run(main())


def test_a_full_disk_refuses_frames_and_recovers() -> None:
    async def main() -> None:
        store = ModelStore()
        replica = await start(store)
        frame = SealedFrame(bytes(16), 0, True, 1, bytes(17))
        store.full = True
        for _ in range(2):
            with pytest.raises(StorageFull):
                replica.submit(b"a", [frame])
        await replica.submit(b"delete")
        store.full = False
        await replica.submit(b"b", [frame])

    asyncio.run(main())


def test_a_log_without_room_refuses_before_anything_is_appended() -> None:
    async def main() -> None:
        store = ModelStore()
        replica = await start(store)
        store.cramped = True
        last = replica.core.log.last
        with pytest.raises(StorageFull):  # (definite: it never happened)
            await replica.submit(b"a,")
        assert replica.core.log.last == last
        store.cramped = False
        await replica.submit(b"b,")
        assert store.rows[b"\x20log"] == b"b,"

    asyncio.run(main())


def test_appends_that_wait_for_space_are_answered_and_written_later() -> None:
    async def main() -> None:
        store = ModelStore()
        replica = await start(store)
        store.hold = True
        under_way = replica.submit(b"a,")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        behind = asyncio.ensure_future(replica.barrier_applied(replica.core.log.last))
        await asyncio.sleep(0)
        store.cramped = True
        replica.stalled("no space")
        with pytest.raises(Unavailable) as refusal:
            await under_way
        assert refusal.value.uncertain
        with pytest.raises(Unavailable):
            await behind
        with pytest.raises(StorageFull):
            await replica.submit(b"refused,")
        # There is space again: it is written after all, and what follows goes on behind it.
        store.cramped = store.hold = False
        store.durable()
        await replica.submit(b"b,")
        assert store.rows[b"\x20log"] == b"a,b,"

    asyncio.run(main())


def test_what_the_core_wants_kept_waits_in_order_for_room() -> None:
    async def main() -> None:
        store = ModelStore()
        replica = await start(store)
        store.cramped = True
        for index in (2, 3):
            replica._persist(Persist(index, None, [Entry(index, 1, EntryKind.COMMAND, b"x")]))
        with pytest.raises(StorageFull):
            replica.submit(b"refused while it waits")
        store.cramped, store.hold = False, True
        kept = len(store.appends)
        replica._retry_held()
        assert [append[0][0].index for append in store.appends[kept:]] == [2, 3]

    asyncio.run(main())


def test_what_the_log_does_not_take_stops_the_replica() -> None:
    """And is not taken for durable when what came after it is."""

    async def main() -> None:
        store = ModelStore()
        replica = await start(store)
        append = store.append

        def refuse(*_: Any, **__: Any) -> Any:
            store.append = append  # type: ignore[method-assign]
            raise ValueError("entries from 2 do not continue a log of 4..3")

        store.append = refuse  # type: ignore[method-assign]
        lost = replica.submit(b"a,")
        await asyncio.sleep(0)
        assert "entries from 2" in replica.fault
        with pytest.raises(Unavailable) as refusal:
            await lost
        assert refusal.value.uncertain
        with pytest.raises(Unavailable, match="entries from 2"):
            await replica.submit(b"b,")
        assert b"\x20log" not in store.rows

    asyncio.run(main())


def test_what_waits_is_bounded() -> None:
    async def main() -> None:
        store = ModelStore()
        replica = await start(store)
        store.hold = True
        futures = [replica.submit(b"x") for _ in range(MAX_WAITING)]
        with pytest.raises(Unavailable, match="slow down"):
            replica.submit(b"x")
        await asyncio.sleep(0)
        store.hold = False
        store.durable()
        store.misses = False
        await asyncio.gather(*futures)

    asyncio.run(main())


def test_a_restart_applies_what_the_log_holds() -> None:
    async def main() -> None:
        store = ModelStore()
        replica = await start(store)
        await asyncio.gather(*(replica.submit(b"%d," % n) for n in range(10)))
        expected = store.rows[b"\x20log"]
        # The rows are lost from entry 4 on, the log is not.
        store.rows = {b"\x20log": b"0,", **{k: v for k, v in store.rows.items() if k[0] == 0xFE}}
        store.applied_index = 3
        store.applied = []
        again = await start(store)
        assert store.rows[b"\x20log"] == expected
        assert again.core.term == replica.core.term + 1
        assert store.applied == list(range(4, store.applied_index + 1))

    asyncio.run(main())


def test_a_block_that_is_being_rebuilt_is_waited_for() -> None:
    async def main() -> None:
        store = ModelStore()
        replica = await start(store)
        read, bad = store.get_now, BadBlock(1, b"", None, "bad checksum")
        calls = 0

        def damaged(key: bytes, at: Any = None) -> Any:
            nonlocal calls
            calls += 1
            if calls <= 3:
                raise bad
            return read(key)

        store.get_now = damaged  # type: ignore[method-assign]
        futures = [replica.submit(b"a,"), replica.submit(b"b,")]
        await asyncio.gather(*futures)
        assert calls > 3 and not replica.fault
        assert store.rows[b"\x20log"] == b"a,b,"

    run(main(), 1)


def test_a_lost_entry_is_a_counted_no_op() -> None:
    async def main() -> None:
        store = ModelStore()
        replica = await start(store)
        await replica.submit(b"a,")
        store.entries_held.append(Entry(4, 2, EntryKind.LOST, b""))
        again = await start(store)
        assert again.lost_entries == 1
        await again.submit(b"b,")
        assert store.rows[b"\x20log"] == b"a,b,"

    asyncio.run(main())


def test_a_sole_voter_that_lost_acknowledged_entries_does_not_start() -> None:
    async def main() -> None:
        store = ModelStore()
        replica = await start(store)
        await replica.submit(b"a,")
        store.applied_index = 2
        store.missing = [(3, 3)]
        held = store.entries_held
        store.entries_held = [e for e in held if e.index != 3]

        def entries(group: int, lo: int, hi: int, max_bytes: int) -> list[Entry]:
            raise EntriesGone("missing")

        store.entries = entries  # type: ignore[method-assign]
        with pytest.raises(Unavailable, match="verify --repair"):
            await start(store)

    asyncio.run(main())


def test_entries_that_the_disk_fails_to_read_are_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        store = ModelStore()
        replica = await start(store)
        entries, calls = store.entries, 0

        def failing(group: int, lo: int, hi: int, max_bytes: int) -> list[Entry]:
            nonlocal calls
            calls += 1
            if calls <= 3:
                raise EntriesUnread("group 1: entry 2: [Errno 5] Input/output error")
            return entries(group, lo, hi, max_bytes)

        store.entries = failing  # type: ignore[method-assign]
        # What is released is not in the core's memory any more.
        monkeypatch.setattr(Log, "slice", lambda *_: None)
        futures = [replica.submit(b"a,"), replica.submit(b"b,")]
        await asyncio.gather(*futures)
        assert calls > 3 and not replica.fault
        assert store.rows[b"\x20log"] == b"a,b,"

    run(main(), 1)


def test_reads_wait_for_what_was_committed_before() -> None:
    async def main() -> None:
        store = ModelStore()
        store.hold = True
        replica = await Replica.open(1, 7, store, Appender())  # type: ignore[arg-type]
        starting = asyncio.ensure_future(replica.start())
        await asyncio.sleep(0)
        assert not replica.reads_now()
        barrier = asyncio.ensure_future(replica.barrier())
        await asyncio.sleep(0)
        assert not barrier.done()
        store.durable()
        await starting
        await barrier
        assert replica.reads_now()

    asyncio.run(main())


def test_close_waits_for_what_is_proposed() -> None:
    async def main() -> None:
        store = ModelStore()
        replica = await start(store)
        future = replica.submit(b"a,")
        await replica.close()
        assert future.done() and store.rows[b"\x20log"] == b"a,"
        await replica.close()
        with pytest.raises(Unavailable):
            replica.submit(b"b,")

    asyncio.run(main())


def test_close_finishes_what_clients_no_longer_wait_for() -> None:
    async def main() -> None:
        store = ModelStore()
        replica = await start(store)
        store.hold = True
        future = replica.submit(b"a,")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        future.cancel()
        closing = asyncio.ensure_future(replica.close())
        for _ in range(5):
            await asyncio.sleep(0)
        assert not closing.done()
        store.durable()
        await closing
        assert store.rows[b"\x20log"] == b"a,"

    asyncio.run(main())
