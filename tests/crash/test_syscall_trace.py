"""A kill cannot see a missing fsync, a trace of system calls can: before each 200 every file that
the write put data into was synced, and so was the directory of every new file among them (P1)."""

from __future__ import annotations

import asyncio
import bisect
import random
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from o3storage.storage._records import ENTRY, RecordBad, parse_header
from tests.support.running_store import RunningStore

pytestmark = pytest.mark.crash

CALLS = "openat,write,pwrite64,pwritev,pwritev2,fdatasync,fsync,sendto,sendmsg,writev"
LINE = re.compile(r"^(\d+) +(\d+\.\d+) (.*)$")
PATH = re.compile(r"<([^>]*)>")
MAGIC_AT = 32
"""Of a record, behind its checksum."""


@dataclass(slots=True)
class Call:
    name: str
    text: str
    started: float
    ended: float
    path: str


@dataclass(frozen=True, slots=True)
class Event:
    """What counts of a call. `started` of a name: when the file was made."""

    kind: str
    """write: data into `path`; name: `path`, a directory, has a new file with data in it; sync of
    `path`; answer."""
    started: float
    ended: float
    path: str = ""
    what: str = ""


def parse(trace: Path) -> list[Call]:
    """Completed calls in order of completion; calls that were interrupted by another thread's line
    are put together again."""
    calls: list[Call] = []
    open_calls: dict[str, tuple[float, str]] = {}
    for line in trace.read_text(errors="replace").splitlines():
        found = LINE.match(line)
        if not found:
            continue
        pid, at, text = found[1], float(found[2]), found[3]
        if text.endswith("<unfinished ...>"):
            open_calls[pid] = (at, text.removesuffix("<unfinished ...>"))
            continue
        started = at
        if text.startswith("<... "):
            if pid not in open_calls:
                continue
            started, begin = open_calls.pop(pid)
            text = begin + text.split("resumed>", 1)[1]
        name = text.split("(", 1)[0]
        path = PATH.search(text.rsplit(" = ", 1)[-1] if name == "openat" else text)
        calls.append(Call(name, text, started, at, path[1] if path else ""))
    return calls


def groups_written(call: Call) -> set[int]:
    """Whose log entries the write put into a log volume, as it is there now."""
    if not call.path.endswith(".log"):
        return set()
    found = re.search(r", \d+, (\d+)(?:, \w+)? *\) += (\d+)$", call.text.rstrip())
    assert found, call.text
    with Path(call.path).open("rb") as volume:
        volume.seek(int(found[1]))
        data = volume.read(int(found[2]))
    groups = set()
    for magic in re.finditer(b"O3Rc", data):
        try:
            header = parse_header(memoryview(data)[magic.start() - MAGIC_AT :])
        except RecordBad:
            continue
        if header.kind == ENTRY:
            groups.add(header.group)
    return groups


def events_in(calls: list[Call], data_dir: Path) -> list[Event]:
    """In order of completion. Requests were made one at a time, so all that was written between two
    answers belongs to the second; but for batches that hold commands of range 0 alone: after the
    first answer, which is a bucket's, only the node itself writes them, when it likes."""
    events: list[Event] = []
    created: dict[str, float] = {}
    answered = False
    for call in sorted(calls, key=lambda c: c.ended):
        # (The lock file holds a pid for people; nothing depends on it.)
        inside = call.path.startswith(str(data_dir)) and not call.path.endswith("/lock")
        if call.name == "openat" and inside and "O_CREAT" in call.text and " = -1" not in call.text:
            created[call.path] = call.ended
        elif call.name in {"pwrite64", "pwritev", "pwritev2"} and inside:
            data = re.search(r'"((?:[^"\\]|\\.)*)"', call.text)
            if data and not data[1].replace("\\0", "").strip():
                continue  # zero-fill ahead of use: nothing depends on it
            if answered and groups_written(call) == {0}:
                continue
            events.append(Event("write", call.started, call.ended, call.path, call.path))
            if call.path in created:
                parent = str(Path(call.path).parent)
                made = created.pop(call.path)
                events.append(Event("name", made, call.ended, parent, f"the name {call.path}"))
        elif call.name in {"fdatasync", "fsync"} and inside and call.text.rstrip().endswith("= 0"):
            events.append(Event("sync", call.started, call.ended, call.path))
        elif call.name in {"sendto", "sendmsg", "write", "writev"} and re.search(
            r'"HTTP/1\.1 20[04]', call.text
        ):
            events.append(Event("answer", call.started, call.ended))
            answered = True
    return events


