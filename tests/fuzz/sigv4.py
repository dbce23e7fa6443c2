"""Fuzz Signature V4: requests that botocore signed, then altered.

    python -m tests.fuzz.sigv4 [--seconds 60] [--seed 1]

As signed they are accepted, and so they are when written differently but meaning the same. Any
request that is accepted after an alteration has, by a plain model of AWS's page, the method, path,
query, signed headers and payload that were signed, and no unsigned x-amz-* header. Nothing but
S3Error comes out of a refusal.
"""

from __future__ import annotations

import random
import re
import sys
from urllib.parse import quote, unquote_to_bytes

from o3storage.s3._errors import S3Error
from o3storage.s3._sigv4 import Identity
from tests.fuzz._campaign import campaign, damage
from tests.s3.support import KEY_ID, authenticate, authenticator, botocore_sign, request

Head = list[tuple[str, str]]
Request = tuple[str, bytes, bytes, Head]

TEXTS = [
    "",
    "a",
    "a b",
    "a+b",
    "/",
    "//",
    "..",
    "%",
    "é",
    "~",
    "=",
    "&",
    "k" * 50,
    "\U0001f600",
    "*",
]
EXTRA = [
    ("x-amz-copy-source", "/other/secret"),
    ("x-amz-meta-a", "2"),
    ("x-amz-acl", "public-read"),
    ("X-Amz-Tagging", "a=b"),
    ("x-amz-security-token", "t"),
    ("range", "bytes=0-1"),
    ("content-type", "text/html"),
    ("x-amz-content-sha256", "UNSIGNED-PAYLOAD"),
    ("x-amz-date", "20130524T000001Z"),
    ("host", "elsewhere"),
    ("authorization", "AWS4-HMAC-SHA256 Credential=x"),
]
AUTH = authenticator()
TOKEN = re.compile(r"[-!#$%&'*+.^_`|~0-9a-z]+")


def random_request(rng: random.Random) -> Request:
    key = "".join(rng.choice(TEXTS) for _ in range(rng.randrange(4)))
    names = rng.sample(["acl", "prefix", "list-type", "a-b", "a", "A", "max keys", "é"], 3)
    query = "&".join(
        f"{quote(name, safe='')}={quote(rng.choice(TEXTS), safe='')}"
        for name in names[: rng.randrange(4)]
    )
    headers = {}
    if rng.randrange(2):
        headers["x-amz-meta-a"] = rng.choice(["1", "a  b", "x,y", "v" * 60])
    if rng.randrange(3) == 0:
        headers["content-type"] = "text/plain"
    method = rng.choice(["GET", "PUT", "DELETE", "HEAD", "POST"])
    url = f"http://localhost:9000/bucket/{quote(key, safe='/~')}" + (f"?{query}" if query else "")
    presign_s = rng.choice([0, 0, 900])
    body = b"" if presign_s or rng.randrange(2) else b"body"
    return (method, *botocore_sign(method, url, headers, body, presign_s=presign_s))


def can_arrive(made: Request) -> bool:
    """Whether the HTTP parser lets such a head through (tests/http/head_model.py says more)."""
    names = [name for name, _ in made[3]]
    return (
        all(names.count(name) <= 1 for name in ("host", "authorization"))
        and all(TOKEN.fullmatch(name) for name in names)
        and all(value == value.strip() and value.isprintable() for _, value in made[3])
        and bool(made[0])
        and made[1].startswith(b"/")
        and not re.search(rb"[\0-\x20\x7f#?]", made[1])
        and not re.search(rb"[\0-\x20\x7f#]", made[2])
    )


