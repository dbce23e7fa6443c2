"""The job pool: many jobs, cancellations, ownership of buffers, file jobs."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from o3storage import _native

Submit = Callable[[Any], asyncio.Future[Any]]


def with_pool(body: Callable[[_native.Pool, Submit], Awaitable[None]], **options: int) -> None:
    async def main() -> None:
        pool = _native.Pool(**options)
        loop = asyncio.get_running_loop()
        loop.add_reader(pool.event_fd, pool.drain)

        def submit(job: Any) -> asyncio.Future[Any]:
            future = loop.create_future()
            pool.submit(job, future)
            return future

        try:
            await body(pool, submit)
            while pool.pending:
                await asyncio.sleep(0)
        finally:
            pool.close()
            loop.remove_reader(pool.event_fd)

    asyncio.run(main())


def test_thousands_of_jobs_with_cancellations() -> None:
    rng = random.Random(1)
    key = _native.ChaChaKey(bytes(32))

    async def body(pool: _native.Pool, submit: Submit) -> None:
        futures, expected = [], []
        for number in range(6000):
            data = rng.randbytes(rng.choice((0, 10, 5000, 20_000)))
            match number % 3:
                case 0:
                    futures.append(submit(_native.blake3_job([data])))
                    expected.append(_native.blake3(data))
                case 1:
                    futures.append(submit(key.seal_job(number, b"", data)))
                    expected.append(key.seal(number, b"", data))
                case _:
                    sealed = bytearray(key.seal(number, b"", data))
                    sealed[-1] ^= 1
                    futures.append(submit(key.unseal_job(number, b"", sealed)))
                    expected.append(_native.SealError)
            if rng.random() < 0.2:
                futures[-1].cancel()
            if rng.random() < 0.02:
                await asyncio.sleep(0)
        results = await asyncio.gather(*futures, return_exceptions=True)
        cancelled = 0
        for future, result, right in zip(futures, results, expected, strict=True):
            if future.cancelled():
                cancelled += 1
            elif right is _native.SealError:
                assert isinstance(result, _native.SealError)
            else:
                assert result == right
        assert 600 < cancelled < 2400

    with_pool(body)


def test_a_cancelled_future_does_not_free_the_buffers() -> None:
    async def body(pool: _native.Pool, submit: Submit) -> None:
        data = bytearray(1 << 20)
        future = submit(_native.blake3_job([data]))
        future.cancel()
        with pytest.raises(BufferError):
            data.append(1)
        while pool.pending:
            await asyncio.sleep(0)
        data.append(1)

    with_pool(body)


def test_references_are_given_back(tmp_path: Path) -> None:
    data = bytes(9000)
    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    before = sys.getrefcount(data)

    async def body(pool: _native.Pool, submit: Submit) -> None:
        for _ in range(50):
            await submit(_native.blake3_job([data, memoryview(data)]))
            await submit(_native.pwritev_job(fd, [data] * 20, 0))
        _native.blake3_job([data])  # Never run.

    with_pool(body)
    gc.collect()
    os.close(fd)
    assert sys.getrefcount(data) == before


def test_one_thread_runs_jobs_in_order_of_submission(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "log", os.O_RDWR | os.O_CREAT | os.O_APPEND)

    async def body(pool: _native.Pool, submit: Submit) -> None:
        await asyncio.gather(*(submit(_native.log_job(fd, b"%d\n" % n)) for n in range(500)))

    with_pool(body)
    assert (tmp_path / "log").read_text().split() == [str(n) for n in range(500)]
    os.close(fd)


def test_submit_many_and_limited_drain() -> None:
    async def main() -> None:
        pool = _native.Pool(pure_threads=1)
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in range(50)]
        pool.submit_many([(_native.blake3_job([b"%d" % n]), f) for n, f in enumerate(futures)])
        assert pool.pending == 50
        done = 0
        while done < 50:
            step = pool.drain(7)
            assert step <= 7
            done += step
        assert pool.pending == 0
        assert [f.result() for f in futures] == [_native.blake3(b"%d" % n) for n in range(50)]
        # Background jobs have threads of their own.
        future = loop.create_future()
        pool.submit(_native.blake3_job([b"x"]), future, True)
        while not pool.drain():
            pass
        assert future.result() == _native.blake3(b"x")
        pool.close()

    asyncio.run(main())


def test_the_event_stays_set_while_completions_wait() -> None:
    async def main() -> None:
        pool = _native.Pool()
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in range(20)]
        loop.add_reader(pool.event_fd, pool.drain, 3)
        for future in futures:
            pool.submit(_native.blake3_job([b"x"]), future)
        await asyncio.wait_for(asyncio.gather(*futures), 10)
        pool.close()

    asyncio.run(main())


def test_closed_pool_finishes_what_it_has_and_takes_no_more() -> None:
    async def body(pool: _native.Pool, submit: Submit) -> None:
        futures = [submit(_native.blake3_job([bytes(100_000)])) for _ in range(100)]
        pool.close()
        with pytest.raises(RuntimeError, match="closed"):
            submit(_native.blake3_job([b""]))
        assert len(await asyncio.gather(*futures)) == 100

    with_pool(body)


def test_a_job_cannot_be_submitted_twice() -> None:
    async def body(pool: _native.Pool, submit: Submit) -> None:
        job = _native.blake3_job([b""])
        await submit(job)
        with pytest.raises(RuntimeError, match="already"):
            submit(job)

    with_pool(body)


def test_pool_dropped_with_jobs_in_it() -> None:
    loop = asyncio.new_event_loop()
    pool = _native.Pool()
    for _ in range(200):
        pool.submit(_native.blake3_job([bytes(300_000)]), loop.create_future())
    del pool
    gc.collect()
    loop.close()


def test_file_jobs(tmp_path: Path) -> None:
    path = str(tmp_path / "file")

    async def body(pool: _native.Pool, submit: Submit) -> None:
        handle = await submit(_native.open_job(path, os.O_RDWR | os.O_CREAT))
        assert os.stat(path).st_mode & 0o777 == 0o600
        parts = [b"one", bytearray(b"two"), b"", memoryview(b"xthree")[1:]]
        await submit(_native.pwritev_job(handle, parts, 5, True))
        assert await submit(_native.pread_job(handle, 100, 0)) == b"\0" * 5 + b"onetwothree"
        assert await submit(_native.pread_job(handle, 3, 5)) == b"one"
        assert await submit(_native.pread_job(handle, 3, 500)) == b""
        out = bytearray(6)
        assert await submit(_native.pread_into_job(handle, out, 8)) == 6
        assert out == b"twothr"
        assert await submit(_native.stat_size_job(handle)) == 16
        await submit(_native.truncate_job(handle, 8))
        await submit(_native.fdatasync_job(handle))
        assert await submit(_native.stat_size_job(handle)) == 8
        await submit(_native.allocate_job(handle, 4096, 3_000_000, True))
        assert await submit(_native.stat_size_job(handle)) == 3_004_096
        assert os.stat(path).st_blocks * 512 >= 3_000_000
        cached = _native.pread_nowait(handle, 8, 0)
        assert cached in (None, b"\0" * 5 + b"one")
        await submit(_native.rename_job(path, path + "2"))
        await submit(_native.make_dir_job(str(tmp_path / "a/b/c")))
        await submit(_native.make_dir_job(str(tmp_path / "a/b/c")))
        await submit(_native.sync_dir_job(str(tmp_path)))
        assert await submit(_native.list_dir_job(str(tmp_path))) == ["a", "file2"]
        await submit(_native.unlink_job(path + "2"))
        total, free = await submit(_native.statfs_job(str(tmp_path)))
        assert total >= free > 0
        await submit(handle.close_job())
        await submit(handle.close_job())
        assert handle.closed
        with pytest.raises(ValueError, match="closed"):
            _native.pread_job(handle, 1, 0)

    with_pool(body)


def test_more_buffers_than_one_call_takes(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    parts = [bytes((n & 0xFF,)) * (n % 7) for n in range(5000)]
    _native.pwritev_job(fd, parts, 3).run()
    assert (tmp_path / "f").read_bytes() == b"\0" * 3 + b"".join(parts)
    os.close(fd)


def test_errors_carry_number_and_path(tmp_path: Path) -> None:
    async def body(pool: _native.Pool, submit: Submit) -> None:
        missing = str(tmp_path / "no" / "file")
        with pytest.raises(FileNotFoundError) as caught:
            await submit(_native.open_job(missing, os.O_RDONLY))
        assert caught.value.filename == missing
        assert caught.value.strerror == "No such file or directory"
        with pytest.raises(FileExistsError):
            await submit(_native.open_job(str(tmp_path), os.O_CREAT | os.O_EXCL | os.O_RDWR))
        with pytest.raises(OSError, match="Bad file descriptor"):
            await submit(_native.fdatasync_job(10**6))
        with pytest.raises(ValueError, match="NUL"):
            _native.open_job("a\0b", 0)
        with pytest.raises(NotADirectoryError):
            await submit(_native.list_dir_job(__file__))

    with_pool(body)


def test_a_full_device_is_enospc() -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(OSError, match="No space left"):
            _native.log_job(fd, b"x").run()
    finally:
        os.close(fd)


def test_a_cancelled_open_leaks_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / "f")
    Path(path).write_bytes(b"")

    def open_files() -> int:
        return sum(
            os.path.exists(f"/proc/self/fd/{n}") and os.readlink(f"/proc/self/fd/{n}") == path
            for n in os.listdir("/proc/self/fd")
            if os.path.islink(f"/proc/self/fd/{n}")
        )

    async def body(pool: _native.Pool, submit: Submit) -> None:
        for _ in range(100):
            submit(_native.open_job(path, os.O_RDONLY)).cancel()
        while pool.pending:
            await asyncio.sleep(0)
        assert open_files() == 0

    with_pool(body)


def test_a_closing_file_stays_open_for_its_jobs(tmp_path: Path) -> None:
    path = str(tmp_path / "f")

    async def body(pool: _native.Pool, submit: Submit) -> None:
        for round_number in range(50):
            handle = await submit(_native.open_job(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC))
            number = handle.fileno()
            data = bytes((round_number,)) * 50_000
            writes = [submit(_native.pwritev_job(handle, [data], n * 50_000)) for n in range(8)]
            close = submit(handle.close_job())
            await asyncio.gather(*writes, close)
            while pool.pending:
                await asyncio.sleep(0)
            assert Path(path).read_bytes() == data * 8
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(number)

    with_pool(body)


def test_lookup() -> None:
    async def body(pool: _native.Pool, submit: Submit) -> None:
        found = await submit(_native.lookup_job("127.0.0.1", 80))
        assert found == [(socket.AF_INET, "127.0.0.1", 80)]
        found = await submit(_native.lookup_job("::1", 81))
        assert found == [(socket.AF_INET6, "::1", 81)]
        with pytest.raises(OSError, match="cannot resolve"):
            await submit(_native.lookup_job("name.invalid", 80))

    with_pool(body)


def test_log_job_waits_for_a_slow_reader() -> None:
    reader, writer = os.pipe2(os.O_NONBLOCK)
    data = bytes(1_000_000)

    async def body(pool: _native.Pool, submit: Submit) -> None:
        future = submit(_native.log_job(writer, data))
        got = 0
        while got < len(data):
            try:
                got += len(os.read(reader, 65536))
            except BlockingIOError:
                await asyncio.sleep(0)
        await future

    with_pool(body)
    os.close(reader)
    os.close(writer)


def test_lock_file(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    fd, holder = _native.lock_file(path)
    assert fd >= 0
    assert holder == 0
    assert _native.lock_file(path) == (-1, os.getpid())
    os.close(fd)
    fd, _ = _native.lock_file(path)
    assert fd >= 0
    os.close(fd)


def test_aligned_buffers() -> None:
    for size in (1, 4095, 4096, 4097, 1 << 20):
        view = memoryview(_native.AlignedBuffer(size))
        assert len(view) == size
        assert not view.readonly
        assert view.tobytes() == bytes(size)
        view[:] = b"\xaa" * size
        del view
        again = memoryview(_native.AlignedBuffer(size))
        assert again.tobytes() == bytes(size), "memory of an earlier owner is not shown"
    for size in (0, 1 << 30):
        with pytest.raises(ValueError, match="bytes"):
            _native.AlignedBuffer(size)


def test_aligned_buffers_are_aligned_and_reused() -> None:
    import ctypes

    def address(view: memoryview) -> int:
        return ctypes.addressof(ctypes.c_char.from_buffer(view))

    addresses = set()
    for _ in range(20):
        view = memoryview(_native.AlignedBuffer(8192, zero=False))
        addresses.add(address(view))
    assert all(a % 4096 == 0 for a in addresses)
    assert len(addresses) <= 2
    kept = memoryview(_native.AlignedBuffer(8192))[10:20]
    other = memoryview(_native.AlignedBuffer(8192))
    assert not address(kept) - 10 <= address(other) < address(kept) + 8192 - 10


def test_pread_nowait(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"abcdef")
    with open(path, "rb") as file:
        file.read()
        fd = file.fileno()
        found = _native.pread_nowait(fd, 4, 1)
        if found is None:
            pytest.skip("this file system does not say what is cached")
        assert found == b"bcde"
        assert _native.pread_nowait(fd, 100, 4) == b"ef"
        assert _native.pread_nowait(fd, 100, 400) == b""
    assert _native.pread_nowait(10**6, 4, 0) is None
