"""Slow plain models of the head parser and the chunked coding, written from RFC 9110 and 9112 one
rule at a time, and generators of good and damaged input for both."""

from __future__ import annotations

import random
import re

TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*\Z")
TARGET = re.compile(rb"[\x21\x22\x24-\x7e\x80-\xff]+\Z")  # no control, blank or "#"
NAME_HOST = re.compile(rb"[A-Za-z0-9\-._~!$&'()*+,;=%]+(:[0-9]{0,5})?\Z")
ADDRESS_HOST = re.compile(rb"\[[0-9a-fA-F:.]+\](:[0-9]{0,5})?\Z")
ONCE = (b"host", b"content-length", b"transfer-encoding", b"authorization")


def is_host(value: bytes) -> bool:
    return bool(NAME_HOST.match(value) or ADDRESS_HOST.match(value))


def model_fields(lines: list[bytes], max_headers: int = 100) -> list[tuple[bytes, bytes]] | None:
    fields = []
    if len(lines) > max_headers:
        return None
    for line in lines:
        if b":" not in line:
            return None
        name, value = line.split(b":", 1)
        if not TOKEN.match(name) or not VALUE.match(value):
            return None
        name = name.lower()
        if name in ONCE and any(n == name for n, _ in fields):
            return None
        fields.append((name, value.strip(b" \t")))
    return fields


def model_head(data: bytes) -> dict[str, object] | None:
    """What `parse_head` must find in `data`, or None if it must refuse it."""
    lines = data.split(b"\r\n")
    if any(b"\r" in line or b"\n" in line for line in lines):
        return None
    words = lines[0].split(b" ")
    if len(words) != 3:
        return None
    method, target, version = words
    if not TOKEN.match(method) or not TARGET.match(target):
        return None
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        return None
    modern = version == b"HTTP/1.1"
    fields = model_fields(lines[1:])
    if fields is None:
        return None

    def one(name: bytes) -> bytes | None:
        return next((v for n, v in fields if n == name), None)

    host = one(b"host")
    if host is None and modern:
        return None
    if host is not None and not is_host(host):
        return None
    if target.startswith(b"/") or (target == b"*" and method == b"OPTIONS"):
        rest = target
    else:
        match = re.match(rb"(?i)https?://([^/?]*)(.*)\Z", target, re.DOTALL)
        if match is None:
            return None
        host = match.group(1)
        rest = match.group(2)
        if not is_host(host):
            return None
        fields = [(n, host if n == b"host" else v) for n, v in fields]
        if not any(n == b"host" for n, _ in fields):
            fields.append((b"host", host))
    path, _, query = rest.partition(b"?")
    length: int | None = 0
    declared = False
    if (coding := one(b"transfer-encoding")) is not None:
        if not modern or one(b"content-length") is not None or coding.lower() != b"chunked":
            return None
        length, declared = None, True
    elif (text := one(b"content-length")) is not None:
        if not re.match(rb"[0-9]{1,19}\Z", text) or int(text) >= 2**63:
            return None
        length, declared = int(text), True
    expect = one(b"expect")
    if expect is not None and modern and expect.lower() != b"100-continue":
        return None
    options = [o.strip(b" \t").lower() for o in (one(b"connection") or b"").split(b",")]
    return {
        "method": method.decode(),
        "target": target,
        "path": path or b"/",
        "query": query,
        "http_version": version[5:].decode(),
        "host": (host or b"").decode("latin-1"),
        "fields": [(n.decode(), v.decode("latin-1")) for n, v in fields],
        "length": length,
        "declared": declared,
        "keep_alive": b"close" not in options and (modern or b"keep-alive" in options),
        "expects_continue": modern and expect is not None and declared,
    }


def model_chunked(data: bytes) -> tuple[bytes, list[tuple[bytes, bytes]] | None, int] | None:
    """(content, trailer fields or None, bytes used) of a whole coded stream, or None if it is
    malformed or not whole."""
    content = b""
    at = 0
    while True:
        match = re.compile(rb"([0-9a-fA-F]{1,16})([ \t]*;[\t\x20-\x7e\x80-\xff]*)?\r\n").match(
            data, at
        )
        if match is None or len(match.group()) > 1024 + 2:
            return None
        size = int(match.group(1), 16)
        at = match.end()
        if size == 0:
            break
        content += data[at : at + size]
        if data[at + size : at + size + 2] != b"\r\n":
            return None
        at += size + 2
    if data[at : at + 2] == b"\r\n":
        return content, None, at + 2
    end = data.find(b"\r\n\r\n", at)
    if end < 0:
        return None
    lines = data[at:end].split(b"\r\n")
    if any(b"\r" in line or b"\n" in line for line in lines):
        return None
    fields = model_fields(lines)
    return None if fields is None else (content, fields, end + 4)


