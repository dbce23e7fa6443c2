"""The state of one node's part in one group, and how a step's outputs are gathered."""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass, field

from o3storage.raft.core._configuration import Configuration
from o3storage.raft.core._log import Log
from o3storage.raft.core._types import (
    NOBODY,
    Apply,
    Entry,
    HardState,
    Message,
    Output,
    Persist,
    Role,
    RoleChanged,
    Send,
)


@dataclass(frozen=True, slots=True)
class Options:
    """Times are in ticks, whose length the driver chooses."""

    election_ticks: int = 10
    """Least election timeout; the most is twice this. Also the check-quorum interval."""
    heartbeat_ticks: int = 2
    max_append_bytes: int = 1 << 20
    """One Append holds at most this (a batch of the log is no larger)."""
    max_inflight_messages: int = 64
    """Appends under way to one follower; bounds what a slow one keeps in memory."""
    max_inflight_bytes: int = 8 << 20
    tail_bytes: int = 16 << 20
    """Whole entries kept in memory for followers, the frames that ride with them counted, which the
    driver keeps; older ones are fetched from the log."""
    quiesce_ticks: int = 50
    """A group with nothing to do for so long stops its heartbeats. 0: never."""
    caught_up_entries: int = 256
    """A learner this close to the end of the log may be promoted (dissertation 4.2.1)."""
    snapshot_window: int = 4
    """Pieces of a snapshot under way to one follower."""


class ProgressState(enum.Enum):
    PROBE = "probe"
    """Where the logs agree is not known: one Append at a time."""
    REPLICATE = "replicate"
    """They agree: pipeline."""
    SNAPSHOT = "snapshot"


@dataclass(slots=True)
class Progress:
    """What a leader knows of one member. match < next always; data <= match."""

    next: int
    match: int = 0
    data: int = 0
    state: ProgressState = ProgressState.PROBE
    paused: bool = False
    """PROBE: the one Append is under way."""
    fetching: bool = False
    inflight: deque[tuple[int, int]] = field(default_factory=deque)
    """(last index, bytes) of each Append under way."""
    inflight_bytes: int = 0
    commit_sent: int = 0
    round: int = 0
    active: bool = True
    """Heard from since the last check of the quorum."""
    uncertain: bool = False
    debt: int = 0
    snapshot_index: int = 0
    snapshot_asked: int = 0
    """Pieces below this were asked of the driver."""
    snapshot_stored: int = 0
    snapshot_last: int = -1
    """Number of the last piece, once known."""
    stalled_ticks: int = 0

    def probe(self) -> None:
        self.state = ProgressState.PROBE
        self.paused = False
        self.next = self.match + 1
        self.inflight.clear()
        self.inflight_bytes = 0
        self.snapshot_index = 0


@dataclass(slots=True)
class Incoming:
    """A snapshot being received."""

    sender: int
    index: int
    index_term: int
    configuration: Configuration
    session: int
    expected: int = 0
    """Number of the next piece to receive."""
    stored: int = 0
    """Pieces below this are durable."""
    last: bool = False
    """The last piece was received."""
    restoring: bool = False
    keep: bool = False
    """The log goes on above the snapshot."""


