"""The log: one JSON object a line on standard error.

    log = Logger("storage")
    log.warning("volume.cut", volume=7, lost_bytes=512)

Fields are plain values. Secrets never get in: fields with telling names are replaced, and
signatures, tokens and keys inside text too. Until `start` lines are written directly; after it, by
jobs of the pool in order, so that a reader that stalls never stalls the event loop.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import time
from types import TracebackType
from typing import Any

from o3storage import _native
from o3storage.runtime._pool import JobPool
from o3storage.runtime._tasks import wait_any

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}

VALUE_MAX_CHARS = 2_048
"""Longer texts are cut: a line is for a person or a collector, not an archive."""
QUEUE_MAX_BYTES = 1024 * 1024
"""Lines that wait for a slow reader; what does not fit is counted and dropped."""
WRITE_MAX_BYTES = 64 * 1024
"""Lines written by one job: what a pipe takes at once."""

REDACTED = "[redacted]"

_CONTROLS = {code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)}
"""What JSON leaves as it is and a terminal takes for commands, as JSON's escapes."""

_SECRET_NAME = re.compile(
    r"authorization|signature|secret|password|passwd|token|cookie|credential|private|"
    r"customer[-_]?key|master_?key|disk_?key|\bkek\b",
    re.IGNORECASE,
)
_SECRET_VALUE = re.compile(
    r"((?:signature|security-token|customer-key|credential|password|secret|token)\"?[=:]\s*\"?)"
    r"[^\s&,;\"']+",
    re.IGNORECASE,
)
_AUTHORIZATION = re.compile(r"(authorization\"?[=:]\s*)[^\r\n]+", re.IGNORECASE)


def redact(text: str) -> str:
    """`text` without the values of signatures, tokens, customers' keys and authorization headers in
    it."""
    return _SECRET_VALUE.sub(rf"\1{REDACTED}", _AUTHORIZATION.sub(rf"\1{REDACTED}", text))


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        value = bytes(value[:VALUE_MAX_CHARS]).decode("utf-8", "backslashreplace")
    elif isinstance(value, dict):
        return {str(k): _field(str(k), v) for k, v in list(value.items())[:100]}
    elif isinstance(value, list | tuple):
        return [_plain(item) for item in value[:100]]
    elif isinstance(value, BaseException):
        value = f"{type(value).__name__}: {value}"
    text = str(value)
    if len(text) > VALUE_MAX_CHARS:
        text = text[:VALUE_MAX_CHARS] + "..."
    return redact(text)


def _field(name: str, value: Any) -> Any:
    return REDACTED if _SECRET_NAME.search(name) else _plain(value)


class _Output:
    """Where lines go; one for the process."""

    def __init__(self) -> None:
        self.fd = 2
        self.threshold = LEVELS["info"]
        self.pool: JobPool | None = None
        self.queue: list[bytes] = []
        self.queued_bytes = 0
        self.writing: asyncio.Future[None] | None = None
        self.dropped = 0
        self.ending = False
        """Whether `stop` waits."""

    def emit(self, line: bytes) -> None:
        if self.pool is None:
            _write_all(self.fd, line)
            return
        if self.queued_bytes + len(line) > QUEUE_MAX_BYTES:
            self.dropped += 1
            return
        self.queue.append(line)
        self.queued_bytes += len(line)
        if self.writing is None:
            self._write_next()

    def _write_next(self) -> None:
        self.writing = None
        if not self.queue or self.pool is None:
            return
        if self.dropped:
            count, self.dropped = self.dropped, 0
            self.queue.append(_line("warning", "log", "log.dropped", {"lines": count}))
        size = taken = 0
        for line in self.queue:
            if taken and size + len(line) > WRITE_MAX_BYTES:
                break
            size += len(line)
            taken += 1
        data = b"".join(self.queue[:taken])
        del self.queue[:taken]
        self.queued_bytes = max(0, self.queued_bytes - size)
        self.writing = self.pool.submit(_native.log_job(self.fd, data))
        self.writing.add_done_callback(lambda done: self._written(done, taken))

    def _written(self, done: asyncio.Future[None], lines: int) -> None:
        # Nobody reads, or standard error is closed; it is told when someone reads again.
        if done.cancelled() or done.exception() is not None:
            self.dropped += lines
            if self.ending:  # one stall of seconds is enough, not one for each batch
                self.dropped += len(self.queue)
                self.queue.clear()
                self.queued_bytes = 0
        self._write_next()


def _write_all(fd: int, data: bytes) -> None:
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError:
        return  # A closed standard error: there is nowhere left to say so.


_output = _Output()


def configure(*, level: str = "info", fd: int = 2) -> None:
    """What is written and where. ValueError for a level that is not in `LEVELS`."""
    if level not in LEVELS:
        raise ValueError(f"log level is one of {', '.join(LEVELS)}, not {level!r}")
    _output.threshold = LEVELS[level]
    _output.fd = fd


def start(pool: JobPool) -> None:
    """Write by jobs of `pool` from now on."""
    _output.pool = pool


async def stop() -> None:
    """Wait until all lines are out, or their reader has stalled for some seconds, and write
    directly again. Before the pool closes."""
    _output.ending = True
    try:
        while _output.writing is not None:
            await wait_any([_output.writing])
            await asyncio.sleep(0)
    finally:
        _output.ending = False
    _output.pool = None


def _line(level: str, room: str, event: str, fields: dict[str, Any]) -> bytes:
    now = time.time_ns()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // 1_000_000_000))
    record: dict[str, Any] = {
        "time": f"{stamp}.{now // 1_000_000 % 1000:03d}Z",
        "level": level,
        "room": room,
        "event": event,
    }
    for name, value in fields.items():
        record[name if name not in record else f"{name}_"] = _field(name, value)
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":"), default=str)
    text = text.translate(_CONTROLS)
    return text.encode("utf-8", "backslashreplace") + b"\n"


class Logger:
    """Writes the events of one room. `event` is a short dotted name; details are fields."""

    __slots__ = ("_room",)

    def __init__(self, room: str) -> None:
        self._room = room

    def log(self, level: str, event: str, fields: dict[str, Any]) -> None:
        """One line, if `level` is at or above the configured one."""
        if LEVELS[level] >= _output.threshold:
            _output.emit(_line(level, self._room, event, fields))

    def debug(self, event: str, **fields: Any) -> None:
        """For the developer."""
        self.log("debug", event, fields)

    def info(self, event: str, **fields: Any) -> None:
        """What happens in normal operation, rarely."""
        self.log("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Something to look at."""
        self.log("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """Something to act on. Inside `except` the exception's place is added."""
        place = _exception_place()
        if place is not None:
            fields.setdefault("at", place)
        self.log("error", event, fields)


def _exception_place() -> str | None:
    error = sys.exc_info()[1]
    if error is None or error.__traceback__ is None:
        return None
    steps = []
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        steps.append(f"{os.path.basename(code.co_filename)}:{trace.tb_lineno}:{code.co_name}")
        trace = trace.tb_next
    return " > ".join(steps[-6:])
