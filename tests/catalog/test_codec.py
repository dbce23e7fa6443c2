"""Codecs: what goes in comes out, what nobody wrote is refused, and the bytes do not change."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o3storage import catalog as c
from o3storage.catalog import _codec, _rows, _versions, _wire
from o3storage.runtime.state_machine import Outcome
from tests.catalog.executor import Rows
from tests.catalog.making import ETAG, NOW, World, body

names = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1,
                max_size=20)  # fmt: skip
texts = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=20)
maps = st.dictionaries(texts, texts, max_size=4)
tag_lists = st.lists(st.tuples(texts, texts), max_size=5)
keys = st.binary(min_size=1, max_size=40)
times = st.integers(0, 1 << 62)
ids = st.integers(1, (1 << 63) - 1)
epochs = st.integers(0, (1 << 63) - 1)
versions = st.one_of(st.none(), st.just(c.NULL), ids)
etags = st.binary(min_size=16, max_size=16).map(bytes.hex)
full_etags = st.one_of(
    etags, st.tuples(etags, st.integers(1, 10_000)).map(lambda both: f"{both[0]}-{both[1]}")
)
digests = st.binary(min_size=32, max_size=32)
bodies = st.binary(min_size=60, max_size=60)
kinds = st.sampled_from(["FULL_OBJECT", "COMPOSITE"])
checksums = st.one_of(
    st.none(),
    *(
        st.builds(c.Checksum, st.just(name), kinds, st.binary(min_size=size, max_size=size))
        for name, size in zip(_codec.ALGORITHMS[1:], _codec.CHECKSUM_SIZES[1:], strict=True)
    ),
)
conditions = st.one_of(
    st.none(),
    st.builds(
        c.WriteCondition,
        st.one_of(st.none(), st.just("*"), full_etags),
        st.one_of(st.none(), st.just("*"), full_etags),
        st.one_of(st.none(), times),
        st.one_of(st.none(), times),
    ).filter(lambda made: made != c.WriteCondition()),
)
upload_ids = st.binary(min_size=16, max_size=16)
sizes = st.integers(0, 50 * 1000**4)


def completion(fields: tuple[Any, ...], parts: set[int], size: int) -> c.CompleteUpload:
    chosen = c.ChosenParts()
    for number in sorted(parts):
        chosen.add(number, size)
    return c.CompleteUpload(*fields[:6], chosen.count, chosen.bitmap(), chosen.index(), *fields[6:])


commands = st.one_of(
    st.builds(c.CreateBucket, names, texts, times, texts),
    st.builds(c.BeginDeleteBucket, names, st.just(0) | ids),
    st.builds(c.RevertDeleteBucket, names, ids, epochs),
    st.builds(c.FinishDeleteBucket, names, ids, epochs),
    st.builds(c.ForgetBucket, ids),
    st.builds(c.SetBucketVersioning, names, st.sampled_from(["Enabled", "Suspended"]),
              st.just(0) | ids),
    st.builds(c.SetBucketSetting, names, names, st.one_of(st.none(), st.binary(max_size=50)),
              st.just(0) | ids),
    st.builds(c.PutAccessKey, names, st.binary(max_size=50), texts, times,
              st.sampled_from(["Active", "Inactive"])),
    st.builds(c.RemoveAccessKey, names),
    st.builds(c.SetClusterSetting, names, st.one_of(st.none(), st.binary(max_size=50))),
    st.builds(c.SyncBucket, ids, epochs, st.sampled_from(["", "Enabled", "Suspended"]),
              st.sampled_from(["active", "fenced", "dead"]), times),
    st.builds(c.PutObject, ids, epochs, keys, times, texts, sizes, full_etags, digests, bodies,
              times, checksums, maps, maps, tag_lists, conditions),
    st.builds(c.DeleteObject, ids, epochs, keys, times, texts, versions, conditions),
    st.builds(c.DeleteObjects, ids, epochs, times, texts,
              st.lists(st.builds(c.DeleteItem, keys, versions, conditions), min_size=1,
                       max_size=5, unique_by=lambda item: item.key)),
    st.builds(c.SetTags, ids, epochs, keys, versions, tag_lists),
    st.builds(c.CreateUpload, ids, epochs, keys, upload_ids, times, texts, maps, maps, tag_lists,
              st.sampled_from(_codec.ALGORITHMS), st.sampled_from(_codec.CHECKSUM_TYPES)),
    st.builds(c.PutPart, ids, epochs, keys, upload_ids, st.integers(1, 10_000), times, sizes,
              etags, digests, bodies, times, checksums),
    st.builds(completion,
              st.tuples(ids, epochs, keys, upload_ids, times, epochs, sizes, full_etags, digests,
                        checksums, conditions),
              st.sets(st.integers(1, 10_000), min_size=1, max_size=300), st.integers(0, 9)),
    st.builds(c.AbortUpload, ids, epochs, keys, upload_ids, times),
    st.builds(c.AbandonStream, ids, keys, upload_ids, times),
    st.builds(c.Collect, ids, keys, st.sampled_from(_rows.CHORES), upload_ids, times),
    st.builds(c.PurgeBucket, ids, times),
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(commands)
def test_commands_round_trip(command: c.Command) -> None:
    data = _wire.encode(command)
    assert _wire.decode(data) == command
    assert _wire.encode(_wire.decode(data)) == data


def test_a_bucket_id_that_is_left_out_is_not_written() -> None:
    """So there is one form of each command."""
    for make in (
        lambda *bucket_id: c.BeginDeleteBucket("b", *bucket_id),
        lambda *bucket_id: c.SetBucketVersioning("b", "Enabled", *bucket_id),
        lambda *bucket_id: c.SetBucketSetting("b", "cors", None, *bucket_id),
    ):
        without = _wire.encode(make())
        assert _wire.encode(make(7)) == without + (7).to_bytes(8, "big")
        for tail in (bytes(8), bytes(7), (7).to_bytes(8, "big") + b"x"):
            with pytest.raises(ValueError, match=r".+"):
                _wire.decode(without + tail)


def test_every_command_has_a_code_and_all_its_fields_in_order() -> None:
    kinds = set(c.Command.__args__)
    assert kinds == set(_wire._LAYOUTS) | {c.PutObject, c.PutPart}
    for kind, layout in _wire._LAYOUTS.items():
        assert [f.name for f in dataclasses.fields(kind)] == [name for name, _ in layout.fields]


def run(world: World, data: bytes) -> None:
    """Apply bytes; only ValueError, or an outcome, may come of it."""
    rows = Rows()
    rows.values = dict(world.node.rows.values)
    rows.keys = list(world.node.rows.keys)
    try:
        outcome = rows.run(world.node.catalog.apply(data))
    except ValueError:
        return
    assert isinstance(outcome, Outcome)


@settings(max_examples=300, deadline=None)
@given(commands, st.data())
def test_mutated_commands_give_valueerror_or_an_outcome(command: c.Command, data: Any) -> None:
    world = World()
    encoded = bytearray(_wire.encode(command))
    for _ in range(data.draw(st.integers(1, 3))):
        kind = data.draw(st.integers(0, 2))
        at = data.draw(st.integers(0, max(0, len(encoded) - 1)))
        if kind == 0 and encoded:
            encoded[at] = data.draw(st.integers(0, 255))
        elif kind == 1:
            del encoded[at:]
        else:
            encoded[at:at] = data.draw(st.binary(max_size=4))
    mutated = bytes(encoded)
    try:
        decoded = _wire.decode(mutated)
    except ValueError:
        pass
    else:
        assert _wire.decode(_wire.encode(decoded)) == decoded
    run(world, mutated)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.integers(1, 43))
def test_random_bytes_as_commands(data: bytes, code: int) -> None:
    for made in (data, bytes((code, 1)) + data):
        with contextlib.suppress(ValueError):
            _wire.decode(made)
        run(World(), made)


DECODERS = [
    lambda value: _versions.unpack_version(b"k", value),
    lambda value: _rows.unpack_part(1, value),
    lambda value: _rows.unpack_upload(b"k", bytes(16), value),
    _rows.unpack_state,
    _rows.unpack_copy,
    lambda value: _rows.unpack_bucket("b", value),
    _rows.unpack_chore,
    _rows.unpack_abandoned,
]


def sample_rows() -> list[bytes]:
    world = World("Enabled")
    world.put(checksum=c.Checksum("SHA1", "FULL_OBJECT", bytes(20)), headers={"a": "b"},
              metadata={"c": "d"}, tags=[("e", "f")])  # fmt: skip
    world.delete()
    upload = world.upload(headers={"x": "y"})
    for number in (1, 2, 3):
        world.part(upload, number, number)
    world.submit(world.completion(upload, [(1, 10), (3, 10)]))
    world.upload(number=2, metadata={"x": "y"})
    world.submit(c.SetBucketSetting("bucket", "cors", b"doc"))
    world.submit(c.AbandonStream(1, b"k", bytes(16), NOW))
    return list(world.node.rows.values.values())


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_mutated_rows_give_valueerror_or_a_value(data: Any) -> None:
    value = bytearray(data.draw(st.sampled_from(SAMPLES)))
    for _ in range(data.draw(st.integers(0, 3))):
        if value:
            value[data.draw(st.integers(0, len(value) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del value[data.draw(st.integers(0, len(value))) :]
    for decode in DECODERS:
        with contextlib.suppress(ValueError):
            decode(bytes(value))


SAMPLES = sample_rows()


@pytest.mark.parametrize(
    "change",
    [
        {"key": b""},
        {"key": bytes(1025)},
        {"size_bytes": -1},
        {"size_bytes": 1 << 60},
        {"etag": "x" * 32},
        {"etag": ETAG.upper()},
        {"etag": f"{ETAG}-0"},
        {"etag": f"{ETAG}-٣"},
        {"etag": ETAG[:-1]},
        {"blake3": bytes(31)},
        {"body": bytes(59)},
        {"owner": "x" * 256},
        {"proposed_ns": -1},
        {"proposed_ns": (1 << 62) + 1},
        {"bucket_id": 0},
        {"checksum": c.Checksum("CRC32", "FULL_OBJECT", bytes(5))},
        {"checksum": c.Checksum("MD5", "FULL_OBJECT", bytes(16))},
        {"checksum": c.Checksum("CRC32", "", bytes(4))},
        {"headers": {"a": "b\0"}},
        {"headers": {"a": "b" * 20_000}},
        {"metadata": {"a": "b" * 20_000}},
        {"tags": [("a", "b")] * 51},
    ],
)
def test_fields_beyond_the_limits_are_refused(change: dict[str, Any]) -> None:
    made = {
        "bucket_id": 1, "epoch": 1, "key": b"k", "proposed_ns": NOW, "owner": "o",
        "size_bytes": 1, "etag": ETAG, "blake3": bytes(32), "body": body(1), "started_ns": NOW,
    }  # fmt: skip
    _wire.encode(c.PutObject(**made))
    with pytest.raises(ValueError):
        _wire.encode(c.PutObject(**{**made, **change}))


@pytest.mark.parametrize(
    "change",
    [
        {"part_count": 0},
        {"part_count": 3},
        {"part_bitmap": b""},
        {"part_bitmap": b"\x07"},
        {"part_index": bytes(10)},
        {"part_bitmap": bytes(1250) + b"\x06"},
    ],
)
def test_part_tables_that_do_not_fit_are_refused(change: dict[str, Any]) -> None:
    made = {
        "bucket_id": 1, "epoch": 1, "key": b"k", "upload_id": bytes(16), "proposed_ns": NOW,
        "changes": 2, "part_count": 2, "part_bitmap": b"\x06", "part_index": b"",
        "size_bytes": 1, "etag": ETAG, "blake3": bytes(32),
    }  # fmt: skip
    _wire.encode(c.CompleteUpload(**made))
    with pytest.raises(ValueError):
        _wire.encode(c.CompleteUpload(**{**made, **change}))


def test_delete_objects_refuses_too_many_and_repeated_keys() -> None:
    items = [c.DeleteItem(b"%d" % n) for n in range(101)]
    _wire.encode(c.DeleteObjects(1, 1, NOW, "o", items[:100]))
    for bad in (items, items[:1] * 2, []):
        with pytest.raises(ValueError):
            _wire.encode(c.DeleteObjects(1, 1, NOW, "o", bad))


# --- golden bytes: the format of rows and commands is kept

PUT = c.PutObject(
    7, 3, b"a/b", 1_700_000_000_123_456_789, "owner", 5, ETAG, bytes(range(32)),
    bytes(range(60)), 1_700_000_000_000_000_000, c.Checksum("CRC32C", "FULL_OBJECT", b"\1\2\3\4"),
    {"content-type": "text/plain"}, {"m": "é"}, [("t", "1")], c.WriteCondition(if_none_match="*"),
)  # fmt: skip


def test_golden_put() -> None:
    version = (
        "0104" "0000000000000000" "17979cfe3d85cd15" "0000000000000005" "0000"
        + ETAG + bytes(range(32)).hex() + "1205" + bytes(range(60)).hex()
        + b"owner".hex() + "01020304" + "0017" "0004" "0003"
        + b"content-type\0text/plain".hex() + "m\0é".encode().hex() + b"t\x001".hex()
    )  # fmt: skip
    command = (
        "2101" "0000000000000007" "0000000000000003" "17979cfe3d85cd15" "17979cfe362a0000"
        "0003" "0003" + b"a/b".hex() + "02012a" + version
    )  # fmt: skip
    assert _wire.encode(PUT).hex() == command
    placed = _versions.place_version(bytes.fromhex(version), 0x0123456789ABCDEF, True)
    assert placed.hex() == "01050123456789abcdef" + version[20:]
    assert _versions.unpack_version(b"a/b", placed).order == 0x0123456789ABCDEF


def test_golden_rows() -> None:
    """Keys and values of a small store, as bytes. A change here is a change of format."""
    world = World()
    world.put(b"a\x00b", size_bytes=0, body=b"")
    upload = world.upload()
    world.part(upload, 2, 1)
    found = {key.hex(): value.hex() for key, value in world.node.rows.values.items()}
    at = "17979cfe362a0000"
    assert found == {
        "10" "0000000000000000" "01" "0000000000000000": "0000000000000001",
        "10" "0000000000000001" "01" "0000000000000000":
            "01" + at + "0000000000000001" "0000000000000001" + "0" * 32
            + "0000000000000001" "000000000000000a" + "0" * 32,
        "10" "0000000000000001" "02" "0000000000000001": "01" "0000000000000001" "0000",
        "11" + b"bucket".hex():
            "01" "0000" "0000000000000001" + at + "0000000000000001"
            + "05" + b"owner".hex() + "09" + b"us-east-1".hex() + "00",
        "12" + b"owner".hex() + "0000" + b"bucket".hex(): "",
        "20" "0000000000000001" "6100ff62" "0000" "ffffffffffffffff":
            "0101" + at + at + "0000000000000000" "0000" + ETAG + "00" * 32 + "0005"
            + b"owner".hex() + "000000000000",
        "22" "0000000000000001" "6b" "0000" + at + "0000000000000001":
            "0100" "0000000000000001" "0001" "000000000000000a" + at + "00" "00" "05"
            + b"owner".hex() + "000000000000",
        "23" "0000000000000001" "6b" "0000" + at + "0000000000000001" "0002":
            "0104" "000000000000000a" + at + f"{1:032x}" + "00" * 32 + "00"
            + body(1).hex(),
    }  # fmt: skip
