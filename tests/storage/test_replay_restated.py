"""What the beginnings of log volumes say of a group, where records between them are gone: a volume
that is kept for its frames stands beside later ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from o3storage.simulation import SimDisk, run
from o3storage.storage import Store
from o3storage.storage._batches import FLAG_LAST_MISSING, FLAG_RESTATED, GroupInfo
from o3storage.storage._groups import EntryCache, GroupLog, unpack_place
from o3storage.storage._records import ENTRY
from o3storage.storage._replay import Replay

from .support import entry, frame, hard, open_store, store_on
from .test_faults import places
from .test_rebuild import lose_index


def replayed(*said: int, first: int = 0, last: int = 0, flags: int = 0) -> GroupLog:
    """A group of which entries first..last were read, applied up to 29, after these restatements
    of its last index."""
    core: Any = SimpleNamespace(groups={}, stats=SimpleNamespace(lost_entries=0))
    replay = Replay(core, SimpleNamespace(applied={1: 29}), lambda _: None)  # type: ignore[arg-type]
    group = core.groups[1] = GroupLog(1, EntryCache(1000))
    group.applied_index = 29
    if last:
        group.reset(first - 1, 4)
        group.applied_index = 29
        replay._seen.add(1)
        for index in range(first, last + 1):
            group.terms.append(4)
            group.places.append(index)
            group.sizes.append(9)
    for index in said:
        replay._restated(GroupInfo(1, FLAG_RESTATED | flags, 0, 0, 0, index, 4, 4, 0, 29, 29))
    replay._write = lambda: None  # type: ignore[method-assign]
    replay.finish()
    return group


@pytest.mark.parametrize("said", [(29,), (30, 29), (30, 30, 29, 29), (31, 30, 29)])
def test_a_log_that_went_back_has_lost_nothing(said: tuple[int, ...]) -> None:
    """It left this disk, with entries that nobody applied."""
    group = replayed(*said)
    assert (group.last_index, group.last_term, group.missing) == (29, 4, [])


def test_entries_that_are_there_stay_below_where_it_went_back() -> None:
    group = replayed(29, first=25, last=31)
    assert (group.first_index, group.last_index, group.missing) == (25, 29, [])
    assert list(group.places) == [25, 26, 27, 28, 29]


def test_entries_that_are_not_there_are_missing() -> None:
    group = replayed(29, 31)
    assert (group.last_index, group.missing) == (31, [(30, 31)])


def test_an_entry_that_is_there_is_not_the_missing_one_of_a_guessed_term() -> None:
    """An older one of that index, which was replaced, stands in a volume that is kept."""
    group = replayed(29, first=25, last=29, flags=FLAG_LAST_MISSING)
    assert (group.first_index, group.last_index, group.missing) == (29, 29, [(29, 29)])
    assert group.written_guess


class Two:
    """A store with the group that is looked at, and one that fills volumes beside it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._number = 0

    @property
    def volume(self) -> int:
        return self.store._log.volume.volume

    async def go_on(self) -> None:
        """In a new volume."""
        volume = self.volume
        while self.volume == volume:
            self._number += 1
            number = self._number
            await self.store.append(2, None, [entry(number)], [frame(number, size=20_000)])
            self.store.apply(2, number, [])

    async def free(self, volume: int) -> None:
        await self.store.flush()
        assert await self.store._compactor.compact(self.store._core.volumes[volume])


@pytest.mark.parametrize("rebuilt", [False, True])
@pytest.mark.parametrize(
    ("stale", "instead", "later"),
    [(1, 1, 0), (3, 1, 0), (1, 3, 0), (3, 1, 1), (3, 1, 2), (3, 1, 3)],
)
def test_entries_that_others_replaced_do_not_come_back(
    stale: int, instead: int, later: int, rebuilt: bool
) -> None:
    """Those that replaced them went with their volume, when it was compacted; the older volume is
    kept for its frames."""

    async def main() -> None:
        disk = SimDisk(1)
        store = await open_store(disk, reload_log_bytes=1 << 20)
        two = Two(store)
        await store.append(1, hard(1), [entry(1)])
        store.apply(1, 1, [])
        await two.go_on()
        old = two.volume
        await store.append(1, hard(2), [entry(2 + i, term=2) for i in range(stale)])
        await two.go_on()
        freed = two.volume
        await store.append(1, hard(3), [entry(2 + i, term=3) for i in range(instead)])
        last = 1 + instead
        for index in range(2, last + 1):
            store.apply(1, index, [])
        await two.go_on()
        await two.free(freed)
        assert old in store._core.volumes and freed not in store._core.volumes
        if later:
            await store.append(1, None, [entry(last + 1 + i, term=3) for i in range(later)])
        await store.close()
        if rebuilt:
            await lose_index(disk)
        async with store_on(disk, reload_log_bytes=1 << 20) as store:
            state = store.log_state(1)
            assert (state.last_index, state.last_term) == (last + later, 3)
            assert (state.applied_index, state.missing) == (last, [])
            for index in range(max(1, state.first_index - 1), state.last_index + 1):
                assert store.term(1, index) == (3 if index > 1 else 1)

    run(main(), 1)


