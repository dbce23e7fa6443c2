"""The real disk against a plain model, its errors, and what it does when its tasks are cancelled."""

from __future__ import annotations

import asyncio
import errno
import os
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o3storage import _native
from o3storage.runtime import (
    DiskError,
    DiskFault,
    DiskFull,
    JobPool,
    OpenMode,
    RealDisk,
    RealFile,
)


def with_disk(root: Path | str, body: Callable[[RealDisk], Awaitable[None]]) -> None:
    async def main() -> None:
        pool = JobPool()
        await pool.start()
        try:
            await body(RealDisk(root, pool))
        finally:
            await pool.close()

    asyncio.run(main())


names = st.sampled_from(["a", "b", "dir/c"])
offsets = st.integers(0, 20_000)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("create"), names),
        st.tuples(st.just("write"), names, offsets, st.lists(st.binary(max_size=3000), max_size=4)),
        st.tuples(st.just("write_sync"), names, offsets, st.lists(st.binary(max_size=99))),
        st.tuples(st.just("read"), names, offsets, st.integers(0, 9000)),
        st.tuples(st.just("read_direct"), names, offsets, st.integers(0, 9000)),
        st.tuples(st.just("truncate"), names, offsets),
        st.tuples(st.just("allocate"), names, offsets, st.integers(1, 9000), st.booleans()),
        st.tuples(st.just("rename"), names, names),
        st.tuples(st.just("unlink"), names),
        st.tuples(st.just("list")),
    ),
    max_size=20,
)


class Model:
    """Files as byte strings; the same results and the same errors."""

    def __init__(self) -> None:
        self.files: dict[str, bytearray] = {}

    def apply(self, operation: tuple[Any, ...]) -> Any:
        kind, *arguments = operation
        if kind == "list":
            return sorted({name.split("/")[0] for name in [*self.files, "dir/"]})
        name = arguments[0]
        if kind == "create":
            if name in self.files:
                return FileExistsError
            self.files[name] = bytearray()
            return None
        data = self.files.get(name)
        if data is None:
            return FileNotFoundError
        match kind:
            case "write" | "write_sync":
                at, text = arguments[1], b"".join(arguments[2])
                if text:
                    data.extend(bytes(max(0, at - len(data))))
                    data[at : at + len(text)] = text
            case "read" | "read_direct":
                return bytes(data[arguments[1] : arguments[1] + arguments[2]])
            case "truncate":
                size = arguments[1]
                data.extend(bytes(max(0, size - len(data))))
                del data[size:]
            case "allocate":
                data.extend(bytes(max(0, arguments[1] + arguments[2] - len(data))))
                if arguments[3]:
                    end = arguments[1] + arguments[2]
                    data[arguments[1] : end] = bytes(arguments[2])
            case "rename":
                self.files[arguments[1]] = self.files.pop(name)
            case "unlink":
                del self.files[name]
        return None


async def apply(disk: RealDisk, operation: tuple[Any, ...], direct: bool) -> Any:
    kind, *arguments = operation
    try:
        match kind:
            case "list":
                return await disk.list_dir("")
            case "create":
                file = await disk.open(arguments[0], OpenMode.CREATE)
                await file.close()
                return None
            case "rename":
                return await disk.rename(*arguments)
            case "unlink":
                return await disk.unlink(*arguments)
            case "read_direct":
                return await disk.read_direct(*arguments)
        file = await disk.open(arguments[0], OpenMode.WRITE)
        try:
            match kind:
                case "read":
                    found = await file.read(arguments[1], arguments[2])
                    assert file.read_now(arguments[1], arguments[2]) in (None, found)
                    return found
                case "allocate":
                    return await file.allocate(arguments[1], arguments[2], zero_fill=arguments[3])
                case _:
                    result = await getattr(file, kind)(*arguments[1:])
                    await file.sync()
                    return result
        finally:
            await file.close()
    except FileNotFoundError:
        return FileNotFoundError
    except FileExistsError:
        return FileExistsError


