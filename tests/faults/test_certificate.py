"""SIGHUP reads the certificate again; a bad one keeps the old one and says so."""

from __future__ import annotations

import shutil
import signal
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.test_round_trip import make_certificate
from tests.faults.client import S3
from tests.support.running_store import RunningStore

pytestmark = pytest.mark.slow

PATIENCE_S = 60.0


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)


def served_certificate(s3: S3) -> bytes:
    """DER of what a new connection is shown."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection((s3.host, s3.port), 60) as plain,
        context.wrap_socket(plain) as secure,
    ):
        secure.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert b"200" in secure.recv(100)
        found = secure.getpeercert(binary_form=True)
        assert found
        return found


def der(pem: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pem.read_text())


def test_a_bad_certificate_keeps_the_old_one(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for directory in (first, second):
        directory.mkdir()
        make_certificate(directory)
    pem, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def install(certificate: Path, private: Path) -> None:
        shutil.copy(certificate, pem)
        shutil.copy(private, key)

    install(first / "cert.pem", first / "key.pem")
    with RunningStore(tmp_path / "data", "--tls-cert", str(pem), "--tls-key", str(key)) as store:
        s3 = S3(store)

        def said(word: str) -> int:
            return store.log_path.read_text().count(word)

        def hang_up() -> None:
            store.process.send_signal(signal.SIGHUP)

        assert served_certificate(s3) == der(first / "cert.pem")
        bad = tmp_path / "bad.pem"
        bad.write_text("-----BEGIN CERTIFICATE-----\nnot one\n-----END CERTIFICATE-----\n")
        for number, (certificate, private) in enumerate(
            [
                (bad, first / "key.pem"),
                (first / "cert.pem", second / "key.pem"),
                (first / "cert.pem", bad),
            ],
            1,
        ):
            install(certificate, private)
            hang_up()
            until(lambda number=number: said("certificate.kept") == number)
            assert served_certificate(s3) == der(first / "cert.pem")
        pem.unlink()
        hang_up()
        until(lambda: said("certificate.kept") == 4)
        assert served_certificate(s3) == der(first / "cert.pem")
        install(second / "cert.pem", second / "key.pem")
        hang_up()
        until(lambda: said("certificate.reloaded") == 1)
        assert served_certificate(s3) == der(second / "cert.pem")
        assert store.stop() == 0
    secret = (first / "key.pem").read_text().splitlines()[1]
    assert secret not in store.log_path.read_text()
