"""Watches what is sealed: no key and nonce may ever seal two different plaintexts (that would give
the exclusive or of both away, and let an attacker forge tags: RFC 8439, section 4)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from o3storage._native import Digester, Job, blake3
from o3storage.cluster import _streams
from o3storage.crypto import FileSealer, StreamSealer
from o3storage.runtime.disk import Buffer
from o3storage.storage import _volume


class SealLog:
    """(key, nonce) -> digest of what was sealed under it."""

    def __init__(self) -> None:
        self._seen: dict[tuple[bytes, int], bytes] = {}
        self.reused: list[str] = []

    def note(self, key: bytes, nonce: int, plaintext: Buffer) -> None:
        digest = blake3(plaintext)
        before = self._seen.setdefault((key, nonce), digest)
        if before != digest:
            self.reused.append(f"key {key[:6].hex()} sealed two plaintexts with nonce {nonce}")

    @property
    def count(self) -> int:
        return len(self._seen)


@contextlib.contextmanager
def watch_seals() -> Iterator[SealLog]:
    """While open, the streams and volumes that are made tell the log what they seal."""
    log = SealLog()

    class WatchedStream(StreamSealer):
        __slots__ = ("_id",)

        def __init__(self, kek: bytes, salt: bytes, stream_id: bytes) -> None:
            super().__init__(kek, salt, stream_id)
            self._id = blake3(kek + salt)

        def seal_frame(
            self, number: int, plaintext: Buffer, last: bool, digester: Digester | None = None
        ) -> bytes:
            log.note(self._id, number, plaintext)
            return super().seal_frame(number, plaintext, last, digester)

        def seal_frame_job(
            self, number: int, plaintext: Buffer, last: bool, digester: Digester | None = None
        ) -> Job[bytes]:
            log.note(self._id, number, plaintext)
            return super().seal_frame_job(number, plaintext, last, digester)

    class WatchedFile(FileSealer):
        __slots__ = ("_id",)

        def __init__(self, disk_key: bytes, salt: bytes) -> None:
            super().__init__(disk_key, salt)
            self._id = blake3(disk_key + salt)

        def seal(self, offset: int, aad: Buffer, plaintext: Buffer) -> bytes:
            log.note(self._id, offset, bytes(aad) + bytes(plaintext))
            return super().seal(offset, aad, plaintext)

    patches: list[tuple[Any, str, Any]] = [
        (_streams, "StreamSealer", WatchedStream),
        (_volume, "FileSealer", WatchedFile),
    ]
    before = [getattr(module, name) for module, name, _ in patches]
    for module, name, watched in patches:
        setattr(module, name, watched)
    try:
        yield log
    finally:
        for (module, name, _), original in zip(patches, before, strict=True):
            setattr(module, name, original)
