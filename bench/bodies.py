"""Large bodies (UNSIGNED-PAYLOAD): PUT and GET against a plain single-threaded loop over the same
native digests and sealing, the same disk and 256 KiB buffers.

The loop below is all that a store must at least do with the bytes: digest, seal, write, sync; read,
check, unseal. No HTTP, no metadata, no concurrency.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from o3storage import _native
from o3storage.cli._text import table

from ._store import load, running_store

FRAME_BYTES = 256 * 1024
OBJECT_MIB = 64
OBJECTS = 16
GOALS = {"put": 0.6, "get": 0.7}


def loop_put(directory: Path, body: bytes) -> float:
    """MiB/s of writing OBJECTS bodies, each synced at its end."""
    key = _native.ChaChaKey(os.urandom(32))
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
    started = time.perf_counter()
    key = _native.ChaChaKey(os.urandom(32))
    buffer = bytearray(FRAME_BYTES + 4096)
    plain = bytearray(FRAME_BYTES + 4096)
    view = memoryview(buffer)[: FRAME_BYTES + 16]
    sealed = key.seal(0, b"aad", bytes(FRAME_BYTES))
    for number in range(OBJECTS):
        descriptor = os.open(directory / f"loop{number}", os.O_RDONLY)
        for frame in range(size_bytes // FRAME_BYTES):
            os.preadv(descriptor, [buffer], frame * (FRAME_BYTES + 4096))
            _native.blake3(view)
            key.unseal_into(0, b"aad", sealed, plain)
        os.close(descriptor)
    return OBJECTS * size_bytes / (time.perf_counter() - started) / 1024**2


def main() -> None:
    size = OBJECT_MIB * 1024**2
    rows = []
    with TemporaryDirectory(prefix="o3bench") as name:
        directory = Path(name)
        body = os.urandom(size)
        plain = {"put": loop_put(directory, body)}
        loop_get(directory, size)
        plain["get"] = loop_get(directory, size)
    with running_store() as (data_dir, pid):
        for operation in ("put", "get"):
            seen = load(
                data_dir,
                pid,
                operation,
                size=f"{OBJECT_MIB}M",
                connections=4,
                seconds=8.0,
                objects=OBJECTS,
            )
            ratio = seen["mib_per_s"] / plain[operation]
            rows.append(
                [
                    operation,
                    f"{seen['mib_per_s']:,.0f}",
                    f"{plain[operation]:,.0f}",
                    f"{ratio:.2f}",
                    f">= {GOALS[operation]}",
                    f"{seen['server_share'] * 100:.0f} %",
                    f"{seen['client_share'] * 100:.0f} %",
                ]
            )
    print(table(["64 MiB", "store MiB/s", "loop MiB/s", "ratio", "goal", "server", "client"], rows))
