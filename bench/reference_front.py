"""The store's HTTP and signature front over something plain, as a reference for latency.

    python -m bench.reference_front KIND DATA_DIR KEY_ID SECRET

KIND says where a body goes; nothing seals or checks it, and each of these works on the thread of
the event loop:

- `sqlite`: one table (key, value, etag), WAL, synchronous=FULL: each PUT is one transaction,
  durable before the answer, as a store built on a database would do it;
- `memory`: a dict. What is left is the front: no store behind it answers sooner;
- `raw`: the same dict, after one write of 4 KiB past the page cache into a file that was filled
  before, and one fdatasync: the least that makes a body durable. (The file is overwritten from its
  start again, and nothing could be found in it.)
"""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
import sqlite3
import sys
from pathlib import Path
from typing import Any, Protocol

from o3storage import _native
from o3storage.http import Request, Response, Server
from o3storage.runtime import SystemClock, SystemEntropy
from o3storage.s3 import Credential, Service, read_signed_body

MAX_BODY_BYTES = 1024 * 1024
RAW_BLOCK_BYTES = 4096
RAW_FILE_BYTES = 64 << 20

Row = tuple[bytes, str]
"""(body, etag)."""


class Bodies(Protocol):
    def put(self, key: bytes, row: Row) -> None: ...
    def get(self, key: bytes) -> Row | None: ...


class Sqlite:
    def __init__(self, directory: Path) -> None:
        self._database = sqlite3.connect(directory / "objects.db", isolation_level=None)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=FULL")
        self._database.execute("CREATE TABLE o (k BLOB PRIMARY KEY, v BLOB, e TEXT)")

    def put(self, key: bytes, row: Row) -> None:
        self._database.execute("INSERT OR REPLACE INTO o VALUES (?, ?, ?)", (key, *row))

    def get(self, key: bytes) -> Row | None:
        query = "SELECT v, e FROM o WHERE k = ?"
        row: Row | None = self._database.execute(query, (key,)).fetchone()
        return row


class Memory:
    def __init__(self, _: Path) -> None:
        self._rows: dict[bytes, Row] = {}

    def put(self, key: bytes, row: Row) -> None:
        self._rows[key] = row

    def get(self, key: bytes) -> Row | None:
        return self._rows.get(key)


class Raw(Memory):
    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        path = directory / "raw"
        zeros = bytes(1 << 20)
        with open(path, "wb") as file:
            for _ in range(RAW_FILE_BYTES // len(zeros)):
                file.write(zeros)
            file.flush()
            os.fsync(file.fileno())
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._file = os.open(path, os.O_WRONLY)  # a file system without O_DIRECT
        self._block = mmap.mmap(-1, RAW_BLOCK_BYTES)  # aligned, as O_DIRECT wants it
        self._at = 0

    def put(self, key: bytes, row: Row) -> None:
        body = row[0][:RAW_BLOCK_BYTES]
        self._block[: len(body)] = body
        os.pwrite(self._file, self._block, self._at)
        os.fdatasync(self._file)
        self._at = (self._at + RAW_BLOCK_BYTES) % RAW_FILE_BYTES
        super().put(key, row)


KINDS: dict[str, type[Sqlite] | type[Memory]] = {"sqlite": Sqlite, "memory": Memory, "raw": Raw}


class OneKey:
    def __init__(self, key_id: str, secret: str) -> None:
        self.credential = Credential(key_id, secret.encode(), "root")

    def find_now(self, key_id: str) -> Credential | None:
        return self.credential if key_id == self.credential.key_id else None

    async def find(self, key_id: str) -> Credential | None:
        return self.find_now(key_id)


async def serve(bodies: Bodies, key_id: str, secret: str) -> None:
    no_node: Any = None
    service = Service(
        no_node, credentials=OneKey(key_id, secret), clock=SystemClock(), entropy=SystemEntropy()
    )

    async def handle(request: Request) -> Response:
        _, body = await read_signed_body(service, request, MAX_BODY_BYTES)
        key = bytes(request.path)
        if request.method == "PUT":
            etag = _native.md5(body).hex()
            bodies.put(key, (body, etag))
            return Response(200, [("ETag", f'"{etag}"')], b"")
        row = bodies.get(key)
        if row is None:
            return Response(404, [], b"")
        return Response(200, [("ETag", f'"{row[1]}"')], row[0])

    server = Server(handle)
    _, port = await server.listen("127.0.0.1", 0)
    print(port, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    os.umask(0o077)
    asyncio.run(serve(KINDS[sys.argv[1]](Path(sys.argv[2])), sys.argv[3], sys.argv[4]))
