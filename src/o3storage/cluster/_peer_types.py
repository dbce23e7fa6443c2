"""What `Peers` says to its callers: verdicts, errors, options, counters."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from o3storage.cluster._errors import ClusterError

MIB = 1 << 20


class PeerUnreachable(ClusterError):
    """Nothing was sent, so it may be tried again: there is no link to the peer, or too much waits
    for it already."""

    uncertain = False


class PeerRefused(PeerUnreachable):
    """The peer, or this side, refuses the link; the message says why."""


class PeerLost(ClusterError):
    """The call was sent and no answer came: it may have been carried out."""

    uncertain = True


class Code(enum.IntEnum):
    """Codes of `PeerError` below 64; handlers use 64 to 65,535 for their own."""

    FAILED = 1
    """The handler failed; the peer's log says how."""
    UNKNOWN_KIND = 2
    """The peer has no such call: it runs another version, or is not ready. Nothing was done."""
    NOT_ALLOWED = 3
    """Guests may not call this. Nothing was done."""
    BUSY = 4
    """The peer serves as many calls as it can. Nothing was done."""
    GIVEN_UP = 5
    """The sender of a stream does not finish it."""


class PeerError(ClusterError):
    """The peer answered an error. A handler raises it to answer one."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Admission(enum.Enum):
    MEMBER = "member"
    """Everything."""
    GUEST = "guest"
    """Calls of the kinds that are served for guests."""
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a peer may do on a link, by its key and its hello."""

    admission: Admission
    reason: str = ""
    """REFUSED: told to the peer."""


MEMBER = Verdict(Admission.MEMBER)
GUEST = Verdict(Admission.GUEST)


def refuse(reason: str) -> Verdict:
    return Verdict(Admission.REFUSED, reason)


@dataclass(frozen=True, slots=True)
class PeerOptions:
    """Times and sizes. The defaults are for production; tests use others."""

    connect_timeout_s: float = 3.0
    """For one address."""
    hello_timeout_s: float = 5.0
    """From the connection to both verdicts."""
    alive_every_s: float = 0.5
    """A link that sent nothing for so long says that it lives."""
    dead_after_s: float = 3.0
    """A consensus link on which nothing came for so long is closed: six signs of life missed."""
    bulk_dead_after_s: float = 10.0
    """Longer: signs of life share the link with up to `bulk_unsent_bytes`."""
    retry_low_s: float = 0.1
    retry_high_s: float = 2.0
    """Between attempts to connect, doubled each time; half as much to one and a half, by chance."""
    yield_s: float = 0.3
    """The node with the higher id leaves the first attempt to the other for so long."""
    max_unsent_bytes: int = 16 * MIB
    """Of one link. Entries and calls are dropped or refused above it: twice what the core keeps
    under way to one follower."""
    max_unsent_all_bytes: int = 64 * MIB
    """Of all links."""
    unsent_reserve_bytes: int = 1 * MIB
    """Room above both for messages without entries: heartbeats, votes, acknowledgements."""
    bulk_unsent_bytes: int = 1 * MIB
    """Streams put so much on their link at a time, in turns; calls wait behind no more."""
    stream_window_bytes: int = 8 * MIB
    """Of one stream: sent and not yet consumed."""
    max_received_bytes: int = 64 * MIB
    """Pieces of all streams that wait for their handlers; above it no bulk link is read."""


@dataclass(slots=True)
class PeerStats:
    """Counters since the start."""

    frames_sent: int = 0
    bytes_sent: int = 0
    frames_received: int = 0
    bytes_received: int = 0
    messages_sent: int = 0
    messages_received: int = 0
    messages_dropped: int = 0
    """No link, or too much unsent."""
    calls_sent: int = 0
    calls_served: int = 0
    calls_refused: int = 0
    links_made: int = 0
    links_refused: int = 0
    """By either side, after the hello."""
    links_lost: int = 0
    malformed: int = 0
    """Links closed because the peer broke the protocol."""
    duplicates: int = 0
    """Times that a node's id and key were used by two processes at once."""
