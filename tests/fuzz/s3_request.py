"""Fuzz the whole S3 layer: requests put together at random, against the node in memory.

    python -m tests.fuzz.s3_request [--seconds 60] [--seed 1]

Never a 500, an unfinished answer or a header that would break the response; an error carries a
code; what is not properly signed changes nothing; no block and no stream is left behind.
"""

from __future__ import annotations

import base64
import hashlib
import random
import re
import sys
from urllib.parse import quote_from_bytes

from o3storage.s3._operations import TABLE
from o3storage.s3._router import OBJECT, SERVICE, SUB_RESOURCES, Operation
from tests.fuzz._campaign import campaign, damage
from tests.s3.harness import Answer, Store
from tests.s3.support import BytesBody
from tests.s3.test_chunked import plain_chunks

SUBS = sorted(SUB_RESOURCES)
METHODS = ["GET", "PUT", "POST", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "FOO"]
KEYS = [
    b"k",
    b"large",
    b"dir/k",
    b"..",
    b"a//b",
    b"\0",
    b"\xff",
    "é".encode(),
    b"x" * 1025,
    b" ",
    b"+",
    "a\U0010fffe".encode(),
]
LONG = "é" * 300
LONGEST = "a" * 9000
NUMBERS = ["0", "1", "2", "3", "1000", "10000", "10001", "-1", "", "x", "9" * 30, "1e3", "٣", " 1"]
TEXTS = ["", "/", "k", "a b", "a%00b", "%zz", "é", "url", "true", "*", '"' + "0" * 32 + '"', "null",
         LONG, LONGEST, "k\U0010ffff"]  # fmt: skip
DATES = ["Wed, 21 Oct 2099 07:28:00 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "x", "", "0",
         "Sat, 01 Jan 0000 00:00:00 GMT", "Fri, 31 Dec 9999 23:59:60 GMT",
         "Sun, 31 Feb 1950 00:00:00 GMT", "9999-12-31T00:00:00Z", "0000-01-01T00:00:00Z"]  # fmt: skip
