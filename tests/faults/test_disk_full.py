"""A small disk that fills in the middle of uploads: 507, nothing half-present; deletes go on, their
space comes back, and what was acknowledged survives a restart."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.client import S3
from tests.support.running_store import RunningStore, run_command

pytestmark = pytest.mark.slow

DISK_MIB = 160
"""Room for a dozen objects of 9 MiB."""
LARGE = random.Random(5).randbytes(9 * 1024 * 1024)
SMALL = LARGE[:20_000]
LEFT_BYTES = 20 * 1024 * 1024
PATIENCE_S = 90.0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of DISK_MIB."""
    place = tmp_path / "disk"
    place.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(place)]
    done = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no small disk to fill: mount is not permitted here ({done.stderr.strip()})")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def free_bytes(place: Path) -> int:
    space = os.statvfs(place)
    return space.f_bavail * space.f_frsize


def test_it_fills_and_empties(small_disk: Path) -> None:
    data_dir = small_disk / "data"
    with RunningStore(data_dir) as store:
        s3 = S3(store)
        assert s3.call("PUT", "/bucket").status == 200
        assert s3.put("/bucket/kept", LARGE[:300_000]).status == 200
        stored = fill(s3)
        assert len(stored) >= 2
        refused_in_full(s3)
        # The refused ones are not there, the others are.
        assert s3.keys("bucket") == sorted(["kept", *stored])
        for key in ("kept", stored[0], stored[-1]):
            assert s3.get(f"/bucket/{key}").status == 200
        # Deletes go on, and writing does, once their space is free again.
        for key in stored[:-1]:
            assert s3.delete(f"/bucket/{key}").status == 204
        until_written(s3, "/bucket/after", LARGE)
        until_written(s3, "/bucket/small after", SMALL)
        # Full again, then stopped: it starts on the full disk.
        again = fill(s3, "second")
        assert store.stop() == 0
    with RunningStore(data_dir) as store:
        s3 = S3(store)
        assert s3.keys("bucket") == sorted(["kept", stored[-1], "after", "small after", *again])
        for key in (stored[-1], "after", *again):
            assert s3.get(f"/bucket/{key}").body == LARGE
        assert s3.delete("/bucket/after").status == 204
        store.kill()
    with RunningStore(data_dir) as store:
        assert S3(store).get("/bucket/kept").body == LARGE[:300_000]
        assert store.stop() == 0
    report = run_command("verify", "--data-dir", str(data_dir))
    assert report.returncode == 0, report.stdout


def fill(s3: S3, name: str = "large") -> list[str]:
    """Store LARGE until it is refused; the keys that were acknowledged."""
    stored: list[str] = []
    while True:
        key = f"{name}{len(stored):03}"
        answer = s3.put(f"/bucket/{key}", LARGE)
        if answer.status != 200:
            assert (answer.status, answer.code) == (507, "StorageFull"), answer
            return stored
        stored.append(key)
        assert len(stored) < DISK_MIB // 9


def refused_in_full(s3: S3) -> None:
    """While it is full: large and small are refused, probes say so, reading goes on."""
    assert s3.put("/bucket/one more", LARGE).status == 507
    assert s3.get("/bucket/one more").status == 404
    assert s3.get("/bucket/kept").body == LARGE[:300_000]


def until_written(s3: S3, path: str, body: bytes) -> None:
    """Space comes back when compaction ran: until then 507 and nothing else."""
    end = time.monotonic() + PATIENCE_S
    while (answer := s3.put(path, body)).status != 200:
        assert answer.status == 507, answer
        assert time.monotonic() < end, "deleting gave no space back"
        time.sleep(0.2)
    assert s3.get(path).body == body


def test_it_fills_under_small_objects(small_disk: Path) -> None:
    """They go into the log: it may not eat the room that deletes need."""
    data_dir = small_disk / "data"
    filler = small_disk / "filler"
    with RunningStore(data_dir) as store:
        s3 = S3(store)
        assert s3.call("PUT", "/bucket").status == 200
        # Somebody else takes most of it.
        with filler.open("wb") as file:
            for _ in range((free_bytes(small_disk) - LEFT_BYTES) >> 20):
                file.write(bytes(1 << 20))
        stored = 0
        while stored < 4000:
            answer = s3.put(f"/bucket/{stored}", SMALL)
            if answer.status != 200:
                assert answer.status == 507, answer
                break
            stored += 1
        else:
            raise AssertionError("it never was full")
        health = s3.plain("/health/ready")
        assert health.status in {200, 503}
        for number in range(0, stored, 2):
            assert s3.delete(f"/bucket/{number}").status == 204, number
        filler.unlink()
        until_written(s3, "/bucket/after", SMALL)
        assert len(s3.keys("bucket")) == min(1000, stored // 2 + 1)
        assert store.stop() == 0
    report = run_command("verify", "--data-dir", str(data_dir))
    assert report.returncode == 0, report.stdout


def test_somebody_else_takes_the_last_block(small_disk: Path) -> None:
    """Not even the reserve is left: each write is answered within a bound, and when the space is
    back everything goes on, with all that was acknowledged."""
    data_dir = small_disk / "data"
    filler = small_disk / "filler"
    with RunningStore(data_dir) as store:
        s3 = S3(store)
        assert s3.call("PUT", "/bucket").status == 200
        with filler.open("wb") as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 16))
                file.flush()
        assert free_bytes(small_disk) < 1 << 16
        stored = []
        refused = 0
        for number in range(200):
            began_s = time.monotonic()
            answer = s3.put(f"/bucket/{number:03}", SMALL)
            assert time.monotonic() - began_s < PATIENCE_S
            assert answer.status in {200, 503, 507}, answer
            if answer.status == 200:
                stored.append(f"{number:03}")
            refused += answer.status != 200
        assert refused
        assert s3.put("/bucket/large", LARGE).status in {503, 507}
        assert s3.get(f"/bucket/{stored[0]}").body == SMALL
        filler.unlink()
        until_written(s3, "/bucket/after", SMALL)
        until_written(s3, "/bucket/large", LARGE)
        assert s3.delete(f"/bucket/{stored[0]}").status == 204
        # (What was answered with 503 may have been written after all.)
        assert {*stored[1:], "after", "large"} <= set(s3.keys("bucket"))
        for key in stored[1:]:
            assert s3.get(f"/bucket/{key}").body == SMALL
        assert store.stop() == 0
    report = run_command("verify", "--data-dir", str(data_dir))
    assert report.returncode == 0, report.stdout
