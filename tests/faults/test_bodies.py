"""Bodies that are not what their head says, and clients that go or stall: nothing is stored, what
they held is given back, and everybody else is served."""

from __future__ import annotations

import base64
import hashlib
import random
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.client import S3, Answer, receive
from tests.faults.shim import build_shim
from tests.support.running_store import RunningStore

pytestmark = pytest.mark.slow

OLD = b"the version before"
LARGE = random.Random(1).randbytes(3 * 256 * 1024 + 77)
SMALL = LARGE[:5000]
PATIENCE_S = 60.0


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that must come true."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with RunningStore(tmp_path_factory.mktemp("bodies") / "data") as store:
        client = S3(store)
        assert client.call("PUT", "/bucket").status == 200
        yield client
        # Whatever was done to it, it stops cleanly.
        assert store.stop() == 0


@pytest.fixture
def key(s3: S3, request: pytest.FixtureRequest) -> str:
    """A path of this test's own, with an object of one version."""
    path = "/bucket/" + hashlib.md5(request.node.name.encode()).hexdigest()
    assert s3.put(path, OLD).status == 200
    return path


def unchanged(s3: S3, path: str) -> None:
    assert s3.get(path).body == OLD
    assert s3.put(path, LARGE).status == 200
    assert s3.get(path).body == LARGE


def only_this_connection(s3: S3) -> bool:
    return s3.metric("o3_http_connections") == 1


@pytest.mark.parametrize("body", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("end", ["close", "reset"])
def test_a_client_that_goes_in_the_middle_of_its_body(
    s3: S3, key: str, body: bytes, end: str
) -> None:
    for sent in (0, 1, len(body) // 2, len(body) - 1):
        sock = s3.connect()
        sock.sendall(s3.head("PUT", key, {"content-length": str(len(body))}) + body[:sent])
        if end == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.close()
    until(lambda: only_this_connection(s3))
    unchanged(s3, key)


def test_a_body_that_ends_early_is_refused_by_name(s3: S3, key: str) -> None:
    """The client half-closes: it can still read why."""
    for body in (SMALL, LARGE):
        with s3.connect() as sock:
            sock.sendall(s3.head("PUT", key, {"content-length": str(len(body))}) + body[:-1])
            sock.shutdown(socket.SHUT_WR)
            answer = receive(sock, "PUT")
        assert (answer.status, answer.code) in {(400, "IncompleteBody"), (0, "")}, answer
    unchanged(s3, key)


def test_what_follows_a_body_is_no_part_of_it(s3: S3, key: str) -> None:
    """Bytes beyond Content-Length are a second, broken request: the object is as declared."""
    with s3.connect() as sock:
        sock.sendall(
            s3.head("PUT", key, {"content-length": "5000"}) + SMALL + b"more than declared"
        )
        assert receive(sock, "PUT").status == 200
    assert s3.get(key).body == SMALL


@pytest.mark.parametrize("body", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("change", [-1, 1])
def test_a_decoded_length_that_is_not_true(s3: S3, key: str, body: bytes, change: int) -> None:
    """aws-chunked: shorter or longer than x-amz-decoded-content-length."""
    coded = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    answer = s3.put(
        key,
        coded,
        x_amz_content_sha256="STREAMING-UNSIGNED-PAYLOAD-TRAILER",
        x_amz_decoded_content_length=str(len(body) + change),
        content_encoding="aws-chunked",
    )
    assert answer.status == 400, answer
    unchanged(s3, key)


WRONG = base64.b64encode(bytes(16)).decode()
CHECKS: dict[str, tuple[dict[str, str], str]] = {
    "md5": ({"content-md5": WRONG}, "BadDigest"),
    "md5 no digest": ({"content-md5": "x"}, "InvalidDigest"),
    "sha256 of the payload": ({"x-amz-content-sha256": "0" * 64}, "XAmzContentSHA256Mismatch"),
    "crc32": ({"x-amz-checksum-crc32": "AAAAAA=="}, "BadDigest"),
    "crc32c": ({"x-amz-checksum-crc32c": "AAAAAA=="}, "BadDigest"),
    "crc64nvme": ({"x-amz-checksum-crc64nvme": "AAAAAAAAAAA="}, "BadDigest"),
    "sha1": ({"x-amz-checksum-sha1": base64.b64encode(bytes(20)).decode()}, "BadDigest"),
    "sha256": ({"x-amz-checksum-sha256": base64.b64encode(bytes(32)).decode()}, "BadDigest"),
}


@pytest.mark.parametrize("body", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("check", list(CHECKS))
def test_a_wrong_digest_stores_nothing(s3: S3, key: str, body: bytes, check: str) -> None:
    headers, code = CHECKS[check]
    answer = s3.call("PUT", key, body, headers)
    assert (answer.status, answer.code) == (400, code), answer
    unchanged(s3, key)


def test_stalled_clients_are_let_go(tmp_path: Path) -> None:
    """In a head, in a body, between requests, and while an answer is sent: each is ended by its
    own deadline, on a process whose clock runs 20 times as fast."""
    shim = build_shim("fast_clock", tmp_path)
    extra = {"LD_PRELOAD": str(shim), "O3_CLOCK_SPEED": "20"}
    with RunningStore(tmp_path / "data", environment=extra) as store:
        s3 = S3(store)
        assert s3.call("PUT", "/bucket").status == 200
        assert s3.put("/bucket/large", LARGE * 40).status == 200
        put = s3.head("PUT", "/bucket/k", {"content-length": str(len(LARGE))})
        get = s3.head("GET", "/bucket/large")
        started = {
            "silent": b"",
            "head": put[:50],
            "body not begun": put,
            "small body": put + LARGE[:100],
            "large body": put + LARGE[:500_000],
            "reads nothing": get,
        }
        stalled = {name: s3.connect() for name in started}
        stalled["reads nothing"].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for name, sent in started.items():
            stalled[name].sendall(sent)
        until(lambda: only_this_connection(s3))
        answers: dict[str, Answer] = {}
        for name, sock in stalled.items():
            answers[name] = receive(sock, "PUT" if name != "reads nothing" else "GET")
            sock.close()
        for name in ("body not begun", "small body", "large body"):
            assert (answers[name].status, answers[name].code) == (408, "RequestTimeout"), name
        assert answers["reads nothing"].status == 200 and answers["reads nothing"].cut
        assert answers["silent"].status == 0
        assert s3.get("/bucket/k").status == 404
        assert s3.put("/bucket/k", LARGE).status == 200
        assert store.stop() == 0