PARAMETERS = {
    "prefix": TEXTS, "delimiter": TEXTS, "marker": TEXTS, "max-keys": NUMBERS, "max-parts": NUMBERS,
    "max-uploads": NUMBERS, "key-marker": TEXTS, "version-id-marker": TEXTS, "encoding-type": TEXTS,
    "continuation-token": [*TEXTS, "MQ==", "AAAA"], "start-after": TEXTS, "fetch-owner": TEXTS,
    "partNumber": NUMBERS, "part-number-marker": NUMBERS, "upload-id-marker": TEXTS,
    "versionId": [*TEXTS, "0" * 32, "A" * 1024], "response-content-type": TEXTS,
    "response-expires": TEXTS, "x-id": TEXTS, "uploadId": TEXTS, "X-Amz-Signature": TEXTS,
    "x-amz-meta-a b": TEXTS, "x-amz-meta-é": TEXTS, "x-amz-meta-a\r\nb": TEXTS, "x-amz-meta-": TEXTS,
    "x-amz-meta-q": TEXTS, "x-amz-tagging": TEXTS, "bucket-region": TEXTS, "max-buckets": NUMBERS,
}  # fmt: skip
HEADERS = {
    "range": ["bytes=0-0", "bytes=-1", "bytes=5-", "bytes=9-2", "bytes=0-1,3-4", "x", "bytes=-0"],
    "if-match": TEXTS, "if-none-match": TEXTS, "if-modified-since": DATES,
    "if-unmodified-since": DATES, "if-range": [*TEXTS, *DATES], "content-md5": TEXTS,
    "content-type": TEXTS, "content-encoding": ["aws-chunked", "gzip", "aws-chunked,gzip"],
    "expires": DATES, "cache-control": TEXTS, "content-disposition": TEXTS,
    "x-amz-if-match-last-modified-time": DATES, "origin": ["http://a", "null", ""],
    "access-control-request-method": METHODS, "access-control-request-headers": TEXTS,
    "x-amz-meta-a": ["b", "é", "=?UTF-8?Q?x?=", "x" * 3000], "x-amz-tagging": ["a=b", "a&a", "%", "=" * 99],
    "x-amz-copy-source": ["/bucket/k", "bucket/k?versionId=null", "/bucket", "%", "", "/other/k"],
    "x-amz-copy-source-range": ["bytes=0-1", "bytes=0-", "x"], "x-amz-copy-source-if-match": TEXTS,
    "x-amz-metadata-directive": ["COPY", "REPLACE", "x"], "x-amz-tagging-directive": ["COPY", "x"],
    "x-amz-checksum-mode": ["ENABLED", "x"], "x-amz-checksum-algorithm": ["CRC32", "SHA1", "x"],
    "x-amz-checksum-type": ["COMPOSITE", "FULL_OBJECT", "x"], "x-amz-checksum-crc32": ["AAAAAA==", "x"],
    "x-amz-sdk-checksum-algorithm": ["CRC32C", "x"], "x-amz-trailer": ["x-amz-checksum-crc32", "x"],
    "x-amz-decoded-content-length": NUMBERS, "x-amz-storage-class": ["STANDARD", "GLACIER", "x"],
    "x-amz-server-side-encryption": ["AES256", "aws:kms"], "x-amz-acl": ["private", "public-read"],
    "x-amz-object-attributes": ["ETag", "ObjectParts,Checksum", "x", ""], "x-amz-max-parts": NUMBERS,
    "x-amz-part-number-marker": NUMBERS, "x-amz-mp-object-size": NUMBERS, "x-amz-zzz": TEXTS,
    "x-amz-expected-bucket-owner": TEXTS, "x-amz-if-match-size": NUMBERS,
    "x-amz-object-lock-mode": ["GOVERNANCE"], "x-amz-bypass-governance-retention": ["true"],
}  # fmt: skip
DOCUMENTS = [
    b"",
    b"x" * 400,
    b"<Delete><Object><Key>k</Key></Object><Quiet>true</Quiet></Delete>",
    b"<Delete><Object><Key>k</Key><VersionId>null</VersionId><ETag>*</ETag></Object></Delete>",
    b"<Delete><Object><Key>k</Key><ETag>" + b"e" * 300 + b"</ETag></Object><Object><Key>new</Key>"
    b"<LastModifiedTime>9999-12-31T00:00:00Z</LastModifiedTime></Object></Delete>",
    b"<Tagging><TagSet><Tag><Key>a</Key><Value>b</Value></Tag></TagSet></Tagging>",
    (
        "<Tagging><TagSet>"
        + "".join([f"<Tag><Key>{n:02d}</Key><Value>{'漢' * 256}</Value></Tag>" for n in range(50)])
        + "</TagSet></Tagging>"
    ).encode(),
    b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>",
    b"<CORSConfiguration><CORSRule><AllowedOrigin>*</AllowedOrigin><AllowedMethod>GET"
    b"</AllowedMethod></CORSRule></CORSConfiguration>",
    b"<CreateBucketConfiguration><LocationConstraint>us-east-1</LocationConstraint>"
    b"</CreateBucketConfiguration>",
    b"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>0</ETag></Part>"
    b"</CompleteMultipartUpload>",
    plain_chunks([b"abc", b"d" * 300]),
    b'--B\r\nContent-Disposition: form-data; name="key"\r\n\r\nk\r\n--B\r\nContent-Disposition: '
    b'form-data; name="file"\r\n\r\nDATA\r\n--B--\r\n',
    b'--B\r\nContent-Disposition: form-data; name="key"\r\n\r\nk\r\n--B\r\nContent-Disposition: '
    b'form-data; name="x-amz-meta-a\nb"\r\n\r\n1\r\n--B\r\nContent-Disposition: form-data; '
    b'name="file"\r\n\r\nDATA\r\n--B--\r\n',
]
PAYLOADS = [
    "UNSIGNED-PAYLOAD",
    "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
    "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
    "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER",
    hashlib.sha256(b"").hexdigest(),
    "x",
]
BAD_VALUE = re.compile(r"[\r\n\0]")


