"""A plain blocking S3 client for the fault tests: it can stop, lie about a body, or be cut off."""

from __future__ import annotations

import contextlib
import http.client
import socket
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from o3storage.cli._client import Credentials, Signer
from tests.support.running_store import RunningStore

TIMEOUT_S = 120.0
"""Only a store that hangs takes so long."""


@dataclass(slots=True)
class Answer:
    """`cut`: the connection ended before the announced body did; `body` is what had arrived."""

    status: int
    headers: dict[str, str]
    body: bytes
    cut: bool = False

    @property
    def code(self) -> str:
        return self.body.partition(b"<Code>")[2].partition(b"<")[0].decode()


class S3:
    """Signed requests to one store, each on a connection of its own."""

    def __init__(self, store: RunningStore) -> None:
        parts = urlsplit(store.url)
        assert parts.hostname and parts.port
        self.host, self.port = parts.hostname, parts.port
        credentials = Credentials(store.key_id, store.secret)
        self.signer = Signer(credentials, f"{self.host}:{self.port}", store.region)

    def head(
        self, method: str, path: str, headers: dict[str, str] | None = None, query: str = ""
    ) -> bytes:
        """The bytes of a signed request's head; Content-Length is what `headers` says, if any."""
        encoded = quote(path, safe="/-_.~")
        extra = dict(headers or {})
        payload = extra.pop("x-amz-content-sha256", "UNSIGNED-PAYLOAD")
        # Not signed: a test may say what it likes.
        free = {n: extra.pop(n) for n in ("content-length", "connection", "expect") if n in extra}
        sent = self.signer.headers(method, encoded, query, payload, extra)
        lines = [f"{method} {encoded}{'?' + query if query else ''} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in {**sent, **free}.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), TIMEOUT_S)

    def call(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        query: str = "",
    ) -> Answer:
        sent = {"content-length": str(len(body)), **(headers or {})}
        with self.connect() as sock:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                sock.sendall(self.head(method, path, sent, query) + body)
            return receive(sock, method)

    def put(self, path: str, body: bytes, **headers: str) -> Answer:
        return self.call("PUT", path, body, {n.replace("_", "-"): v for n, v in headers.items()})

    def get(self, path: str, query: str = "") -> Answer:
        return self.call("GET", path, query=query)

    def delete(self, path: str) -> Answer:
        return self.call("DELETE", path)

    def plain(self, path: str) -> Answer:
        """Unsigned, as a probe asks."""
        with self.connect() as sock:
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n\r\n".encode())
            return receive(sock, "GET")

    def keys(self, bucket: str) -> list[str]:
        answer = self.get(f"/{bucket}", "list-type=2")
        assert answer.status == 200, answer
        return [piece.partition(b"<")[0].decode() for piece in answer.body.split(b"<Key>")[1:]]

    def metric(self, name: str) -> float:
        """A value of /metrics."""
        for line in self.plain("/metrics").body.decode().splitlines():
            if line.startswith(name + " "):
                return float(line.split()[1])
        raise KeyError(name)


def receive(sock: socket.socket, method: str) -> Answer:
    """The answer that stands on the connection."""
    response = http.client.HTTPResponse(sock, method=method)
    try:
        response.begin()
    except (http.client.HTTPException, ConnectionError):
        return Answer(0, {}, b"", cut=True)
    headers = {name.lower(): value for name, value in response.getheaders()}
    body = bytearray()
    try:
        while piece := response.read(65536):
            body += piece
        cut = response.length not in {None, 0}
    except (http.client.IncompleteRead, ConnectionError) as error:
        if isinstance(error, http.client.IncompleteRead):
            body += error.partial
        cut = True
    finally:
        response.close()
    return Answer(response.status, headers, bytes(body), cut)
