"""The first hour: what is printed works as it stands, and every refusal to start says what to do."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from o3storage.cluster import parse_token
from tests.support.running_store import RunningStore, run_command

pytestmark = pytest.mark.slow


def shell(script: str, directory: Path, **extra: str) -> str:
    """Run shell lines as a user would, with the installed command on PATH."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "O3_"))}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    environment["HOME"] = str(directory)
    done = subprocess.run(
        ["bash", "-euc", script],
        capture_output=True,
        text=True,
        cwd=directory,
        env={**environment, **extra},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def line_of(screen: list[str], word: str) -> str:
    return next(line.split(None, 1)[1] for line in screen if line.lstrip().startswith(word + " "))


def test_the_first_screen_and_each_of_its_lines(tmp_path: Path) -> None:
    data_dir = tmp_path / "o3data"
    (tmp_path / "README.md").write_text("hello\n")
    with RunningStore(data_dir) as store:
        assert len(store.screen) <= 14
        text = "\n".join(store.screen)
        assert str(data_dir) in text and "new store" in text
        # Secrets are for terminals; elsewhere the file is named.
        assert store.secret not in text and str(data_dir / "root-credentials") in text
        tools = line_of(store.screen, "tools")
        upload = line_of(store.screen, "upload")
        setup = tools.split("  &&  ")[0]
        shell(f"{tools}\n{setup}\n{upload}", tmp_path)
        got = shell(f"{setup}\naws s3 cp s3://my-bucket/README.md -", tmp_path)
        assert got == "hello\n"
        ask = f"curl -sS {line_of(store.screen, 'health')}"
        health = json.loads(shell(ask, tmp_path))
        assert health["status"] == "ok" and health["storage"]["total_objects"] == 1
        # What was just put is counted, however short ago somebody asked.
        both = shell(f"{setup}\n{ask} >&2\n{upload}-2\n{ask}", tmp_path)
        assert json.loads(both)["storage"]["total_objects"] == 2
        shell(f"{setup}\naws s3 rm s3://my-bucket/README.md-2", tmp_path)
        assert health["cluster"]["write_enabled"] is True
        assert health["cluster"]["active_nodes"] == 1
        assert str(data_dir / "master.key") in line_of(store.screen, "back")
        assert store.stop() == 0
    with RunningStore(data_dir) as store:
        assert re.search(r"opened: 1 objects?, .* used, .* free", "\n".join(store.screen))
        assert store.stop() == 0


def test_a_terminal_is_shown_the_secret_once(tmp_path: Path) -> None:
    script = shutil.which("script")
    assert script, "util-linux's script(1) plays the terminal"
    command = f"{sys.executable} -m o3storage serve --port 0 --data-dir {tmp_path / 'data'}"
    process = subprocess.Popen(
        [script, "-qfec", command, "/dev/null"],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdin is not None
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip())
        if line.lstrip().startswith("stop "):
            break
    process.stdin.write("\x03")  # ended by SIGTERM, script(1) may leave the store behind
    process.stdin.flush()
    process.stdout.read()
    process.wait()
    process.stdin.close()
    process.stdout.close()
    secret = line_of(lines, "secret")
    stored = (tmp_path / "data" / "root-credentials").read_text()
    assert secret in stored
    # And what another machine needs to join.
    join = line_of(lines, "join").split()
    assert join[:3] == ["o3storage", "--ip", "IP"] and join[3] == "--join"
    kept = (tmp_path / "data" / "cluster-secret").read_text().strip()
    assert parse_token(join[4])[0].text() == kept
    assert len(lines) <= 14


def test_what_is_kept_is_private(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with RunningStore(data_dir):
        assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
        for name in ("master.key", "root-credentials", "node.keys", "cluster-secret"):
            assert stat.S_IMODE((data_dir / name).stat().st_mode) == 0o600, name


def test_a_taken_port_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run_command("--port", str(port), "--data-dir", str(tmp_path / "data"))
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert str(port) in done.stderr and "--port" in done.stderr
    assert not (tmp_path / "data").exists() or not list((tmp_path / "data").iterdir())


def test_a_locked_directory_names_the_holder(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with RunningStore(data_dir) as store:
        done = run_command("--port", "0", "--data-dir", str(data_dir))
        assert done.returncode == 1
        assert f"process {store.process.pid}" in done.stderr
        done = run_command("verify", "--data-dir", str(data_dir))
        assert done.returncode == 1 and f"process {store.process.pid}" in done.stderr


@pytest.mark.parametrize("state", ["missing", "wrong"])
def test_without_the_right_master_key_nothing_is_touched(tmp_path: Path, state: str) -> None:
    data_dir = tmp_path / "data"
    with RunningStore(data_dir) as store:
        store.stop()
    key = data_dir / "master.key"
    if state == "missing":
        key.rename(tmp_path / "away")
    else:
        raw = bytearray(key.read_bytes())
        other = tmp_path / "other"
        with RunningStore(other) as store:
            store.stop()
        raw[:] = (other / "master.key").read_bytes()
        key.write_bytes(raw)
    before = {p: p.stat().st_mtime_ns for p in data_dir.rglob("*") if p.is_file()}
    done = run_command("--port", "0", "--data-dir", str(data_dir))
    assert done.returncode == 1
    assert "master.key" in done.stderr and len(done.stderr.strip().splitlines()) == 1
    after = {p: p.stat().st_mtime_ns for p in data_dir.rglob("*") if p.is_file()}
    assert {p: t for p, t in after.items() if p.name != "lock"} == {
        p: t for p, t in before.items() if p.name != "lock"
    }


def test_a_directory_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    done = run_command("--port", "0", "--data-dir", str(file / "data"))
    assert done.returncode == 1
    assert str(file) in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_the_four_anonymous_commands(tmp_path: Path) -> None:
    with RunningStore(tmp_path / "data", "--anonymous") as store:
        assert "  WARNING  whoever is on this machine may" in "\n".join(store.screen)
        url = store.url
        shell(f"curl -sS --fail -X PUT {url}/my-bucket", tmp_path)
        shell(
            f'curl -sS --fail -X PUT {url}/my-bucket/my-file.txt -H "Content-Type: text/plain" '
            '--data "Hello, O3Storage!"',
            tmp_path,
        )
        assert (
            shell(f"curl -sS --fail {url}/my-bucket/my-file.txt", tmp_path) == "Hello, O3Storage!"
        )
        assert "<Key>my-file.txt</Key>" in shell(f"curl -sS --fail {url}/my-bucket/", tmp_path)
        page = shell(f"curl -sS --fail -H 'Accept: text/html' {url}/", tmp_path)
        assert "running" in page and url in page and str(tmp_path) in page
        # A presigned URL that is opened in a browser is S3's.
        listed = shell(
            f"curl -sS --fail -H 'Accept: text/html' '{url}/?x-id=ListBuckets'", tmp_path
        )
        assert "<Name>my-bucket</Name>" in listed


def test_strangers_are_not_told_where_things_lie(tmp_path: Path) -> None:
    with RunningStore(tmp_path / "data", "--ip", "0.0.0.0") as store:
        page = shell(f"curl -sS --fail -H 'Accept: text/html' {store.url}/", tmp_path)
        assert "running" in page and str(tmp_path) not in page
    with RunningStore(tmp_path / "other") as store:
        port = urlsplit(store.url).port
        for host, told in (
            (f"127.0.0.1:{port}", True),
            (f"LOCALHOST:{port}", True),
            (f"[::1]:{port}", True),
            ("s3.example.org", False),  # through a proxy, or a name that was rebound
            (f"127.0.0.1.example.org:{port}", False),
        ):
            asked = f"curl -sS --fail -H 'Host: {host}' -H 'Accept: text/html' {store.url}/"
            page = shell(asked, tmp_path)
            assert "running" in page and (str(tmp_path) in page) is told, host


def test_a_root_key_from_the_environment_acts_beside_the_stored_one(tmp_path: Path) -> None:
    extra = {"O3_ROOT_USER": "admin", "O3_ROOT_PASSWORD": "correct horse"}
    with RunningStore(tmp_path / "data", environment=extra) as store:
        env = {"AWS_ENDPOINT_URL": store.url, "AWS_REGION": store.region}
        shell(
            "aws s3 mb s3://my-bucket",
            tmp_path,
            AWS_ACCESS_KEY_ID="admin",
            AWS_SECRET_ACCESS_KEY="correct horse",
            **env,
        )
        out = shell(
            "aws s3 ls",
            tmp_path,
            AWS_ACCESS_KEY_ID=store.key_id,
            AWS_SECRET_ACCESS_KEY=store.secret,
            **env,
        )
        assert " my-bucket\n" in out
    for file in (tmp_path / "data").rglob("*"):
        if file.is_file():
            assert b"correct horse" not in file.read_bytes(), file


def test_keys_are_made_listed_used_and_removed(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with RunningStore(data_dir) as store:
        made = run_command("key", "create", "--owner", "alice", "--data-dir", str(data_dir))
        assert made.returncode == 0, made.stderr
        key_id = re.search(r"key id +(\S+)", made.stdout)[1]  # type: ignore[index]
        secret = re.search(r"secret +(\S+)", made.stdout)[1]  # type: ignore[index]
        listed = run_command("key", "list", "--data-dir", str(data_dir))
        assert key_id in listed.stdout and "alice" in listed.stdout and secret not in listed.stdout
        keys = {
            "AWS_ACCESS_KEY_ID": key_id,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_ENDPOINT_URL": store.url,
            "AWS_REGION": store.region,
        }
        shell("aws s3 mb s3://hers", tmp_path, **keys)
        root = store.environment()
        refused = subprocess.run(
            [str(Path(sys.executable).with_name("aws")), "s3", "ls", "s3://hers"],
            env={**root, "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert refused.returncode != 0 and "AccessDenied" in refused.stderr
        removed = run_command("key", "remove", key_id, "--data-dir", str(data_dir))
        assert removed.returncode == 0
        again = subprocess.run(
            [str(Path(sys.executable).with_name("aws")), "s3", "ls"],
            env={**root, **keys, "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "InvalidAccessKeyId" in again.stderr


def test_status_says_what_health_says(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with RunningStore(data_dir):
        done = run_command("status", "--json", "--data-dir", str(data_dir))
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["cluster"]["write_enabled"] is True
        assert "writes    accepted" in run_command("status", "--data-dir", str(data_dir)).stdout
    gone = run_command("status", "--data-dir", str(data_dir))
    assert gone.returncode == 1 and "is the store running?" in gone.stderr


def test_no_openssl_in_the_process(tmp_path: Path) -> None:
    """DESIGN section 6: after TLS, PUT, GET and LIST no OpenSSL is mapped."""
    from tests.clients.test_round_trip import make_certificate

    certificate, key = make_certificate(tmp_path)
    with RunningStore(
        tmp_path / "data", "--tls-cert", str(certificate), "--tls-key", str(key)
    ) as store:
        (tmp_path / "file").write_text("x" * 100_000)
        curl = (
            f"curl -sS --fail --cacert {certificate} --aws-sigv4 aws:amz:{store.region}:s3 "
            f"--user {store.key_id}:{store.secret} -H 'x-amz-content-sha256: UNSIGNED-PAYLOAD'"
        )
        shell(f"{curl} -X PUT {store.url}/tls-bucket", tmp_path)
        shell(f"{curl} -T file {store.url}/tls-bucket/k", tmp_path)
        assert shell(f"{curl} {store.url}/tls-bucket/k", tmp_path) == "x" * 100_000
        assert "<Key>k</Key>" in shell(f"{curl} {store.url}/tls-bucket", tmp_path)
        maps = Path(f"/proc/{store.process.pid}/maps").read_text()
        assert not re.findall(r"libssl|libcrypto|/_ssl\.|/_hashlib\.", maps)
    lock = (Path(__file__).resolve().parents[2] / "native" / "Cargo.lock").read_text()
    assert not re.findall(r'name = "(openssl-sys|aws-lc[^"]*|boring[^"]*)"', lock)


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT"])
def test_it_stops_cleanly(tmp_path: Path, how: str) -> None:
    with RunningStore(tmp_path / "data") as store:
        store.process.send_signal(getattr(signal, how))
        assert store.process.wait(timeout=60) == 0
        assert not (tmp_path / "data" / "running.json").exists()


def a_request_in_flight(store: RunningStore) -> socket.socket:
    """A connection with a PUT that was let in and whose body does not come."""
    address = urlsplit(store.url)
    held = socket.create_connection((address.hostname, address.port), timeout=20)
    held.sendall(b"PUT /bucket HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert b" 200 OK" in held.recv(1000)
    held.sendall(
        b"PUT /bucket/key HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n"
        b"Expect: 100-continue\r\n\r\n"
    )
    assert b" 100 " in held.recv(1000)
    return held


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_twice_it_waits_for_nobody(tmp_path: Path, how: signal.Signals) -> None:
    with RunningStore(tmp_path / "data", "--anonymous") as store:
        with a_request_in_flight(store):
            store.process.send_signal(how)
            assert store.process.stdout is not None
            assert store.process.stdout.readline().startswith("stopping: ")
            store.process.send_signal(how)
            assert store.process.wait(timeout=20) == 0
        assert not (tmp_path / "data" / "running.json").exists()


def test_it_stops_cleanly_though_nobody_reads_its_output_any_more(tmp_path: Path) -> None:
    with RunningStore(tmp_path / "data", "--anonymous") as store:
        assert store.process.stdout is not None
        store.process.stdout.close()
        address = urlsplit(store.url)
        with a_request_in_flight(store):
            store.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(ConnectionError):
                while True:  # until it has begun to stop
                    socket.create_connection((address.hostname, address.port), timeout=20).close()
        assert store.process.wait(timeout=20) == 0
        assert not (tmp_path / "data" / "running.json").exists()
