"""Crashes: at every sync of a workload, and at random, the store is as before or after, complete."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o3storage.simulation import SimDisk, run

from .crash_model import Driver
from .test_rebuild import lose_index

WORKLOADS = {}


def workload(function):
    WORKLOADS[function.__name__] = function
    return function


@workload
async def appends(driver):
    driver.append(2, 2, vote=1)
    await driver.settle()
    for i in range(4):
        driver.append(1, 1, size=700)
        driver.append(1, 1, size=3000)
        await driver.settle()
        driver.apply(2)
    driver.append(1, 0)
    await driver.settle()


@workload
async def replaced_suffix(driver):
    driver.append(4, 1, vote=1)
    await driver.settle()
    driver.append(2, 1, term=2, back=3, vote=2)
    await driver.settle()
    driver.apply(5)
    driver.append(2, 2, term=2)
    driver.append(1, 1, term=3, back=1, vote=3)
    await driver.settle()


@workload
async def rotations_and_flushes(driver):
    for i in range(6):
        driver.append(3, 3, size=2500, vote=i)
        await driver.settle()
        driver.apply(3)
        if i % 2:
            await driver.flush()
    driver.append(1, 1)
    await driver.settle()


@workload
async def uploads(driver):
    driver.append(1, 1, vote=1)
    await driver.settle()
    await driver.upload(3, 9000)
    driver.append(1, 0)
    await driver.settle()
    driver.apply(5)
    await driver.upload(2, 30_000)
    await driver.flush()
    await driver.upload(1, 100)


@workload
async def compactions(driver):
    for i in range(5):
        driver.append(3, 3, size=2500, vote=i)
        await driver.settle()
        driver.apply(3)
    await driver.upload(3, 9000)
    await driver.flush()
    for _ in range(3):
        await driver.store.compact()
    driver.append(2, 2)
    await driver.settle()
    driver.apply(2)
    await driver.flush()
    await driver.store.compact()


OPTIONS = {"log_volume_bytes": 40 * 1024, "bulk_volume_bytes": 64 * 1024}


async def record(name, disk):
    driver = Driver(disk, **OPTIONS)
    await driver.start()
    driver.recorder = disk.record()
    driver.note()
    await WORKLOADS[name](driver)
    await driver.store.close()
    driver.note()
    return driver.recorder


def check_states(recorder, *, subsets, skip=None, rebuild=False):
    """Open and check every crash state; returns how many. `skip`: syncs to leave out."""
    count = 0
    issued_later = None
    for state in recorder.crash_states(7, subsets=subsets, skip=skip):
        model = state.marks[-1]
        issued_later = max(recorder.later, key=len)
        count += 1

        async def reopen(state=state, model=model):
            driver = Driver(SimDisk(count, image=state.image), **OPTIONS)
            driver.model = type(model)(
                issued_later,
                model.acknowledged,
                0,
                frozenset(),
                model.bulk,
                recorder.tried,
            )
            await driver.start()
            await driver.check()
            if rebuild:
                driver.append(1, 1)
                await driver.settle()
                driver.apply(100)
                await driver.store.close()
                await driver.start()
                await driver.flush()
                for _ in range(9):
                    await driver.store.compact()
                await driver.store.close()
                await lose_index(driver.disk)
                await driver.reopen(driver.disk)
            driver.append(1, 1, term=9, vote=5)  # and it goes on from there
            await driver.settle()
            await driver.store.close()
            await driver.reopen(driver.disk)

        try:
            run(reopen(), count)
        except BaseException as error:
            error.add_note(state.label)
            raise
    return count


def recorded(name):
    recorder = run(record(name, SimDisk(1)), 1)
    marks = [event[1] for event in recorder.events if event[0] == "mark"]
    recorder.later = [mark.issued for mark in marks]
    recorder.tried = marks[-1].bulk_tried
    return recorder


@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_every_crash_state_is_old_or_new(name):
    assert check_states(recorded(name), subsets=4) > 20


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_many_subsets_of_sectors(name):
    check_states(recorded(name), subsets=50)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_removing_any_sync_is_seen(name):
    recorder = recorded(name)
    blind = []
    for point in needed_syncs(recorder):
        kind, target = recorder.events[point][:2]
        skip = {point}
        if kind == "sync_dir":  # two volumes that are made at once share their syncs
            near = range(point - 8, point + 9)
            skip |= {p for p in near if recorder.events[p : p + 1] == [("sync_dir", target)]}
        try:
            check_states(recorder, subsets=2, skip=skip, rebuild=True)
        except Exception:
            continue
        blind.append((point, recorder.events[point]))
    assert not blind


def needed_syncs(recorder):
    """Sync points but those of files that were removed again (a spare volume), of the test's own
    index (whose loss costs a rebuild), and of removed names (which may come back: harmless here)."""
    base = recorder._base
    paths = {node.number: path for path, node in base.names.items() if node is not None}
    gone = {event[1] for event in recorder.events if event[0] == "unlink"}
    number = base._next_inode - 1
    points = []
    created = set()
    for point, event in enumerate(recorder.events):
        if event[0] == "create":
            number += 1
            paths[number] = event[1]
            created.add(event[1])
        elif event[0] == "sync":
            path = paths[event[1]]
            if path not in gone and not path.startswith("index"):
                points.append(point)
        elif event[0] == "sync_dir":
            named = {p for p in created if p.startswith("volumes/") and event[1] == "volumes"}
            created -= named
            if named - gone:
                points.append(point)
    return points


operations = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 3), st.integers(0, 3), st.integers(1, 5000)),
        st.tuples(st.just("replace"), st.integers(1, 2), st.integers(1, 3)),
        st.tuples(st.just("settle")),
        st.tuples(st.just("apply"), st.integers(1, 4)),
        st.tuples(st.just("upload"), st.integers(1, 4), st.sampled_from([50, 5000, 40_000])),
        st.tuples(st.just("flush")),
        st.tuples(st.just("compact")),
        st.tuples(st.sampled_from(["crash", "kill", "close"]), st.integers(0, 1 << 30)),
    ),
    min_size=1,
    max_size=30,
)


async def play(script, seed, **options):
    driver = Driver(SimDisk(seed), **OPTIONS, **options)
    await driver.start()
    term = 1
    for name, *args in [*script, ("crash", seed)]:
        if name == "append":
            count, frames, size = args
            driver.append(count, frames, size, vote=term, term=term)
        elif name == "replace":
            term += 1
            driver.append(args[0], 1, 10, term=term, back=args[1], vote=term)
        elif name == "settle":
            await driver.settle()
        elif name == "apply":
            driver.apply(args[0])
        elif name == "upload":
            await driver.upload(*args)
        elif name == "flush":
            await driver.flush()
        elif name == "compact":
            await driver.store.compact()
        elif name == "close":
            await driver.store.close()
            await driver.reopen(driver.disk)
        else:
            after = (
                driver.disk.crash(random.Random(args[0])) if name == "crash" else driver.disk.kill()
            )
            await driver.reopen(after)


@settings(max_examples=60, deadline=None)
@given(script=operations, seed=st.integers(0, 1000))
def test_random_work_with_crashes(script, seed):
    run(play(script, seed), seed)


@settings(max_examples=25, deadline=None)
@given(script=operations, seed=st.integers(0, 1000))
def test_random_work_with_crashes_on_the_real_index(script, seed):
    run(play(script, seed, index=None), seed)