# --- generators: mostly right, often slightly wrong

_ODD = [
    b"\r",
    b"\n",
    b"\0",
    b" ",
    b"\t",
    b":",
    b"\x7f",
    b"\x80",
    b"\xff",
    b"#",
    b"?",
    b",",
    b";",
    b"x",
]
_METHODS = [b"GET", b"PUT", b"OPTIONS", b"HEAD", b"get", b"M-SEARCH", b"G@T", b""]
_TARGETS = [
    b"/", b"/bucket/key", b"/b/k?x=1&y", b"/b//../%2F?", b"*", b"http://h.example", b"HTTP://h:80/p?q",
    b"https://[::1]:8080?x", b"ftp://h/", b"h:80", b"", b"/\xc3\xbc", b"/a#b", b"http://u@h/", b"http:///p",
]  # fmt: skip
_VERSIONS = [
    b"HTTP/1.1",
    b"HTTP/1.1",
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"HTTP/2.0",
    b"http/1.1",
    b"HTTP/1.10",
]
_FIELDS = [
    b"Host: a.example", b"Host: 127.0.0.1:8080", b"host:[::1]", b"Host:", b"Host: a b", b"Host: a:99999999",
    b"Content-Length: 5", b"Content-Length: 0", b"Content-Length: +5", b"Content-Length: 5, 5",
    b"content-length: 99999999999999999999", b"Content-Length: 9223372036854775808", b"Content-Length: \xb2",
    b"Transfer-Encoding: chunked", b"Transfer-Encoding: Chunked", b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding: identity", b"Expect: 100-continue", b"Expect: 100-Continue", b"Expect: x",
    b"Connection: close", b"Connection: keep-alive", b"Connection: Keep-Alive, TE", b"Connection:close ,x",
    b"Authorization: AWS4", b"X-Amz-Meta-\xc3: x", b"X-Amz-Meta-A:  v \t", b"X-Amz-Meta-A: w", b"x-empty:",
    b"X Y: z", b"Name : v", b" folded: v", b"\tfolded", b"nocolon", b": v", b"a:b:c", b"a: \xe2\x82\xac",
]  # fmt: skip


_GOOD = [b"Content-Length: 5", b"X-Amz-Meta-A:  v \t", b"X-Amz-Meta-A: w", b"x-empty:", b"Expect: 100-continue",
         b"Connection: close", b"Connection: keep-alive", b"a:b:c", b"a: \xe2\x82\xac", b"Authorization: AWS4"]  # fmt: skip


def random_head(rng: random.Random) -> bytes:
    good = rng.random() < 0.6
    methods, targets, versions = (_METHODS[:4], _TARGETS[:4], _VERSIONS[:4])
    if not good:
        methods, targets, versions = _METHODS, _TARGETS, _VERSIONS
    lines = [b" ".join([rng.choice(methods), rng.choice(targets), rng.choice(versions)])]
    if good or rng.random() < 0.8:
        lines.append(rng.choice(_FIELDS[:3]))
    for _ in range(rng.randrange(5)):
        lines.append(rng.choice(_GOOD if good else _FIELDS))
    if rng.random() < 0.02:
        lines += [b"x-many: %d" % n for n in range(rng.randrange(90, 110))]
    return damage(rng, b"\r\n".join(lines))


def damage(rng: random.Random, data: bytes) -> bytes:
    while rng.random() < 0.2:
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(3)
        if kind == 0:
            data = data[:at] + rng.choice(_ODD) + data[at:]
        elif kind == 1:
            data = data[:at] + data[at + 1 :]
        else:
            data = data[:at] + rng.choice(_ODD) + data[at + 1 :]
    return data


def random_chunked(rng: random.Random) -> bytes:
    coded = b""
    for _ in range(rng.randrange(4)):
        size = rng.choice((1, 2, 15, 16, 300, rng.randrange(1, 5000)))
        form = rng.choice(
            (b"%x", b"%X", b"0%x", b"%016x", b"%017x") if rng.random() < 0.3 else (b"%x",)
        )
        extension = rng.choice(
            (b"", b"", b"", b";a=b", b" ;x", b" ", b";" + b"y" * rng.choice((9, 1100)))
        )
        coded += form % size + extension + b"\r\n" + rng.randbytes(size) + b"\r\n"
    coded += rng.choice((b"0", b"0", b"00", b"0;x")) + b"\r\n"
    for _ in range(rng.choice((0, 0, 1, 3))):
        coded += rng.choice(_FIELDS[22:] if rng.random() < 0.5 else _FIELDS[26:29]) + b"\r\n"
    return damage(rng, coded + b"\r\n")
