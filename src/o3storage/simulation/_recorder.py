"""A record of what a workload did to a disk, from which every crash state is made.

At each sync of the record (and at its end), over the changes that are not yet on the medium:
every prefix of them in order of time, each single one lost, each single one torn, and seeded
subsets of their sectors (ALICE, OSDI 2014, and CrashMonkey, OSDI 2018, enumerate the same).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ._image import DiskImage, Inode, Pending, keep_all

DEFAULT_SUBSETS = 50


@dataclass(frozen=True, slots=True)
class CrashState:
    """`image` is what the machine finds; `marks` are the notes taken before the crash."""

    label: str
    event: int
    marks: tuple[Any, ...]
    image: DiskImage


class Recorder:
    """Attach by `SimDisk.record()`; the state at that moment counts as durable."""

    def __init__(self, image: DiskImage) -> None:
        self._base = image.crash(keep_all)
        self._base.sequence = image.sequence
        self.events: list[tuple[Any, ...]] = []

    def add(self, *event: Any) -> None:
        self.events.append(event)

    def mark(self, note: Any) -> None:
        """Note something (say: flush 7 was acknowledged) between the disk's operations."""
        self.events.append(("mark", note))

    def sync_points(self) -> list[int]:
        """Indexes of the events that are syncs."""
        return [i for i, event in enumerate(self.events) if event[0] in ("sync", "sync_dir")]

    def crash_states(
        self, seed: int = 0, *, subsets: int = DEFAULT_SUBSETS, skip: set[int] | None = None
    ) -> Iterator[CrashState]:
        """Every crash state, sync by sync. `skip` names sync events to leave out of the replay, as
        if the program had forgotten them: a test that still passes then tests nothing."""
        image = self._base.crash(keep_all)
        image.sequence = self._base.sequence
        nodes = {node.number: node for node in image.files()}
        marks: list[Any] = []
        rng = random.Random(f"{seed}/crash")
        for index, event in enumerate(self.events):
            if event[0] in ("sync", "sync_dir"):
                yield from _states(image, index, tuple(marks), rng, subsets)
                if skip is not None and index in skip:
                    continue
            if event[0] == "mark":
                marks.append(event[1])
            else:
                _replay(image, nodes, event)
        yield from _states(image, len(self.events), tuple(marks), rng, subsets)


def _replay(image: DiskImage, nodes: dict[int, Inode], event: tuple[Any, ...]) -> None:
    operation, *arguments = event
    if operation == "create":
        node = image.create(arguments[0])
        nodes[node.number] = node
    elif operation in ("write", "resize", "sync", "fail_sync"):
        number, *rest = arguments
        getattr(image, operation)(nodes[number], *rest)
    else:
        getattr(image, operation)(*arguments)


def _states(
    image: DiskImage, index: int, marks: tuple[Any, ...], rng: random.Random, subsets: int
) -> Iterator[CrashState]:
    pending = list(image.pending)

    def state(label: str, kept: dict[int, set[int]]) -> CrashState:
        def choose(change: Pending, sector: int) -> bool:
            return sector in kept.get(change.sequence, ())

        return CrashState(f"event {index}: {label}", index, marks, image.crash(choose))

    whole = {change.sequence: set(change.sectors()) for change in pending}
    for count in range(len(pending) + 1):
        yield state(
            f"first {count} of {len(pending)} changes",
            {change.sequence: whole[change.sequence] for change in pending[:count]},
        )
    for change in pending:
        yield state(f"lost: {change}", {s: v for s, v in whole.items() if s != change.sequence})
        if len(change.sectors()) > 1:
            some = {sector for sector in change.sectors() if rng.random() < 0.5}
            yield state(f"torn: {change}", {**whole, change.sequence: some})
    for number in range(subsets if pending else 0):
        share = rng.random()
        yield state(
            f"subset {number}",
            {s: {x for x in sorted(v) if rng.random() < share} for s, v in whole.items()},
        )
