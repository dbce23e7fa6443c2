"""`o3storage simulate`: exit codes, one line for a failing seed, a trace."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from o3storage.cli import _simulate, run
from tests.simulation.planted import reused_stream_key


def test_seeds_that_pass(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", "--seeds", "2", "--seed", "1"]) == 0
    said = capsys.readouterr()
    assert "2 seeds, 0 failed" in said.out and "100%" in said.err


def test_a_seed_of_three_nodes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", "--nodes", "3", "--seed", "1"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("all promises held")


def test_a_failing_seed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reused_stream_key(monkeypatch)
    assert run(["simulate", "--seeds", "1", "--seed", "1"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("seed 1: sealing: key ") and "1 seeds, 1 failed" in lines[-1]


def test_workers_and_a_record_that_goes_on(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    record = tmp_path / "record"
    command = ["simulate", "--seed", "1", "--workers", "2", "--record", str(record)]
    assert run([*command, "--seeds", "3"]) == 0
    first = capsys.readouterr().out.splitlines()[-1]
    lines = record.read_text().splitlines()
    assert first.startswith("3 seeds, 0 failed") and " s of CPU" in first and len(lines) == 4
    # Cut off in the middle of the last one's line: that one is run again, and one more.
    record.write_text("\n".join(lines)[:-5])
    assert run([*command, "--seeds", "4"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("4 seeds, 0 failed")
    seeds = [json.loads(line)["seed"] for line in record.read_text().splitlines()[1:]]
    assert sorted(seeds) == [1, 2, 3, 4] and len(seeds) == 4


def test_workers_find_what_one_process_finds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reused_stream_key(monkeypatch)
    assert run(["simulate", "--seeds", "2", "--seed", "1", "--workers", "2"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split(":")[0] for line in lines[:2]) == ["seed 1", "seed 2"]


def test_what_is_wrong_with_a_record_is_said(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    record = tmp_path / "record"
    for content, said in (
        ('{"simulate":1,"nodes":5}\n', "another run"),
        ("good morning\n", "no record"),
    ):
        record.write_text(content)
        assert run(["simulate", "--seeds", "1", "--record", str(record)]) == 1
        assert said in capsys.readouterr().err
    assert run(["simulate", "--seeds", "1", "--workers", "0"]) == 1
    assert "--workers takes 1 to" in capsys.readouterr().err


def test_a_worker_that_dies_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(seed: int, *, nodes: int) -> None:
        os._exit(3)

    monkeypatch.setattr(_simulate, "simulate", dies)
    assert run(["simulate", "--seeds", "2", "--workers", "2"]) == 1
    assert "a worker ended early" in capsys.readouterr().err


def test_a_trace_of_one_seed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", "--seed", "3", "--trace"]) == 0
    said = capsys.readouterr().out
    assert "fault: " in said and " PUT /" in said and said.rstrip().endswith("all promises held")
