"""Every system call that a served store makes under Linux is one that O3StorageOS offers.

The store is traced through its start, one round of requests and its stop; the calls, and those of
their arguments that a limit in os/SYSCALLS.md speaks of, are compared with that table.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from pathlib import Path

import pytest

from tests.support.running_store import RunningStore

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "os/SYSCALLS.md"
# What the store may find missing, and why that is not mended yet.
KNOWN_MISSING = {
    "openat O_DIRECT": "second half: files in memory have no disk to go to past the cache",
}
# A wrong argument for each call with a limit, as strace prints it.
LIMITS = {
    "openat": r"O_TMPFILE|O_PATH|O_DIRECT(?!ORY)",
    "mmap": r"PROT_WRITE\|PROT_EXEC|PROT_WRITE[^,]*, MAP_SHARED[^,]*, \d",
    "mprotect": r"PROT_EXEC",
    "mremap": r"MREMAP_FIXED",
    "fallocate": r"FALLOC_FL_(?!KEEP_SIZE)\w+",
    "futex": r"FUTEX_(?!WAIT|WAKE|PRIVATE|CLOCK|BITSET_MATCH_ANY)\w+",
    "socket": r"AF_(?!INET,)\w+|SOCK_(?!STREAM|DGRAM|NONBLOCK|CLOEXEC)\w+",
    "socketpair": r"AF_(?!UNIX,)\w+|SOCK_(?!STREAM|NONBLOCK|CLOEXEC)\w+",
    "sendmsg": r"SCM_\w+",
    "setsockopt": r"SO_RCVLOWAT|SO_INCOMING\w+|TCP_(?!NODELAY|KEEP)\w+|IPPROTO_IP\b",
    "preadv2": r"RWF_APPEND",
    "pwritev2": r"RWF_APPEND",
    "fcntl": r"F_(?!DUPFD|DUPFD_CLOEXEC|GETFD|SETFD|GETFL|SETFL)\w+",
}
LINE = re.compile(r"^\d+ +(\w+)\((.*)", re.M)


def offered() -> dict[str, str]:
    """Name -> "offered", or "refused" for what answers ENOSYS for good and is lived without."""
    text = TABLE.read_text()
    table, _, refused = text.partition("\nThese answer ENOSYS")
    found = dict.fromkeys(re.findall(r"^\| \d+ \| (\w+) \|", table, re.M), "offered")
    return found | dict.fromkeys(re.findall(r"(\w+) \(\d+\)", refused), "refused")


def missing_in(trace: str) -> set[str]:
    """What the table lacks: names of calls, or a call and the argument that it does not take."""
    known = offered()
    missing = set()
    for name, arguments in LINE.findall(trace):
        if name not in known:
            missing.add(name)
        elif name in LIMITS and (found := re.search(LIMITS[name], arguments)):
            missing.add(f"{name} {found[0]}")
    return missing


async def round_of_requests(store: RunningStore) -> None:
    client = store.client()

    async def ask(method: str, path: str, body: bytes = b"", **query: str) -> bytes:
        answer = await client.request(method, path, query=query, body=body)
        assert answer.status in {200, 204, 206}, (method, path, answer)
        return answer.body

    await ask("PUT", "/bucket")
    large = bytes(3_000_000)
    for size in (0, 100, 40_000, len(large)):
        await ask("PUT", f"/bucket/{size}", large[:size])
        assert await ask("GET", f"/bucket/{size}") == large[:size]
    await ask("HEAD", "/bucket/100")
    assert b"<Key>40000</Key>" in await ask("GET", "/bucket", **{"list-type": "2"})
    started = await ask("POST", "/bucket/parts", uploads="")
    found = re.search(rb"<UploadId>(.*?)</UploadId>", started)
    assert found is not None
    upload = {"uploadId": found[1].decode()}
    part = bytes(5 << 20)
    await ask("PUT", "/bucket/parts", part, partNumber="1", **upload)
    tags = re.search(rb"<ETag>(.*?)</ETag>", await ask("GET", "/bucket/parts", **upload))
    assert tags is not None
    done = b"<Part><PartNumber>1</PartNumber><ETag>%s</ETag></Part>" % tags[1]
    done = b"<CompleteMultipartUpload>%s</CompleteMultipartUpload>" % done
    await ask("POST", "/bucket/parts", done, **upload)
    assert await ask("GET", "/bucket/parts") == part
    for key in ("0", "100", "40000", str(len(large)), "parts"):
        await ask("DELETE", f"/bucket/{key}")
    await ask("DELETE", "/bucket")
    await client.close()


def test_a_served_round_trip_makes_only_calls_that_are_offered(tmp_path: Path) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed (tools/clients.sh installs it)")
    trace = tmp_path / "trace"
    data_dir = tmp_path / "data"
    wrapper = (strace, "-f", "-s", "16", "-o", str(trace))
    for _ in range(2):  # The second start finds what the first left.
        with RunningStore(data_dir, wrapper=wrapper) as store:
            asyncio.run(round_of_requests(store))
            assert store.stop() == 0
        text = trace.read_text(errors="replace")
        # The tracer's own start of the program is not a call of the store.
        assert len(re.findall(r"^\d+ +execve\(", text, re.M)) == 1
        assert {"accept4", "epoll_wait", "fdatasync", "pwritev"} <= set(
            re.findall(r"(\w+)\(", text)
        )
        assert missing_in(text) - set(KNOWN_MISSING) == set()


def test_the_comparison_can_fail() -> None:
    fine = '7 openat(AT_FDCWD, "/d", O_RDONLY|O_DIRECTORY) = 3\n7 clone3({...}, 88) = 8\n'
    assert missing_in(fine) == set()
    wrong = '7 io_uring_enter(3, 1) = 1\n8 openat(AT_FDCWD, "/v", O_RDWR|O_DIRECT) = 4\n'
    assert missing_in(fine + wrong) == {"io_uring_enter", "openat O_DIRECT"}
