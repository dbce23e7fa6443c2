"""The nodes of the cluster in the admin API: what each is and does, and the operator's changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from o3storage.cluster import show_address

from ._errors import AdminError
from ._json_body import read_fields

if TYPE_CHECKING:
    from ._app import Application

MIN_PREFIX_CHARS = 4
"""A node is named by no less of its id, so that a slip does not name another one."""


async def listing(app: Application) -> dict[str, Any]:
    """All nodes, with what those that can be reached say of themselves."""
    membership = app.membership
    found = membership.status()
    facts = await membership.gather_facts()
    groups: dict[int, dict[str, Any]] = {}
    for entry in found["nodes"]:
        said = facts.get(int(entry["node"], 16), {})
        entry["facts"] = {name: value for name, value in said.items() if name != "leads"}
        entry["answers"] = bool(said)
        for group in said.get("leads", ()):
            number = group["group"]
            # Two may think that they lead while leadership moves: the later term does.
            if number not in groups or groups[number]["term"] < group["term"]:
                groups[number] = {**group, "leader": entry["node"]}
    found["groups"] = [_with_quorum(app, groups[number]) for number in sorted(groups)]
    known = dict.fromkeys([0, *app.node.key_ranges()])
    leaderless = [group for group in known if group not in groups]
    found["without_leader"] = leaderless
    return found


def _with_quorum(app: Application, group: dict[str, Any]) -> dict[str, Any]:
    up = sum(app.membership.up(int(node, 16)) for node in group["voters"])
    return {**group, "voters_up": up, "quorum": len(group["voters"]) // 2 + 1}


async def act(app: Application, name: str, body: bytes) -> dict[str, Any]:
    """Drain, remove, replace or keep a node. Raises AdminError, MembershipRefused, Unavailable."""
    asked = read_fields(body, ("action",), '{"action": "drain"}')
    action, shrink = asked["action"], bool(asked.get("shrink"))
    node = find(app, unquote(name))
    membership = app.membership
    if action == "drain":
        await membership.drain(node, shrink=shrink)
    elif action == "remove":
        await membership.remove(node, shrink=shrink)
    elif action == "replace":
        await membership.remove(node, shrink=False, replace=True)
    elif action == "stay":
        await membership.stay(node)
    else:
        raise AdminError(400, "the action is drain, remove, replace or stay")
    return {"node": f"{node:016x}", "state": membership.records[node].state.name.lower()}


def find(app: Application, name: str) -> int:
    """The node that `name` names: an address, with or without its port, or the beginning of an id.
    Raises AdminError."""
    matches = []
    for record in app.membership.live():
        addresses = record.announced.addresses
        names = {show_address(address): None for address in addresses}
        names |= {address.host: None for address in addresses}
        id_text = f"{record.node:016x}"
        if name in names or (len(name) >= MIN_PREFIX_CHARS and id_text.startswith(name.lower())):
            matches.append(record.node)
    if not matches:
        raise AdminError(404, f"no node is called {name}; `o3storage node list` shows all")
    if len(matches) > 1:
        raise AdminError(409, f"{name} names {len(matches)} nodes; give more of the id")
    return matches[0]
