"""Self-signed certificates for node identities.

Peers trust a public key that membership names, not a name or a date in a certificate; TLS needs a
certificate to carry the key all the same. X.509 v3 (RFC 5280) with Ed25519 (RFC 8410), in DER.
"""

from __future__ import annotations

import base64

from o3storage import _native

_ED25519 = bytes.fromhex("300506032b6570")
"""AlgorithmIdentifier of Ed25519: 1.3.101.112, no parameters."""
_SPKI_HEAD = bytes.fromhex("302a300506032b6570032100")
_PKCS8_HEAD = bytes.fromhex("302e020100300506032b657004220420")
_COMMON_NAME = bytes.fromhex("0603550403")
_SUBJECT_ALT_NAME = bytes.fromhex("0603551d11")
_NOT_AFTER = b"99991231235959Z"
"""RFC 5280 section 4.1.2.5: no well-defined end."""

NODE_SERVER_NAME = "o3storage-node"
"""The name in the certificate; every node has the same, for identity is the key."""


def _der(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    encoded = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(encoded))) + encoded + content


def _pem(label: str, der: bytes) -> bytes:
    text = base64.b64encode(der).decode("ascii")
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return "\n".join((f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", "")).encode()


def identity_certificate(seed: bytes) -> tuple[bytes, bytes]:
    """(certificate, private key), both PEM, for the Ed25519 `seed`. The same for the same seed."""
    public = _native.ed25519_public(seed)
    name = _der(
        0x30,
        _der(0x31, _der(0x30, _COMMON_NAME, _der(0x0C, NODE_SERVER_NAME.encode()))),
    )
    alt_name = _der(0x30, _der(0x82, NODE_SERVER_NAME.encode()))
    serial = bytes((0x40 | _native.blake3(public)[0] & 0x3F,)) + _native.blake3(public)[1:16]
    unsigned = _der(
        0x30,
        _der(0xA0, _der(0x02, b"\x02")),
        _der(0x02, serial),
        _ED25519,
        name,
        _der(0x30, _der(0x17, b"200101000000Z"), _der(0x18, _NOT_AFTER)),
        name,
        _SPKI_HEAD + public,
        _der(0xA3, _der(0x30, _der(0x30, _SUBJECT_ALT_NAME, _der(0x04, alt_name)))),
    )
    signature = _native.ed25519_sign(seed, unsigned)
    certificate = _der(0x30, unsigned, _ED25519, _der(0x03, b"\x00", signature))
    return _pem("CERTIFICATE", certificate), _pem("PRIVATE KEY", _PKCS8_HEAD + seed)


def ed25519_of(public_key_info: bytes | None) -> bytes | None:
    """The 32-byte key in a SubjectPublicKeyInfo (`TlsConnection.peer_public_key`), or None when
    it is of another kind."""
    if public_key_info is None or len(public_key_info) != len(_SPKI_HEAD) + 32:
        return None
    if not public_key_info.startswith(_SPKI_HEAD):
        return None
    return public_key_info[len(_SPKI_HEAD) :]
