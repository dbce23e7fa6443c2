"""The command line against a store that serves https, with the certificate that the docs make."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

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
        done = run_command("status", "--data-dir", data)
        assert done.returncode == 1 and "--ca-file" in done.stderr
    authority = tmp_path / "authority"
    authority.mkdir()
    command = command.replace("CA:FALSE", "CA:TRUE")
    subprocess.run(["sh", "-c", command], check=True, capture_output=True, cwd=authority)
    pem = authority / "cert.pem"
    arguments = ("--tls-cert", str(pem), "--tls-key", str(pem.with_name("key.pem")))
    with RunningStore(tmp_path / "data", *arguments):
        done = run_command("status", "--data-dir", data, "--ca-file", str(pem))
        assert done.returncode == 1 and "CA:FALSE" in done.stderr, done.stderr
