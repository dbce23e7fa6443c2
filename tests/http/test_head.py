"""The head parser: each rule by name, and all of it against the slow plain model."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o3storage.http import BadHead
from o3storage.http._head import _hosts, _names, parse_head
from tests.http.head_model import model_head, random_head


def head(*fields: str, line: str = "GET /bucket/key HTTP/1.1", host: str = "h.example") -> bytes:
    lines = [line, *([f"Host: {host}"] if host else []), *fields]
    return "\r\n".join(lines).encode("latin-1")


def refused(data: bytes, status: int = 400) -> str:
    with pytest.raises(BadHead) as caught:
        parse_head(data)
    assert caught.value.status == status
    return str(caught.value)


def as_dict(data: bytes) -> dict[str, object] | None:
    try:
        h = parse_head(data)
    except BadHead:
        return None
    return {
        "method": h.method,
        "target": h.target,
        "path": h.path,
        "query": h.query,
        "http_version": h.http_version,
        "host": h.host,
        "fields": list(h.headers),
        "length": h.length,
        "declared": h.declared,
        "keep_alive": h.keep_alive,
        "expects_continue": h.expects_continue,
    }


def test_typical_head() -> None:
    h = parse_head(
        head("X-Amz-Meta-A:  b \t", "Content-Length: 12", line="PUT /b/k?x=%2F&y HTTP/1.1")
    )
    assert (h.method, h.target, h.path, h.query) == ("PUT", b"/b/k?x=%2F&y", b"/b/k", b"x=%2F&y")
    assert (h.host, h.length, h.declared, h.keep_alive) == ("h.example", 12, True, True)
    assert list(h.headers) == [
        ("host", "h.example"),
        ("x-amz-meta-a", "b"),
        ("content-length", "12"),
    ]
    assert h.headers.get("x-amz-meta-a") == "b"
    assert h.headers.get("absent") is None


def test_raw_target_is_kept() -> None:
    h = parse_head(head(line="GET /b//../%2e/\xfc?a+b HTTP/1.1"))
    assert h.target == b"/b//../%2e/\xfc?a+b"
    assert h.path == b"/b//../%2e/\xfc"


def test_values_are_latin_1_as_received() -> None:
    h = parse_head(head().replace(b"Host", b"X-Amz-Meta-U: \xe2\x82\xac\r\nHost"))
    value = h.headers.get("x-amz-meta-u")
    assert value is not None
    assert value.encode("latin-1").decode("utf-8") == "\u20ac"


def test_repeated_header_keeps_all_in_order() -> None:
    h = parse_head(head("A: 1", "B: 2", "a: 3"))
    assert h.headers.all("a") == ["1", "3"]
    assert h.headers.get("a") == "1"
    assert h.headers.repeated("a")
    assert not h.headers.repeated("b")
    assert list(h.headers) == [("host", "h.example"), ("a", "1"), ("b", "2"), ("a", "3")]
    assert h.headers.names() == ["host", "a", "b"]
    assert len(h.headers) == 4


@pytest.mark.parametrize("name", ["Host", "Content-Length", "Transfer-Encoding", "Authorization"])
@pytest.mark.parametrize("values", [("1", "1"), ("1", "2")])
def test_second_framing_or_identity_field_is_refused(name: str, values: tuple[str, str]) -> None:
    host = "" if name == "Host" else "h"
    assert "more than one" in refused(
        head(f"{name}: {values[0]}", f"{name.lower()}: {values[1]}", host=host)
    )


def test_missing_host() -> None:
    assert "Host" in refused(head(host=""))
    assert parse_head(head(line="GET / HTTP/1.0", host="")).host == ""


@pytest.mark.parametrize(
    "host", ["", "a b", "a/b", "u@h", "[::1", "[]", "[x]:1", "a:1:2", "a:x", "h:123456"]
)
def test_malformed_host(host: str) -> None:
    refused(head(f"Host: {host}", host=""))


@pytest.mark.parametrize(
    "host", ["a", "a.b:80", "[::1]:8080", "[::ffff:1.2.3.4]", "127.0.0.1:8080", "b.s3.example"]
)
def test_good_host(host: str) -> None:
    assert parse_head(head(host=host)).host == host


def test_content_length_with_transfer_encoding() -> None:
    refused(head("Content-Length: 5", "Transfer-Encoding: chunked"))
    refused(head("Transfer-Encoding: chunked", "Content-Length: 0"))


@pytest.mark.parametrize(
    "coding",
    [
        "gzip",
        "gzip, chunked",
        "chunked, chunked",
        "identity",
        "xchunked",
        "chunked;a=b",
        "",
        "chunked,",
    ],
)
def test_any_coding_but_chunked(coding: str) -> None:
    refused(head(f"Transfer-Encoding: {coding}"))


def test_chunked() -> None:
    h = parse_head(head("Transfer-Encoding: chunked"))
    assert h.length is None
    assert h.declared


def test_transfer_encoding_in_http_1_0() -> None:
    refused(head("Transfer-Encoding: chunked", line="PUT / HTTP/1.0"))


@pytest.mark.parametrize(
    "length", ["+5", "-1", "5, 5", "5 5", "0x5", "", "\xb2", "1_0", "9" * 20, str(2**63)]
)
def test_malformed_content_length(length: str) -> None:
    refused(head(f"Content-Length: {length}"))


def test_no_length_is_not_declared() -> None:
    h = parse_head(head(line="PUT / HTTP/1.1"))
    assert (h.length, h.declared) == (0, False)
    h = parse_head(head("Content-Length: 0", line="PUT / HTTP/1.1"))
    assert (h.length, h.declared) == (0, True)


def test_space_before_colon() -> None:
    refused(head("Name : v"))
    refused(head("Transfer-Encoding : chunked"))


def test_folded_line() -> None:
    assert "folded" in refused(head("A: b", " c: d"))
    assert "folded" in refused(head("A: b", "\tc"))


@pytest.mark.parametrize("bad", ["\r", "\n", "\0", "\x01", "\x0b", "\x7f"])
@pytest.mark.parametrize("place", ["A: x{}y", "A{}: x", "A: x{}"])
def test_control_characters(bad: str, place: str) -> None:
    refused(head(place.format(bad)))


@pytest.mark.parametrize("bad", ["\r", "\n", "\0", "\t", "\x1f", "\x7f"])
def test_control_characters_in_the_request_line(bad: str) -> None:
    refused(head(line=f"GET /a{bad}b HTTP/1.1"))


def test_bare_lf_between_lines() -> None:
    refused(head("A: b").replace(b"\r\nA", b"\nA"))


@pytest.mark.parametrize("line", ["nocolon", "accept", ": v", "a b: c", "a(b: c", "\xe9: c"])
def test_malformed_header_name(line: str) -> None:
    refused(head(line))


@pytest.mark.parametrize(
    "line",
    ["GET /", "GET  / HTTP/1.1", "GET / HTTP/1.1 ", " GET / HTTP/1.1", "", "GET / x HTTP/1.1", "GET / HTTP/1.",
     "GET / HTTP/11", "G T / HTTP/1.1", "G@T / HTTP/1.1", "GET b HTTP/1.1", "GET /#f HTTP/1.1", "GET * HTTP/1.1",
     "CONNECT h:80 HTTP/1.1", "GET ftp://h/ HTTP/1.1", "GET http:///x HTTP/1.1", "GET http://u:p@h/ HTTP/1.1"],
)  # fmt: skip
def test_malformed_request_line(line: str) -> None:
    refused(head(line=line))


def test_other_versions() -> None:
    refused(head(line="GET / HTTP/2.0"), 505)
    refused(b"PRI * HTTP/2.0", 505)


@pytest.mark.parametrize(
    ("target", "host", "path", "query"),
    [
        ("http://other.example/b/k?q", "other.example", b"/b/k", b"q"),
        ("HTTPS://other.example:8443", "other.example:8443", b"/", b""),
        ("http://[::1]:9000?list-type=2", "[::1]:9000", b"/", b"list-type=2"),
    ],
)
def test_absolute_form_takes_host_from_the_target(
    target: str, host: str, path: bytes, query: bytes
) -> None:
    h = parse_head(head("A: 1", "A: 2", line=f"GET {target} HTTP/1.1"))
    assert (h.host, h.path, h.query, h.target) == (host, path, query, target.encode())
    assert h.headers.all("host") == [host]
    assert parse_head(head(line=f"GET {target} HTTP/1.1")).headers.get("host") == host


def test_options_asterisk() -> None:
    assert parse_head(head(line="OPTIONS * HTTP/1.1")).path == b"*"


def test_expectations() -> None:
    assert parse_head(head("Expect: 100-Continue", "Content-Length: 1")).expects_continue
    assert parse_head(head("Expect: 100-continue", "Content-Length: 0")).expects_continue
    assert not parse_head(head("Expect: 100-continue")).expects_continue
    assert not parse_head(
        head("Expect: 100-continue", "Content-Length: 1", line="PUT / HTTP/1.0")
    ).expects_continue
    refused(head("Expect: a-pony"), 417)


def test_keep_alive() -> None:
    assert parse_head(head("Connection: Keep-Alive")).keep_alive
    assert not parse_head(head("Connection: x , Close")).keep_alive
    assert not parse_head(head(line="GET / HTTP/1.0")).keep_alive
    assert parse_head(head("Connection: Keep-Alive", line="GET / HTTP/1.0")).keep_alive


def test_too_many_headers() -> None:
    parse_head(head(*[f"A{n}: b" for n in range(99)]))
    refused(head(*[f"A{n}: b" for n in range(100)]), 431)


def test_remembered_names_are_bounded() -> None:
    for n in range(3000):
        parse_head(head(f"X-Flood-{n}: v"))
    assert len(_names) <= 1024
    assert parse_head(head("X-Flood-2999: w")).headers.get("x-flood-2999") == "w"


def test_only_short_names_and_hosts_are_remembered() -> None:
    """A thousand of 16 KiB each would be kept for who sent them."""
    _names.clear()
    _hosts.clear()
    for size in (10, 256, 257, 9000):
        for _ in range(2):
            data = f"GET / HTTP/1.1\r\nHost: {'h' * size}\r\n{'n' * size}: v".encode()
            assert parse_head(data).headers.get("n" * size) == "v"
    assert {len(name) for name in _names if set(name) == {"n"}} == {10, 256}
    assert {len(host) for host in _hosts} == {10, 256}


def test_secrets_are_not_in_the_repr() -> None:
    assert "hidden" not in repr(parse_head(head("Authorization: hidden")).headers)


@given(st.integers(0, 2**32))
@settings(max_examples=1500, deadline=None)
def test_against_the_model(seed: int) -> None:
    data = random_head(random.Random(seed))
    expected = model_head(data)
    found = as_dict(data)
    if expected is not None and found is not None:
        # The parser drops nothing, but lists fields that only an absolute-form target named last.
        assert sorted(expected.pop("fields")) == sorted(found.pop("fields"))  # type: ignore[call-overload]
    assert found == expected


@given(st.binary(max_size=300))
@settings(max_examples=500, deadline=None)
def test_arbitrary_bytes_against_the_model(data: bytes) -> None:
    assert (as_dict(data) is None) == (model_head(data) is None)


def test_the_generator_makes_good_and_bad_heads() -> None:
    rng = random.Random(1)
    good = sum(model_head(random_head(rng)) is not None for _ in range(1000))
    assert 200 < good < 800
