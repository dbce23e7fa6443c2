"""What /health and its aliases say, to anybody: what it costs does not grow with how often it is
asked."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from o3storage.cli._client import Client
from o3storage.runtime import StallMeter, log
from o3storage.server._app import Application
from o3storage.server._config import ServerConfig
from o3storage.server._health import FRESH_S, ObjectCount
from o3storage.simulation import run


def test_the_ranges_are_asked_once_for_all_who_ask_within_a_second() -> None:
    async def main() -> None:
        asked = 0
        answers: list[int | None] = [None, 7, 8]

        async def count() -> int | None:
            nonlocal asked
            asked += 1
            await asyncio.sleep(5)
            return answers[asked - 1]

        counted = ObjectCount(count)
        # Also if it cannot be said: they do not wait for one try after the other.
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        assert await asyncio.gather(*(counted.now() for _ in range(100))) == [None] * 100
        assert asked == 1 and loop.time() - began_s < 6
        await asyncio.sleep(FRESH_S)
        assert await asyncio.gather(*(counted.now() for _ in range(100))) == [7] * 100
        assert await counted.now() == 7 and asked == 2
        await asyncio.sleep(FRESH_S)
        assert await counted.now() == 8 and asked == 3

    run(main(), 1)


def test_who_goes_away_while_the_ranges_are_asked_leaves_the_question_to_the_next() -> None:
    async def main() -> None:
        async def count() -> int | None:
            await asyncio.sleep(1)
            return 3

        counted = ObjectCount(count)
        first = asyncio.ensure_future(counted.now())
        second = asyncio.ensure_future(counted.now())
        await asyncio.sleep(0.5)
        first.cancel()
        assert await second == 3
        with pytest.raises(asyncio.CancelledError):
            await first

    run(main(), 2)


LIVE = ("/health/live", "/minio/health/live")
READY = ("/health/ready", "/minio/health/ready", "/minio/health/cluster")


def test_the_whole_document_and_every_alias(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        config = ServerConfig(ip="127.0.0.1", port=0, data_dir=tmp_path, anonymous=True)
        app = Application(config, StallMeter())
        await app.start()
        client = Client(app.url)

        async def ask(path: str) -> tuple[int, dict[str, str], Any]:
            answer = await client.request("GET", path)
            assert (await client.request("HEAD", path)).status == answer.status
            return answer.status, answer.headers, answer.body.decode()

        try:
            for path in ("/bucket", "/bucket/a", "/bucket/b", "/bucket/b"):
                assert (await client.request("PUT", path, body=b"")).status == 200
            counted = app.store.space()
            assert counted.used_bytes > 0 and counted.free_bytes > counted.reserve_bytes > 0
            space = replace(counted, used_bytes=24_576, free_bytes=7_000, reserve_bytes=2_000)
            monkeypatch.setattr(app.store, "space", lambda: space)
            document: dict[str, Any] = {
                "status": "ok",
                "cluster": {"active_nodes": 1, "total_replicas": 2, "write_enabled": True},
                "storage": {
                    "total_objects": 2,
                    "used_space_bytes": 24_576,
                    "available_space_bytes": 5_000,
                },
            }
            status, headers, body = await ask("/health")
            assert (status, json.loads(body)) == (200, document)
            assert headers["content-type"] == "application/json"
            assert headers["cache-control"] == "no-store"
            for path in LIVE:
                assert (await ask(path))[::2] == (200, "live\n"), path
            for path in READY:
                assert (await ask(path))[::2] == (200, "ready\n"), path

            space = replace(space, free_bytes=1_000, full=True)
            document["status"] = "degraded"
            document["cluster"]["write_enabled"] = False
            reason = "the disk is full: delete something, or give it more space"
            document["cluster"]["reason"] = reason
            document["storage"]["available_space_bytes"] = 0
            status, _, body = await ask("/health")
            assert (status, json.loads(body)) == (503, document)
            for path in LIVE:
                assert (await ask(path))[::2] == (200, "live\n"), path
            for path in READY:
                status, headers, body = await ask(path)
                assert (status, body) == (503, "not ready\n"), path
                assert int(headers["retry-after"]) > 0
        finally:
            await client.close()
            await app.stop()
            await log.stop()
            await app.pool.close()

    asyncio.run(main())
