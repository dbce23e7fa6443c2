"""kill -9 at random instants under concurrent writers: no acknowledged operation is lost (P1),
nothing half-present appears (P2, P3), and `verify` finds nothing wrong.

O3_CRASH_KILLS sets the number of kills (25 in CI). A campaign, with its progress:

    O3_CRASH_KILLS=500 .venv/bin/python -m pytest -s -o faulthandler_timeout=0 tests/crash/test_kill.py
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import re
import signal
import time
from pathlib import Path

import pytest

from o3storage.cli._client import Client, ClientError
from tests.crash.history import Key
from tests.support.running_store import RunningStore, run_command

pytestmark = pytest.mark.crash

KILLS = int(os.environ.get("O3_CRASH_KILLS", "25"))
SEED = int(os.environ.get("O3_CRASH_SEED", "1"))
WRITERS = 16
KEYS_PER_WRITER = 6
MIB = 1024 * 1024
PART_BYTES = 5 * MIB
LOAD_S = 1.0
"""A kill of a store that answers comes at a random instant of so long."""
OPENINGS = 2
"""A kill that counts from the start of the process comes at a random instant of so many times what
the last opening took: on any machine about half of them hit the opening."""
VERIFY_EVERY = 10
"""Kills between two runs of `verify`, which reads the whole store."""
TEND_MIB = 400
"""A store that takes more is left to its compaction for a while, which short lives between kills
never give it: the objects themselves take about 50."""
TEND_S = 60
"""The longest while."""


class Writer:
    """One client with keys of its own, doing one random operation after the other."""

    def __init__(self, number: int, seed: int) -> None:
        self.number = number
        self.random = random.Random(f"{seed}/{number}")
        self.keys = {f"w{number:02d}/k{n}": Key() for n in range(KEYS_PER_WRITER)}
        self.done = 0

    def body(self) -> bytes:
        kind = self.random.random()
        if kind < 0.6:
            size = self.random.randrange(0, 9000)
        elif kind < 0.9:
            size = self.random.randrange(30_000, 300_000)
        else:
            size = self.random.randrange(500_000, 3_000_000)
        return self.random.randbytes(size)

    async def run(self, client: Client) -> None:
        """Until the store is gone."""
        while True:
            name = self.random.choice(list(self.keys))
            key = self.keys[name]
            kind = self.random.random()
            try:
                if kind < 0.15:
                    await self.delete(client, name, key)
                elif kind < 0.2:
                    await self.multipart(client, name, key)
                else:
                    await self.put(client, name, key)
            except ClientError:
                return
            self.done += 1

    async def put(self, client: Client, name: str, key: Key) -> None:
        body = self.body()
        state = hashlib.sha256(body).digest()
        key.begin(state)
        answer = await client.request("PUT", f"/crash/{name}", body=body)
        assert answer.status == 200, answer
        key.acknowledge(state)

    async def delete(self, client: Client, name: str, key: Key) -> None:
        key.begin(None)
        answer = await client.request("DELETE", f"/crash/{name}")
        assert answer.status == 204, answer
        key.acknowledge(None)

    async def multipart(self, client: Client, name: str, key: Key) -> None:
        answer = await client.request("POST", f"/crash/{name}", query={"uploads": ""})
        assert answer.status == 200, answer
        found = re.search(rb"<UploadId>([^<]+)</UploadId>", answer.body)
        assert found
        upload_id = found[1].decode()
        parts = [self.random.randbytes(PART_BYTES), self.random.randbytes(1000)]
        listed = []
        for number, part in enumerate(parts, 1):
            answer = await client.request(
                "PUT",
                f"/crash/{name}",
                query={"partNumber": str(number), "uploadId": upload_id},
                body=part,
            )
            assert answer.status == 200, answer
            listed.append(
                f"<Part><PartNumber>{number}</PartNumber><ETag>{answer.headers['etag']}</ETag></Part>"
            )
        state = hashlib.sha256(b"".join(parts)).digest()
        key.begin(state)
        answer = await client.request(
            "POST",
            f"/crash/{name}",
            query={"uploadId": upload_id},
            body=f"<CompleteMultipartUpload>{''.join(listed)}</CompleteMultipartUpload>".encode(),
        )
        assert answer.status == 200 and b"<Error>" not in answer.body, answer
        key.acknowledge(state)


async def kill_under_load(store: RunningStore, writers: list[Writer], after_s: float) -> bool:
    """kill -9 `after_s` from now, the writers at work as soon as the store answers. Whether it
    did."""
    clock = asyncio.get_running_loop()
    clock.call_later(after_s, store.process.kill)
    answered = await asyncio.to_thread(store.started) if not store.screen else True
    if answered:
        clients = [store.client() for _ in writers]
        await asyncio.gather(
            *[writer.run(client) for writer, client in zip(writers, clients, strict=True)]
        )
        for client in clients:
            await client.close()
    store.kill()
    assert store.process.returncode == -signal.SIGKILL  # it did not end by itself
    return answered


def holds_lock(store: RunningStore) -> bool:
    """The store's process has come as far as the data directory."""
    lock = store.data_dir / "lock"
    return lock.exists() and lock.read_text().split() == [str(store.process.pid)]


