"""Reads keys and frames as docs/format-keys.md says, with none of the crypto room's code."""

from __future__ import annotations

import asyncio
import hashlib
import hmac

from o3storage import _native, crypto
from o3storage.runtime import OpenMode, SystemEntropy
from o3storage.simulation import SimDisk
from tests.native import blake3_model, chacha_model

ENTROPY = SystemEntropy()


def hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    extracted = hmac.new(salt, secret, hashlib.sha256).digest()
    return hmac.new(extracted, info + b"\1", hashlib.sha256).digest()


def unseal(key: bytes, number: int, aad: bytes, sealed: bytes) -> bytes:
    nonce = number.to_bytes(8, "little") + bytes(4)
    zeros = chacha_model.seal(key, nonce, aad, bytes(len(sealed) - 16))
    plain = bytes(a ^ b for a, b in zip(sealed[:-16], zeros[:-16], strict=True))
    assert chacha_model.seal(key, nonce, aad, plain) == sealed
    return plain


def test_from_the_master_key_to_a_frame() -> None:
    async def files() -> tuple[crypto.OpenedKeys, bytes, bytes]:
        disk = SimDisk()
        keys = await crypto.open_keys(disk, entropy=ENTROPY, has_data=False)
        master_file = await disk.open("master.key", OpenMode.READ)
        node_file = await disk.open("node.keys", OpenMode.READ)
        return keys, await master_file.read(0, 4096), await node_file.read(0, 10_000)

    keys, text, wrapped = asyncio.run(files())
    kek, stream, salt = bytes(range(32)), b"s" * 16, b"t" * 32
    epoch_row = crypto.wrap_epoch_key(kek, 9, keys.node.exchange, ENTROPY)
    row = crypto.StreamRef(stream, salt, 9, 5).pack()
    frame = crypto.StreamSealer(kek, salt, stream).seal_frame(0, b"hello", True)
    record = crypto.FileSealer(keys.node.disk_key, b"f" * 32).seal(8192, b"header", b"record")

    # From here on by the page alone.
    assert text.startswith(b"o3-master-1-")
    assert text.endswith(b"\n")
    raw = bytes.fromhex(text.strip().removeprefix(b"o3-master-1-").decode())
    master = raw[:32]
    assert raw[32:] == blake3_model.blake3(master)[:4]

    assert len(wrapped) == 8192
    copy = wrapped[:4096]
    assert wrapped[4096:] == copy
    assert copy[:8] == b"O3NK\1\0\0\0"
    assert copy[152:184] == blake3_model.blake3(copy[:152])
    assert copy[184:] == bytes(4096 - 184)
    wrapping_key = hkdf(master, copy[8:40], b"o3storage/1 node keys")
    secrets = unseal(wrapping_key, 0, copy[:8], copy[40:152])
    exchange, disk_key = secrets[32:64], secrets[64:]

    file_key = hkdf(disk_key, b"f" * 32, b"o3storage/1 file")
    assert unseal(file_key, 8192, b"header", record) == b"record"

    assert len(epoch_row) == 81
    ephemeral = epoch_row[1:33]
    shared = _native.x25519_agree(exchange, ephemeral)
    member = _native.x25519_public(exchange)
    epoch_key = hkdf(shared, ephemeral + member, b"o3storage/1 epoch key")
    found = unseal(epoch_key, 0, (9).to_bytes(4, "big"), epoch_row[33:])
    assert found == kek

    assert len(row) == 60
    stream_key = hkdf(found, row[16:48], b"o3storage/1 stream")
    assert int.from_bytes(row[48:52], "big") == 9
    size = int.from_bytes(row[52:], "big")
    aad = row[:16] + bytes(8) + size.to_bytes(4, "big") + b"\1"
    assert unseal(stream_key, 0, aad, frame) == b"hello"
