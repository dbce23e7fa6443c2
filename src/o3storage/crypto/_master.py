"""The master key: the one secret of a node that is kept outside everything it opens.

It wraps only `node.keys`. As text it is one line, `o3-master-1-` and 72 hex digits (the key, then
four bytes of its BLAKE3, so that a slip in copying is told apart from a wrong key).
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from o3storage import _native
from o3storage._native import ChaChaKey
from o3storage.crypto._errors import MasterKeyMalformed
from o3storage.runtime.clock import Entropy

MASTER_KEY_FILE = "master.key"
MASTER_KEY_MAX_BYTES = 4_096
"""A larger file is not a master key."""

_PREFIX = "o3-master-1-"
_CHECK_BYTES = 4
_INFO = b"o3storage/1 node keys"


class MasterKey:
    """32 secret bytes."""

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes) -> None:
        if len(secret) != 32:
            raise ValueError(f"a master key has 32 bytes, got {len(secret)}")
        self._secret = secret

    def __repr__(self) -> str:
        return "MasterKey(...)"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MasterKey):
            return NotImplemented
        return _native.compare_digest(self._secret, other._secret)

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def generate(cls, entropy: Entropy) -> MasterKey:
        """A new one."""
        return cls(entropy.random_bytes(32))

    @classmethod
    def parse(cls, text: str | bytes, *, source: str) -> MasterKey:
        """From the text form; `source` names the file or variable in errors. Raises
        MasterKeyMalformed."""
        if isinstance(text, bytes):
            text = text.decode("ascii", "replace")
        text = text.strip()
        refuse = MasterKeyMalformed(
            f"{source} does not hold a master key (one line, {_PREFIX} and 72 hex digits); "
            "put back the copy that was made when the store was created"
        )
        if not text.startswith(_PREFIX):
            raise refuse
        try:
            data = bytes.fromhex(text.removeprefix(_PREFIX))
        except ValueError:
            raise refuse from None
        secret, check = data[:32], data[32:]
        if len(data) != 32 + _CHECK_BYTES or _native.blake3(secret)[:_CHECK_BYTES] != check:
            raise refuse
        return cls(secret)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> MasterKey | None:
        """From O3_MASTER_KEY, or the file that O3_MASTER_KEY_FILE names; None without both.
        Raises MasterKeyMalformed, also when the file cannot be read."""
        text = environ.get("O3_MASTER_KEY")
        if text:
            return cls.parse(text, source="O3_MASTER_KEY")
        path = environ.get("O3_MASTER_KEY_FILE")
        if not path:
            return None
        try:
            with open(path, "rb") as file:
                data = file.read(MASTER_KEY_MAX_BYTES)
        except OSError as error:
            raise MasterKeyMalformed(
                f"the file {path} that O3_MASTER_KEY_FILE names cannot be read: "
                f"{os.strerror(error.errno or 0)}"
            ) from error
        return cls.parse(data, source=path)

    def text(self) -> str:
        """The text form, without a line end."""
        check = _native.blake3(self._secret)[:_CHECK_BYTES]
        return _PREFIX + self._secret.hex() + check.hex()

    def wrapping_key(self, salt: bytes) -> ChaChaKey:
        """What seals one copy of `node.keys`; `salt` is 32 random bytes, new at each wrapping."""
        return ChaChaKey.derive(self._secret, salt, _INFO)
