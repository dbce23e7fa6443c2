"""Keys, sealing, node identities and certificates: the policy over the native module."""

from __future__ import annotations

from o3storage.crypto._certificate import NODE_SERVER_NAME, ed25519_of, identity_certificate
from o3storage.crypto._epochs import (
    WRAPPED_BYTES,
    EpochKeys,
    unwrap_epoch_key,
    wrap_epoch_key,
)
from o3storage.crypto._errors import (
    EpochKeyMissing,
    KeyFault,
    MasterKeyMalformed,
    MasterKeyMissing,
    MasterKeyWrong,
    NodeKeysDamaged,
    NodeKeysMissing,
)
from o3storage.crypto._master import MASTER_KEY_FILE, MasterKey
from o3storage.crypto._node_keys import (
    NODE_KEYS_FILE,
    NodeKeys,
    OpenedKeys,
    open_keys,
    rotate_master,
)
from o3storage.crypto._sealing import (
    FRAME_BYTES,
    KEY_BYTES,
    SALT_BYTES,
    STREAM_ID_BYTES,
    STREAM_REF_BYTES,
    TAG_BYTES,
    FileSealer,
    FramePlace,
    SealError,
    StreamRef,
    StreamSealer,
)

__all__ = [
    "FRAME_BYTES",
    "KEY_BYTES",
    "MASTER_KEY_FILE",
    "NODE_KEYS_FILE",
    "NODE_SERVER_NAME",
    "SALT_BYTES",
    "STREAM_ID_BYTES",
    "STREAM_REF_BYTES",
    "TAG_BYTES",
    "WRAPPED_BYTES",
    "EpochKeyMissing",
    "EpochKeys",
    "FileSealer",
    "FramePlace",
    "KeyFault",
    "MasterKey",
    "MasterKeyMalformed",
    "MasterKeyMissing",
    "MasterKeyWrong",
    "NodeKeys",
    "NodeKeysDamaged",
    "NodeKeysMissing",
    "OpenedKeys",
    "SealError",
    "StreamRef",
    "StreamSealer",
    "ed25519_of",
    "identity_certificate",
    "open_keys",
    "rotate_master",
    "unwrap_epoch_key",
    "wrap_epoch_key",
]
