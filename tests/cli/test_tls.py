"""The command line against a store that serves https, with the certificate that the docs make."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from o3storage.cli import _tls_streams
from tests.support.running_store import RunningStore, run_command

OPERATIONS = Path(__file__).resolve().parents[2] / "docs" / "operations.md"


def make_certificate(folder: Path) -> str:
    """Runs what stands in the docs; the command."""
    found = re.search(r"^    (openssl req .*?cert\.pem)$", OPERATIONS.read_text(), re.S | re.M)
    assert found is not None
    folder.mkdir()
    subprocess.run(["sh", "-c", found[1]], check=True, capture_output=True, cwd=folder)
    return found[1]


def test_commands_over_tls(tmp_path: Path) -> None:
    command = make_certificate(tmp_path / "own")
    own = tmp_path / "own" / "cert.pem"
    data = str(tmp_path / "data")
    arguments = ("--tls-cert", str(own), "--tls-key", str(own.with_name("key.pem")))
    with RunningStore(tmp_path / "data", *arguments) as store:
        assert store.url.startswith("https://")
        trust = ("--data-dir", data, "--ca-file", str(own))
        for words in (("status",), ("key", "create", "--owner", "alice"), ("range", "list")):
            done = run_command(*words, *trust)
            assert done.returncode == 0, done.stderr
        curl = ["curl", "-sS", "--cacert", str(own), f"{store.url}/health/live"]
        assert subprocess.run(curl, check=True, capture_output=True).stdout == b"live\n"
        # What cannot be trusted is one line that says what to do.
        make_certificate(tmp_path / "other")
        other = tmp_path / "other" / "cert.pem"
        junk = tmp_path / "junk"
        junk.write_text("no certificate")
        for ca_file, says in (
            (other, "not the one of --ca-file"),
            (junk, "--ca-file: no certificate found"),
            (tmp_path / "missing", "cannot read --ca-file"),
        ):
            done = run_command("status", "--data-dir", data, "--ca-file", str(ca_file))
            assert done.returncode == 1 and says in done.stderr, done.stderr
            assert done.stderr.count("\n") == 1
        # Without --ca-file it is for the system's authorities, or who stands in for them, to say.
        for file, says in (
            (str(own), ""),
            (
                str(other),
                f"not signed by an authority in {other}; name the one to trust with --ca-",
            ),
            (str(junk), f"{junk}: no certificate found"),
            (str(tmp_path / "missing"), f"cannot read SSL_CERT_FILE {tmp_path / 'missing'}: No su"),
        ):
            environment = {**os.environ, "SSL_CERT_FILE": file}
            done = run_command("status", "--data-dir", data, env=environment)
            assert done.returncode == (1 if says else 0) and says in done.stderr, done.stderr
            assert done.stderr.count("\n") == (1 if says else 0)
    authority = tmp_path / "authority"
    authority.mkdir()
    command = command.replace("CA:FALSE", "CA:TRUE")
    subprocess.run(["sh", "-c", command], check=True, capture_output=True, cwd=authority)
    pem = authority / "cert.pem"
    arguments = ("--tls-cert", str(pem), "--tls-key", str(pem.with_name("key.pem")))
    with RunningStore(tmp_path / "data", *arguments):
        done = run_command("status", "--data-dir", data, "--ca-file", str(pem))
        assert done.returncode == 1 and "CA:FALSE" in done.stderr, done.stderr


def test_where_a_system_keeps_its_authorities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    first, second = tmp_path / "first", tmp_path / "second"
    monkeypatch.setattr(_tls_streams, "SYSTEM_AUTHORITIES", (str(first), str(second)))
    with pytest.raises(OSError, match=r"no list of authorities .* name the .* with --ca-file"):
        _tls_streams.system_authorities()
    second.write_text("2")
    assert _tls_streams.system_authorities() == (str(second), b"2")
    first.write_text("1")
    assert _tls_streams.system_authorities() == (str(first), b"1")
