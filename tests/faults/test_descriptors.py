"""Clients that open connections by the thousand leave the store the descriptors that it needs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

from o3storage.server._descriptors import WANTED_DESCRIPTORS, share
from tests.support.running_store import RunningStore

LIMIT = 200
"""Far fewer than the connections that are opened."""


def test_a_flood_of_connections_does_not_take_the_disk_out_of_service(tmp_path: Path) -> None:
    wrapper = ("bash", "-c", f'ulimit -n {LIMIT}; exec "$@"', "bash")
    flood: list[socket.socket] = []

    async def put_volumes_full(store: RunningStore) -> None:
        """Through a client that is in already; each needs a file that is not open yet."""
        client = store.client()
        assert (await client.request("PUT", "/bucket")).status == 200
        address = urlsplit(store.url)
        for _ in range(2 * LIMIT):
            with contextlib.suppress(ConnectionResetError):  # far too many: some are not let in
                where = (address.hostname, address.port)
                flood.append(socket.create_connection(where, timeout=10))
        for name in ("a", "b"):
            answer = await client.request("PUT", f"/bucket/{name}", body=os.urandom(6 << 20))
            assert answer.status == 200, answer.body
        assert len(os.listdir(f"/proc/{store.pid}/fd")) < LIMIT
        await client.close()

    try:
        with RunningStore(tmp_path / "data", wrapper=wrapper) as store:
            status = Path(f"/proc/{store.pid}/status").read_text().splitlines()
            room = int(next(line for line in status if line.startswith("FDSize:")).split()[1])
            assert room >= LIMIT, "made at the start, not while clients wait"
            asyncio.run(put_volumes_full(store))
            assert store.stop() == 0
        lines = [json.loads(line) for line in store.log_path.read_text().splitlines()]
        assert "connections.few" in {line["event"] for line in lines}
    finally:
        for connection in flood:
            connection.close()


def test_clients_and_store_share_what_is_allowed() -> None:
    for allowed in (64, 200, 1024, 4096, WANTED_DESCRIPTORS, 1 << 20):
        limits = share(allowed)
        most = limits.max_connections + limits.max_refused + limits.max_direct + limits.backlog
        assert most + min(1024, allowed // 2) <= allowed
        assert limits.max_connections >= allowed // 4 or limits.max_connections == 4096
    assert share(WANTED_DESCRIPTORS).max_connections == 4096
