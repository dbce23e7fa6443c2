"""The certificate that carries a node's identity; handshakes with it are in tests/native."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from o3storage import _native
from o3storage.crypto import NODE_SERVER_NAME, ed25519_of, identity_certificate

SEED = bytes(range(32))


def test_the_same_seed_gives_the_same_certificate() -> None:
    assert identity_certificate(SEED) == identity_certificate(SEED)
    assert identity_certificate(SEED) != identity_certificate(bytes(32))


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
def test_openssl_takes_it(tmp_path: Path) -> None:
    certificate, key = tmp_path / "certificate", tmp_path / "key"
    certificate.write_bytes(identity_certificate(SEED)[0])
    key.write_bytes(identity_certificate(SEED)[1])

    def openssl(*arguments: str) -> bytes:
        return subprocess.run(["openssl", *arguments], check=True, capture_output=True).stdout

    openssl("verify", "-check_ss_sig", "-CAfile", str(certificate), str(certificate))
    text = openssl("x509", "-in", str(certificate), "-noout", "-text").decode()
    assert "Version: 3" in text
    assert f"DNS:{NODE_SERVER_NAME}" in text
    assert "Dec 31 23:59:59 9999" in text
    public = openssl("x509", "-in", str(certificate), "-noout", "-pubkey")
    assert openssl("pkey", "-in", str(key), "-pubout") == public


def test_ed25519_of() -> None:
    public = _native.ed25519_public(SEED)
    info = bytes.fromhex("302a300506032b6570032100") + public
    assert ed25519_of(info) == public
    assert ed25519_of(None) is None
    assert ed25519_of(info[:-1]) is None
    assert ed25519_of(b"\x30" + bytes(43)) is None
