"""What slow uploads cost a normal client: its requests per second alone, and beside 2,000 uploads
that send 100 bytes a second each.

    python bench/http_slow_clients.py [--slow 2000] [--seconds 5]

The server is this process (bodies are cut into frames, and dropped: nothing is stored or synced);
the slow clients and the normal one are two others. A normal client keeps 4 connections busy with
PUTs of 64 KiB. The share to look for is at least half; `lent` is the memory that the slow bodies
hold in blocks.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import resource
import socket
import time
from multiprocessing.connection import Connection as Pipe

from o3storage.http import BlockPool, Request, Response, Server, frames

SLOW_HEAD = b"PUT /slow HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000000\r\n\r\n"
BODY_BYTES = 64 * 1024


def slow_clients(port: int, count: int, seconds: float, pipe: Pipe) -> None:
    sockets = []
    for _ in range(count):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.sendall(SLOW_HEAD)
        sockets.append(sock)
    pipe.send(count)
    end = time.monotonic() + seconds
    step_s = 0.05
    turn = 0
    while time.monotonic() < end:
        # A twentieth of them each 50 ms: 100 bytes from each in a second.
        for sock in sockets[turn::20]:
            sock.sendall(bytes(100))
        turn = (turn + 1) % 20
        time.sleep(step_s)


def normal_client(port: int, seconds: float, pipe: Pipe) -> None:
    request = b"PUT /k HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % BODY_BYTES
    request += bytes(BODY_BYTES)

    async def one(counts: list[int]) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while True:
            writer.write(request)
            await reader.readuntil(b"\r\n\r\n")
            counts[0] += 1

    async def run() -> None:
        counts = [0]
        tasks = [asyncio.ensure_future(one(counts)) for _ in range(4)]
        await asyncio.sleep(0.5)
        begin = counts[0]
        await asyncio.sleep(seconds)
        pipe.send((counts[0] - begin) / seconds)
        for task in tasks:
            task.cancel()

    asyncio.run(run())


async def rate(port: int, seconds: float) -> float:
    near, far = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=normal_client, args=(port, seconds, far), daemon=True
    )
    process.start()
    return await received(near)


async def received(pipe: Pipe) -> float:
    loop = asyncio.get_running_loop()
    messages: asyncio.Queue[float] = asyncio.Queue()
    loop.add_reader(pipe.fileno(), lambda: messages.put_nowait(pipe.recv()))
    value = await messages.get()
    loop.remove_reader(pipe.fileno())
    return value


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slow", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    pool = BlockPool()

    async def handle(request: Request) -> Response:
        with frames(request.body, pool) as cut:
            async for block, _ in cut:
                block.release()
        return Response(200)

    server = Server(handle)
    _, port = await server.listen("127.0.0.1", 0)
    alone = await rate(port, options.seconds)
    near, far = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=slow_clients, args=(port, options.slow, 3 * options.seconds + 10, far), daemon=True
    )
    process.start()
    await received(near)
    beside = await rate(port, options.seconds)
    started = time.perf_counter()
    for connection in list(server._connections):
        connection._tick(0.0, 0.0)
    tick_ms = (time.perf_counter() - started) * 1e3
    lent_mib = pool.lent_bytes / 2**20
    connections = server.connections
    process.terminate()
    process.join()
    while server.connections:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    again = await rate(port, options.seconds)
    print(
        f"alone {alone:,.0f} PUTs of 64 KiB a second before and {again:,.0f} after; beside "
        f"{options.slow} slow uploads {beside:,.0f} ({2 * beside / (alone + again):.0%}); "
        f"{connections} connections, lent {lent_mib:.1f} MiB, "
        f"one look at all deadlines {tick_ms:.1f} ms"
    )
    await server.close()


if __name__ == "__main__":
    asyncio.run(main())
