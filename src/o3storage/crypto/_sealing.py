"""Sealing of files (with the disk key) and of streams (with an epoch's key).

ChaCha20-Poly1305 (RFC 8439); a key of its own for every file and every stream, made by HKDF-SHA256
(RFC 5869) from a long-lived key and a random 256-bit salt. With a fresh key per file and per
stream, a file offset or a frame number is a nonce that never repeats.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from o3storage._native import (
    ChaChaKey,
    Digester,
    FileHandle,
    Job,
    SealError,
    send_records_job,
)
from o3storage.runtime.disk import Buffer

__all__ = [
    "FRAME_BYTES",
    "KEY_BYTES",
    "SALT_BYTES",
    "STREAM_ID_BYTES",
    "STREAM_REF_BYTES",
    "TAG_BYTES",
    "FileSealer",
    "FramePlace",
    "SealError",
    "StreamRef",
    "StreamSealer",
]

KEY_BYTES = 32
SALT_BYTES = 32
STREAM_ID_BYTES = 16
TAG_BYTES = 16
FRAME_BYTES = 256 * 1024
"""Plaintext of every frame of a stream but the last."""

_FILE_INFO = b"o3storage/1 file"
_STREAM_INFO = b"o3storage/1 stream"


def _check_size(name: str, value: bytes, size: int) -> None:
    if len(value) != size:
        raise ValueError(f"{name} must be {size} bytes, got {len(value)}")


class FileSealer:
    """Seals the records or blocks of one file: key HKDF(disk key, salt of the file), nonce the
    offset at which the ciphertext stands in the file. The caller never seals two different
    plaintexts for one offset of one file."""

    __slots__ = ("_key",)

    def __init__(self, disk_key: bytes, salt: bytes) -> None:
        _check_size("disk key", disk_key, KEY_BYTES)
        _check_size("salt", salt, SALT_BYTES)
        self._key = ChaChaKey.derive(disk_key, salt, _FILE_INFO)

    @property
    def native_key(self) -> ChaChaKey:
        """The key itself, for native jobs that seal and unseal many records of the file."""
        return self._key

    def seal(self, offset: int, aad: Buffer, plaintext: Buffer) -> bytes:
        """Ciphertext and tag: `TAG_BYTES` more than `plaintext`."""
        return self._key.seal(offset, aad, plaintext)

    def seal_into(self, offset: int, aad: Buffer, plaintext: Buffer, out: memoryview) -> int:
        """As `seal`, to the start of `out`; returns the size written."""
        return self._key.seal_into(offset, aad, plaintext, out)

    def unseal(self, offset: int, aad: Buffer, ciphertext: Buffer) -> bytes:
        """The plaintext. Raises SealError."""
        return self._key.unseal(offset, aad, ciphertext)

    def seal_job(self, offset: int, aad: Buffer, plaintext: Buffer) -> Job[bytes]:
        """`seal` as a job of the pool."""
        return self._key.seal_job(offset, aad, plaintext)

    def unseal_job(self, offset: int, aad: Buffer, ciphertext: Buffer) -> Job[bytes]:
        """`unseal` as a job of the pool."""
        return self._key.unseal_job(offset, aad, ciphertext)


FramePlace = tuple[int, int, int, int, int]
"""(frame number, offset of its record in the file, record bytes, first byte wanted of the
plaintext, end of those)."""

_frame_aad = struct.Struct(">16sQIB").pack
"""Stream id, frame number, plaintext size in bytes, 1 for the last frame."""


class StreamSealer:
    """Seals the frames of one stream: key HKDF(key of the epoch, salt of the stream), nonce the
    frame number, associated data (stream id, number, plaintext size, last). A frame that was cut
    off, reordered, taken from another stream or made the end of one does not unseal."""

    __slots__ = ("_key", "_stream_id")

    def __init__(self, kek: bytes, salt: bytes, stream_id: bytes) -> None:
        _check_size("key-encryption key", kek, KEY_BYTES)
        _check_size("salt", salt, SALT_BYTES)
        _check_size("stream id", stream_id, STREAM_ID_BYTES)
        self._key = ChaChaKey.derive(kek, salt, _STREAM_INFO)
        self._stream_id = stream_id

    def seal_frame(
        self, number: int, plaintext: Buffer, last: bool, digester: Digester | None = None
    ) -> bytes:
        """Ciphertext and tag; with `digester` the plaintext is digested in the same call."""
        aad = _frame_aad(self._stream_id, number, len(plaintext), last)
        return self._key.seal(number, aad, plaintext, digester)

    def seal_frame_into(
        self,
        number: int,
        plaintext: Buffer,
        last: bool,
        out: memoryview,
        digester: Digester | None = None,
    ) -> int:
        """As `seal_frame`, to the start of `out` (`TAG_BYTES` more than the plaintext; it may
        begin at the same address, not otherwise overlap). Returns the size written."""
        aad = _frame_aad(self._stream_id, number, len(plaintext), last)
        return self._key.seal_into(number, aad, plaintext, out, digester)

    def seal_frame_hash_into(
        self,
        number: int,
        plaintext: Buffer,
        last: bool,
        out: memoryview,
        *,
        prefix: Buffer,
        digester: Digester | None = None,
    ) -> bytes:
        """As `seal_frame_into`, and returns BLAKE3(prefix + ciphertext + tag), 32 bytes."""
        aad = _frame_aad(self._stream_id, number, len(plaintext), last)
        return self._key.seal_hash_into(number, aad, plaintext, out, prefix, digester)

    def seal_frame_job(
        self, number: int, plaintext: Buffer, last: bool, digester: Digester | None = None
    ) -> Job[bytes]:
        """`seal_frame` as a job of the pool."""
        aad = _frame_aad(self._stream_id, number, len(plaintext), last)
        return self._key.seal_job(number, aad, plaintext, digester)

    def unseal_frame(
        self, number: int, ciphertext: Buffer, last: bool, digester: Digester | None = None
    ) -> bytes:
        """The plaintext. Raises SealError."""
        size = len(ciphertext) - TAG_BYTES
        if size < 0:
            raise SealError("a sealed frame is shorter than its tag")
        aad = _frame_aad(self._stream_id, number, size, last)
        return self._key.unseal(number, aad, ciphertext, digester)

    def unseal_frame_job(
        self, number: int, ciphertext: Buffer, last: bool, digester: Digester | None = None
    ) -> Job[bytes]:
        """`unseal_frame` as a job of the pool."""
        size = len(ciphertext) - TAG_BYTES
        if size < 0:
            raise SealError("a sealed frame is shorter than its tag")
        aad = _frame_aad(self._stream_id, number, size, last)
        return self._key.unseal_job(number, aad, ciphertext, digester)

    def open_record_job(
        self, number: int, record: Buffer, prefix_bytes: int, last: bool
    ) -> Job[bytes]:
        """The plaintext of the frame in a volume's record, as a job of the pool: the BLAKE3 at the
        record's start is checked over all that follows it, then what stands from `prefix_bytes` on
        is unsealed. SealError if either does not hold."""
        size = len(record) - prefix_bytes - TAG_BYTES
        if size < 0:
            raise SealError("a sealed frame is shorter than its tag")
        aad = _frame_aad(self._stream_id, number, size, last)
        return self._key.open_record_job(number, aad, record, prefix_bytes)

    def send_records_job(
        self,
        file: FileHandle,
        socket: FileHandle,
        frames: Sequence[FramePlace],
        prefix_bytes: int,
        final: int,
    ) -> Job[tuple[int, bytes]]:
        """The frames' plaintext out of the page cache into a socket, as a job of the pool. `final`
        is the stream's last frame. See `_native.send_records_job`."""
        stream = self._stream_id
        return send_records_job(
            self._key,
            file,
            socket,
            [
                (
                    number,
                    _frame_aad(stream, number, size - prefix_bytes - TAG_BYTES, number == final),
                    offset,
                    size,
                    low,
                    high,
                )
                for number, offset, size, low, high in frames
            ],
            prefix_bytes,
        )


_REF = struct.Struct(">16s32sIQ")
STREAM_REF_BYTES = _REF.size
"""60: stream id (16), salt (32), epoch (4), plaintext size (8), big-endian."""


@dataclass(slots=True)
class StreamRef:
    """What names and opens one stream; a row of the catalog holds it packed."""

    stream: bytes
    """Random id, 16 bytes."""
    salt: bytes
    """Random, 32 bytes."""
    epoch: int
    """Of the key-encryption key."""
    size_bytes: int
    """Plaintext of all frames."""

    def pack(self) -> bytes:
        """60 bytes."""
        return _REF.pack(self.stream, self.salt, self.epoch, self.size_bytes)

    @classmethod
    def unpack(cls, data: bytes) -> StreamRef:
        """Raises ValueError unless `data` has 60 bytes."""
        _check_size("stream reference", data, STREAM_REF_BYTES)
        return cls(*_REF.unpack(data))

    def sealer(self, kek: bytes) -> StreamSealer:
        """The sealer of this stream, from the key of `epoch`."""
        return StreamSealer(kek, self.salt, self.stream)
