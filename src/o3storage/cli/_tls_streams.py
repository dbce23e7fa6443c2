"""TLS for the command line's client: the native TLS object between a socket and a StreamReader."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from o3storage import _native

WIRE_BYTES = 64 * 1024
"""Read from the socket at a time."""
PLAIN_BYTES = 64 * 1024
HANDSHAKE_TIMEOUT_S = 10.0

CA_FILE = "--ca-file"
SYSTEM_AUTHORITIES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Alpine, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora and its kin
    "/etc/ssl/ca-bundle.pem",  # openSUSE
    "/etc/ssl/cert.pem",  # BSD, macOS
)
"""Where systems keep the certificates of public authorities, all in one PEM file."""


class _Tls(asyncio.Protocol):
    """Decrypts into `reader`; `write` encrypts. The server is checked against `ca_pem`, which is
    the content of `ca_name`."""

    def __init__(
        self, host: str, ca_pem: bytes, ca_name: str, reader: asyncio.StreamReader
    ) -> None:
        self._tls = _native.TlsConnection(_native.TlsConfig.client(ca_pem=ca_pem), host)
        self._ca_name = ca_name
        self._reader = reader
        self._plain = bytearray(PLAIN_BYTES)
        self._transport: asyncio.Transport | None = None
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        wire = memoryview(data)
        try:
            while wire or self._tls.pending_plaintext:
                consumed, produced = self._tls.feed(wire, self._plain)
                if produced:
                    self._reader.feed_data(bytes(self._plain[:produced]))
                wire = wire[consumed:]
                if not consumed and not produced:
                    break
        except _native.TlsError as error:
            self._send()
            self._fail(OSError(f"TLS: {_what_to_do(str(error), self._ca_name)}"))
            return
        self._send()
        if not self._tls.handshaking and not self.ready.done():
            self.ready.set_result(None)
        if self._tls.peer_closed:
            self._reader.feed_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ready.done():
            self.ready.set_exception(exc or OSError("it closed the connection"))
        if self._tls.peer_closed:
            self._reader.feed_eof()
        else:
            self._reader.set_exception(exc or OSError("it cut the connection"))

    def write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._tls.send(rest) :]
            self._send()

    def close(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._tls.close()
            self._send()
            self._transport.close()

    def _send(self) -> None:
        while self._tls.wants_write and self._transport is not None:
            self._transport.write(self._tls.take())

    def _fail(self, error: OSError) -> None:
        if not self.ready.done():
            self.ready.set_exception(error)
        self._reader.set_exception(error)
        if self._transport is not None:
            self._transport.abort()


def _what_to_do(reason: str, ca_name: str) -> str:
    if "CaUsedAsEndEntity" in reason:
        return (
            "its certificate is marked as one of an authority (CA:TRUE); make it with "
            "-addext basicConstraints=critical,CA:FALSE"
        )
    if "UnknownIssuer" in reason or "BadSignature" in reason:
        if ca_name == CA_FILE:
            return "its certificate is not the one of --ca-file, nor signed by it"
        return (
            f"its certificate is not signed by an authority in {ca_name}; name the one to trust "
            "with --ca-file"
        )
    return reason


def system_authorities() -> tuple[str, bytes]:
    """(path, content) of the file that SSL_CERT_FILE names, else of the system's own. Raises
    OSError with what to do."""
    named = os.environ.get("SSL_CERT_FILE")
    if named:
        try:
            return named, Path(named).read_bytes()
        except OSError as error:
            raise OSError(f"cannot read SSL_CERT_FILE {named}: {error.strerror}") from None
    for path in SYSTEM_AUTHORITIES:
        try:
            return path, Path(path).read_bytes()
        except OSError:
            continue
    raise OSError(
        "this system has no list of authorities (package ca-certificates); name the certificate "
        "to trust with --ca-file"
    )


async def open_tls(host: str, port: int, ca_pem: bytes | None) -> tuple[asyncio.StreamReader, _Tls]:
    """Connect and shake hands; `ca_pem` None trusts the system's authorities. Raises OSError, also
    when the certificate is not trusted."""
    ca_name = CA_FILE
    if ca_pem is None:
        ca_name, ca_pem = system_authorities()
    reader = asyncio.StreamReader(limit=WIRE_BYTES)
    try:
        protocol = _Tls(host, ca_pem, ca_name, reader)
    except _native.TlsError as error:
        raise OSError(f"{ca_name}: {error}") from None
    loop = asyncio.get_running_loop()
    await loop.create_connection(lambda: protocol, host, port)
    await asyncio.wait_for(protocol.ready, HANDSHAKE_TIMEOUT_S)
    return reader, protocol
