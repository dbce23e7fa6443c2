"""HTTP/1.1 and 1.0 over plain TCP and TLS: the front that the S3 layer stands on.

    server = Server(handle, limits=Limits())
    await server.listen("127.0.0.1", 8080)
    await server.listen("0.0.0.0", 8443, tls=ServerTls("chain.pem", "key.pem"))
    ...
    await server.drain(timeout_s=30)

`handle` is `async def handle(request: Request) -> Response`. It is started at once in the loop's
callback, and becomes a task only when it first has to wait. Nothing in this room knows S3.
"""

from __future__ import annotations

from o3storage.http._blocks import Block, BlockPool, ByteSource, Frames, frames
from o3storage.http._body import Body
from o3storage.http._errors import (
    BadChunk,
    BadHead,
    BodyError,
    BodyTimeout,
    BodyTruncated,
    ConnectionGone,
    HeadTimeout,
    HttpError,
    TlsConfigError,
)
from o3storage.http._limits import LARGE_BLOCK_BYTES, SMALL_BLOCK_BYTES, Limits
from o3storage.http._messages import (
    Address,
    Buffer,
    DirectPiece,
    Handler,
    Headers,
    Piece,
    Request,
    Response,
)
from o3storage.http._server import Server, ServerStats
from o3storage.http._tls import ServerTls
from o3storage.http._wire import http_date, plain_error

__all__ = [
    "LARGE_BLOCK_BYTES",
    "SMALL_BLOCK_BYTES",
    "Address",
    "BadChunk",
    "BadHead",
    "Block",
    "BlockPool",
    "Body",
    "BodyError",
    "BodyTimeout",
    "BodyTruncated",
    "Buffer",
    "ByteSource",
    "ConnectionGone",
    "DirectPiece",
    "Frames",
    "Handler",
    "HeadTimeout",
    "Headers",
    "HttpError",
    "Limits",
    "Piece",
    "Request",
    "Response",
    "Server",
    "ServerStats",
    "ServerTls",
    "TlsConfigError",
    "frames",
    "http_date",
    "plain_error",
]
