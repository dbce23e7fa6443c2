"""The judge of a campaign of real faults can tell a good record of clients from a bad one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.campaign.record import Record

A, B, C = "a" * 32, "b" * 32, "c" * 32


class Client:
    """Writes a client's file; each operation takes from one instant to the next."""

    def __init__(self, directory: Path, number: int) -> None:
        self.path = directory / f"client.{number}"
        self.calls = 0

    def note(self, kind: str, at_s: float, to_s: float, **fields: Any) -> None:
        self.calls += 1
        entry = {"n": self.calls, "kind": kind, "bucket": "plain", "key": "e0/k", "node": 0}
        entry |= {"call": at_s, "ret": to_s, "end": "ok", **fields}
        begin = {k: v for k, v in entry.items() if k not in ("end", "ret", "seen")}
        rest = {k: v for k, v in entry.items() if k in ("n", "end", "ret", "seen")}
        with self.path.open("a") as file:
            file.write(json.dumps(begin) + "\n")
            if fields.get("end") != "cut":
                file.write(json.dumps(rest) + "\n")

    def put(self, at_s: float, value: int, etag: str, **fields: Any) -> None:
        self.note("put", at_s, at_s + 1, value=value, etag=etag, **fields)

    def get(self, at_s: float, etag: str, **fields: Any) -> None:
        self.note("get", at_s, at_s + 1, **({"seen": etag} | fields))

    def nothing(self, at_s: float) -> None:
        self.note("get", at_s, at_s + 1, end="error", status=404, code="NoSuchKey")


@pytest.fixture
def clients(tmp_path: Path) -> list[Client]:
    return [Client(tmp_path, number) for number in (1, 2)]


def judged(clients: list[Client]) -> list[str]:
    record = Record()
    record.read_files([client.path for client in clients if client.path.exists()])
    return record.check()


def test_a_good_record(clients: list[Client]) -> None:
    one, two = clients
    one.put(0, 1, A)
    two.get(2, A, md5=A)
    one.put(3, 2, B, end="error", status=503, code="ServiceUnavailable")
    two.get(5, A)
    one.put(6, 3, C, condition="match", expected=B, end="unknown")
    two.get(9, B)  # what was answered 503 was written all the same
    two.get(20, C)
    assert judged(clients) == []


def test_a_lost_write_and_a_stale_read(clients: list[Client]) -> None:
    one, two = clients
    one.put(0, 1, A)
    two.nothing(2)
    (text,) = judged(clients)
    assert "not linearizable" in text
    one.put(4, 2, B)
    two.path.unlink()
    two.get(6, B)
    two.get(8, A)
    (text,) = judged(clients)
    assert "not linearizable" in text


def test_what_was_not_sent_or_refused_never_shows(clients: list[Client]) -> None:
    one, two = clients
    one.put(0, 1, A, end="never")
    two.get(2, A)
    assert len(judged(clients)) == 1
    two.path.unlink()
    one.put(4, 2, B)
    one.put(6, 3, C, condition="absent", end="error", status=412, code="PreconditionFailed")
    two.get(8, B)
    assert judged(clients) == []
    two.get(10, C)
    assert len(judged(clients)) == 1


def test_bytes_and_etags_that_nobody_wrote(clients: list[Client]) -> None:
    one, two = clients
    one.put(0, 1, A)
    two.get(2, A, md5=B)
    two.get(4, C)
    found = judged(clients)
    assert any("bytes that are not those" in text for text in found)
    assert any("that nobody wrote" in text for text in found)


def test_a_page_that_lacks_a_key(clients: list[Client]) -> None:
    one, two = clients
    one.put(0, 1, A)
    two.note("list", 2, 3, key="e0/", low="", page=[["e0/k", A]], more=False)
    assert judged(clients) == []
    two.note("list", 4, 5, key="e0/", low="", page=[], more=False)
    assert any("no one instant" in text or "linearizable" in text for text in judged(clients))


def test_versions_keep_their_order(clients: list[Client]) -> None:
    one, two = clients
    one.put(0, 1, A, bucket="versioned")
    one.put(2, 2, B, bucket="versioned")
    one.note("delete", 4, 5, bucket="versioned")
    shown = [["e0/k", ""], ["e0/k", B], ["e0/k", A]]
    two.note("versions", 6, 7, bucket="versioned", key="e0/", versions=shown)
    assert judged(clients) == []
    two.note("versions", 8, 9, bucket="versioned", key="e0/", versions=shown[1:])
    assert len(judged(clients)) == 1


def test_an_answer_that_no_fault_explains(clients: list[Client]) -> None:
    clients[0].put(0, 1, A, end="error", status=400, code="BadDigest")
    assert judged(clients) == ["put plain/e0/k at node 0: 400 BadDigest"]
