"""The nodes of a campaign: real processes, and what is done to them."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from o3storage.cli._client import Client, ClientError, Credentials

from .machines import Machines

PORT = 8080
KEY_ID = "O3CAMPAIGNROOTKEY000"
SECRET = "a-secret-of-campaigns-only-0123456789"
CLUSTER_SECRET = "3f1c9a0b7d2e4f5a8b6c1d0e9f7a2b3c"
ASK_TIMEOUT_S = 8.0
VERIFY = [sys.executable, "-m", "o3storage", "verify", "--json"]
NO_SPACE = "no space left"
FLIP_TRIES = 300
LAST_LINE_CHARS = 200
FLIP_FROM_BYTES = 64 << 10
"""Bits are flipped from here on: what stands before is a volume's header and its first records."""


class Node:
    """One node on one machine. `busy` is held by whoever does something to it."""

    def __init__(self, machines: Machines, number: int, place: Path, joins: bool) -> None:
        self.machines = machines
        self.number = number
        self.data_dir = place / "data"
        self.output = place.with_name(place.name + ".out")
        self.host = machines.host(number)
        self.url = f"http://{self.host}:{PORT}"
        self.joins = joins
        """Whether it is started with --peers: all but the first, until that lost its disk."""
        self.busy = asyncio.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.paused = False
        self.flipped: list[tuple[str, int]] = []
        """Volumes, and where in them."""

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        assert not self.running
        command = [*self.machines.inside(self.number), sys.executable, "-m", "o3storage", "serve"]
        command += ["--ip", self.host, "--port", str(PORT), "--data-dir", str(self.data_dir)]
        if self.joins:
            others = (n for n in range(self.machines.count) if n != self.number)
            command += ["--peers", ",".join(self.machines.host(n) for n in others)]
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("O3_", "AWS_"))}
        environment = {
            **clean,
            "O3_CLUSTER_SECRET": CLUSTER_SECRET,
            "O3_ROOT_USER": KEY_ID,
            "O3_ROOT_PASSWORD": SECRET,
            "PYTHONUNBUFFERED": "1",
        }
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def refused_for_space(self) -> bool:
        """Its last start ended because its disk was full: it says so and ends."""
        if self.process is None or self.process.poll() != 1:
            return False
        return NO_SPACE in self.output.read_text(errors="replace")[-LAST_LINE_CHARS:]

    def kill(self) -> None:
        """kill -9, also of a paused one."""
        if self.running:
            assert self.process is not None
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        self.paused = False

    def pause(self) -> None:
        if self.running:
            assert self.process is not None
            self.process.send_signal(signal.SIGSTOP)
            self.paused = True

    def resume(self) -> None:
        if self.paused and self.running:
            assert self.process is not None
            self.process.send_signal(signal.SIGCONT)
        self.paused = False

    async def stop(self, timeout_s: float = 60.0) -> int:
        """SIGTERM; its exit code, or -9 if it had to be killed."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        end_s = time.monotonic() + timeout_s
        while self.process.poll() is None:
            if time.monotonic() > end_s:
                self.kill()
                break
            await asyncio.sleep(0.05)
        return self.process.returncode

    def wipe(self) -> None:
        """Its disk is another one from now on: it joins as a new node."""
        assert not self.running
        shutil.rmtree(self.data_dir)
        self.flipped.clear()
        self.joins = True

    def flip(self, rng: random.Random, count: int, kinds: str) -> int:
        """Flip up to `count` bits in records of the stopped node; how many were. `kinds`: of bulk
        volumes ("bulk"), of the log ("log"), or of both ("*")."""
        assert not self.running
        volumes = sorted((self.data_dir / "volumes").glob(f"*.{kinds}"))
        volumes = [path for path in volumes if path.stat().st_size > FLIP_FROM_BYTES]
        before = len(self.flipped)
        for _ in range(FLIP_TRIES if volumes else 0):
            path = rng.choice(volumes)
            at = rng.randrange(FLIP_FROM_BYTES, path.stat().st_size)
            with path.open("r+b") as file:
                file.seek(at)
                old = file.read(1)
                if old in (b"", b"\0"):
                    continue  # allocated ahead: nothing was written there
                file.seek(at)
                file.write(bytes((old[0] ^ 1 << rng.randrange(8),)))
                file.flush()
                os.fsync(file.fileno())
            self.flipped.append((path.name, at))
            if len(self.flipped) - before == count:
                break
        return len(self.flipped) - before

    def client(self) -> Client:
        return Client(self.url, Credentials(KEY_ID, SECRET))

    async def ask(
        self, method: str, path: str, body: bytes = b"", query: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Status and body; (0, why) without an answer in time."""
        client = self.client()
        try:
            found = await asyncio.wait_for(
                client.request(method, path, body=body, query=query), ASK_TIMEOUT_S
            )
        except (ClientError, TimeoutError) as error:
            return 0, str(error).encode()
        finally:
            await client.close()
        return found.status, found.body

    async def listing(self) -> dict[str, Any] | None:
        """What `node list` says, None without an answer."""
        status, body = await self.ask("GET", "/-/admin/v1/nodes")
        return json.loads(body) if status == 200 else None

    def verify(self) -> dict[str, Any]:
        """The report of `verify` on the stopped node."""
        done = subprocess.run(
            [*VERIFY, "--data-dir", str(self.data_dir)],
            capture_output=True,
            text=True,
            check=False,
        )
        try:
            found: dict[str, Any] = json.loads(done.stdout)
        except ValueError:
            found = {"problems": [], "error": done.stderr or done.stdout}
        found["code"] = done.returncode
        return found
