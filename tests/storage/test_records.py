"""Records and batches: round trips, and every damage is seen."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o3storage.crypto import FileSealer
from o3storage.storage import SealedFrame
from o3storage.storage import _batches as batches
from o3storage.storage import _records as records
from o3storage.storage import _volume as volumes
from o3storage.storage._types import FormatVersionUnknown, StoreDamaged, StoreKeyWrong

KEY = bytes(range(32))
SALT = bytes(range(32, 64))
SEALER = FileSealer(KEY, SALT)
WORD = st.integers(0, (1 << 64) - 1)

rows_strategy = st.lists(
    st.tuples(st.binary(min_size=1, max_size=40), st.none() | st.binary(max_size=100)), max_size=8
)


@given(
    kind=st.sampled_from([records.ENTRY, records.OUTCOME, records.LOCAL, records.STATE]),
    flags=st.integers(0, 255),
    a0=WORD,
    a1=WORD,
    b=WORD,
    sequence=WORD,
    body=st.binary(max_size=300),
    offset=st.integers(0, 1 << 40),
    lead=st.binary(max_size=9),
)
def test_sealed_record_round_trip(  # noqa: PLR0917
    kind, flags, a0, a1, b, sequence, body, offset, lead
):
    parts = []
    digest, size = records.seal_record(
        parts, SEALER, offset, kind, flags, a0, a1, b, sequence, body
    )
    data = lead + b"".join(parts) + b"tail"
    assert size == len(data) - len(lead) - 4 and parts[0] == digest
    header = records.check_record(data, len(lead))
    assert (header.kind, header.flags, header.b, header.sequence) == (kind, flags, b, sequence)
    assert header.a == a0.to_bytes(8, "little") + a1.to_bytes(8, "little")
    assert records.open_body(data, header, SEALER, offset, len(lead)) == body
    with pytest.raises(records.RecordBad):
        records.open_body(data, header, SEALER, offset + 1, len(lead))


@settings(max_examples=60)
@given(body=st.binary(max_size=60), data=st.data())
def test_any_flipped_bit_of_a_record_is_seen(body, data):
    parts = []
    records.seal_record(parts, SEALER, 8192, records.ENTRY, 0, 1, 2, 3, 4, body)
    whole = bytearray(b"".join(parts))
    bit = data.draw(st.integers(0, len(whole) * 8 - 1))
    whole[bit // 8] ^= 1 << bit % 8
    with pytest.raises(records.RecordBad):
        records.check_record(bytes(whole))


@given(data=st.binary(max_size=400))
def test_parsers_refuse_noise(data):
    for parse in (records.check_record, records.parse_header):
        with pytest.raises(records.RecordBad):
            parse(data)
    for parse_body in (records.decode_rows, records.decode_state):
        with contextlib.suppress(records.RecordBad):
            parse_body(data)
    with pytest.raises(batches.SummaryBad):
        batches.parse_summary(data, 0)
    with pytest.raises(batches.SummaryBad):
        batches.parse_trailer(data, len(data))


@given(rows=rows_strategy, released=st.lists(st.binary(min_size=16, max_size=16), max_size=4))
def test_rows_round_trip(rows, released):
    body = records.encode_rows(rows, released)
    assert records.decode_rows(body) == (rows, released)
    for cut in range(len(body)):
        with pytest.raises(records.RecordBad):
            records.decode_rows(body[:cut])


@given(rows=rows_strategy, sequence=WORD)
def test_state_round_trip(rows, sequence):
    state = [(sequence, key, value) for key, value in rows]
    assert records.decode_state(records.encode_state(state)) == state


def frame(size=100, number=0, last=True):
    return SealedFrame(b"s" * 16, number, last, size, bytes(i % 251 + 1 for i in range(size + 16)))


@given(size=st.integers(0, 5000), number=st.integers(0, (1 << 32) - 1), last=st.booleans())
def test_frame_round_trip(size, number, last):
    parts = []
    stored = frame(size, number, last)
    records.check_frame(stored)
    records.frame_parts(parts, stored, 77)
    header = records.check_record(b"".join(parts))
    assert header.a == stored.stream and header.b == number and header.sequence == 77
    assert bool(header.flags & records.FLAG_LAST) == last and header.plain_bytes == size
    assert records.stored_body(b"".join(parts), header) == stored.data


@pytest.mark.parametrize(
    "bad",
    [
        SealedFrame(b"s" * 15, 0, True, 1, b"x" * 17),
        SealedFrame(b"s" * 16, 0, True, 1, b"x" * 16),
        SealedFrame(b"s" * 16, 1 << 32, True, 1, b"x" * 17),
        SealedFrame(b"s" * 16, 0, True, 256 * 1024 + 1, b"x" * (256 * 1024 + 17)),
    ],
)
def test_wrong_frames_are_refused(bad):
    with pytest.raises(ValueError):
        records.check_frame(bad)


group_infos = st.lists(
    st.builds(
        batches.GroupInfo,
        st.integers(0, 4095),
        st.integers(0, 7),
        st.integers(0, (1 << 32) - 1),
        *[WORD] * 8,
    ),
    max_size=batches.MAX_BATCH_GROUPS,
)


def make_batch(groups, sizes, offset=8192):
    parts, hashes = [], []
    at = offset + batches.summary_bytes(len(groups))
    start = at
    for i, size in enumerate(sizes):
        digest, length = records.seal_record(
            parts, SEALER, at, records.ENTRY, 0, 1, 1, i + 1, 0, bytes(size)
        )
        hashes.append(digest)
        at += length
    return batches.encode_batch(
        volume=3,
        offset=offset,
        sequence=9,
        epoch=2,
        previous_hash=b"p" * 32,
        store_sequence=44,
        hashes=hashes,
        payload=parts,
        payload_bytes=at - start,
        groups=groups,
    )


@settings(max_examples=60)
@given(groups=group_infos, sizes=st.lists(st.integers(0, 3000), max_size=6))
def test_batch_round_trip(groups, sizes):
    data, digest = make_batch(groups, sizes)
    assert len(data) % 4096 == 0
    head = batches.parse_summary(data, 0)
    tail = batches.parse_trailer(data, len(data))
    assert head == tail and head.hash == digest and list(head.groups) == groups
    assert head.size_bytes == len(data) and head.records == len(sizes)
    # header and trailer share no sector, and no sector is all zero
    head_end = batches.summary_bytes(len(groups))
    tail_start = len(data) - head_end - 16
    assert (head_end - 1) // 512 < tail_start // 512
    assert batches.zero_sector(data, 0, len(data)) is None
    found = batches.find_trailer(bytes(8192) + bytes(512) + data[512:], 8192, 1 << 20, 0)
    assert found == head


def test_flipped_bits_of_a_summary_are_seen():
    data, _ = make_batch([batches.GroupInfo(1, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8)], [10])
    size = batches.summary_bytes(1)
    for bit in range(size * 8):
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(batches.SummaryBad):
            batches.parse_summary(broken, 0)
        tail = len(data) - size - 16 + bit // 8
        broken = bytearray(data)
        broken[tail] ^= 1 << bit % 8
        with pytest.raises(batches.SummaryBad):
            batches.parse_trailer(broken, len(data))


def header(kind=volumes.VolumeKind.LOG):
    return volumes.VolumeHeader(kind, 7, 3, 99, SALT, b"i" * 16)


@pytest.mark.parametrize("kind", list(volumes.VolumeKind))
def test_volume_header_round_trip(kind):
    block, sealer = volumes.encode_header(header(kind), KEY)
    assert len(block) == volumes.HEADER_BYTES
    assert volumes.decode_header(block, "v") == header(kind)
    other = volumes.open_sealer(block, header(kind), KEY, "v")
    assert other.unseal(5, b"a", sealer.seal(5, b"a", b"body")) == b"body"
    with pytest.raises(StoreKeyWrong):
        volumes.open_sealer(block, header(kind), bytes(32), "v")
    path = volumes.volume_path(kind, 7)
    assert volumes.parse_name(path.removeprefix("volumes/")) == (kind, 7)


def test_volume_header_damage_and_version():
    block, _ = volumes.encode_header(header(), KEY)
    for at in (0, 33, 60, 150, 4095):
        broken = bytearray(block)
        broken[at] ^= 1
        assert volumes.decode_header(bytes(broken), "v") == header()  # the other copy
        assert volumes.open_sealer(broken, header(), KEY, "v")
        broken[4096 + at] ^= 1
        with pytest.raises(StoreDamaged):
            volumes.decode_header(bytes(broken), "v")
    with pytest.raises(StoreDamaged):
        volumes.decode_header(block[:100], "v")
    newer = bytearray(block[:4096])
    newer[40:44] = (2).to_bytes(4, "little")
    newer[:32] = records.blake3(bytes(newer[32:]))
    with pytest.raises(FormatVersionUnknown):
        volumes.decode_header(bytes(newer), "v")


@pytest.mark.parametrize("name", ["1.log", "0000000001.lo", "x000000001.log", "CURRENT", ""])
def test_other_names_are_no_volumes(name):
    assert volumes.parse_name(name) is None
