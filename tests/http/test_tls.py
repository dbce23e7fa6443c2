"""TLS: versions, kinds of certificates, reload, and how a connection may end."""

from __future__ import annotations

import asyncio
import shutil
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from o3storage.http import BodyTruncated, Request, Response, ServerTls, TlsConfigError
from o3storage.http._tls import TlsLayer
from tests.http.clients import CERTIFICATES, TlsClient, Truncated, trusting
from tests.http.serving import echo, hello, run, server_tls, serving, until

H = "Host: h\r\n"
GET = f"GET / HTTP/1.1\r\n{H}\r\n"


@pytest.mark.parametrize("name", ["ecdsa", "rsa", "ed25519"])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_versions_and_certificates(name: str, version: ssl.TLSVersion) -> None:
    async def main() -> None:
        async with serving(echo, server_tls(name)) as served:
            client = await served.connect_tls(trusting(name, version))
            assert client.tls.version() == {771: "TLSv1.2", 772: "TLSv1.3"}[version]
            body = bytes(range(256)) * 5000
            for _ in range(2):
                head = f"PUT / HTTP/1.1\r\n{H}Content-Length: {len(body)}\r\n\r\n"
                assert (await client.ask(head.encode() + body)).body == body

    run(main())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tls_1_1_is_refused() -> None:
    async def main() -> None:
        async with serving(hello, server_tls()) as served:
            context = trusting()
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = ssl.TLSVersion.TLSv1_1
            context.set_ciphers("ALL:@SECLEVEL=0")
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await served.connect_tls(context)
            await until(lambda: served.server.stats.handshake_failed == 1)

    run(main())


def test_alpn() -> None:
    async def main() -> None:
        async with serving(hello, server_tls()) as served:
            context = trusting()
            context.set_alpn_protocols(["h2", "http/1.1"])
            client = await served.connect_tls(context)
            assert client.tls.selected_alpn_protocol() == "http/1.1"
            assert (await client.ask(GET)).status == 200

    run(main())


def test_plain_http_on_a_tls_port_is_cut() -> None:
    async def main() -> None:
        async with serving(hello, server_tls()) as served:
            client = await served.connect_tcp()
            client.send(GET)
            rest = await client.rest()
            assert b"HTTP" not in rest
            await until(lambda: served.server.connections == 0)
            assert served.server.stats.handshake_failed == 1
            assert served.server.stats.requests == 0

    run(main())


def test_handshake_timeout() -> None:
    async def main() -> None:
        async with serving(hello, server_tls(), handshake_timeout_s=0.02) as served:
            client = await served.connect_tcp()
            client.send(b"\x16\x03\x01")
            await client.at_end()
            await until(lambda: served.server.connections == 0)
            assert served.server.stats.handshake_failed == 1

    run(main())


def test_a_finished_handshake_has_the_idle_time() -> None:
    async def main() -> None:
        async with serving(hello, server_tls(), handshake_timeout_s=0.05) as served:
            client = await served.connect_tls()
            connection = served.first_connection
            loop = asyncio.get_running_loop()
            await until(lambda: connection._deadline_s > loop.time() + 30)
            assert (await client.ask(GET)).status == 200

    run(main())


# --- ends


