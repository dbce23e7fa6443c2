"""What the consensus core is told and what it answers: entries, messages, inputs, outputs.

Indexes and terms start at 1; 0 stands for "none". Node ids are positive integers; 0 is nobody.
Sources: Ongaro and Ousterhout, "In Search of an Understandable Consensus Algorithm" (the paper),
Ongaro, "Consensus: Bridging Theory and Practice" (the dissertation), and Alagappan et al.,
"Protocol-Aware Recovery for Consensus-Based Storage" (FAST'18).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from o3storage.raft.core._configuration import Configuration

NOBODY = 0

COMMAND = 0
NO_OP = 1
CONFIGURATION = 2


class Role(enum.Enum):
    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


@dataclass(slots=True)
class Entry:
    """One entry of the log. `kind` is COMMAND, NO_OP or CONFIGURATION."""

    index: int
    term: int
    kind: int
    data: bytes
    riding_bytes: int = 0
    """What the driver sends along with the entry (small frames); counts for flow control only."""


@dataclass(slots=True)
class HardState:
    """What a node must never forget: its term, its vote in it, and (as a hint) its commit index."""

    term: int = 0
    vote: int = NOBODY
    commit: int = 0


# --- messages -----------------------------------------------------------------------------------


@dataclass(slots=True)
class Message:
    """What one node's core says to another's. `term` is the sender's (see VoteRequest.pre)."""

    sender: int
    to: int
    term: int


@dataclass(slots=True)
class VoteRequest(Message):
    """RequestVote. With `pre` (dissertation 9.6), `term` is the one the sender would campaign in.
    `transfer`: the old leader asked for this, so a live leader is no reason to refuse (3.10)."""

    last_index: int
    last_term: int
    pre: bool = False
    transfer: bool = False


@dataclass(slots=True)
class VoteResponse(Message):
    granted: bool
    pre: bool = False


@dataclass(slots=True)
class Append(Message):
    """AppendEntries. `round` is the read-index round it confirms."""

    prev_index: int
    prev_term: int
    entries: list[Entry]
    commit: int
    round: int = 0


@dataclass(slots=True)
class AppendResponse(Message):
    """`match`: log-durable mark. `data`: data-durable mark, at most `match`. A rejection names the
    refused `prev_index` and hints where the logs may agree. `uncertain`: nothing of this counts
    for a majority. `debt`: committed entries whose frames are still missing here. `hole`: the
    lowest entry that was lost to rot here (0: none), perhaps one acknowledged before."""

    match: int = 0
    data: int = 0
    rejected: bool = False
    rejected_index: int = 0
    hint_index: int = 0
    hint_term: int = 0
    round: int = 0
    uncertain: bool = False
    debt: int = 0
    hole: int = 0


@dataclass(slots=True)
class Heartbeat(Message):
    """`commit` is at most what the receiver is known to hold. `quiesce`: all is equal and idle;
    stop the election timer until something happens."""

    commit: int
    round: int = 0
    quiesce: bool = False


@dataclass(slots=True)
class HeartbeatResponse(Message):
    round: int = 0
    uncertain: bool = False
    hole: int = 0


@dataclass(slots=True)
class SnapshotPiece(Message):
    """Piece `number` (from 0) of the state after entry (`index`, `index_term`)."""

    index: int
    index_term: int
    configuration: Configuration
    number: int
    data: bytes
    last: bool


@dataclass(slots=True)
class SnapshotResponse(Message):
    """Pieces below `next_piece` are durable. `refused`: start again from piece 0."""

    index: int
    next_piece: int
    refused: bool = False


@dataclass(slots=True)
class TimeoutNow(Message):
    """Campaign at once (leadership transfer, 3.10)."""


@dataclass(slots=True)
class ReadRequest(Message):
    """A follower asks for a read index; `token` is its own. `certain`: its word that it knows of
    no later term counts (see AppendResponse.uncertain)."""

    token: int
    certain: bool = False


@dataclass(slots=True)
class ReadResponse(Message):
    """`index` 0: refused."""

    token: int
    index: int


@dataclass(slots=True)
class HoleQuery(Message):
    """Who holds the entries low..high? Asked by a node that cannot read its own (FAST'18)."""

    low: int
    high: int


@dataclass(slots=True)
class HoleAnswer(Message):
    """`holds`: whether the sender has the entry `low`; then some `entries` from there."""

    low: int
    holds: bool
    entries: list[Entry] = field(default_factory=list)


# --- inputs -------------------------------------------------------------------------------------


@dataclass(slots=True)
class Start:
    """First input. A sole voter takes leadership at once."""


@dataclass(slots=True)
class Tick:
    """One unit of time passed. `sample`, a random number in [0, 1), spreads election timeouts."""

    sample: float


@dataclass(slots=True)
class Propose:
    """Append `payloads` as commands, in order, if this node leads."""

    token: int
    payloads: list[bytes]
    riding_bytes: list[int] | None = None
    """Of each payload, see Entry; None: nothing rides along."""


@dataclass(slots=True)
class ChangeConfiguration:
    """Make `voters` and `learners` the members. New voters first catch up as learners."""

    token: int
    voters: tuple[int, ...]
    learners: tuple[int, ...] = ()


@dataclass(slots=True)
class Persisted:
    """Everything up to and including `ticket` is durable."""

    ticket: int


