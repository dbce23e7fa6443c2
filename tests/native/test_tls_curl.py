"""Real handshakes with curl (OpenSSL): every kind of key, both versions, client certificates."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from o3storage._native import TlsConfig, TlsConnection, TlsError

pytestmark = pytest.mark.skipif(
    not (shutil.which("curl") and shutil.which("openssl")), reason="needs curl and openssl"
)

KEYS = {
    "ecdsa-p256": ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"],
    "rsa": ["-newkey", "rsa:2048"],
    "ed25519": ["-newkey", "ed25519"],
}
BODY = bytes(i * 7 & 0xFF for i in range(300_000))
"""Several records, and more than the send buffer holds."""


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and for each kind of key a server's and a client's certificate."""
    where = tmp_path_factory.mktemp("tls")
    openssl(
        *("req", "-x509", *KEYS["ecdsa-p256"], "-nodes", "-days", "2", "-subj", "/CN=test CA"),
        *("-keyout", f"{where}/ca.key", "-out", f"{where}/ca.pem"),
    )
    for kind, new_key in KEYS.items():
        for role, extension in (
            ("server", "subjectAltName=IP:127.0.0.1,DNS:localhost"),
            ("client", "extendedKeyUsage=clientAuth"),
        ):
            name = f"{where}/{kind}-{role}"
            openssl(
                *("req", *new_key, "-nodes", "-subj", f"/CN={kind} {role}"),
                *("-keyout", f"{name}.key", "-out", f"{name}.csr"),
            )
            Path(f"{name}.ext").write_text(f"{extension}\nbasicConstraints=CA:FALSE\n")
            openssl(
                *("x509", "-req", "-in", f"{name}.csr", "-days", "2", "-CAcreateserial"),
                *("-CA", f"{where}/ca.pem", "-CAkey", f"{where}/ca.key"),
                *("-extfile", f"{name}.ext", "-out", f"{name}.pem"),
            )
    return where


class Server:
    """Takes one HTTP request over TLS at a time and answers BODY."""

    def __init__(self, config: TlsConfig) -> None:
        self.config = config
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.seen: list[dict[str, object]] = []
        self.thread.start()

    def run(self) -> None:
        while True:
            try:
                peer, _ = self.socket.accept()
            except OSError:
                return
            with peer, contextlib.suppress(OSError):
                self.serve(peer)

    def serve(self, peer: socket.socket) -> None:
        tls = TlsConnection(self.config)
        request, out = bytearray(), bytearray(4096)
        while b"\r\n\r\n" not in request:
            data = peer.recv(65536)
            if not data:
                return
            try:
                while data or tls.pending_plaintext:
                    consumed, produced = tls.feed(data, out)
                    data = data[consumed:]
                    request += out[:produced]
            except TlsError as error:
                peer.sendall(tls.take())
                self.seen.append({"error": str(error)})
                return
            peer.sendall(tls.take())
        self.seen.append(
            {
                "version": tls.version,
                "certificate": tls.peer_certificate,
                "key": tls.peer_public_key,
                "alpn": tls.alpn,
            }
        )
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(BODY)
        rest, wire = memoryview(answer + BODY), bytearray(50_000)
        while rest or tls.wants_write:
            sent, produced = tls.send_into(rest, wire)
            rest = rest[sent:]
            peer.sendall(memoryview(wire)[:produced])
        tls.close()
        peer.sendall(tls.take())


@contextlib.contextmanager
def serving(config: TlsConfig) -> Iterator[Server]:
    server = Server(config)
    try:
        yield server
    finally:
        server.socket.shutdown(socket.SHUT_RDWR)
        server.socket.close()
        server.thread.join(10)


def curl(port: int, certificates: Path, *options: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [
            *("curl", "--silent", "--show-error", "--noproxy", "*", "--max-time", "20"),
            *("--http1.1", "--cacert", f"{certificates}/ca.pem", *options),
            f"https://127.0.0.1:{port}/",
        ],
        check=False,
        capture_output=True,
    )


def config(certificates: Path, kind: str, client_auth: str = "none") -> TlsConfig:
    ca = None if client_auth in ("none", "identity") else (certificates / "ca.pem").read_bytes()
    return TlsConfig.server(
        (certificates / f"{kind}-server.pem").read_bytes(),
        (certificates / f"{kind}-server.key").read_bytes(),
        client_auth=client_auth,  # type: ignore[arg-type]
        client_ca_pem=ca,
        alpn=["http/1.1"],
    )


VERSIONS = {"TLSv1.2": "1.2", "TLSv1.3": "1.3"}


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("version", VERSIONS)
def test_server_certificates(certificates: Path, kind: str, version: str) -> None:
    with serving(config(certificates, kind)) as server:
        limit = VERSIONS[version]
        done = curl(server.port, certificates, f"--tlsv{limit}", "--tls-max", limit)
        assert done.returncode == 0, done.stderr
        assert done.stdout == BODY
        assert server.seen[0]["version"] == version
        assert server.seen[0]["certificate"] is None
        assert server.seen[0]["alpn"] == "http/1.1"


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("client_auth", ["required", "identity", "optional"])
def test_client_certificates(certificates: Path, kind: str, version: str, client_auth: str) -> None:
    limit = VERSIONS[version]
    with serving(config(certificates, kind, client_auth)) as server:
        done = curl(
            *(server.port, certificates, f"--tlsv{limit}", "--tls-max", limit),
            *("--cert", f"{certificates}/{kind}-client.pem"),
            *("--key", f"{certificates}/{kind}-client.key"),
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == BODY
    seen = server.seen[0]
    client = f"{certificates}/{kind}-client"
    openssl("x509", "-in", f"{client}.pem", "-outform", "DER", "-out", f"{client}.der")
    assert seen["certificate"] == Path(f"{client}.der").read_bytes()
    openssl("pkey", "-in", f"{client}.key", "-pubout", "-outform", "DER", "-out", f"{client}.pub")
    assert seen["key"] == Path(f"{client}.pub").read_bytes()


def test_missing_client_certificate(certificates: Path) -> None:
    with serving(config(certificates, "ecdsa-p256", "required")) as server:
        assert curl(server.port, certificates).returncode != 0
        assert "error" in server.seen[0]
    with serving(config(certificates, "ecdsa-p256", "optional")) as server:
        assert curl(server.port, certificates).stdout == BODY


def test_client_certificate_of_another_authority(certificates: Path, tmp_path: Path) -> None:
    openssl(
        *("req", "-x509", *KEYS["ed25519"], "-nodes", "-days", "2", "-subj", "/CN=stranger"),
        *("-keyout", f"{tmp_path}/key", "-out", f"{tmp_path}/pem"),
    )
    identity = ("--cert", f"{tmp_path}/pem", "--key", f"{tmp_path}/key")
    with serving(config(certificates, "ecdsa-p256", "optional")) as server:
        assert curl(server.port, certificates, *identity).returncode != 0
        assert "error" in server.seen[0]


def test_tls_1_1_is_refused(certificates: Path) -> None:
    with serving(config(certificates, "ecdsa-p256")) as server:
        options = ("--tls-max", "1.1", "--tlsv1.0", "--ciphers", "DEFAULT@SECLEVEL=0")
        assert curl(server.port, certificates, *options).returncode != 0