class World:
    """A store with something in it; made anew for each seed, so that a finding can be repeated."""

    def __init__(self) -> None:
        self.store = Store()
        store = self.store
        store.bucket()
        store.bucket("versioned", "Enabled")
        store.put("/bucket/k", b"0123456789", {"x-amz-meta-a": "b"})
        store.put("/bucket/large", b"x" * 300_000)
        for body in (b"1", b"2"):
            store.put("/versioned/k", body)
        store.delete("/versioned/k")
        self.uploads = [store.upload("/bucket/up"), store.upload("/versioned/k")]
        store.put(f"/bucket/up?partNumber=1&uploadId={self.uploads[0]}", b"part")
        versions = store.get("/versioned?versions").texts("Version/VersionId")
        self.versions = [*versions, "null"]


def random_target(rng: random.Random, held: World) -> str:
    """Anything."""
    bucket = rng.choice(["bucket", "bucket", "versioned", "none", "Bad_Name", "other", ""])
    path = f"/{bucket}"
    if rng.randrange(4):
        path += "/" + quote_from_bytes(rng.choice([*KEYS, b"up"]), "/~")
    pairs = []
    if rng.randrange(2):
        pairs.append(rng.choice(SUBS))
    for _ in range(rng.choice([0, 0, 1, 2, 4])):
        name = rng.choice(sorted(PARAMETERS))
        pairs.append(f"{quote_from_bytes(name.encode())}={value_of(rng, held, name)}")
    return path + ("?" + "&".join(pairs) if pairs else "")


def value_of(rng: random.Random, held: World, name: str) -> str:
    value = rng.choice(PARAMETERS[name])
    if name == "uploadId" and rng.randrange(4):
        value = rng.choice(held.uploads)
    if name == "versionId" and rng.randrange(3):
        value = rng.choice(held.versions)
    return quote_from_bytes(value.encode(), "%" if rng.randrange(2) else "")


def operation_target(
    rng: random.Random, held: World, level: str, sub: str, operation: Operation
) -> str:
    """A target that reaches the operation; what else stands in its query is as it comes."""
    if level == SERVICE:
        return "/"
    pairs = []
    path = rng.choice(["/bucket", "/bucket", "/versioned", "/new-bucket"])
    if level == OBJECT:
        upload = rng.randrange(len(held.uploads))
        key = quote_from_bytes(rng.choice(GOOD_KEYS), "/~")
        if sub.endswith("uploadId"):
            path, key = ("/bucket", "up") if upload == 0 else ("/versioned", "k")
            pairs.append(f"uploadId={held.uploads[upload]}")
            if "Part" in operation.name and rng.randrange(8):
                pairs.append(f"partNumber={rng.choice(['1', '2', '10000', '10001'])}")
        elif "Object" in operation.name and rng.randrange(4) == 0:
            pairs.append(f"versionId={rng.choice(held.versions)}")
        path += "/" + key
    if sub and not sub.endswith(("uploadId", ":")):
        pairs.append("list-type=2" if sub == "list-type" else sub)
    if operation.name.startswith("List") or rng.randrange(6) == 0:
        for _ in range(rng.choice([0, 1, 1, 2, 4])):
            name = rng.choice(LISTING)
            pairs.append(f"{quote_from_bytes(name.encode())}={value_of(rng, held, name)}")
    rng.shuffle(pairs)
    return path + ("?" + "&".join(pairs) if pairs else "")


GOOD_KEYS = [b"k", b"k", b"large", b"dir/k", b"new", "é".encode(), b"a+b c"]
LISTING = [name for name in PARAMETERS if "-" in name and not name.startswith(("X-", "x-"))]
PLAIN_HEADERS = [name for name in HEADERS if not name.startswith("x-amz-")]


def random_headers(rng: random.Random, body: bytes, operation: Operation | None) -> dict[str, str]:
    names = sorted(HEADERS)
    if operation is not None:
        names = sorted({*PLAIN_HEADERS, *(n for n in HEADERS if n in operation.headers)})
        if operation.metadata:
            names.append("x-amz-meta-a")
    headers = {}
    for _ in range(rng.choice([0, 0, 1, 2, 5])):
        name = rng.choice(names)
        headers[name] = rng.choice(HEADERS[name])
    if rng.randrange(3) == 0:
        headers["content-md5"] = base64.b64encode(hashlib.md5(body).digest()).decode()
    if rng.randrange(12) == 0:
        headers["content-type"] = "multipart/form-data; boundary=B"
    return headers


