"""Who votes in a group, and what counts as a majority (paper section 6, dissertation 4.3)."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

MAX_VOTERS = 7
"""Three failures are survived; more voters cost every write and buy little."""
MAX_LEARNERS = 16
"""A learner costs its leader a full stream of entries."""
CODEC_VERSION = 1

_HEAD = struct.Struct(">BBBBB")


@dataclass(frozen=True, slots=True)
class Configuration:
    """`voters` decide. While `outgoing` is not empty the configuration is joint: every decision
    needs a majority of both sets. `learners` receive the log and decide nothing; `next_learners`
    are outgoing voters that become learners when the joint phase ends. All are sorted."""

    voters: tuple[int, ...] = ()
    outgoing: tuple[int, ...] = ()
    learners: tuple[int, ...] = ()
    next_learners: tuple[int, ...] = ()

    @property
    def joint(self) -> bool:
        return bool(self.outgoing)

    def members(self) -> tuple[int, ...]:
        """Everyone who receives the log, sorted."""
        return tuple(sorted({*self.voters, *self.outgoing, *self.learners}))

    def votes(self, node: int) -> bool:
        return node in self.voters or node in self.outgoing

    def sole_voter(self, node: int) -> bool:
        return self.voters == (node,) and not self.outgoing

    def decided(self, agree: Iterable[int]) -> bool:
        """A majority of each voter set agrees."""
        agreed = set(agree)
        return all(
            sum(v in agreed for v in voters) * 2 > len(voters)
            for voters in (self.voters, self.outgoing)
            if voters
        ) and bool(self.voters)

    def lost(self, refuse: Iterable[int]) -> bool:
        """No majority can be reached any more once `refuse` refused."""
        refused = set(refuse)
        return any(
            sum(v not in refused for v in voters) * 2 <= len(voters)
            for voters in (self.voters, self.outgoing)
            if voters
        )

    def majority_mark(self, marks: Mapping[int, int]) -> int:
        """The highest index that a majority of each voter set has reached (absent: 0)."""
        lowest = -1
        for voters in (self.voters, self.outgoing):
            if voters:
                reached = sorted((marks.get(v, 0) for v in voters), reverse=True)
                mark = reached[len(voters) // 2]
                lowest = mark if lowest < 0 else min(lowest, mark)
        return max(lowest, 0)

    def enter_joint(self, voters: Iterable[int], learners: Iterable[int]) -> Configuration:
        """The joint configuration on the way to `voters` and `learners` (C-old,new)."""
        new_voters = tuple(sorted(set(voters)))
        new_learners = set(learners)
        return Configuration(
            voters=new_voters,
            outgoing=self.voters,
            learners=tuple(sorted(new_learners - set(self.voters))),
            next_learners=tuple(sorted(new_learners & set(self.voters))),
        )

    def leave_joint(self) -> Configuration:
        """C-new."""
        return Configuration(
            voters=self.voters,
            learners=tuple(sorted({*self.learners, *self.next_learners})),
        )

    def with_learners(self, learners: Iterable[int]) -> Configuration:
        """The same voters with other learners (needs no joint phase: nobody's vote changes)."""
        return Configuration(voters=self.voters, learners=tuple(sorted(set(learners))))

    def encode(self) -> bytes:
        """Version, four counts, then the ids as 8-byte big-endian, in field order."""
        groups = (self.voters, self.outgoing, self.learners, self.next_learners)
        ids = [node for group in groups for node in group]
        return _HEAD.pack(CODEC_VERSION, *(len(g) for g in groups)) + struct.pack(
            f">{len(ids)}Q", *ids
        )

    @classmethod
    def decode(cls, data: bytes) -> Configuration:
        """Raises ValueError for anything `encode` did not write."""
        if len(data) < _HEAD.size:
            raise ValueError("configuration is cut short")
        version, *counts = _HEAD.unpack_from(data)
        if version != CODEC_VERSION:
            raise ValueError(f"configuration codec version {version} is not known")
        if len(data) != _HEAD.size + 8 * sum(counts):
            raise ValueError("configuration has the wrong length")
        ids = struct.unpack_from(f">{sum(counts)}Q", data, _HEAD.size)
        groups: list[tuple[int, ...]] = []
        at = 0
        for count in counts:
            group = ids[at : at + count]
            if list(group) != sorted(set(group)):
                raise ValueError("configuration ids are not sorted or repeat")
            groups.append(group)
            at += count
        if 0 in ids or len(groups[0]) > MAX_VOTERS or len(groups[1]) > MAX_VOTERS:
            raise ValueError("configuration breaks a limit")
        return cls(*groups)


def valid_target(voters: Iterable[int], learners: Iterable[int]) -> bool:
    """1 to 7 voters, at most 16 learners, positive ids, nobody both."""
    voter_set, learner_set = set(voters), set(learners)
    return (
        1 <= len(voter_set) <= MAX_VOTERS
        and len(learner_set) <= MAX_LEARNERS
        and not voter_set & learner_set
        and all(node > 0 for node in voter_set | learner_set)
    )
