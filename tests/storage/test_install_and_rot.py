"""Snapshots are installed, then bits of the log flip and the index may be lost: the rows that a
start finds are those of the index that it says was applied, or it says that they are not."""

from __future__ import annotations

import contextlib
import random

import pytest

from o3storage.simulation import SimDisk, run
from o3storage.storage import StoreDamaged, StoreError, encode_piece
from o3storage.storage._volume import VolumeKind

from .support import entry, hard, open_store
from .test_rebuild import lose_index

OPTIONS = {
    "log_volume_bytes": 64 * 1024,
    "first_log_volume_bytes": 64 * 1024,
    "reload_log_bytes": 1 << 20,
    "flush_memtable_bytes": 1 << 30,
    "index": None,
}
GROUPS = (1, 2)
LENGTH = 400
FIRST_BYTE = 8192
"""Of a volume's first batch."""
PADDING = b"\0\xff"


def span(group):
    return bytes([0x20 + group]), bytes([0x21 + group])


def own(group):
    """The key of what the caller keeps beside the rows: the index of the last snapshot."""
    return b"\xfe%d" % group


def effect(seed, group, index):
    """What entry `index` of the group does to its rows."""
    dice = random.Random(f"{seed}/{group}/{index}")
    table = span(group)[0]
    changes = {}
    for _ in range(dice.randrange(3)):
        key = table + b"%02d" % dice.randrange(12)
        changes[key] = None if dice.random() < 0.3 else b"%d at %d" % (group, index)
    return changes


class World:
    def __init__(self, seed):
        self.seed = seed
        self.dice = random.Random(seed)
        self.disk = SimDisk(seed)
        self.store = None
        self.truth = {}
        self.installed = {group: [] for group in GROUPS}
        self.lost = {}
        """Groups that said that their rows are lost: what they applied then."""
        self.seen_lost = self.seen_gap = self.rotted = 0
        for group in GROUPS:
            rows = {}
            states = self.truth[group] = [rows]
            for index in range(1, LENGTH):
                rows = dict(rows)
                for key, value in effect(seed, group, index).items():
                    if value is None:
                        rows.pop(key, None)
                    else:
                        rows[key] = value
                states.append(rows)

    async def start(self):
        self.store = await open_store(self.disk, seed=self.dice.random(), **OPTIONS)
        self.lost = {}
        for group in GROUPS:
            state = self.store.log_state(group)
            held = [index for index in self.installed[group] if index <= state.applied_index]
            self.installed[group] = held  # (one that was lost may be overtaken by entries)
            if getattr(state, "rows_lost", False):
                self.lost[group] = state.applied_index
                self.seen_lost += 1
            else:
                await self.check(group)

    async def check(self, group):
        applied = self.store.log_state(group).applied_index
        rows = dict(await self.store.scan(*span(group), 10_000))
        assert rows == self.truth[group][applied], f"group {group} at {applied}"
        kept = await self.store.get(own(group))
        begun = max((index for index in self.installed[group] if index <= applied), default=None)
        assert kept == (None if begun is None else b"%d" % begun), f"group {group} at {applied}"

    async def work(self, group):
        """Entries: those that are missing come back, others are new; then they are applied."""
        if group in self.lost:
            return
        dice, store = self.dice, self.store
        state = store.log_state(group)
        back = [
            entry(index)
            for low, high in state.missing
            for index in range(max(low, state.applied_index + 1), high + 1)
        ]
        if back:
            self.seen_gap += 1
            if dice.random() < 0.5:
                await store.fill(group, back)
            else:
                await self.install(group)
                return
        if group in store.groups() and store.log_state(group).uncertain:
            await store.clear_uncertain(group)
        last = store.log_state(group).last_index
        new = [entry(last + 1 + n) for n in range(dice.randrange(6))]
        await store.append(group, hard(1, 1, state.applied_index), new)
        state = store.log_state(group)
        assert not [high for _, high in state.missing if high > state.applied_index]
        await self.apply(group, dice.randint(state.applied_index, state.last_index))

    async def apply(self, group, end):
        for index in range(self.store.log_state(group).applied_index + 1, end + 1):
            rows = list(effect(self.seed, group, index).items())
            self.store.apply(group, index, rows)

    async def install(self, group):
        dice, store = self.dice, self.store
        state = store.log_state(group)
        index = max(state.applied_index, state.last_index if dice.random() < 0.5 else 0)
        index += dice.randrange(8) + (group not in self.lost)
        rows = sorted(self.truth[group][index].items())
        cut = dice.randrange(len(rows) + 1)
        pieces = [part for part in (rows[:cut], rows[cut:]) if part]
        for number, part in enumerate(pieces):
            await store.stage_piece(group, number, encode_piece(part))
        keep = dice.random() < 0.5 and state.last_index >= index
        await store.install(
            group,
            index,
            1,
            len(pieces),
            [span(group)],
            hard(1, 1, index),
            keep,
            [(own(group), b"%d" % index)],
        )
        self.lost.pop(group, None)
        self.installed[group].append(index)
        state = store.log_state(group)
        assert not getattr(state, "rows_lost", False)
        assert state.applied_index == index
        await self.check(group)

    async def live(self):
        dice, store = self.dice, self.store
        for _ in range(dice.randint(3, 14)):
            (what,) = dice.choices(("work", "install", "flush", "compact"), (9, 3, 1, 1))
            group = dice.choice(GROUPS)
            if what == "work":
                await self.work(group)
            elif what == "install":
                await self.install(group)
            elif what == "flush":
                await store.flush()
            else:
                await store.compact()
        await store._log.settle()
        logs = [v.path for v in store._core.volumes.values() if v.kind is VolumeKind.LOG]
        how = dice.random()
        if how < 0.5:
            await store.close()
        else:
            self.disk = self.disk.crash(dice) if how < 0.75 else self.disk.kill()
            with contextlib.suppress(StoreError, OSError):
                await store.close()
        if dice.random() < 0.6:
            for _ in range(dice.choice((1, 1, 2, 6))):
                self.rot(dice.choice(logs))
        if dice.random() < 0.4:
            await lose_index(self.disk)

    def rot(self, path):
        """A bit of what was written: most of a small batch is padding."""
        if not self.disk.image.names.get(path):
            return
        data = bytes(self.disk.image.lookup(path).cached)
        at = [n for n in range(FIRST_BYTE, len(data)) if data[n] not in PADDING]
        if at:
            self.rotted += 1
            self.disk.rot(path, self.dice.choice(at), 1 << self.dice.randrange(8))


async def play(seed):
    world = World(seed)
    await world.start()
    try:
        for _ in range(4):
            await world.live()
            await world.start()
    except StoreDamaged as error:
        return f"refused: {error}"
    for group in GROUPS:
        if group in world.lost:
            await world.install(group)
    await world.store.close()
    await world.start()
    assert not world.lost
    return f"lost {world.seen_lost > 0} gap {world.seen_gap > 0}"


@pytest.mark.parametrize("seed", [*range(9), 15, 132, 166, 238, 258, 633, 669, 672])
def test_rows_are_those_of_what_was_applied_or_known_to_be_lost(seed):
    run(play(seed), seed)
