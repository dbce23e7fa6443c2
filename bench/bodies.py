"""Large bodies (UNSIGNED-PAYLOAD): PUT and GET against a plain single-threaded loop over the same
native digests and sealing, the same disk and 256 KiB buffers.

The loop below is all that a store must at least do with the bytes: digest, seal, write, sync; read,
check, unseal. No HTTP, no metadata, no concurrency.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

from o3storage import _native
from o3storage.cli._text import table

from ._result import Result
from ._store import load, running_store

FRAME_BYTES = 256 * 1024
OBJECT_MIB = 64
OBJECTS = 16
CONNECTIONS = 4
SECONDS = 5.0
ROUNDS = 2
GOALS = {"put": 0.6, "get": 0.7}


def loop_put(directory: Path, body: bytes) -> float:
    """MiB/s of writing OBJECTS bodies, each synced at its end."""
    key = _native.ChaChaKey(bytes(32))  # its frames are opened again by `loop_get`
    started = time.perf_counter()
    for number in range(OBJECTS):
        digester = _native.Digester(md5=True, blake3=True)
        descriptor = os.open(directory / f"loop{number}", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
        out = memoryview(_native.AlignedBuffer(FRAME_BYTES + 4096))
        for frame in range(len(body) // FRAME_BYTES):
            plain = memoryview(body)[frame * FRAME_BYTES : (frame + 1) * FRAME_BYTES]
            key.seal_hash_into(number << 32 | frame, b"aad", plain, out, b"header", digester)
            os.pwrite(descriptor, out, frame * (FRAME_BYTES + 4096))
        digester.finish()
        os.fdatasync(descriptor)
        os.close(descriptor)
    return OBJECTS * len(body) / (time.perf_counter() - started) / 1024**2


def loop_get(directory: Path, size_bytes: int) -> float:
    """MiB/s of reading them back through the page cache, checked (BLAKE3) and unsealed."""
    key = _native.ChaChaKey(bytes(32))
    buffer = bytearray(FRAME_BYTES + 4096)
    plain = bytearray(FRAME_BYTES + 4096)  # the tag is opened there too
    view = memoryview(buffer)[: FRAME_BYTES + 16]
    started = time.perf_counter()
    for number in range(OBJECTS):
        descriptor = os.open(directory / f"loop{number}", os.O_RDONLY)
        for frame in range(size_bytes // FRAME_BYTES):
            os.preadv(descriptor, [buffer], frame * (FRAME_BYTES + 4096))
            _native.blake3(view)
            key.unseal_into(number << 32 | frame, b"aad", view, plain)
        os.close(descriptor)
    return OBJECTS * size_bytes / (time.perf_counter() - started) / 1024**2


def main(seconds: float | None = None) -> list[Result]:
    size = OBJECT_MIB * 1024**2
    body = os.urandom(size)
    plain: dict[str, list[float]] = {"put": [], "get": []}
    seen: dict[str, list[dict[str, float]]] = {"put": [], "get": []}
    with TemporaryDirectory(prefix="o3bench") as name, running_store() as (data_dir, pid):
        directory = Path(name)
        # Interleaved, so that a drift of the machine does not favour one arm.
        for _ in range(ROUNDS):
            plain["put"].append(loop_put(directory, body))
            seen["put"].append(_load(data_dir, pid, "put", seconds))
            loop_get(directory, size)  # into the page cache
            plain["get"].append(loop_get(directory, size))
            seen["get"].append(_load(data_dir, pid, "get", seconds))
    rows = []
    results = []
    for operation, goal in GOALS.items():
        ours = mean(found["mib_per_s"] for found in seen[operation])
        theirs = mean(plain[operation])
        rows.append(
            [
                operation,
                f"{ours:,.0f}",
                f"{theirs:,.0f}",
                f"{mean(found['server_share'] for found in seen[operation]) * 100:.0f} %",
                f"{mean(found['client_share'] for found in seen[operation]) * 100:.0f} %",
            ]
        )
        results.append(
            Result(f"bodies: {operation} of the loop's rate", ours / theirs, goal, at_least=True)
        )
    print(f"bodies of {OBJECT_MIB} MiB, UNSIGNED-PAYLOAD, {CONNECTIONS} connections; each synced")
    print(table(["", "store MiB/s", "loop MiB/s", "server, of a core", "client"], rows))
    return results


def _load(data_dir: Path, pid: int, operation: str, seconds: float | None) -> dict[str, float]:
    return load(
        data_dir,
        pid,
        operation,
        size=f"{OBJECT_MIB}M",
        connections=CONNECTIONS,
        seconds=seconds or SECONDS,
        objects=OBJECTS,
    )
