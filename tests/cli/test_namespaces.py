"""The three commands of a new cluster, as they stand in the docs, on three machines: network
namespaces with the addresses 192.168.1.10 to .12 on one bridge, the secret in each environment."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.cluster_support import SECRET, until

pytestmark = pytest.mark.slow

HOSTS = ["192.168.1.10", "192.168.1.11", "192.168.1.12"]
COMMANDS = [
    "o3storage --ip 192.168.1.10 --port 8080",
    "o3storage --ip 192.168.1.11 --port 8080 --peers 192.168.1.10,192.168.1.12",
    "o3storage --ip 192.168.1.12 --port 8080 --peers 192.168.1.10,192.168.1.11",
]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Machines:
    """A namespace for the bridge, so that nothing of this is seen outside, and one for each."""

    def __init__(self, directory: Path) -> None:
        self.name = f"o3{uuid.uuid4().hex[:6]}"
        self.directory = directory
        self.processes: dict[int, subprocess.Popen[str]] = {}
        self._made: list[str] = []
        self.bin = str(Path(sys.executable).parent)

    def make(self) -> None:
        switch = f"{self.name}s"
        self._namespace(switch)
        ip("-n", switch, "link", "add", "br0", "type", "bridge")
        ip("-n", switch, "link", "set", "br0", "up")
        for number, host in enumerate(HOSTS):
            space, port = f"{self.name}{number}", f"{self.name}p{number}"
            self._namespace(space)
            ip("-n", space, "link", "add", "eth0", "type", "veth", "peer", "name", port)
            ip("-n", space, "link", "set", port, "netns", switch)
            ip("-n", switch, "link", "set", port, "master", "br0", "up")
            ip("-n", space, "addr", "add", f"{host}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", space, "link", "set", device, "up")
            (self.directory / str(number)).mkdir()

    def _namespace(self, name: str) -> None:
        ip("netns", "add", name)
        self._made.append(name)

    def start(self, number: int) -> None:
        self.processes[number] = subprocess.Popen(
            [*self._inside(number), *COMMANDS[number].split()],
            cwd=self.directory / str(number),
            env=self._environment(),
            stdout=(self.directory / f"{number}.out").open("a"),
            stderr=subprocess.STDOUT,
            text=True,
        )

    def screen(self, number: int) -> str:
        return (self.directory / f"{number}.out").read_text()

    def run(self, number: int, script: str) -> subprocess.CompletedProcess[str]:
        """A shell on that machine."""
        return subprocess.run(
            [*self._inside(number), "bash", "-c", script],
            cwd=self.directory / str(number),
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def link(self, number: int, state: str) -> None:
        ip("-n", f"{self.name}{number}", "link", "set", "eth0", state)

    def _inside(self, number: int) -> list[str]:
        return ["ip", "netns", "exec", f"{self.name}{number}"]

    def _environment(self) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("O3_", "AWS_"))}
        path = f"{self.bin}:{clean['PATH']}"
        return {**clean, "PATH": path, "O3_CLUSTER_SECRET": SECRET, "PYTHONUNBUFFERED": "1"}

    def clear(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()
        for name in self._made:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    if shutil.which("ip") is None:
        pytest.skip("NOT TESTED: no ip(8) here (install iproute2)")
    if shutil.which("curl") is None:
        pytest.skip("NOT TESTED: no curl here")
    made = Machines(tmp_path)
    try:
        made.make()
    except subprocess.CalledProcessError as error:
        made.clear()
        pytest.skip(f"NOT TESTED: network namespaces are not allowed here: {error.stderr.strip()}")
    try:
        yield made
    finally:
        made.clear()


CURL = (
    'eval "$(o3storage env)"; curl -sS -o answer -w "%{http_code}" '
    '--aws-sigv4 "aws:amz:$AWS_REGION:s3" --user "$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS_KEY" '
    "-H 'x-amz-content-sha256: UNSIGNED-PAYLOAD' "
)


def test_the_three_commands_as_they_stand(machines: Machines) -> None:
    # In the worst order: the one that makes the cluster comes last.
    machines.start(2)
    machines.start(1)
    until(lambda: machines.screen(1), lambda text: "waiting to join a cluster" in text)
    machines.start(0)
    for number in range(3):
        until(lambda n=number: machines.screen(n), lambda text: "\n  stop " in text)
    status = until(
        lambda: machines.run(2, "o3storage node list"),
        lambda done: done.stdout.count(" 2/") == 3,
    )
    assert all(host in status.stdout for host in HOSTS)
    until(lambda: machines.run(1, CURL + "-X PUT $AWS_ENDPOINT_URL/bucket").stdout, "200".__eq__)
    put = "echo hello >file;" + CURL + "-T file $AWS_ENDPOINT_URL/bucket/k"
    until(lambda: machines.run(2, put).stdout, "200".__eq__)
    get = CURL + "$AWS_ENDPOINT_URL/bucket/k; cat answer"
    for number in range(3):
        until(lambda n=number: machines.run(n, get).stdout, "200hello\n".__eq__)

    # The first machine falls off the network: the others go on, it refuses, it comes back.
    machines.link(0, "down")
    again = "echo again >file;" + CURL + "-T file $AWS_ENDPOINT_URL/bucket/k2"
    until(lambda: machines.run(1, again).stdout, "200".__eq__)
    until(lambda: machines.run(0, again).stdout, "503".__eq__)
    machines.link(0, "up")
    late = CURL + "$AWS_ENDPOINT_URL/bucket/k2; cat answer"
    until(lambda: machines.run(0, late).stdout, "200again\n".__eq__)

    # All are stopped, and started again by the same commands.
    for process in machines.processes.values():
        process.send_signal(signal.SIGTERM)
    assert [process.wait(60) for process in machines.processes.values()] == [0, 0, 0]
    for number in range(3):
        machines.start(number)
    until(lambda: machines.run(2, late).stdout, "200again\n".__eq__)
