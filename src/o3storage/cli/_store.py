"""How commands find the running store and the key to talk to it with."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from o3storage.server import Running, read_root_key, read_running

from ._client import Client, ClientError, Credentials

DEFAULT_URL = "http://127.0.0.1:8080"


class CommandError(Exception):
    """Shown as one line on stderr; the command ends with 1."""


def data_dir(options: argparse.Namespace) -> Path:
    return Path(os.path.abspath(options.data_dir))


def running(options: argparse.Namespace) -> Running | None:
    return read_running(data_dir(options))


def credentials(options: argparse.Namespace) -> Credentials:
    """The root key of --data-dir, else the key in the environment (AWS_*). Raises CommandError."""
    key_id = os.environ.get("AWS_ACCESS_KEY_ID")
    secret = os.environ.get("AWS_SECRET_ACCESS_KEY")
    stored = read_root_key(data_dir(options))
    # The store's own key comes first: a shell often carries keys of another provider.
    if stored is not None:
        return Credentials(stored.key_id, stored.secret)
    if key_id and secret:
        return Credentials(key_id, secret)
    raise CommandError(
        f"no root-credentials in {data_dir(options)}; name the store's directory with --data-dir, "
        "or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    )


class Admin:
    """The signed JSON API of a running store under `/-/admin/v1`."""

    def __init__(self, options: argparse.Namespace) -> None:
        found = running(options)
        url = options.endpoint or (found.admin_url if found else DEFAULT_URL)
        region = found.region if found else "us-east-1"
        self._client = Client(url, credentials(options), region=region, ca_file=options.ca_file)

    async def call(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None = None,
        body: dict[str, Any] | None = None,
    ) -> Any:
        """The decoded answer. Raises CommandError with the store's own message."""
        payload = json.dumps(body).encode() if body is not None else b""
        try:
            answer = await self._client.request(
                method, f"/-/admin/v1{path}", query=query, body=payload
            )
        except ClientError as error:
            raise CommandError(str(error)) from None
        finally:
            await self._client.close()
        try:
            decoded = json.loads(answer.body) if answer.body else {}
        except ValueError:
            decoded = {"error": answer.body[:300].decode("utf-8", "replace")}
        if answer.status >= 300:
            reason = decoded.get("error", "") if isinstance(decoded, dict) else ""
            raise CommandError(f"the store answered {answer.status}: {reason}".rstrip(": "))
        return decoded