def meaning(made: Request, signed: tuple[str, ...]) -> object:
    """What a signature over the headers `signed` covers (AWS, "Create a canonical request")."""
    method, path, query, headers = made
    pairs = []
    for piece in query.split(b"&"):
        if piece:
            name, _, value = piece.partition(b"=")
            both = tuple(unquote_to_bytes(x.replace(b"+", b" ")) for x in (name, value))
            if both[0].lower() != b"x-amz-signature":
                pairs.append(both)
    covered = [
        (name, ",".join(" ".join(v.split(" ")) for n, v in headers if n.lower() == name))
        for name in signed
    ]
    # Of a presigned URL, where nothing else is said, the payload is unsigned.
    payload = [v for n, v in headers if n.lower() == "x-amz-content-sha256"]
    if not payload and not any(n == "authorization" for n, _ in headers):
        payload = ["UNSIGNED-PAYLOAD"]
    collapsed = [(name, " ".join(value.split())) for name, value in covered]
    return method, unquote_to_bytes(path) or b"/", sorted(pairs), collapsed, payload


def signed_names(made: Request) -> tuple[str, ...]:
    for name, value in made[3]:
        if name == "authorization":
            return tuple(value.partition("SignedHeaders=")[2].partition(",")[0].split(";"))
    text = made[2].partition(b"X-Amz-SignedHeaders=")[2].partition(b"&")[0]
    return tuple(unquote_to_bytes(text).decode().split(";"))


def alter(rng: random.Random, made: Request) -> Request:
    """Another request: most alterations change what was signed, some only how it is written."""
    method, path, query, headers = made
    headers = list(headers) or [("host", "localhost:9000")]
    at = rng.randrange(len(headers))
    name, value = headers[at]
    kind = rng.randrange(11)
    if kind == 0:
        method = rng.choice(["GET", "PUT", "DELETE", "HEAD", "POST", "get", "OPTIONS", ""])
    elif kind == 1:
        path = damage(rng, path)
    elif kind == 2:
        query = damage(rng, query)
    elif kind == 3:
        headers[at] = (name, damage(rng, value.encode("latin-1")).decode("latin-1"))
    elif kind == 4:
        headers[at] = (damage(rng, name.encode()).decode("latin-1").lower(), value)
    elif kind == 5:
        del headers[at]
    elif kind == 6:
        headers.append(rng.choice([*EXTRA, headers[at]]))
    elif kind == 7:
        query += b"&" + rng.choice(
            [b"acl", b"X-Amz-Expires=604800", b"x-amz-acl=private", b"", b"&"]
        )
    elif kind == 8:
        path = path.replace(b"/", rng.choice([b"//", b"/./", b"%2F", b"/"]), 1)
    elif kind == 9:
        parts = query.split(b"&")
        rng.shuffle(parts)
        query = b"&".join(parts)
    else:
        made_path = bytearray()
        for byte in path:
            plain = byte == 0x2F or rng.randrange(3) or byte == 0x25
            made_path += bytes([byte]) if plain else b"%%%02x" % byte
        # An escape must stay one: encode only outside of escapes.
        path = bytes(made_path) if b"%" not in path else path
    return method, path, query, headers


def answer(made: Request) -> Identity | None:
    try:
        return authenticate(request(*made), AUTH)
    except S3Error:
        return None


def proof(made: Request) -> str:
    """The credentials as they stand, without spaces, which carry no meaning."""
    for name, value in made[3]:
        if name == "authorization":
            return "".join(value.split())
    return ""


def step(rng: random.Random) -> str | None:
    made = random_request(rng)
    identity = answer(made)
    if identity is None or identity.key_id != KEY_ID:
        return f"{made!r}: refused as it was signed"
    signed = signed_names(made)
    altered = made
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        altered = alter(rng, altered)
    identity = answer(altered)
    if identity is None or not can_arrive(altered):
        return None
    if meaning(altered, signed) != meaning(made, signed):
        return f"{made!r}\naltered to {altered!r}: accepted"
    if sorted(proof(altered).split(",")) != sorted(proof(made).split(",")):
        return f"{made!r}\naltered to {altered!r}: accepted with other credentials"
    unsigned = {n.lower() for n, _ in altered[3]} - set(signed) - {"x-amz-content-sha256"}
    if any(name.startswith("x-amz-") for name in unsigned):
        return f"{altered!r}: accepted with an unsigned x-amz header"
    return None


def main() -> int:
    return campaign(__doc__, step, "signed requests")


if __name__ == "__main__":
    sys.exit(main())
