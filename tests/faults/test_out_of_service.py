"""A failed fsync: writes are refused, the store says so and leaves OUT_OF_SERVICE; the next start
obeys it with one line that says what to do, and `verify --return-disk` gives the disk back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.faults.client import S3
from tests.faults.shim import build_shim
from tests.support.running_store import RunningStore, run_command

pytestmark = pytest.mark.slow

LARGE = bytes(range(256)) * 4096


def failing_sync(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """(syncs fail while this file exists, environment of a store of which that is so)."""
    fails = tmp_path / "fail now"
    shim = build_shim("failing_sync", tmp_path)
    return fails, {"LD_PRELOAD": str(shim), "O3_FAIL_SYNC": str(fails)}


def test_a_failed_fsync_ends_the_service_and_says_so(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    fails, extra = failing_sync(tmp_path)
    with RunningStore(data_dir, environment=extra) as store:
        s3 = S3(store)
        assert s3.call("PUT", "/bucket").status == 200
        assert s3.put("/bucket/small", b"small").status == 200
        assert s3.put("/bucket/large", LARGE).status == 200
        assert s3.plain("/health/ready").status == 200
        fails.touch()
        assert s3.put("/bucket/lost", b"lost").status in {500, 503}
        fails.unlink()  # the disk seems well again: nothing may trust it
        for path, body in (("/bucket/small", b"new"), ("/bucket/large", LARGE), ("/bucket/n", b"")):
            assert s3.put(path, body).status in {500, 503}
        assert s3.delete("/bucket/small").status in {500, 503}
        assert s3.call("PUT", "/other").status in {500, 503}
        # The node gave up leadership of what lies on that disk: it may refuse reads, and what it
        # does serve is what was durable.
        for path, body in (("/bucket/small", b"small"), ("/bucket/large", LARGE)):
            answer = s3.get(path)
            assert answer.status == 503 or (answer.status, answer.body) == (200, body), answer
        assert s3.get("/bucket/lost").status in {404, 503}
        assert s3.plain("/health/live").status == 200
        assert s3.plain("/health/ready").status == 503
        health = s3.plain("/health")
        assert health.status == 503
        facts = json.loads(health.body)
        assert facts["status"] == "degraded" and facts["cluster"]["write_enabled"] is False
        assert "out of service" in facts["cluster"]["reason"]
        assert s3.metric("o3_disk_out_of_service") == 1
        assert (data_dir / "OUT_OF_SERVICE").exists()
        store.stop()
    refused = run_command("--port", "0", "--data-dir", str(data_dir))
    assert refused.returncode == 1
    assert len(refused.stderr.strip().splitlines()) == 1
    assert "verify --return-disk" in refused.stderr
    plain = run_command("verify", "--data-dir", str(data_dir))
    assert plain.returncode == 1 and "--return-disk" in plain.stdout
    assert (data_dir / "OUT_OF_SERVICE").exists()
    returned = run_command("verify", "--return-disk", "--data-dir", str(data_dir))
    assert returned.returncode == 0 and "back in service" in returned.stdout, returned.stdout
    with RunningStore(data_dir) as store:
        s3 = S3(store)
        assert s3.get("/bucket/small").body == b"small"
        assert s3.get("/bucket/large").body == LARGE
        assert s3.put("/bucket/small", b"new").status == 200
        assert s3.plain("/health/ready").status == 200
        assert store.stop() == 0


def test_a_failed_fsync_of_a_large_body(tmp_path: Path) -> None:
    """The bulk volume's sync fails, not the log's."""
    data_dir = tmp_path / "data"
    fails, extra = failing_sync(tmp_path)
    with RunningStore(data_dir, environment=extra) as store:
        s3 = S3(store)
        assert s3.call("PUT", "/bucket").status == 200
        fails.touch()
        assert s3.put("/bucket/lost", LARGE).status in {500, 503}
        fails.unlink()
        assert s3.get("/bucket/lost").status in {404, 503}
        assert s3.plain("/health/ready").status == 503
        store.stop()
    assert (data_dir / "OUT_OF_SERVICE").exists()


def test_a_damaged_disk_is_not_returned(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with RunningStore(data_dir) as store:
        s3 = S3(store)
        assert s3.call("PUT", "/bucket").status == 200
        assert s3.put("/bucket/large", LARGE).status == 200
        assert store.stop() == 0
    (data_dir / "OUT_OF_SERVICE").write_text("a write failed\n")
    (volume,) = data_dir.glob("volumes/*.bulk")
    with volume.open("r+b") as file:
        file.seek(100_000)
        file.write(b"damaged")
    done = run_command("verify", "--return-disk", "--data-dir", str(data_dir))
    assert done.returncode == 1 and "BAD" in done.stdout
    assert (data_dir / "OUT_OF_SERVICE").exists()
