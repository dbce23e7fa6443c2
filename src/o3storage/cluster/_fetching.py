"""Frames that a replica lacks, fetched from those who hold them.

    request  group u32, index u64, stream 16, first u32, count u16
    answer   status u8 (0 frames follow, 1 no good ones here, 2 superseded, 3 what is here cannot be
             read now), then for each frame: number u32, size u32 of the plaintext, sealed

All integers are big-endian. What is fetched is ciphertext whose BLAKE3 the holder checked; it is
stored again under a record, and a placement, of this node's own.

Invariant: frames count as here only when their placement is synced in the log.
"""

from __future__ import annotations

import asyncio
import itertools
import struct
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from o3storage.cluster import _kinds
from o3storage.cluster._errors import ClusterError, Unavailable
from o3storage.cluster._reading import READ_FAULTS
from o3storage.cluster._wire import Lane
from o3storage.raft.core import NOBODY
from o3storage.runtime import Logger
from o3storage.storage import (
    FRAME_PLAIN_BYTES,
    SEAL_TAG_BYTES,
    FrameBad,
    FrameMissing,
    SealedFrame,
    StoreError,
)

if TYPE_CHECKING:
    from o3storage.cluster._replication import Replication
    from o3storage.cluster._team import Team

WORKERS = 4
"""Streams fetched at a time: they hide each other's round trips. One of them takes what keeps an
entry from being committed first, the others what is owed."""
SWEPT = 2
"""Wants looked at with each new one: what nobody wants any more does not pile up."""
ANSWER_BYTES = 1 << 20
"""Frames in one answer."""
CALL_S = 10.0
"""One answer at a slow link's speed."""
RETRY_S = 0.25
"""Nobody had the frames, or the disk is full: looked at again after this, and longer each time."""
MAX_RETRY_S = 5.0
FAILED_S = 10.0
"""Something that nobody thought of: it is said, and looked at again after this."""
LOOKS_PER_TURN = 256
"""Wants looked at in one turn of the loop."""

_REQUEST = struct.Struct(">IQ16sIH")
_FRAME = struct.Struct(">II")

FRAMES_FOLLOW, NONE_HERE, SUPERSEDED, UNREAD = 0, 1, 2, 3
"""Whoever does not know UNREAD takes it, as anything but the first, for no frames."""

_log = Logger("frames")


class Wanted(NamedTuple):
    """Frames that an entry names and that are not all here."""

    stream: bytes
    frames: int
    session: int
    at: int
    """Index of the entry, or of one that was applied after it."""


Want = tuple["Team", int, Wanted]
"""Who wants it, and by which number."""


