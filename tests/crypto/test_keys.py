"""Master key, node keys, epoch keys: forms, opening, refusals, crashes."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from o3storage import _native
from o3storage.crypto import (
    MASTER_KEY_FILE,
    NODE_KEYS_FILE,
    WRAPPED_BYTES,
    EpochKeyMissing,
    EpochKeys,
    MasterKey,
    MasterKeyMalformed,
    MasterKeyMissing,
    MasterKeyWrong,
    NodeKeys,
    NodeKeysDamaged,
    NodeKeysMissing,
    OpenedKeys,
    SealError,
    open_keys,
    rotate_master,
    unwrap_epoch_key,
    wrap_epoch_key,
)
from o3storage.runtime import OpenMode, SystemEntropy
from o3storage.simulation import SimDisk

T = TypeVar("T")
ENTROPY = SystemEntropy()


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def opened(disk: SimDisk, **options: Any) -> OpenedKeys:
    return run(open_keys(disk, entropy=ENTROPY, **{"has_data": False, **options}))


async def read(disk: SimDisk, name: str) -> bytes:
    file = await disk.open(name, OpenMode.READ)
    return await file.read(0, 10**6)


async def overwrite(disk: SimDisk, name: str, data: bytes) -> None:
    file = await disk.open(name, OpenMode.WRITE)
    await file.truncate(0)
    await file.write_sync(0, [data])


def contents(disk: SimDisk) -> dict[str, bytes]:
    async def all_files() -> dict[str, bytes]:
        return {name: await read(disk, name) for name in await disk.list_dir("")}

    return run(all_files())


# --- master key


def test_master_key_text() -> None:
    key = MasterKey(bytes(range(32)))
    text = key.text()
    assert MasterKey.parse(f"  {text}\n", source="x") == key
    assert MasterKey.parse(text.encode(), source="x") == key
    assert key != MasterKey(bytes(32))
    assert repr(key) == "MasterKey(...)"


@given(st.text(max_size=100) | st.binary(max_size=100))
def test_anything_else_is_no_master_key(text: str | bytes) -> None:
    with pytest.raises(MasterKeyMalformed, match=r"my\.file does not hold a master key"):
        MasterKey.parse(text, source="my.file")


def test_a_slip_in_copying_is_told() -> None:
    text = MasterKey(bytes(32)).text()
    for slip in (text[:-1], text + "0", text[:-1] + "g", text.replace("0", "1", 1)):
        with pytest.raises(MasterKeyMalformed):
            MasterKey.parse(slip, source="x")


def test_master_key_from_environment(tmp_path: Path) -> None:
    key = MasterKey(bytes(range(32)))
    path = tmp_path / "key"
    path.write_text(key.text())
    assert MasterKey.from_environment({}) is None
    assert MasterKey.from_environment({"O3_MASTER_KEY": key.text()}) == key
    assert MasterKey.from_environment({"O3_MASTER_KEY_FILE": str(path)}) == key
    with pytest.raises(MasterKeyMalformed, match="O3_MASTER_KEY does not"):
        MasterKey.from_environment({"O3_MASTER_KEY": "no"})
    with pytest.raises(MasterKeyMalformed, match="cannot be read"):
        MasterKey.from_environment({"O3_MASTER_KEY_FILE": str(path / "no")})


# --- node keys


def test_wrapped_node_keys() -> None:
    keys, master = NodeKeys.generate(ENTROPY), MasterKey.generate(ENTROPY)
    data = keys.wrap(master, ENTROPY)
    assert len(data) == 8192
    assert NodeKeys.unwrap(data, master) == keys
    for secret in (keys.identity_seed, keys.exchange_secret, keys.disk_key):
        assert secret not in data
        assert secret.hex() not in repr(keys)
    assert keys.wrap(master, ENTROPY) != data, "every wrapping has a salt of its own"
    message = b"message"
    assert _native.ed25519_verify(keys.identity, message, keys.sign(message))


@given(st.integers(0, 8192 * 8 - 1))
def test_one_flipped_bit_never_loses_the_keys(bit: int) -> None:
    keys, master = NodeKeys.generate(ENTROPY), MasterKey.generate(ENTROPY)
    data = bytearray(keys.wrap(master, ENTROPY))
    data[bit // 8] ^= 1 << bit % 8
    assert NodeKeys.unwrap(bytes(data), master) == keys
    data[(bit // 8 + 4096) % 8192] ^= 0x55
    if bit // 8 % 4096 < 184:
        with pytest.raises(NodeKeysDamaged):
            NodeKeys.unwrap(bytes(data), master)


def test_first_start_makes_keys_and_later_starts_find_them() -> None:
    disk = SimDisk()
    first = opened(disk)
    assert first.created
    assert first.master_in_data_dir
    assert set(contents(disk)) == {MASTER_KEY_FILE, NODE_KEYS_FILE}
    again = opened(disk, has_data=True)
    assert (again.node, again.master, again.created) == (first.node, first.master, False)
    assert not again.repaired


def test_a_master_key_from_outside_is_not_stored() -> None:
    disk, master = SimDisk(), MasterKey.generate(ENTROPY)
    first = opened(disk, master=master)
    assert not first.master_in_data_dir
    assert set(contents(disk)) == {NODE_KEYS_FILE}
    assert opened(disk, master=master, has_data=True).node == first.node


def refused(disk: SimDisk, error: type[Exception], **options: Any) -> str:
    before = contents(disk)
    with pytest.raises(error) as caught:
        opened(disk, **options)
    assert contents(disk) == before, "a refusal changes nothing"
    return str(caught.value)


def test_refusals_change_nothing() -> None:
    disk = SimDisk()
    assert "backup" in refused(disk, NodeKeysMissing, has_data=True)
    first = opened(disk)
    other = MasterKey.generate(ENTROPY)
    assert MASTER_KEY_FILE in refused(disk, MasterKeyWrong, master=other)
    run(disk.rename(MASTER_KEY_FILE, "elsewhere"))
    assert "O3_MASTER_KEY" in refused(disk, MasterKeyMissing)
    assert "O3_MASTER_KEY" in refused(disk, MasterKeyMissing, has_data=True)
    assert opened(disk, master=first.master, has_data=True).node == first.node
    run(disk.rename("elsewhere", MASTER_KEY_FILE))
    run(overwrite(disk, MASTER_KEY_FILE, other.text().encode()))
    refused(disk, MasterKeyWrong, has_data=True)
    run(overwrite(disk, MASTER_KEY_FILE, b"torn"))
    refused(disk, MasterKeyMalformed, has_data=True)
    run(overwrite(disk, MASTER_KEY_FILE, first.master.text().encode()))
    run(overwrite(disk, NODE_KEYS_FILE, b"rubbish"))
    refused(disk, NodeKeysDamaged, has_data=True)
    run(disk.unlink(NODE_KEYS_FILE))
    refused(disk, NodeKeysMissing, has_data=True)


@pytest.mark.parametrize("offset", [60, 4096 + 60])
def test_a_damaged_copy_is_written_anew(offset: int) -> None:
    disk = SimDisk()
    first = opened(disk)
    disk.rot(NODE_KEYS_FILE, offset)
    assert opened(disk, has_data=True).repaired
    again = opened(disk, has_data=True)
    assert not again.repaired
    assert again.node == first.node


def test_every_crash_of_the_first_start() -> None:
    disk = SimDisk()
    recorder = disk.record()
    first = opened(disk)
    recorder.mark("created")
    states = 0
    for state in recorder.crash_states():
        found = opened(SimDisk(image=state.image), has_data=False)
        if state.marks:
            assert found.node == first.node, state.label
        states += 1
    assert states > 10


def test_every_crash_of_a_change_of_the_master_key() -> None:
    disk = SimDisk()
    first = opened(disk)
    recorder = disk.record()
    new = MasterKey.generate(ENTROPY)
    assert run(rotate_master(disk, first, new, entropy=ENTROPY)).master == new
    recorder.mark("rotated")
    seen = set()
    for state in recorder.crash_states():
        restarted = SimDisk(image=state.image)
        found = opened(restarted, has_data=True)
        assert found.node == first.node, state.label
        if state.marks:
            assert found.master == new
        seen.add(found.master.text())
        assert set(contents(restarted)) == {MASTER_KEY_FILE, NODE_KEYS_FILE}
        assert opened(restarted, has_data=True).master == found.master
    assert seen == {first.master.text(), new.text()}


# --- epochs


def test_epoch_key_round_trip() -> None:
    node, kek = NodeKeys.generate(ENTROPY), EpochKeys.generate(ENTROPY)
    wrapped = wrap_epoch_key(kek, 5, node.exchange, ENTROPY)
    assert len(wrapped) == WRAPPED_BYTES == 81
    assert kek not in wrapped
    assert unwrap_epoch_key(wrapped, 5, node.exchange_secret) == kek
    assert wrap_epoch_key(kek, 5, node.exchange, ENTROPY) != wrapped


@given(st.integers(0, WRAPPED_BYTES * 8 - 1))
def test_an_altered_wrapped_key_is_refused(bit: int) -> None:
    secret = bytes(range(32))
    wrapped = bytearray(wrap_epoch_key(bytes(32), 5, _native.x25519_public(secret), ENTROPY))
    wrapped[bit // 8] ^= 1 << bit % 8
    with pytest.raises(SealError):
        unwrap_epoch_key(bytes(wrapped), 5, secret)


def test_a_wrapped_key_is_for_one_member_and_epoch() -> None:
    node, other = NodeKeys.generate(ENTROPY), NodeKeys.generate(ENTROPY)
    wrapped = wrap_epoch_key(bytes(32), 5, node.exchange, ENTROPY)
    for epoch, secret in ((6, node.exchange_secret), (5, other.exchange_secret)):
        with pytest.raises(SealError):
            unwrap_epoch_key(wrapped, epoch, secret)
    for bad in (b"", wrapped[:-1], b"\x02" + wrapped[1:], b"\x01" + bytes(80)):
        with pytest.raises(SealError):
            unwrap_epoch_key(bad, 5, node.exchange_secret)
    with pytest.raises(ValueError, match="low order"):
        wrap_epoch_key(bytes(32), 5, bytes(32), ENTROPY)


def test_epoch_keys_held() -> None:
    keys, node = EpochKeys(), NodeKeys.generate(ENTROPY)
    with pytest.raises(EpochKeyMissing):
        _ = keys.newest
    keys.add(1, b"a" * 32)
    keys.unwrap(3, wrap_epoch_key(b"c" * 32, 3, node.exchange, ENTROPY), node.exchange_secret)
    keys.add(3, b"c" * 32)
    assert (keys.newest, keys.key(1), keys.key(3), len(keys)) == (3, b"a" * 32, b"c" * 32, 2)
    assert 1 in keys
    assert 2 not in keys
    with pytest.raises(EpochKeyMissing, match="epoch 2"):
        keys.key(2)
    with pytest.raises(ValueError, match="another key"):
        keys.add(1, b"b" * 32)
    for epoch, kek in ((0, bytes(32)), (2**32, bytes(32)), (4, bytes(31))):
        with pytest.raises(ValueError, match="epoch"):
            keys.add(epoch, kek)
    assert repr(keys) == "EpochKeys(epochs=[1, 3])"
