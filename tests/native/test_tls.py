"""TLS without I/O: handshakes between our own two sides, limits, ends and faults."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o3storage._native import TlsConfig, TlsConnection, TlsError
from o3storage.crypto import NODE_SERVER_NAME, ed25519_of, identity_certificate
from o3storage.crypto._certificate import _SPKI_HEAD

SERVER_SEED, CLIENT_SEED = bytes(range(32)), bytes(range(1, 33))
SERVER_PAIR, CLIENT_PAIR = identity_certificate(SERVER_SEED), identity_certificate(CLIENT_SEED)
SERVER = TlsConfig.server(*SERVER_PAIR, alpn=["o3/2", "http/1.1"])
CLIENT = TlsConfig.client(ca_pem=SERVER_PAIR[0], alpn=["http/1.1"])


class Wire:
    """Two connections and what each received."""

    def __init__(self, server: TlsConfig = SERVER, client: TlsConfig = CLIENT) -> None:
        self.server = TlsConnection(server)
        self.client = TlsConnection(client, NODE_SERVER_NAME)
        self.at_server = bytearray()
        self.at_client = bytearray()

    def carry(self, source: TlsConnection, piece: int, room: int) -> bool:
        target = self.client if source is self.server else self.server
        got = self.at_client if source is self.server else self.at_server
        wire, out = memoryview(source.take()), bytearray(room)
        moved = bool(wire)
        while wire or target.pending_plaintext:
            consumed, produced = target.feed(wire[:piece], out)
            got += out[:produced]
            wire = wire[consumed:]
        return moved

    def pump(self, piece: int = 100_000, room: int = 100_000) -> None:
        while any(self.carry(s, piece, room) for s in (self.client, self.server)):
            pass


def connected(**sides: TlsConfig) -> Wire:
    wire = Wire(**sides)
    wire.pump()
    assert not wire.server.handshaking
    assert not wire.client.handshaking
    return wire


def test_handshake_and_what_is_known_after_it() -> None:
    wire = Wire()
    assert wire.server.handshaking
    assert wire.server.version is None
    wire.pump()
    for side in (wire.server, wire.client):
        assert not side.handshaking
        assert side.version == "TLSv1.3"
        assert side.cipher_suite is not None
        assert side.alpn == "http/1.1"
    assert wire.server.server_name == NODE_SERVER_NAME
    assert wire.client.server_name is None
    assert wire.server.peer_certificate is None
    assert wire.server.peer_public_key is None
    assert ed25519_of(wire.client.peer_public_key) is not None
    assert wire.client.peer_certificate is not None


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.binary(min_size=1, max_size=50_000), max_size=5),
    st.integers(1, 9000),
    st.integers(1, 9000),
)
def test_bytes_arrive_whole_however_they_are_cut(texts: list[bytes], piece: int, room: int) -> None:
    wire = Wire()
    wire.pump(piece, room)
    for text in texts:
        for source in (wire.client, wire.server):
            rest = memoryview(text)
            while rest:
                rest = rest[source.send(rest) :]
                wire.pump(piece, room)
    assert wire.at_server == wire.at_client == b"".join(texts)


def test_send_before_the_handshake_is_done_queues() -> None:
    wire = Wire()
    assert wire.client.send(b"early") == 5
    wire.pump()
    assert wire.at_server == b"early"


def test_a_full_send_buffer_takes_less() -> None:
    wire = connected()
    text = bytes(200_000)
    sent = wire.client.send(text)
    assert 0 < sent <= 64 * 1024
    assert wire.client.send(text) == 0
    assert len(wire.client.take()) < sent + 1000
    assert wire.client.send(text) > 0


def test_send_into_any_room() -> None:
    wire = connected()
    text = bytes(i * 13 & 0xFF for i in range(300_000))
    for room in (1, 700, 70_000, 400_000):
        wire.at_client.clear()
        size = 3000 if room == 1 else len(text)
        out, rest, flow = bytearray(room), memoryview(text)[:size], bytearray()
        while rest or wire.server.wants_write:
            sent, produced = wire.server.send_into(rest, out)
            flow += out[:produced]
            rest = rest[sent:]
        plain = bytearray(len(text))
        consumed, produced = wire.client.feed(flow, plain)
        assert consumed == len(flow)
        assert plain[:produced] == text[:size]


def test_a_full_out_buffer_leaves_the_rest_unconsumed() -> None:
    wire = connected()
    wire.client.send(bytes(60_000))
    flow, out = wire.client.take(), bytearray(1000)
    consumed, produced = wire.server.feed(flow, out)
    assert produced == 1000
    assert consumed < 20_000, "no more than one record is taken ahead"
    assert wire.server.pending_plaintext
    total = produced
    while consumed < len(flow) or wire.server.pending_plaintext:
        more, produced = wire.server.feed(flow[consumed:], out)
        consumed += more
        total += produced
    assert total == 60_000


def test_close_notify_tells_an_end_from_a_cut() -> None:
    wire = connected()
    wire.client.send(b"last words")
    wire.client.close()
    wire.pump()
    assert wire.at_server == b"last words"
    assert wire.server.peer_closed
    assert not wire.client.peer_closed
    assert wire.server.send(b"still open this way") == 19
    wire.pump()
    assert wire.at_client == b"still open this way"
    assert wire.server.feed(b"rubbish after the end", bytearray(10)) == (21, 0)


def test_rubbish_fails_and_leaves_an_alert() -> None:
    wire = connected()
    with pytest.raises(TlsError):
        wire.server.feed(b"GET / HTTP/1.1\r\n\r\n" * 10, bytearray(100))
    alert = wire.server.take()
    assert alert
    with pytest.raises(TlsError, match="failed already"):
        wire.server.feed(b"", bytearray(10))
    with pytest.raises(TlsError, match="failed already"):
        wire.server.send(b"x")
    with pytest.raises(TlsError):
        wire.client.feed(alert, bytearray(100))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_bytes_of_a_stranger_do_worse_than_fail(data: st.DataObject) -> None:
    """Rubbish, or a real handshake with some bytes changed, cut or doubled."""
    wire = Wire(server=data.draw(st.sampled_from([SERVER, NODE_SERVER])))
    flow = bytearray(wire.client.take())
    if data.draw(st.booleans()):
        flow[:] = data.draw(st.binary(max_size=600))
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, 9999)) % (len(flow) + 1)
        flow[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    out, piece = bytearray(100), data.draw(st.integers(1, 700))
    try:
        while flow:
            consumed, _ = wire.server.feed(flow[:piece], out)
            del flow[:consumed]
    except TlsError:
        assert wire.server.handshaking
    assert len(wire.server.take()) < 10_000


def test_a_flipped_bit_in_a_record_fails() -> None:
    wire = connected()
    wire.client.send(b"text")
    flow = bytearray(wire.client.take())
    flow[-1] ^= 1
    with pytest.raises(TlsError):
        wire.server.feed(flow, bytearray(100))


def test_exporter_agrees_and_depends_on_everything() -> None:
    wire = connected()
    keys = {
        side.export_keying_material(32, label, context)
        for side in (wire.client, wire.server)
        for label, context in ((b"a", b"c"), (b"b", b"c"), (b"a", b"d"), (b"a", None))
    }
    assert len(keys) == 4
    other = connected()
    assert other.client.export_keying_material(32, b"a", b"c") not in keys
    with pytest.raises(TlsError):
        Wire().client.export_keying_material(32, b"a", b"c")
    with pytest.raises(ValueError, match="1024"):
        wire.client.export_keying_material(5000, b"a", b"c")


NODE_SERVER = TlsConfig.server(*SERVER_PAIR, client_auth="identity", alpn=["o3/1"], tls13_only=True)


def node_client(pair: tuple[bytes, bytes] = CLIENT_PAIR) -> TlsConfig:
    return TlsConfig.client(
        ca_pem=None, chain_pem=pair[0], key_pem=pair[1], alpn=["o3/1"], tls13_only=True
    )


def test_nodes_know_each_other_by_key() -> None:
    for seed in (CLIENT_SEED, b"\x07" * 32):
        wire = connected(server=NODE_SERVER, client=node_client(identity_certificate(seed)))
        for side, other in ((wire.server, seed), (wire.client, SERVER_SEED)):
            assert side.peer_public_key is not None
            assert side.peer_public_key.startswith(_SPKI_HEAD)
            from o3storage._native import ed25519_public

            assert ed25519_of(side.peer_public_key) == ed25519_public(other)


def test_a_node_without_a_certificate_is_refused() -> None:
    wire = Wire(server=NODE_SERVER, client=TlsConfig.client(ca_pem=None, alpn=["o3/1"]))
    with pytest.raises(TlsError):
        wire.pump()


def test_a_certificate_without_its_key_proves_nothing() -> None:
    with pytest.raises(TlsError, match="does not belong"):
        node_client((SERVER_PAIR[0], CLIENT_PAIR[1]))
    with pytest.raises(TlsError, match="does not belong"):
        TlsConfig.server(SERVER_PAIR[0], CLIENT_PAIR[1])


def test_an_unknown_authority_is_refused() -> None:
    wire = Wire(client=TlsConfig.client(ca_pem=CLIENT_PAIR[0]))
    with pytest.raises(TlsError):
        wire.pump()


def test_another_name_is_refused() -> None:
    wire = Wire()
    wire.client = TlsConnection(CLIENT, "example.com")
    with pytest.raises(TlsError):
        wire.pump()


def test_no_common_alpn_is_refused() -> None:
    wire = Wire(client=TlsConfig.client(ca_pem=SERVER_PAIR[0], alpn=["h2"]))
    with pytest.raises(TlsError):
        wire.pump()


def test_bad_arguments_say_what_to_do() -> None:
    chain, key = SERVER_PAIR
    with pytest.raises(TlsError, match="no certificate found"):
        TlsConfig.server(b"", key)
    with pytest.raises(TlsError, match="no private key found"):
        TlsConfig.server(chain, chain)
    with pytest.raises(ValueError, match="need client_ca_pem"):
        TlsConfig.server(chain, key, client_auth="required")
    with pytest.raises(ValueError, match="belongs to"):
        TlsConfig.server(chain, key, client_ca_pem=chain)
    with pytest.raises(ValueError, match="client_auth is"):
        TlsConfig.server(chain, key, client_auth="maybe")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="belong together"):
        TlsConfig.client(ca_pem=chain, chain_pem=chain)
    with pytest.raises(ValueError, match="needs a server_name"):
        TlsConnection(CLIENT)
    with pytest.raises(ValueError, match="takes no server_name"):
        TlsConnection(SERVER, "name")
    with pytest.raises(ValueError, match="not a host name"):
        TlsConnection(CLIENT, "no spaces allowed")
    with pytest.raises(BufferError):
        TlsConnection(SERVER).feed(b"", b"read-only")
