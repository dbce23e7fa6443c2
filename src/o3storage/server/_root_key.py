"""The root credentials that a store makes for itself on its first start.

They lie in the data directory as `root-credentials`, mode 0600, in the format of an AWS shared
credentials file, so that `AWS_SHARED_CREDENTIALS_FILE` can point at it. The nodes of a cluster have
one root key: it is a shared value of range 0, and each node's file follows it.
"""

from __future__ import annotations

from pathlib import Path

from o3storage.runtime.clock import Entropy

from ._config import MAX_SECRET_FILE_BYTES, RootKey
from ._errors import StartError
from ._private_file import write_private

FILE_NAME = "root-credentials"
ROOT_KEY = "root key"
"""The shared value of range 0 that holds the root key of all nodes."""
_KEY_ID_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_SECRET_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+-"
KEY_ID_CHARS = 20
"""As long as AWS's, which some tools check."""
SECRET_CHARS = 40
"""As long as AWS's; 240 bits of entropy with 64 symbols."""


def make_key(entropy: Entropy) -> RootKey:
    """A new key id and secret, drawn without bias (both alphabets are powers of two)."""
    id_bytes = entropy.random_bytes(KEY_ID_CHARS - 2)
    secret_bytes = entropy.random_bytes(SECRET_CHARS)
    return RootKey(
        "O3" + "".join(_KEY_ID_ALPHABET[byte & 31] for byte in id_bytes),
        "".join(_SECRET_ALPHABET[byte & 63] for byte in secret_bytes),
    )


def load(data_dir: Path) -> RootKey | None:
    """The stored key, or None if there is none. Raises StartError if the file is unusable."""
    path = data_dir / FILE_NAME
    try:
        raw = path.read_bytes()[: MAX_SECRET_FILE_BYTES + 1]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StartError(f"cannot read {path}: {error.strerror}") from None
    values = {}
    for line in raw.decode("utf-8", "replace").splitlines():
        name, equals, value = line.partition("=")
        if equals:
            values[name.strip()] = value.strip()
    key_id, secret = values.get("aws_access_key_id"), values.get("aws_secret_access_key")
    if not key_id or not secret:
        raise StartError(
            f"{path} holds no aws_access_key_id and aws_secret_access_key; restore it, or "
            "remove it and the next start makes a new root key (nothing else changes)"
        )
    return RootKey(key_id, secret)


def create(data_dir: Path, entropy: Entropy) -> RootKey:
    """Make a key and keep it, durably, before anybody is told of it."""
    key = make_key(entropy)
    save(data_dir, key)
    return key


def save(data_dir: Path, key: RootKey) -> None:
    """Keep `key`, durably, in place of the one before."""
    text = f"[default]\naws_access_key_id = {key.key_id}\naws_secret_access_key = {key.secret}\n"
    write_private(data_dir / FILE_NAME, text)


def to_shared(key: RootKey) -> bytes:
    """As all nodes of a cluster share it, in range 0."""
    return f"{key.key_id}\n{key.secret}".encode()


def from_shared(value: bytes) -> RootKey:
    """Raises ValueError."""
    key_id, line, secret = value.decode().partition("\n")
    if not line:
        raise ValueError("not a root key")
    return RootKey(key_id, secret)
