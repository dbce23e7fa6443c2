"""`o3storage simulate`: exit codes, one line for a failing seed, a trace."""

from __future__ import annotations

import pytest

from o3storage.cli import run
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


def test_a_trace_of_one_seed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", "--seed", "3", "--trace"]) == 0
    said = capsys.readouterr().out
    assert "fault: " in said and " PUT /" in said and said.rstrip().endswith("all promises held")