def problems_in(events: list[Event]) -> tuple[int, list[str]]:
    """(answers to writes, what was not durable when they were sent)."""
    answers = 0
    problems: list[str] = []
    unsynced: dict[str, tuple[str, float]] = {}
    synced: dict[str, float] = {}
    syncs = 0
    for event in events:
        if event.kind == "write":
            unsynced[event.what] = (event.path, event.ended)
        elif event.kind == "name" and synced.get(event.path, 0.0) < event.started:
            unsynced[event.what] = (event.path, event.started)
        elif event.kind == "sync":
            syncs += 1
            synced[event.path] = event.started
            for what, (path, since) in list(unsynced.items()):
                if path == event.path and since <= event.started:
                    del unsynced[what]
        elif event.kind == "answer":
            answers += 1
            problems += [f"answer {answers}: {what} was not synced" for what in unsynced]
            if not syncs:
                problems.append(f"answer {answers}: no sync since the answer before")
            unsynced.clear()
            syncs = 0
    return answers, problems


def needed_syncs(events: list[Event]) -> dict[Event, int]:
    """Syncs that are the only one between a write, or the making of a name, and the next answer,
    with the number of that answer, from 0: said once more, without going through the events in
    order."""
    answers = [event.ended for event in events if event.kind == "answer"]
    syncs = [event for event in events if event.kind == "sync"]
    needed = {}
    for event in events:
        number = bisect.bisect_left(answers, event.ended)
        if event.kind not in {"write", "name"} or number == len(answers):
            continue
        since = event.started if event.kind == "name" else event.ended
        covering = [
            sync
            for sync in syncs
            if sync.path == event.path and since <= sync.started and sync.ended <= answers[number]
        ]
        if len(covering) == 1:
            needed[covering[0]] = number
    return needed


async def write_mixed(store: RunningStore, count: int) -> None:
    chance = random.Random(5)
    client = store.client()
    assert (await client.request("PUT", "/trace")).status == 200
    for number in range(count):
        kind = chance.random()
        path = f"/trace/k{chance.randrange(10)}"
        if kind < 0.2:
            answer = await client.request("DELETE", path)
        else:
            size = chance.choice([0, 100, 4096, 40_000, 300_000, 1_500_000])
            answer = await client.request("PUT", path, body=chance.randbytes(size))
        assert answer.status in {200, 204}, (number, answer)
    await client.close()


def test_every_answer_follows_its_syncs(tmp_path: Path) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed (tools/clients.sh installs it)")
    trace = tmp_path / "trace"
    data_dir = tmp_path / "data"
    wrapper = (strace, "-f", "-y", "-ttt", "-s", "48", "-e", f"trace={CALLS}", "-o", str(trace))
    with RunningStore(data_dir, wrapper=wrapper) as store:
        asyncio.run(write_mixed(store, 100))
        seen = trace.read_text(errors="replace")
        assert store.stop() == 0
    started = seen.index("HTTP/1.1 200") if "HTTP/1.1 200" in seen else 0
    assert started
    events = events_in(parse(trace), data_dir)
    answers, problems = problems_in(events)
    assert problems == []
    assert answers >= 101
    # The check would see it if any of these syncs were not there.
    needed = needed_syncs(events)
    syncs = [event for event in events if event.kind == "sync"]
    missed = {
        sync for sync in syncs if problems_in([event for event in events if event != sync])[1]
    }
    assert missed == set(needed)
    assert set(needed.values()) == set(range(answers)), "each answer depends on one at least"
    print(f"{answers} answers, {len(syncs)} syncs, {len(needed)} missed if they are taken out")


def test_the_check_can_fail(tmp_path: Path) -> None:
    """Short traces with one line taken out are refused."""
    lines = [
        '1 1.0 openat(AT_FDCWD</>, "log", O_RDWR|O_CREAT, 0600) = 5</d/v/log>',
        '1 2.0 pwritev(5</d/v/log>, [{iov_base="data", iov_len=4}], 1, 0) = 4',
        "2 3.0 fdatasync(5</d/v/log>) = 0",
        "2 3.5 fsync(6</d/v>) = 0",
        '1 4.0 sendto(7<socket:[1]>, "HTTP/1.1 200 OK\\r\\n"..., 100, 0, NULL, 0) = 100',
    ]
    trace = tmp_path / "trace"

    def problems(lines: list[str]) -> list[str]:
        trace.write_text("\n".join(lines))
        return problems_in(events_in(parse(trace), Path("/d")))[1]

    named_first = [lines[0], lines[3].replace("3.5", "1.5"), *lines[1:3], lines[4]]
    too_early = [lines[0], lines[2].replace("3.0", "1.5"), lines[1], *lines[3:]]
    assert problems(lines) == problems(named_first) == []
    assert problems(too_early) == ["answer 1: /d/v/log was not synced"]
    for removed, said in ((2, "/d/v/log was"), (3, "the name /d/v/log was")):
        left = [line for n, line in enumerate(lines) if n != removed]
        assert problems(left) == [f"answer 1: {said} not synced"]
