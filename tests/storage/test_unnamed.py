"""A snapshot skips entries that released streams: their frames go with its installation, and no
others. Courses of opened, named and released streams, of which a disk has seen a part."""

from __future__ import annotations

import asyncio
import contextlib
import random

from o3storage.storage import HardState, StoreError, Unnamed, _install, encode_piece

from .support import SimDisk, entry, frame, hard, open_store, run, stream_id

SPANS = [(b"\x20", b"\x21"), (b"\x30", b"\x31")]
SIZE = 16
STEPS = 40


def names(key, value):
    """An open stream's row ends with it; others name up to two."""
    if key[:1] == b"\x30":
        return [key[1:]]
    return [value[at : at + SIZE] for at in range(0, len(value), SIZE)]


def named_by(rows):
    return {stream for row in rows.items() for stream in names(*row)}


class Course:
    """`states[n]`: all rows when entry n is applied; `carried[n]`: what that entry brings a name.
    A stream has one life: it is opened or comes with its entry, is named once, and released."""

    def __init__(self, dice):
        self.dice = dice
        self.count = 0
        self.states = [{}]
        self.carried = {}
        self.born = {}
        for index in range(1, STEPS + 1):
            self.states.append(self._step(index, dict(self.states[-1])))

    def new(self, index):
        self.count += 1
        stream = stream_id(self.count)
        self.born[stream] = index
        return stream

    def _step(self, index, rows):
        dice = self.dice
        opened = [key for key in rows if key[:1] == b"\x30"]
        key = b"\x20k%d" % dice.randrange(8)
        kind = dice.choice(("open", "small", "small", "carry", "carry", "delete", "close", "part"))
        if kind == "open":
            rows[b"\x30" + self.new(index)] = b""
        elif kind == "small":
            self.carried[index] = self.new(index)
            rows[key] = self.carried[index]
        elif kind in {"carry", "part"} and opened:
            row = dice.choice(opened)
            self.carried[index] = row[1:]
            del rows[row]
            before = rows.get(key, b"")[:SIZE] if kind == "part" else b""
            rows[key] = before + row[1:]
        elif kind == "delete":
            rows.pop(key, None)
        elif kind == "close" and opened:
            del rows[dice.choice(opened)]
        return rows


class Disk:
    """One that has applied `applied`, has entries up to `last`, and frames of what came by then,
    and of some that came before their entries."""

    def __init__(self, course, dice):
        self.course, self.dice = course, dice
        self.applied = dice.randrange(STEPS - 1)
        self.index = dice.randrange(self.applied + 1, STEPS)
        self.last = dice.randrange(self.applied, STEPS + 1)
        self.keep = dice.random() < 0.5 and self.last > self.index
        self.frames = {}
        self.cut = []

    async def fill(self, store):
        course, dice = self.course, self.dice
        entries = [entry(n, 2) for n in range(1, self.last + 1)]
        if entries:
            await store.append(1, HardState(2, 0, 0), entries)
        for n in range(1, self.applied + 1):
            before, after = course.states[n - 1], course.states[n]
            changes = [(key, None) for key in before if key not in after]
            changes += [row for row in after.items() if before.get(row[0]) != row[1]]
            store.apply(1, n, changes)
        known = named_by(course.states[self.applied])
        for number in range(1, course.count + 1):
            stream = stream_id(number)
            released = course.born[stream] <= self.applied and stream not in known
            if not released and dice.random() < 0.8:
                await self.place(store, number)
        for number in range(course.count + 1, course.count + 1 + dice.randrange(4)):
            # Of an entry in its log that another took the place of, at the snapshot's index or
            # below.
            self.cut.append(stream_id(number))
            await self.place(store, number)

    async def place(self, store, number):
        count = self.dice.choice((1, 1, 2))
        writer = store.open_stream(stream_id(number))
        for at in range(count):
            size = 256 * 1024 if at + 1 < count else 500
            await writer.write(frame(number, at, size, at + 1 == count))
        await writer.sync()
        writer.discard()
        self.frames[stream_id(number)] = count

    def skipped(self):
        """What entries of its log name that the snapshot takes the place of."""
        indexes = range(self.applied + 1, min(self.index, self.last) + 1)
        return [self.course.carried[n] for n in indexes if n in self.course.carried] + self.cut

    async def install(self, store, unnamed):
        rows = sorted(self.course.states[self.index].items())
        pieces = [encode_piece(rows[at : at + 5]) for at in range(0, max(len(rows), 1), 5)]
        for number, piece in enumerate(pieces):
            await store.stage_piece(1, number, piece)
        await store.install(
            1, self.index, 2, len(pieces), SPANS, hard(2, 0, self.index), self.keep, (), unnamed
        )

    async def held(self, store):
        """Streams that are whole here."""
        found = {}
        for stream, count in self.frames.items():
            frames = sum(count for _, count in await store.stream_frames(stream))
            assert frames in {0, count}, "half of it went"
            found[stream] = frames > 0
        return {stream for stream, here in found.items() if here}

    def needed(self):
        """What has a name at the snapshot, or comes to have one later."""
        later = self.course.states[self.index :]
        return {stream for rows in later for stream in named_by(rows)} & set(self.frames)

    def useless(self):
        """What had a name here, or in the entries of its log, and never will have one again."""
        known = named_by(self.course.states[self.applied]) | set(self.skipped())
        return (known - self.needed()) & set(self.frames)


