"""Several commands, one store: real processes on loopback."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.cli.cluster_support import SECRET, Cluster, Waiting, free_port_pair, until
from tests.support.running_store import RunningStore, run_command

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def health(url: str) -> tuple[int, dict[str, object]]:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_three_commands_make_one_store_that_outlives_any_node(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        for number in (1, 2, 3):
            cluster.start(number)
        cluster.until_voters(1, 3)
        # One root key for all nodes, in each one's own file.
        assert len({node.key_id for node in cluster.nodes.values()}) == 1
        assert cluster.until_ok(2, "PUT", "/bucket").status == 200
        assert cluster.until_ok(3, "PUT", "/bucket/before", b"one").status == 200
        for number in (1, 2, 3):
            assert cluster.until_ok(number, "GET", "/bucket/before").body == b"one"
        # An access key made on one node opens the others.
        made = run_command(
            "key", "create", "--owner", "root", "--data-dir", str(tmp_path / "n2")
        ).stdout
        cluster.nodes[3].key_id = re.search(r"key id +(\S+)", made)[1]  # type: ignore[index]
        cluster.nodes[3].secret = re.search(r"secret +(\S+)", made)[1]  # type: ignore[index]
        assert cluster.until_ok(3, "GET", "/bucket/before").body == b"one"
        code, said = health(cluster.nodes[2].url)
        assert code == 200
        assert said["cluster"] == {"active_nodes": 3, "total_replicas": 6, "write_enabled": True}

        cluster.nodes[1].kill()
        assert cluster.until_ok(2, "PUT", "/bucket/after", b"two").status == 200
        assert cluster.until_ok(3, "GET", "/bucket/after").body == b"two"
        listed = run_command("node", "list", "--data-dir", str(tmp_path / "n2"))
        assert "DOWN" in listed.stdout and "2 of 3 voters up" in listed.stdout

        # The same command again: it catches up and answers.
        cluster.start(1)
        assert cluster.until_ok(1, "GET", "/bucket/after").body == b"two"
        cluster.until_voters(3, 3)

        # Without a majority nothing is written or read, and it says why.
        cluster.nodes[2].kill()
        cluster.nodes[3].kill()
        refused = until(
            lambda: cluster.request(1, "PUT", "/bucket/lost", b"x"), lambda a: a.status == 503
        )
        assert b"majority" in refused.body or b"leader" in refused.body
        assert cluster.request(1, "GET", "/bucket/after").status == 503
        code, said = until(lambda: health(cluster.nodes[1].url), lambda found: found[0] == 503)
        facts = said["cluster"]
        assert isinstance(facts, dict)
        assert facts["write_enabled"] is False and "majority" in facts["reason"]
        status = run_command("status", "--data-dir", str(tmp_path / "n1"))
        assert status.returncode == 1 and "REFUSED" in status.stdout
        # A node starts without a majority as well, and goes on once there is one.
        assert cluster.nodes[1].stop() == 0
        alone = cluster.start(1)
        assert "WAITING for a majority" in "\n".join(alone.screen)
        cluster.start(3)
        assert cluster.until_ok(1, "GET", "/bucket/after").body == b"two"
        for number in (1, 3):
            assert cluster.nodes[number].stop() == 0


def test_a_token_is_all_it_takes(tmp_path: Path) -> None:
    with Cluster(tmp_path, 2, secret=None) as cluster:
        first = cluster.start(1)
        kept = tmp_path / "n1" / "cluster-secret"
        assert stat.S_IMODE(kept.stat().st_mode) == 0o600
        token = run_command("node", "token", "--data-dir", str(first.data_dir)).stdout.strip()
        assert token.startswith("o3-join-1-") and kept.read_text().strip() not in "\n".join(
            first.screen
        )
        port = str(cluster.ports[1])
        second = RunningStore(tmp_path / "n2", "--port", port, "--join", token)
        cluster.nodes[2] = second
        assert cluster.until_ok(2, "PUT", "/bucket").status == 200
        assert second.stop() == 0
        # Neither token nor secret is needed again.
        cluster.nodes[2] = RunningStore(tmp_path / "n2", "--port", port)
        assert cluster.until_ok(2, "GET", "/bucket").status == 200
        log = second.log_path.read_text() + first.log_path.read_text()
        assert kept.read_text().strip() not in log and token not in log


def test_a_new_root_key_reaches_every_node(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        for number in (1, 2, 3):
            cluster.start(number)
        cluster.until_voters(1, 3)
        assert cluster.until_ok(1, "PUT", "/bucket").status == 200
        made = run_command("key", "rotate-root", "--data-dir", str(tmp_path / "n3"))
        assert made.returncode == 0, made.stderr
        found = re.search(r"key id +(\S+)", made.stdout)
        assert found is not None
        for number in (1, 2, 3):
            kept = tmp_path / f"n{number}" / "root-credentials"
            until(kept.read_text, lambda text: found[1] in text)
            assert cluster.request(number, "GET", "/bucket").status == 403, "the old one"
        for number in (1, 2, 3):
            status = run_command("status", "--data-dir", str(tmp_path / f"n{number}"))
            assert status.returncode == 0, status.stderr


def test_drain_and_replace_from_the_command_line(tmp_path: Path) -> None:
    with Cluster(tmp_path, 4) as cluster:
        for number in (1, 2, 3):
            cluster.start(number)
        cluster.until_voters(1, 3)
        assert cluster.until_ok(1, "PUT", "/bucket").status == 200
        assert cluster.until_ok(1, "PUT", "/bucket/key", b"kept").status == 200
        directory = str(tmp_path / "n1")
        third = f"127.0.0.1:{cluster.ports[2] + 1}"
        refused = run_command("node", "remove", third, "--data-dir", directory)
        assert refused.returncode == 1 and "--shrink" in refused.stderr
        assert run_command("node", "drain", "nobody", "--data-dir", directory).returncode == 1
        cluster.nodes[3].kill()
        replaced = until(
            lambda: run_command("node", "replace", third, "--data-dir", directory),
            lambda done: done.returncode == 0,
        )
        assert "leaving" in replaced.stdout
        cluster.start(4)
        until(
            lambda: {n["addresses"][0]: n["state"] for n in cluster.listing(4)["nodes"]},
            lambda states: states[third] == "removed",
        )
        cluster.until_voters(4, 3)
        assert cluster.until_ok(4, "GET", "/bucket/key").body == b"kept"


def test_what_keeps_a_node_from_joining_is_said(tmp_path: Path) -> None:
    port = free_port_pair()

    def start(name: str, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("O3_")}
        words = ["--port", str(port), "--data-dir", str(tmp_path / name), *more]
        return run_command(*words, env={**clean, **environment})

    for more, environment, reason in [
        (["--peers", "127.0.0.1:9"], {}, "O3_CLUSTER_SECRET"),
        (["--peers", "127.0.0.1:9"], {"O3_CLUSTER_SECRET": "short"}, "128 bits"),
        (["--peers", "not a name"], {"O3_CLUSTER_SECRET": SECRET}, "is no peer"),
        (["--join", "o3-join-1-00"], {}, "join token"),
    ]:
        ended = start("none", *more, **environment)
        assert ended.returncode == 1 and reason in ended.stderr, ended.stderr
        assert len(ended.stderr.strip().splitlines()) == 1, ended.stderr
    waiting = Waiting(
        *["--port", str(port), "--data-dir", str(tmp_path / "w"), "--peers", "127.0.0.1:9"],
        environment={"O3_CLUSTER_SECRET": SECRET},
    )
    assert "waiting to join a cluster: 127.0.0.1:9:" in waiting.line()
    assert waiting.end() == 0, "told to stop while it waits"

    with Cluster(tmp_path, 2) as cluster:
        cluster.start(1)
        with RunningStore(tmp_path / "n2", "--port", str(cluster.ports[1])) as stray:
            assert stray.stop() == 0  # by mistake without --peers
        ended = run_command(
            *["--data-dir", str(tmp_path / "n2"), *cluster.command(2)],
            env={**os.environ, "O3_CLUSTER_SECRET": SECRET},
        )
        assert ended.returncode == 1 and "empty data directory" in ended.stderr, ended.stderr


def test_make_cluster_runs_three_nodes_and_stops_them(tmp_path: Path) -> None:
    port = free_port_pair()
    directory = tmp_path / "o3cluster"
    script = [sys.executable, str(ROOT / "tools" / "local_cluster.py")]
    process = subprocess.Popen(
        [*script, "--directory", str(directory), "--port", str(port)],
        stdout=subprocess.PIPE,
        text=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("O3_")},
    )
    assert process.stdout is not None
    shown = []
    try:
        for line in process.stdout:
            shown.append(line.strip())
            if line.startswith("Ctrl-C"):
                break
        text = "\n".join(shown)
        secret = (directory / "secret").read_text().strip()
        assert "Three nodes, one store" in text and secret not in text
        command = next(line for line in shown if " status --data-dir" in line)
        status = run_command(*command.split()[1:])
        assert status.returncode == 0 and "3 active" in status.stdout, status.stdout
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        process.stdout.close()
    assert process.returncode == 0
    assert not (directory / "node1" / "running.json").exists(), "stopped in good order"
