"""curl as people have it, over http and https."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from o3storage.http import BlockPool, Request, Response, frames
from tests.http.clients import CERTIFICATES, PATIENCE_S
from tests.http.serving import OVER_TLS, run, serving

pytestmark = [
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed"),
]


async def curl(*arguments: str) -> tuple[int, bytes]:
    """(exit code, standard output)."""
    process = await asyncio.create_subprocess_exec(
        "curl", "-sS", "--cacert", str(CERTIFICATES / "ecdsa.pem"), *arguments,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    return process.returncode or 0, out


class Objects:
    """PUT keeps a body, GET streams it, DELETE forgets it."""

    def __init__(self) -> None:
        self.pool = BlockPool()
        self.kept: dict[bytes, list[bytes]] = {}

    async def handle(self, request: Request) -> Response:
        if request.method == "PUT":
            pieces = []
            with frames(request.body, self.pool) as cut:
                async for block, _ in cut:
                    pieces.append(bytes(block.view))
                    block.release()
            self.kept[request.path] = pieces
            return Response(200)
        found = self.kept.get(request.path)
        if found is None:
            return Response(404, [], b"no such object\n")
        if request.method == "DELETE":
            del self.kept[request.path]
            return Response(204)

        async def body() -> object:
            for piece in found:
                yield piece

        length = sum(len(piece) for piece in found)
        return Response(200, [], body(), None if request.query == b"chunked" else length)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("options", [[], ["--http1.0"], ["-H", "Expect: 100-continue"]])
def test_round_trip(tmp_path: Path, scheme: str, options: list[str]) -> None:
    content = bytes(range(256)) * 6000
    source = tmp_path / "source"
    source.write_bytes(content)

    async def main() -> None:
        OVER_TLS.set(scheme == "https")
        objects = Objects()
        async with serving(objects.handle) as served:
            url = f"{scheme}://localhost:{served.port}/b/k%20ü?x"
            assert await curl(*options, "-T", str(source), url) == (0, b"")
            for query in ("", "?chunked"):
                address = url.removesuffix("?x") + query
                assert await curl(*options, address) == (0, content)
            code, head = await curl(*options, "-I", url)
            assert code == 0
            assert b"\r\nContent-Length: 1536000\r\n" in head
            if "--http1.0" not in options:
                chunked = [*options, "-H", "Transfer-Encoding: chunked"]
                assert await curl(*chunked, "-T", str(source), url) == (0, b"")
                assert await curl(url) == (0, content)
            assert await curl(*options, "-X", "DELETE", url, url) == (0, b"no such object\n")
            assert objects.pool.lent_bytes == 0

    run(main())


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_many_requests_on_one_connection(scheme: str) -> None:
    async def main() -> None:
        OVER_TLS.set(scheme == "https")
        objects = Objects()
        async with serving(objects.handle) as served:
            url = f"{scheme}://localhost:{served.port}/b/[1-50]"
            assert await curl("-X", "PUT", "--data-binary", "body", url) == (0, b"")
            assert await curl(url) == (0, b"body" * 50)
            assert served.server.stats.accepted == 2
            assert served.server.stats.requests == 100

    run(main())


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_cut_body_makes_curl_fail(scheme: str) -> None:
    async def handle(request: Request) -> Response:
        async def body() -> object:
            yield b"x" * 100
            raise OSError("a bad frame")

        return Response(200, [], body(), None if request.query else 1000)

    async def main() -> None:
        OVER_TLS.set(scheme == "https")
        async with serving(handle) as served:
            for options in ([], ["--http1.0"]):
                for query in ("", "?chunked"):
                    code, _ = await curl(*options, f"{scheme}://localhost:{served.port}/{query}")
                    assert code in (18, 56)  # partial file, failure in receiving

    run(main())


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_refused_upload_shows_the_answer(tmp_path: Path, scheme: str) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(5_000_000))

    async def handle(request: Request) -> Response:
        return Response(403, [], b"not allowed\n")

    async def main() -> None:
        OVER_TLS.set(scheme == "https")
        async with serving(handle) as served:
            url = f"{scheme}://localhost:{served.port}/b/k"
            assert (await curl("-T", str(source), url))[1] == b"not allowed\n"
            # Without the expectation curl sends at once, and reads the answer meanwhile.
            assert (await curl("-H", "Expect:", "-T", str(source), url))[1] == b"not allowed\n"

    run(main())
