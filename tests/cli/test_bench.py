"""`o3storage bench` against a running store: its progress, its table, its JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from o3storage.cli import run
from o3storage.cli._bench import Load
from tests.support.running_store import RunningStore, run_command

pytestmark = pytest.mark.slow

SHORT = ("--seconds", "0.3", "--connections", "2", "--objects", "5", "--size", "4K")
LATENCIES = ["p50", "p90", "p99", "p999", "max"]


def test_a_table_for_people_and_json_for_programs(tmp_path: Path) -> None:
    with RunningStore(tmp_path / "data") as store:
        at = ("--data-dir", str(store.data_dir))
        done = run_command("bench", "mixed", *SHORT, *at)
        assert done.returncode == 0, done.stderr
        said = done.stderr.splitlines()
        # Elsewhere than on a terminal a progress bar is a line for every tenth.
        assert "prepare 100% writing what will be read" in said
        assert re.fullmatch(r"measure \d+% [\d,]+ requests/s", said[-1])
        first, headings, rule, *rows, unit = done.stdout.splitlines()
        assert first.startswith(f"{store.url}: 4.0 KiB objects, 2 connections, 0.")
        assert re.search(r"; this client used \d+ % of one core$", first)
        assert headings.split() == [
            *("operation", "requests", "errors", "/s", "MiB/s"),
            *("p50", "p90", "p99", "p99.9", "max"),
        ]
        assert set(rule) == {"-", " "} and unit == "latencies in milliseconds"
        assert [row.split()[0] for row in rows] == ["get", "head", "put"]
        for row in rows:
            requests, errors, *rates = [float(cell.replace(",", "")) for cell in row.split()[1:]]
            assert requests > 0 and errors == 0 and rates[0] > 0
            assert rates[2:] == sorted(rates[2:]) and rates[2] > 0

        for operation in ("put", "list"):
            done = run_command("bench", operation, *SHORT, *at, "--json")
            assert done.returncode == 0, done.stderr
            found = json.loads(done.stdout)
            assert (found["endpoint"], found["size_bytes"]) == (store.url, 4096)
            assert found["connections"] == 2 and found["seconds"] >= 0.3
            assert found["client_cpu_share"] > 0
            assert list(found["operations"]) == [operation]
            entry = found["operations"][operation]
            assert entry["requests"] > 0 and entry["errors"] == {}
            assert entry["requests_per_s"] == entry["requests"] / found["seconds"]
            times = [entry[f"{label}_ms"] for label in LATENCIES]
            assert times == sorted(times) and times[0] > 0
            if operation == "put":
                sent_mib = entry["requests"] * 4096 / 1024**2
                assert entry["mib_per_s"] == pytest.approx(sent_mib / found["seconds"])
        assert store.stop() == 0


def test_what_cannot_be_measured_is_one_line(tmp_path: Path) -> None:
    with RunningStore(tmp_path / "other") as other, RunningStore(tmp_path / "data") as store:
        words = ("bench", "put", *SHORT, "--data-dir", str(store.data_dir))
        done = run_command(*words, "--bucket", "No_Bucket")
        assert done.returncode == 1 and done.stdout == ""
        refused = "o3storage: cannot make the bucket No_Bucket: 400 InvalidBucketName: "
        assert done.stderr.startswith(refused) and done.stderr.count("\n") == 1
        done = run_command(*words, "--endpoint", other.url)
        assert done.returncode == 1
        assert "cannot make the bucket o3-bench: 403 InvalidAccessKeyId" in done.stderr
        assert (other.stop(), store.stop()) == (0, 0)


def test_what_fails_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def leave_out(*_: object) -> None: ...

    monkeypatch.setattr(Load, "prepare", leave_out)  # what is read is not there
    with RunningStore(tmp_path / "data") as store:
        assert run(["bench", "get", *SHORT, "--data-dir", str(store.data_dir)]) == 1
        row, _, failures = capsys.readouterr().out.splitlines()[-3:]
        operation, requests, errors = row.split()[:3]
        assert (operation, requests, row.split()[-5:]) == ("get", "0", ["-"] * 5)
        assert failures == f"get: {errors.replace(',', '')} x HTTP 404"
        assert store.stop() == 0
