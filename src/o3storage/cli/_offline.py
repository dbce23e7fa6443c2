"""`verify` and `inspect`: the only commands that open a store's files; it must be stopped."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any, TypeVar

from o3storage.catalog import (
    NULL,
    CatalogError,
    NoSuchBucket,
    Query,
    VersionInfo,
    get_bucket,
    head_version,
    list_versions,
    parts_of_version,
    prefix_length,
    version_id,
)
from o3storage.cluster import ClusterError, decides_alone, node_id
from o3storage.crypto import KeyFault, MasterKey, StreamRef
from o3storage.runtime import JobPool, NativeJobs, SystemClock, SystemEntropy
from o3storage.runtime.state_machine import First, Get, Read
from o3storage.server import DataDir, StartError, data_dir_path, open_data_dir
from o3storage.storage import OfflineStore, StoreError
from o3storage.storage import verify as verify_store

from ._owners import name_streams
from ._store import CommandError
from ._text import Progress, printable, size_text, table

MAX_SHOWN = 50
"""Problems listed on the terminal; the rest is counted (all are in --json)."""
MAX_VERSIONS_SHOWN = 100
MAX_DIGITS = 18
"""Of a volume's number or an offset: below 2**63."""
T = TypeVar("T")


@asynccontextmanager
async def stopped_store(options: argparse.Namespace) -> AsyncIterator[tuple[DataDir, NativeJobs]]:
    """The locked data directory of a stopped store. Raises CommandError."""
    pool = JobPool()
    await pool.start()
    try:
        master = MasterKey.from_environment(os.environ)
        opened = await open_data_dir(
            data_dir_path(options.data_dir), pool, SystemEntropy(), master, create=False
        )
    except (StartError, KeyFault) as error:
        await pool.close()
        raise CommandError(str(error)) from None
    try:
        yield opened, NativeJobs(pool)
    except StoreError as error:
        raise CommandError(f"{opened.path}: {error}") from None
    except BrokenPipeError:
        raise  # the reader of our output went away, as `head` does
    except OSError as error:
        raise CommandError(f"{opened.path}: {error.strerror or error}") from None
    finally:
        opened.release()
        await pool.close()


class _Steps:
    """Progress of a command with several steps, a bar for each."""

    def __init__(self) -> None:
        self._name = ""
        self._bar: Progress | None = None

    def update(self, step: str, part: float) -> None:
        if step != self._name:
            self.done()
            self._name, self._bar = step, Progress(step, 1000)
        assert self._bar is not None
        self._bar.update(part * 1000)

    def done(self) -> None:
        if self._bar is not None:
            self._bar.done()
        self._name, self._bar = "", None


def verify(options: argparse.Namespace) -> int:
    """Check everything; exit 0 when all is good, 1 when something was not (repaired or not)."""

    async def check() -> int:
        async with stopped_store(options) as (opened, jobs):
            steps = _Steps()
            started = time.monotonic()
            try:
                node = node_id(opened.keys.node)
                alone = await decides_alone(opened.disk, node) if options.repair else None
            except ClusterError as error:
                raise CommandError(str(error)) from None
            report = await verify_store(
                opened.disk,
                disk_key=opened.keys.node.disk_key,
                jobs=jobs,
                clock=SystemClock(),
                entropy=SystemEntropy(),
                repair=options.repair,
                return_disk=options.return_disk,
                prefix_length=prefix_length,
                on_progress=steps.update,
                name_streams=name_streams,
                decides_alone=alone,
            )
            steps.done()
            took_s = time.monotonic() - started
        good = report.clean and not report.out_of_service
        if options.json:
            print(json.dumps({**asdict(report), "clean": report.clean}, indent=2))
            return 0 if good else 1
        print(
            f"read {size_text(report.bytes_read)} in {took_s:.1f} s: {report.volumes} volumes, "
            f"{report.records:,} records, {report.frames:,} frames "
            f"({report.placed_frames:,} of them in use)"
        )
        for problem in report.problems[:MAX_SHOWN]:
            print(f"BAD {problem.kind:<9} {problem.where}: {problem.detail}")
        if report.problem_count > MAX_SHOWN:
            print(f"... and {report.problem_count - MAX_SHOWN:,} more; --json lists them")
        for name, what in list(report.lost.items())[:MAX_SHOWN]:
            print(f"LOST {printable(name)}: {'; '.join(what)}")
        if len(report.lost) > MAX_SHOWN:
            print(f"... and {len(report.lost) - MAX_SHOWN:,} more; --json lists them")
        for note in report.notes:
            print(f"NOTE {note}")
        for line in report.repaired:
            print(f"repaired: {line}")
        if report.returned:
            print("the disk is back in service")
        elif report.out_of_service:
            print("the disk is out of service; after a good check, verify --return-disk returns it")
        if report.clean:
            print("everything is good")
        elif not options.repair:
            print(f"{report.problem_count:,} problems; --repair sets aside what is bad")
        return 0 if good else 1

    return asyncio.run(check())


def inspect(options: argparse.Namespace) -> int:
    """Show volumes, one volume's records, one record, or one object."""
    show: dict[str, Callable[[OfflineStore, list[str]], Awaitable[int]]] = {
        "volumes": _show_volumes,
        "volume": _show_volume,
        "record": _show_record,
        "object": _show_object,
    }

    async def run() -> int:
        async with stopped_store(options) as (opened, jobs):
            store = await OfflineStore.open(
                opened.disk,
                disk_key=opened.keys.node.disk_key,
                jobs=jobs,
                clock=SystemClock(),
                entropy=SystemEntropy(),
                prefix_length=prefix_length,
            )
            try:
                return await show[options.what](store, options.names)
            finally:
                await store.close()

    return asyncio.run(run())


