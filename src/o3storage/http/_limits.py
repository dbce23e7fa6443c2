"""Every limit of the HTTP layer, each a named constant with its reason."""

from __future__ import annotations

from dataclasses import dataclass, replace

KIB = 1024
MIB = 1024 * KIB

MAX_CONNECTIONS = 4096
"""Open connections per server: one more is answered 503. Bounds memory (16 KiB of unread input
each, 64 MiB in all) and file descriptors."""

MAX_HEAD_BYTES = 16 * KIB
"""Request line and header fields. S3 allows 2 KiB of metadata and a presigned query of a few KiB;
16 KiB is what common proxies pass on."""

MAX_HEADERS = 100
"""Header fields of one request (and trailer fields): SDKs send 10 to 25."""

MAX_CHUNK_LINE_BYTES = 1 * KIB
"""A chunk-size line with its extensions. Nothing on the S3 side uses HTTP chunk extensions."""

MAX_CHUNK_SIZE_DIGITS = 16
"""Hexadecimal digits of a chunk size: 64 bits. Longer ones only serve to smuggle requests."""

MAX_CONTENT_LENGTH = 2**63 - 1
"""A length that still fits a signed 64-bit file offset; the S3 layer has far lower limits."""

HEAD_TIMEOUT_S = 10.0
"""From the first byte of a head to its end."""

IDLE_TIMEOUT_S = 60.0
"""A kept-alive connection without a request, and a new one without a first byte."""

HANDSHAKE_TIMEOUT_S = 10.0
"""From accept to the end of the TLS handshake."""

MIN_RATE_BYTES_PER_S = 1 * KIB
"""A body (or a response) that moves slower than this over RATE_WINDOW_S is cut."""

RATE_WINDOW_S = 60.0
"""Time spent waiting for the client over which MIN_RATE_BYTES_PER_S is measured."""

DRAIN_BYTES = 256 * KIB
"""Unread body taken in after a final answer, so that the client reads it rather than a reset."""

LINGER_S = 2.0
"""How long a half-closed connection is kept for the client to read the last answer."""

TICK_S = 1.0
"""Deadlines are looked at this often (one walk over all connections), not by a timer each."""

RECEIVE_BYTES = 64 * KIB
"""The most that one read takes off a socket into shared memory, and one TLS step handles."""

UNREAD_BYTES = 16 * KIB
"""Input that a connection holds which nobody asked for yet; then it stops reading."""

PIPELINED_PER_STEP = 16
"""Requests served in one step of the event loop that came behind others on their connections, of
all connections together: 600 fit into UNREAD_BYTES, which nobody needs a key for; at once they took
10 to 150 ms, for each of the sockets of a step."""

WRITE_HIGH_BYTES = 256 * KIB
"""Unsent output at which a response waits for the client."""

MAX_UNSENT_BYTES = 128 * MIB
"""Unsent output of all connections, above which those of clients slower than FAST_RATE_BYTES_PER_S
over CROWDED_WINDOW_S are cut: a list of objects may be some MiB, and is made before it is sent."""

CROWDED_WINDOW_S = 5.0
"""Long enough for a lost segment or two, short enough that little more is made meanwhile."""

SMALL_BLOCK_BYTES = 16 * KIB
"""First block of a body: most objects are smaller, and 4,096 idle uploads then own 64 MiB."""

LARGE_BLOCK_BYTES = 256 * KIB
"""Plaintext bytes of one frame; see the design, section 4."""

BLOCK_POOL_BYTES = 128 * MIB
"""All blocks of one process, both sizes."""

FAST_SHARE = 0.25
"""Share of the pool that only connections above FAST_RATE_BYTES_PER_S may take."""

FAST_RATE_BYTES_PER_S = 64 * KIB
"""A body at least this fast fills a large block in 4 s."""

BACKLOG = 1024
"""Connections the kernel may hold before they are accepted."""

MAX_REFUSED = 256
"""Connections above the limit that are told 503; those above that are reset unheard."""

MAX_DIRECT = 512
"""Pieces of bodies that jobs send at a time, each over a second descriptor of its socket; a few
keep the pool's threads at work."""

_SHARES = 16
"""A connection's part of the descriptors; the other limits are eighths and less of it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one server. Times in seconds, sizes in bytes; see the constants for the reasons."""

    max_connections: int = MAX_CONNECTIONS
    max_refused: int = MAX_REFUSED
    max_direct: int = MAX_DIRECT
    max_head_bytes: int = MAX_HEAD_BYTES
    max_headers: int = MAX_HEADERS
    head_timeout_s: float = HEAD_TIMEOUT_S
    idle_timeout_s: float = IDLE_TIMEOUT_S
    handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S
    min_rate_bytes_per_s: float = MIN_RATE_BYTES_PER_S
    rate_window_s: float = RATE_WINDOW_S
    max_unsent_bytes: int = MAX_UNSENT_BYTES
    crowded_window_s: float = CROWDED_WINDOW_S
    drain_bytes: int = DRAIN_BYTES
    linger_s: float = LINGER_S
    tick_s: float = TICK_S
    backlog: int = BACKLOG

    def within(self, descriptors: int) -> Limits:
        """These, but for numbers of connections that `descriptors` are enough for at any time."""
        most = descriptors * _SHARES // (_SHARES + _SHARES // 8 + _SHARES // 16 + _SHARES // 4)
        return replace(
            self,
            max_connections=min(self.max_connections, most),
            max_direct=min(self.max_direct, most // 8),
            max_refused=min(self.max_refused, most // 16),
            backlog=min(self.backlog, most // 4),
        )