class Fetcher:
    """`want` frames; the team that wants them is told when they are here."""

    def __init__(self, node: Replication) -> None:
        self.fetched_frames = 0
        """Frames that were fetched and stored since the start."""
        self.believed: dict[int, None] = {}
        """Ranges for which a holder's word was taken that nobody needs some frames. It was one for
        the keys that the range has there: a range that is cut off it here may need them."""
        self._node = node
        self._gaps: deque[Want] = deque()
        """Of entries that were not committed when it was queued."""
        self._debts: deque[Want] = deque()
        self._wake: deque[asyncio.Future[None]] = deque()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        for number in range(WORKERS):
            work = self._work(gaps_first=not number)
            self._tasks.append(loop.create_task(work, name=f"fetch frames {number}"))

    async def close(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def want(self, team: Team, index: int, wanted: Wanted) -> None:
        for queue in (self._gaps, self._debts):
            for _ in range(min(SWEPT, len(queue))):
                known = queue.popleft()
                if known[0].wants(known[1], known[2]):
                    queue.append(known)
        self._put((team, index, wanted))
        while self._wake:
            waiter = self._wake.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    @property
    def waiting(self) -> int:
        return len(self._gaps) + len(self._debts)

    # --- the one who lacks them

    def _put(self, want: Want) -> None:
        team, index, _ = want
        (self._gaps if index in team.gaps else self._debts).append(want)

    async def _work(self, *, gaps_first: bool) -> None:
        first, then = self._debts, self._gaps
        if gaps_first:
            first, then = then, first
        loop = asyncio.get_running_loop()
        for turn in itertools.count(1):
            if turn % LOOKS_PER_TURN == 0:
                await asyncio.sleep(0)  # (nobody may want any of them any more)
            while not self.waiting:
                waiter: asyncio.Future[None] = loop.create_future()
                self._wake.append(waiter)
                await waiter
            want = (first or then).popleft()
            if gaps_first and self._gaps and want[1] in want[0].debt:
                self._put(want)  # (it was committed meanwhile, without this member)
                continue
            try:
                await self._try(want)
            except Exception as error:
                # (Four of them, and nothing would be fetched any more.)
                _log.error("frames.not_fetched", range=want[0].group, error=error)
                self._put(want)
                await asyncio.sleep(FAILED_S)

    async def _try(self, want: Want) -> None:
        """Until it is here, or nobody wants it, or others wait: then it comes again."""
        team, index, wanted = want
        pause_s = RETRY_S
        while team.wants(index, wanted):
            if not team.may_fetch(index):
                self._put(want)
                await asyncio.sleep(RETRY_S)
                return
            if await self._fetch(team, wanted) or await team.needless(index):
                team.fetched(index, wanted)
                return
            if self.waiting:
                # Others may have more luck.
                self._put(want)
                await asyncio.sleep(RETRY_S / WORKERS)
                return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, MAX_RETRY_S)

    async def _fetch(self, team: Team, wanted: Wanted) -> bool:
        """Whether they are all here now, or superseded."""
        if wanted.stream in self._node.writing:
            return False  # its coordinator is still sending them
        self._node.writing[wanted.stream] = None
        try:
            missing = await self.missing(wanted.stream, wanted.frames)
            if not missing:
                return True
            for node in team.holders(wanted.session):
                superseded = await self._fetch_from(node, team.group, wanted, missing)
                if superseded:
                    return True
                missing = await self.missing(wanted.stream, wanted.frames)
                if not missing:
                    return True
        except READ_FAULTS:
            return False
        finally:
            del self._node.writing[wanted.stream]
        return False

    async def missing(self, stream: bytes, frames: int) -> list[tuple[int, int]]:
        """(first, count) of what is not placed here, ascending. Raises StoreError, BadBlock."""
        gaps: list[tuple[int, int]] = []
        at = 0
        for first, count in await self._node.store.stream_frames(stream):
            if first > at:
                gaps.append((at, first - at))
            at = max(at, first + count)
        if at < frames:
            gaps.append((at, frames - at))
        return gaps

    async def _fetch_from(
        self, node: int, group: int, wanted: Wanted, missing: list[tuple[int, int]]
    ) -> bool:
        """Store what that node has of the missing frames. True: nobody needs them any more."""
        writer = None
        try:
            for first, count in missing:
                at, end = first, first + count
                while at < end:
                    count = min(end - at, 0xFFFF)
                    request = _REQUEST.pack(group, wanted.at, wanted.stream, at, count)
                    answer = await self._call(node, request)
                    if answer[:1] == bytes((SUPERSEDED,)):
                        self.believed[group] = None
                        return True
                    frames = decode_frames(wanted, answer, at)
                    if not frames:
                        break
                    if writer is None:
                        writer = self._node.store.open_stream(wanted.stream)
                    for frame in frames:
                        await writer.write(frame)
                    at += len(frames)
                    self.fetched_frames += len(frames)
            if writer is not None and not self._node.was_released(wanted.stream):
                await writer.sync()
                if not self._node.stored_late(wanted.stream, group):
                    return True  # the range left this disk meanwhile
        except (ClusterError, StoreError, ValueError):
            return False
        finally:
            if writer is not None:
                writer.discard()
        return False

    async def fetch_one(
        self, nodes: Iterable[int], stream: bytes, number: int, frames: int
    ) -> SealedFrame | None:
        """One frame of a stream of `frames`, from the first of these nodes that has a good copy;
        None: none of them has. Raises Unavailable: none gave it, and some could not say."""
        asked, silent = 0, 0
        for node in nodes:
            asked += 1
            if not self._node.peers.is_up(node):
                silent += 1
                continue
            try:
                answer = await self._call(node, _REQUEST.pack(0, 0, stream, number, 1))
                found = decode_frames(Wanted(stream, frames, 0, 0), answer, number)
            except (ClusterError, ValueError):
                silent += 1
                continue
            if found:
                return found[0]
            silent += answer[0] == UNREAD
        if silent:
            raise Unavailable(
                f"{silent} of the {asked} other nodes do not say whether they hold it; try again"
            )
        return None

    async def _call(self, node: int, request: bytes) -> bytes:
        return await self._node.peers.call(
            node, _kinds.FRAMES, request, timeout_s=CALL_S, lane=Lane.BULK
        )

    # --- the one who has them

    async def serve(self, _: int, body: memoryview) -> bytes:
        """Answer a request."""
        if len(body) != _REQUEST.size:
            raise ValueError("a request for frames of the wrong size")
        group, index, stream, first, count = _REQUEST.unpack(body)
        store = self._node.store
        parts: list[bytes | memoryview] = [bytes((FRAMES_FOLLOW,))]
        size = 0
        for number in range(first, first + count):
            try:
                data = store.read_frame_now(stream, number)
                if data is None:
                    data = await store.read_frame(stream, number)
            except FrameMissing:
                if number > first:
                    break
                return bytes((self._why_missing(group, index, stream),))
            except FrameBad:
                if number > first:
                    break
                return bytes((NONE_HERE,))
            except READ_FAULTS:
                if number > first:
                    break
                return bytes((UNREAD,))
            parts.append(_FRAME.pack(number, len(data) - SEAL_TAG_BYTES))
            parts.append(bytes(data))
            size += len(data)
            if size >= ANSWER_BYTES - FRAME_PLAIN_BYTES:
                break
        return b"".join(parts)

    def _why_missing(self, group: int, index: int, stream: bytes) -> int:
        """What is applied here, is complete, and has no frames: they were released again."""
        replica = self._node.replicas.get(group)
        if replica is None or replica.team is None or replica.applied < index:
            return NONE_HERE
        for other in self._node.replicas.values():
            # (Their key may be of a range that was cut off since.)
            team = other.team
            if team is None or not team.complete or other.rows_lost:
                return NONE_HERE
            if stream in team.lacked:
                return NONE_HERE
        return SUPERSEDED


