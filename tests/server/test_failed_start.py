"""A start that fails behind the opening of the store closes what it opened."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from o3storage.runtime import DiskFull, JobPool, StallMeter, SystemEntropy, log
from o3storage.server import StartError, _app, _running, read_running
from o3storage.server._app import Application
from o3storage.server._config import ServerConfig
from o3storage.server._data_dir import open_data_dir
from o3storage.storage import DataDirLock, StoreFull, StoreOutOfService


def test_a_bad_certificate_or_a_taken_admin_port_makes_no_store(tmp_path: Path) -> None:
    """A terminal is shown the root key at the first start only: that one must come to its end."""
    data_dir = tmp_path / "data"
    bad = tmp_path / "bad.pem"
    bad.write_text("no certificate")
    tls = ServerConfig(ip="127.0.0.1", port=0, data_dir=data_dir, tls_cert=bad, tls_key=bad)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        admin = ServerConfig(
            ip="127.0.0.1", port=0, data_dir=data_dir, admin_listen=("127.0.0.1", port)
        )
        for config, reason in ((tls, r"bad\.pem"), (admin, f"port {port} .* is taken")):
            application = Application(config, StallMeter())
            with pytest.raises(StartError, match=reason):
                asyncio.run(application.start())
            assert not data_dir.exists()


def test_directories_that_only_others_may_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """lost+found, where the data directory is a whole file system, is nothing of a store."""
    path, pool = tmp_path / "data", JobPool()
    iterdir = Path.iterdir

    def as_a_user(self: Path) -> Iterator[Path]:
        if self.name in {"lost+found", "volumes"}:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return iterdir(self)

    async def main() -> None:
        await pool.start()
        try:
            (path / "lost+found").mkdir(parents=True)
            opened = await open_data_dir(path, pool, SystemEntropy(), None, create=True)
            assert opened.keys.created
            opened.release()
            (path / "volumes").mkdir()
            with pytest.raises(StartError, match=r"cannot read .*volumes: Permission denied"):
                await open_data_dir(path, pool, SystemEntropy(), None, create=True)
            DataDirLock.acquire(str(path)).release()
        finally:
            await pool.close()

    monkeypatch.setattr(Path, "iterdir", as_a_user)
    asyncio.run(main())


def test_a_port_that_is_taken_meanwhile_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_dir = tmp_path / "data"

    async def taken(_self: Application) -> None:
        raise StartError("port 1 is taken")

    monkeypatch.setattr(Application, "_listen", taken)

    async def main() -> None:
        application = Application(
            ServerConfig(ip="127.0.0.1", port=0, data_dir=data_dir), StallMeter()
        )
        try:
            with pytest.raises(StartError, match="taken"):
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


def test_a_start_on_a_full_disk_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can delete objects from a store that does not run."""

    async def full(*_: object, **__: object) -> None:
        try:
            raise DiskFull(errno.ENOSPC, "allocate: no space left")
        except DiskFull as error:
            raise StoreFull("no space for a new volume: delete objects or add space") from error

    monkeypatch.setattr(_app, "open_member", full)
    application = Application(ServerConfig(ip="127.0.0.1", port=0, data_dir=tmp_path), StallMeter())

    async def main() -> None:
        try:
            with pytest.raises(StartError, match=r"no space left for a start.*free space"):
                await application.start()
        finally:
            await application.pool.close()

    asyncio.run(main())


def test_a_full_disk_does_not_keep_a_store_from_serving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file by which commands find it is written when there is room again."""
    write, tries = _running.write, []
    monkeypatch.setattr(_app, "ANNOUNCE_AGAIN_S", 0.0)

    async def main() -> None:
        written = asyncio.Event()

        def full_once(data_dir: Path, running: _running.Running) -> None:
            tries.append(running)
            if len(tries) == 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            write(data_dir, running)
            written.set()

        monkeypatch.setattr(_running, "write", full_once)
        config = ServerConfig(ip="127.0.0.1", port=0, data_dir=tmp_path)
        application = Application(config, StallMeter())
        await application.start()
        try:
            await written.wait()
            found = read_running(tmp_path)
            assert found is not None and found.url == application.url
        finally:
            await application.stop()
            await log.stop()
            await application.pool.close()
        assert read_running(tmp_path) is None

    asyncio.run(main())
    assert len(tries) == 2
