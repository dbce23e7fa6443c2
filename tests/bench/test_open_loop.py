"""The load generator: what it counts as a good answer and as a wrong one, and its percentiles."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from bench._open_loop import (
    BODY_BYTES,
    BUCKET_BITS,
    CONNECTIONS,
    GeneratorError,
    Latencies,
    Report,
    Workload,
    build,
    parse_report,
)
from hypothesis import given
from hypothesis import strategies as st

from o3storage.cli._bench import percentile
from o3storage.cli._client import Credentials
from tests.support.running_store import RunningStore

MIX = ("put", "get", "head", "get", "list")
KEY = Credentials("AKIDTEST", "secret")


def bucket_of(value: int) -> int:
    """As the C source says it."""
    shift = max(0, value.bit_length() - BUCKET_BITS - 1)
    return (shift << BUCKET_BITS) + (value >> shift)


def of(values: list[int]) -> Latencies:
    counts: dict[int, int] = {}
    for value in values:
        counts[bucket_of(value)] = counts.get(bucket_of(value), 0) + 1
    return Latencies(max(values, default=0), counts.items())


values_ns = st.lists(st.integers(0, 2**40 - 1), min_size=1, max_size=60)


@given(values_ns, values_ns, st.sampled_from([0.0, 0.5, 0.99, 0.999]))
def test_percentiles_are_those_of_a_sorted_list(
    first: list[int], second: list[int], fraction: float
) -> None:
    both = of(first)
    both.add(of(second))
    expected_ms = percentile(sorted(v / 1e6 for v in first + second), fraction)
    assert len(both) == len(first) + len(second)
    assert both.max_ns == max(first + second)
    assert both.ms(fraction) == pytest.approx(expected_ms, rel=2**-BUCKET_BITS)


LINE = (
    b'{"at_s": 1.5, "cpu_s": 0.25, "crowded": 2, "ended": false, '
    b'"late": {"max_ns": 7, "counts": [[7, 3]]}, '
    b'"operations": {"get": {"max_ns": 9, "counts": [[9, 2]]}}, "errors": {"get: HTTP 503": 1}}'
)


def test_periods_add_up() -> None:
    whole = Report()
    whole.add(parse_report(LINE)[0])
    later, ended = parse_report(LINE.replace(b"1.5", b"3.0").replace(b"false", b"true"))
    whole.add(later)
    assert ended
    assert (whole.at_s, whole.cpu_s, whole.crowded, whole.requests()) == (3.0, 0.25, 4, 4)
    assert (len(whole.late), whole.errors) == (6, {"get: HTTP 503": 2})


@pytest.mark.parametrize(
    "line", [b"", b"[]", b"{}", b"no\n", LINE[:-9], LINE.replace(b"[9, 2]", b"[9]")]
)
def test_what_is_no_report_is_refused(line: bytes) -> None:
    with pytest.raises(GeneratorError, match="not a report"):
        parse_report(line)


def test_without_a_compiler_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(GeneratorError, match="install gcc or clang"):
        build(tmp_path)


def need_compiler() -> None:
    if shutil.which("cc") is None:
        pytest.skip("NO C COMPILER: the load generator was not tested")


@pytest.mark.slow
def test_a_store_answers_a_closed_and_an_open_loop(tmp_path: Path) -> None:
    need_compiler()

    async def run(store: RunningStore) -> None:
        key = Credentials(store.key_id, store.secret)
        load = Workload(tmp_path, store.url, key, region=store.region, objects=200)
        await load.prepare()
        closed = await load.run(MIX, 60.0, requests=500)
        assert not closed.errors
        assert {name: len(found) for name, found in closed.took.items()} == {
            "put": 100, "get": 200, "head": 100, "list": 100,
        }  # fmt: skip
        periods: list[Report] = []
        opened = await load.run(MIX, 1.0, rate=300, period_s=0.25, on_period=periods.append)
        assert not opened.errors
        assert opened.requests() == len(opened.late) == 300
        assert periods
        assert sum(period.requests() for period in periods) <= 300
        # One request alone: its bucket and its exact time agree, so both sides count alike.
        alone = await load.run(("get",), 60.0, requests=1)
        took_ns = alone.took["get"].max_ns
        bucket = Latencies(2**50)  # (its own maximum would bound it)
        bucket.add(alone.took["get"])
        assert bucket.ms(0.5) == pytest.approx(took_ns / 1e6, rel=2**-BUCKET_BITS)
        assert took_ns > 10_000

    with RunningStore(tmp_path / "data") as store:
        asyncio.run(run(store))


Answer = Callable[[bytes, int], list[bytes]]
"""(the body that is expected, how many requests came before) -> pieces of an answer."""


def whole(body: bytes, _: int) -> list[bytes]:
    return [b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body), body]


def in_chunks(body: bytes, _: int) -> list[bytes]:
    """Cut at every place that matters: in the head, in a chunk's line, in a line ending."""
    text = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    text += b"5;x=y\r\n" + body[:5] + b"\r\n%X\r\n" % (len(body) - 5) + body[5:]
    text += b"\r\n0\r\nTrailer: 1\r\n\r\n"
    return [text[:3], text[3:27], text[27:74], text[74:76], text[76:90], text[90:-3], text[-3:]]