def decode_frames(wanted: Wanted, answer: bytes, first: int) -> list[SealedFrame]:
    """Frames `first`, first + 1, ... of an answer. Raises ValueError."""
    if not answer:
        raise ValueError("an empty answer")
    if answer[0] != FRAMES_FOLLOW:
        return []
    frames: list[SealedFrame] = []
    at = 1
    while at < len(answer):
        if at + _FRAME.size > len(answer):
            raise ValueError("a frame is cut short")
        number, plain = _FRAME.unpack_from(answer, at)
        at += _FRAME.size
        data = answer[at : at + plain + SEAL_TAG_BYTES]
        at += len(data)
        if (
            len(data) != plain + SEAL_TAG_BYTES
            or not 0 < plain <= FRAME_PLAIN_BYTES
            or number != first + len(frames)
            or number >= wanted.frames
        ):
            raise ValueError("a frame that nobody wrote")
        last = number == wanted.frames - 1
        frames.append(SealedFrame(wanted.stream, number, last, plain, data))
    return frames


def in_order(first: list[int], rest: list[int], me: int) -> list[int]:
    """Nodes to ask, each once, without this one and nobody."""
    found: dict[int, None] = {}
    for node in (*first, *rest):
        if node not in (NOBODY, me):
            found[node] = None
    return list(found)
