"""Bodies: the half of a node that reads them from its disk or by other nodes, and that sends new
ones to the members of their ranges."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence

from o3storage.cluster import _bodies, _direct
from o3storage.cluster._data import Fanout
from o3storage.cluster._errors import BodyDamaged, BodyMissing, Unavailable
from o3storage.cluster._range_keeper import RangeKeeper
from o3storage.cluster._ranges import NOWHERE
from o3storage.cluster._routing import Routing
from o3storage.cluster._streams import StreamUpload
from o3storage.crypto import EpochKeyMissing, EpochKeys, StreamRef, StreamSealer
from o3storage.raft.core import Configuration
from o3storage.runtime.disk import Buffer
from o3storage.runtime.jobs import Jobs


class OwnBodies(Routing):
    """What `_node.Node` does with bodies."""

    jobs: Jobs
    ranges: RangeKeeper
    _crowd: _bodies.Crowd
    _epochs: EpochKeys

    def fan_out(self, upload: StreamUpload) -> Fanout | None:
        """The way of a large body to the other members, if there are any. Raises Unavailable."""
        group = self._ranges.group_of(upload.route)
        stream = upload.ref.stream
        if group in self._ranges.elsewhere:
            assert self.replication is not None

            def configuration() -> Configuration:
                holders = self.ranges.holders.get(group)
                return holders.configuration if holders is not None else Configuration()

            return Fanout(self.replication, group, stream, configuration, own=False)
        team = self.replica_of(upload.route).team
        if team is None or self.replication is None or len(team.core.configuration.members()) < 2:
            return None
        core = team.core
        return Fanout(self.replication, group, stream, lambda: core.configuration)

    def holds(self, route: bytes) -> bool:
        """Whether this node has a replica of the route's range, or knows no other who has."""
        return self._ranges.group_of(route) not in self._ranges.elsewhere

    def group_of(self, route: bytes) -> int:
        """The range of a route, as far as this node knows; below zero: it knows none."""
        return self._ranges.group_of(route)

    def _sealer(self, ref: StreamRef) -> StreamSealer:
        try:
            key = self._epochs.key(ref.epoch)
        except EpochKeyMissing as error:
            # A node was removed, and a new epoch began: its key comes with range 0, any moment.
            raise Unavailable(f"{error}; try again") from None
        return StreamSealer(key, ref.salt, ref.stream)

    def read_small_now(self, ref: StreamRef) -> bytes | None:
        """The whole body of at most one frame, verified, if it needs no disk I/O; else None.
        Raises BodyMissing, BodyDamaged, Unavailable."""
        try:
            return _bodies.read_small_now(self.store, self._sealer(ref), ref)
        except (BodyMissing, BodyDamaged):
            if self.replication is None:
                raise
            return None  # `read_stream` asks the others

    def read_stream(
        self,
        ref: StreamRef,
        offset: int = 0,
        length: int | None = None,
        owner: tuple[int, bytes] | None = None,
    ) -> AsyncIterator[Buffer]:
        """Verified plaintext [offset, offset + length) in pieces of at most 256 KiB; by default to
        the end. Nothing is yielded before it was verified. Close the iterator if it is not read to
        its end. `owner`: the (bucket id, key) whose body it is, so that a node without its range
        knows whom to ask. Raises BodyMissing, BodyDamaged, Unavailable."""
        size = ref.size_bytes if length is None else length
        if self._ranges.elsewhere and (group := self._away(owner)) != NOWHERE:
            return self._elsewhere.read(group, self._sealer(ref), ref, offset, size)
        return _bodies.read_stream(
            self.store,
            self.jobs,
            self._sealer(ref),
            ref,
            offset=offset,
            length=size,
            repair=self.replication.repair if self.replication is not None else None,
            crowd=self._crowd,
        )

    def _away(self, owner: tuple[int, bytes] | None) -> int:
        """The range of a (bucket id, key), if it is elsewhere; else NOWHERE."""
        if owner is None:
            return NOWHERE
        group = self._ranges.group_of(self.machine.stream_route(*owner))
        return group if group in self._ranges.elsewhere else NOWHERE

    def send_stream(
        self, ref: StreamRef, offset: int, length: int, owner: tuple[int, bytes] | None = None
    ) -> AsyncIterator[Buffer | _direct.DirectPiece]:
        """As `read_stream`, for a body that goes to a plain socket."""
        if self._ranges.elsewhere and (group := self._away(owner)) != NOWHERE:
            return self._elsewhere.read(group, self._sealer(ref), ref, offset, length)
        return _direct.send_stream(
            self.store,
            self.jobs,
            self._sealer(ref),
            ref,
            offset=offset,
            length=length,
            repair=self.replication.repair if self.replication is not None else None,
            crowd=self._crowd,
        )

    async def hold(
        self, bodies: Sequence[bytes], owner: tuple[int, bytes] | None = None
    ) -> Callable[[], None]:
        """What packed references name stays readable, on this node or at a holder of its `owner`'s
        range, until the returned function is called, once, though it is released meanwhile.
        Raises Unavailable."""
        streams = [StreamRef.unpack(body).stream for body in bodies if body]
        if self._ranges.elsewhere and (group := self._away(owner)) != NOWHERE:
            return await self._elsewhere.hold(group, streams)
        for stream in streams:
            self.store.pin(stream)

        def let_go() -> None:
            for stream in streams:
                self.store.unpin(stream)

        return let_go
