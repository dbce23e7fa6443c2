"""What a real store left behind, read by docs/format*.md alone: the same keys, versions and bytes."""

from __future__ import annotations

import ast
import asyncio
import html
import importlib
import re
from datetime import UTC, datetime

import pytest

from tests.support.running_store import RunningStore

from .directory_reader import DataDirectory, version_id

MIB = 1024 * 1024
ENABLE = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
SUSPEND = ENABLE.replace(b"Enabled", b"Suspended")
PARTS = [
    bytes(range(256)) * (5 * MIB // 256),
    b"of part 3, which part 2 never was" * 10_000,
    b"end",
]
METADATA = {"x-amz-meta-colour": "blue", "content-type": "text/plain", "cache-control": "no-cache"}


def readers():
    names = ("tests.storage.directory_reader", "tests.storage.independent_reader")
    return [importlib.import_module(name) for name in (*names, "tests.catalog.reader")]


def test_the_readers_import_nothing_of_the_store():
    names = set()
    for module in readers():
        with open(module.__file__) as source:
            tree = ast.parse(source.read())
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module)
    # (The other two of the readers stand among them.)
    assert names == {
        *("__future__", "collections.abc", "os", "struct", "typing", "zlib"),
        *("o3storage._native", "tests.catalog", "independent_reader"),
    }


async def fill(client):
    """Two buckets of objects; (bucket, key) -> the bodies that were put there, the newest last."""
    put = {}

    async def do(method, path, body=b"", status=200, **more):
        answer = await client.request(method, path, body=body, **more)
        assert answer.status == status, answer
        return answer

    async def store(path, body, **more):
        await do("PUT", path, body, **more)
        put.setdefault(tuple(path[1:].split("/", 1)), []).append(body)

    await do("PUT", "/plain")
    await store("/plain/empty", b"")
    await store("/plain/small", b"Hello, O3Storage!", headers=METADATA)
    await store("/plain/k\u00e9y/of %2F", b"odd", headers={"x-amz-tagging": "a=b&c=d"})
    await store("/plain/frames", b"0123456789abcdef" * (MIB // 16) + b"and a bit")
    await store("/plain/exact frames", bytes(2 * 262_144))
    await store("/plain/over", b"the first" * 9000)
    await store("/plain/over", b"the second")
    put["plain", "over"].pop(0)
    await store("/plain/gone", b"soon")
    await do("DELETE", "/plain/gone", status=204)
    del put["plain", "gone"]

    answer = await do("POST", "/plain/parts", query={"uploads": ""}, headers=METADATA)
    upload = re.search(rb"<UploadId>([^<]+)<", answer.body)[1].decode()
    listed = ""
    for number, part in zip((1, 3, 9), PARTS, strict=True):
        query = {"partNumber": str(number), "uploadId": upload}
        if number == 3:
            await do("PUT", "/plain/parts", b"put twice", query=query)
        etag = (await do("PUT", "/plain/parts", part, query=query)).headers["etag"]
        if number != 3:
            listed += f"<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>"
    # Part 3 is left out of the object.
    body = f"<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>".encode()
    assert (
        b"<Error>" not in (await do("POST", "/plain/parts", body, query={"uploadId": upload})).body
    )
    put["plain", "parts"] = [PARTS[0] + PARTS[2]]

    await do("PUT", "/versions")
    await store("/versions/kept", b"before versioning")
    await do("PUT", "/versions", ENABLE, query={"versioning": ""})
    await store("/versions/kept", b"one" * 20_000)
    await store("/versions/kept", b"two")
    await store("/versions/marked", b"still there")
    await do("DELETE", "/versions/marked", status=204)
    await store("/versions/replaced", b"an own version")
    await do("PUT", "/versions", SUSPEND, query={"versioning": ""})
    await store("/versions/replaced", b"a null version that goes")
    put["versions", "replaced"].pop()
    await store("/versions/replaced", b"a null version")
    return put


def texts(xml, element):
    return [
        {name: html.unescape(value) for name, value in re.findall(r"<(\w+)>([^<]*)</", one)}
        for one in re.findall(f"<(?:{element})>(.*?)</(?:{element})>", xml, re.DOTALL)
    ]


async def listings(client, bucket):
    """(keys, versions newest first) as S3 lists them."""
    flat = await client.request("GET", f"/{bucket}", query={"list-type": "2"})
    whole = await client.request("GET", f"/{bucket}", query={"versions": ""})
    return texts(flat.body.decode(), "Contents"), texts(whole.body.decode(), "Version|DeleteMarker")


def as_listed(key, found, **more):
    seconds, rest = divmod(found["modified"], 10**9)
    time = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    said = {"Key": key.decode(), "LastModified": f"{time}.{rest // 10**6:03d}Z", **more}
    if not found["marker"]:
        said |= {"ETag": f'"{found["etag"]}"', "Size": str(found["size"])}
    return said


def test_a_reader_of_the_pages_sees_what_s3_saw(tmp_path):
    data_dir = tmp_path / "data"

    async def use(store):
        client = store.client()
        put = await fill(client)
        listed = {bucket: await listings(client, bucket) for bucket in ("plain", "versions")}
        await client.close()
        return put, listed

    with RunningStore(data_dir) as store:
        put, listed = asyncio.run(use(store))
        assert store.stop() == 0
    seen = DataDirectory(data_dir)

    shown = {"Key", "LastModified", "ETag", "Size", "VersionId"}
    for bucket, (flat, whole) in listed.items():
        ours = [as_listed(key, found) for name, key, found in seen.objects() if name == bucket]
        assert ours == [{k: v for k, v in one.items() if k in shown} for one in flat]
        ours = [
            as_listed(key, found, VersionId=version_id(found))
            for name, key, found in seen.versions()
            if name == bucket
        ]
        assert ours == [{k: v for k, v in one.items() if k in shown} for one in whole]

    bodies = {}
    for bucket, key, found in seen.versions():
        if not found["marker"]:
            bodies.setdefault((bucket, key.decode()), []).insert(0, seen.body(found))
    assert bodies == put
    found = {(bucket, key): version for bucket, key, version in seen.objects()}
    for key in (b"small", b"parts"):
        assert found["plain", key]["metadata"] == [("colour", "blue")]
        assert {("content-type", "text/plain"), ("cache-control", "no-cache")} == set(
            found["plain", key]["headers"]
        )
    assert found["plain", "k\u00e9y/of %2F".encode()]["tags"] == [("a", "b"), ("c", "d")]
    assert found["plain", b"parts"]["parts"] == 2


@pytest.mark.parametrize("name", ["master.key", "node.keys"])
def test_another_key_opens_nothing(tmp_path, name):
    for one in ("a", "b"):
        with RunningStore(tmp_path / one) as store:
            assert store.stop() == 0
    (tmp_path / "a" / name).write_bytes((tmp_path / "b" / name).read_bytes())
    with pytest.raises((AssertionError, ValueError)):
        DataDirectory(tmp_path / "a")
