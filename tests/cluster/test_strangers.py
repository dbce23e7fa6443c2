"""Who is no member, with the secret and without, gets what a newcomer must have and nothing else."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from o3storage.cluster import (
    ClusterSecret,
    _kinds,
)
from o3storage.cluster._join import NEVER, encode_request, encode_welcome
from o3storage.cluster._peer_types import Code, PeerError, PeerRefused
from o3storage.cluster._wire import Hello
from o3storage.crypto import NodeKeys
from o3storage.runtime.network import Address, Link
from o3storage.simulation import SimEntropy, run
from tests.cluster.member_rig import PORT, SECRET, Places, Stranger


def stranger_test(seed: int, secret: str | None, story: Any) -> None:
    async def main() -> None:
        async with Places() as places:
            await places[1].up()
            stranger = Stranger(places, secret)
            try:
                await story(places, stranger)
            finally:
                await stranger.close()
            assert len(places[1].membership.records) == 1

    run(main(), seed)


def test_who_cannot_prove_the_secret_is_refused_whatever_it_says() -> None:
    async def story(places: Places, stranger: Stranger) -> None:
        for cluster in (b"", b"x" * 16, places[1].membership.cluster_id):
            stranger.cluster = cluster
            with pytest.raises(PeerRefused):
                await stranger.ask(_kinds.JOIN, encode_request(stranger.record()))
        # Not even a right proof for the other end of the connection: it was sent back.
        stranger.cluster = b""
        stranger.secret = ClusterSecret(SECRET)
        stranger.role = "accept"
        with pytest.raises(PeerRefused, match="secret"):
            await stranger.ask(_kinds.JOIN, encode_request(stranger.record()))

    stranger_test(21, None, story)


def test_who_knows_the_secret_may_join_as_itself_only_and_do_nothing_else() -> None:
    async def story(places: Places, stranger: Stranger) -> None:
        other = NodeKeys.generate(SimEntropy(67))
        for request in (encode_request(stranger.record(other)), b"", b"x" * 100):
            with pytest.raises(PeerError) as refused:
                await stranger.ask(_kinds.JOIN, request)
            assert refused.value.code == NEVER
        for kind in (_kinds.FACTS, _kinds.PROPOSE, _kinds.FRAMES):
            with pytest.raises(PeerError) as refused:
                await stranger.ask(kind, b"")
            assert refused.value.code == Code.NOT_ALLOWED
        # It claims to be of the cluster: it is a guest all the same.
        stranger.cluster = places[1].membership.cluster_id
        with pytest.raises(PeerError) as refused:
            await stranger.ask(_kinds.FACTS, b"")
        assert refused.value.code == Code.NOT_ALLOWED

    stranger_test(22, SECRET, story)


def test_an_id_that_is_not_the_keys_is_refused() -> None:
    async def story(places: Places, stranger: Stranger) -> None:
        stranger.peers.me = places[1].id ^ 1
        with pytest.raises(PeerRefused, match="key"):
            await stranger.ask(_kinds.JOIN, encode_request(stranger.record()))

    stranger_test(23, SECRET, story)


def test_a_joiner_does_not_trust_whoever_answers() -> None:
    async def main() -> None:
        async with Places() as places:
            # Somebody listens where the first node should be, and does not know the secret.
            stranger = Stranger(places, SECRET[::-1], number=1)
            asked: list[int] = []

            async def welcome(node: int, payload: memoryview) -> bytes:
                asked.append(node)
                return encode_welcome(b"evil" * 4, [stranger.record()])

            stranger.role = "accept"
            stranger.peers.serve(_kinds.JOIN, welcome, guests=True)
            await stranger.peers.listen(Address("10.0.0.1", PORT))
            joining = asyncio.get_running_loop().create_task(places[2].up("10.0.0.1"))
            await asyncio.sleep(10)
            assert not joining.done() and not asked
            joining.cancel()
            await asyncio.gather(joining, return_exceptions=True)
            await stranger.close()

    run(main(), 24)


def test_who_relays_a_proof_gets_nothing() -> None:
    """A stranger hands the connection of a real joiner's proof on to the cluster as its own."""

    async def story(places: Places, stranger: Stranger) -> None:
        joiner = NodeKeys.generate(SimEntropy(68))
        secret = ClusterSecret(SECRET)

        def relayed(link: Link) -> Hello:
            # The proof was made by `joiner`, on its connection to the stranger.
            proof = secret.proof(bytes(32), joiner.identity, stranger.keys.identity, "connect")
            return Hello(proof=proof)

        stranger.peers._hello = relayed
        with pytest.raises(PeerRefused, match="secret"):
            await stranger.ask(_kinds.JOIN, encode_request(stranger.record()))

    stranger_test(25, None, story)
