"""Changes of members by joint consensus (paper 6, dissertation 4.2.1, 4.3)."""

from __future__ import annotations

from o3storage.raft.core import _election, _reads, _replication
from o3storage.raft.core._configuration import valid_target
from o3storage.raft.core._state import Progress, State
from o3storage.raft.core._types import (
    CONFIGURATION,
    NOBODY,
    Accepted,
    ChangeConfiguration,
    Heartbeat,
    Refusal,
    Refused,
    Role,
)


def change(state: State, event: ChangeConfiguration) -> None:
    if _election.refuse_proposal(state, event.token):
        return
    now = state.configuration
    voters, learners = tuple(sorted(event.voters)), tuple(sorted(event.learners))
    reason = None
    if not valid_target(voters, learners) or len(voters) != len(set(voters)):
        reason = Refusal.BAD_CHANGE
    elif _pending(state):
        reason = Refusal.CHANGE_PENDING
    elif now.voters == voters and now.learners == learners and not _learners_in_doubt(state):
        reason = Refusal.NO_CHANGE
    if reason is not None:
        state.out.append(Refused(event.token, reason, state.leader))
        return
    state.wake()
    state.change_token = event.token
    if now.voters == voters:
        _append(state, now.with_learners(learners).encode())
        return
    state.change_wanted = (voters, learners)
    newcomers = set(voters) - set(now.members())
    if newcomers:
        # They catch up without a vote first, or the group would wait for them (4.2.1).
        token, state.change_token = state.change_token, 0
        _append(state, now.with_learners({*now.learners, *newcomers}).encode())
        state.change_token = token
    else:
        caught_up(state)


def _learners_in_doubt(state: State) -> bool:
    """They are told again that they do not vote: a committed entry that says so ends the doubt."""
    return any(state.progress[node].uncertain for node in state.configuration.learners)


def _pending(state: State) -> bool:
    return (
        state.configuration.joint
        or state.configuration_index > state.commit
        or state.change_wanted is not None
        or state.commit < state.term_start
    )


def _append(state: State, data: bytes) -> None:
    _replication.add_entries(state, CONFIGURATION, [data])
    last = state.log.last
    if state.change_token:
        state.out.append(Accepted(state.change_token, last, last, state.term))
        state.change_token = 0
    refresh(state)
    _replication.broadcast(state)


def refresh(state: State) -> None:
    """Every member of the newest configuration has a progress (leader only)."""
    for node in state.configuration.members():
        if node != state.id and node not in state.progress:
            state.progress[node] = Progress(next=state.log.last)


def caught_up(state: State) -> None:
    """Enter the joint phase once every new voter holds nearly all, and owes no frames."""
    if state.change_wanted is None or state.configuration.joint:
        return
    if state.configuration_index > state.commit:
        return
    voters, learners = state.change_wanted
    for node in voters:
        if node == state.id or node in state.configuration.voters:
            continue
        progress = state.progress.get(node)
        if (
            progress is None
            or progress.debt
            or progress.uncertain
            or progress.data + state.options.caught_up_entries < state.log.last
            or progress.data < state.term_start
        ):
            return
    state.change_wanted = None
    _append(state, state.configuration.enter_joint(voters, learners).encode())


def committed(state: State) -> None:
    """The commit index moved: end a joint phase, retire who left."""
    configurations = state.configurations
    if len(configurations) > 1 and configurations[1][0] <= state.commit:
        while len(configurations) > 1 and configurations[1][0] <= state.commit:
            configurations.pop(0)
    elif state.role is not Role.LEADER or not state.configuration.joint:
        if state.change_wanted is not None and state.role is Role.LEADER:
            caught_up(state)
        return
    if state.configuration_index > state.commit:
        return
    now = state.configuration
    if state.uncertain and not now.votes(state.id) and not now.joint:
        # Its old promises cannot matter any more: nobody counts its vote.
        state.uncertain = False
    if state.role is not Role.LEADER:
        return
    if now.joint:
        _append(state, now.leave_joint().encode())
        return
    members = now.members()
    for node in [node for node in state.progress if node not in members]:
        # One last word, so that it learns that it left.
        commit = min(state.progress[node].match, state.commit)
        state.sends.append(Heartbeat(state.id, node, state.term, commit))
        del state.progress[node]
    if not state.progress:
        # Those who left may have acknowledged all of this: only who has applied it may answer a
        # read without a round.
        state.term_start = state.commit
    if not now.votes(state.id):
        for node, progress in state.progress.items():
            commit = min(progress.match, state.commit)
            state.sends.append(Heartbeat(state.id, node, state.term, commit))
        _election.become_follower(state, state.term, NOBODY)
        return
    _reads.confirmed(state)
    caught_up(state)


def abandon(state: State) -> None:
    """Leadership is lost: a change that waits for a newcomer is given up."""
    if state.change_wanted is not None:
        state.change_wanted = None
        state.out.append(Refused(state.change_token, Refusal.NOT_LEADER, state.leader))
        state.change_token = 0
