"""The floor of the HTTP layer: requests per second that it serves with a handler that does nothing.

    python -m bench.http_floor [--connections 32] [--seconds 3]

The server is this process, the client another one (asyncio raw sockets: it writes a request, reads
until the answer is whole, writes the next). Each process's own CPU time (user + system) is divided
by the number of requests, so the figures hold however the two share the machine's cores. Nothing is
stored or synced.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import resource
import socket
from multiprocessing.connection import Connection as Pipe

from o3storage.http import BlockPool, Request, Response, Server, frames

HEADERS = (
    "Host: 127.0.0.1:8080\r\nAccept-Encoding: identity\r\n"
    "User-Agent: Boto3/1.34 md/Botocore#1.34 ua/2.0 os/linux#6.1 md/arch#x86_64\r\n"
    "X-Amz-Date: 20260101T000000Z\r\nX-Amz-Content-SHA256: UNSIGNED-PAYLOAD\r\n"
    "Authorization: AWS4-HMAC-SHA256 Credential=AKIAABCDEFGHIJKLMNOP/20260101/us-east-1/s3/"
    "aws4_request, SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature="
    + "0"
    * 64
    + "\r\n"
    "amz-sdk-invocation-id: 1b1b1b1b-aaaa-bbbb-cccc-121212121212\r\n"
    "amz-sdk-request: attempt=1\r\nContent-Type: binary/octet-stream\r\nAccept: */*\r\n"
)
BODY = b"b" * 4096

LOADS = {
    "GET, answer of 2 bytes": f"GET /bucket/key HTTP/1.1\r\n{HEADERS}\r\n".encode(),
    "GET, answer of 4 KiB": f"GET /bucket/large HTTP/1.1\r\n{HEADERS}\r\n".encode(),
    "PUT of 4 KiB, read": (
        f"PUT /bucket/key HTTP/1.1\r\n{HEADERS}Content-Length: 4096\r\n\r\n".encode() + BODY
    ),
}


def cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class Client(asyncio.Protocol):
    """One connection that keeps exactly one request under way."""

    def __init__(self, request: bytes, counts: list[int]) -> None:
        self.request = request
        self.counts = counts
        self.size = 0
        self.received = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        if not self.size:
            # Every answer of a load has the same size.
            head, _, _ = data.partition(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            self.size = len(head) + 4 + length
        self.received += len(data)
        if self.received == self.size:
            self.received = 0
            self.counts[0] += 1
            self.transport.write(self.request)


def client_process(port: int, request: bytes, connections: int, seconds: float, pipe: Pipe) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        counts = [0]
        made = []
        for _ in range(connections):
            sock = socket.create_connection(("127.0.0.1", port))
            sock.setblocking(False)
            made.append(await loop.create_connection(lambda: Client(request, counts), sock=sock))
        await asyncio.sleep(0.3)
        begin_count, begin_cpu, begin = counts[0], cpu_s(), loop.time()
        pipe.send((0, 0.0, 0.0))
        await asyncio.sleep(seconds)
        pipe.send((counts[0] - begin_count, cpu_s() - begin_cpu, loop.time() - begin))
        for transport, _ in made:
            transport.abort()

    asyncio.run(run())


async def handle(request: Request) -> Response:
    if request.method == "GET":
        return Response(200, [("ETag", '"x"')], BODY if request.path.endswith(b"large") else b"ok")
    with frames(request.body, POOL) as cut:
        async for block, _ in cut:
            block.release()
    return Response(200, [("ETag", '"x"')])


POOL = BlockPool()


async def measure(name: str, request: bytes, connections: int, seconds: float) -> None:
    server = Server(handle)
    _, port = await server.listen("127.0.0.1", 0)
    loop = asyncio.get_running_loop()
    near, far = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=client_process, args=(port, request, connections, seconds, far), daemon=True
    )
    process.start()
    messages: asyncio.Queue[tuple[int, float, float]] = asyncio.Queue()
    loop.add_reader(near.fileno(), lambda: messages.put_nowait(near.recv()))
    await messages.get()
    begin = cpu_s()
    count, client_cpu, wall = await messages.get()
    own_cpu = cpu_s() - begin
    loop.remove_reader(near.fileno())
    process.join()
    await server.close()
    each_us = own_cpu / count * 1e6
    client_us = client_cpu / count * 1e6
    print(
        f"{name:24} {count / wall:9,.0f} requests/s"
        f"   server {each_us:5.1f} us CPU each ({own_cpu / wall:4.0%} of a core)"
        f"   client {client_us:5.1f} us ({client_cpu / wall:4.0%})"
        f"   one core would serve {count / own_cpu:,.0f}/s"
    )


def main(seconds: float | None = None, connections: int = 32) -> None:
    """Print the table."""

    async def run() -> None:
        for name, request in LOADS.items():
            await measure(name, request, connections, seconds or 3.0)

    asyncio.run(run())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float)
    main(**vars(parser.parse_args()))
