"""The log: one object a line, no secrets, no blocking."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from o3storage import _native
from o3storage.runtime import JobPool, Logger, log

LOG = Logger("room")


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    log.configure(level="debug", fd=writer)
    yield reader, writer
    log.configure()
    os.close(reader)
    os.close(writer)


def lines(reader: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in os.read(reader, 1 << 20).splitlines()]


def test_a_line(pipe: tuple[int, int]) -> None:
    LOG.info("volume.cut", volume=7, lost_bytes=512, path="a\nb\x1b[0m", level="mine", ok=True)
    (line,) = lines(pipe[0])
    stamp = line.pop("time")
    assert len(stamp) == len("2026-01-01T00:00:00.000Z")
    assert line == {
        "level": "info",
        "room": "room",
        "event": "volume.cut",
        "volume": 7,
        "lost_bytes": 512,
        "path": "a\nb\x1b[0m",
        "level_": "mine",
        "ok": True,
    }


def test_a_line_holds_no_control_character(pipe: tuple[int, int]) -> None:
    """Of what a peer that proved nothing said, for one."""
    said = "".join([chr(code) for code in (*range(0x20), *range(0x7F, 0xA0))]) + "é 漢"
    LOG.info("x", text=said)
    raw = os.read(pipe[0], 1 << 20).decode()
    assert raw.endswith("\n") and raw[:-1].isprintable()
    assert json.loads(raw)["text"] == said


def test_levels(pipe: tuple[int, int]) -> None:
    log.configure(level="warning", fd=pipe[1])
    LOG.debug("a")
    LOG.info("b")
    LOG.warning("c")
    LOG.error("d")
    assert [line["event"] for line in lines(pipe[0])] == ["c", "d"]
    with pytest.raises(ValueError, match="log level"):
        log.configure(level="loud")


SECRETS = [
    "AWS4-HMAC-SHA256 Credential=AKID/x, SignedHeaders=host, Signature=deadbeef",
    "/b/k?X-Amz-Credential=AKID&X-Amz-Signature=deadbeef&partNumber=1",
    "/b/k?x-amz-security-token=deadbeef",
    "Authorization: AWS4-HMAC-SHA256 deadbeef and more deadbeef",
    '{"password": "deadbeef", "a": 1}',
    "secret=deadbeef",
    "x-amz-server-side-encryption-customer-key: deadbeef",
]


@pytest.mark.parametrize("text", SECRETS)
def test_secrets_in_text(pipe: tuple[int, int], text: str) -> None:
    LOG.info("x", text=text, nested={"list": [text], "raw": text.encode()})
    LOG.info("x", error=ValueError(text))
    raw = os.read(pipe[0], 1 << 20).decode()
    assert "deadbeef" not in raw
    assert "AKID" not in raw
    assert "[redacted]" in raw


def test_what_is_no_secret_stays(pipe: tuple[int, int]) -> None:
    text = "/b/k?X-Amz-Signature=x&partNumber=1&uploadId=abc"
    LOG.info("x", path=text)
    (line,) = lines(pipe[0])
    assert line["path"] == "/b/k?X-Amz-Signature=[redacted]&partNumber=1&uploadId=abc"


@pytest.mark.parametrize(
    "name", ["authorization", "Signature", "secret_key", "disk_key", "kek", "password", "cookie"]
)
def test_secrets_by_name(pipe: tuple[int, int], name: str) -> None:
    LOG.info("x", **{name: "deadbeef"}, inner={name: b"deadbeef"})
    assert b"deadbeef" not in os.read(pipe[0], 1 << 20)


def test_errors_tell_the_place(pipe: tuple[int, int]) -> None:
    try:
        raise KeyError("gone")
    except KeyError as error:
        LOG.error("failed", error=error)
    (line,) = lines(pipe[0])
    assert line["error"] == "KeyError: 'gone'"
    assert line["at"].startswith("test_log.py:")


def test_any_value(pipe: tuple[int, int]) -> None:
    LOG.info("x", a="x" * 10_000, b=b"\xff", c=object, d=[1, (2, "s")], e=None, f="\ud800")
    (line,) = lines(pipe[0])
    assert len(line["a"]) < 3000
    assert line["b"] == "\\xff"
    assert line["d"] == [1, [2, "s"]]


def test_lines_by_jobs_keep_their_order(pipe: tuple[int, int]) -> None:
    async def main() -> None:
        pool = JobPool()
        await pool.start()
        log.start(pool)
        for number in range(200):
            LOG.info("x", number=number)
            if number % 50 == 0:
                await asyncio.sleep(0.001)
        await log.stop()
        await pool.close()
        LOG.info("x", number=200)

    asyncio.run(main())
    assert [line["number"] for line in lines(pipe[0])] == list(range(201))


def test_a_stalled_reader_stalls_nobody_and_the_loss_is_told(pipe: tuple[int, int]) -> None:
    async def main() -> None:
        pool = JobPool()
        await pool.start()
        log.start(pool)
        for number in range(1500):
            LOG.info("x", number=number, padding="p" * 1500)
        loop = asyncio.get_running_loop()
        stop = loop.create_task(log.stop())
        got = bytearray()
        os.set_blocking(pipe[0], False)
        while not stop.done():
            try:
                got += os.read(pipe[0], 1 << 20)
            except BlockingIOError:
                await asyncio.sleep(0)
        await stop
        await pool.close()
        events = [json.loads(line) for line in got.splitlines()]
        kept = [line["number"] for line in events if line["event"] == "x"]
        assert kept == list(range(len(kept)))
        told = sum(line["lines"] for line in events if line["event"] == "log.dropped")
        assert told > 0
        assert told + len(kept) == 1500

    asyncio.run(main())


def test_the_end_waits_for_one_write_that_fails_and_for_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each may last as long as a reader is allowed to stall."""
    reader, writer = os.pipe()
    log.configure(fd=writer)
    os.close(reader)  # fails at once, as a stalled one does after its time
    made = 0
    log_job = _native.log_job

    def counted(fd: int, data: bytes) -> _native.Job[None]:
        nonlocal made
        made += 1
        return log_job(fd, data)

    async def main() -> None:
        monkeypatch.setattr(_native, "log_job", counted)
        pool = JobPool()
        await pool.start()
        log.start(pool)
        for number in range(200):
            LOG.info("x", number=number, text="y" * 2000)
        await log.stop()
        await pool.close()

    asyncio.run(main())
    assert made == 1
    os.close(writer)
    log.configure()


def test_a_closed_standard_error_is_no_error() -> None:
    reader, writer = os.pipe()
    log.configure(fd=writer)
    os.close(reader)
    LOG.info("x")
    os.close(writer)
    LOG.info("x")
    log.configure()
