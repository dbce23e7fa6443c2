"""Every common S3 client, over http and over TLS: a full round trip, bytes compared.

O3_CLIENT_TREE_MIB sets the size of the tree that is synced (32 MiB in CI).
"""

from __future__ import annotations

import filecmp
import hashlib
import json
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.clients.tools import TOOLS, Aws, DebianAws, Place, Tool
from tests.support.running_store import RunningStore

pytestmark = pytest.mark.clients

TREE_MIB = int(os.environ.get("O3_CLIENT_TREE_MIB", "32"))
LARGE_BYTES = 20 * 1024 * 1024 + 12345
"""Above every client's multipart threshold."""
PART_BYTES = 5 * 1024 * 1024
"""The least that a part but the last may have."""


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and localhost."""
    certificate, key = directory / "cert.pem", directory / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-subj", "/CN=localhost", "-keyout", str(key),
         "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key


@pytest.fixture(scope="module", params=["http", "tls"])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RunningStore, Path | None]]:
    directory = tmp_path_factory.mktemp(request.param)
    arguments: list[str] = []
    ca = None
    if request.param == "tls":
        ca, key = make_certificate(directory)
        arguments = ["--tls-cert", str(ca), "--tls-key", str(key)]
    with RunningStore(directory / "data", *arguments) as store:
        yield store, ca
        assert store.stop() == 0


def write_random(path: Path, size_bytes: int, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(random.Random(seed).randbytes(size_bytes))


def make_tree(directory: Path) -> None:
    """Files of many sizes and names, TREE_MIB in all."""
    chance = random.Random(7)
    left = TREE_MIB * 1024 * 1024
    number = 0
    while left > 0:
        size = min(left, chance.choice([0, 1, 1000, 70_000, 300_000, 9_000_000, 17_000_000]))
        folder = chance.choice(["a", "b/c", "with space", "ünï", "plus+sign"])
        write_random(directory / folder / f"file {number}.bin", size, number)
        left -= max(size, 1000)
        number += 1


def same_tree(left: Path, right: Path) -> bool:
    files = sorted(p.relative_to(left) for p in left.rglob("*") if p.is_file())
    others = sorted(p.relative_to(right) for p in right.rglob("*") if p.is_file())
    return files == others and all(
        filecmp.cmp(left / file, right / file, shallow=False) for file in files
    )


@pytest.mark.parametrize("make_tool", TOOLS, ids=lambda tool: tool.name)
def test_round_trip(
    make_tool: Callable[[Place], Tool],
    served: tuple[RunningStore, Path | None],
    tmp_path: Path,
) -> None:
    store, ca = served
    tool = make_tool(Place(store, tmp_path, ca))
    bucket = f"round-trip-{tool.name}"
    sizes = {"empty": 0, "small.txt": 11, "dir/middle": 300_000, "dir/large": LARGE_BYTES}
    tool.make_bucket(bucket)
    for number, (key, size) in enumerate(sizes.items()):
        write_random(tmp_path / "up" / key, size, number)
        tool.upload(tmp_path / "up" / key, bucket, key)
    assert tool.keys(bucket) == sorted(sizes)
    for key in sizes:
        target = tmp_path / "down" / key
        target.parent.mkdir(parents=True, exist_ok=True)
        tool.download(bucket, key, target)
        assert filecmp.cmp(tmp_path / "up" / key, target, shallow=False), key
    for key in sizes:
        tool.delete(bucket, key)
    assert tool.keys(bucket) == []
    tool.remove_bucket(bucket)


@pytest.mark.parametrize("make_tool", TOOLS, ids=lambda tool: tool.name)
def test_sync_of_a_tree(
    make_tool: Callable[[Place], Tool],
    served: tuple[RunningStore, Path | None],
    tmp_path: Path,
) -> None:
    store, ca = served
    tool = make_tool(Place(store, tmp_path, ca))
    if type(tool).sync_up is Tool.sync_up:
        pytest.skip(f"{tool.name} has no command that syncs a tree")
    bucket = f"tree-{tool.name}"
    tree, back = tmp_path / "tree", tmp_path / "back"
    make_tree(tree)
    back.mkdir()
    tool.make_bucket(bucket)
    assert tool.sync_up(tree, bucket, "tree")
    tool.sync_down(bucket, "tree", back)
    assert same_tree(tree, back)


@pytest.mark.parametrize("make_tool", [Aws, DebianAws], ids=lambda tool: tool.name)
def test_s3api(
    make_tool: type[Aws], served: tuple[RunningStore, Path | None], tmp_path: Path
) -> None:
    """Each operation by itself, as scripts call them: one PUT, and a multipart upload by hand."""
    store, ca = served
    tool = make_tool(Place(store, tmp_path, ca))
    bucket = f"s3api-{tool.name}"
    source, back = tmp_path / "source", tmp_path / "back"
    write_random(source, PART_BYTES + 12345, 11)
    content = source.read_bytes()
    tool.s3api("create-bucket", "--bucket", bucket)

    at = ("--bucket", bucket, "--key", "dir/whole file")
    done = tool.s3api("put-object", *at, "--body", str(source), "--metadata", "a=1")
    assert done["ETag"] == f'"{hashlib.md5(content).hexdigest()}"'
    got = tool.s3api("get-object", *at, str(back))
    assert (got["ContentLength"], got["Metadata"]) == (len(content), {"a": "1"})
    assert back.read_bytes() == content
    ranged = tool.s3api("get-object", *at, "--range", "bytes=5-9", str(back))
    assert ranged["ContentRange"] == f"bytes 5-9/{len(content)}"
    assert back.read_bytes() == content[5:10]

    at = ("--bucket", bucket, "--key", "parts")
    upload = tool.s3api("create-multipart-upload", *at)["UploadId"]
    parts = []
    for number, data in ((1, content[:PART_BYTES]), (2, content[PART_BYTES:])):
        (tmp_path / "part").write_bytes(data)
        done = tool.s3api(
            "upload-part", *at, "--upload-id", upload, "--part-number", str(number),
            "--body", str(tmp_path / "part"),
        )  # fmt: skip
        parts.append({"PartNumber": number, "ETag": done["ETag"]})
    listed = tool.s3api("list-parts", *at, "--upload-id", upload)["Parts"]
    assert [(part["PartNumber"], part["ETag"]) for part in listed] == [
        (part["PartNumber"], part["ETag"]) for part in parts
    ]
    tool.s3api(
        "complete-multipart-upload", *at, "--upload-id", upload,
        "--multipart-upload", json.dumps({"Parts": parts}),
    )  # fmt: skip
    got = tool.s3api("get-object", *at, str(back))
    assert got["ETag"].endswith('-2"') and back.read_bytes() == content

    assert tool.keys(bucket) == ["dir/whole file", "parts"]
    for key in tool.keys(bucket):
        tool.s3api("delete-object", "--bucket", bucket, "--key", key)
    tool.s3api("delete-bucket", "--bucket", bucket)
