"""The keys of one node, in `node.keys`, wrapped by the master key.

The file has two equal copies, each in 4 KiB of its own, so that no single bad sector loses them.
One copy, from its first byte:

    0   4   magic "O3NK"
    4   1   version, 1
    5   3   zero
    8   32  salt, random at each wrapping
    40  112 ChaCha20-Poly1305 of (Ed25519 seed 32, X25519 secret 32, disk key 32), tag at its end;
            key HKDF-SHA256(master key, salt, "o3storage/1 node keys"), nonce 0,
            associated data: the first 8 bytes
    152 32  BLAKE3 of all before
    184 ..  zero, to 4,096
"""

from __future__ import annotations

from dataclasses import dataclass

from o3storage import _native
from o3storage._native import SealError
from o3storage.crypto._errors import (
    MasterKeyMalformed,
    MasterKeyMissing,
    MasterKeyWrong,
    NodeKeysDamaged,
    NodeKeysMissing,
)
from o3storage.crypto._master import MASTER_KEY_FILE, MASTER_KEY_MAX_BYTES, MasterKey
from o3storage.runtime.clock import Entropy
from o3storage.runtime.disk import Disk, OpenMode, write_whole

NODE_KEYS_FILE = "node.keys"

_COPY_BYTES = 4096
_COPIES = 2
_HEAD = b"O3NK\x01\x00\x00\x00"
_SALT_END = len(_HEAD) + 32
_SEALED_END = _SALT_END + 3 * 32 + 16
_USED_BYTES = _SEALED_END + 32

_NEW = ".new"
"""Files are written whole under this suffix, synced, then renamed into place."""


@dataclass(slots=True, frozen=True, repr=False)
class NodeKeys:
    """Identity (Ed25519), exchange (X25519) and disk key of one node."""

    identity_seed: bytes
    exchange_secret: bytes
    disk_key: bytes

    def __repr__(self) -> str:
        return f"NodeKeys(identity={self.identity.hex()})"

    @classmethod
    def generate(cls, entropy: Entropy) -> NodeKeys:
        """New keys."""
        return cls(entropy.random_bytes(32), entropy.random_bytes(32), entropy.random_bytes(32))

    @property
    def identity(self) -> bytes:
        """The Ed25519 public key: what the node is known by."""
        return _native.ed25519_public(self.identity_seed)

    @property
    def exchange(self) -> bytes:
        """The X25519 public key: epoch keys are wrapped to it."""
        return _native.x25519_public(self.exchange_secret)

    def sign(self, message: bytes) -> bytes:
        """Ed25519 signature of the identity, 64 bytes."""
        return _native.ed25519_sign(self.identity_seed, message)

    def wrap(self, master: MasterKey, entropy: Entropy) -> bytes:
        """The content of `node.keys`."""
        salt = entropy.random_bytes(32)
        secrets = self.identity_seed + self.exchange_secret + self.disk_key
        copy = _HEAD + salt + master.wrapping_key(salt).seal(0, _HEAD, secrets)
        copy += _native.blake3(copy)
        return copy.ljust(_COPY_BYTES, b"\0") * _COPIES

    @classmethod
    def unwrap(cls, data: bytes, master: MasterKey) -> NodeKeys:
        """From the content of `node.keys`. Raises MasterKeyWrong, NodeKeysDamaged."""
        wrong = False
        for copy in _whole_copies(data):
            salt = copy[len(_HEAD) : _SALT_END]
            try:
                secrets = master.wrapping_key(salt).unseal(0, _HEAD, copy[_SALT_END:_SEALED_END])
            except SealError:
                wrong = True
                continue
            return cls(secrets[:32], secrets[32:64], secrets[64:])
        if wrong:
            raise MasterKeyWrong(
                f"this master key does not open {NODE_KEYS_FILE}; put back the {MASTER_KEY_FILE} "
                "(or O3_MASTER_KEY) that belongs to this data directory. Nothing was changed"
            )
        raise NodeKeysDamaged(
            f"both copies in {NODE_KEYS_FILE} are damaged; put the file back from a backup. "
            "Nothing was changed"
        )


def _whole_copies(data: bytes) -> list[bytes]:
    copies = [data[at : at + _USED_BYTES] for at in range(0, _COPIES * _COPY_BYTES, _COPY_BYTES)]
    return [
        copy
        for copy in copies
        if len(copy) == _USED_BYTES
        and copy.startswith(_HEAD)
        and _native.blake3(copy[:_SEALED_END]) == copy[_SEALED_END:]
    ]


@dataclass(slots=True)
class OpenedKeys:
    """What `open_keys` found or made."""

    master: MasterKey
    node: NodeKeys
    created: bool
    """New keys: this is a new store."""
    master_in_data_dir: bool
    """The master key lies in the data directory, and must be backed up from there."""
    repaired: bool
    """One copy in `node.keys` was damaged and has been written anew."""