def test_entries_that_are_of_this_log_stay_beside_a_freed_volume() -> None:
    """Where nothing was replaced, what followers may want is still read."""

    async def main() -> None:
        disk = SimDisk(1)
        store = await open_store(disk, reload_log_bytes=1 << 20)
        two = Two(store)
        await store.append(1, hard(2), [entry(1, term=2), entry(2, term=2)])
        for index in (1, 2):
            store.apply(1, index, [])
        await two.go_on()
        freed = two.volume
        await two.go_on()
        await two.free(freed)
        await store.close()
        async with store_on(disk, reload_log_bytes=1 << 20) as store:
            assert (store.log_state(1).first_index, store.log_state(1).last_index) == (1, 2)

    run(main(), 1)


@pytest.mark.parametrize("term", [1, 2])
def test_a_last_entry_that_came_back_is_restated_as_it_is(term: int) -> None:
    """While it was missing its term was a guess."""

    async def main() -> None:
        disk = SimDisk(1)
        store, _ = await without_its_last(disk, batches=2, term=term)
        await store.fill(1, [entry(2, term=term)])
        await Two(store).go_on()
        await store.close()
        async with store_on(disk) as store:
            state = store.log_state(1)
            assert (state.last_index, state.last_term, state.missing) == (2, term, [])

    run(main(), 1)


async def without_its_last(disk: SimDisk, batches: int = 1, term: int = 2) -> tuple[Store, int]:
    """A group of two applied entries, of term 1 and `term`, of which the second has rotted; and
    the bytes of its record."""
    store = await open_store(disk)
    written = [entry(1), entry(2, term=term)]
    if batches == 1:
        await store.append(1, hard(2), written)
        for index in (1, 2):
            store.apply(1, index, [])
    else:
        await store.append(1, hard(2), written[:1])
        store.apply(1, 1, [])
        await store.append(1, None, written[1:])
        store.apply(1, 2, [])
    await store.close()
    path, offset, size = places(disk, ENTRY)[-1]
    disk.rot(path, offset + size // 2, 4)
    store = await open_store(disk)
    assert store.log_state(1).missing == [(2, 2)]
    return store, size


@pytest.mark.parametrize("rebuilt", [False, True])
@pytest.mark.parametrize("later", [0, 1])
@pytest.mark.parametrize("rots", [False, True])
def test_a_guessed_term_of_the_last_entry_is_not_taken_for_its_own(
    rots: bool, later: int, rebuilt: bool
) -> None:
    """A volume was begun while the entry was missing, it came back to that volume, and the one
    before was freed. What came back may rot in turn: then it is missing again."""

    async def main() -> None:
        disk = SimDisk(1)
        store, size = await without_its_last(disk, batches=2)
        two = Two(store)
        old = two.volume
        await two.go_on()
        filled = store.fill(1, [entry(2, term=2)])
        if later:
            await store.append(1, None, [entry(3, term=2)])
        await filled
        log = store._core.groups[1]
        volume, offset = unpack_place(log.places[2 - log.first_index])
        assert volume == two.volume
        path = store._core.volumes[volume].path
        await two.free(old)
        await store.close()
        if rots:
            disk.rot(path, offset + size // 2, 4)
        if rebuilt:
            await lose_index(disk)
        async with store_on(disk) as store:
            state = store.log_state(1)
            assert (state.last_index, state.applied_index) == (2 + later, 2)
            assert state.missing == ([(2, 2)] if rots else [])
            assert rots or store.term(1, 2) == 2

    run(main(), 1)


@pytest.mark.parametrize("snapshot", [False, True])
def test_the_term_of_what_follows_a_missing_last_entry_is_no_guess(snapshot: bool) -> None:
    """An entry that a sole voter appends, or a snapshot."""

    async def main() -> None:
        disk = SimDisk(1)
        store, _ = await without_its_last(disk)
        if snapshot:
            await store.reset_group(1, 3, 2)
        else:
            await store.append(1, None, [entry(3, term=2)])
        await Two(store).go_on()
        await store.close()
        async with store_on(disk) as store:
            state = store.log_state(1)
            assert (state.last_index, state.last_term) == (3, 2)
            assert state.missing == ([] if snapshot else [(2, 2)])

    run(main(), 1)


@pytest.mark.parametrize("rots", [False, True])
def test_the_term_before_the_first_entry_is_no_guess(rots: bool) -> None:
    """The entry before came back in one batch with what follows, which begins what can be read of
    the log: what the volume restated is lost."""

    async def main() -> None:
        disk = SimDisk(1)
        store, size = await without_its_last(disk)
        two = Two(store)
        old = two.volume
        await two.go_on()
        filled = store.fill(1, [entry(2, term=2)])
        await store.append(1, None, [entry(3, term=2)])
        await filled
        log = store._core.groups[1]
        volume, offset = unpack_place(log.places[2 - log.first_index])
        path = store._core.volumes[volume].path
        await two.free(old)
        await store.close()
        data = bytes(disk.image.lookup(path).cached)
        for magic in (b"O3BATCHh", b"O3BATCHt"):
            disk.rot(path, data.find(magic) + 40, 4)
        if rots:
            disk.rot(path, offset + size // 2, 4)
        async with store_on(disk) as store:
            state = store.log_state(1)
            assert (state.first_index, state.last_index, state.uncertain) == (3, 3, True)
            assert store.term(1, 2) == (0 if rots else 2)

    run(main(), 1)
