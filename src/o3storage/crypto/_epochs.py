"""Keys of epochs: what the keys of streams are derived from.

An epoch's key-encryption key (32 random bytes) is stored only wrapped, once for each member of the
cluster, to that member's X25519 key: an ephemeral key pair is made, and

    wrapped = version 1 (1) | ephemeral public key (32) | ChaCha20-Poly1305(kek) and tag (48)

under HKDF-SHA256(X25519 shared secret, salt = ephemeral public | member public,
"o3storage/1 epoch key"), nonce 0, associated data the epoch (4 bytes, big-endian). The key is used
once, so the nonce is too.
"""

from __future__ import annotations

from o3storage import _native
from o3storage._native import ChaChaKey, SealError
from o3storage.crypto._errors import EpochKeyMissing
from o3storage.crypto._sealing import KEY_BYTES
from o3storage.runtime.clock import Entropy

WRAPPED_BYTES = 1 + 32 + KEY_BYTES + 16
EPOCH_MAX = 2**32 - 1

_VERSION = b"\x01"
_INFO = b"o3storage/1 epoch key"


def wrap_epoch_key(kek: bytes, epoch: int, member: bytes, entropy: Entropy) -> bytes:
    """`kek` for the holder of the X25519 public key `member`: `WRAPPED_BYTES` bytes. ValueError
    for wrong sizes or a `member` key of low order."""
    if len(kek) != KEY_BYTES:
        raise ValueError(f"a key-encryption key has {KEY_BYTES} bytes")
    secret = entropy.random_bytes(32)
    public = _native.x25519_public(secret)
    key = ChaChaKey.derive(_native.x25519_agree(secret, member), public + member, _INFO)
    return _VERSION + public + key.seal(0, epoch.to_bytes(4, "big"), kek)


def unwrap_epoch_key(wrapped: bytes, epoch: int, secret: bytes) -> bytes:
    """The key-encryption key, with the member's X25519 `secret`. Raises SealError when it was
    wrapped for another member or epoch, or altered."""
    if len(wrapped) != WRAPPED_BYTES or not wrapped.startswith(_VERSION):
        raise SealError("not a wrapped epoch key of this version")
    public = wrapped[1:33]
    try:
        shared = _native.x25519_agree(secret, public)
    except ValueError as error:
        raise SealError("the wrapped epoch key was altered") from error
    key = ChaChaKey.derive(shared, public + _native.x25519_public(secret), _INFO)
    return key.unseal(0, epoch.to_bytes(4, "big"), wrapped[33:])


class EpochKeys:
    """The key-encryption keys that this node holds, by epoch. New streams use the newest."""

    __slots__ = ("_keys",)

    def __init__(self) -> None:
        self._keys: dict[int, bytes] = {}

    def __repr__(self) -> str:
        return f"EpochKeys(epochs={sorted(self._keys)})"

    def __contains__(self, epoch: int) -> bool:
        return epoch in self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, epoch: int, kek: bytes) -> None:
        """Hold `kek`. ValueError for a wrong size, a bad epoch, or another key of that epoch."""
        if len(kek) != KEY_BYTES or not 1 <= epoch <= EPOCH_MAX:
            raise ValueError(f"an epoch is 1 to {EPOCH_MAX} and its key {KEY_BYTES} bytes")
        if self._keys.setdefault(epoch, kek) != kek:
            raise ValueError(f"epoch {epoch} has another key already")

    def unwrap(self, epoch: int, wrapped: bytes, secret: bytes) -> None:
        """`add` what `wrapped` holds. Raises SealError."""
        self.add(epoch, unwrap_epoch_key(wrapped, epoch, secret))

    def all(self) -> list[int]:
        """The epochs held, ascending."""
        return sorted(self._keys)

    def key(self, epoch: int) -> bytes:
        """The key of `epoch`. Raises EpochKeyMissing."""
        try:
            return self._keys[epoch]
        except KeyError:
            raise EpochKeyMissing(
                f"this node has no key of epoch {epoch}; it gets it from the cluster's leader"
            ) from None

    @property
    def newest(self) -> int:
        """The newest epoch. Raises EpochKeyMissing when there is none."""
        if not self._keys:
            raise EpochKeyMissing("this node has no epoch key yet; it gets it with its membership")
        return max(self._keys)

    @staticmethod
    def generate(entropy: Entropy) -> bytes:
        """A new key-encryption key."""
        return entropy.random_bytes(KEY_BYTES)