async def _show_volumes(store: OfflineStore, names: list[str]) -> int:
    if names:
        raise CommandError("`volumes` takes no name; for one: o3storage inspect volume 1")
    rows = [
        [f"{v.volume:08d}", v.kind, size_text(v.size_bytes), str(v.epoch), str(v.born_sequence)]
        for v in store.volumes()
    ]
    print(table(["volume", "kind", "size", "opened", "from sequence"], rows))
    for path in store.bad_headers:
        print(f"BAD header: {path}")
    print(f"index: {store.index_state}")
    for group in store.groups():
        state = store.log_state(group)
        print(
            f"group {group}: entries {state.first_index} to {state.last_index}, term "
            f"{state.hard_state.term}, committed {state.hard_state.commit}, "
            f"applied {state.applied_index}"
        )
    return 0


def _number(text: str, what: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > MAX_DIGITS:
        raise CommandError(f"{text!r} is no number of {what}")
    return int(text)


async def _show_volume(store: OfflineStore, names: list[str]) -> int:
    if len(names) != 1:
        raise CommandError("name one volume, for example: o3storage inspect volume 1")
    bad = 0
    async for record in store.records(_number(names[0], "a volume")):
        bad += record.kind == "bad"
        print(f"{record.offset:>12} {record.size_bytes:>8} {record.kind:<9} {record.text}")
    return 1 if bad else 0


async def _show_record(store: OfflineStore, names: list[str]) -> int:
    if len(names) != 2:
        raise CommandError("name a volume and an offset: o3storage inspect record 1 8192")
    found = await store.record(_number(names[0], "a volume"), _number(names[1], "an offset"))
    summary = found.summary
    print(f"{summary.kind} at {summary.offset}, {summary.size_bytes} bytes: {summary.text}")
    print("its checksum and seal hold" if found.sound else "DAMAGED")
    for line in found.lines:
        print(f"  {line}")
    return 0 if found.sound else 1


async def _run_query(store: OfflineStore, query: Query[T]) -> T:
    generator: Generator[Read, Any, T] = query()
    try:
        read = next(generator)
        while True:
            found: Any
            if isinstance(read, Get):
                found = await store.get(read.key)
            elif isinstance(read, First):
                rows = await store.scan(read.prefix, read.prefix + b"\xff" * 16, 1)
                found = rows[0] if rows else None
            else:
                found = await store.scan(read.low, read.high, read.limit)
            read = generator.send(found)
    except StopIteration as end:
        result: T = end.value
        return result


async def _show_object(store: OfflineStore, names: list[str]) -> int:
    bucket_name, slash, key = (names[0] if names else "").removeprefix("s3://").partition("/")
    if len(names) != 1 or not slash or not key:
        raise CommandError("name one object: o3storage inspect object s3://bucket/key")
    try:
        raw = key.encode()
        bucket_name.encode()
    except UnicodeEncodeError:  # what is not UTF-8 arrives with lone surrogates
        raise CommandError("names of buckets and objects are UTF-8") from None
    try:
        bucket = await _run_query(store, get_bucket(bucket_name))
        page = await _run_query(
            store, list_versions(bucket.bucket_id, raw, max_keys=MAX_VERSIONS_SHOWN)
        )
    except NoSuchBucket:
        raise CommandError(f"there is no bucket {bucket_name}") from None
    except CatalogError as error:
        raise CommandError(str(error)) from None
    entries = [entry for entry in page.entries if entry[0] == raw]
    if not entries:
        raise CommandError(f"there is no object {key} in {bucket_name}")
    for _key, order, is_null, _latest, delete_marker, modified_ns, *_ in entries:
        if delete_marker:
            print(f"version {version_id(order)}: delete marker of {_when(modified_ns)}")
            continue
        which = NULL if is_null else order
        await _show_version(
            store,
            bucket.bucket_id,
            await _run_query(store, head_version(bucket.bucket_id, raw, which)),
        )
    if len(entries) == MAX_VERSIONS_SHOWN:
        print(f"... the newest {MAX_VERSIONS_SHOWN} versions; there may be more")
    return 0


def _when(modified_ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(modified_ns / 1e9))


async def _show_version(store: OfflineStore, bucket_id: int, version: VersionInfo) -> None:
    name = "null" if version.is_null else version_id(version.order)
    when = _when(version.modified_ns)
    print(f"version {name}: {version.size_bytes:,} bytes, {when}, ETag {version.etag}")
    print(f"  BLAKE3 {version.blake3.hex()}")
    if version.upload_id:
        print(f"  multipart: {version.part_count} parts of upload {version.upload_id.hex()}")
        after = 0
        while spans := await _run_query(store, parts_of_version(bucket_id, version, after)):
            for span in spans:
                print(f"  part {span.number}: {span.size_bytes:,} bytes at {span.offset:,}")
                if span.body:
                    await _show_stream(store, span.body, "    ")
            after = spans[-1].number
    if version.body:
        await _show_stream(store, version.body, "  ")


async def _show_stream(store: OfflineStore, body: bytes, indent: str) -> None:
    stream = StreamRef.unpack(body).stream
    print(f"{indent}stream {stream.hex()}")
    for place in await store.stream_places(stream):
        print(
            f"{indent}frame {place.number}: volume {place.volume:08d} offset {place.offset}, "
            f"{place.record_bytes} bytes"
        )
