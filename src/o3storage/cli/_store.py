"""How commands find the running store and the key to talk to it with."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from o3storage.server import REGION, Running, read_root_key, read_running

from ._client import Client, ClientError, Credentials

DEFAULT_URL = "http://127.0.0.1:8080"
DEFAULT_REGION = "us-east-1"


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


def region(options: argparse.Namespace) -> str:
    """What requests are signed for: --region; else, for an --endpoint, AWS_REGION or
    AWS_DEFAULT_REGION; else what the store of --data-dir says. Raises CommandError."""
    found = running(options)
    text: str = options.region or ""
    if not text and found is not None and not options.endpoint:
        # (Not the environment: a shell often carries the region of another provider.)
        text = found.region
    if not text:
        text = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or ""
    if not text:
        text = found.region if found else DEFAULT_REGION
    if not REGION.fullmatch(text):
        raise CommandError(f"--region: {text!r} is no region; write for example eu-west-1")
    return text


def region_advice(expected: str) -> str:
    """What to add to a refusal of an endpoint that names the region it expects; "" if it does not
    or what it names is none."""
    return f"; give --region {expected}" if REGION.fullmatch(expected) else ""


class Admin:
    """The signed JSON API of a running store under `/-/admin/v1`."""

    def __init__(self, options: argparse.Namespace) -> None:
        found = running(options)
        url = options.endpoint or (found.admin_url if found else DEFAULT_URL)
        self._client = Client(
            url, credentials(options), region=region(options), ca_file=options.ca_file
        )

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
            advice = region_advice(str(decoded.get("region", ""))) if reason else ""
            raise CommandError(
                f"the store answered {answer.status}: {reason}".rstrip(": ") + advice
            )
        return decoded
