"""boto3 over the real HTTP server: on the in-memory node, and on a whole store in
its own process, with buckets in the path and in the host name."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import io
import os
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import ClientError

from o3storage.http import Server
from o3storage.runtime import SystemClock, SystemEntropy
from o3storage.s3 import Service, ServiceConfig
from tests.s3.harness import Credentials, Node
from tests.s3.support import KEY_ID, OWNER, SECRET
from tests.support.running_store import RunningStore

MIB = 1024 * 1024
DOMAIN = "s3.example.org"


class MemoryServer:
    """The S3 service over HTTP on a thread of its own."""

    def __init__(self) -> None:
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(30)
        self.url = f"http://127.0.0.1:{self.port}"
        self.key_id, self.secret = KEY_ID, SECRET

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self.node = Node()
        self.node.now_ns = time.time_ns()
        self.service = Service(
            self.node,
            credentials=Credentials(),
            clock=SystemClock(),
            entropy=SystemEntropy(),
            config=ServiceConfig(root_owner=OWNER),
        )
        self.errors: list[BaseException] = []
        server = Server(
            self.service.handle,
            error_response=self.service.error_response,
            report=lambda error, _request: self.errors.append(error),
        )
        _, self.port = await server.listen("127.0.0.1", 0)
        self._ready.set()
        await self._stop.wait()
        await server.close()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)
        assert not self.errors
        assert self.service.pool.lent_bytes == 0


@dataclass(slots=True)
class Served:
    """Where boto3 goes, and how it names a bucket: "path" or "virtual"."""

    url: str
    key_id: str
    secret: str
    style: str = "path"


@pytest.fixture(scope="module", params=["memory", "store", "virtual"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    if request.param == "memory":
        memory = MemoryServer()
        yield Served(memory.url, memory.key_id, memory.secret)
        memory.close()
        return
    virtual = request.param == "virtual"
    data_dir = Path(tmp_path_factory.mktemp("boto3")) / "data"
    with RunningStore(data_dir, *(("--domain", DOMAIN) if virtual else ())) as store:
        if virtual:
            url = f"http://{DOMAIN}:{urlsplit(store.url).port}"
            with loopback(DOMAIN):
                yield Served(url, store.key_id, store.secret, "virtual")
        else:
            yield Served(store.url, store.key_id, store.secret)
        assert store.stop() == 0


@contextlib.contextmanager
def loopback(domain: str) -> Iterator[None]:
    """Names below `domain` resolve to 127.0.0.1 in this process, as a wildcard in DNS has it."""
    ask = socket.getaddrinfo

    def answer(host: Any, *arguments: Any, **keywords: Any) -> Any:
        below = isinstance(host, str) and (host == domain or host.endswith(f".{domain}"))
        return ask("127.0.0.1" if below else host, *arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", answer)
        yield


def client(server: Served, *, s3: dict[str, Any] | None = None, **config: Any) -> Any:
    options = Config(
        signature_version="s3v4",
        retries={"max_attempts": 1},
        s3={"addressing_style": server.style, **(s3 or {})},
        **config,
    )
    return boto3.client(
        "s3",
        endpoint_url=server.url,
        region_name="us-east-1",
        aws_access_key_id=server.key_id,
        aws_secret_access_key=server.secret,
        config=options,
    )


@pytest.fixture
def s3(server: Served) -> Any:
    return client(server)


_names = iter(range(1000))


@pytest.fixture
def bucket(s3: Any) -> str:
    name = f"boto3-{next(_names)}"
    s3.create_bucket(Bucket=name)
    return name


def code_of(caught: Any) -> tuple[int, str]:
    response = caught.value.response
    return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"]


@pytest.mark.s3(op=["CreateBucket", "PutObject", "GetObject", "DeleteObject", "DeleteBucket"])
def test_round_trips_of_all_sizes(s3: Any, bucket: str) -> None:
    for size in (0, 1, 4096, 32 * 1024, 256 * 1024, 256 * 1024 + 1, 3 * MIB + 7):
        body = os.urandom(size)
        put = s3.put_object(
            Bucket=bucket, Key=f"é/{size} +%", Body=body, Metadata={"size": str(size)}
        )
        assert put["ETag"] == f'"{hashlib.md5(body).hexdigest()}"'
        got = s3.get_object(Bucket=bucket, Key=f"é/{size} +%")
        assert got["Body"].read() == body
        assert got["Metadata"] == {"size": str(size)}
        assert s3.head_object(Bucket=bucket, Key=f"é/{size} +%")["ContentLength"] == size
        ranged = (
            s3.get_object(Bucket=bucket, Key=f"é/{size} +%", Range="bytes=-5") if size else None
        )
        if ranged is not None:
            assert ranged["Body"].read() == body[-5:]
        s3.delete_object(Bucket=bucket, Key=f"é/{size} +%")
    s3.delete_bucket(Bucket=bucket)


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"])
@pytest.mark.s3(op=["PutObject", "GetObject"], headers=["x-amz-checksum-mode"])
def test_checksums(s3: Any, bucket: str, algorithm: str) -> None:
    if algorithm in ("CRC32C", "CRC64NVME"):
        # botocore computes these only with awscrt: give the value.
        from o3storage._native import crc32c, crc64nvme

        value = crc32c(b"x" * 1000).to_bytes(4, "big")
        if algorithm == "CRC64NVME":
            value = crc64nvme(b"x" * 1000).to_bytes(8, "big")
        given = {f"Checksum{algorithm}": base64.b64encode(value).decode()}
    else:
        given = {"ChecksumAlgorithm": algorithm}
    put = s3.put_object(Bucket=bucket, Key="k", Body=b"x" * 1000, **given)
    got = s3.get_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    assert got[f"Checksum{algorithm}"] == put[f"Checksum{algorithm}"]
    assert got["Body"].read() == b"x" * 1000


@pytest.mark.s3(op=["CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"])
def test_managed_transfers_use_multipart(s3: Any, bucket: str) -> None:
    body = os.urandom(12 * MIB + 5)
    config = TransferConfig(multipart_threshold=5 * MIB, multipart_chunksize=5 * MIB)
    s3.upload_fileobj(io.BytesIO(body), bucket, "big", Config=config)
    head = s3.head_object(Bucket=bucket, Key="big")
    assert head["ETag"].endswith('-3"')
    out = io.BytesIO()
    s3.download_fileobj(bucket, "big", out, Config=config)
    assert out.getvalue() == body
    s3.copy({"Bucket": bucket, "Key": "big"}, bucket, "copied", Config=config)
    assert s3.get_object(Bucket=bucket, Key="copied")["Body"].read() == body


@pytest.mark.s3(op=["ListObjects", "ListObjectsV2", "DeleteObjects"])
def test_listings_and_multi_delete(s3: Any, bucket: str) -> None:
    keys = [f"dir{n % 3}/key {n:03d} é+" for n in range(60)]
    for key in keys:
        s3.put_object(Bucket=bucket, Key=key, Body=key.encode())
    for name in ("list_objects", "list_objects_v2"):
        pages = s3.get_paginator(name).paginate(Bucket=bucket, PaginationConfig={"PageSize": 7})
        assert [e["Key"] for page in pages for e in page.get("Contents", [])] == sorted(keys)
        pages = s3.get_paginator(name).paginate(
            Bucket=bucket, Delimiter="/", PaginationConfig={"PageSize": 2}
        )
        prefixes = [p["Prefix"] for page in pages for p in page.get("CommonPrefixes", [])]
        assert prefixes == ["dir0/", "dir1/", "dir2/"]
    answer = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": k} for k in keys]})
    assert len(answer["Deleted"]) == 60 and "Errors" not in answer
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0


@pytest.mark.s3(op=["ListObjectVersions", "PutBucketVersioning", "GetBucketVersioning"])
def test_versions(s3: Any, bucket: str) -> None:
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
    ids = [s3.put_object(Bucket=bucket, Key="k", Body=b"%d" % n)["VersionId"] for n in range(3)]
    marker = s3.delete_object(Bucket=bucket, Key="k")
    assert marker["DeleteMarker"] is True
    listed = s3.list_object_versions(Bucket=bucket)
    assert [v["VersionId"] for v in listed["Versions"]] == ids[::-1]
    assert listed["DeleteMarkers"][0]["VersionId"] == marker["VersionId"]
    got = s3.get_object(Bucket=bucket, Key="k", VersionId=ids[0])
    assert got["Body"].read() == b"0"
    for version in [*ids, marker["VersionId"]]:
        s3.delete_object(Bucket=bucket, Key="k", VersionId=version)
    s3.delete_bucket(Bucket=bucket)


@pytest.mark.s3(op=["PutObject", "GetObject"], errors=["PreconditionFailed"])
def test_conditions(s3: Any, bucket: str) -> None:
    etag = s3.put_object(Bucket=bucket, Key="k", Body=b"1", IfNoneMatch="*")["ETag"]
    with pytest.raises(ClientError) as caught:
        s3.put_object(Bucket=bucket, Key="k", Body=b"2", IfNoneMatch="*")
    assert code_of(caught) == (412, "PreconditionFailed")
    s3.put_object(Bucket=bucket, Key="k", Body=b"3", IfMatch=etag)
    with pytest.raises(ClientError) as caught:
        s3.get_object(Bucket=bucket, Key="k", IfMatch=etag)
    assert code_of(caught) == (412, "PreconditionFailed")
    current = s3.head_object(Bucket=bucket, Key="k")["ETag"]
    with pytest.raises(ClientError) as caught:
        s3.get_object(Bucket=bucket, Key="k", IfNoneMatch=current)
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 304


@pytest.mark.s3(op=["PutObjectTagging", "PutBucketTagging", "PutBucketCors", "GetObjectAttributes"])
def test_settings(s3: Any, bucket: str) -> None:
    tags = {"TagSet": [{"Key": "a", "Value": "1"}]}
    s3.put_bucket_tagging(Bucket=bucket, Tagging=tags)
    assert s3.get_bucket_tagging(Bucket=bucket)["TagSet"] == tags["TagSet"]
    s3.put_object(Bucket=bucket, Key="k", Body=b"x", Tagging="b=2")
    s3.put_object_tagging(Bucket=bucket, Key="k", Tagging=tags)
    assert s3.get_object_tagging(Bucket=bucket, Key="k")["TagSet"] == tags["TagSet"]
    rules = {"CORSRules": [{"AllowedMethods": ["GET"], "AllowedOrigins": ["https://a.org"]}]}
    s3.put_bucket_cors(Bucket=bucket, CORSConfiguration=rules)
    assert s3.get_bucket_cors(Bucket=bucket)["CORSRules"] == rules["CORSRules"]
    attributes = s3.get_object_attributes(
        Bucket=bucket, Key="k", ObjectAttributes=["ETag", "ObjectSize", "Checksum"]
    )
    assert attributes["ObjectSize"] == 1
    assert s3.get_bucket_location(Bucket=bucket)["LocationConstraint"] is None
    assert s3.get_bucket_acl(Bucket=bucket)["Grants"][0]["Permission"] == "FULL_CONTROL"
    encryption = s3.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]
    assert encryption["Rules"][0]["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
    for name, code in (
        ("get_bucket_policy", "NoSuchBucketPolicy"),
        ("get_bucket_lifecycle_configuration", "NoSuchLifecycleConfiguration"),
        ("get_bucket_website", "NoSuchWebsiteConfiguration"),
        ("get_public_access_block", "NoSuchPublicAccessBlockConfiguration"),
        ("get_object_lock_configuration", "ObjectLockConfigurationNotFoundError"),
    ):
        with pytest.raises(ClientError) as caught:
            getattr(s3, name)(Bucket=bucket)
        assert code_of(caught) == (404, code)


@pytest.mark.s3(op=["GetObject", "PutObject", "PostObject"], headers=["?X-Amz-Expires"])
def test_presigned_urls_and_forms(server: Served, s3: Any, bucket: str) -> None:
    url = s3.generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": "a b"})
    virtual = url.startswith(f"http://{bucket}.{DOMAIN}:")
    assert virtual is (server.style == "virtual")
    request = urllib.request.Request(url, data=b"by url", method="PUT")
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 200
    url = s3.generate_presigned_url(
        "get_object",
        Params={"Bucket": bucket, "Key": "a b", "ResponseContentType": "text/html"},
    )
    with urllib.request.urlopen(url) as answer:
        assert answer.read() == b"by url"
        assert answer.headers["Content-Type"] == "text/html"
    post = s3.generate_presigned_post(bucket, "form/${filename}")
    boundary = "xyzzy"
    body = "".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in post["fields"].items()
    )
    body += (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="f.txt"\r\n\r\n'
        f"by form\r\n--{boundary}--\r\n"
    )
    request = urllib.request.Request(
        post["url"],
        data=body.encode(),
        headers={"Content-Type": f"multipart/form-data; boundary={boundary}"},
    )
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 204
    assert s3.get_object(Bucket=bucket, Key="form/f.txt")["Body"].read() == b"by form"


@pytest.mark.s3(op="*", errors=["SignatureDoesNotMatch", "InvalidAccessKeyId"])
def test_wrong_credentials(server: Served, bucket: str) -> None:
    with pytest.raises(ClientError) as caught:
        client(replace(server, secret="wrong")).list_objects_v2(Bucket=bucket)
    assert code_of(caught) == (403, "SignatureDoesNotMatch")
    with pytest.raises(ClientError) as caught:
        client(replace(server, key_id="AKIAUNKNOWN")).list_objects_v2(Bucket=bucket)
    assert code_of(caught) == (403, "InvalidAccessKeyId")


@pytest.mark.s3(op="PutObject", headers=["x-amz-content-sha256", "expect"])
def test_payload_forms(server: Served, bucket: str) -> None:
    configs: list[dict[str, Any]] = [
        {"request_checksum_calculation": "when_required"},
        {"request_checksum_calculation": "when_supported"},
        {"s3": {"payload_signing_enabled": True}},
    ]
    for config in configs:
        s3 = client(server, **config)
        body = os.urandom(300_000)
        s3.put_object(Bucket=bucket, Key="k", Body=io.BytesIO(body))
        assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == body


@pytest.mark.s3(op="PutObject", errors=["BadDigest"])
def test_a_wrong_digest_stores_nothing(s3: Any, bucket: str) -> None:
    wrong = base64.b64encode(bytes(16)).decode()
    for size in (10, 300_000):
        with pytest.raises(ClientError) as caught:
            s3.put_object(Bucket=bucket, Key="k", Body=b"x" * size, ContentMD5=wrong)
        assert code_of(caught) == (400, "BadDigest")
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0
