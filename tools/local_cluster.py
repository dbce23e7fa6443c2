"""`make cluster`: three nodes on this machine, joined to one cluster, until Ctrl-C.

python tools/local_cluster.py [--directory ./o3cluster] [--port 8080]

The nodes serve S3 on PORT, PORT + 10 and PORT + 20, and meet on the ports after these. Their data
and the cluster's secret stay in the directory; the same command goes on with them.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType

NODES = 3
STRIDE = 10
"""Between the ports of two nodes."""
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
"""A node ends what is in flight for up to 30 s."""
SECRET_BYTES = 24


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--directory", default="o3cluster")
    parser.add_argument("--port", type=int, default=8080)
    options = parser.parse_args()
    directory = Path(options.directory)
    directory.mkdir(mode=0o700, exist_ok=True)
    nodes = Nodes(directory, options.port, _secret(directory / "secret"))
    stop = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGTERM, end)
    try:
        nodes.start()
        if nodes.wait_until_ready(stop):
            nodes.show()
            while not stop.wait(0.5) and nodes.alive():
                pass
    finally:
        code = nodes.stop()
    return code


def _secret(path: Path) -> str:
    """The cluster's secret, made at random the first time; only its owner reads it."""
    if not path.exists():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(SECRET_BYTES) + "\n")
    return path.read_text().strip()


class Nodes:
    """The processes of the nodes."""

    def __init__(self, directory: Path, port: int, secret: str) -> None:
        self._directory = directory
        self._ports = [port + STRIDE * number for number in range(NODES)]
        self._environment = {**os.environ, "O3_CLUSTER_SECRET": secret}
        self._processes: list[subprocess.Popen[str]] = []
        self._ready = [threading.Event() for _ in range(NODES)]
        self._stopping = False

    def start(self) -> None:
        for number, port in enumerate(self._ports):
            command = [
                sys.executable,
                "-m",
                "o3storage",
                "--port",
                str(port),
                "--data-dir",
                str(self._directory / f"node{number + 1}"),
            ]
            if number:
                command += ["--peers", f"127.0.0.1:{self._ports[0] + 1}"]
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=self._environment,
                # Ctrl-C reaches this process only, which then stops all of them in good order.
                start_new_session=True,
            )
            self._processes.append(process)
            threading.Thread(target=self._read, args=(number, process), daemon=True).start()

    def _read(self, number: int, process: subprocess.Popen[str]) -> None:
        """What a node says, marked with its number; of the first screen only what matters here."""
        assert process.stdout is not None
        for line in process.stdout:
            words = line.split(None, 1)
            if words and words[0] == "stop":
                self._ready[number].set()
            elif not line.startswith("  ") and not line.startswith("O3Storage"):
                print(f"node {number + 1}: {line.rstrip()}", flush=True)
        self._ready[number].set()

    def wait_until_ready(self, stop: threading.Event) -> bool:
        end_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < end_s and not stop.is_set() and self.alive():
            if all(ready.is_set() for ready in self._ready):
                return self.alive()
            time.sleep(0.1)
        return False

    def alive(self) -> bool:
        """False once the last is gone, or one ended by itself before all were ready."""
        running = [process.poll() is None for process in self._processes]
        if not all(ready.is_set() for ready in self._ready):
            return all(running)
        return any(running)

    def show(self) -> None:
        command = Path(sys.executable).with_name("o3storage")
        program = shlex.quote(os.path.relpath(command) if command.exists() else "o3storage")
        first, second = (shlex.quote(str(self._directory / f"node{n}")) for n in (1, 2))
        urls = "  ".join(f"http://127.0.0.1:{port}" for port in self._ports)
        victim = self._processes[2].pid
        print(
            f"""
Three nodes, one store:  {urls}
Their data is in {self._directory}; remove that directory to begin anew. Try, in another shell:

  {program} status --data-dir {first}
  eval "$({program} env --data-dir {first})"
  aws s3 mb s3://my-bucket
  aws s3 cp README.md s3://my-bucket/

  # The same object through another node:
  eval "$({program} env --data-dir {second})"
  aws s3 ls s3://my-bucket/

  # Kill the third; the others go on. Then look at it, and start `make cluster` again.
  kill -9 {victim}
  {program} node list --data-dir {first}

Ctrl-C stops all three; nothing that was answered is lost.""",
            flush=True,
        )

    def stop(self) -> int:
        """SIGTERM to each, one after the other; 0 if all ended well."""
        worst = 0
        for number, process in enumerate(self._processes):
            if process.poll() is None:
                process.terminate()
            try:
                code = process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
            if code not in {0, -signal.SIGKILL}:
                print(f"node {number + 1} ended with {code}", flush=True)
                worst = 1
        return worst


if __name__ == "__main__":
    sys.exit(main())
