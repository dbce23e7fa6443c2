"""The store's HTTP and signature front over SQLite, as a reference for latency.

    python -m bench.sqlite_front DATA_DIR KEY_ID SECRET

One table (key, value, etag), WAL, synchronous=FULL: each PUT is one transaction, durable before the
answer, as a store built on a database would do it. Values are neither sealed nor checksummed.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
from pathlib import Path
from typing import Any

from o3storage import _native
from o3storage.http import Request, Response, Server
from o3storage.runtime import SystemClock, SystemEntropy
from o3storage.s3 import Credential, Service, read_signed_body

MAX_BODY_BYTES = 1024 * 1024


class OneKey:
    def __init__(self, key_id: str, secret: str) -> None:
        self.credential = Credential(key_id, secret.encode(), "root")

    def find_now(self, key_id: str) -> Credential | None:
        return self.credential if key_id == self.credential.key_id else None

    async def find(self, key_id: str) -> Credential | None:
        return self.find_now(key_id)


async def serve(directory: Path, key_id: str, secret: str) -> None:
    database = sqlite3.connect(directory / "objects.db", isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("CREATE TABLE IF NOT EXISTS o (k BLOB PRIMARY KEY, v BLOB, e TEXT)")
    no_node: Any = None
    service = Service(
        no_node, credentials=OneKey(key_id, secret), clock=SystemClock(), entropy=SystemEntropy()
    )

    async def handle(request: Request) -> Response:
        _, body = await read_signed_body(service, request, MAX_BODY_BYTES)
        key = bytes(request.path)
        if request.method == "PUT":
            etag = _native.md5(body).hex()
            database.execute("INSERT OR REPLACE INTO o VALUES (?, ?, ?)", (key, body, etag))
            return Response(200, [("ETag", f'"{etag}"')], b"")
        row = database.execute("SELECT v, e FROM o WHERE k = ?", (key,)).fetchone()
        if row is None:
            return Response(404, [], b"")
        return Response(200, [("ETag", f'"{row[1]}"')], row[0])

    server = Server(handle)
    _, port = await server.listen("127.0.0.1", 0)
    print(port, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    os.umask(0o077)
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
