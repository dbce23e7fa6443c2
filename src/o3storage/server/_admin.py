"""The signed JSON API under `/-/admin/v1`, for the command line and, later, the console.

    GET    /status            what the store says of itself
    GET    /keys[?owner=O]    access keys, without secrets
    POST   /keys {"owner"}    a new key; its secret is in this answer only
    DELETE /keys/ID           a key stops working
    POST   /keys/root         a new root key for all nodes; its secret is in this answer only
    GET    /nodes             the nodes of the cluster
    POST   /nodes/NODE {"action", "shrink"}    drain, remove, replace, stay
    GET    /ranges            the key ranges
    POST   /ranges {"bucket", "key"}           cut the one that holds the key there
    POST   /ranges/NUMBER {"action": "move", "from", "to"}     bring a replica to another node
    POST   /ranges/NUMBER {"action": "stay"}   take that back

Requests are signed like S3's and only the root owner may make them.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote

from o3storage.catalog import (
    AccessKeysPage,
    NoSuchAccessKey,
    PutAccessKey,
    RemoveAccessKey,
    list_access_keys,
)
from o3storage.cluster import MembershipRefused, SplitRefused, StorageFull, Unavailable
from o3storage.http import Request, Response
from o3storage.s3 import S3Error, read_signed_body

from . import _nodes, _ranges
from ._config import MAX_KEY_ID_CHARS
from ._credentials import ROOT_OWNER
from ._errors import AdminError
from ._health import count_objects, health_facts
from ._json_body import read_fields
from ._root_key import ROOT_KEY, make_key, to_shared

if TYPE_CHECKING:
    from ._app import Application

PREFIX = "/-/admin/v1"
MAX_BODY_BYTES = 64 * 1024
"""Admin requests are a few fields."""
OWNER = re.compile(r"[A-Za-z0-9._@+-]{1,64}")
"""What an owner may be called: safe in XML, JSON, shells and file names."""


async def answer(app: Application, request: Request, path: str) -> Response:
    """The answer to a request whose path starts with PREFIX."""
    try:
        identity, body = await read_signed_body(app.service, request, MAX_BODY_BYTES)
        if identity.owner != ROOT_OWNER or identity.anonymous:
            raise AdminError(403, "only the root owner may use the admin API")
        result = await _route(app, request.method, path.removeprefix(PREFIX), request, body)
    except S3Error as error:
        refusal = {"error": f"{error.code}: {error.message}"}
        if (region := dict(error.details).get("Region")) is not None:
            refusal["region"] = region
        return _json(error.status, refusal)
    except AdminError as error:
        return _json(error.status, {"error": str(error)})
    except (MembershipRefused, SplitRefused) as error:
        return _json(409, {"error": str(error)})
    except (Unavailable, StorageFull) as error:
        return _json(503, {"error": str(error)})
    return _json(200, result)


def _json(status: int, body: Any) -> Response:
    return Response(
        status,
        [("Content-Type", "application/json"), ("Cache-Control", "no-store")],
        json.dumps(body).encode() + b"\n",
    )


async def _route(app: Application, method: str, path: str, request: Request, body: bytes) -> Any:
    if path == "/status" and method == "GET":
        return await status(app)
    if path == "/keys" and method == "GET":
        return await _list_keys(app, _query(request).get("owner"))
    if path == "/keys" and method == "POST":
        return await _create_key(app, body)
    if path == "/keys/root" and method == "POST":
        return await _new_root_key(app)
    if path == "/nodes" and method == "GET":
        return await _nodes.listing(app)
    if path.startswith("/nodes/") and method == "POST":
        return await _nodes.act(app, path.removeprefix("/nodes/"), body)
    if path == "/ranges" and method == "GET":
        return await _ranges.listing(app)
    if path == "/ranges" and method == "POST":
        return await _ranges.split(app, body)
    if path.startswith("/ranges/") and method == "POST":
        return await _ranges.act(app, unquote(path.removeprefix("/ranges/")), body)
    if path.startswith("/keys/") and method == "DELETE":
        return await _remove_key(app, unquote(path.removeprefix("/keys/")))
    raise AdminError(404, f"the admin API has no {method} {PREFIX}{path}")


def _query(request: Request) -> dict[str, str]:
    return dict(parse_qsl(request.query.decode("latin-1"), keep_blank_values=True))


async def status(app: Application) -> dict[str, Any]:
    """The facts of /health with what an operator wants beside them."""
    facts = health_facts(app, await count_objects(app))
    stats = app.store.stats()
    return {
        **facts,
        "version": app.version,
        "uptime_s": app.clock.boot_s() - app.started_boot_s,
        "detail": {
            "data": str(app.config.data_dir),
            "ranges": _ranges.summary(app),
            "volumes": f"{stats.log_volumes} log, {stats.bulk_volumes} bulk",
            "garbage": f"{stats.garbage_bytes:,} bytes",
            "scrub": f"{stats.scrubbed_bytes:,} bytes read, {stats.scrub_bad} bad records",
            "stall": f"longest step of the event loop {app.meter.longest_ever_s * 1e3:.1f} ms",
        },
        "node": app.node.status(),
        "nodes": await _nodes.listing(app),
    }


async def _list_keys(app: Application, owner: str | None) -> dict[str, Any]:
    keys = [
        {"key_id": key_id, "owner": ROOT_OWNER, "created_ns": 0, "root": True}
        for key_id in app.root_key_ids
        if owner in {None, ROOT_OWNER}
    ]
    after = ""
    while True:
        page: AccessKeysPage = await app.node.query(list_access_keys(owner, after))
        keys += [
            {"key_id": key.key_id, "owner": key.owner, "created_ns": key.created_ns, "root": False}
            for key in page.keys
        ]
        if page.next_after is None:
            return {"keys": keys}
        after = page.next_after


async def _create_key(app: Application, body: bytes) -> dict[str, Any]:
    owner = read_fields(body, ("owner",), '{"owner": "alice"}')["owner"]
    if not OWNER.fullmatch(owner):
        raise AdminError(400, "an owner is 1 to 64 of A-Z a-z 0-9 . _ @ + -")
    key = make_key(app.entropy)
    await app.node.submit(PutAccessKey(key.key_id, key.secret.encode(), owner, app.clock.wall_ns()))
    return {"key_id": key.key_id, "secret": key.secret, "owner": owner}


async def _new_root_key(app: Application) -> dict[str, Any]:
    key = make_key(app.entropy)
    await app.membership.share(ROOT_KEY, to_shared(key))
    return {"key_id": key.key_id, "secret": key.secret, "owner": ROOT_OWNER}


async def _remove_key(app: Application, key_id: str) -> dict[str, Any]:
    if key_id in app.root_key_ids:
        raise AdminError(409, "a root key cannot be removed here; see docs/operations.md")
    try:
        if (
            len(key_id) > MAX_KEY_ID_CHARS or not key_id.isascii()
        ):  # more than a command has room for
            raise NoSuchAccessKey(key_id)
        await app.node.submit(RemoveAccessKey(key_id))
    except NoSuchAccessKey:
        raise AdminError(404, f"there is no key {key_id}") from None
    return {}
