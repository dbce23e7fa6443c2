"""The native module's primitives: cost of a call, throughput, and the job pool's round trip.

Times are CPU time of the calling thread where work is done in it, else wall time; the best of
several rounds, because others share the machine.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Callable

from o3storage import _native
from o3storage.crypto import FRAME_BYTES, NODE_SERVER_NAME, StreamSealer, identity_certificate
from o3storage.runtime import JobPool

ROUNDS = 7


def best_s(work: Callable[[], object], calls: int, clock: Callable[[], float]) -> float:
    """Seconds per call, of the best round."""
    rounds = []
    for _ in range(ROUNDS):
        start = clock()
        for _ in range(calls):
            work()
        rounds.append((clock() - start) / calls)
    return min(rounds)


def row(name: str, value: str) -> None:
    print(f"  {name:58} {value:>16}", flush=True)


def small_calls() -> None:
    print(" one call on little data, CPU")
    key = _native.ChaChaKey(bytes(32))
    sealer = StreamSealer(bytes(32), bytes(32), bytes(16))
    seed, public = _native.ed25519_generate()
    signature = _native.ed25519_sign(seed, b"message")
    small, page = bytes(100), bytes(4096)
    digester = _native.Digester()
    digester.update(page)
    for name, work in {
        "sha256, 100 bytes": lambda: _native.sha256(small),
        "hmac_sha256, 100 bytes": lambda: _native.hmac_sha256(small, small),
        "blake3, 100 bytes": lambda: _native.blake3(small),
        "crc64nvme, 100 bytes": lambda: _native.crc64nvme(small),
        "Digester() and finish() (MD5, BLAKE3)": lambda: _native.Digester().finish(),
        "Digester.update, 4 KiB (MD5, BLAKE3)": lambda: digester.update(page),
        "ChaChaKey.seal, 100 bytes": lambda: key.seal(1, b"", small),
        "ChaChaKey.seal, 4 KiB": lambda: key.seal(1, b"", page),
        "StreamSealer made (HKDF)": lambda: StreamSealer(bytes(32), bytes(32), bytes(16)),
        "StreamSealer.seal_frame, 4 KiB": lambda: sealer.seal_frame(1, page, True),
        "random_bytes(48)": lambda: _native.random_bytes(48),
        "compare_digest, 32 bytes": lambda: _native.compare_digest(small[:32], small[:32]),
        "AlignedBuffer(256 KiB), not zeroed": lambda: _native.AlignedBuffer(FRAME_BYTES, False),
    }.items():
        row(name, f"{best_s(work, 5000, time.thread_time) * 1e6:.2f} us")
    for name, work in {
        "ed25519_sign": lambda: _native.ed25519_sign(seed, b"message"),
        "ed25519_verify": lambda: _native.ed25519_verify(public, b"message", signature),
        "x25519_agree": lambda: _native.x25519_agree(seed, public),
    }.items():
        row(name, f"{best_s(work, 200, time.thread_time) * 1e6:.1f} us")


def frames() -> None:
    print(" frames of 256 KiB, one thread, CPU")
    frame, mib = bytes(range(256)) * 1024, FRAME_BYTES / 2**20
    sealer = StreamSealer(bytes(32), bytes(32), bytes(16))
    out = memoryview(_native.AlignedBuffer(FRAME_BYTES + 16))
    sealed = sealer.seal_frame(0, frame, False)
    digesters = {
        "MD5, BLAKE3": _native.Digester(),
        "BLAKE3": _native.Digester(md5=False),
        "MD5, SHA-256, CRC64NVME, BLAKE3": _native.Digester(sha256=True, crc64nvme=True),
    }
    both = digesters["MD5, BLAKE3"]

    def separate() -> None:
        both.update(frame)
        sealer.seal_frame_into(0, frame, False, out)
        _native.blake3_parts([b"header", out])

    def fused() -> None:
        sealer.seal_frame_hash_into(0, frame, False, out, prefix=b"header", digester=both)

    work: dict[str, Callable[[], object]] = {
        f"Digester ({name})": (lambda d=digester: d.update(frame))  # type: ignore[misc]
        for name, digester in digesters.items()
    }
    work |= {
        "seal_frame_into": lambda: sealer.seal_frame_into(0, frame, False, out),
        "unseal_frame": lambda: sealer.unseal_frame(0, sealed, False),
        "blake3 of the sealed frame": lambda: _native.blake3(sealed),
        "digest (MD5, BLAKE3), seal, record hash: three calls": separate,
        "digest (MD5, BLAKE3), seal, record hash: one call": fused,
        "the same without MD5, one call": lambda: sealer.seal_frame_hash_into(
            0, frame, False, out, prefix=b"header", digester=digesters["BLAKE3"]
        ),
    }
    for name, call in work.items():
        row(name, f"{mib / best_s(call, 60, time.thread_time):,.0f} MiB/s")


def tls() -> None:
    print(" TLS 1.3 between two ends in one thread, 256 KiB a call, CPU")
    chain, key = identity_certificate(bytes(32))
    server_rules = _native.TlsConfig.server(chain, key)
    client_rules = _native.TlsConfig.client(ca_pem=chain)
    room, plain = bytearray(400_000), bytearray(FRAME_BYTES)

    def handshake() -> tuple[_native.TlsConnection, _native.TlsConnection]:
        server = _native.TlsConnection(server_rules)
        client = _native.TlsConnection(client_rules, NODE_SERVER_NAME)
        while client.wants_write or server.wants_write:
            for source, target in ((client, server), (server, client)):
                target.feed(source.take(), plain)
        return server, client

    row("full handshake, both ends", f"{best_s(handshake, 20, time.thread_time) * 1e6:.0f} us")
    server, client = handshake()
    frame, mib = bytes(FRAME_BYTES), FRAME_BYTES / 2**20
    encrypt_s = decrypt_s = 0.0
    for _ in range(200):
        start = time.thread_time()
        _, size = server.send_into(frame, room)
        middle = time.thread_time()
        wire = memoryview(room)[:size]
        while wire:
            consumed, _ = client.feed(wire, plain)
            wire = wire[consumed:]
        encrypt_s += middle - start
        decrypt_s += time.thread_time() - middle
    row(f"send_into ({server.cipher_suite})", f"{200 * mib / encrypt_s:,.0f} MiB/s")
    row("feed", f"{200 * mib / decrypt_s:,.0f} MiB/s")


def pool() -> None:
    print(" job pool, wall time; loop CPU in brackets")

    async def main(directory: str) -> None:
        pool = JobPool()
        await pool.start()
        path = os.path.join(directory, "f")
        file = await pool.submit(_native.open_job(path, os.O_RDWR | os.O_CREAT))
        page = bytes(4096)
        await pool.submit(_native.pwritev_job(file, [page], 0, True))
        jobs: dict[str, Callable[[], _native.Job[object]]] = {
            "round trip, one at a time (fstat)": lambda: _native.stat_size_job(file),
            "pread of 4 KiB, one at a time": lambda: _native.pread_job(file, 4096, 0),
            "overwrite of 4 KiB and fdatasync, one at a time": lambda: _native.pwritev_job(
                file, [page], 0, True
            ),
        }
        for name, make in jobs.items():
            rounds = []
            for _ in range(ROUNDS):
                start, start_cpu = time.perf_counter(), time.thread_time()
                for _ in range(300):
                    await pool.submit(make())
                rounds.append((time.perf_counter() - start, time.thread_time() - start_cpu))
            wall, cpu = min(rounds)
            row(name, f"{wall / 300 * 1e6:.0f} ({cpu / 300 * 1e6:.0f}) us")
        rounds = []
        for _ in range(ROUNDS):
            start, start_cpu = time.perf_counter(), time.thread_time()
            await asyncio.gather(*(pool.submit(_native.stat_size_job(file)) for _ in range(1000)))
            rounds.append((time.perf_counter() - start, time.thread_time() - start_cpu))
        wall, cpu = min(rounds)
        row("1,000 at a time, each", f"{wall * 1e3:.1f} ({cpu * 1e3:.1f}) us")
        cached = best_s(lambda: _native.pread_nowait(file, 4096, 0), 5000, time.thread_time)
        row("pread_nowait of 4 KiB from the page cache, no job", f"{cached * 1e6:.2f} us")
        await pool.submit(file.close_job())
        await pool.close()

    with tempfile.TemporaryDirectory(dir=".") as directory:
        asyncio.run(main(directory))


def main(seconds: float | None = None) -> None:  # noqa: ARG001  (its parts have lengths of their own)
    """Print the tables."""
    small_calls()
    frames()
    tls()
    pool()


if __name__ == "__main__":
    main()
