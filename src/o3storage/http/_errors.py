"""Typed errors of the HTTP layer. Each carries the status a client is answered with."""

from __future__ import annotations


class HttpError(Exception):
    """A request that cannot be served. `status` is the HTTP status code of the answer."""

    status = 400

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        if status is not None:
            self.status = status


class BadHead(HttpError):
    """The request line or a header field is malformed, ambiguous or too large (RFC 9112)."""


class HeadTimeout(HttpError):
    """The head did not arrive whole in `Limits.head_timeout_s`."""

    status = 408


class BodyError(HttpError):
    """Reading a request body failed; nothing more can be read from it."""


class BodyTruncated(BodyError):
    """The client closed or lost the connection before the declared end of the body."""


class BodyTimeout(BodyError):
    """The body came slower than `Limits.min_rate_bytes_per_s` over `Limits.rate_window_s`."""

    status = 408


class BadChunk(BodyError):
    """The chunked coding or a trailer field of the body is malformed (RFC 9112, section 7.1)."""


class ConnectionGone(BodyError):
    """The client is gone (or was cut) while a response was being sent."""


class TlsConfigError(ValueError):
    """The certificate or key cannot be used; the message names the file and what to do."""