def test_what_lost_its_name_goes_and_nothing_else() -> None:
    found = {"useless": 0, "needed": 0, "pinned": 0, "early": 0}

    async def main(seed):
        dice = random.Random(seed)
        course = Course(dice)
        disk = Disk(course, dice)
        store = await open_store(SimDisk(seed))
        await disk.fill(store)
        pinned = {stream for stream in disk.frames if dice.random() < 0.1}
        for stream in pinned:
            store.pin(stream)
        unnamed = Unnamed(names)
        unnamed.lost_name(disk.skipped())
        stay = {stream for stream in disk.frames if dice.random() < 0.05}
        unnamed.stays(stay)
        await disk.install(store, unnamed)
        await store.flush()
        useless, needed = disk.useless() - stay, disk.needed() | stay
        held = await disk.held(store)
        assert needed <= held, "P1"
        assert not (useless - pinned) & held
        assert pinned <= held, "somebody reads them"
        for stream in pinned:
            store.unpin(stream)
        await store.flush()
        assert not useless & await disk.held(store)
        assert await disk.held(store) >= set(disk.frames) - useless
        assert set(unnamed.released) & set(disk.frames) == useless
        found["useless"] += len(useless)
        found["needed"] += len(needed)
        found["pinned"] += len(pinned & useless)
        found["early"] += any(course.born.get(s, 0) > disk.index for s in needed)
        await store.close()

    for seed in range(120):
        run(main(seed), seed)
    assert min(found.values()) > 20, found


def test_a_crash_meanwhile_takes_nothing_that_has_a_name() -> None:
    found = {"old": 0, "new": 0}

    async def main(seed):
        dice = random.Random(seed)
        disk = Disk(Course(dice), dice)
        machine = SimDisk(seed)
        store = await open_store(machine)
        await disk.fill(store)
        unnamed = Unnamed(names)
        unnamed.lost_name(disk.skipped())
        task = asyncio.ensure_future(disk.install(store, unnamed))
        await asyncio.sleep(dice.random() * 0.0015)
        machine = machine.crash(dice)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        with contextlib.suppress(StoreError, OSError):
            await store.close()
        store = await open_store(machine)
        new = store.log_state(1).applied_index == disk.index
        found["new" if new else "old"] += 1
        held = await disk.held(store)
        assert disk.needed() <= held, "P1"
        if not new:
            assert named_by(disk.course.states[disk.applied]) & set(disk.frames) <= held
        await store.close()

    for seed in range(60):
        run(main(seed), seed)
    assert min(found.values()) >= 10, found


def test_after_rows_were_lost_nothing_is_collected() -> None:
    """Rows may be later than the disk knows, and so may the names be that it misses."""

    async def main():
        dice = random.Random(3)
        disk = Disk(Course(dice), dice)
        store = await open_store(SimDisk(3))
        await disk.fill(store)
        store._core.rows_lost[1] = None
        unnamed = Unnamed(names)
        unnamed.lost_name(disk.skipped())
        assert disk.useless()
        await disk.install(store, unnamed)
        assert await disk.held(store) == set(disk.frames)
        assert unnamed.released == []
        await store.close()

    run(main(), 3)


def test_what_is_remembered_has_a_limit_beyond_which_frames_stay(monkeypatch) -> None:
    monkeypatch.setattr(_install, "MAX_UNNAMED", 3)
    streams = [stream_id(number) for number in range(1, 8)]
    unnamed = Unnamed(names)
    unnamed.lost_name(streams)
    assert list(unnamed.streams) == streams[:3]
    unnamed.stays(streams[1:4])
    assert list(unnamed.streams) == streams[:1]
    unnamed.stays(streams[4:])
    unnamed.lost_name(streams)
    assert not unnamed.streams
