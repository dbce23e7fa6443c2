"""Thousands of slow uploads beside a normal client, and many large uploads at once: the normal
client keeps at least half of its rate, and memory stays bounded.

O3_SLOW_UPLOADS sets how many slow ones there are (2,000 in full).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import resource
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.client import S3, receive
from tests.support.running_store import RunningStore

pytestmark = pytest.mark.slow

SLOW_UPLOADS = int(os.environ.get("O3_SLOW_UPLOADS", "300"))
SLOW_BYTES_PER_S = 100
SLOW_BODY_BYTES = 1 << 30
REQUESTS = 150
"""Of the normal client in each stretch, PUTs and GETs by turns."""
STRETCHES = 6
"""Alone and beside the slow ones by turns. What else the machine does can fall on either one, so the
first stretch with half the rate shows it, and only all of them without it are a failure."""
BODY = random.Random(2).randbytes(64 * 1024)
LARGE_UPLOADS = 64
LARGE_BYTES = 24 << 20
MEMORY_BYTES = 512 << 20


def peak_memory(pid: int) -> int:
    """The most that the process ever held, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


@contextlib.contextmanager
def many_files(count: int) -> Iterator[None]:
    """Room for so many sockets; the store's process inherits it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 500
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"{wanted} file descriptors are needed, {hard} are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class SlowUploads:
    """Sockets that each send SLOW_BYTES_PER_S of a large body, in a process of their own: what
    sending costs must not slow the normal client's own interpreter."""

    def __init__(self, s3: S3, count: int) -> None:
        self.sockets: list[socket.socket] = []
        for number in range(count):
            sock = s3.connect()
            head = s3.head("PUT", f"/bucket/slow{number}", {"content-length": str(SLOW_BODY_BYTES)})
            sock.sendall(head)
            self.sockets.append(sock)
        self._process = multiprocessing.get_context("fork").Process(target=self._run, daemon=True)
        self._process.start()

    def _run(self) -> None:
        """A tenth of them each tenth of a second."""
        turn = 0
        while True:
            time.sleep(0.1)
            for sock in self.sockets[turn::10]:
                sock.sendall(bytes(SLOW_BYTES_PER_S))
            turn = (turn + 1) % 10

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        for sock in self.sockets:
            sock.close()


def requests_per_s(s3: S3) -> float:
    """Of one connection that is kept busy."""
    with s3.connect() as sock:
        started = time.perf_counter()
        for number in range(REQUESTS):
            path = f"/bucket/normal{number // 2 % 10}"
            if number % 2:
                sock.sendall(s3.head("GET", path))
                answer = receive(sock, "GET")
                assert answer.body == BODY
            else:
                sock.sendall(s3.head("PUT", path, {"content-length": str(len(BODY))}) + BODY)
                answer = receive(sock, "PUT")
            assert answer.status == 200, answer
        return REQUESTS / (time.perf_counter() - started)


def kept(alone: list[float], beside: list[float]) -> bool:
    """Whether the last stretch beside the slow uploads had half the rate of the one before it."""
    return bool(beside) and beside[-1] >= alone[-1] / 2


def test_a_normal_client_keeps_half_its_rate_beside_slow_uploads(tmp_path: Path) -> None:
    with many_files(SLOW_UPLOADS), RunningStore(tmp_path / "data") as store:
        s3 = S3(store)
        assert s3.call("PUT", "/bucket").status == 200
        requests_per_s(s3)  # warm
        alone: list[float] = []
        beside: list[float] = []
        while len(beside) < STRETCHES and not kept(alone, beside):
            alone.append(requests_per_s(s3))
            slow = SlowUploads(s3, SLOW_UPLOADS)
            try:
                beside.append(requests_per_s(s3))
                # All of them were held, and fed, meanwhile.
                assert s3.metric("o3_http_connections") >= SLOW_UPLOADS
            finally:
                slow.end()
            while s3.metric("o3_http_connections") > 1:
                time.sleep(0.02)
        assert kept(alone, beside), (alone, beside)
        print(
            f"{SLOW_UPLOADS} slow uploads: {beside[-1] / alone[-1]:.0%} of {alone[-1]:.0f} a second"
        )
        assert s3.keys("bucket") == sorted(f"normal{n}" for n in range(10))
        assert peak_memory(store.process.pid) < MEMORY_BYTES
        assert store.stop() == 0


def test_memory_is_bounded_under_large_uploads(tmp_path: Path) -> None:
    """64 at once; a third of them stop in the middle and stay."""
    body = random.Random(4).randbytes(1 << 20)
    with many_files(LARGE_UPLOADS), RunningStore(tmp_path / "data") as store:
        s3 = S3(store)
        assert s3.call("PUT", "/bucket").status == 200
        statuses: dict[int, int] = {}
        stay = threading.Event()
        halted = threading.Barrier(LARGE_UPLOADS // 3 + 1 + 1)

        def upload(number: int) -> None:
            head = s3.head("PUT", f"/bucket/{number}", {"content-length": str(LARGE_BYTES)})
            with s3.connect() as sock:
                sock.sendall(head)
                for sent in range(LARGE_BYTES >> 20):
                    if number % 3 == 0 and sent == 10:
                        halted.wait()
                        stay.wait()
                        return
                    sock.sendall(body)
                statuses[number] = receive(sock, "PUT").status

        threads = [threading.Thread(target=upload, args=(n,)) for n in range(LARGE_UPLOADS)]
        for thread in threads:
            thread.start()
        for number, thread in enumerate(threads):
            if number % 3:
                thread.join()
        halted.wait()
        assert peak_memory(store.process.pid) < MEMORY_BYTES
        stay.set()
        for thread in threads:
            thread.join()
        finished = [n for n in range(LARGE_UPLOADS) if n % 3]
        assert statuses == dict.fromkeys(finished, 200)
        assert s3.keys("bucket") == sorted(str(n) for n in finished)
        assert s3.get("/bucket/1").body == body * (LARGE_BYTES >> 20)
        assert peak_memory(store.process.pid) < MEMORY_BYTES
        print(f"peak {peak_memory(store.process.pid) >> 20} MiB")
        assert store.stop() == 0