def wrong_byte(body: bytes, _: int) -> list[bytes]:
    return whole(body[:-1] + bytes([body[-1] ^ 1]), 0)


def of_another_object(body: bytes, _: int) -> list[bytes]:
    return whole(bytes([body[0] ^ 1]) + body[1:], 0)


def too_short(body: bytes, _: int) -> list[bytes]:
    return whole(body[:-1], 0)


def too_long(body: bytes, _: int) -> list[bytes]:
    return whole(body + b"x", 0)


def refused(_: bytes, number: int) -> list[bytes]:
    return [b"HTTP/1.1 503 Slow Down\r\nContent-Length: 2\r\n\r\nno"] if number % 2 else whole(_, 0)


def more_than_it_said(body: bytes, _: int) -> list[bytes]:
    return [b"".join(whole(body, 0)) + b"x"]


def without_a_length(body: bytes, _: int) -> list[bytes]:
    return [b"HTTP/1.1 200 OK\r\n\r\n", body]


def endless_head(body: bytes, _: int) -> list[bytes]:
    return [b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 4000]


CASES: list[tuple[Answer, int, dict[str, int] | None]] = [
    (whole, 0, {}),
    (in_chunks, 0, {}),
    (wrong_byte, 0, {"get: wrong body": 100}),
    (of_another_object, 0, {"get: wrong body": 100}),
    (too_short, 0, {"get: wrong body": 100}),
    (too_long, 0, {"get: wrong body": 100}),
    (refused, 0, {"get: HTTP 503": 50}),
    (more_than_it_said, 64, None),
    (without_a_length, 64, None),
    (endless_head, 64, None),
]
"""The answer, how many connections are lost by it, and what is counted otherwise."""


@pytest.mark.slow
@pytest.mark.parametrize("answer, lost, errors", CASES, ids=[case[0].__name__ for case in CASES])
def test_wrong_answers_are_counted(
    answer: Answer,
    lost: int,
    errors: dict[str, int] | None,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A server that takes PUTs and keeps them, and answers a GET as told after the first of each
    connection."""
    need_compiler()
    objects: dict[bytes, bytes] = {}
    asked = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        first = True
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                method, path, _ = head.split(b" ", 2)
                if method == b"PUT":
                    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                    objects[path] = await reader.readexactly(length)
                    pieces = whole(b"", 0)
                elif first:
                    pieces = whole(objects[path], 0)
                else:
                    pieces = answer(objects[path], asked)
                    asked += 1
                first = False
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        load = Workload(tmp_path, f"http://127.0.0.1:{port}", KEY, objects=20)
        await load.prepare()
        assert len(objects) == 21  # with the bucket
        assert len({body[8:] for body in objects.values() if len(body) == BODY_BYTES}) == 1
        if lost:
            with pytest.raises(GeneratorError, match="ended with 2"):
                await load.run(("get",), 60.0, requests=100)
            assert "every connection was lost" in capfd.readouterr().err
        else:
            found = await load.run(("get",), 60.0, requests=100)
            assert found.errors == errors
            assert found.requests() == 100
        server.close()

    asyncio.run(run())


@pytest.mark.slow
def test_requests_of_a_lost_connection_are_counted(tmp_path: Path) -> None:
    """Every second connection of the run ends with its second request; the others go on."""
    need_compiler()
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        mine = connections
        puts = 0
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                if b"content-length: 4096" in head.lower():
                    await reader.readexactly(BODY_BYTES)
                    puts += 1
                if mine > 1 + CONNECTIONS and mine % 2 and puts == 2:
                    break
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        load = Workload(tmp_path, f"http://127.0.0.1:{port}", KEY, objects=20)
        await load.prepare()
        found = await load.run(("put",), 60.0, requests=1000)
        assert found.errors == {"put: connection lost": CONNECTIONS // 2}
        assert found.requests() == 1000 - CONNECTIONS // 2
        server.close()

    asyncio.run(run())