@settings(max_examples=60, deadline=None)
@given(operations)
def test_against_the_model(steps: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as root:

        async def body(disk: RealDisk) -> None:
            model = Model()
            await disk.make_dir("dir")
            for step in steps:
                assert await apply(disk, step, False) == model.apply(step), step
            for name, data in model.files.items():
                file = await disk.open(name, OpenMode.READ)
                assert await file.size() == len(data)
                assert await file.read(0, 10**6) == data
                await file.close()

        with_disk(root, body)


def test_direct_writes(tmp_path: Path) -> None:
    async def body(disk: RealDisk) -> None:
        file = await disk.open("f", OpenMode.CREATE, direct=True)
        await file.allocate(0, 1 << 20, zero_fill=False)
        buffer = disk.aligned_buffer(16 * 4096)
        buffer[:] = bytes(i // 4096 + 1 for i in range(16 * 4096))
        await file.write(4096, [buffer[:8192], buffer[8192:]])
        await file.sync()
        assert await file.read(4095, 4) == b"\0\1\1\1"
        assert await disk.read_direct("f", 4096 * 16 + 4000, 200) == b"\x10" * 96 + b"\0" * 104
        await file.write_sync(0, [buffer[:4096]])
        assert await file.read(0, 3) == b"\1\1\1"
        for offset, view in ((1, buffer[:4096]), (0, buffer[:100])):
            with pytest.raises(ValueError, match="multiples of 4096"):
                await file.write(offset, [view])
        await file.close()

    with_disk(tmp_path, body)


def test_a_direct_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("o3storage.runtime._real_disk.DIRECT_READ_BYTES", 5000)
    data = bytes(i // 7 & 0xFF for i in range(33_333))
    (tmp_path / "f").write_bytes(data)

    async def body(disk: RealDisk) -> None:
        for offset, size in ((0, 33_333), (3, 20_000), (4999, 10_001), (30_000, 9_000), (0, 5000)):
            assert await disk.read_direct("f", offset, size) == data[offset : offset + size]

    with_disk(tmp_path, body)


def test_modes_and_rights(tmp_path: Path) -> None:
    async def body(disk: RealDisk) -> None:
        await disk.make_dir("x/y")
        file = await disk.open("x/y/f", OpenMode.CREATE)
        await file.close()
        await file.close()
        assert os.stat(tmp_path / "x/y/f").st_mode & 0o777 == 0o600
        assert os.stat(tmp_path / "x/y").st_mode & 0o777 == 0o700
        await disk.sync_dir("x/y")
        await disk.sync_dir("")
        file = await disk.open("x/y/f", OpenMode.READ)
        with pytest.raises(DiskFault):
            await file.write(0, [b"x"])
        await file.close()
        space = await disk.space()
        assert space.total_bytes >= space.free_bytes > 0

    with_disk(tmp_path, body)


def test_paths_stay_below_the_root(tmp_path: Path) -> None:
    async def body(disk: RealDisk) -> None:
        for path in ("/etc/passwd", "../x", "a/../../x"):
            with pytest.raises(ValueError, match="below the root"):
                await disk.open(path, OpenMode.READ)
        for work in (
            disk.open("no/f", OpenMode.CREATE),
            disk.open("f", OpenMode.WRITE),
            disk.list_dir("no"),
            disk.rename("f", "g"),
            disk.unlink("f"),
            disk.sync_dir("no"),
            disk.read_direct("f", 0, 10),
        ):
            with pytest.raises(FileNotFoundError):
                await work

    with_disk(tmp_path, body)


class FailingPool:
    """A pool whose jobs all fail with one error."""

    def __init__(self, number: int) -> None:
        self.number = number

    def submit(self, job: Any) -> asyncio.Future[Any]:
        future = asyncio.get_running_loop().create_future()
        future.set_exception(OSError(self.number, os.strerror(self.number)))
        return future


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_faults_of_an_open_file(tmp_path: Path, number: int) -> None:
    async def main() -> None:
        pool = JobPool()
        await pool.start()
        good = await pool.submit(_native.open_job(str(tmp_path / "f"), os.O_RDWR | os.O_CREAT))
        file = RealFile(FailingPool(number), "f", good, None)  # type: ignore[arg-type]
        full = number in (errno.ENOSPC, errno.EDQUOT)
        for work, error in (
            (file.read(0, 1), DiskFault),
            (file.write(0, [b"x"]), DiskFault),
            (file.write_sync(0, [b"x"]), DiskFault),
            (file.sync(), DiskFault),
            (file.truncate(5), DiskFault),
            (file.size(), DiskFault),
            (file.allocate(0, 5, zero_fill=True), DiskFull if full else DiskFault),
        ):
            with pytest.raises(DiskError) as caught:
                await work
            assert type(caught.value) is error
            assert caught.value.errno == number
            assert caught.value.filename == "f"
        await pool.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.EIO, DiskFault),
        (errno.EROFS, DiskFault),
        (errno.ENOSPC, DiskFull),
        (errno.EMFILE, DiskError),
        (errno.EACCES, DiskError),
        (errno.ENOENT, FileNotFoundError),
        (errno.EEXIST, FileExistsError),
    ],
)
def test_faults_of_names(number: int, error: type[Exception]) -> None:
    async def main() -> None:
        disk = RealDisk("/nowhere", FailingPool(number))  # type: ignore[arg-type]
        for work in (
            disk.open("f", OpenMode.CREATE),
            disk.rename("f", "g"),
            disk.unlink("f"),
            disk.make_dir("d"),
            disk.list_dir("d"),
            disk.space(),
        ):
            with pytest.raises(OSError) as caught:
                await work
            assert type(caught.value) is error

    asyncio.run(main())


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_a_full_file_system(tmp_path: Path) -> None:
    if os.system(f"mount -t tmpfs -o size=1m none {tmp_path} 2>/dev/null") != 0:
        pytest.skip("mounting is not allowed here")
    try:

        async def body(disk: RealDisk) -> None:
            file = await disk.open("f", OpenMode.CREATE, direct=True)
            await file.allocate(0, 500_000, zero_fill=True)
            with pytest.raises(DiskFull):
                await file.allocate(0, 5_000_000, zero_fill=True)
            await file.truncate(0)
            await file.allocate(0, 4096, zero_fill=True)
            await file.write_sync(0, [disk.aligned_buffer(4096)])
            await file.close()

        with_disk(tmp_path, body)
    finally:
        os.system(f"umount {tmp_path}")


def test_a_closed_file_cannot_be_read(tmp_path: Path) -> None:
    """A store that closes under a reader: the reader is refused as by a disk that fails."""

    async def body(disk: RealDisk) -> None:
        file = await disk.open("a", OpenMode.CREATE)
        await file.write(0, [b"x"])
        await file.close()
        assert file.read_now(0, 1) is None
        with pytest.raises(DiskError) as caught:
            await file.read(0, 1)
        assert caught.value.errno == errno.EBADF

    with_disk(tmp_path, body)


def test_a_cancelled_write_is_done_all_the_same(tmp_path: Path) -> None:
    async def body(disk: RealDisk) -> None:
        file = await disk.open("f", OpenMode.CREATE)
        data = bytearray(b"x" * 1_000_000)
        task = asyncio.create_task(file.write_sync(0, [data]))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # The job has its own hold on the file and on the buffer.
        await file.close()

    with_disk(tmp_path, body)
    assert (tmp_path / "f").read_bytes() == b"x" * 1_000_000
