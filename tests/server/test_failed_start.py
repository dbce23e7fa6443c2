"""A start that fails behind the opening of the store closes what it opened."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from o3storage.runtime import StallMeter, log
from o3storage.server import StartError
from o3storage.server._app import Application
from o3storage.server._config import ServerConfig
from o3storage.storage import DataDirLock, StoreOutOfService


def test_a_bad_certificate_leaves_nothing_open(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    bad = tmp_path / "bad.pem"
    bad.write_text("no certificate")

    async def main() -> None:
        config = ServerConfig(ip="127.0.0.1", port=0, data_dir=data_dir, tls_cert=bad, tls_key=bad)
        application = Application(config, StallMeter())
        try:
            with pytest.raises(StartError, match=r"bad\.pem"):
                await application.start()
            with pytest.raises(StoreOutOfService, match="closed"):
                application.store.open_stream(bytes(16))
            assert application.node.write_refusal() == "the node is stopping"
            DataDirLock.acquire(str(data_dir)).release()
            # All of it was written out: no log volume is left open at its full size.
            sizes = [path.stat().st_size for path in data_dir.glob("volumes/*.log")]
            assert sizes and max(sizes) < 1 << 20
        finally:
            await log.stop()
            await application.pool.close()

    asyncio.run(main())
