"""The stdlib asyncio HTTP server with a thread pool, on files in memory: the first half's goal."""

import asyncio
import hashlib
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

ROOT = "/data"
POOL = ThreadPoolExecutor(4)
MAX_BODY_BYTES = 64 << 20


def store(name: str, body: bytes) -> str:
    path = os.path.join(ROOT, name)
    fd = os.open(path + ".new", os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    try:
        at = 0
        while at < len(body):
            at += os.pwrite(fd, body[at:], at)
        os.fdatasync(fd)
    finally:
        os.close(fd)
    os.rename(path + ".new", path)
    return hashlib.sha256(body).hexdigest()


def load(name: str) -> bytes | None:
    try:
        with open(os.path.join(ROOT, name), "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


async def answer(method: str, target: str, body: bytes) -> tuple[int, bytes]:
    loop = asyncio.get_running_loop()
    name = target.strip("/").replace("/", "_")
    if not name:
        return 200, b"O3StorageOS\n"
    if method == "PUT":
        digest = await loop.run_in_executor(POOL, store, name, body)
        return 200, digest.encode()
    if method == "GET":
        data = await loop.run_in_executor(POOL, load, name)
        return (404, b"no such object\n") if data is None else (200, data)
    if method == "DELETE":
        await loop.run_in_executor(POOL, os.unlink, os.path.join(ROOT, name))
        return 204, b""
    return 405, b"method not allowed\n"


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while request := await reader.readline():
            method, target, _ = request.decode().split()
            length, keep = 0, True
            while (line := await reader.readline()) not in (b"\r\n", b""):
                key, _, value = line.decode().partition(":")
                if key.lower() == "content-length":
                    length = int(value)
                elif key.lower() == "connection":
                    keep = value.strip().lower() != "close"
            if length > MAX_BODY_BYTES:
                break
            body = await reader.readexactly(length) if length else b""
            status, data = await answer(method, target, body)
            head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(data)}\r\n"
            writer.write(head.encode() + ("" if keep else "Connection: close\r\n").encode())
            writer.write(b"\r\n" + data)
            await writer.drain()
            if not keep:
                break
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def main() -> None:
    server = await asyncio.start_server(serve, "0.0.0.0", int(os.environ.get("PORT", "80")))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    print("ready", flush=True)
    await stop.wait()
    server.close()
    await server.wait_closed()
    POOL.shutdown()
    print("drained", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
    sys.exit(0)