def test_orderly_end_has_close_notify() -> None:
    async def main() -> None:
        async with serving(hello, server_tls()) as served:
            for line in ("Connection: close\r\n", "Content-Length: 5\r\n"):  # close, and linger
                client = await served.connect_tls()
                assert (await client.ask(f"GET / HTTP/1.1\r\n{H}{line}\r\n")).status == 200
                assert await client.rest() == b""
                assert client.closed_cleanly

    run(main())


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_aborted_response_has_no_close_notify(version: str) -> None:
    """A body up to the end of the connection (HTTP/1.0) is only as good as this."""

    async def body() -> AsyncIterator[bytes]:
        yield b"x" * 10
        await asyncio.sleep(0)
        raise OSError("a bad frame")

    async def handle(request: Request) -> Response:
        return Response(200, [], body())

    async def main() -> None:
        async with serving(handle, server_tls()) as served:
            client = await served.connect_tls()
            client.send(f"GET / HTTP/{version}\r\n{H}\r\n")
            with pytest.raises(Truncated):
                await client.rest()
            assert not client.closed_cleanly

    run(main())


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize(
    "coded", ["Content-Length: 5\r\n\r\nabc", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"]
)
def test_end_inside_a_body_is_an_error(coded: str, clean: bool) -> None:
    async def main() -> None:
        seen: list[BaseException] = []

        async def handle(request: Request) -> Response:
            try:
                return await echo(request)
            except BodyTruncated as error:
                seen.append(error)
                raise

        async with serving(handle, server_tls()) as served:
            client = await served.connect_tls()
            client.send(f"PUT / HTTP/1.1\r\n{H}{coded}")
            await until(lambda: served.server.stats.requests == 1)
            if clean:
                client.say_close()
            else:
                client.cut()
            await until(lambda: len(seen) == 1)
            client.close()

    run(main())


def test_close_notify_of_an_idle_client_closes() -> None:
    async def main() -> None:
        async with serving(hello, server_tls()) as served:
            client = await served.connect_tls()
            assert (await client.ask(GET)).status == 200
            client.say_close()
            await until(lambda: served.server.connections == 0)

    run(main())


def test_garbage_after_the_handshake_cuts_the_connection() -> None:
    async def main() -> None:
        async with serving(echo, server_tls()) as served:
            client = await served.connect_tls()
            client.send(f"PUT / HTTP/1.1\r\n{H}Content-Length: 5\r\n\r\na")
            await until(lambda: served.server.stats.requests == 1)
            client.writer.write(b"\x17\x03\x03\x00\x20" + bytes(32))
            with pytest.raises(Truncated):
                await client.rest()
            await until(lambda: served.server.connections == 0)

    run(main())


# --- steps


def test_no_step_handles_more_than_64_kib(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []

    async def handle(request: Request) -> Response:
        body = await request.body.read(2_000_000)

        async def pieces() -> AsyncIterator[bytes]:
            yield body

        return Response(200, [], body if request.path == b"/bytes" else pieces(), len(body))

    async def main() -> None:
        async with serving(handle, server_tls()) as served:
            client = await served.connect_tls()
            send, step = TlsLayer._send, TlsLayer._step

            def noted_send(self: TlsLayer, data: bytes) -> None:
                steps.append(len(data))
                send(self, data)

            def noted_step(self: TlsLayer, wire: memoryview) -> None:
                steps.append(len(wire))
                step(self, wire)

            monkeypatch.setattr(TlsLayer, "_send", noted_send)
            monkeypatch.setattr(TlsLayer, "_step", noted_step)
            for path in ("/bytes", "/pieces"):
                body = bytes(1_000_000)
                head = f"PUT {path} HTTP/1.1\r\n{H}Content-Length: {len(body)}\r\n\r\n"
                assert (await client.ask(head.encode() + body)).body == body
            assert max(steps) <= 65536
            assert sum(steps) > 4_000_000

    run(main())


# --- certificates


def copy(name: str, directory: Path) -> ServerTls:
    for end in ("pem", "key"):
        shutil.copy(CERTIFICATES / f"{name}.{end}", directory / f"current.{end}")
    return ServerTls(str(directory / "current.pem"), str(directory / "current.key"))


def test_reload(tmp_path: Path) -> None:
    async def main() -> None:
        tls = copy("ecdsa", tmp_path)
        async with serving(hello, tls) as served:
            old = await served.connect_tls(trusting("ecdsa"))
            copy("rsa", tmp_path)
            tls.reload()
            assert (await old.ask(GET)).status == 200  # an open connection goes on
            new: TlsClient = await served.connect_tls(trusting("rsa"))
            assert (await new.ask(GET)).status == 200
            with pytest.raises(ssl.SSLCertVerificationError):
                await served.connect_tls(trusting("ecdsa"))

    run(main())


@pytest.mark.parametrize("broken", ["garbage", "missing", "other key", "empty"])
def test_bad_certificate_keeps_the_old_one(tmp_path: Path, broken: str) -> None:
    async def main() -> None:
        tls = copy("ecdsa", tmp_path)
        async with serving(hello, tls) as served:
            chain = tmp_path / "current.pem"
            if broken == "garbage":
                chain.write_text(
                    "-----BEGIN CERTIFICATE-----\nnot base64!\n-----END CERTIFICATE-----\n"
                )
            elif broken == "missing":
                chain.unlink()
            elif broken == "empty":
                chain.write_text("")
            else:
                shutil.copy(CERTIFICATES / "rsa.key", tmp_path / "current.key")
            with pytest.raises(TlsConfigError, match=r"current\.pem"):
                tls.reload()
            client = await served.connect_tls(trusting("ecdsa"))
            assert (await client.ask(GET)).status == 200

    run(main())


def test_bad_certificate_at_start(tmp_path: Path) -> None:
    with pytest.raises(TlsConfigError, match=r"cannot read the certificate .*: No such file"):
        ServerTls(str(tmp_path / "none.pem"), str(tmp_path / "none.key"))


def test_a_handshake_with_a_server_that_is_full_ends_without_a_defect() -> None:
    said: list[object] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
        async with serving(hello, tls=server_tls(), max_connections=1) as served:
            first = await served.connect()
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await served.connect()
            await until(lambda: served.server.connections == 1)
            assert (await first.ask("GET / HTTP/1.1\r\nHost: h\r\n\r\n")).status == 200

    run(main())
    assert not said
