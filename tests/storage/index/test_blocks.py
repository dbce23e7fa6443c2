"""Runs, blocks, filters and merges of the native module against plain Python."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o3storage import _native
from tests.storage.index import reader

KEYS = st.binary(min_size=1, max_size=12) | st.sampled_from(
    [b"a", b"ab", b"abc", b"abc\0", b"abd", b"\xff", b"\xff\xff", b"\0", b"\0\0"]
)
VALUES = st.none() | st.binary(max_size=20)
ROWS = st.lists(st.tuples(KEYS, VALUES), min_size=1, max_size=60)


def make_run(rows, sequence: int = 5, prefix: int = 3) -> _native.Run:
    return _native.index_run(rows, [min(prefix, len(k)) for k, _ in rows], sequence)


@given(st.binary(max_size=200))
def test_xxh64_is_the_models(data):
    assert _native.xxh64(data) == reader.xxh64(data)


def test_xxh64_known_answers():
    assert _native.xxh64(b"") == 0xEF46DB3751D8E999
    assert _native.xxh64(b"a") == 0xD24EC4F1A98C6E5B
    assert _native.xxh64(b"abc") == 0x44BC2CF5AD770999


@given(ROWS)
def test_a_run_holds_the_last_value_of_each_key_in_order(rows):
    run = make_run(rows)
    model = dict(rows)
    expected = [(k, min(3, len(k)), 5, model[k]) for k in sorted(model)]
    assert reader.rows_of(run.block()) == expected
    assert _native.index_block_rows(run.block()) == expected
    assert run.rows == len(model)


@given(ROWS, st.lists(KEYS, max_size=20))
def test_get_finds_exactly_what_is_there(rows, others):
    run = make_run(rows)
    model = dict(rows)
    for key in [*model, *others]:
        expected = None
        if key in model:
            expected = False if model[key] is None else model[key]
        assert _native.index_get((run,), key, min(3, len(key))) == expected
        assert _native.index_block_get(run.block(), key) == expected
        assert _native.index_get((run,), key, min(3, len(key)), 5) is None
        assert _native.index_block_get(run.block(), key, 4) == expected


@given(st.lists(ROWS, min_size=1, max_size=6), st.lists(KEYS, max_size=10))
def test_merged_runs_and_gets_over_runs_show_the_newest(batches, others):
    model: dict[bytes, tuple[int, bytes | None]] = {}
    runs = []
    for sequence, rows in enumerate(batches, 1):
        runs.insert(0, make_run(rows, sequence))
        model.update({k: (sequence, v) for k, v in rows})
    merged = _native.index_merge_runs(runs).run()
    assert reader.rows_of(merged.block()) == [(k, min(3, len(k)), *model[k]) for k in sorted(model)]
    for key in [*model, *others]:
        value = model.get(key, (0, b"absent"))[1]
        expected = None if key not in model else False if value is None else value
        prefix = min(3, len(key))
        assert _native.index_get(tuple(runs), key, prefix) == expected
        assert _native.index_get((merged,), key, prefix) == expected


SPANS = st.tuples(KEYS, st.none() | KEYS)


@given(
    st.lists(ROWS, min_size=1, max_size=5),
    SPANS,
    st.integers(1, 30),
    st.lists(st.tuples(KEYS, st.none() | KEYS, st.integers(0, 6)), max_size=2),
    st.integers(1, 100),
)
def test_scan_against_a_sorted_dict(batches, span, limit, drops, budget):
    low, high = span
    newest: dict[bytes, tuple[int, bytes | None]] = {}
    sources = []
    for sequence, rows in enumerate(batches, 1):
        run = make_run(rows, sequence)
        sources.insert(0, [run] if sequence % 2 else [run.block()])
        newest.update({k: (sequence, v) for k, v in rows})
    expected = [
        (key, value)
        for key, (sequence, value) in sorted(newest.items())
        if value is not None
        and key >= low
        and (high is None or key < high)
        and not any(
            d[0] <= key and (d[1] is None or key < d[1]) and sequence <= d[2] for d in drops
        )
    ]
    got, at, steps = [], low, 0
    while at is not None and len(got) < limit:
        rows, resume = _native.index_scan(sources, at, high, limit - len(got), drops, budget)
        assert resume is None or resume > at or rows or budget
        got += rows
        at = resume
        steps += 1
        assert steps < 500
    assert got == expected[:limit]
    if at is None:
        assert got == expected


@given(ROWS)
def test_a_filtered_scan_passes_over_runs_that_cannot_hold_the_prefix(rows):
    run = make_run(rows, prefix=2)
    for key, _ in rows:
        prefix = key[:2]
        high = prefix + b"\xff" * 20
        plain = _native.index_scan([[run]], prefix, high, 5, [], 1000)
        assert _native.index_scan([[run]], prefix, high, 5, [], 1000, True) == plain


@given(st.lists(ROWS, min_size=1, max_size=4), KEYS)
def test_candidates_and_first(batches, key):
    runs = tuple(make_run(rows, n, prefix=2) for n, rows in enumerate(batches, 1))
    prefix = key[:2]
    candidates = _native.index_candidates(runs, prefix)
    for n, rows in enumerate(batches):
        model = dict(rows)
        starting = [k for k in sorted(model) if k.startswith(prefix)]
        if any(k[: min(2, len(k))] == prefix for k in model):
            assert runs[n] in candidates
        expected = None
        if starting and model[starting[0]] is not None:
            expected = (starting[0], model[starting[0]])
        for source in (runs[n], runs[n].block()):
            assert _native.index_first(source, prefix) == expected
            assert _native.index_first(source, prefix, n + 1) is None


@given(ROWS)
def test_filters_hold_what_was_put_in(rows):
    table = build_table([make_run(rows)])
    for key in dict(rows):
        assert reader.may_hold(table.filter, key[:3])


def test_filters_exclude_nearly_all_else():
    rng = random.Random(1)
    rows = [(rng.randbytes(16), b"") for _ in range(20_000)]
    run = _native.index_run(rows, [16] * len(rows), 1)
    table = build_table([run])
    absent = [rng.randbytes(16) for _ in range(2_000)]
    false = sum(reader.may_hold(table.filter, key) for key in absent)
    assert false < 2_000 * 0.03


KEY = _native.ChaChaKey(_native.hkdf_sha256(bytes(32), b"s" * 32, b"o3storage/1 file", 32))


def header() -> bytes:
    head = b"O3TABLE\0\1\0" + bytes(6) + (7).to_bytes(8, "little") + b"s" * 32 + bytes(40)
    return head + _native.blake3(head)


def build(runs, *, drop_deleted=False, drops=(), table_bytes=1 << 20, block_bytes=200):
    """All tables that a merge of runs (newest first) makes, as files."""
    merger = _native.TableMerger(
        len(runs),
        drop_deleted=drop_deleted,
        drops=list(drops),
        block_bytes=block_bytes,
        table_bytes=table_bytes,
        filter_bits=10,
    )
    for number, run in enumerate(runs):
        merger.add_run(number, run)
    tables, out = [], b""
    for _ in range(10_000):
        if merger.needs_table:
            merger.next_table(KEY, header())
        step = merger.step([]).run()
        out += step["out"]
        assert step["bad"] is None and step["needs"] == []
        if step["table"] is not None:
            assert step["table"][6] == len(out)
            tables.append(out)
            out = b""
        if step["done"]:
            assert not out
            return tables
    raise AssertionError("the merge does not end")


def build_table(runs) -> reader.TableFile:
    (data,) = build(runs)
    return reader.read_table(data, bytes(32))


@given(
    st.lists(ROWS, min_size=1, max_size=5),
    st.booleans(),
    st.lists(st.tuples(KEYS, st.none() | KEYS, st.integers(0, 6)), max_size=2),
    st.sampled_from([1, 300, 1000]),
    st.sampled_from([1, 60, 200]),
)
def test_tables_hold_the_newest_rows(batches, drop_deleted, drops, table_bytes, block_bytes):
    runs, newest = [], {}
    for sequence, rows in enumerate(batches, 1):
        runs.insert(0, make_run(rows, sequence))
        newest.update({k: (sequence, v) for k, v in rows})
    files = build(
        runs,
        drop_deleted=drop_deleted,
        drops=drops,
        table_bytes=table_bytes,
        block_bytes=block_bytes,
    )
    tables = [reader.read_table(data, bytes(32)) for data in files]
    rows = [row for table in tables for row in table.rows]
    assert rows == [
        (key, min(3, len(key)), sequence, value)
        for key, (sequence, value) in sorted(newest.items())
        if not (drop_deleted and value is None)
        and not any(
            d[0] <= key and (d[1] is None or key < d[1]) and sequence <= d[2] for d in drops
        )
    ]


@given(st.lists(ROWS, min_size=1, max_size=3), st.lists(ROWS, min_size=1, max_size=3))
def test_merging_tables_record_by_record(old, new):
    """Sources fed in pieces as small as one record give what the rows say."""
    newest = {}
    sources = []
    for sequence, rows in enumerate([*old, *new], 1):
        (data,) = build([make_run(rows, sequence)], block_bytes=40)
        sources.insert(0, data)
        newest.update({k: (sequence, v) for k, v in rows})
    merger = _native.TableMerger(
        len(sources), drop_deleted=False, drops=[], block_bytes=100, table_bytes=400, filter_bits=10
    )
    chunks = []
    for data in sources:
        at, records = 128, []
        while data[at] == 1:
            size = _native.index_check(data[at:])
            records.append((at, data[at : at + size]))
            at += size
        chunks.append(records)
    out, tables = b"", []
    needs = list(range(len(sources)))
    while True:
        feeds = []
        for number in needs:
            if chunks[number]:
                at, record = chunks[number].pop(0)
                feeds.append((number, KEY, at, record, not chunks[number]))
            else:
                feeds.append((number, None, 0, None, True))
        if merger.needs_table:
            merger.next_table(KEY, header())
        step = merger.step(feeds, background=False).run()
        out += step["out"]
        if step["table"]:
            tables.append(out)
            out = b""
        if step["done"]:
            break
        needs = step["needs"]
    rows = [row for data in tables for row in reader.read_table(data, bytes(32)).rows]
    assert rows == [(k, min(3, len(k)), *newest[k]) for k in sorted(newest)]


@given(ROWS, st.lists(KEYS, max_size=20))
def test_table_index_finds_the_block(rows, others):
    (data,) = build([make_run(rows)], block_bytes=30)
    table = reader.read_table(data, bytes(32))
    footer = data[-64:]
    filter_at, index_at, end = (int.from_bytes(footer[n : n + 8], "little") for n in (0, 8, 16))
    index = _native.TableIndex(
        _native.index_open(KEY, 2, filter_at, data[filter_at:index_at]),
        _native.index_open(KEY, 3, index_at, data[index_at:end]),
    )
    assert index.blocks == len(table.blocks)
    for key in [*dict(rows), *others]:
        below = [n for n, low in enumerate(table.lows) if low <= key]
        expected = below[-1] if below else 0
        assert index.seek(key) == expected
        held = reader.may_hold(table.filter, key[:3])
        assert index.probe(key, min(3, len(key))) == (expected if held else -1)
    for number, low in enumerate(table.lows):
        assert index.lower(number) == low
        offset, size = index.locate(number)
        plain = _native.index_open(KEY, 1, offset, data[offset : offset + size])
        assert reader.rows_of(plain) == table.blocks[number]
    offset, size = index.locate(0, index.blocks)
    opened = _native.index_open_rows(KEY, offset, data[offset : offset + size])
    assert [reader.rows_of(block) for block in opened] == table.blocks
    with pytest.raises(IndexError):
        index.locate(index.blocks)
    with pytest.raises(IndexError):
        index.lower(index.blocks)


# --- damage


@given(ROWS, st.data())
def test_a_flipped_bit_in_a_table_is_found(rows, data):
    (content,) = build([make_run(rows)], block_bytes=60)
    at = data.draw(st.integers(0, len(content) - 1))
    bit = data.draw(st.integers(0, 7))
    bad = content[:at] + bytes([content[at] ^ (1 << bit)]) + content[at + 1 :]
    with pytest.raises((reader.Damaged, ValueError)):
        reader.read_table(bad, bytes(32))


def damaged(block: bytes, rng: random.Random) -> bytes:
    data = bytearray(block)
    for _ in range(rng.randrange(1, 4)):
        kind = rng.randrange(4)
        at = rng.randrange(len(data)) if data else 0
        if kind == 0 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and data:
            data[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF])
        elif kind == 2:
            del data[at : at + rng.randrange(1, 9)]
        else:
            data[at:at] = rng.randbytes(rng.randrange(1, 9))
    return bytes(data)


def exercise(block: bytes, key: bytes) -> None:
    """Whatever it is given, the native module answers or raises its own error."""
    for work in (
        lambda: _native.index_block_get(block, key),
        lambda: _native.index_block_rows(block),
        lambda: _native.index_first(block, key),
        lambda: _native.index_scan([[block]], key, None, 10, [], 100),
        lambda: _native.index_scan([[block], [block]], b"", key, 10, [], 100),
        lambda: _native.TableIndex(b"", block),
        lambda: _native.TableIndex(block, block).probe(key, 3),
        lambda: _native.index_check(block),
        lambda: _native.index_open(KEY, 1, 0, block),
        lambda: _native.index_open_rows(KEY, 0, block),
        lambda: _native.index_verify(KEY, 0, [len(block), 5], block).run(),
    ):
        try:
            work()
        except _native.BlockError:
            continue


@settings(max_examples=150, deadline=None)
@given(ROWS, st.integers(0, 1 << 40), KEYS)
def test_damaged_blocks_never_crash(rows, seed, key):
    rng = random.Random(seed)
    block = make_run(rows).block()
    for _ in range(10):
        exercise(damaged(block, rng), key)


@given(st.binary(max_size=100), KEYS)
def test_random_bytes_never_crash(data, key):
    exercise(data, key)


@settings(deadline=None)
@given(ROWS, st.integers(0, 1 << 40))
def test_a_merge_of_damaged_records_stops(rows, seed):
    rng = random.Random(seed)
    (content,) = build([make_run(rows)], block_bytes=1 << 16)
    size = _native.index_check(content[128:])
    record = damaged(content[128 : 128 + size], rng)
    merger = _native.TableMerger(
        1, drop_deleted=False, drops=[], block_bytes=100, table_bytes=400, filter_bits=10
    )
    merger.next_table(KEY, header())
    step = merger.step([(0, KEY, 128, record, True)]).run()
    # A merge checks the tag; the hash behind it is for those without the key.
    if len(record) != size or record[:-32] != content[128 : 128 + size - 32]:
        assert step["bad"] is not None and step["bad"][0] == 0 and step["bad"][1] >= 128
        assert not step["done"]
        with pytest.raises(RuntimeError):
            merger.step([]).run()


def test_arguments_are_checked():
    with pytest.raises(ValueError):
        _native.index_run([], [], 1)
    with pytest.raises(ValueError):
        _native.index_run([(b"a", None)], [2], 1)
    with pytest.raises(ValueError):
        _native.index_run([(b"a", None)], [], 1)
    with pytest.raises(TypeError):
        _native.index_run([("a", None)], [1], 1)
    with pytest.raises(ValueError):
        _native.index_merge_runs([])
    with pytest.raises(ValueError):
        _native.TableMerger(
            0, drop_deleted=False, drops=[], block_bytes=1, table_bytes=1, filter_bits=1
        )
    merger = _native.TableMerger(
        1, drop_deleted=False, drops=[], block_bytes=1, table_bytes=1, filter_bits=1
    )
    with pytest.raises(ValueError):
        merger.step([(1, KEY, 0, b"", True)])
    with pytest.raises(ValueError):
        merger.step([(0, None, 0, b"x", True)])
    with pytest.raises(ValueError):
        merger.add_run(1, make_run([(b"a", None)]))
