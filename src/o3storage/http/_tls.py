"""TLS 1.2 and 1.3 between a socket and a `Connection`.

Towards the socket a BufferedProtocol, towards the connection a transport. The native TLS object
does no I/O: ciphertext is received into memory that all connections share and decrypted straight
into the connection's buffer (a body reader's own memory if one waits). It runs on the loop, at
most RECEIVE_BYTES a step; `Answer` cuts what it writes accordingly.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from o3storage import _native
from o3storage.http._answer import WRITE_KEEPS_VIEWS
from o3storage.http._connection import Connection
from o3storage.http._errors import TlsConfigError
from o3storage.http._limits import UNREAD_BYTES
from o3storage.http._messages import Buffer

if TYPE_CHECKING:
    from o3storage.http._server import Server


class ServerTls:
    """Certificate and key of a server, from PEM files: the chain leaf first, the key as PKCS#8,
    PKCS#1 or SEC1 (ECDSA P-256 or P-384, RSA, Ed25519). Read when made and on `reload`: small local
    files, at start and on request only, so they are read in place.

    Raises TlsConfigError, which names the file and what is wrong with it.
    """

    def __init__(self, certificate_path: str, key_path: str) -> None:
        self.certificate_path = certificate_path
        self.key_path = key_path
        self.config = self._load()
        """Used by connections that are accepted from now on."""

    def reload(self) -> None:
        """Read the files again. If they are not usable the old certificate stays in use, and
        TlsConfigError is raised for the caller to report."""
        self.config = self._load()

    def _load(self) -> _native.TlsConfig:
        chain = _read(self.certificate_path, "certificate")
        key = _read(self.key_path, "key")
        try:
            return _native.TlsConfig.server(chain, key, alpn=("http/1.1", "http/1.0"))
        except (_native.TlsError, ValueError) as error:
            raise TlsConfigError(
                f"the certificate {self.certificate_path} and the key {self.key_path} cannot be "
                f"used together: {error}; give a PEM chain, leaf first, and its unencrypted PEM key"
            ) from None

    def __repr__(self) -> str:
        return f"<ServerTls {self.certificate_path}>"


def _read(path: str, what: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise TlsConfigError(f"cannot read the {what} {path}: {error.strerror}") from None


class TlsLayer(asyncio.BufferedProtocol, asyncio.Transport):
    """One TLS connection of a server."""

    __slots__ = (
        "_closing",
        "_eof_told",
        "_handshaking",
        "_inner",
        "_paused",
        "_server",
        "_tls",
        "_transport",
        "_wire",
        "_write_ended",
    )

    def __init__(self, server: Server, tls: ServerTls) -> None:
        asyncio.Transport.__init__(self)
        self._server = server
        self._tls = _native.TlsConnection(tls.config)
        self._inner = Connection(server, secure=True)
        self._transport: asyncio.Transport
        self._wire = b""
        """Ciphertext that was received and not taken in, because the connection paused."""
        self._handshaking = True
        self._paused = False
        self._eof_told = False
        self._closing = False
        self._write_ended = False
        """Our side of the TCP stream is closed: answers to what still comes, of a handshake that
        was refused or to a new key, have nowhere to go."""

    # --- called by the socket's transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._inner.connection_made(self)
        if not self._inner._refused():
            timeout_s = self._server.limits.handshake_timeout_s
            self._inner._deadline_s = self._server.loop.time() + timeout_s

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        if self._inner._reads_much():
            return self._server._wire_in
        return self._server._wire_in[:UNREAD_BYTES]

    def buffer_updated(self, count: int) -> None:
        self._step(self._server._wire_in[:count])

    def eof_received(self) -> bool:
        """The end of the TCP stream. Without close_notify before it, it may be an attacker's; but
        a request says its own length, so what was cut inside one is an error either way."""
        if self._handshaking:
            return False
        if self._tell_eof():
            return True
        self.close()  # with close_notify: what was answered is whole
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._closing = True
        self._wire = b""
        if self._handshaking:
            self._server.stats.handshake_failed += 1
        self._inner.connection_lost(error)

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    # --- in

    def _step(self, wire: memoryview) -> None:
        """Decrypt `wire` and what waits inside the TLS object, until the connection pauses."""
        tls = self._tls
        inner = self._inner
        while not self._closing:
            try:
                consumed, produced = tls.feed(wire, inner.get_buffer(-1))
            except _native.TlsError:
                self._fail()
                return
            wire = wire[consumed:]
            if self._handshaking and not tls.handshaking:
                self._handshaking = False
                inner._deadline_s = self._server.loop.time() + self._server.limits.idle_timeout_s
            if tls.wants_write and not self._write_ended:
                self._send(b"")
            if produced:
                inner.buffer_updated(produced)
            if self._paused:
                self._wire = bytes(wire)
                return
            if not len(wire) and not tls.pending_plaintext:
                break
        if tls.peer_closed and not self._eof_told and not self._closing and not self._tell_eof():
            self.close()

    def _tell_eof(self) -> bool:
        if self._eof_told:
            return True
        self._eof_told = True
        return self._inner.eof_received()

    def _fail(self) -> None:
        """The peer does not speak TLS as we do. It is told by an alert; nothing else is sent."""
        self._closing = True
        if not self._handshaking:
            self._transport.abort()
            return
        alert = self._tls.take()
        if alert and not self._write_ended:
            self._transport.write(alert)
        self._transport.close()

    def _continue(self) -> None:
        if self._paused or self._closing:
            return
        wire, self._wire = self._wire, b""
        self._step(memoryview(wire))
        if not self._paused:
            self._transport.resume_reading()

    # --- the transport that the connection sees

    def write(self, data: Buffer) -> None:
        if not self._closing:
            self._send(data)

    def _send(self, plaintext: Buffer) -> None:
        """Encrypt and send, with whatever the TLS object has to say itself."""
        view = memoryview(plaintext)
        out = self._server._wire_out
        while True:
            try:
                sent, made = self._tls.send_into(view, out)
            except _native.TlsError:
                self.abort()
                return
            if made:
                self._transport.write(bytes(out[:made]) if WRITE_KEEPS_VIEWS else out[:made])
            view = view[sent:]
            if made < len(out) and not (len(view) and (sent or made)):
                # What is left over here was written before the end of the handshake, which takes
                # no more than the short answer of a server that is full.
                return

    def write_eof(self) -> None:
        """close_notify, then the end of our side of the TCP stream."""
        if not self._closing and not self._write_ended:
            self._tls.close()
            self._send(b"")
            self._write_ended = True
            self._transport.write_eof()

    def close(self) -> None:
        if not self._closing:
            if not self._write_ended:
                self._tls.close()
                self._send(b"")
            self._closing = True
            self._transport.close()

    def abort(self) -> None:
        """Without close_notify: the client must see that something is missing."""
        self._closing = True
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._closing or self._transport.is_closing()

    def pause_reading(self) -> None:
        self._paused = True
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._paused = False
        tls = self._tls
        if self._wire or tls.pending_plaintext or (tls.peer_closed and not self._eof_told):
            self._server.loop.call_soon(self._continue)
        else:
            self._transport.resume_reading()

    def get_write_buffer_size(self) -> int:
        return self._transport.get_write_buffer_size()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._transport.set_write_buffer_limits(high, low)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)
