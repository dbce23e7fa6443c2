"""Which groups of a node have something to do: what is done again and again goes by what happened,
not by how many groups there are.

Every input to a replica's core, and everybody who begins to wait for one of its groups, stirs it.
A tick goes to the groups that were stirred; one that turns out to be idle (`Team.idle`) gets none
until it is stirred again. A quiescent group without a tick hears of a leader that is gone all the
same: by `PeerLost`, which is an input, and so do questions and proposals stir it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from o3storage.cluster._ranges import SYSTEM_GROUP

if TYPE_CHECKING:
    from o3storage.cluster._replica import Replica
    from o3storage.cluster._team import Team

MOST_LOOKS = 256
"""Groups looked at in one turn of the loop: some milliseconds."""
LOOKS_BESIDE = 16
"""Groups looked at each time though nothing happened there: a thousand within a minute. Nothing
depends on it but what somebody forgot."""


class Awake:
    """The groups of a node that get ticks."""

    __slots__ = ("_stirred", "_teams")

    def __init__(self) -> None:
        self._teams: dict[Team, None] = {}
        self._stirred: dict[int, None] = {}
        """Groups that were awake since `take_stirred`."""

    def stir(self, team: Team) -> None:
        """Something happened there, or somebody waits."""
        team.awake = True
        self._teams[team] = None

    def __len__(self) -> int:
        return len(self._teams)

    def due(self, replicas: Mapping[int, Replica]) -> Iterator[Team]:
        """Those that a tick is for. The others fall asleep, and those of replicas that are gone."""
        for team in list(self._teams):
            replica = replicas.get(team.group)
            if replica is None or replica.team is not team or replica.fault:
                self._sleep(team)
                continue
            self._stirred[team.group] = None
            if team.idle:
                self._sleep(team)
            else:
                yield team

    def _sleep(self, team: Team) -> None:
        del self._teams[team]
        team.awake = False

    def take_stirred(self) -> dict[int, None]:
        stirred, self._stirred = self._stirred, {}
        return stirred


class Looks:
    """Whose turn it is to be looked at by `Membership`, which asks again and again: range 0, groups
    that were awake since, all when what counts for all has changed, and some besides."""

    def __init__(self) -> None:
        self._waiting: dict[int, None] = {}
        self._known: Any = None
        self._beside = 0

    def next(self, groups: Mapping[int, object], awake: Awake | None, known: object) -> list[int]:
        """Of `groups`. `known`: what counts for all of them."""
        waiting = self._waiting
        if known != self._known:
            self._known = known
            waiting.update(dict.fromkeys(groups))
        if awake is not None:
            waiting.update(awake.take_stirred())
        if self._beside >= len(groups):
            self._beside = 0
        waiting.update(dict.fromkeys(islice(groups, self._beside, self._beside + LOOKS_BESIDE)))
        self._beside += LOOKS_BESIDE
        waiting.pop(SYSTEM_GROUP, None)
        found = list(islice(waiting, MOST_LOOKS))
        for group in found:
            del waiting[group]
        return [group for group in (SYSTEM_GROUP, *found) if group in groups]
