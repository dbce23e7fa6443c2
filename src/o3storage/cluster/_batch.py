"""Proposals of one turn of the loop, on their way into a leader's log."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from o3storage.cluster._errors import ClusterError
from o3storage.runtime.state_machine import Outcome
from o3storage.storage import SealedFrame


@dataclass(slots=True)
class Batch:
    """Proposals that are appended together, or not at all."""

    payloads: list[bytes]
    framed: list[tuple[int, Sequence[SealedFrame]]] = field(default_factory=list)
    """(number of a payload, the small frames that ride with it)."""
    adds: list[bool] = field(default_factory=list)
    """Which of them a full disk refuses."""
    futures: list[asyncio.Future[Outcome]] = field(default_factory=list)
    """One for each payload, or none: another node waits for them."""

    def riding_bytes(self) -> list[int] | None:
        if not self.framed:
            return None
        sizes = [0] * len(self.payloads)
        for number, frames in self.framed:
            sizes[number] = sum([len(frame.data) for frame in frames])
        return sizes

    def frames(self) -> list[SealedFrame]:
        return [frame for _, frames in self.framed for frame in frames]

    def fail(self, error: ClusterError) -> None:
        for future in self.futures:
            if not future.done():
                future.set_exception(error)

    def refuse_adding(self, error: ClusterError) -> None:
        """The disk is full: only what frees space stays in the batch (nothing of it has frames)."""
        for future, adds in zip(self.futures, self.adds, strict=True):
            if adds and not future.done():
                future.set_exception(error)
        keep = [number for number, adds in enumerate(self.adds) if not adds]
        self.payloads = [self.payloads[number] for number in keep]
        self.futures = [self.futures[number] for number in keep]
        self.adds = [False] * len(keep)
        self.framed = []
