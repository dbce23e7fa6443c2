"""A node that waits for its cluster says so to whoever asks, and leaves its address when it gives up."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from pathlib import Path

import pytest

from o3storage.cli._client import Client, ClientError
from o3storage.cluster import ClusterSecret
from o3storage.runtime import StallMeter, log
from o3storage.server import ClusterConfig, ServerConfig, StartError
from o3storage.server._app import Application
from o3storage.server._process import _unforeseen
from o3storage.storage import DataDirLock
from tests.cli.cluster_support import SECRET, Waiting, free_port_pair
from tests.http.clients import CERTIFICATES


def config(directory: Path, port: int, **more: Path) -> ServerConfig:
    cluster = ClusterConfig(peers="127.0.0.1:9", secret=ClusterSecret(SECRET))
    return ServerConfig(
        ip="127.0.0.1", port=port, data_dir=directory / "data", cluster=cluster, **more
    )


def test_probes_and_clients_are_told_while_it_waits(tmp_path: Path) -> None:
    port = free_port_pair()

    async def ask(method: str, path: str) -> tuple[int, bytes]:
        client = Client(f"http://127.0.0.1:{port}")
        try:
            found = await client.request(method, path)
        finally:
            await client.close()
        assert found.status == 200 or found.headers["retry-after"] == "5"
        return found.status, found.body

    async def main() -> None:
        said: list[str] = []
        application = Application(config(tmp_path, port), StallMeter(), said.append)
        starting = asyncio.ensure_future(application.start())
        try:
            while not said:
                await asyncio.sleep(0.01)
            assert await ask("GET", "/health/live") == (200, b"live\n")
            for path in ("/health/ready", "/health"):
                status, body = await ask("GET", path)
                assert status == 503 and b"waits for its cluster" in body
            for method in ("GET", "PUT"):
                status, body = await ask(method, "/bucket")
                assert status == 503 and b"<Code>ServiceUnavailable</Code>" in body
            starting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await starting
            with pytest.raises(ClientError):
                await ask("GET", "/health/live")
            DataDirLock.acquire(str(tmp_path / "data")).release()
        finally:
            await log.stop()
            await application.pool.close()

    asyncio.run(main())


def test_a_node_that_waits_reads_its_certificate_again(tmp_path: Path) -> None:
    arguments = ["--data-dir", str(tmp_path), "--port", str(free_port_pair())]
    tls = [
        "--tls-cert",
        f"{CERTIFICATES / 'ecdsa.pem'}",
        "--tls-key",
        f"{CERTIFICATES / 'ecdsa.key'}",
    ]
    waiting = Waiting(
        "serve",
        *arguments,
        *tls,
        *("--peers", "127.0.0.1:9"),
        environment={"O3_CLUSTER_SECRET": SECRET},
    )
    try:
        assert "waiting" in waiting.line()
        waiting.process.send_signal(signal.SIGHUP)
        assert waiting.process.stderr is not None
        while "certificate.reloaded" not in (line := waiting.process.stderr.readline()):
            assert line, "the process ended"
        assert waiting.end() == 0
    finally:
        waiting.process.kill()
        waiting.process.wait()


def test_what_nobody_caught_is_a_line_of_the_log() -> None:
    reader, writer = os.pipe()
    log.configure(fd=writer)

    def fails() -> None:
        raise ValueError("a defect; secret=abc")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_unforeseen)
        loop.call_soon(fails)
        await asyncio.sleep(0)
        loop.call_exception_handler({"message": "without an error"})

    try:
        asyncio.run(main())
        first, second = [json.loads(line) for line in os.read(reader, 65536).splitlines()]
    finally:
        log.configure()
        os.close(reader)
        os.close(writer)
    assert first["event"] == second["event"] == "loop.error"
    assert first["error"] == "ValueError: a defect; secret=[redacted]"
    assert first["at"].endswith(":fails")
    assert (second["reason"], second["at"]) == ("without an error", "")


def test_a_bad_certificate_ends_the_start_before_the_wait(tmp_path: Path) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("no certificate")

    async def main() -> None:
        port = free_port_pair()
        application = Application(config(tmp_path, port, tls_cert=bad, tls_key=bad), StallMeter())
        try:
            with pytest.raises(StartError, match=r"bad\.pem"):
                await application.start()
            assert not (tmp_path / "data").exists()
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        finally:
            await log.stop()
            await application.pool.close()

    asyncio.run(main())
