"""A real store in a process of its own, for the crash, client and command-line suites."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from o3storage.cli._client import Client, Credentials
from o3storage.server import read_root_key, read_running

READY_TIMEOUT_S = 60


class RunningStore:
    """`o3storage serve` on a free port; ready once the constructor returns, or without `wait` once
    `started` does."""

    def __init__(
        self,
        data_dir: Path,
        *arguments: str,
        environment: dict[str, str] | None = None,
        wrapper: tuple[str, ...] = (),
        wait: bool = True,
    ) -> None:
        self.data_dir = data_dir
        self.log_path = data_dir.with_name(data_dir.name + ".log")
        self._log = self.log_path.open("ab")
        self.process = subprocess.Popen(
            [
                *wrapper,
                sys.executable,
                "-m",
                "o3storage",
                "serve",
                "--port",
                "0",
                "--data-dir",
                str(data_dir),
                *arguments,
            ],
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
            text=True,
        )
        self.screen: list[str] = []
        if wait and not self.started():
            raise AssertionError(
                f"the store did not start (exit {self.process.returncode}): "
                + self.log_path.read_text()[-4000:]
            )

    def started(self) -> bool:
        """Wait until the store answers; False if it ended before."""
        assert self.process.stdout is not None
        # The last line of the first screen is printed once the store answers.
        for line in self.process.stdout:
            self.screen.append(line.rstrip("\n"))
            if line.lstrip().startswith("stop "):
                break
        else:
            self.process.wait()
            return False
        found = read_running(self.data_dir)
        assert found is not None
        self.pid = found.pid
        """Of the store itself, also behind a wrapper such as strace."""
        self.url = found.url
        self.admin_url = found.admin_url
        self.region = found.region
        key = read_root_key(self.data_dir)
        assert key is not None
        self.key_id, self.secret = key.key_id, key.secret
        return True

    def client(self, ca_file: str | None = None) -> Client:
        return Client(
            self.url, Credentials(self.key_id, self.secret), region=self.region, ca_file=ca_file
        )

    def environment(self) -> dict[str, str]:
        """What an AWS tool needs, beside the caller's own environment."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
        return {
            **clean,
            "AWS_ACCESS_KEY_ID": self.key_id,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_ENDPOINT_URL": self.url,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def stop(self) -> int:
        """SIGTERM, and wait for the clean end."""
        if self.process.poll() is None:
            os.kill(self.pid, signal.SIGTERM)
        code = self.process.wait(timeout=READY_TIMEOUT_S)
        self._close()
        return code

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()
        self._close()

    def _close(self) -> None:
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._log.close()

    def __enter__(self) -> RunningStore:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._close()


def run_command(*arguments: str, **keywords: object) -> subprocess.CompletedProcess[str]:
    """`o3storage ARGUMENTS`, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "o3storage", *arguments],
        capture_output=True,
        text=True,
        timeout=READY_TIMEOUT_S,
        check=False,
        **keywords,  # type: ignore[call-overload]
    )
