"""Commands: the half of a node that has them committed in the ranges they belong to, here or at
other nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from o3storage.cluster import _bodies, _records
from o3storage.cluster._elsewhere import propose_held
from o3storage.cluster._errors import Unavailable
from o3storage.cluster._forwarding import MOVED_AWAY
from o3storage.cluster._range_rows import RangeMoved
from o3storage.cluster._ranges import NOWHERE
from o3storage.cluster._replica import Replica
from o3storage.cluster._routing import Routing
from o3storage.cluster._streams import UploadFrames
from o3storage.runtime.state_machine import Outcome
from o3storage.storage import SealedFrame

ROOM_PATIENCE_S = 5.0
"""How long a write waits for flushes and merges before it is refused."""
ROOM_POLL_S = 0.01


class Commands(Routing):
    """What `_node.Node` does with commands."""

    id: int
    session: int

    async def submit(self, command: Any, frames: Sequence[SealedFrame] = ()) -> Any:
        """Commit a command and return its result, or raise its error, of applying it here.

        `frames`: `StreamUpload.frames` of the body that the command names, if any. A command may be
        submitted again with the same frames after an error of its own.
        Raises Unavailable (see `uncertain` there), StorageFull."""
        if self.store.crowded:
            await self._room()
        machine = self.machine
        if self._ranges.several:
            if machine.whole(command) is not None:
                return await self._submit_whole(command)
            items = machine.items(command)
            if items is not None:
                return await self._submit_items(command, items)
        version = self._ranges.version
        route = machine.route(command)
        data = machine.encode(command)
        if isinstance(frames, UploadFrames):
            upload = frames.upload
            flags = 0
            if upload.has_row:
                flags = _records.CLOSE_ON_SUCCESS
            if frames:
                flags |= _records.OPEN_ON_ERROR
            ref = upload.ref
            data = _records.encode_carry(
                flags,
                data,
                route=upload.route,
                session=self.session,
                started_ns=upload.started_ns,
                stream=ref.stream,
                frames=_bodies.frame_count(ref),
            )
            upload.submitted = True
            outcome = await self.commit(route, data, frames, adds=True)
            if outcome.error is not None:
                upload.has_row = True
                raise outcome.error
            upload.has_row = False
            return outcome.result
        adds = machine.adds(command)
        outcome = await self.commit(route, data, frames, adds=adds)
        if self._ranges.version != version:
            # The range was cut meanwhile.
            if machine.whole(command) is not None:
                return await self._submit_whole(command)
            items = machine.items(command)
            if items is not None and type(outcome.error) is RangeMoved:
                return await self._submit_items(command, items)
        if outcome.error is not None:
            raise outcome.error
        return outcome.result

    async def commit(
        self, route: bytes, data: bytes, frames: Sequence[SealedFrame] = (), *, adds: bool = False
    ) -> Outcome:
        """Commit an encoded command in the range of its route; its outcome here. Where the range
        was cut before the command was applied, that is a definite refusal, and it goes to the range
        that holds the route now. Raises Unavailable, StorageFull."""
        end_s = 0.0
        while True:
            version = self._ranges.version
            group = self._ranges.group_of(route)
            replica = self._replicas.get(group)
            if replica is None or group in self._ranges.elsewhere:
                where = await self.find_range(route)
                outcome = await self._commit_in(where, data, frames, adds=adds)
            else:
                where = replica
                try:
                    if frames or not isinstance(frames, UploadFrames):
                        outcome = await replica.submit(data, frames, adds=adds)
                    else:
                        outcome = await self._commit_in(replica, data, frames, adds=adds)
                except Unavailable as refusal:
                    if refusal.uncertain or group not in self._ranges.elsewhere:
                        raise
                    continue  # the replica left this node meanwhile, and nothing was done
            if type(outcome.error) is not RangeMoved:
                return outcome
            if isinstance(where, int):
                end_s = await self._moved_away(version, end_s)
            elif self._ranges.version == version:
                raise Unavailable("the range of that key is moving; try again")

    async def _commit_in(
        self,
        where: Replica | int,
        data: bytes,
        frames: Sequence[SealedFrame] = (),
        *,
        adds: bool,
    ) -> Outcome:
        """In that range, here or elsewhere; its outcome may be RangeMoved. Raises Unavailable,
        StorageFull."""
        held: Sequence[int] = ()
        if not frames and isinstance(frames, UploadFrames):
            held = frames.upload.held
        if isinstance(where, int):
            return await self._elsewhere.submit(where, data, frames, adds=adds, held=held)
        if held and self.id not in held and not where.leads:
            # The range came here during the upload: its body did not.
            return await self._elsewhere.submit(where.group, data, adds=adds, held=held)
        try:
            if held and self.id not in held:
                return await propose_held(where, data, held, adds=adds)
            return await where.submit(data, frames, adds=adds)
        except Unavailable as refusal:
            if refusal.uncertain or self.replica_here(where.group) is where:
                raise
            # The replica left this node meanwhile, and nothing was done.
            return Outcome(None, RangeMoved(MOVED_AWAY))

    async def _submit_whole(self, command: Any) -> Any:
        """A command that every range of a span must apply, each for itself. A range that is cut off
        one which has applied it began with what that did, and applying it again changes nothing."""
        machine = self.machine
        span = machine.whole(command)
        assert span is not None
        low, high = span[0][1:], span[1][1:]
        data, adds = machine.encode(command), machine.adds(command)
        results: dict[int, Any] = {}
        end_s = 0.0
        while True:
            todo = [group for group in self._ranges.within(low, high) if group not in results]
            if not todo:
                return machine.joined(list(results.values()))
            if todo[0] == NOWHERE:
                at = self._ranges.version
                await self._moved_on(at)
                continue
            version = self._ranges.version
            where = await self.find_range(b"", todo[0])
            outcome = await self._commit_in(where, data, adds=adds)
            if type(outcome.error) is RangeMoved:
                if isinstance(where, int):
                    end_s = await self._moved_away(version, end_s)
                continue
            if outcome.error is not None:
                raise outcome.error
            results[todo[0]] = outcome.result

    async def _submit_items(self, command: Any, routes: Sequence[bytes]) -> list[Any]:
        """A command that is cut into one for each range. Once one was applied, what happens to the
        others is told item by item."""
        machine = self.machine
        results: list[Any] = [None] * len(routes)
        pending = list(range(len(routes)))
        end_s = 0.0
        while pending:
            group = self._ranges.group_of(routes[pending[0]])
            mine = [at for at in pending if self._ranges.group_of(routes[at]) == group]
            version = self._ranges.version
            where = await self.find_range(routes[mine[0]])
            if group != (where if isinstance(where, int) else where.group):
                continue
            part = machine.part(command, mine)
            outcome = await self._commit_in(where, machine.encode(part), adds=machine.adds(part))
            if type(outcome.error) is RangeMoved:
                if isinstance(where, int):
                    end_s = await self._moved_away(version, end_s)
                continue
            if outcome.error is not None and len(pending) == len(routes):
                raise outcome.error
            found = outcome.result if outcome.error is None else [outcome.error] * len(mine)
            for at, result in zip(mine, found, strict=True):
                results[at] = result
            done = dict.fromkeys(mine)
            pending = [at for at in pending if at not in done]
        return results

    async def _room(self) -> None:
        """Return when the store takes writes without more memory. Raises Unavailable."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + ROOM_PATIENCE_S
        while self.store.crowded:
            if loop.time() >= end_s:
                raise Unavailable("the disk does not keep up with the writes; slow down")
            await asyncio.sleep(ROOM_POLL_S)
