"""The cluster's secret: who knows it may join. It never leaves a node; a node proves that it knows
it, over what only the two ends of one connection know, so that a proof is of no use elsewhere.

A join token is the secret in a form that survives copying, with the addresses to join at:

    o3-join-1-<hex of: count u8, (host u8 + ASCII, port u16)*, secret u8 + bytes, check 4>

where check is the first 4 bytes of the BLAKE3 of all before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from o3storage import _native
from o3storage.cluster._errors import SecretRefused
from o3storage.cluster._node_records import MAX_ADDRESSES
from o3storage.runtime.clock import Entropy
from o3storage.runtime.fields import FieldReader
from o3storage.runtime.network import Address

MIN_SECRET_BITS = 128
"""Fewer can be searched by whoever recorded one proof."""
MIN_DISTINCT_CHARS = 8
"""A random secret of 128 bits practically never has fewer; a repeated word has."""
MAX_SECRET_BYTES = 200
"""Longer than any secret; a file that holds more is the wrong file."""
GENERATED_BYTES = 24
PROOF_BYTES = 32

_TOKEN = "o3-join-1-"
_CHECK_BYTES = 4
_INFO = b"o3storage/1 cluster secret"
_LABEL = b"o3storage/1 proof\0"


class ClusterSecret:
    """Proves that its holder may join, and checks such proofs."""

    __slots__ = ("_key", "_text")

    def __init__(self, text: str) -> None:
        """Raises SecretRefused for one that could be guessed."""
        text = text.strip()
        check_strength(text)
        self._text = text.encode()
        self._key = _native.hkdf_sha256(self._text, b"", _INFO)

    def __repr__(self) -> str:
        return "ClusterSecret(...)"

    @classmethod
    def generate(cls, entropy: Entropy) -> ClusterSecret:
        return cls(entropy.random_bytes(GENERATED_BYTES).hex())

    def text(self) -> str:
        """The secret itself, to be kept in a file that only its owner reads."""
        return self._text.decode()

    def proof(self, binding: bytes, prover: bytes, verifier: bytes, role: str) -> bytes:
        """32 bytes that only a holder can make: for the connection with `binding`
        (Link.binding), between two identities, by the one that acts as `role` in it."""
        return _native.hmac_sha256(self._key, _message(binding, prover, verifier, role))

    def proves(
        self, proof: bytes, binding: bytes, prover: bytes, verifier: bytes, role: str
    ) -> bool:
        """Whether `proof` was made by a holder for exactly this."""
        expected = self.proof(binding, prover, verifier, role)
        return len(proof) == PROOF_BYTES and _native.compare_digest(proof, expected)

    def token(self, addresses: tuple[Address, ...]) -> str:
        """For `--join`: the secret and where to join."""
        parts = [bytes((min(len(addresses), MAX_ADDRESSES),))]
        for host, port in addresses[:MAX_ADDRESSES]:
            name = host.encode("ascii")
            parts += (bytes((len(name),)), name, port.to_bytes(2, "big"))
        parts += (bytes((len(self._text),)), self._text)
        body = b"".join(parts)
        return _TOKEN + (body + _native.blake3(body)[:_CHECK_BYTES]).hex()


def _message(binding: bytes, prover: bytes, verifier: bytes, role: str) -> bytes:
    # Fixed lengths before the role, so that no two sets of fields make one message.
    if len(binding) != 32 or len(prover) != 32 or len(verifier) != 32:
        raise ValueError("a binding and an identity have 32 bytes")
    return _LABEL + binding + prover + verifier + role.encode()


def check_strength(text: str) -> None:
    """Raises SecretRefused if `text` surely holds fewer than 128 bits: counted by its length and
    the kinds of its characters, as if each were drawn at random."""
    if len(text.encode()) > MAX_SECRET_BYTES:
        raise SecretRefused(f"the cluster secret is longer than {MAX_SECRET_BYTES} bytes")
    if not text.isprintable():
        raise SecretRefused("the cluster secret must be one line of printable text")
    lowered = text.lower()
    if text.isdigit():
        symbols = 10
    elif all(char in "0123456789abcdef" for char in lowered):
        symbols = 16
    elif text.isalpha() and text in (lowered, text.upper()):
        symbols = 26
    elif text.isalnum() and text in (lowered, text.upper()):
        symbols = 36
    elif text.isalnum():
        symbols = 62
    else:
        symbols = 94
    bits = len(text) * math.log2(symbols)
    if bits < MIN_SECRET_BITS or len(dict.fromkeys(text)) < MIN_DISTINCT_CHARS:
        raise SecretRefused(
            f"the cluster secret has fewer than {MIN_SECRET_BITS} bits and could be guessed; make "
            "one with: od -An -N24 -tx1 /dev/urandom | tr -d ' \\n'"
        )


def parse_token(token: str) -> tuple[ClusterSecret, tuple[Address, ...]]:
    """The secret and the addresses of a join token. Raises SecretRefused."""
    broken = SecretRefused(
        "this is not a whole join token (o3-join-1-...); copy it again from the first node "
        "(`o3storage node token`)"
    )
    token = token.strip()
    if not token.startswith(_TOKEN) or len(token) > 4096:
        raise broken
    try:
        data = bytes.fromhex(token.removeprefix(_TOKEN))
    except ValueError:
        raise broken from None
    body, check = data[:-_CHECK_BYTES], data[-_CHECK_BYTES:]
    if _native.blake3(body)[:_CHECK_BYTES] != check:
        raise broken
    try:
        reader = FieldReader(body)
        addresses = []
        for _number in range(reader.u8()):
            name = reader.bytes8().decode("ascii")
            addresses.append(Address(name, reader.u16()))
        text = reader.bytes8().decode()
        reader.end()
    except ValueError:
        raise broken from None
    return ClusterSecret(text), tuple(addresses)


def from_environment(environ: Mapping[str, str]) -> ClusterSecret | None:
    """O3_CLUSTER_SECRET, or the first line of the file that O3_CLUSTER_SECRET_FILE names; None
    without both. Raises SecretRefused."""
    text, path = environ.get("O3_CLUSTER_SECRET"), environ.get("O3_CLUSTER_SECRET_FILE")
    if text and path:
        raise SecretRefused("O3_CLUSTER_SECRET and O3_CLUSTER_SECRET_FILE are both set; keep one")
    if path:
        try:
            with open(path, "rb") as file:
                raw = file.read(MAX_SECRET_BYTES + 2)
        except OSError as error:
            raise SecretRefused(
                f"the file {path} that O3_CLUSTER_SECRET_FILE names cannot be read: "
                f"{error.strerror}"
            ) from None
        text = raw.decode("utf-8", "replace").split("\n", 1)[0]
    return ClusterSecret(text) if text else None
