"""One large object by multipart: written and read back whole, within the memory bound (P8).
O3_SCALE_LARGE_MIB sets how large (1 GiB in CI); O3_SCALE_LARGE_DIR where.

Speed is stated, not asserted. Memory is a promise and is asserted.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from o3storage.cli._client import Credentials, Signer
from tests.scale.test_many_objects import MEMORY_BOUND_MIB, peak_mib
from tests.support.running_store import RunningStore

pytestmark = pytest.mark.scale

MIB = 1 << 20
SIZE_MIB = int(os.environ.get("O3_SCALE_LARGE_MIB", "1024" if os.environ.get("CI") else "256"))
DIRECTORY = os.environ.get("O3_SCALE_LARGE_DIR")
PART_MIB = 64
TOGETHER = 4
"""Parts on their way at a time, as the common tools do."""
FILLER = random.Random(50).randbytes(MIB - 8)


def piece(number: int) -> bytes:
    """The MiB `number` of the object: no two are equal."""
    return number.to_bytes(8, "big") + FILLER


def part_body(number: int) -> bytes:
    first = (number - 1) * PART_MIB
    return b"".join(piece(at) for at in range(first, min(first + PART_MIB, SIZE_MIB)))


async def upload(store: RunningStore) -> None:
    control = store.client()
    assert (await control.request("PUT", "/large")).status == 200
    began = await control.request("POST", "/large/object", query={"uploads": ""})
    found = re.search(rb"<UploadId>(.*?)</UploadId>", began.body)
    assert found is not None
    upload_id = found.group(1).decode()
    parts = -(-SIZE_MIB // PART_MIB)
    numbers = iter(range(1, parts + 1))
    etags: dict[int, str] = {}

    async def sender() -> None:
        connection = store.client()
        for number in numbers:
            answer = await connection.request(
                "PUT",
                "/large/object",
                query={"partNumber": str(number), "uploadId": upload_id},
                body=part_body(number),
                unsigned_payload=True,
            )
            assert answer.status == 200, answer
            etags[number] = answer.headers["etag"]
        await connection.close()

    await asyncio.gather(*(sender() for _ in range(TOGETHER)))
    listed = "".join(
        f"<Part><PartNumber>{number}</PartNumber><ETag>{etags[number]}</ETag></Part>"
        for number in sorted(etags)
    )
    document = f"<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>".encode()
    await control.close()  # idle for as long as the parts took: the server may have closed it
    done = await control.request(
        "POST", "/large/object", query={"uploadId": upload_id}, body=document
    )
    assert done.status == 200, done
    await control.close()


async def read_whole(store: RunningStore) -> None:
    """One GET, compared MiB by MiB as it arrives."""
    where = urlsplit(store.url)
    assert where.hostname is not None
    signer = Signer(Credentials(store.key_id, store.secret), where.netloc, store.region)
    headers = signer.headers("GET", "/large/object", "", "UNSIGNED-PAYLOAD", {})
    reader, writer = await asyncio.open_connection(where.hostname, where.port, limit=4 * MIB)
    lines = ["GET /large/object HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    assert head.startswith("http/1.1 200")
    assert f"content-length: {SIZE_MIB * MIB}\r\n" in head
    for number in range(SIZE_MIB):
        assert await reader.readexactly(MIB) == piece(number), number
    writer.close()


def test_a_large_object_within_the_memory_bound(tmp_path: Path) -> None:
    data_dir = Path(DIRECTORY) if DIRECTORY else tmp_path / "data"
    with RunningStore(data_dir) as store:
        started = time.monotonic()
        asyncio.run(upload(store))
        put_s = time.monotonic() - started
        started = time.monotonic()
        asyncio.run(read_whole(store))
        get_s = time.monotonic() - started
        peak = peak_mib(store.process.pid)
        assert store.stop() == 0
    print(
        f"{SIZE_MIB:,} MiB: written at {SIZE_MIB / put_s:.0f} MiB/s, read at "
        f"{SIZE_MIB / get_s:.0f} MiB/s (client included); peak memory {peak:.0f} MiB"
    )
    assert peak < MEMORY_BOUND_MIB
