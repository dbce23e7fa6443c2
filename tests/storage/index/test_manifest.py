from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o3storage.crypto import FileSealer
from o3storage.storage.index import IndexDamaged, IndexKeyWrong
from o3storage.storage.index._manifest import (
    SECTOR_BYTES,
    Edit,
    State,
    decode_current,
    decode_edits,
    encode_current,
    encode_file_header,
    encode_record,
)
from o3storage.storage.index._table import TableInfo
from tests.storage.index import reader

KEY = b"k" * 32
SALT = b"s" * 32
NUMBERS = st.integers(0, (1 << 64) - 1)
SHORT = st.binary(max_size=30)
INFOS = st.builds(
    TableInfo, NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS, SHORT, SHORT
)
EDITS = st.builds(
    Edit,
    added=st.lists(st.tuples(st.integers(0, 7), INFOS), max_size=3),
    removed=st.lists(NUMBERS, max_size=3),
    moved=st.lists(st.tuples(NUMBERS, st.integers(0, 7)), max_size=3),
    mark=st.none() | st.binary(max_size=1500),
    sequence=st.none() | NUMBERS,
    next_number=st.none() | NUMBERS,
    drops=st.lists(st.tuples(SHORT, st.none() | SHORT, NUMBERS), max_size=3),
    retired=st.lists(NUMBERS, max_size=3),
)


def make_file(edits: list[Edit], size: int = 0) -> bytes:
    sealer = FileSealer(KEY, SALT)
    data = encode_file_header(3, SALT)
    for number, edit in enumerate(edits):
        data += encode_record(sealer, len(data), number, edit, 1 if number == 0 else 0)
    return data.ljust(max(size, len(data) + 4096), b"\0")


@given(EDITS)
def test_edits_survive_encoding(edit):
    assert Edit.decode(edit.encode()) == edit


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_or_read(data):
    try:
        Edit.decode(data)
    except ValueError:
        return


@given(st.lists(EDITS, min_size=1, max_size=5))
@settings(deadline=None)
def test_files_give_their_edits_back(edits):
    data = make_file(edits)
    assert list(decode_edits(data, 3, KEY)) == edits
    assert len(data) % SECTOR_BYTES == 0
    used = data.rstrip(b"\0")
    for low in range(0, len(used), SECTOR_BYTES):
        assert data[low : low + SECTOR_BYTES].strip(b"\0"), "an all-zero sector inside a record"


def test_the_reader_of_the_page_agrees():
    info = TableInfo(9, 1000, 10, 2, 3, 8, 1, b"a", b"z")
    edits = [
        Edit(mark=b"one", sequence=4, next_number=7),
        Edit(added=[(0, info)], mark=b"two", drops=[(b"b", None, 5), (b"c", b"d", 6)]),
        Edit(moved=[(9, 2)], retired=[5]),
    ]
    manifest = reader.read_manifest(make_file(edits), KEY)
    assert (manifest.number, manifest.mark, manifest.sequence) == (3, b"two", 4)
    assert manifest.drops == [(b"c", b"d", 6)]
    assert manifest.tables == {
        9: {
            "size": 1000, "rows": 10, "deleted": 2, "low_sequence": 3, "high_sequence": 8, "applied": 1,
            "level": 2, "first": b"a", "last": b"z",
        }
    }  # fmt: skip


def read(data: bytes, key: bytes = KEY) -> list[Edit]:
    return list(decode_edits(data, 3, key))


def records(data: bytes, count: int) -> list[tuple[int, int]]:
    """(offset, size) of each record."""
    found, at = [], SECTOR_BYTES
    for _ in range(count):
        size = int.from_bytes(data[at + 20 : at + 24], "little")
        found.append((at, size))
        at += size
    return found


THREE = [Edit(mark=bytes([n]) * 1200, sequence=n) for n in range(3)]


def test_every_flipped_bit_is_found_or_harmless():
    """In the padding of a record a flip does not matter; anywhere else it is found."""
    data = make_file(THREE)
    used = len(data.rstrip(b"\0"))
    for at in range(0, used, 7):
        bad = data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]
        try:
            assert read(bad) == THREE
            assert data[at] == 0xFF
        except IndexDamaged:
            continue


def test_a_torn_last_record_is_cut_off_and_a_torn_middle_one_is_damage():
    data = make_file(THREE)
    for number, (at, size) in enumerate(records(data, 3)):
        for mask in range(1, 1 << (size // SECTOR_BYTES)):
            torn = bytearray(data)
            for sector in range(size // SECTOR_BYTES):
                if mask >> sector & 1:
                    low = at + sector * SECTOR_BYTES
                    torn[low : low + SECTOR_BYTES] = bytes(SECTOR_BYTES)
            if number == 2:
                assert read(bytes(torn)) == THREE[:2]
            else:
                with pytest.raises(IndexDamaged):
                    read(bytes(torn))


def test_a_rotted_last_record_is_damage_even_if_the_rest_would_do():
    data = bytearray(make_file(THREE))
    at, _ = records(bytes(data), 3)[2]
    data[at + 100] ^= 1
    with pytest.raises(IndexDamaged):
        read(bytes(data))


def test_a_wrong_key_a_wrong_number_and_a_missing_snapshot():
    data = make_file(THREE)
    with pytest.raises(IndexKeyWrong):
        read(data, b"x" * 32)
    with pytest.raises(IndexDamaged):
        list(decode_edits(data, 4, KEY))
    with pytest.raises(IndexDamaged):
        read(data[:SECTOR_BYTES].ljust(4096, b"\0"))
    with pytest.raises(IndexDamaged):
        read(b"")


def test_records_swapped_or_moved_are_found():
    data = make_file(THREE)
    (a, size), (b, other), _ = records(data, 3)
    assert size == other
    swapped = data[:a] + data[b : b + size] + data[a : a + size] + data[b + size :]
    with pytest.raises(IndexDamaged):
        read(swapped)


def test_current_names_a_manifest_and_every_flip_is_found():
    data = encode_current(77)
    assert decode_current(data) == 77 == reader.read_current(data)
    for at in range(56):
        with pytest.raises(IndexDamaged):
            decode_current(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    for cut in (0, 10, 511):
        with pytest.raises(IndexDamaged):
            decode_current(data[:cut])


def test_contradicting_edits_are_refused():
    info = TableInfo(1, 0, 0, 0, 0, 0, 0, b"a", b"b")
    state = State()
    state.apply(Edit(added=[(0, info)]))
    for edit in (Edit(removed=[2]), Edit(moved=[(2, 1)]), Edit(added=[(1, info)])):
        with pytest.raises(ValueError):
            state.apply(edit)