async def open_keys(
    disk: Disk, *, entropy: Entropy, has_data: bool, master: MasterKey | None = None
) -> OpenedKeys:
    """Open the keys of the node whose data directory is `disk`, or make them for a new store.

    Call with the directory locked and before anything else is written. `master` is the key from
    outside (environment), which goes before `master.key`; `has_data`: volumes or other data exist.
    With a wrong key, or none beside existing data, raises a KeyFault and has written nothing.
    """
    wrapped = await _read(disk, NODE_KEYS_FILE, _COPIES * _COPY_BYTES)
    stored = None if master is not None else await _stored_master(disk)
    if wrapped is None and has_data:
        raise NodeKeysMissing(
            f"there is data here, but no {NODE_KEYS_FILE}, without which it cannot be read; "
            "put the file back from a backup. Nothing was changed"
        )
    if wrapped is None:
        return await _create(disk, entropy, master or stored, in_data_dir=master is None)
    pending = None if master is not None else await _pending_master(disk)
    candidates = [key for key in (master, stored, pending) if key is not None]
    if not candidates:
        raise MasterKeyMissing(
            f"there is a store here, but no {MASTER_KEY_FILE}, without which it cannot be read; "
            "put it back from the backup, or set O3_MASTER_KEY. Nothing was changed"
        )
    opened: MasterKey | None = None
    for key in candidates:
        try:
            node = NodeKeys.unwrap(wrapped, key)
        except MasterKeyWrong:
            continue
        opened = key
        break
    if opened is None:
        NodeKeys.unwrap(wrapped, candidates[0])
        raise AssertionError("unreachable: no candidate opened the keys")
    # A change of the master key that a crash cut short: end it, and drop what it left.
    if opened is pending:
        await disk.rename(MASTER_KEY_FILE + _NEW, MASTER_KEY_FILE)
        await disk.sync_dir("")
    await _drop_leftovers(disk)
    damaged = len(_whole_copies(wrapped)) < _COPIES
    if damaged:
        await _replace(disk, NODE_KEYS_FILE, node.wrap(opened, entropy))
    return OpenedKeys(opened, node, False, master is None, damaged)


async def rotate_master(
    disk: Disk, keys: OpenedKeys, new: MasterKey, *, entropy: Entropy
) -> OpenedKeys:
    """Wrap the node's keys with `new` instead; data stays as it is. When the master key lies in
    the data directory it is replaced there; a crash at any point leaves one that opens."""
    if keys.master_in_data_dir:
        await write_whole(disk, MASTER_KEY_FILE + _NEW, new.text().encode() + b"\n")
        await disk.sync_dir("")
    await _replace(disk, NODE_KEYS_FILE, keys.node.wrap(new, entropy))
    if keys.master_in_data_dir:
        await disk.rename(MASTER_KEY_FILE + _NEW, MASTER_KEY_FILE)
        await disk.sync_dir("")
    return OpenedKeys(new, keys.node, False, keys.master_in_data_dir, False)


async def _create(
    disk: Disk, entropy: Entropy, master: MasterKey | None, *, in_data_dir: bool
) -> OpenedKeys:
    if master is None:
        master = MasterKey.generate(entropy)
        await _replace(disk, MASTER_KEY_FILE, master.text().encode() + b"\n")
    node = NodeKeys.generate(entropy)
    await _replace(disk, NODE_KEYS_FILE, node.wrap(master, entropy))
    return OpenedKeys(master, node, True, in_data_dir, False)


async def _stored_master(disk: Disk) -> MasterKey | None:
    data = await _read(disk, MASTER_KEY_FILE, MASTER_KEY_MAX_BYTES)
    return None if data is None else MasterKey.parse(data, source=MASTER_KEY_FILE)


async def _pending_master(disk: Disk) -> MasterKey | None:
    """The next master key, when a crash cut its introduction short."""
    data = await _read(disk, MASTER_KEY_FILE + _NEW, MASTER_KEY_MAX_BYTES)
    try:
        return None if data is None else MasterKey.parse(data, source=MASTER_KEY_FILE)
    except MasterKeyMalformed:
        return None  # Cut short even earlier: nothing was wrapped with it.


async def _read(disk: Disk, name: str, size: int) -> bytes | None:
    try:
        file = await disk.open(name, OpenMode.READ)
    except FileNotFoundError:
        return None
    try:
        return await file.read(0, size)
    finally:
        await file.close()


async def _drop_leftovers(disk: Disk) -> None:
    leftovers = {MASTER_KEY_FILE + _NEW, NODE_KEYS_FILE + _NEW}
    for name in await disk.list_dir(""):
        if name in leftovers:
            await disk.unlink(name)
            await disk.sync_dir("")


async def _replace(disk: Disk, name: str, data: bytes) -> None:
    await write_whole(disk, name + _NEW, data)
    await disk.rename(name + _NEW, name)
    await disk.sync_dir("")
