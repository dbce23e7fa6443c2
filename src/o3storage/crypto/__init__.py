"""Keys, sealing, node identities and certificates: the policy over the native module."""

from __future__ import annotations

from o3storage.crypto._sealing import (
    FRAME_BYTES,
    KEY_BYTES,
    SALT_BYTES,
    STREAM_ID_BYTES,
    STREAM_REF_BYTES,
    TAG_BYTES,
    FileSealer,
    SealError,
    StreamRef,
    StreamSealer,
)

__all__ = [
    "FRAME_BYTES",
    "KEY_BYTES",
    "SALT_BYTES",
    "STREAM_ID_BYTES",
    "STREAM_REF_BYTES",
    "TAG_BYTES",
    "FileSealer",
    "SealError",
    "StreamRef",
    "StreamSealer",
]
