"""What answers on the S3 address while a node waits for its cluster: probes and clients are told
so, instead of finding nobody there."""

from __future__ import annotations

import errno
import json
from typing import TYPE_CHECKING

from o3storage.http import Request, Response, Server, ServerTls

from ._descriptors import client_limits
from ._errors import StartError
from ._health import RETRY_AFTER_S

if TYPE_CHECKING:
    from o3storage.runtime import Clock

    from ._config import ServerConfig

REASON = "this node waits for its cluster; what for, stands in its log"
"""No more than this: whoever asks has proven nothing."""
_RETRY = ("Retry-After", str(RETRY_AFTER_S))
_TEXT = ("Content-Type", "text/plain; charset=utf-8")


async def answer(request: Request) -> Response:
    """/health/live says that the process lives; all else is 503."""
    path = request.path
    if request.method in {"GET", "HEAD"}:
        if path in {b"/health/live", b"/minio/health/live"}:
            return Response(200, [_TEXT], b"live\n")
        if path in {b"/health/ready", b"/minio/health/ready", b"/minio/health/cluster"}:
            return Response(503, [_TEXT, _RETRY], f"not ready: {REASON}\n".encode())
        if path == b"/health":
            facts = {"status": "starting", "cluster": {"write_enabled": False, "reason": REASON}}
            headers = [("Content-Type", "application/json"), ("Cache-Control", "no-store"), _RETRY]
            return Response(503, headers, json.dumps(facts, indent=2).encode() + b"\n")
    text = f"<Error><Code>ServiceUnavailable</Code><Message>{REASON}</Message></Error>"
    body = b'<?xml version="1.0" encoding="UTF-8"?>\n' + text.encode()
    return Response(503, [("Content-Type", "application/xml"), _RETRY], body)


async def open_front(config: ServerConfig, clock: Clock, tls: ServerTls | None) -> Server | None:
    """Listens where S3 will be served, for a node that is to join others; else, or on a port that
    the system chooses, None. To be drained before S3 is served. Raises StartError."""
    if not config.port or not (config.cluster.peers or config.cluster.token):
        return None
    front = Server(answer, limits=client_limits(), clock=clock)
    try:
        await front.listen(config.ip, config.port, tls=tls)
    except OSError as error:
        why = "is taken" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
        raise StartError(f"cannot listen on {config.ip} port {config.port}: {why}") from None
    return front
