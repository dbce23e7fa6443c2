"""From a data directory and its master key to the bytes of s3://bucket/key, by docs/format*.md alone.

It joins the readers of the volumes and of the catalog's rows with the key files. Like those it
imports nothing of o3storage but hashes, cipher and X25519 of the native module, which Python's own
library lacks.
"""

from __future__ import annotations

import os
import zlib

from o3storage._native import ChaChaKey, blake3, hkdf_sha256, x25519_agree, x25519_public
from tests.catalog import reader as catalog

from .independent_reader import Reader, load


def master_key(text):
    mark, _, digits = text.decode().strip().rpartition("-")
    raw = bytes.fromhex(digits)
    assert mark == "o3-master-1" and len(raw) == 36 and blake3(raw[:32])[:4] == raw[32:]
    return raw[:32]


def node_keys(data, master):
    """(X25519 secret, disk key)."""
    for at in (0, 4096):
        copy = data[at : at + 4096]
        if copy[:5] == b"O3NK\1" and blake3(copy[:152]) == copy[152:184]:
            key = ChaChaKey.derive(master, copy[8:40], b"o3storage/1 node keys")
            secrets = key.unseal(bytes(12), copy[:8], copy[40:152])
            return secrets[32:64], secrets[64:96]
    raise AssertionError("no good copy of the node's keys")


def epoch_keys(rows, secret):
    """epoch -> key-encryption key."""
    public = x25519_public(secret)
    (node,) = [k[2:] for k, v in rows.items() if k[:2] == b"\xfe\4" and v[32:64] == public]
    found = {}
    for row_key, wrapped in rows.items():
        if row_key[:2] == b"\xfe\3" and row_key[6:] == node:
            assert wrapped[0] == 1 and len(wrapped) == 81
            sender = wrapped[1:33]
            shared = x25519_agree(secret, sender)
            key = hkdf_sha256(shared, sender + public, b"o3storage/1 epoch key")
            epoch = row_key[2:6]
            found[int.from_bytes(epoch, "big")] = ChaChaKey(key).unseal(
                bytes(12), epoch, wrapped[33:]
            )
    return found


def version_id(found):
    if found["null"]:
        return "null"
    order = found["order"]
    return f"{order:016x}{zlib.crc32(order.to_bytes(8, 'big')) & 0xFFFF:04x}"


class DataDirectory:
    """Of a stopped store with one node."""

    def __init__(self, path):
        def content(name):
            with open(os.path.join(path, name), "rb") as file:
                return file.read()

        secret, disk_key = node_keys(content("node.keys"), master_key(content("master.key")))
        self._volumes = Reader(load(path), disk_key)
        self.rows = self._volumes.rows
        self._keys = epoch_keys(self.rows, secret)

    def objects(self):
        """(bucket, key, version) of what a listing shows."""
        return list(catalog.current_objects(self.rows))

    def versions(self):
        """The same of all versions and delete markers, the newest of a key first."""
        return list(catalog.all_versions(self.rows))

    def body(self, found):
        """The plaintext of a version; all that is said of it holds."""
        parts, hashes = [], []
        for piece in found["pieces"]:
            kek = self._keys[piece["epoch"]]
            part = self._volumes.extract(piece["stream"], kek, piece["salt"])
            assert len(part) == piece["size"]
            parts.append(part)
            hashes.append(blake3(part))
        whole = b"".join(parts)
        assert len(whole) == found["size"]
        assert found["blake3"] == blake3(b"".join(hashes) if found["upload"] else whole)
        return whole
