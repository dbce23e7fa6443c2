"""Cross-origin rules of buckets: stored, matched, and the preflight answer.

Sources: S3 user guide, "Using cross-origin resource sharing"; WHATWG Fetch, CORS protocol. Without
a rule that matches, no CORS header is ever sent: an Origin is never reflected by itself.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Final

from o3storage.catalog import BucketInfo
from o3storage.http import Response
from o3storage.s3._answers import Header, empty, xml
from o3storage.s3._context import Context
from o3storage.s3._documents import read_document
from o3storage.s3._errors import S3Error
from o3storage.s3._xml import Element, escape

SETTING: Final = "cors"

MAX_RULES: Final = 100
"""Rules of one configuration (AWS)."""

MAX_RULE_ID: Final = 255

MAX_ASKED_HEADERS: Final = 100
"""Header names of one preflight: no request has more fields (http's MAX_HEADERS). They are held
against all patterns of a configuration in one step of the event loop."""

MAX_STORED_BYTES: Final = 64 * 1024
"""A configuration may have 64 KB (AWS); the catalog's limit of a setting."""

METHODS: Final = ("GET", "PUT", "HEAD", "POST", "DELETE")

_VARY: Final = "Origin, Access-Control-Request-Headers, Access-Control-Request-Method"


@dataclass(slots=True)
class Rule:
    """One CORSRule."""

    origins: list[str]
    methods: list[str]
    headers: list[str] = field(default_factory=list)
    expose: list[str] = field(default_factory=list)
    max_age_s: int | None = None
    rule_id: str = ""

    def matches(self, origin: str, method: str, asked: list[str]) -> bool:
        """Whether this rule allows `method` from `origin` with the headers `asked`."""
        return (
            method in self.methods
            and any(_wildcard(pattern, origin) for pattern in self.origins)
            and (not asked or _all_match(self.headers, asked))
        )


def _wildcard(pattern: str, text: str) -> bool:
    head, star, tail = pattern.partition("*")
    if not star:
        return pattern == text
    return len(text) >= len(head) + len(tail) and text.startswith(head) and text.endswith(tail)


def _all_match(patterns: list[str], names: list[str]) -> bool:
    """Whether each of `names` matches one of `patterns`, in any case. One by one that would be two
    hundred thousand comparisons at most, 80 ms, for a question that takes no credentials."""
    tails: dict[str, list[str]] = {}
    """What stands before the wildcard, and all that may stand behind it there."""
    whole: dict[str, None] = {}
    for pattern in patterns:
        head, star, tail = pattern.lower().partition("*")
        if star:
            tails.setdefault(head, []).append(tail)
        else:
            whole[head] = None
    by_head = {head: tuple(found) for head, found in tails.items()}
    sizes = list(dict.fromkeys([len(head) for head in by_head]))
    for name in dict.fromkeys([name.lower() for name in names]):
        if name in whole:
            continue
        for size in sizes:
            ends = by_head.get(name[:size])
            if ends is not None and name[size:].endswith(ends):
                break
        else:
            return False
    return True


def parse_rules(root: Element) -> list[Rule]:
    """Raises S3Error MalformedXML, InvalidRequest."""
    elements = root.find_all("CORSRule")
    if not 1 <= len(elements) <= MAX_RULES:
        raise S3Error("MalformedXML", f"A configuration has 1 to {MAX_RULES} rules.")
    return [_parse_rule(element) for element in elements]


def _parse_rule(element: Element) -> Rule:
    def texts(name: str) -> list[str]:
        return [child.text.strip() for child in element.find_all(name)]

    rule = Rule(
        texts("AllowedOrigin"),
        texts("AllowedMethod"),
        texts("AllowedHeader"),
        texts("ExposeHeader"),
        None,
        (element.child_text("ID") or "").strip(),
    )
    if not rule.origins or not rule.methods or len(rule.rule_id) > MAX_RULE_ID:
        raise S3Error("MalformedXML", "A rule needs an AllowedOrigin and an AllowedMethod.")
    for method in rule.methods:
        if method not in METHODS:
            raise S3Error(
                "InvalidRequest",
                f"Found unsupported HTTP method in CORS config. Unsupported method is {method}",
            )
    for name, values in (("AllowedOrigin", rule.origins), ("AllowedHeader", rule.headers)):
        for value in values:
            if value.count("*") > 1:
                raise S3Error(
                    "InvalidRequest", f'{name} "{value}" can not have more than one wildcard.'
                )
    for value in rule.expose:
        if "*" in value:
            raise S3Error(
                "InvalidRequest",
                f'ExposeHeader "{value}" contains wildcard. We currently do not support wildcard '
                "for ExposeHeader",
            )
    for value in (*rule.origins, *rule.headers, *rule.expose):
        if not value or not value.isprintable() or not value.isascii():
            raise S3Error("MalformedXML", "A rule holds an empty or unprintable value.")
    age = element.child_text("MaxAgeSeconds")
    if age is not None:
        age = age.strip()
        if not age.isascii() or not age.isdigit() or len(age) > 9:
            raise S3Error("MalformedXML", "MaxAgeSeconds is not a number.")
        rule.max_age_s = int(age)
    return rule


def load_rules(bucket: BucketInfo) -> list[Rule]:
    stored = bucket.settings.get(SETTING)
    return [] if stored is None else [Rule(**rule) for rule in json.loads(stored)]


async def get_bucket_cors(ctx: Context) -> Response:
    rules = load_rules(ctx.bucket)
    if not rules:
        raise S3Error("NoSuchCORSConfiguration", details=(("BucketName", ctx.bucket_name),))
    return xml("CORSConfiguration", "".join([_rule_xml(rule) for rule in rules]))


def _rule_xml(rule: Rule) -> str:
    parts = [f"<ID>{escape(rule.rule_id)}</ID>"] if rule.rule_id else []
    for name, values in (
        ("AllowedOrigin", rule.origins),
        ("AllowedMethod", rule.methods),
        ("AllowedHeader", rule.headers),
        ("ExposeHeader", rule.expose),
    ):
        parts += [f"<{name}>{escape(value)}</{name}>" for value in values]
    if rule.max_age_s is not None:
        parts.append(f"<MaxAgeSeconds>{rule.max_age_s}</MaxAgeSeconds>")
    return f"<CORSRule>{''.join(parts)}</CORSRule>"


async def put_bucket_cors(ctx: Context) -> Response:
    root = await read_document(ctx, ("CORSConfiguration",), max_bytes=MAX_STORED_BYTES)
    rules = parse_rules(root)
    value = json.dumps([asdict(rule) for rule in rules], separators=(",", ":")).encode()
    if len(value) > MAX_STORED_BYTES:
        raise S3Error("MalformedXML", "The configuration is too large.")
    await ctx.set_bucket_setting(SETTING, value)
    return empty(200)


async def delete_bucket_cors(ctx: Context) -> Response:
    await ctx.set_bucket_setting(SETTING, None)
    return empty(204)


def response_headers(bucket: BucketInfo, origin: str, method: str) -> list[Header]:
    """The CORS headers of an actual (not a preflight) answer; none without a matching rule."""
    if SETTING not in bucket.settings:
        return []
    for rule in load_rules(bucket):
        if rule.matches(origin, method, []):
            return _allow(rule, origin)
    return []


def _allow(rule: Rule, origin: str) -> list[Header]:
    headers: list[Header] = []
    if "*" in rule.origins:
        headers.append(("Access-Control-Allow-Origin", "*"))
    else:
        headers.append(("Access-Control-Allow-Origin", origin))
        headers.append(("Access-Control-Allow-Credentials", "true"))
    headers.append(("Access-Control-Allow-Methods", ", ".join(rule.methods)))
    if rule.expose:
        headers.append(("Access-Control-Expose-Headers", ", ".join(rule.expose)))
    if rule.max_age_s is not None:
        headers.append(("Access-Control-Max-Age", str(rule.max_age_s)))
    headers.append(("Vary", _VARY))
    return headers


def preflight(bucket: BucketInfo | None, headers: dict[str, str]) -> Response:
    """The answer to OPTIONS, which browsers send without credentials. Raises S3Error."""
    origin = headers.get("origin")
    if not origin:
        raise S3Error("BadRequest", "Insufficient information. Origin request header needed.")
    method = headers.get("access-control-request-method", "")
    if method not in METHODS:
        raise S3Error("BadRequest", f"Invalid Access-Control-Request-Method: {method}")
    text = headers.get("access-control-request-headers", "")
    asked = [name.strip() for name in text.split(",") if name.strip()]
    if len(asked) > MAX_ASKED_HEADERS:
        raise S3Error("BadRequest", f"More than {MAX_ASKED_HEADERS} header names are asked for.")
    for rule in load_rules(bucket) if bucket is not None else []:
        if rule.matches(origin, method, asked):
            answer = _allow(rule, origin)
            if asked:
                answer.append(("Access-Control-Allow-Headers", ", ".join(asked).lower()))
            return empty(200, answer)
    raise S3Error(
        "AccessForbidden",
        "CORSResponse: This CORS request is not allowed. This is usually because the evalution of "
        "Origin, request method / Access-Control-Request-Method or "
        "Access-Control-Request-Headers are not whitelisted by the resource's CORS spec.",
        details=(("Method", method), ("ResourceType", "BUCKET")),
    )
