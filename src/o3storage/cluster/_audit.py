"""Looking through what is applied here for bodies whose frames are not: after a snapshot, which
brings rows only, and after a restart in the middle of a repair.

What is missing becomes repair debt of the group's team, which has it fetched.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from o3storage.cluster._reading import READ_FAULTS
from o3storage.crypto import FRAME_BYTES, StreamRef
from o3storage.runtime import Logger

if TYPE_CHECKING:
    from o3storage.cluster._replication import Replication
    from o3storage.cluster._team import Team

PAGE_ROWS = 200
"""Rows looked at in one turn of the loop."""
MAX_DEBT = 10_000
"""With so many bodies missing the look-through waits until some were fetched (promise P8)."""
PAUSE_S = 0.002
RETRY_S = 1.0
AGAIN_S = 30.0
"""Something that nobody thought of: it is said, and begun again after this."""

_log = Logger("frames")


async def look_through(team: Team, node: Replication) -> None:
    """On return the team knows of everything that is missing. (Until then its member counts as one
    that lacks something: it is not made a voter, and its word on frames does not count.)"""
    while True:
        try:
            await _look_through(team, node)
        except Exception as error:
            _log.error("frames.not_looked_through", range=team.group, error=error)
            await asyncio.sleep(AGAIN_S)
        else:
            return


async def _look_through(team: Team, node: Replication) -> None:
    spans = node.spans(team.group)
    for low, high in spans:
        at: bytes | None = low
        while at is not None:
            try:
                page = await node.store.scan(at, high, PAGE_ROWS)
                for key, value in page:
                    for packed in node.bodies(key, value):
                        ref = StreamRef.unpack(packed)
                        frames = max(1, -(-ref.size_bytes // FRAME_BYTES))
                        if not node.holds_now(ref.stream, frames) and await node.fetcher.missing(
                            ref.stream, frames
                        ):
                            team.owe(ref.stream, frames)
            except READ_FAULTS:
                await asyncio.sleep(RETRY_S)
                continue
            at = page[-1][0] + b"\0" if len(page) == PAGE_ROWS else None
            await asyncio.sleep(PAUSE_S)
            await team.debt_below(MAX_DEBT)
