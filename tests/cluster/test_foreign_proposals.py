"""What another node proposes is looked at before it comes into a log: once it is committed, an
entry that nobody can apply stops the range on every node, for good."""

from __future__ import annotations

import pytest

from o3storage.cluster import _kinds
from o3storage.cluster._batch import Batch
from o3storage.cluster._forwarding import encode_batch
from o3storage.cluster._peer_types import PeerError
from o3storage.cluster._records import encode_set
from o3storage.simulation import run
from o3storage.storage import SealedFrame
from tests.cluster.support import body_of
from tests.cluster.team_support import team

FORGED = {
    "no command": (b"\x00nonsense", []),
    "no command, with a frame": (b"x", [SealedFrame(bytes(16), 0, True, 100, bytes(116))]),
    "a CARRY of nothing": (b"\xff\x01\x03\x02", []),
    "a CARRY that is cut short": (b"\xff\x01\x03\x06\x00\x05abc", []),
    "a command of another version": (b"\xff\x02\x02\x00", []),
    "a cluster command of no kind": (b"\xff\x01\xfa", []),
    "a cut of nothing": (b"\xff\x01\x05", []),
    "a SET for a key range": (encode_set([(b"\xfe\x06name", b"value")]), []),
    "a command that is all head": (b"\xff", []),
}


@pytest.mark.parametrize("what", FORGED)
@pytest.mark.parametrize("kind", [_kinds.PROPOSE, _kinds.SUBMIT])
def test_a_proposal_that_nobody_can_apply_is_refused_and_the_range_goes_on(
    kind: int, what: str
) -> None:
    async def main() -> None:
        async with team() as group:
            bucket = await group.members[0].bucket()
            leader = group.leader()
            other = next(member for member in group.members if member is not leader)
            data, frames = FORGED[what]
            batch = encode_batch(1, Batch([data], [(0, frames)] if frames else [], [False]))
            payload = batch if kind == _kinds.PROPOSE else b"\x00" + batch
            assert other.node.replication is not None
            with pytest.raises(PeerError):
                await other.node.replication.peers.call(leader.id, kind, payload, timeout_s=5.0)
            for member in group.members:
                await member.put(bucket, b"%d" % member.seed, body_of(member.seed, 100))
            assert not any(member.replica().fault for member in group.members)

    run(main(), 1)
