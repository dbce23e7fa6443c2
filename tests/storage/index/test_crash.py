"""Every crash state of a recorded workload is the state at the last completed flush, or at the one
in progress; never a mixture."""

from __future__ import annotations

import random

import pytest

from o3storage.simulation import DEFAULT_SUBSETS, CrashState, Recorder, SimDisk, run
from o3storage.storage.index import IndexDamaged, IndexOptions, _build, _manifest
from tests.storage.index import reader
from tests.storage.index.support import (
    DISK_KEY,
    all_rows,
    apply,
    drop,
    files_of,
    open_index,
    random_rows,
)


async def workload(disk: SimDisk, seed: int) -> tuple[Recorder, dict]:
    """Writes, drops, flushes, merges, a restart. Returns the record and the rows at each mark."""
    rng = random.Random(seed)
    recorder = disk.record()
    recorder.mark(b"")
    index = await open_index(disk, seed)
    model: dict[bytes, bytes] = {}
    at_mark: dict[bytes, dict] = {b"": {}}
    for number in range(7):
        for _ in range(3):
            rows = random_rows(rng, 100, 12)
            index.write(rows)
            apply(model, rows)
        if number % 3 == 2:
            low = b"%04d" % rng.randrange(100)
            high = b"%04d" % rng.randrange(100)
            index.drop_range(low, high)
            drop(model, low, high)
        mark = b"flush %d" % number
        at_mark[mark] = dict(model)
        recorder.mark(b"begin " + mark)
        await index.flush(mark)
        recorder.mark(mark)
        if number in (3, 6):
            # Not durable before the next flush: merges must not lose rows to it.
            index.drop_range(b"0010", b"0060")
            drop(model, b"0010", b"0060")
        while number % 3 == 0 and await index.merge():
            pass
        if number == 4:
            await index.close()
            index = await open_index(disk, seed + 1)
    at_mark[b"end"] = dict(model)
    recorder.mark(b"begin end")
    await index.flush(b"end")
    recorder.mark(b"end")
    await index.close()
    return recorder, at_mark


def allowed(state: CrashState) -> set[bytes]:
    """The marks that a start after this crash may show."""
    done = [m for m in state.marks if not m.startswith(b"begin ")]
    begun = [m.removeprefix(b"begin ") for m in state.marks]
    return {done[-1], begun[-1]}


@pytest.mark.parametrize(
    ("seed", "subsets"),
    [(1, 10), pytest.param(2, DEFAULT_SUBSETS, marks=pytest.mark.slow)],
)
def test_every_crash_state_is_a_whole_flush(seed, subsets):
    check_crash_states(seed, subsets)


def test_the_same_while_manifests_follow_each_other(monkeypatch):
    """Manifests of two sectors' room are replaced at nearly every edit."""
    monkeypatch.setattr(_manifest, "FILE_BYTES", 2048)
    check_crash_states(4, 3)


def check_crash_states(seed: int, subsets: int) -> None:
    async def main() -> None:
        recorder, at_mark = await workload(SimDisk(seed), seed)
        count, seen = 0, set()
        for state in recorder.crash_states(seed, subsets=subsets):
            disk = SimDisk(seed, image=state.image)
            index = await open_index(disk, seed)
            assert index.mark in allowed(state), state.label
            assert await all_rows(index) == at_mark[index.mark], state.label
            seen.add(index.mark)
            if count % 10 == 0:
                # It also goes on from there, and the page's reader sees the same.
                expected = {**at_mark[index.mark], b"new": b"1"}
                index.write([(b"new", b"1")])
                await index.flush(b"later")
                assert await all_rows(index) == expected
                found = reader.read_index(files_of(disk), DISK_KEY)
                assert found == (b"later", dict(sorted(expected.items())))
            await index.close()
            count += 1
        assert count > 400
        assert seen == set(at_mark)

    run(main(), seed)


def test_leaving_out_any_one_sync_is_found():
    """Each sync of the workload is needed: without it some crash state is wrong."""

    async def main() -> None:
        recorder, at_mark = await workload(SimDisk(3), 3)
        points = recorder.sync_points()
        harmless = []
        for point in points:
            if not await finds(recorder, at_mark, point):
                harmless.append(recorder.events[point])
        # The restart syncs the directory's own names again: it cannot know that it need not.
        again = [("sync_dir", ""), ("sync_dir", "data")]
        assert harmless == again, f"{len(harmless)} of {len(points)} syncs are not needed"

    async def finds(recorder: Recorder, at_mark: dict, point: int) -> bool:
        for state in recorder.crash_states(3, subsets=2, skip={point}):
            if state.event <= point:
                continue
            try:
                index = await open_index(SimDisk(3, image=state.image), 3)
            except IndexDamaged:
                return True
            try:
                if index.mark not in allowed(state):
                    return True
                if await all_rows(index) != at_mark[index.mark]:
                    return True
            except Exception:
                return True
            finally:
                await index.close()
        return False

    run(main(), 3)


def test_a_long_table_is_synced_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sync of tens of megabytes at its end would hold up the log's syncs."""
    monkeypatch.setattr(_build, "SYNC_BYTES", 1 << 16)

    async def main() -> Recorder:
        disk = SimDisk(3)
        index = await open_index(disk, options=IndexOptions(background=False))
        rows = [(b"%08d" % n, bytes(100)) for n in range(32_000)]
        for at in range(0, len(rows), 16_000):
            index.write(rows[at : at + 16_000])
        recorder = disk.record()
        await index.flush(b"mark")
        await index.close()
        return recorder

    recorder = run(main(), 3)
    unsynced: dict[int, int] = {}
    longest: dict[int, int] = {}
    for operation, *arguments in recorder.events:
        if operation == "write":
            number, _, data = arguments
            unsynced[number] = unsynced.get(number, 0) + len(data)
            longest[number] = max(longest.get(number, 0), unsynced[number])
        elif operation == "sync":
            unsynced[arguments[0]] = 0
    assert 1 << 16 <= max(longest.values()) <= 5 << 18  # a step of the build writes a mebibyte
    assert not any(unsynced.values())
