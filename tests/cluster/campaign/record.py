"""What the clients wrote down -> histories for the simulator's checker, one for each set of keys."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from o3storage.simulation._checker import TooHardError, Violation, check
from o3storage.simulation._history import MARKER, History, Kind, Operation, Page, Result

KINDS = {
    "put": Kind.PUT,
    "delete": Kind.DELETE,
    "get": Kind.READ,
    "head": Kind.READ,
    "get-version": Kind.READ_VERSION,
    "remove-version": Kind.REMOVE_VERSION,
}


@dataclass(slots=True)
class Record:
    """All of a campaign. `sets`: by the keys' first part, e.g. "e00012"."""

    sets: dict[str, History] = field(default_factory=dict)
    by_etag: dict[str, int] = field(default_factory=dict)
    version_of: dict[int, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    """What is wrong without any search: bytes or ETags that nobody wrote."""
    ends: Counter[str] = field(default_factory=Counter)
    acknowledged: int = 0

    def read_files(self, paths: Iterable[Path]) -> None:
        """The clients' files; all of them at once, since one client reads what another wrote."""
        found: list[tuple[str, dict[str, Any]]] = []
        for path in paths:
            calls: dict[int, dict[str, Any]] = {}
            for line in path.read_text().splitlines():
                entry = json.loads(line)
                calls.setdefault(entry["n"], {}).update(entry)
            found += [(path.suffix[1:], entry) for entry in calls.values()]
        for _, entry in found:
            if "value" in entry:
                self.by_etag[entry["etag"]] = entry["value"]
        for client, entry in sorted(found, key=lambda item: float(item[1]["call"])):
            self.add(client, entry)

    @staticmethod
    def keys_in(paths: Iterable[Path]) -> dict[tuple[str, str], None]:
        """(bucket, key) of everything that the clients tried to write."""
        entries = (json.loads(line) for path in paths for line in path.read_text().splitlines())
        return {(e["bucket"], e["key"]): None for e in entries if e.get("kind") == "put"}

    def history(self, key: str) -> History:
        return self.sets.setdefault(key.partition("/")[0], History(lambda: 0.0))

    def number(self, etag: str, where: str) -> int:
        found = self.by_etag.get(etag)
        if found is None:
            self.problems.append(f"P3: {where}: ETag {etag} that nobody wrote")
            return -1
        return found

    def add(self, client: str, entry: dict[str, Any]) -> None:
        kind = entry["kind"]
        result = self._result(entry)
        self.ends[self._end_text(entry)] += 1
        if kind == "list":
            if result is Result.OK:
                self._page(client, entry)
        elif kind == "versions":
            if result is Result.OK:
                self._versions(client, entry)
        else:
            self._operation(client, entry, result)

    def _end_text(self, entry: dict[str, Any]) -> str:
        end = str(entry.get("end", "cut"))
        if end == "error":
            code = entry["code"].partition("\n")[0]
            return f"{entry['kind']} {entry['status']} {code}".strip()
        return end + (f" {entry['why']}" if "why" in entry else "")

    def _result(self, entry: dict[str, Any]) -> Result:
        end, kind = entry.get("end", "cut"), entry["kind"]
        if end == "ok":
            return Result.OK
        if end == "never":
            return Result.NEVER
        if end != "error":
            return Result.UNKNOWN
        status = entry["status"]
        if kind in ("get", "head", "get-version") and status == 404:
            return Result.OK
        condition = entry.get("condition")
        if condition and (status in (409, 412) or (condition == "match" and status == 404)):
            return Result.REFUSED
        if status == 507:
            return Result.NEVER
        if status != 503 and not (entry.get("multipart") and status == 404):
            where = f"{kind} {entry['bucket']}/{entry['key']} at node {entry['node']}"
            self.problems.append(f"{where}: {status} {entry['code']}")
        return Result.UNKNOWN

    def _operation(self, client: str, entry: dict[str, Any], result: Result) -> None:
        kind, key = KINDS[entry["kind"]], entry["key"]
        where = f"c{client} {entry['kind']} {entry['bucket']}/{key} at node {entry['node']}"
        history = self.history(key)
        op = Operation(
            len(history.operations) + 1,
            f"c{client}",
            kind,
            entry["bucket"],
            key,
            entry["call"],
            entry["ret"] if result is not Result.UNKNOWN and "ret" in entry else math.inf,
            result,
            condition=entry.get("condition", ""),
        )
        if kind is Kind.PUT:
            op.value = entry["value"]
            if "expected" in entry:
                op.expected = self.number(entry["expected"], where)
            if result is Result.OK:
                self.acknowledged += 1
                self._version(op.value, entry)
        elif kind in (Kind.READ_VERSION, Kind.REMOVE_VERSION):
            op.value = self.number(entry["etag"], where)
        if kind in (Kind.READ, Kind.READ_VERSION) and entry.get("end") == "ok":
            op.seen = self.number(entry["seen"], where)
            self._version(op.seen, entry)
            if entry.get("md5", entry["seen"]) != entry["seen"]:
                self.problems.append(f"P3: {where}: bytes that are not those of {entry['seen']}")
        history.operations.append(op)

    def _version(self, value: int, entry: dict[str, Any]) -> None:
        version = entry.get("version", "null")
        if version != "null" and self.version_of.setdefault(value, version) != version:
            self.problems.append(
                f"P2: value {value} was version {self.version_of[value]}, now {version}"
            )

    def _page(self, client: str, entry: dict[str, Any]) -> None:
        prefix, keys = entry["key"], [key for key, _ in entry["page"]]
        low = entry["low"] or prefix
        where = f"c{client} list {entry['bucket']}/{prefix} at node {entry['node']}"
        if keys != sorted(keys) or any(key <= low for key in keys):
            self.problems.append(f"P4: {where}: out of order: {keys}")
            return
        seen = {key: self.number(etag, where) for key, etag in entry["page"]}
        high = keys[-1] if entry["more"] else prefix + "~"
        self.history(prefix).page(
            Page(entry["bucket"], f"c{client}", entry["call"], entry["ret"], low, high, seen)
        )

    def _versions(self, client: str, entry: dict[str, Any]) -> None:
        where = f"c{client} versions {entry['key']} at node {entry['node']}"
        found: dict[str, list[int]] = {}
        for key, etag in entry["versions"]:
            found.setdefault(key, []).append(self.number(etag, where) if etag else MARKER)
        for key, versions in found.items():
            history = self.history(key)
            history.operations.append(
                Operation(
                    len(history.operations) + 1,
                    f"c{client}",
                    Kind.VERSIONS,
                    entry["bucket"],
                    key,
                    entry["call"],
                    entry["ret"],
                    Result.OK,
                    seen_versions=tuple(versions),
                )
            )

    def check(self) -> list[str]:
        """What is wrong, as text; all sets of keys are searched."""
        found = list(self.problems)
        for name, history in self.sets.items():
            try:
                violations: list[Violation] = check(history, lambda bucket: bucket == "versioned")
            except TooHardError as error:
                found.append(f"undecided: keys {name}: {error}")
            else:
                found += [str(violation) for violation in violations]
        return found
