"""Real nodes of one cluster on loopback, each by its command."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from o3storage.cli._client import Answer
from tests.support.running_store import RunningStore, run_command

SECRET = "3f1c9a0b7d2e4f5a8b6c1d0e9f7a2b3c"
PATIENCE_S = 40.0


def free_port_pair() -> int:
    """A port that is free, and the next one as well; below those that the system gives to outgoing
    connections, which could take it before it is listened on."""
    while True:
        port = random.randrange(10_000, 32_000, 2)
        with socket.socket() as one, socket.socket() as two:
            try:
                one.bind(("127.0.0.1", port))
                two.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


class Cluster:
    """Nodes 1, 2, ...; `start(n)` gives the same command each time."""

    def __init__(self, directory: Path, count: int = 3, secret: str | None = SECRET) -> None:
        self.directory = directory
        self.ports = [free_port_pair() for _ in range(count)]
        self.environment = {"O3_CLUSTER_SECRET": secret} if secret else {}
        self.nodes: dict[int, RunningStore] = {}

    def command(self, number: int) -> list[str]:
        words = ["--port", str(self.ports[number - 1])]
        if number > 1:
            words += ["--peers", ",".join(f"127.0.0.1:{p + 1}" for p in self.ports)]
        return words

    def start(self, number: int, *more: str) -> RunningStore:
        self.nodes[number] = RunningStore(
            self.directory / f"n{number}",
            *self.command(number),
            *more,
            environment=self.environment,
        )
        return self.nodes[number]

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes.values():
            node.__exit__()

    def request(self, number: int, method: str, path: str, body: bytes = b"") -> Answer:
        async def ask() -> Answer:
            client = self.nodes[number].client()
            try:
                return await client.request(method, path, body=body)
            finally:
                await client.close()

        return asyncio.run(ask())

    def until_ok(self, number: int, method: str, path: str, body: bytes = b"") -> Answer:
        """Again while the node says 503."""
        return until(
            lambda: self.request(number, method, path, body), lambda a: a.status not in {500, 503}
        )

    def listing(self, number: int) -> dict[str, Any]:
        done = run_command(
            "node", "list", "--json", "--data-dir", str(self.directory / f"n{number}")
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def until_voters(self, number: int, count: int) -> None:
        """Both ranges have so many voters, all of them up and caught up."""

        def settled(found: dict[str, Any]) -> bool:
            groups = found["groups"]
            return len(groups) == 2 and all(
                len(g["voters"]) == count
                and g["voters_up"] == count
                and not g["joint"]
                and not any(g["behind"].values())
                for g in groups
            )

        until(lambda: self.listing(number), settled)


def until(ask: Callable[[], Any], enough: Callable[[Any], Any]) -> Any:
    """Ask again until the answer is enough; fails with the last one."""
    end_s = time.monotonic() + PATIENCE_S
    while True:
        found = ask()
        if enough(found):
            return found
        assert time.monotonic() < end_s, found
        time.sleep(0.2)  # between questions to other processes


class Waiting:
    """A start that is not expected to get ready."""

    def __init__(self, *arguments: str, environment: dict[str, str] | None = None) -> None:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("O3_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "o3storage", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**clean, "PYTHONUNBUFFERED": "1", **(environment or {})},
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=30)
        return self.process.returncode
