"""Chores go on after a round that failed; a disk that goes bad does not fill the log."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from o3storage.catalog import pending_buckets
from o3storage.runtime import log
from o3storage.server import Housekeeping
from o3storage.server._fault_log import MAX_BAD_FRAME_LINES, BadFrameLog
from o3storage.server._housekeeping import MOST_RANGES
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


class QuietNode:
    """A node with many ranges in which nothing is due."""

    def __init__(self, ranges: list[int]) -> None:
        self.ranges = ranges
        self.asked: list[int] = []

    def key_ranges(self) -> list[int]:
        return self.ranges

    async def query(self, asked: Any) -> Any:
        if asked._function is pending_buckets()._function:
            return []
        self.asked.append(asked.group)
        return [], b""


def test_ranges_have_their_turn_over_several_rounds() -> None:
    async def main() -> None:
        node = QuietNode([*range(250, 0, -1)])
        chores = Housekeeping(node, SimClock())  # type: ignore[arg-type]
        for _ in range(3):
            await chores.round(MOST_RANGES)
        assert node.asked == [*range(1, 251), *range(1, 51)]
        node.asked.clear()
        node.ranges = [260, 40, 60, 2]  # some are gone, and one is new
        await chores.round(3)
        assert node.asked == [60, 260, 2]
        await chores.round()
        assert node.asked[3:] == [40, 60, 260, 2]

    run(main(), 1)


def test_bad_records_are_told_up_to_a_limit(lines: Path) -> None:
    tell = BadFrameLog()
    for number in range(MAX_BAD_FRAME_LINES + 50):
        tell(BadFrame(bytes(16), number, 1, 4096 * number, "BLAKE3 does not match"))
    events = [json.loads(line)["event"] for line in lines.read_text().splitlines()]
    assert events == ["scrub.bad"] * MAX_BAD_FRAME_LINES + ["scrub.bad_many"]
