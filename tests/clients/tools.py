"""Third-party clients behind one face, so that each goes through the same round trip.

A client that is not installed fails in CI (`CI` set) and is skipped, saying so, elsewhere.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.running_store import RunningStore

HERE = Path(__file__).resolve().parent
COMMAND_TIMEOUT_S = 300


def need(tool: str | None, name: str) -> str:
    """The tool's path, or fail in CI and skip elsewhere."""
    if tool and Path(tool).exists():
        return tool
    message = f"{name} is not installed (tools/clients.sh installs it)"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


@dataclass(slots=True)
class Place:
    """Where a client works: a running store, a directory for its files, the CA if over TLS."""

    store: RunningStore
    directory: Path
    ca: Path | None

    def run(
        self, *command: str, extra: dict[str, str] | None = None, expect: int = 0
    ) -> subprocess.CompletedProcess[str]:
        environment = {
            **self.store.environment(),
            "HOME": str(self.directory),
            **(extra or {}),
        }
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=environment,
            cwd=self.directory,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
        assert done.returncode == expect, (
            f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
        return done


class Tool:
    """What the round trip asks of every client."""

    name: str

    def __init__(self, place: Place) -> None:
        self.place = place

    def make_bucket(self, bucket: str) -> None:
        raise NotImplementedError

    def upload(self, file: Path, bucket: str, key: str) -> None:
        raise NotImplementedError

    def download(self, bucket: str, key: str, file: Path) -> None:
        raise NotImplementedError

    def keys(self, bucket: str) -> list[str]:
        raise NotImplementedError

    def delete(self, bucket: str, key: str) -> None:
        raise NotImplementedError

    def remove_bucket(self, bucket: str) -> None:
        raise NotImplementedError

    def sync_up(self, directory: Path, bucket: str, prefix: str) -> bool:
        """Upload a tree; False where the client has no such command."""
        return False

    def sync_down(self, bucket: str, prefix: str, directory: Path) -> None:
        raise NotImplementedError


class Boto3(Tool):
    name = "boto3"

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        import boto3

        self.s3 = boto3.client(
            "s3",
            endpoint_url=place.store.url,
            region_name=place.store.region,
            aws_access_key_id=place.store.key_id,
            aws_secret_access_key=place.store.secret,
            verify=str(place.ca) if place.ca else None,
        )

    def make_bucket(self, bucket: str) -> None:
        self.s3.create_bucket(Bucket=bucket)

    def upload(self, file: Path, bucket: str, key: str) -> None:
        self.s3.upload_file(str(file), bucket, key)

    def download(self, bucket: str, key: str, file: Path) -> None:
        self.s3.download_file(bucket, key, str(file))

    def keys(self, bucket: str) -> list[str]:
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def delete(self, bucket: str, key: str) -> None:
        self.s3.delete_object(Bucket=bucket, Key=key)

    def remove_bucket(self, bucket: str) -> None:
        self.s3.delete_bucket(Bucket=bucket)


class Aws(Tool):
    """aws cli; `executable` tells the two installations apart."""

    name = "aws"

    @staticmethod
    def find() -> str:
        return need(str(Path(sys.executable).with_name("aws")), "aws cli from the Python index")

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.base = [self.find(), "--endpoint-url", place.store.url]

    def aws(self, *words: str) -> str:
        extra = {"AWS_CA_BUNDLE": str(self.place.ca)} if self.place.ca else {}
        return self.place.run(*self.base, *words, extra=extra).stdout

    def s3(self, *words: str) -> str:
        return self.aws("s3", *words)

    def s3api(self, *words: str) -> dict[str, Any]:
        """The operation of that name; its answer."""
        found: dict[str, Any] = json.loads(self.aws("s3api", *words, "--output", "json") or "{}")
        return found

    def make_bucket(self, bucket: str) -> None:
        self.s3("mb", f"s3://{bucket}")

    def upload(self, file: Path, bucket: str, key: str) -> None:
        self.s3("cp", str(file), f"s3://{bucket}/{key}")

    def download(self, bucket: str, key: str, file: Path) -> None:
        self.s3("cp", f"s3://{bucket}/{key}", str(file))

    def keys(self, bucket: str) -> list[str]:
        found = self.s3api("list-objects-v2", "--bucket", bucket)
        return [entry["Key"] for entry in found.get("Contents", [])]

    def delete(self, bucket: str, key: str) -> None:
        self.s3("rm", f"s3://{bucket}/{key}")

    def remove_bucket(self, bucket: str) -> None:
        self.s3("rb", f"s3://{bucket}")

    def sync_up(self, directory: Path, bucket: str, prefix: str) -> bool:
        self.s3("sync", str(directory), f"s3://{bucket}/{prefix}")
        return True

    def sync_down(self, bucket: str, prefix: str, directory: Path) -> None:
        self.s3("sync", f"s3://{bucket}/{prefix}", str(directory))


class DebianAws(Aws):
    name = "debian-aws"

    @staticmethod
    def find() -> str:
        return need("/usr/bin/aws", "aws cli from Debian")


class Rclone(Tool):
    name = "rclone"

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.tool = need(shutil.which("rclone"), "rclone")
        self.extra = {
            "RCLONE_CONFIG_O3_TYPE": "s3",
            "RCLONE_CONFIG_O3_PROVIDER": "Other",
            "RCLONE_CONFIG_O3_ENDPOINT": place.store.url,
            "RCLONE_CONFIG_O3_REGION": place.store.region,
            "RCLONE_CONFIG_O3_ACCESS_KEY_ID": place.store.key_id,
            "RCLONE_CONFIG_O3_SECRET_ACCESS_KEY": place.store.secret,
        }

    def rclone(self, *words: str) -> str:
        ca = ["--ca-cert", str(self.place.ca)] if self.place.ca else []
        return self.place.run(self.tool, *ca, *words, extra=self.extra).stdout

    def make_bucket(self, bucket: str) -> None:
        self.rclone("mkdir", f"o3:{bucket}")

    def upload(self, file: Path, bucket: str, key: str) -> None:
        self.rclone("copyto", "--s3-upload-cutoff", "8M", str(file), f"o3:{bucket}/{key}")

    def download(self, bucket: str, key: str, file: Path) -> None:
        self.rclone("copyto", f"o3:{bucket}/{key}", str(file))

    def keys(self, bucket: str) -> list[str]:
        return sorted(self.rclone("lsf", "-R", "--files-only", f"o3:{bucket}").splitlines())

    def delete(self, bucket: str, key: str) -> None:
        self.rclone("deletefile", f"o3:{bucket}/{key}")

    def remove_bucket(self, bucket: str) -> None:
        self.rclone("rmdir", f"o3:{bucket}")

    def sync_up(self, directory: Path, bucket: str, prefix: str) -> bool:
        self.rclone("sync", str(directory), f"o3:{bucket}/{prefix}")
        self.rclone("check", str(directory), f"o3:{bucket}/{prefix}")
        return True

    def sync_down(self, bucket: str, prefix: str, directory: Path) -> None:
        self.rclone("sync", f"o3:{bucket}/{prefix}", str(directory))


class S3cmd(Tool):
    name = "s3cmd"

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        host = place.store.url.split("://", 1)[1]
        self.base = [
            need(shutil.which("s3cmd"), "s3cmd"),
            "--config=/dev/null",
            f"--access_key={place.store.key_id}",
            f"--secret_key={place.store.secret}",
            f"--host={host}",
            f"--host-bucket={host}",
            f"--region={place.store.region}",
            *(["--ssl", f"--ca-certs={place.ca}"] if place.ca else ["--no-ssl"]),
        ]

    def s3cmd(self, *words: str) -> str:
        return self.place.run(*self.base, *words).stdout

    def make_bucket(self, bucket: str) -> None:
        self.s3cmd("mb", f"s3://{bucket}")

    def upload(self, file: Path, bucket: str, key: str) -> None:
        self.s3cmd("put", "--multipart-chunk-size-mb=5", str(file), f"s3://{bucket}/{key}")

    def download(self, bucket: str, key: str, file: Path) -> None:
        self.s3cmd("get", f"s3://{bucket}/{key}", str(file))

    def keys(self, bucket: str) -> list[str]:
        lines = self.s3cmd("ls", "--recursive", f"s3://{bucket}").splitlines()
        return sorted(line.split(f"s3://{bucket}/", 1)[1] for line in lines)

    def delete(self, bucket: str, key: str) -> None:
        self.s3cmd("del", f"s3://{bucket}/{key}")

    def remove_bucket(self, bucket: str) -> None:
        self.s3cmd("rb", f"s3://{bucket}")

    def sync_up(self, directory: Path, bucket: str, prefix: str) -> bool:
        self.s3cmd("sync", f"{directory}/", f"s3://{bucket}/{prefix}/")
        return True

    def sync_down(self, bucket: str, prefix: str, directory: Path) -> None:
        self.s3cmd("sync", f"s3://{bucket}/{prefix}/", f"{directory}/")


class Curl(Tool):
    """Debian's curl, signing by itself (7.75 and later)."""

    name = "curl"

    def curl(self, *words: str) -> str:
        ca = ["--cacert", str(self.place.ca)] if self.place.ca else []
        store = self.place.store
        return self.place.run(
            need(shutil.which("curl"), "curl"), "-sS", "--fail-with-body", *ca,
            "--aws-sigv4", f"aws:amz:{store.region}:s3",
            "--user", f"{store.key_id}:{store.secret}", *words,
        ).stdout  # fmt: skip

    def url(self, bucket: str, key: str = "") -> str:
        return f"{self.place.store.url}/{bucket}" + (f"/{key}" if key else "")

    def make_bucket(self, bucket: str) -> None:
        self.curl("-X", "PUT", self.url(bucket))

    def upload(self, file: Path, bucket: str, key: str) -> None:
        self.curl(
            "-H", "x-amz-content-sha256: UNSIGNED-PAYLOAD", "-T", str(file), self.url(bucket, key)
        )

    def download(self, bucket: str, key: str, file: Path) -> None:
        self.curl("-o", str(file), self.url(bucket, key))

    def keys(self, bucket: str) -> list[str]:
        import re

        return re.findall("<Key>([^<]+)</Key>", self.curl(self.url(bucket)))

    def delete(self, bucket: str, key: str) -> None:
        self.curl("-X", "DELETE", self.url(bucket, key))

    def remove_bucket(self, bucket: str) -> None:
        self.curl("-X", "DELETE", self.url(bucket))


class JavaScript(Tool):
    """@aws-sdk/client-s3; uploads are streams of unknown length."""

    name = "javascript"

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        need(str(HERE / "javascript/node_modules/@aws-sdk/client-s3"), "@aws-sdk/client-s3")
        self.node = need(shutil.which("node"), "node")

    def call(self, *words: str) -> str:
        extra = {"NODE_EXTRA_CA_CERTS": str(self.place.ca)} if self.place.ca else {}
        return self.place.run(
            self.node, str(HERE / "javascript/client.mjs"), *words, extra=extra
        ).stdout

    def make_bucket(self, bucket: str) -> None:
        self.call("make-bucket", bucket)

    def upload(self, file: Path, bucket: str, key: str) -> None:
        self.call("upload", bucket, key, str(file))

    def download(self, bucket: str, key: str, file: Path) -> None:
        self.call("download", bucket, key, str(file))

    def keys(self, bucket: str) -> list[str]:
        return self.call("keys", bucket).splitlines()

    def delete(self, bucket: str, key: str) -> None:
        self.call("delete", bucket, key)

    def remove_bucket(self, bucket: str) -> None:
        self.call("remove-bucket", bucket)


TOOLS: list[Callable[[Place], Tool]] = [Boto3, Aws, DebianAws, Rclone, S3cmd, Curl, JavaScript]
