"""`o3storage inspect` on a stopped store."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from o3storage.cli import run
from o3storage.cli._offline import MAX_VERSIONS_SHOWN
from tests.support.running_store import RunningStore


def inspect(data_dir: Path, *names: str) -> int:
    return run(["inspect", "--data-dir", str(data_dir), *names])


def test_what_is_there_and_what_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data_dir = tmp_path / "data"
    with RunningStore(data_dir) as store:

        async def fill() -> None:
            client = store.client()
            enable = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
            for path, query, body in (
                ("/bucket", {}, b""),
                ("/bucket", {"versioning": ""}, enable),
                ("/bucket/a/k\u00e9y", {}, b"hello"),
                *[("/bucket/many", {}, b"x")] * (MAX_VERSIONS_SHOWN + 1),
            ):
                answer = await client.request("PUT", path, query=query, body=body)
                assert answer.status == 200, answer
            await client.close()

        asyncio.run(fill())
        assert store.stop() == 0
    assert inspect(data_dir) == 0
    assert "index: good" in capsys.readouterr().out
    assert inspect(data_dir, "object", "s3://bucket/a/k\u00e9y") == 0
    shown = capsys.readouterr().out
    assert "5 bytes" in shown and "frame 0: volume" in shown
    assert inspect(data_dir, "object", "bucket/many") == 0
    shown = capsys.readouterr().out
    assert shown.count("version ") == MAX_VERSIONS_SHOWN and "there may be more" in shown
    not_utf8 = os.fsdecode(b"\xff")
    for names, says in (
        (["volumes", "1"], "takes no name"),
        (["volume"], "name one volume"),
        (["volume", "99"], "not in this data directory"),
        (["volume", "9" * 5000], "is no number of a volume"),
        (["volume", "x"], "is no number of a volume"),
        (["record", "1"], "name a volume and an offset"),
        (["record", "1", "\u00b2"], "is no number of an offset"),
        (["object"], "name one object"),
        (["object", "s3://bucket/"], "name one object"),
        (["object", "s3://none/k"], "no bucket none"),
        (["object", "s3://bucket/a"], "no object a in bucket"),
        (["object", f"s3://bucket/{not_utf8}"], "UTF-8"),
        (["object", f"s3://{not_utf8}/k"], "UTF-8"),
    ):
        assert inspect(data_dir, *names) == 1, names
        error = capsys.readouterr().err
        assert says in error and error.startswith("o3storage: ") and error.count("\n") == 1, error