class State:
    """All of it. Fields that must be durable first: term, vote, the log."""

    __slots__ = (
        "applied",
        "change_token",
        "change_wanted",
        "commit",
        "configuration",
        "configurations",
        "data_gap",
        "debt",
        "election_elapsed",
        "fills",
        "forwarded",
        "gated",
        "hard_ticket",
        "heartbeat_elapsed",
        "hole_answers",
        "id",
        "idle_ticks",
        "incoming",
        "leader",
        "log",
        "newcomer",
        "options",
        "out",
        "pending_reads",
        "progress",
        "quiescent",
        "retired",
        "role",
        "round",
        "round_index",
        "round_open",
        "round_reads",
        "sample",
        "saved",
        "sends",
        "session",
        "term",
        "term_start",
        "ticket",
        "ticket_done",
        "timeout",
        "transfer_elapsed",
        "transfer_target",
        "uncertain",
        "unsaved",
        "verified",
        "vote",
        "votes",
        "wants_snapshot",
    )

    def __init__(
        self,
        node: int,
        *,
        log: Log,
        hard_state: HardState,
        applied: int,
        configuration: Configuration,
        configuration_index: int = 0,
        later_configurations: list[tuple[int, Configuration]] | None = None,
        uncertain: bool = False,
        options: Options | None = None,
    ) -> None:
        """`configuration` is the one in force at `applied`, which came with the entry at
        `configuration_index`; `later_configurations` are those of the log above it."""
        assert node > 0
        assert log.floor <= applied <= log.last, "applied entries are in the log or its floor"
        self.id = node
        self.options = options or Options()
        self.log = log
        self.term = max(hard_state.term, log.last_term)
        self.vote = hard_state.vote if hard_state.term == self.term else NOBODY
        self.commit = max(applied, min(hard_state.commit, log.last))
        self.applied = applied  # highest index handed out by Apply
        self.uncertain = uncertain
        self.newcomer = False
        """Set by the driver: that there is no state here is because this node certainly never took
        part in the group. It votes, as any voter with an empty log."""
        self.retired = False
        self.wants_snapshot = False
        """Entries alone do not fill this replica: rows that they would change are not here, or are
        another group's. It does not lead; if it has a configuration, it votes as its log says."""
        self.configurations: list[tuple[int, Configuration]] = [
            (configuration_index, configuration),
            *(later_configurations or []),
        ]
        self.configuration = self.configurations[-1][1]
        self.role = Role.FOLLOWER
        self.leader = NOBODY
        self.votes: dict[int, bool] = {}
        self.progress: dict[int, Progress] = {}  # of the others, while leading
        self.term_start = 0
        """Index of this leader's first entry; once it is alone again, of the last one committed
        before. Who leads answers reads only when so much is committed."""
        self.quiescent = False
        self.idle_ticks = 0
        # time
        self.sample = 0.5
        self.election_elapsed = 0
        self.heartbeat_elapsed = 0
        self.timeout = self.options.election_ticks
        # reads
        self.round = 0
        self.round_open = False
        self.round_index = 0
        self.round_reads: list[tuple[int, int]] = []  # (node, token)
        self.pending_reads: list[tuple[int, int]] = []
        self.forwarded: dict[int, None] = {}  # tokens asked of the leader, in order
        # membership, transfer
        self.change_wanted: tuple[tuple[int, ...], tuple[int, ...]] | None = None
        self.change_token = 0
        self.transfer_target = NOBODY
        self.transfer_elapsed = 0
        # recovery
        self.hole_answers: dict[int, bool] = {}
        self.data_gap = 0
        self.debt = 0
        self.verified = 0  # follower: up to here the log is known to equal this leader's
        self.incoming: Incoming | None = None
        self.session = 0
        # outputs of the step that runs
        self.out: list[Output] = []
        self.unsaved: list[Entry] = []
        self.fills: list[Entry] = []
        self.sends: list[Message] = []  # need only the term to be durable
        self.gated: list[Message] = []  # need everything so far to be durable
        self.ticket = 0
        self.ticket_done = 0
        self.hard_ticket = 0  # the newest write that carried a term or vote
        self.saved = HardState(hard_state.term, hard_state.vote, hard_state.commit)

    # --- small questions

    @property
    def sole(self) -> bool:
        """This node alone decides."""
        return self.configuration.sole_voter(self.id)

    @property
    def configuration_index(self) -> int:
        return self.configurations[-1][0]

    def match_here(self) -> int:
        """This node's own log-durable mark."""
        return min(self.log.stable, self.log.ceiling)

    def data_here(self, match: int) -> int:
        """The data-durable mark that goes with `match`."""
        return min(match, self.data_gap - 1) if self.data_gap else match

    def may_campaign(self) -> bool:
        # A voter that finds itself removed by an entry not known to be committed may still be the
        # only one who can spread that entry (dissertation 4.2.2).
        return (
            any(configuration.votes(self.id) for _, configuration in self.configurations)
            and not self.log.holes
            and not self.retired
            and not self.uncertain
            and not self.wants_snapshot
            and self.incoming is None
        )

    # --- small changes

    def set_role(self, role: Role, leader: int) -> None:
        if role is not self.role or leader != self.leader:
            self.role = role
            self.leader = leader
            self.out.append(RoleChanged(role, self.term, leader))

    def reset_timer(self) -> None:
        options = self.options
        self.election_elapsed = 0
        self.timeout = options.election_ticks + int(self.sample * options.election_ticks)

    def wake(self) -> None:
        self.idle_ticks = 0
        if self.quiescent:
            self.quiescent = False
            self.reset_timer()

    def adopt(self, index: int, configuration: Configuration) -> None:
        """A configuration is in force from the moment its entry is in the log (section 6)."""
        self.configurations.append((index, configuration))
        self.configuration = configuration

    def forget_configurations(self, index: int) -> None:
        """The log was cut at `index`: fall back to the configuration before."""
        while len(self.configurations) > 1 and self.configurations[-1][0] >= index:
            self.configurations.pop()
        self.configuration = self.configurations[-1][1]

    def hard_state(self) -> HardState:
        return HardState(self.term, self.vote, self.commit)

    def drain(self) -> list[Output]:
        """The outputs of this step, in the order in which they are to be carried out."""
        out, self.out = self.out, []
        saved = self.saved
        unsaved = self.unsaved
        hard_changed = saved.term != self.term or saved.vote != self.vote
        if unsaved or hard_changed or self.fills:
            self.ticket += 1
            state = None
            if hard_changed or saved.commit != self.commit:
                # The commit index is a hint: it rides along and never causes a write.
                state = self.saved = HardState(self.term, self.vote, self.commit)
            out.append(Persist(self.ticket, state, unsaved, self.fills))
            if hard_changed:
                self.hard_ticket = self.ticket
            self.log.issued(self.ticket)
            self.unsaved = []
            if self.fills:
                self.fills = []
        if self.sends:
            # A leader sends entries before they are durable here (dissertation 10.2.1), but never
            # speaks in a term that a crash could make it forget.
            after = self.hard_ticket if self.hard_ticket > self.ticket_done else 0
            out.extend([Send(message, after) for message in self.sends])
            self.sends = []
        if self.gated:
            after = self.ticket if self.ticket > self.ticket_done else 0
            out.extend([Send(message, after) for message in self.gated])
            self.gated = []
        log = self.log
        high = self.commit
        if high > self.applied and not self.wants_snapshot:
            # Only what is committed and durable here is applied.
            high = min(high, log.stable, log.ceiling)
            if high > self.applied:
                out.append(Apply(self.applied + 1, high))
                self.applied = high
        return out
