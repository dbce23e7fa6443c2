"""Random work in which any volume that may go is compacted, and volumes below the replay floor are
read at a start: what is left of the log is what was written last, whatever went from between."""

from __future__ import annotations

import random

import pytest

from o3storage.simulation import SimDisk, run

from .crash_model import Driver
from .test_rebuild import OPTIONS, lose_index

WEIGHTS = {
    "append": 6,
    "replace": 3,
    "apply": 4,
    "flush": 2,
    "compact": 5,
    "close": 1,
    "kill": 1,
    "crash": 1,
    "lose the index": 1,
}


async def compact_any(driver: Driver, rng: random.Random) -> None:
    await driver.flush()
    assert driver.store is not None
    compactor, volumes = driver.store._compactor, driver.store._core.volumes
    free = [volume for volume in volumes.values() if compactor._may_free(volume)]
    if free:
        await compactor.compact(rng.choice(free))


async def play(seed: int) -> None:
    rng = random.Random(seed)
    driver = Driver(SimDisk(seed), **OPTIONS, reload_log_bytes=1 << 20)
    await driver.start()
    term = 1
    steps = rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=rng.randint(8, 50))
    for step in [*steps, "close"]:
        assert driver.store is not None
        if step == "append":
            size = rng.choice([50, 5000, 20_000])
            driver.append(rng.randint(1, 3), rng.randint(0, 3), size, vote=term, term=term)
            await driver.settle()
        elif step == "replace":
            term += 1
            size, back = rng.choice([10, 9000]), rng.randint(1, 3)
            driver.append(rng.randint(1, 3), 1, size, term=term, back=back, vote=term)
            await driver.settle()
        elif step == "apply":
            driver.apply(rng.randint(1, 4))
        elif step == "flush":
            await driver.flush()
        elif step == "compact":
            await compact_any(driver, rng)
        elif step in {"close", "lose the index"}:
            await driver.store.close()
            if step != "close":
                await lose_index(driver.disk)
            await driver.reopen(driver.disk)
        else:
            disk = driver.disk.crash(rng) if step == "crash" else driver.disk.kill()
            await driver.reopen(disk)
    await driver.store.close()


def test_any_volume_may_go() -> None:
    for seed in range(160):
        run(play(seed), seed)


@pytest.mark.slow
def test_any_volume_may_go_often() -> None:
    for seed in range(160, 1000):
        run(play(seed), seed)
