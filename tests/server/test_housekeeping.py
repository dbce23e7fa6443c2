"""Chores go on after a round that failed; a disk that goes bad does not fill the log."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from o3storage.runtime import log
from o3storage.server import Housekeeping
from o3storage.server._app import MAX_BAD_FRAME_LINES, _BadFrameLog
from o3storage.simulation import SimClock, run
from o3storage.storage import BadFrame


@pytest.fixture
def lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file that log lines go to."""
    monkeypatch.setattr(log, "_output", log._Output())  # not the one that other tests started
    path = tmp_path / "log"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    log.configure(fd=fd)
    yield path
    os.close(fd)


class FailingNode:
    """A node whose first queries fail in a way that nobody foresaw."""

    def __init__(self) -> None:
        self.queries = 0
        self.done = asyncio.Event()

    def key_ranges(self) -> list[int]:
        return [1]

    async def query(self, asked: object) -> object:
        self.queries += 1
        if self.queries <= 2:
            raise ValueError("a row that nobody wrote")
        if self.queries == 3:
            return []  # no bucket is being deleted
        self.done.set()
        return [], b""


def test_a_round_that_fails_is_logged_and_the_next_one_comes(lines: Path) -> None:
    async def main() -> None:
        node = FailingNode()
        chores = Housekeeping(node, SimClock())  # type: ignore[arg-type]
        chores.start()
        await node.done.wait()
        await chores.stop()

    run(main(), 1)
    written = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [line["event"] for line in written] == ["housekeeping.failed"] * 2
    assert "a row that nobody wrote" in written[0]["reason"]


def test_bad_records_are_told_up_to_a_limit(lines: Path) -> None:
    tell = _BadFrameLog()
    for number in range(MAX_BAD_FRAME_LINES + 50):
        tell(BadFrame(bytes(16), number, 1, 4096 * number, "BLAKE3 does not match"))
    events = [json.loads(line)["event"] for line in lines.read_text().splitlines()]
    assert events == ["scrub.bad"] * MAX_BAD_FRAME_LINES + ["scrub.bad_many"]