@dataclass(slots=True)
class DataGap:
    """The lowest index above the known commit index whose frames are not durable here (0: none),
    and the number of committed entries whose frames are missing (repair debt)."""

    index: int
    debt: int = 0


@dataclass(slots=True)
class ReadIndex:
    """Ask for an index such that state applied up to it may answer a read that starts now."""

    token: int


@dataclass(slots=True)
class TransferLeadership:
    target: int


@dataclass(slots=True)
class Compact:
    """Entries up to `index` are in a snapshot or flushed; the log need not keep them."""

    index: int


@dataclass(slots=True)
class Fetched:
    """Answer to Fetch: consecutive entries from the log, or none when they are gone."""

    peer: int
    entries: list[Entry]
    hole: int = 0


@dataclass(slots=True)
class SnapshotData:
    """Answer to SnapshotNeeded: piece `number` of the state after entry `index`."""

    peer: int
    index: int
    index_term: int
    configuration: Configuration
    number: int
    data: bytes
    last: bool


@dataclass(slots=True)
class SnapshotFailed:
    peer: int


@dataclass(slots=True)
class PieceStored:
    """Answer to StorePiece: that piece is durable."""

    session: int
    number: int


@dataclass(slots=True)
class Restored:
    """Answer to Restore: the snapshot is this node's durable state now."""

    index: int


@dataclass(slots=True)
class RowsLost:
    """Rows of what is applied here are lost, its log is not: nothing more is applied, and this node
    does not lead, until it has a snapshot of at least so much. (A driver that leads hands over
    first.) `abandoned`: the snapshot of Restore cannot become this node's state, and nothing of it
    is left."""

    abandoned: bool = False


@dataclass(slots=True)
class PeerLost:
    """The peer cannot be reached: probe it, and wake if it leads a quiescent group."""

    peer: int


@dataclass(slots=True)
class Retire:
    """This node's disk is out of service: no leading, no voting, no acknowledging from here on."""


Input = (
    Message
    | Start
    | Tick
    | Propose
    | ChangeConfiguration
    | Persisted
    | DataGap
    | ReadIndex
    | TransferLeadership
    | Compact
    | Fetched
    | SnapshotData
    | SnapshotFailed
    | PieceStored
    | Restored
    | RowsLost
    | PeerLost
    | Retire
)


# --- outputs, carried out in the order given ----------------------------------------------------


class Refusal(enum.Enum):
    """Why nothing was appended. Each is definite: the proposal may be made again."""

    NOT_LEADER = "this node does not lead the group"
    TRANSFERRING = "leadership is being handed over"
    CHANGE_PENDING = "another change of members is not finished"
    BAD_CHANGE = "the new members are not a valid group of 1 to 7 voters"
    NO_CHANGE = "the members are already these"


@dataclass(slots=True)
class Accepted:
    """The proposal `token` is entries low..high (inclusive) of this term; not yet committed."""

    token: int
    low: int
    high: int
    term: int


@dataclass(slots=True)
class Refused:
    token: int
    reason: Refusal
    leader: int = NOBODY


@dataclass(slots=True)
class Persist:
    """Make durable, in order of tickets: the hard state if any, then `entries`, which replace
    everything from entries[0].index on. `fills` are known-missing entries that came back; they
    replace nothing else. Answer with Persisted."""

    ticket: int
    hard_state: HardState | None
    entries: list[Entry]
    fills: list[Entry] = field(default_factory=list)


@dataclass(slots=True)
class Send:
    """Send once everything up to `after_ticket` is durable (0: at once)."""

    message: Message
    after_ticket: int


@dataclass(slots=True)
class Apply:
    """Entries low..high (inclusive) are committed and durable here: apply them in order."""

    low: int
    high: int


@dataclass(slots=True)
class ReadReady:
    """Reads `tokens` may be answered from state applied up to `index`."""

    tokens: list[int]
    index: int


@dataclass(slots=True)
class ReadRefused:
    tokens: list[int]


@dataclass(slots=True)
class Fetch:
    """The core no longer has these entries in memory: read low..high, at most `max_bytes`.
    `hole` is handed back with the answer."""

    peer: int
    low: int
    high: int
    max_bytes: int
    hole: int = 0


@dataclass(slots=True)
class SnapshotNeeded:
    """`peer` needs piece `number` (0: of the newest state there is)."""

    peer: int
    number: int


@dataclass(slots=True)
class StorePiece:
    """Make a piece of an incoming snapshot durable; answer PieceStored with the same session.
    A new session makes the pieces of older ones worthless."""

    session: int
    index: int
    index_term: int
    number: int
    data: bytes


@dataclass(slots=True)
class Restore:
    """All pieces are here: make them this node's state, in one atomic step; answer Restored.
    `keep`: the log goes on above `index`, and nothing of that may be lost with the step (this node
    has acknowledged it)."""

    index: int
    index_term: int
    configuration: Configuration
    hard_state: HardState
    keep: bool = False


@dataclass(slots=True)
class RoleChanged:
    role: Role
    term: int
    leader: int


@dataclass(slots=True)
class DropMissing:
    """No voter holds the entries from `low` on: they were never committed. Cut the log there."""

    low: int


Output = (
    Accepted
    | Refused
    | Persist
    | Send
    | Apply
    | ReadReady
    | ReadRefused
    | Fetch
    | SnapshotNeeded
    | StorePiece
    | Restore
    | RoleChanged
    | DropMissing
)