def problem_of(answer: Answer, method: str) -> str | None:
    if answer.status >= 500 and answer.status not in {501, 503, 507}:
        return f"answered {answer.status}"
    for name, value in answer.items:
        if BAD_VALUE.search(name + value) or not value.isascii():
            try:
                value.encode("latin-1")
            except UnicodeError:
                return f"header {name}: {value!r} cannot be sent"
            if BAD_VALUE.search(name + value):
                return f"header {name}: {value!r} splits the response"
    if method != "HEAD" and answer.status >= 400 and b"<Code>" not in answer.body:
        return "an error without a code"
    if answer.length is not None and answer.body and answer.length != len(answer.body):
        return f"{len(answer.body)} bytes of body, {answer.length} announced"
    return None


def step(rng: random.Random) -> str | None:
    held = World()
    try:
        for _ in range(40):
            finding = one(rng, held)
            if finding is not None:
                return finding
    finally:
        held.store.close()
    return None


def one(rng: random.Random, held: World) -> str | None:
    store = held.store
    body = rng.choice(DOCUMENTS)
    if rng.randrange(3) == 0:
        body = damage(rng, body)
    if rng.randrange(4):
        (method, level, sub), operation = rng.choice(list(TABLE.items()))
        target = operation_target(rng, held, level, sub, operation)
        headers = random_headers(rng, body, operation)
        if sub.startswith("copy:"):
            headers["x-amz-copy-source"] = rng.choice(HEADERS["x-amz-copy-source"][:2])
    else:
        method = rng.choice(METHODS[:5] if rng.randrange(8) else METHODS)
        target = random_target(rng, held)
        headers = random_headers(rng, body, None)
    good = rng.randrange(4) != 0
    payload = rng.choice(PAYLOADS) if rng.randrange(5) == 0 else "UNSIGNED-PAYLOAD"
    sent = rng.choice([None, None, None, None, rng.randrange(len(body) + 1)])
    source = BytesBody(
        body if sent is None else body[:sent],
        rng.choice([1 << 20, 7]),
        rng.choice([len(body), len(body), None]),
    )
    spoiled = rng.choice(["unsigned", "signature", "key", "header"])
    after = {}
    if not good and spoiled == "signature":
        after["authorization"] = (
            "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20251009/us-east-1/s3/aws4_request, "
            f"SignedHeaders=host;x-amz-date, Signature={rng.randbytes(32).hex()}"
        )
    elif not good and spoiled == "key":
        after["authorization"] = damage(rng, b"AWS4-HMAC-SHA256 Credential=x").decode("latin-1")
    elif not good and spoiled == "header":
        after["x-amz-meta-unsigned"] = "1"
    submitted, streams = len(store.node.submitted), set(store.node.streams)
    shown = f"{method} {target} {headers} {payload} {body!r} {'' if good else spoiled}"
    try:
        answer = store.call(
            method,
            target,
            headers=headers,
            sign=good or spoiled != "unsigned",
            payload=payload,
            presign_s=rng.choice([0, 0, 0, 60]) if good else 0,
            source=source,
            after_signing=after,
        )
    except (ValueError, UnicodeError) as error:
        if "botocore" in repr(error.__traceback__):
            return None
        raise
    problem = problem_of(answer, method)
    if problem:
        return f"{shown}: {problem}: {answer}"
    if not good:
        if answer.status < 400 and method != "OPTIONS":
            return f"{shown}: an unproven request was answered {answer}"
        if len(store.node.submitted) != submitted or set(store.node.streams) != streams:
            return f"{shown}: an unproven request changed something: {answer}"
    if store.service.pool.lent_bytes:
        return f"{shown}: {store.service.pool.lent_bytes} bytes of blocks were not given back"
    if answer.status >= 400 and set(store.node.streams) - streams:
        return f"{shown}: a refused request left a stream: {answer}"
    return None


def main() -> int:
    return campaign(__doc__, step, "stores, 40 requests each")


if __name__ == "__main__":
    sys.exit(main())
