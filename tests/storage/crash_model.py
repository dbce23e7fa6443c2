"""A plain model of the store, and a driver that runs both and compares them after each crash.

One group. An append is one unit: after a crash the log is as it was after some number of appends,
at least those acknowledged, never between two (batches are atomic and ordered). What an entry does
to the rows follows from its data alone, as with the real state machine.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from o3storage.storage import FrameMissing

from .support import Entry, frame, hard, open_store, stream_id

GROUP = 1


def effect(entry: Entry):
    """(rows, released streams) of applying an entry."""
    number = entry.index * 10 + entry.term
    rows = [
        (b"\x10key%d" % (entry.index % 4), entry.data[:50] + b"!%d" % number),
        (b"\x10clock", b"%d" % entry.index),
    ]
    if entry.index % 5 == 0:
        rows.append((b"\x10key%d" % ((entry.index + 1) % 4), None))
    released = [stream_id(small_stream(entry.index - 3, 1))] if entry.index > 3 else []
    return rows, released


def small_stream(index, term):
    return index * 1000 + term


@dataclass
class State:
    """What the log held after some append."""

    entries: tuple = ()
    hard: tuple = (0, 0, 0)
    frames: frozenset = frozenset()
    """(stream number, frame number, size) that were appended."""


@dataclass
class Model:
    issued: list = field(default_factory=lambda: [State()])
    """State after each append that was issued; [0] is what was there at open."""
    acknowledged: int = 0
    applied: int = 0
    applied_frames: frozenset = frozenset()
    bulk: frozenset = frozenset()
    """Frames of streams whose sync returned."""
    bulk_tried: frozenset = frozenset()

    @property
    def now(self):
        return self.issued[-1]


def rows_after(entries, count):
    rows = {}
    released = set()
    for item in entries[:count]:
        changes, streams = effect(item)
        released.update(streams)
        for key, value in changes:
            if value is None:
                rows.pop(key, None)
            else:
                rows[key] = value
    return rows, released


class Driver:
    def __init__(self, disk, **options):
        self.disk = disk
        self.options = options
        self.store = None
        self.model = Model()
        self.next_stream = 1
        self.waiting = []
        self.recorder = None

    async def start(self):
        self.store = await open_store(self.disk, **self.options)

    # --- what a workload does

    def append(self, count=1, frames=1, size=300, *, term=None, back=0, vote=None):
        """Issue one append; `back` replaces that many unapplied entries."""
        model = self.model
        entries = list(model.now.entries)
        keep = max(len(entries) - back, model.applied)
        term = term or (entries[-1].term if entries else 1)
        new = [
            Entry(keep + 1 + i, term, 0, b"data %d/%d of %d " % (keep + 1 + i, term, size) * 3)
            for i in range(count)
        ]
        small = [(small_stream(new[i].index, term), 0, size) for i in range(min(frames, count))]
        small = [key for key in small if key not in model.now.frames]
        state = hard(term, vote or 0, model.applied) if vote is not None else None
        future = self.store.append(GROUP, state, new, [frame(s, n, z) for s, n, z in small])
        model.issued.append(
            State(
                tuple(entries[:keep] + new),
                (term, vote, model.applied) if vote is not None else model.now.hard,
                model.now.frames | frozenset(small),
            )
        )
        number = len(model.issued) - 1
        self.waiting.append(future)
        future.add_done_callback(lambda f: self._acknowledge(f, number))
        return future

    def _acknowledge(self, future, number):
        if future.cancelled() or future.exception() is not None:
            return
        self.model.acknowledged = max(self.model.acknowledged, number)
        self.note()

    def note(self):
        if self.recorder is not None:
            m = self.model
            self.recorder.mark(
                Model(
                    list(m.issued),
                    m.acknowledged,
                    m.applied,
                    m.applied_frames,
                    m.bulk,
                    m.bulk_tried,
                )
            )

    async def settle(self):
        await asyncio.gather(*self.waiting, return_exceptions=True)
        self.waiting = []

    def apply(self, count=1):
        durable = self.store.log_state(GROUP).durable_index
        for item in self.model.now.entries[self.model.applied : self.model.applied + count]:
            if item.index > durable:
                return
            rows, released = effect(item)
            self.store.apply(GROUP, item.index, rows, released)
            self.model.applied = item.index

    async def upload(self, frames=3, size=9000):
        stream = 10_000_000 + self.next_stream
        self.next_stream += 1
        keys = frozenset((stream, n, size) for n in range(frames))
        self.model.bulk_tried |= keys
        writer = self.store.open_stream(stream_id(stream))
        for n in range(frames):
            await writer.write(frame(stream, n, size, last=n == frames - 1))
        await writer.sync()
        self.model.bulk |= keys
        self.note()

    async def flush(self):
        await self.store.flush()
        self.note()

    # --- after a crash

    async def reopen(self, disk):
        self.disk = disk
        await self.start()
        await self.check()

    async def check(self):
        """The store holds what the model allows; the model then follows the store."""
        model, store = self.model, self.store
        state = store.log_state(GROUP)
        assert not state.missing and not state.uncertain
        found = await self._entries(state)
        allowed = model.issued[model.acknowledged :]
        held = [s for s in allowed if self._matches(s, state, found)]
        assert held, f"neither old nor new: {state} {found[-3:]} of {allowed}"
        now = held[-1]
        assert state.applied_index >= 0 and state.applied_index <= len(now.entries)
        rows, released = rows_after(now.entries, state.applied_index)
        stored = await store.scan(b"\x10", b"\xff", 10_000)
        assert dict(stored) == rows, f"rows after {state.applied_index}"
        for key in sorted(now.frames | model.bulk):
            await self._check_frame(key, stream_id(key[0]) in released)
        for key in sorted(model.bulk_tried - model.bulk):
            await self._check_frame(key, None)
        model.issued = [now]
        model.acknowledged = 0
        model.applied = state.applied_index
        self.waiting = []

    async def _entries(self, state):
        found = []
        at = state.first_index
        while at <= state.last_index:
            got = store_entries = self.store.entries(GROUP, at, state.last_index + 1, 1 << 20)
            if not isinstance(got, list):
                got = await store_entries
            found += got
            at = found[-1].index + 1
        return found

    @staticmethod
    def _matches(model_state, state, found):
        entries = model_state.entries
        tail = list(entries[state.first_index - 1 :])
        return (
            state.last_index == len(entries)
            and state.last_term == (entries[-1].term if entries else 0)
            and tail == found
            and (state.hard_state.term, state.hard_state.vote, state.hard_state.commit)
            == model_state.hard
        )

    async def _check_frame(self, key, released):
        stream, number, size = key
        try:
            data = await self.store.read_frame(stream_id(stream), number)
        except FrameMissing:
            assert released is not False, f"frame {key} is gone"
            return
        assert not released, f"frame {key} was released"
        assert bytes(data) == frame(stream, number, size).data