async def check(store: RunningStore, writers: list[Writer]) -> list[str]:
    """Every key against what its writer was told, and the listing against the keys."""
    problems = []
    client = store.client()
    present = set()
    for writer in writers:
        for name, key in writer.keys.items():
            answer = await client.request("GET", f"/crash/{name}")
            if answer.status == 200:
                found = hashlib.sha256(answer.body).digest()
                present.add(name)
            else:
                assert answer.status == 404, answer
                found = None
            problem = key.observe(found)
            if problem:
                problems.append(f"{name} {problem}")
    answer = await client.request("GET", "/crash", query={"list-type": "2"})
    listed = {name.decode() for name in re.findall(rb"<Key>([^<]+)</Key>", answer.body)}
    if listed != present:
        problems.append(f"listing and objects differ in {sorted(listed ^ present)}")
    await abort_uploads(client)
    await client.close()
    return problems


async def abort_uploads(client: Client) -> None:
    """What multipart uploads left when they were killed, or the store would grow with each kill."""
    answer = await client.request("GET", "/crash", query={"uploads": ""})
    assert answer.status == 200, answer
    for upload in re.findall(rb"<Upload>(.*?)</Upload>", answer.body, re.DOTALL):
        name = re.search(rb"<Key>([^<]+)</Key>", upload)
        upload_id = re.search(rb"<UploadId>([^<]+)</UploadId>", upload)
        assert name and upload_id
        answer = await client.request(
            "DELETE", f"/crash/{name[1].decode()}", query={"uploadId": upload_id[1].decode()}
        )
        assert answer.status == 204, answer


def size_mib(data_dir: Path) -> int:
    """What the data directory takes on its disk."""
    held_bytes = 0
    for path in data_dir.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            held_bytes += path.stat().st_blocks * 512
    return held_bytes // MIB


def let_it_compact(data_dir: Path) -> None:
    """A clean stop lets go of log volumes; then it runs without requests until it is small."""
    with RunningStore(data_dir) as store:
        assert store.stop() == 0
    with RunningStore(data_dir) as store:
        end_s = time.monotonic() + TEND_S
        while size_mib(data_dir) > TEND_MIB // 2 and time.monotonic() < end_s:
            time.sleep(1)
        store.kill()


def test_no_acknowledged_operation_is_lost(tmp_path: Path) -> None:
    """Every second kill counts from the start of the process, and so does its range: in some it
    is still opening. The others count from when it answered, and all that was acknowledged was
    found."""
    data_dir = tmp_path / "data"
    chance = random.Random(SEED)
    writers = [Writer(number, SEED) for number in range(WRITERS)]
    with RunningStore(data_dir) as store:

        async def make_bucket() -> None:
            client = store.client()
            assert (await client.request("PUT", "/crash")).status == 200
            await client.close()

        asyncio.run(make_bucket())
        assert store.stop() == 0
    before_lock = opening = 0
    opened_s = 0.0

    began_s = time.monotonic()
    for kill in range(1, KILLS + 1):
        if kill % 2:
            start_s = time.monotonic()
            with RunningStore(data_dir) as store:
                opened_s = time.monotonic() - start_s
                assert asyncio.run(check(store, writers)) == []
                asyncio.run(kill_under_load(store, writers, chance.uniform(0, LOAD_S)))
        else:
            after_s = chance.uniform(0, OPENINGS * opened_s)
            with RunningStore(data_dir, wait=False) as store:
                if not asyncio.run(kill_under_load(store, writers, after_s)):
                    opening += holds_lock(store)
                    before_lock += not holds_lock(store)
        if kill % VERIFY_EVERY == 0 or kill == KILLS:
            held_mib = size_mib(data_dir)
            if held_mib > TEND_MIB:
                let_it_compact(data_dir)
            report = run_command("verify", "--data-dir", str(data_dir))
            assert report.returncode == 0, report.stdout + report.stderr
            left_min = (time.monotonic() - began_s) / kill * (KILLS - kill) / 60
            print(
                f"{kill} of {KILLS} kills, {opening} of them while the store was opening and "
                f"{before_lock} before that; {sum(writer.done for writer in writers)} acknowledged "
                f"operations, {held_mib} MiB held, about {left_min:.0f} min left",
                flush=True,
            )
    with RunningStore(data_dir) as store:
        assert asyncio.run(check(store, writers)) == []
        assert store.stop() == 0
